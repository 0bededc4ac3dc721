"""OpenAI's Responses API of the model server, `POST /v1/responses`: the third of its wire formats (formats.py).

As with the real one each event names its type and its number, there is no `[DONE]`, the last event is `response.completed` or
`response.incomplete` and repeats the whole answer, and a tool call and its result have the same `call_id`. An Upgrade to a
WebSocket is not answered here (404), after which clients use SSE.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .scripts import ERRORS, Plan, Text, Thinking, Tool

if TYPE_CHECKING:
    from .formats import Call, Payload


class Responses:
    """`POST /v1/responses`."""

    def _response(self, call: Call, status: str, **more: Any) -> dict[str, Any]:
        # `created_at` is fixed: an answer is a function of its request
        head = {"id": f"resp_{call.number:08d}", "object": "response", "created_at": 1767225600, "model": call.model}
        return {**head, "status": status, "output": [], "error": None, "incomplete_details": None, "usage": None, **more}

    def _usage(self, plan: Plan, call: Call) -> dict[str, Any]:
        fresh, written, read = call.tokens
        reasoning = sum(len("".join(part.deltas)) for part in plan.parts if isinstance(part, Thinking)) // 4
        return {
            "input_tokens": fresh + written + read,
            "input_tokens_details": {"cached_tokens": read},
            "output_tokens": plan.output_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": fresh + written + read + plan.output_tokens,
        }

    def _item(self, part: Text | Thinking | Tool, call: Call, at: int) -> dict[str, Any]:
        """A whole item of the output."""
        if isinstance(part, Text):
            content = [{"type": "output_text", "text": "".join(part.deltas), "annotations": []}]
            name = f"msg_{call.number:08d}_{at}"
            return {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": content}
        if isinstance(part, Thinking):
            summary = [{"type": "summary_text", "text": "".join(part.deltas)}]
            return {"id": f"rs_{call.number:08d}_{at}", "type": "reasoning", "summary": summary}
        names = {"id": f"fc_{call.number:08d}_{at}", "call_id": f"call_{call.number:08d}_{at}", "name": part.name}
        return {**names, "type": "function_call", "arguments": "".join(part.fragments), "status": "completed"}

    def whole(self, plan: Plan, call: Call) -> dict[str, Any]:
        output = [self._item(part, call, at) for at, part in enumerate(plan.parts)]
        more = {"output": output, "usage": self._usage(plan, call)}
        if plan.stop == "max_tokens":
            return self._response(call, "incomplete", **more, incomplete_details={"reason": "max_output_tokens"})
        return self._response(call, "completed", **more)

    def stream(self, plan: Plan, call: Call) -> Iterator[Payload]:
        numbers = itertools.count()
        for event in self._events(plan, call):
            yield event["type"], {"type": event["type"], "sequence_number": next(numbers), **event}
            if plan.ping:
                yield None, ""

    def _events(self, plan: Plan, call: Call) -> Iterator[dict[str, Any]]:
        yield {"type": "response.created", "response": self._response(call, "in_progress")}
        yield {"type": "response.in_progress", "response": self._response(call, "in_progress")}
        for at, part in enumerate(plan.parts):
            item = self._item(part, call, at)
            where = {"item_id": item["id"], "output_index": at}
            empty = {"message": "content", "reasoning": "summary", "function_call": "arguments"}[item["type"]]
            started = {**item, empty: "" if empty == "arguments" else []}
            if item["type"] != "reasoning":
                started["status"] = "in_progress"
            yield {"type": "response.output_item.added", "output_index": at, "item": started}
            if isinstance(part, Text):
                name, deltas, done = "output_text", part.deltas, {"content_index": 0, "text": "".join(part.deltas)}
                opened = {"type": "output_text", "text": "", "annotations": []}
                yield {"type": "response.content_part.added", **where, "content_index": 0, "part": opened}
            elif isinstance(part, Thinking):
                name, deltas, done = "reasoning_summary_text", part.deltas, {"summary_index": 0, "text": "".join(part.deltas)}
                opened = {"type": "summary_text", "text": ""}
                yield {"type": "response.reasoning_summary_part.added", **where, "summary_index": 0, "part": opened}
            else:
                name, deltas, done = "function_call_arguments", part.fragments, {"arguments": item["arguments"]}
            index = {key: 0 for key in done if key.endswith("_index")}
            for sent, delta in enumerate(deltas):
                if plan.fault in ("error-midstream", "cut") and sent == 3:
                    if plan.fault == "error-midstream":
                        kind, message = ERRORS[529]
                        yield {"type": "error", "code": kind, "message": message, "param": None}
                    return
                yield {"type": f"response.{name}.delta", **where, **index, "delta": delta}
            yield {"type": f"response.{name}.done", **where, **done}
            if isinstance(part, Text):
                yield {"type": "response.content_part.done", **where, "content_index": 0, "part": item["content"][0]}
            elif isinstance(part, Thinking):
                yield {"type": "response.reasoning_summary_part.done", **where, "summary_index": 0, "part": item["summary"][0]}
            yield {"type": "response.output_item.done", "output_index": at, "item": item}
        if plan.fault != "noend":
            response = self.whole(plan, call)
            yield {"type": f"response.{response['status']}", "response": response}

    def error(self, status: int, call: Call) -> dict[str, Any]:
        kind, message = ERRORS[status]
        return {"error": {"message": message, "type": kind, "param": None, "code": kind}}

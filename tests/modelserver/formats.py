"""The wire formats of the model server: Anthropic Messages and OpenAI Chat Completions; OpenAI Responses is in responses.py.

In: a `Plan`, the request, a number that makes ids. Out: the SSE events of a streamed answer as (event name or
None, payload) pairs, or the JSON of a whole one. Usage is counted from the request's size and the answer's
length; the input includes cached tokens with OpenAI and excludes them with Anthropic, as with the real ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from .responses import Responses
from .scripts import ERRORS, Plan, Text, Thinking, Tool

Payload = tuple[str | None, dict[str, Any] | str]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call to be answered: the request's JSON, the size of its body in bytes, a number unique in this server."""

    request: dict[str, Any]
    size: int
    number: int

    @property
    def model(self) -> str:
        """The model that answers: the one asked for, with a date, as with aliases of real ones."""
        return f"{self.request.get('model', 'model')}-20260101"

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Input tokens: fresh, written to the cache, read from the cache. Together about a quarter of the body's bytes."""
        total = max(8, self.size // 4)
        return total - total // 8 - total // 2, total // 8, total // 2


class Format(Protocol):
    """A wire format."""

    def stream(self, plan: Plan, call: Call) -> Iterator[Payload]:
        """The events of a streamed answer."""

    def whole(self, plan: Plan, call: Call) -> dict[str, Any]:
        """A whole answer."""

    def error(self, status: int, call: Call) -> dict[str, Any]:
        """The body of an error."""


class Anthropic:
    """`POST /v1/messages`."""

    def _usage(self, plan: Plan, call: Call, output: int) -> dict[str, Any]:
        fresh, written, read = call.tokens
        return {
            "input_tokens": fresh,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output,
            "service_tier": "standard",
        }

    def _message(self, plan: Plan, call: Call) -> dict[str, Any]:
        return {
            "id": f"msg_{call.number:08d}",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(plan, call, 1),
        }

    def whole(self, plan: Plan, call: Call) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for at, part in enumerate(plan.parts):
            if isinstance(part, Text):
                content.append({"type": "text", "text": "".join(part.deltas)})
            elif isinstance(part, Thinking):
                text = "".join(part.deltas)
                content.append({"type": "thinking", "thinking": text, "signature": part.signature})
            else:
                tool = {
                    "type": "tool_use",
                    "id": self._tool_id(call, at),
                    "name": part.name,
                    "input": part.input,
                }
                content.append(tool)
        usage = self._usage(plan, call, plan.output_tokens)
        return {**self._message(plan, call), "content": content, "stop_reason": plan.stop, "usage": usage}

    @staticmethod
    def _tool_id(call: Call, at: int) -> str:
        return f"toolu_{call.number:08d}_{at}"

    def stream(self, plan: Plan, call: Call) -> Iterator[Payload]:
        for event in self._events(plan, call):
            yield event["type"], event
            if plan.ping and event["type"] != "message_stop":
                yield "ping", {"type": "ping"}

    def _events(self, plan: Plan, call: Call) -> Iterator[dict[str, Any]]:
        yield {"type": "message_start", "message": self._message(plan, call)}
        for at, part in enumerate(plan.parts):
            block: dict[str, Any]
            if isinstance(part, Text):
                block = {"type": "text", "text": ""}
                deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": text} for text in part.deltas]
            elif isinstance(part, Thinking):
                block = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": text} for text in part.deltas]
                deltas.append({"type": "signature_delta", "signature": part.signature})
            else:
                block = {"type": "tool_use", "id": self._tool_id(call, at), "name": part.name, "input": {}}
                deltas = [{"type": "input_json_delta", "partial_json": text} for text in part.fragments]
            yield {"type": "content_block_start", "index": at, "content_block": block}
            for sent, delta in enumerate(deltas):
                if plan.fault in ("error-midstream", "cut") and sent == 3:
                    if plan.fault == "error-midstream":
                        yield self.error(529, call)
                    return
                yield {"type": "content_block_delta", "index": at, "delta": delta}
            yield {"type": "content_block_stop", "index": at}
        end: dict[str, Any] = {"stop_reason": plan.stop, "stop_sequence": None}
        yield {"type": "message_delta", "delta": end, "usage": self._usage(plan, call, plan.output_tokens)}
        if plan.fault != "noend":
            yield {"type": "message_stop"}

    def error(self, status: int, call: Call) -> dict[str, Any]:
        kind, message = ERRORS[status]
        error = {"type": kind, "message": message}
        return {"type": "error", "error": error, "request_id": f"req_{call.number:08d}"}


class OpenAI:
    """`POST /v1/chat/completions`."""

    _STOP: ClassVar = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}

    def _head(self, plan: Plan, call: Call, kind: str) -> dict[str, Any]:
        # `created` is fixed: an answer is a function of its request
        return {
            "id": f"chatcmpl-{call.number:08d}",
            "object": kind,
            "created": 1767225600,
            "model": call.model,
        }

    def _usage(self, plan: Plan, call: Call) -> dict[str, Any]:
        fresh, written, read = call.tokens
        reasoning = sum(len("".join(part.deltas)) for part in plan.parts if isinstance(part, Thinking)) // 4
        return {
            "prompt_tokens": fresh + written + read,
            "completion_tokens": plan.output_tokens,
            "total_tokens": fresh + written + read + plan.output_tokens,
            "prompt_tokens_details": {"cached_tokens": read, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
        }

    def _tool(self, tool: Tool, call: Call, at: int, arguments: str) -> dict[str, Any]:
        function = {"name": tool.name, "arguments": arguments}
        return {"id": f"call_{call.number:08d}_{at}", "type": "function", "function": function}

    def whole(self, plan: Plan, call: Call) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": plan.text or None, "refusal": None}
        if plan.tools:
            message["tool_calls"] = [self._tool(tool, call, at, "".join(tool.fragments)) for at, tool in enumerate(plan.tools)]
        choice = {"index": 0, "message": message, "finish_reason": self._STOP[plan.stop], "logprobs": None}
        return {
            **self._head(plan, call, "chat.completion"),
            "choices": [choice],
            "usage": self._usage(plan, call),
            "system_fingerprint": "fp_modelserver",
        }

    def stream(self, plan: Plan, call: Call) -> Iterator[Payload]:
        head = self._head(plan, call, "chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish: str | None = None) -> Payload:
            return None, {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield chunk({"role": "assistant", "content": ""})
        at = -1
        for part in plan.parts:
            if isinstance(part, Tool):
                at += 1
                function = {"name": part.name, "arguments": ""}
                yield chunk({"tool_calls": [{**self._tool(part, call, at, ""), "index": at, "function": function}]})
                deltas: list[dict[str, Any]] = [
                    {"tool_calls": [{"index": at, "function": {"arguments": text}}]} for text in part.fragments
                ]
            else:
                name = "content" if isinstance(part, Text) else "reasoning_content"
                deltas = [{name: text} for text in part.deltas]
            for sent, delta in enumerate(deltas):
                if plan.fault in ("error-midstream", "cut") and sent == 3:
                    if plan.fault == "error-midstream":
                        yield None, self.error(529, call)
                    return
                yield chunk(delta)
                if plan.ping:
                    yield None, ""
        yield chunk({}, self._STOP[plan.stop])
        if (call.request.get("stream_options") or {}).get("include_usage"):
            yield None, {**head, "choices": [], "usage": self._usage(plan, call)}
        if plan.fault != "noend":
            yield None, "[DONE]"

    def error(self, status: int, call: Call) -> dict[str, Any]:
        kind, message = ERRORS[status]
        return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


FORMATS: dict[str, Format] = {
    "/v1/messages": Anthropic(),
    "/v1/chat/completions": OpenAI(),
    "/v1/responses": Responses(),
}

"""Model calls out of the journal's bytes, by h11 and a few lines of SSE: what `llm_call` events have to say.

Shares no code with the package under test. Anthropic Messages, streamed or whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

import h11
from modelserver import Connection

Json = dict[str, Any]


@dataclasses.dataclass
class Call:
    """One request that asked the model, and its answer."""

    request: Json
    status: int
    text: str = ""
    tools: list[tuple[str, str, Json]] = dataclasses.field(default_factory=list)  # id, name, input
    stop: str | None = None
    usage: Json = dataclasses.field(default_factory=dict)

    @property
    def input_tokens(self) -> int:
        """All of the prompt's tokens, cached ones too."""
        return sum(self.usage.get(n) or 0 for n in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"))

    @property
    def results(self) -> list[tuple[str, Any]]:
        """Tool results that the request brings: id and content."""
        return tool_results(self.request["messages"])


def tool_results(messages: Iterable[Json]) -> list[tuple[str, Any]]:
    """All tool results in a prompt: id of the call, content."""
    return [
        (block["tool_use_id"], block["content"])
        for message in messages
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "tool_result"
    ]


def calls(journal: Iterable[Connection]) -> list[Call]:
    """Every POST to the Messages API in the journal, by connection and order."""
    found = []
    for connection in journal:
        requests = list(_messages(h11.SERVER, connection.c2s, []))
        methods = [head.method for head, _ in requests]
        for (head, body), (answer, content) in zip(requests, _messages(h11.CLIENT, connection.s2c, methods), strict=True):
            if head.method == b"POST" and head.target.partition(b"?")[0] == b"/v1/messages":
                found.append(_call(json.loads(body), answer.status_code, content))
    return found


def _messages(role: Any, raw: bytes, methods: list[bytes]) -> Iterator[tuple[Any, bytes]]:
    """Heads and bodies of one direction; `role` is that of its reader, `methods` those of the requests it answers."""
    parser = h11.Connection(role)
    number = 0
    _turn(parser, role, methods, number)
    parser.receive_data(raw)
    head, body = None, b""
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
            return
        if event is h11.PAUSED:
            raise AssertionError("h11 does not go on")
        if isinstance(event, (h11.Request, h11.Response)):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            yield head, body
            number += 1
            if number == len(methods):
                return
            _answer(parser, role)
            if parser.our_state is h11.MUST_CLOSE or parser.their_state is h11.MUST_CLOSE:
                return
            parser.start_next_cycle()
            _turn(parser, role, methods, number)


def _turn(parser: h11.Connection, role: Any, methods: list[bytes], number: int) -> None:
    """Before an answer can be read, its request has to have been sent."""
    if role is h11.CLIENT:
        parser.send(h11.Request(method=methods[number], target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())


def _answer(parser: h11.Connection, role: Any) -> None:
    """After a request was read, it has to be answered before the next."""
    if role is h11.SERVER:
        parser.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        parser.send(h11.EndOfMessage())


def _call(request: Json, status: int, content: bytes) -> Call:
    call = Call(request, status)
    if not request.get("stream"):
        whole = json.loads(content)
        for block in whole.get("content", []):
            if block["type"] == "text":
                call.text += block["text"]
            elif block["type"] == "tool_use":
                call.tools.append((block["id"], block["name"], block["input"]))
        call.stop, call.usage = whole.get("stop_reason"), whole.get("usage", {})
        return call
    fragments: dict[int, str] = {}
    begun: dict[int, Json] = {}
    for line in content.decode().splitlines():
        if not line.startswith("data:"):
            continue
        event = json.loads(line[5:])
        match event["type"]:
            case "message_start":
                call.usage.update(event["message"]["usage"])
            case "content_block_start":
                begun[event["index"]] = event["content_block"]
                fragments[event["index"]] = ""
            case "content_block_delta":
                call.text += event["delta"].get("text", "")
                fragments[event["index"]] += event["delta"].get("partial_json", "")
            case "message_delta":
                call.stop = event["delta"]["stop_reason"]
                call.usage.update(event["usage"])
    for index, block in begun.items():
        if block["type"] == "tool_use":
            call.tools.append((block["id"], block["name"], json.loads(fragments[index])))
    return call


def assert_calls_equal(found: list[Json], true: list[Call]) -> None:
    """`llm_call` events say what the journal says: prompt, answer, tool calls, tool results, tokens.

    Calls are paired by their prompts: those on several connections have no order.
    """
    assert len(found) == len(true)
    events = sorted(found, key=lambda event: json.dumps(event["messages"]))
    for event, call in zip(events, sorted(true, key=lambda call: json.dumps(call.request["messages"])), strict=True):
        assert event["complete"], event["incomplete"]
        assert event["provider"] == "anthropic" and event["status_code"] == call.status
        assert event["model"] == call.request["model"]
        assert event["messages"] == call.request["messages"]
        assert event.get("system") == call.request.get("system")
        assert event.get("tools", []) == call.request.get("tools", [])
        assert event.get("text", "") == call.text
        assert event["stop_reason"] == call.stop
        assert [(t["id"], t["name"], t["arguments"]) for t in event["tool_calls"]] == call.tools
        assert tool_results(event["messages"]) == call.results
        assert event["usage"]["output_tokens"] == call.usage["output_tokens"]
        assert event["usage"]["input_tokens"] == call.input_tokens

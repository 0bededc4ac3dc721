"""Anthropic Messages (``POST .../v1/messages``), streamed and not, as of the API's version 2023-06-01.

In streams `message_delta.usage` is cumulative: it replaces. `input_tokens` leaves cached tokens out, so they are added.
Event, block and delta types that are not known here are passed over, or kept as they came where they are content.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentsight.events import SseFrames, Usage
from agentsight.providers.base import (
    Answer,
    Prompt,
    RequestReader,
    as_error,
    count,
    decode_frames,
    parse,
    parse_arguments,
    request_type,
    sent_list,
    string,
)

PARAMS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "tool_choice",
    "thinking",
    "service_tier",
    "speed",
    "output_config",
    "metadata",
    "container",
    "context_management",
    "mcp_servers",
    "inference_geo",
)
_NAMES = frozenset(
    ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop")
)


class Delta(msgspec.Struct, gc=False):
    """`delta` of content_block_delta and of message_delta: all their kinds in one, so that a new kind is no error."""

    type: str = ""
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    citation: Any = None
    content: Any = None
    encrypted_content: Any = None
    stop_reason: str | None = None


class StreamEvent(msgspec.Struct, gc=False):
    """Any event of a stream."""

    type: str = ""
    index: int = -1
    delta: Delta | None = None
    content_block: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_stream = msgspec.json.Decoder(list[StreamEvent]).decode
# what comes in many small pieces
_GROWING = (
    b'"type":"text_delta","text":"',
    b'"type":"thinking_delta","thinking":"',
    b'"type":"input_json_delta","partial_json":"',
)
_event = msgspec.json.Decoder(StreamEvent).decode
_NOTHING = StreamEvent()


class _Block:
    """A content block while it grows."""

    __slots__ = ("citations", "deltas", "partial", "pieces", "signature", "start")

    def __init__(self, start: dict[str, Any]) -> None:
        self.start = start
        self.pieces: list[str] = []  # text or thinking
        self.partial: list[str] = []  # JSON of tool input
        self.signature = ""
        self.citations: list[Any] = []
        self.deltas: dict[str, Any] = {}  # fields that a delta sets whole


class Anthropic:
    """The Messages format."""

    name = "anthropic"
    api = "messages"
    tails = ("/v1/messages",)

    def __init__(self) -> None:
        self._requests = RequestReader(request_type("Request", PARAMS, system=str | list[msgspec.Raw] | None), PARAMS)

    def knows(self, names: frozenset[str], first: dict[str, Any]) -> bool:
        """By event names, or by `type` of the first payload or body."""
        kind = first.get("type")
        return not names.isdisjoint(_NAMES) or kind in _NAMES or (kind == "message" and isinstance(first.get("content"), list))

    def prompt(self, body: str) -> Prompt | None:
        """See Provider."""
        found = self._requests.read(body)
        if found is None:
            return None
        prompt, sent = found
        system = sent.get("system") if isinstance(sent, dict) else sent.system
        prompt.system = sent_list(system, body) if isinstance(system, list) else system
        return prompt

    def answer(self, body: str) -> Answer | None:
        """See Provider."""
        message = parse(body)
        if not isinstance(message, dict):
            return None
        answer = Answer()
        if message.get("type") == "error" or (message.get("error") and "content" not in message):
            answer.error = as_error(message.get("error"))
            answer.finished = True
            return answer
        if not isinstance(message.get("content"), list):
            return None
        self._head(answer, message)
        for block in message["content"]:
            self._finish(answer, _Block(block if isinstance(block, dict) else {}))
        answer.usage = usage(message.get("usage"))
        answer.finished = True
        return answer

    def _head(self, answer: Answer, message: dict[str, Any]) -> None:
        answer.started = True
        answer.response_id = string(message.get("id"))
        answer.model = string(message.get("model"))
        answer.stop_reason = string(message.get("stop_reason"))

    def stream(self, frames: SseFrames) -> Answer:
        """See Provider."""
        answer = Answer()
        blocks: dict[int, _Block] = {}
        counts: dict[str, Any] = {}
        first = -1
        for i, e in enumerate(decode_frames(frames, _stream, _event, answer, _NOTHING, _matters, _GROWING)):
            kind = e.type
            if kind == "content_block_delta":
                delta = e.delta
                if delta is None:
                    continue
                if first < 0:
                    first = i
                block = blocks.get(e.index)
                if block is None:  # its start is missing
                    block = blocks[e.index] = _Block({"type": _KIND_OF.get(delta.type, "unknown")})
                if delta.text is not None:
                    block.pieces.append(delta.text)
                elif delta.partial_json is not None:
                    block.partial.append(delta.partial_json)
                elif delta.thinking is not None:
                    block.pieces.append(delta.thinking)
                else:
                    _other_delta(block, delta)
            elif kind == "content_block_start":
                blocks[e.index] = _Block(e.content_block or {})
                if first < 0 and _has_content(e.content_block):
                    first = i
            elif kind == "message_delta":
                if e.delta is not None and e.delta.stop_reason is not None:
                    answer.stop_reason = e.delta.stop_reason
                if e.usage:
                    counts.update({k: v for k, v in e.usage.items() if v is not None})
            elif kind == "message_start":
                message = e.message or {}
                self._head(answer, message)
                given = message.get("usage")
                counts.update(given if isinstance(given, dict) else {})
            elif kind == "message_stop":
                answer.finished = True
            elif kind == "error" or (not kind and e.error is not None):
                answer.error = as_error(e.error)
                answer.finished = True
        answer.first = first
        for index in sorted(blocks):
            self._finish(answer, blocks[index])
        answer.usage = usage(counts or None)
        return answer

    def _finish(self, answer: Answer, block: _Block) -> None:
        start = block.start
        kind = start.get("type")
        if kind == "text":
            given = start.get("citations")
            citations = (given if isinstance(given, list) else []) + block.citations
            more: dict[str, Any] = {"citations": citations} if citations else {}
            answer.add_text((string(start.get("text")) or "") + "".join(block.pieces), **more)
        elif kind == "thinking":
            signature = block.signature or start.get("signature")
            more = {"signature": signature} if signature else {}
            answer.add_thinking((string(start.get("thinking")) or "") + "".join(block.pieces), **more)
        elif kind == "tool_use":
            text = "".join(block.partial)
            given = start.get("input")
            if not text and given:
                answer.add_tool(string(start.get("id")), string(start.get("name")), msgspec.json.encode(given).decode(), given)
            else:
                answer.add_tool(string(start.get("id")), string(start.get("name")), text)
        else:  # tools of the server and their results, redacted thinking, compaction, what is not known: as they came
            part = dict(start)
            part.setdefault("type", "unknown")
            if block.partial:
                value, bad = parse_arguments("".join(block.partial))
                part["input"] = value if bad is None else bad
            if block.pieces:
                part["text"] = (string(part.get("text")) or "") + "".join(block.pieces)
            part.update(block.deltas)
            answer.parts.append(part)


_KIND_OF = {
    "text_delta": "text",
    "citations_delta": "text",
    "input_json_delta": "tool_use",
    "thinking_delta": "thinking",
    "signature_delta": "thinking",
    "compaction_delta": "compaction",
}


def _other_delta(block: _Block, delta: Delta) -> None:
    if delta.signature is not None:
        block.signature += delta.signature
    if delta.citation is not None:
        block.citations.append(delta.citation)
    if delta.content is not None:
        old = block.deltas.get("content", block.start.get("content"))
        joined = isinstance(old, str) and isinstance(delta.content, str)
        block.deltas["content"] = old + delta.content if joined else delta.content
    if delta.encrypted_content is not None:
        block.deltas["encrypted_content"] = delta.encrypted_content


def _has_content(block: dict[str, Any] | None) -> bool:
    if not block:
        return False
    return block.get("type") not in ("text", "thinking") or bool(block.get("text") or block.get("thinking"))


def _matters(event: dict[str, Any]) -> bool:
    return event.get("type") in _NAMES


def usage(raw: Any) -> Usage | None:
    """Normalised tokens: input with what was read from and written to the cache."""
    if not isinstance(raw, dict):
        return None
    fresh = count(raw, "input_tokens")
    read = count(raw, "cache_read_input_tokens")
    written = count(raw, "cache_creation_input_tokens")
    out = count(raw, "output_tokens")
    told = fresh is not None or read is not None or written is not None
    total_in = (fresh or 0) + (read or 0) + (written or 0) if told else None
    return Usage(
        input_tokens=total_in,
        output_tokens=out,
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=count(raw, "output_tokens_details", "thinking_tokens"),
        total_tokens=total_in + out if total_in is not None and out is not None else None,
        raw=raw,
    )

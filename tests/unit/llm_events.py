"""Short ways to make what the decoder gives for one exchange of HTTP: request, frames of an SSE answer, response."""

from __future__ import annotations

import json
from struct import pack
from typing import Any

from agentsight.events import ConnectionEvent, HttpEvent, SseFrames


def http(
    kind: str,
    body: str | None,
    *,
    seq: int,
    path: str | None = "/v1/messages",
    status: int = 200,
    xid: int = 1,
    conn: str = "1",
    **more: Any,
) -> HttpEvent:
    """A message; requests begin at 100 ns and end at 1000, responses begin at 3000."""
    request = kind == "request"
    fields: dict[str, Any] = {
        "seq": seq,
        "timestamp": seq,
        "timestamp_ns": 1000 if request else 9000,
        "pid": 5,
        "comm": "agent",
        "tid": 5,
        "message_type": kind,
        "first_line": "",
        "method": "POST",
        "path": path,
        "protocol": "HTTP/1.1",
        "status_code": None if request else status,
        "status_text": None if request else "x",
        "headers": {},
        "body": body,
        "total_size": len(body or ""),
        "has_body": body is not None,
        "is_chunked": False,
        "content_length": None,
        "conn": conn,
        "exchange_id": xid,
        "original_source": "ssl",
        "complete": True,
        "host": "h",
        "start_ns": 100 if request else 3000,
        "request_start_ns": 0 if request else 100,
        "request_end_ns": 0 if request else 1000,
    }
    return HttpEvent(**{**fields, **more})


def frames(
    payloads: list[Any],
    *,
    seq: int = 20,
    xid: int = 1,
    conn: str = "1",
    others: tuple[str, ...] = (),
    ends: bool = True,
    **more: Any,
) -> SseFrames:
    """Frames of payloads: values, or bytes as they are. Payload i arrives at 4000 + 10 i ns."""
    encoded = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in payloads]
    names = [p.get("type", "message") if isinstance(p, dict) else "message" for p in payloads]
    at, where = 1, []
    for e in encoded:
        where.append(at + len(e))
        at += len(e) + 1
    n = len(encoded)
    fields: dict[str, Any] = {
        "seq": seq,
        "timestamp": seq,
        "timestamp_ns": 8000,
        "pid": 5,
        "comm": "agent",
        "conn": conn,
        "exchange_id": xid,
        "frames": b"[" + b",".join(encoded) + b"]",
        "names": json.dumps(names).encode(),
        "times": pack(f"={n}Q", *(4000 + 10 * i for i in range(n))),
        "others": list(others),
        "count": n + len(others),
        "gaps": 0,
        "ends": pack(f"={n}I", *where) if ends else b"",
    }
    return SseFrames(**{**fields, **more})


def streamed(
    payloads: list[Any], request: str, *, path: str = "/v1/messages", xid: int = 1, conn: str = "1", **more: Any
) -> list[Any]:
    """A whole streamed exchange."""
    return [
        http("request", request, seq=10, path=path, xid=xid, conn=conn),
        frames(payloads, xid=xid, conn=conn, **more),
        http("response", None, seq=20, path=path, is_sse=True, sse_count=len(payloads), xid=xid, conn=conn),
    ]


def closed(conn: str = "1") -> ConnectionEvent:
    """The end of a connection."""
    return ConnectionEvent(
        seq=90,
        timestamp=90,
        timestamp_ns=90_000,
        pid=5,
        comm="agent",
        conn=conn,
        local="a:1",
        remote="b:2",
        protocol="tls",
        seen=0,
        tls_opened=0,
        tls_not_opened=0,
        skipped=0,
        missing=0,
        plaintext=0,
        decoded=0,
    )


def anthropic_events() -> list[dict[str, Any]]:
    """Every kind of event, block and delta of a Messages stream."""

    def delta(index: int, **d: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": d}

    def start(index: int, **b: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": b}

    def stop(index: int) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": index}

    usage = {"input_tokens": 10, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 1}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    result = {
        "type": "web_search_tool_result",
        "tool_use_id": "srv_1",
        "content": [{"type": "web_search_result", "title": "t", "url": "u", "encrypted_content": "e", "page_age": None}],
    }
    citation = {
        "type": "char_location",
        "cited_text": "c",
        "document_index": 0,
        "document_title": "d",
        "start_char_index": 0,
        "end_char_index": 1,
        "file_id": None,
    }
    return [
        {"type": "message_start", "message": message},
        start(0, type="thinking", thinking="", signature=""),
        {"type": "ping"},
        delta(0, type="thinking_delta", thinking="Let me "),
        delta(0, type="thinking_delta", thinking="see."),
        delta(0, type="signature_delta", signature="sig=="),
        stop(0),
        start(1, type="text", text=""),
        delta(1, type="text_delta", text="Grüße, "),
        delta(1, type="citations_delta", citation=citation),
        delta(1, type="text_delta", text="\U0001f30d!"),
        stop(1),
        start(2, type="server_tool_use", id="srv_1", name="web_search", input={}),
        delta(2, type="input_json_delta", partial_json='{"query":'),
        delta(2, type="input_json_delta", partial_json='"x"}'),
        stop(2),
        start(3, **result),
        stop(3),
        start(4, type="tool_use", id="toolu_1", name="Bash", input={}),
        delta(4, type="input_json_delta", partial_json=""),
        delta(4, type="input_json_delta", partial_json='{"command": "ls'),
        delta(4, type="input_json_delta", partial_json=' -l"}'),
        stop(4),
        start(5, type="tool_use", id="toolu_2", name="Now", input={}),
        stop(5),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 50}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 89}},
        {"type": "message_stop"},
    ]


def chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A chunk of a Chat Completions stream."""
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x", "choices": choices, **more}


def tool(
    index: int | None = None, ident: str | None = None, name: str | None = None, arguments: str | None = None
) -> dict[str, Any]:
    """The delta of a piece of a tool call."""
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    piece: dict[str, Any] = {k: v for k, v in (("index", index), ("id", ident)) if v is not None}
    return {"tool_calls": [{**piece, **({"type": "function"} if ident else {}), "function": function}]}


def openai_chunks() -> list[dict[str, Any]]:
    """A Chat Completions stream: text, two tool calls, usage."""
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 7,
        "total_tokens": 27,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    return [
        chunk({"role": "assistant", "content": ""}, obfuscation="xx"),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk(tool(0, "call_1", "ls", "")),
        chunk(tool(0, None, None, '{"a":')),
        chunk(tool(0, None, None, "1}")),
        chunk(tool(1, "call_2", "now", "{}")),
        chunk({}, finish="tool_calls"),
        chunk(None, usage=usage),
    ]

"""What the analyzers cost per model call, beside a named peer: `json.loads` of the request and of each event.

The exchange is as agents make it: a request of 80 KB (a long conversation and the tools' descriptions), an answer of 200 events.
Run: python bench/analyzers.py [calls]. Times are processor time, the best of five rounds, in microseconds per call; the last
line is the goal.
"""

from __future__ import annotations

import argparse
import ast
import asyncio.base_events
import dataclasses
import email.message
import http.client
import inspect
import json
import logging
import pathlib
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from struct import pack
from typing import Any

from agentsight._native import redact as native
from agentsight.analyzers import LlmCalls, Redactor, SSEProcessor
from agentsight.events import Event, HttpEvent, LlmCall, SseFrames, to_json

GOAL_US = 300
SOURCES = (
    argparse,
    ast,
    asyncio.base_events,
    dataclasses,
    email.message,
    http.client,
    inspect,
    logging,
    pathlib,
    subprocess,
    urllib.request,
)
CORPUS = "".join(map(inspect.getsource, SOURCES))  # half a megabyte of code and prose, as agents read it


def text(rng: random.Random, size: int) -> str:
    """`size` characters from anywhere in the corpus."""
    at = rng.randrange(len(CORPUS) - size)
    return CORPUS[at : at + size]


def request_body(rng: random.Random) -> str:
    """80 KB of request."""
    messages: list[dict[str, Any]] = []
    for i in range(18):
        result = {"type": "tool_result", "tool_use_id": f"toolu_{i}", "content": text(rng, 700)}
        messages.append({"role": "user", "content": [{"type": "text", "text": text(rng, 1000)}, result]})
        call = {"type": "tool_use", "id": f"toolu_{i}", "name": "Bash", "input": {"command": text(rng, 200)}}
        messages.append({"role": "assistant", "content": [{"type": "text", "text": text(rng, 500)}, call]})
    properties = {f"p{i}": {"type": "string", "description": text(rng, 60)} for i in range(6)}
    tools = [
        {"name": f"tool{i}", "description": text(rng, 1000), "input_schema": {"type": "object", "properties": properties}}
        for i in range(14)
    ]
    body = {
        "model": "claude-opus-4-1",
        "max_tokens": 32000,
        "stream": True,
        "system": [{"type": "text", "text": text(rng, 4000)}],
        "messages": messages,
        "tools": tools,
    }
    return json.dumps(body, ensure_ascii=False)


def answer_payloads(rng: random.Random) -> list[bytes]:
    """200 events of an answer: text, then a tool call."""
    usage = {"input_tokens": 12, "cache_read_input_tokens": 20000, "output_tokens": 1}
    message = {"id": "msg_01", "type": "message", "role": "assistant", "model": "claude-opus-4-1", "content": [], "usage": usage}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
    ]
    for _ in range(150):
        events.append({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text(rng, 12) + " "}})
    events.append({"type": "content_block_stop", "index": 0})
    block = {"type": "tool_use", "id": "toolu_99", "name": "Bash", "input": {}}
    events.append({"type": "content_block_start", "index": 1, "content_block": block})
    arguments = json.dumps({"command": text(rng, 400)})
    step = max(1, len(arguments) // 40)
    for i in range(0, len(arguments), step):
        part = {"type": "input_json_delta", "partial_json": arguments[i : i + step]}
        events.append({"type": "content_block_delta", "index": 1, "delta": part})
    events.append({"type": "content_block_stop", "index": 1})
    events.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 321}})
    events.append({"type": "message_stop"})
    return [json.dumps(e, ensure_ascii=False).encode() for e in events]


def exchange(body: str, payloads: list[bytes], exchange_id: int) -> list[Event]:
    """The events that the decoder gives for one call."""
    common: dict[str, Any] = {
        "timestamp": 1_760_000_000_000,
        "pid": 4242,
        "comm": "agent",
        "conn": "1",
        "exchange_id": exchange_id,
    }
    http: dict[str, Any] = {
        "tid": 4243,
        "method": "POST",
        "path": "/v1/messages?beta=true",
        "protocol": "HTTP/1.1",
        "total_size": len(body),
        "has_body": True,
        "is_chunked": False,
        "content_length": None,
        "original_source": "ssl",
        "complete": True,
        "host": "api.example.com",
    }
    headers = {"host": "api.example.com", "content-type": "application/json", "user-agent": "agent/1.0", "accept": "*/*"}
    request = HttpEvent(
        seq=10,
        timestamp_ns=1000,
        message_type="request",
        first_line="POST /v1/messages?beta=true HTTP/1.1",
        status_code=None,
        status_text=None,
        headers=headers,
        body=body,
        body_size=len(body),
        start_ns=10,
        **common,
        **http,
    )
    frames = b"[" + b",".join(payloads) + b"]"
    names = json.dumps([json.loads(p)["type"] for p in payloads]).encode()
    times = pack(f"={len(payloads)}Q", *range(2000, 2000 + len(payloads)))
    sse = SseFrames(
        seq=20, timestamp_ns=9000, frames=frames, names=names, times=times, others=[], count=len(payloads), gaps=0, **common
    )
    response = HttpEvent(
        seq=20,
        timestamp_ns=9000,
        message_type="response",
        first_line="HTTP/1.1 200 OK",
        status_code=200,
        status_text="OK",
        headers={"content-type": "text/event-stream", "request-id": "req_1"},
        body=None,
        is_sse=True,
        sse_count=len(payloads),
        start_ns=1900,
        request_start_ns=10,
        request_end_ns=1000,
        **common,
        **http,
    )
    return [request, sse, response]


def best(run: Callable[[], object], calls: int) -> float:
    """Microseconds per call, best of five."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return min(times) / calls * 1e6


def main() -> int:
    """Print the table; 1 where the goal is missed."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    rng = random.Random(7)
    payloads = answer_payloads(rng)
    bodies: list[bytes] = []
    while len(bodies) < 8:
        body = request_body(rng)
        if not native.scan(body):
            bodies.append(body.encode())
    print(f"request {len(bodies[0])} bytes, answer {len(payloads)} events of {sum(map(len, payloads))} bytes, {calls} calls")

    def batches() -> list[list[Event]]:  # each body a new object, as the decoder makes them: nothing may be cached in it
        return [exchange(bodies[i % 8].decode(), payloads, i) for i in range(calls)]

    def staged(*stages: Any) -> float:
        """A round per stage list; the events are made before the clock runs."""
        rounds = []
        for _ in range(5):
            made, todo = [cls() for cls in stages], batches()
            start = time.thread_time()
            for events in todo:
                for stage in made:
                    events = stage.feed_many(events)
            rounds.append(time.thread_time() - start)
        return min(rounds) / calls * 1e6

    def peer() -> None:
        for i in range(calls):
            json.loads(bodies[i % 8])
            for payload in payloads:
                json.loads(payload)

    peer_us = best(peer, calls)
    llm = staged(LlmCalls)
    both = staged(SSEProcessor, LlmCalls)
    everything = staged(SSEProcessor, LlmCalls, Redactor)
    events = [e for e in LlmCalls().feed_many(exchange(bodies[0].decode(), payloads, 0)) if not e.internal]
    encode = best(lambda: [to_json(e) for _ in range(calls) for e in events], calls)
    scanned = bodies[0]
    scan = best(lambda: [native.scan(b) for b in bodies for _ in range(calls)], calls * 8)
    secret = "sk-ant-api03-" + "x7Yq2" * 16
    bodies = [b.replace(b"return", f"API_KEY={secret} return".encode(), 2) for b in bodies]
    found = staged(SSEProcessor, LlmCalls, Redactor) - both
    rows = (
        ("peer: json.loads of request and events", peer_us),
        ("LlmCalls", llm),
        ("SSEProcessor + LlmCalls", both),
        ("SSEProcessor + LlmCalls + Redactor", everything),
        ("  of which Redactor (nothing found)", everything - both),
        ("  with two secrets in each request", found),
        ("to_json of request, response and call", encode),
    )
    for name, us in rows:
        print(f"{name:42} {us:8.1f} us/call   {us / peer_us:5.2f} of the peer")
    print(f"{'redact.scan of a request':42} {scan:8.1f} us        {len(scanned) / scan / 1e3:5.2f} GB/s")
    call = next(e for e in events if isinstance(e, LlmCall))
    if not call.complete or call.stop_reason != "tool_use" or len(call.tool_calls) != 1:
        print("Error: the call was not decoded as it should be")
        return 1
    print(f"goal: everything below {GOAL_US} us/call: {'reached' if everything < GOAL_US else 'MISSED'}")
    return 0 if everything < GOAL_US else 1


if __name__ == "__main__":
    sys.exit(main())

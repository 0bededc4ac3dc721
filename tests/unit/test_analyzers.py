"""Exchanges become calls: in every order, cut anywhere, interleaved, with what is missing said; and the merged streams."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from unit.llm_events import anthropic_events, chunk, closed, frames, http, openai_chunks, streamed

from agentsight.analyzers import Analyzer, FileLogger, HTTPParser, LlmCalls, LongLived, SSEProcessor
from agentsight.errors import UsageError
from agentsight.events import DiagnosticEvent, Event, LlmCall, ProcessRef, SseStream, to_json

ASKED = json.dumps(
    {"model": "asked", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}], "system": "s"}
)


def calls(events: list[Event], analyzer: Analyzer | None = None) -> list[LlmCall]:
    analyzer = analyzer or LlmCalls()
    out = [e for x in events for e in analyzer.feed(x)] + list(analyzer.flush())
    return [e for e in out if isinstance(e, LlmCall)]


def test_one_call() -> None:
    events = streamed(anthropic_events(), ASKED)
    out = LlmCalls().feed_many(events)
    assert out[:3] == events
    (call,) = out[3:]
    assert isinstance(call, LlmCall)
    assert (call.provider, call.api, call.model, call.response_model, call.stream) == (
        "anthropic",
        "messages",
        "asked",
        "claude-x",
        True,
    )
    assert (call.messages, call.system, call.params) == ([{"role": "user", "content": "hi"}], "s", {"max_tokens": 9})
    assert (call.complete, call.incomplete, call.status_code, call.error) == (True, [], 200, None)
    assert (call.ttfb_ms, call.ttft_ms, call.start_ns, call.end_ns) == (0.002, 0.00303, 100, 4000 + 10 * 27)
    assert call.duration_ms == pytest.approx((4270 - 100) / 1e6)
    assert (call.seq, call.evidence, call.conn, call.exchange_id) == (20, [10, 20], "1", 1)
    assert json.loads(to_json(call))["data"]["usage"]["raw"]["output_tokens"] == 89


def test_processes_of_both_ends() -> None:
    client, server = ProcessRef(7, 70, "agent"), ProcessRef(8, 80, "server")
    events = [
        http("request", ASKED, seq=1),
        http("response", '{"type":"message","content":[]}', seq=2, client=client, server=server, pid=8, comm="server"),
    ]
    (call,) = calls(events)
    assert (call.pid, call.comm, call.client, call.server) == (7, "agent", client, server)


def test_every_order() -> None:
    request, sse, response = streamed(anthropic_events(), ASKED)
    late = http("request", ASKED, seq=30)  # an early answer
    (normal,), (early,) = calls([request, sse, response]), calls([sse, response, late])
    assert early.complete
    assert (early.text, early.model, early.usage, early.seq) == (normal.text, "asked", normal.usage, 30)
    split = LlmCalls()
    assert [e for batch in ([request], [sse], [response]) for e in split.feed_many(batch) if isinstance(e, LlmCall)] == [normal]


def test_interleaved_connections() -> None:
    rng = random.Random(3)
    queues = [
        streamed(
            anthropic_events() if n % 2 else openai_chunks(),
            ASKED,
            conn=str(n // 3),
            xid=n % 3,
            path="/v1/messages" if n % 2 else "/v1/chat/completions",
            others=() if n % 2 else ("[DONE]",),
        )
        for n in range(60)
    ]
    wanted = sorted((q[0].conn, q[0].exchange_id) for q in queues)
    events: list[Event] = []
    while queues:
        q = rng.choice(queues)
        events.append(q.pop(0))
        if not isinstance(events[-1], type(q[-1]) if q else int) and q and len(q) == 1:
            events.append(q.pop(0))  # frames stand directly before their response
        queues = [q for q in queues if q]
    found = calls(events)
    assert sorted((c.conn, c.exchange_id) for c in found) == wanted
    assert all(c.complete for c in found)
    for size in (1, 2, 7, 1000):  # however the batches were cut
        for make in (LlmCalls, SSEProcessor):
            one, many = make(), make()
            whole = one.feed_many(list(events))
            assert [
                to_json(e) for i in range(0, len(events), size) for e in many.feed_many(events[i : i + size]) if not e.internal
            ] == [to_json(e) for e in whole if not e.internal]


def test_cut_at_every_event() -> None:
    events = anthropic_events()
    for n in range(len(events)):
        request, _, response = streamed(events, ASKED)
        cut = http("response", None, seq=20, is_sse=True, complete=False, flags=["body-cut"])
        (call,) = calls([request, frames(events[:n]), cut])
        assert not call.complete
        assert call.incomplete == ["stream ended early", "response body-cut"]
        (ended,) = calls([request, frames(events), cut])  # its own end is enough
        assert ended.complete
        assert response.complete


def test_what_is_missing() -> None:
    request, sse, response = streamed(anthropic_events(), ASKED)

    def why(*events: Event) -> list[str]:
        (call,) = calls(list(events))
        assert call.complete is not bool(call.incomplete)
        return call.incomplete

    assert why(request) == ["no response"]
    assert why(sse, http("response", None, seq=20, is_sse=True, flags=["no-request"])) == ["no request"]
    assert why(sse, http("response", None, seq=20, path=None, is_sse=True, flags=["no-request"])) == ["no request"]
    assert why(sse, response) == ["no request"]
    assert why(http("request", None, seq=1, complete=False, flags=["body-missing"]), sse, response) == [
        "request body-missing",
        "no request body",
    ]
    assert why(http("request", ASKED[:-9], seq=1), sse, response) == ["request is no whole JSON"]
    assert why(request, frames(anthropic_events(), gaps=2), response) == ["2 gaps in the stream"]
    assert why(
        request, frames(anthropic_events()[:-1], body_limited=True), http("response", None, seq=2, is_sse=True, complete=False)
    ) == ["stream longer than what is kept", "stream ended early"]
    assert why(request, http("response", None, seq=2, is_sse=True)) == ["stream without events"]
    assert why(request, http("response", "<html>", seq=2)) == ["answer is of no known form"]
    assert why(request, http("response", '{"type":"mess', seq=2, complete=False, flags=["body-cut"])) == ["response body-cut"]


def test_errors() -> None:
    request = http("request", ASKED, seq=1)
    body = '{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}'
    (call,) = calls([request, http("response", body, seq=2, status=429, headers={"request-id": "req_9"})])
    assert (call.status_code, call.error, call.complete, call.request_id) == (
        429,
        {"type": "rate_limit_error", "message": "slow down"},
        True,
        "req_9",
    )
    (call,) = calls([request, http("response", "bad gateway", seq=2, status=502)])
    assert call.error == {"type": "http_error", "message": "bad gateway"}
    events = [*anthropic_events()[:10], {"type": "error", "error": {"type": "overloaded_error", "message": "o"}}]
    (call,) = calls(streamed(events, ASKED))
    assert (call.status_code, call.text, call.complete) == (200, "Grüße, ", True)
    assert call.error == {"type": "overloaded_error", "message": "o"}


def test_no_model_calls() -> None:
    plain = '{"a": 1}'
    for path, body in (("/v1/messages/count_tokens", ASKED), ("/v1/models", None), ("/v1/messages", plain), ("/", ASKED)):
        assert calls([http("request", body, seq=1, path=path), http("response", plain, seq=2, path=path)]) == [], path
    assert (
        calls(
            [
                http("request", None, seq=1, method="GET", path="/v1/chat/completions"),
                http("response", plain, seq=2, method="GET"),
            ]
        )
        == []
    )
    assert calls([http("response", plain, seq=2, path=None, flags=["no-request"])]) == []


def test_chat_without_done() -> None:
    path = "/v1/chat/completions"
    (call,) = calls(streamed([chunk({"content": "a"}), chunk({}, finish="stop")], ASKED, path=path))
    assert call.complete
    (call,) = calls(streamed([chunk({"content": "a"})], ASKED, path=path))
    assert call.incomplete == ["stream ended early"]


def test_end_of_connection_ends_its_calls() -> None:
    a = LlmCalls()
    first, other = http("request", ASKED, seq=1), http("request", ASKED, seq=2, conn="2")
    out = a.feed_many([first, other, closed("1")])
    assert [type(e) for e in out[3:]] == [LlmCall]
    assert (out[3].seq, out[3].conn) == (90, "1")  # type: ignore[attr-defined]
    assert [e.conn for e in a.flush() if isinstance(e, LlmCall)] == ["2"]


def test_too_many_are_given_early_and_counted() -> None:
    a = LlmCalls(max_pending=2)
    events: list[Event] = [http("request", ASKED, seq=n, xid=n) for n in range(1, 6)]
    out = a.feed_many(events)
    early = [e for e in out if isinstance(e, LlmCall)]
    assert [c.exchange_id for c in early] == [1, 2, 3]
    assert early[0].incomplete == ["given early: too many calls were waiting", "no response"]
    assert [e.details["evicted"] for e in out if isinstance(e, DiagnosticEvent)] == [1, 2]
    assert a.evicted == 3
    answer = http("response", '{"type":"message","content":[]}', seq=9, xid=1)
    assert a.feed_many([answer]) == [answer]  # no second call
    assert [c.exchange_id for c in a.flush() if isinstance(c, LlmCall)] == [4, 5]
    small = LlmCalls(max_pending_bytes=len(ASKED) + 1)
    assert [e.exchange_id for e in small.feed_many(list(events)) if isinstance(e, LlmCall)] == [1, 2, 3, 4]


def test_sse_merge() -> None:
    events = streamed(anthropic_events(), ASKED)
    merge = SSEProcessor()
    out = merge.feed_many(events)
    assert [type(e).__name__ for e in out] == ["HttpEvent", "DecodedFrames", "HttpEvent", "SseStream"]
    stream = out[-1]
    assert isinstance(stream, SseStream)
    assert (stream.text_content, stream.thinking_content, stream.json_content) == (
        "Grüße, \U0001f30d!",
        "Let me see.",
        '{"command": "ls -l"}',
    )
    assert (stream.message_id, stream.has_message_start, stream.complete, stream.event_count) == ("msg_1", True, True, 28)
    assert stream.total_size == sum(len(json.dumps(e)) for e in anthropic_events())
    assert (stream.start_time, stream.duration_ns) == (4000, 270)
    decoded = out[1]
    (call,) = [e for e in LlmCalls().feed_many(out) if isinstance(e, LlmCall)]
    assert call.parts is decoded.answer.parts  # type: ignore[attr-defined]
    assert [to_json(c) for c in calls(events)] == [to_json(call)]


def test_sse_merge_of_unknown_and_unfinished_streams() -> None:
    out = SSEProcessor().feed_many(streamed([{"x": 1}], "{}", path="/other", others=("hello", "é")))
    (stream,) = [e for e in out if isinstance(e, SseStream)]
    assert (stream.text_content, stream.message_id, stream.event_count, stream.total_size, stream.complete) == (
        "",
        None,
        3,
        8 + 5 + 2,
        True,
    )
    merge = SSEProcessor()
    assert list(merge.feed(frames(anthropic_events()[:10]))) == []
    (rest,) = [e for e in merge.flush() if isinstance(e, SseStream)]
    assert (rest.text_content, rest.complete, rest.status_code) == ("Grüße, ", False, None)
    merge.MAX_HELD = 3
    out = merge.feed_many([frames([{"a": 1}], xid=n) for n in range(5)])
    assert [e.exchange_id for e in out if isinstance(e, SseStream)] == [0, 1]


def test_options_and_exports() -> None:
    assert HTTPParser().decoder_options == {"http": True}
    assert SSEProcessor().decoder_options == {"http": True, "frames": True}
    assert LlmCalls().decoder_options == {"http": True, "frames": True, "connections": True}
    events: list[Any] = streamed(anthropic_events(), ASKED)
    assert HTTPParser().feed_many(events) is events
    assert [e.seq for e in HTTPParser("response").feed_many(events)] == [20, 20]
    with pytest.raises(UsageError):
        HTTPParser("both")
    assert FileLogger.__module__ == "agentsight.sinks.jsonl"
    assert LongLived(5).flush() == []

"""The wire formats: merged answers, also against what the providers' own libraries make of the same stream, if installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
from unit.llm_events import anthropic_events, chunk, frames, openai_chunks, tool

from agentsight.events import Usage, to_json
from agentsight.providers import PROVIDERS, of_body, of_path, of_stream
from agentsight.providers.base import SentList

ANTHROPIC, OPENAI = PROVIDERS


def sse(payloads: list[dict[str, Any]], names: bool) -> bytes:
    lines = [(f"event: {p['type']}\n" if names else "") + f"data: {json.dumps(p)}\n\n" for p in payloads]
    return "".join(lines).encode() + (b"" if names else b"data: [DONE]\n\n")


def transport(body: bytes, *modules: str) -> Any:
    """A client of httpx, or of what a library wants in its place, that is given `body` and connects to nothing."""
    httpx = pytest.importorskip(next(m for m in modules if find_spec(m)) if any(map(find_spec, modules)) else modules[-1])
    headers = {"content-type": "text/event-stream"}
    return httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, content=body)))


def test_anthropic_stream() -> None:
    a = ANTHROPIC.stream(frames(anthropic_events()))
    assert (a.response_id, a.model, a.stop_reason, a.finished, a.started) == ("msg_1", "claude-x", "tool_use", True, True)
    assert a.text == "Grüße, \U0001f30d!"
    assert a.thinking == "Let me see."
    assert [p["type"] for p in a.parts] == [
        "thinking",
        "text",
        "server_tool_use",
        "web_search_tool_result",
        "tool_call",
        "tool_call",
    ]
    assert a.parts[0]["signature"] == "sig=="
    assert a.parts[1]["citations"][0]["cited_text"] == "c"
    assert a.parts[2]["input"] == {"query": "x"}
    assert [(t.id, t.name, t.arguments) for t in a.tool_calls] == [
        ("toolu_1", "Bash", {"command": "ls -l"}),
        ("toolu_2", "Now", {}),
    ]
    assert a.tool_json == '{"command": "ls -l"}'
    assert isinstance(a.usage, Usage)
    u = a.usage
    assert (u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens, u.total_tokens) == (115, 89, 100, 5, 204)
    assert a.first == 3
    assert a.problems == []


def test_anthropic_stream_as_its_library_reads_it() -> None:
    anthropic = pytest.importorskip("anthropic")
    events = anthropic_events()
    client = anthropic.Anthropic(api_key="x", http_client=transport(sse(events, True), "httpx2", "httpx"))
    with client.messages.stream(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]) as stream:
        theirs = stream.get_final_message()
    ours = ANTHROPIC.stream(frames(events))
    assert (ours.response_id, ours.model, ours.stop_reason) == (theirs.id, theirs.model, theirs.stop_reason)
    assert len(ours.parts) == len(theirs.content)
    for part, block in zip(ours.parts, theirs.content, strict=True):
        if block.type == "text":
            assert (part["text"], len(part["citations"])) == (block.text, len(block.citations))
        elif block.type == "thinking":
            assert (part["thinking"], part["signature"]) == (block.thinking, block.signature)
        elif block.type == "tool_use":
            assert (part["type"], part["id"], part["name"], part["arguments"]) == ("tool_call", block.id, block.name, block.input)
        elif block.type == "server_tool_use":
            assert part["input"] == block.input
    assert ours.usage is not None
    assert ours.usage.output_tokens == theirs.usage.output_tokens


def test_anthropic_cut_at_every_event() -> None:
    events = anthropic_events()
    whole = ANTHROPIC.stream(frames(events))
    for n in range(len(events)):
        part = ANTHROPIC.stream(frames(events[:n]))
        assert not part.finished
        assert whole.text.startswith(part.text)
        assert whole.thinking.startswith(part.thinking)
        assert len(part.parts) <= len(whole.parts)
        late = ANTHROPIC.stream(frames(events[n:]))  # joined late
        assert late.finished
        assert whole.text.endswith(late.text)
        assert late.started is (n == 0)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(
    "odd",
    [
        {"type": "brand_new", "index": "x", "delta": "text"},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "new_delta", "data": [1]}},
        {"type": "content_block_stop", "index": 77},
        [1, 2],
        {},
    ],
)
def test_unknown_events_change_nothing(odd: Any, ends: bool) -> None:
    events: list[Any] = anthropic_events()
    whole = ANTHROPIC.stream(frames(events))
    with_odd = ANTHROPIC.stream(frames([*events[:9], odd, *events[9:]], ends=ends))
    assert (with_odd.parts, with_odd.text, with_odd.usage, with_odd.problems) == (whole.parts, whole.text, whole.usage, [])


def test_payloads_that_are_no_json_are_counted() -> None:
    events: list[Any] = anthropic_events()
    a = ANTHROPIC.stream(frames([*events[:9], b'{"type":"content_block_delta",', b"{]}", *events[9:]]))
    assert a.text == "Grüße, \U0001f30d!"
    assert a.problems == ["2 unreadable events"]
    assert ANTHROPIC.stream(frames([b"{broken"], ends=False)).problems == ["1 unreadable events"]


def test_lone_surrogates() -> None:
    payload = (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\\ud83d b\\ud83d\\ude00 \\\\ud800"}}'
    )
    assert ANTHROPIC.stream(frames([payload])).text == "a\ufffd b\U0001f600 \\ud800"
    prompt = ANTHROPIC.prompt('{"model":"m","messages":[{"role":"user","content":"x\\udc00"}]}')
    assert prompt is not None
    assert prompt.messages == [{"role": "user", "content": "x\ufffd"}]


def test_anthropic_errors() -> None:
    body = '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"r"}'
    plain = ANTHROPIC.answer(body)
    assert plain is not None
    assert plain.error == {"type": "overloaded_error", "message": "Overloaded"}
    a = ANTHROPIC.stream(frames([*anthropic_events()[:10], json.loads(body)]))
    assert a.error == plain.error
    assert a.text == "Grüße, "
    assert ANTHROPIC.answer("<html>") is None


def test_anthropic_plain_answer() -> None:
    content = [
        {"type": "text", "text": "hi"},
        {"type": "tool_use", "id": "t", "name": "n", "input": {"a": [1]}},
        {"type": "redacted_thinking", "data": "d"},
    ]
    body = {
        "id": "msg",
        "type": "message",
        "model": "m",
        "content": content,
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
    a = ANTHROPIC.answer(json.dumps(body))
    assert a is not None
    assert (a.text, a.stop_reason, a.finished) == ("hi", "tool_use", True)
    assert a.parts[2] == {"type": "redacted_thinking", "data": "d"}
    assert a.tool_calls[0].arguments == {"a": [1]}


def test_openai_stream() -> None:
    a = OPENAI.stream(frames(openai_chunks(), others=("[DONE]",)))
    assert (a.text, a.model, a.response_id, a.stop_reason, a.finished, a.first) == (
        "Hello",
        "gpt-x",
        "chatcmpl-1",
        "tool_calls",
        True,
        1,
    )
    assert [(t.id, t.name, t.arguments) for t in a.tool_calls] == [("call_1", "ls", {"a": 1}), ("call_2", "now", {})]
    assert a.usage is not None
    u = a.usage
    assert (u.input_tokens, u.output_tokens, u.cache_read_tokens, u.reasoning_tokens, u.total_tokens) == (20, 7, 8, 3, 27)
    assert not OPENAI.stream(frames(openai_chunks())).finished


def test_openai_stream_as_its_library_reads_it() -> None:
    openai = pytest.importorskip("openai")
    chunks = openai_chunks()
    client = openai.OpenAI(api_key="x", http_client=transport(sse(chunks, False), "httpx"))
    with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as stream:
        theirs = stream.get_final_completion()
    ours = OPENAI.stream(frames(chunks, others=("[DONE]",)))
    message = theirs.choices[0].message
    assert ours.text == message.content
    assert ours.stop_reason == theirs.choices[0].finish_reason
    assert [(t.id, t.name, t.arguments) for t in ours.tool_calls] == [
        (t.id, t.function.name, json.loads(t.function.arguments)) for t in message.tool_calls
    ]
    assert ours.usage is not None
    assert ours.usage.raw is not None
    assert ours.usage.raw["total_tokens"] == theirs.usage.total_tokens


@pytest.mark.parametrize("index", [0, None])
def test_openai_tool_calls_without_index(index: int | None) -> None:
    pieces = [
        tool(index, "a", "f", '{"x"'),
        tool(index, None, None, ":1}"),
        tool(index, "b", "g", "{}"),
        tool(index, "b", None, " "),
    ]
    a = OPENAI.stream(frames([chunk(p) for p in pieces]))
    assert [(t.id, t.name, t.arguments) for t in a.tool_calls] == [("a", "f", {"x": 1}), ("b", "g", {})]


def test_openai_variants() -> None:
    for field in ("reasoning_content", "reasoning", "reasoning_text"):
        a = OPENAI.stream(frames([chunk({field: "hm "}), chunk({field: "ok"}), chunk({"content": "yes"}, finish="stop")]))
        assert (a.thinking, a.text, [p["type"] for p in a.parts], a.first) == ("hm ok", "yes", ["thinking", "text"], 0)
    details = OPENAI.stream(frames([chunk({"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]})]))
    assert details.thinking == "hm"
    legacy = OPENAI.stream(
        frames(
            [
                chunk({"function_call": {"name": "f", "arguments": "{"}}),
                chunk({"function_call": {"arguments": "}"}}, finish="function_call"),
            ]
        )
    )
    assert (legacy.tool_calls[0].name, legacy.tool_calls[0].arguments) == ("f", {})
    refused = OPENAI.stream(frames([chunk({"refusal": "I "}), chunk({"refusal": "won't"})]))
    assert refused.parts == [{"type": "refusal", "refusal": "I won't"}]
    two = OPENAI.stream(frames([chunk({"content": "a"}), chunk({"content": "b"}, index=1), chunk({"content": "c"})]))
    assert (two.text, [(p["text"], p["choice"]) for p in two.parts]) == ("ac", [("ac", 0), ("b", 1)])
    broken = OPENAI.stream(frames([chunk(tool(0, "a", "f", '{"x": ')), chunk({}, finish="length")]))
    assert (broken.tool_calls[0].arguments, broken.tool_calls[0].arguments_text) == (None, '{"x": ')
    error = OPENAI.stream(frames([chunk({"content": "a"}), {"error": {"message": "m", "type": "t", "code": None}}]))
    assert (error.error, error.text, error.finished) == ({"message": "m", "type": "t", "code": None}, "a", True)


def test_openai_plain_answer() -> None:
    message = {
        "role": "assistant",
        "content": "hi",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }
    body = {
        "id": "i",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    a = OPENAI.answer(json.dumps(body))
    assert a is not None
    assert (a.text, a.tool_calls[0].arguments, a.stop_reason, a.finished) == ("hi", {"a": 1}, "stop", True)
    failed = OPENAI.answer('{"error":{"message":"m","code":"invalid_api_key"}}')
    assert failed is not None
    assert failed.error == {"message": "m", "code": "invalid_api_key"}


def test_requests() -> None:
    body = json.dumps(
        {
            "model": "m",
            "max_tokens": 5,
            "stream": True,
            "messages": [{"role": "user", "content": "grüß"}],
            "system": [{"type": "text", "text": "s"}],
            "tools": [{"name": "t"}],
            "unknown": 1,
        }
    )
    p = ANTHROPIC.prompt(body)
    assert p is not None
    assert (p.model, p.stream, p.params, p.problem) == ("m", True, {"max_tokens": 5}, None)
    assert isinstance(p.messages, SentList)
    assert p.messages == [{"role": "user", "content": "grüß"}]
    assert (p.messages[-1]["role"], p.messages[:1], len(p.messages), list(p.messages)) == (
        "user",
        [{"role": "user", "content": "grüß"}],
        1,
        p.messages,
    )
    assert (p.system, p.tools) == ([{"type": "text", "text": "s"}], [{"name": "t"}])
    pretty = ANTHROPIC.prompt(json.dumps(json.loads(body), indent=1))
    assert pretty is not None
    assert (pretty.messages, type(pretty.messages)) == (p.messages, list)  # as text it would be several lines of a log
    odd = ANTHROPIC.prompt('{"model":5,"messages":[1],"tools":{"a":1},"system":{"x":1}}')
    assert odd is not None
    assert (odd.model, odd.messages, odd.tools, odd.system) == (None, [1], [{"a": 1}], {"x": 1})
    for none in ('{"input": "x"}', "[]", '"x"', '{"messages": 1}'):
        assert ANTHROPIC.prompt(none) is None
    cut = OPENAI.prompt(body[:-30])
    assert cut is not None
    assert (cut.model, cut.stream, cut.messages, cut.problem) == ("m", True, [], "request is no whole JSON")
    functions = OPENAI.prompt('{"messages":[],"functions":[{"name":"f"}]}')
    assert functions is not None
    assert functions.tools == [{"name": "f"}]


def test_recognition() -> None:
    for path in ("/v1/messages", "/v1/messages?beta=true", "/api/v1/messages", "/anthropic/v1/messages/"):
        assert of_path(path) is ANTHROPIC, path
    for path in ("/v1/chat/completions", "/openai/deployments/x/chat/completions?api-version=1", "/api/paas/v4/chat/completions"):
        assert of_path(path) is OPENAI, path
    for path in (
        "/v1/messages/count_tokens",
        "/v1/messages/batches",
        "/v1/models",
        "/",
        "/x?y=/v1/messages",
        "/v1/chat/completions/abc",
    ):
        assert of_path(path) is None, path
    assert of_stream(frames(anthropic_events()[5:])) is ANTHROPIC
    assert of_stream(frames(openai_chunks())) is OPENAI
    assert of_stream(frames([{"type": "response.created"}])) is None
    assert of_stream(frames([])) is None
    assert of_body('{"type":"message","content":[]}') is ANTHROPIC
    assert of_body("{") is None


def test_nothing_raises() -> None:
    odd: list[Any] = [
        None,
        1,
        "x",
        [],
        {},
        [{}],
        {"type": "message_start", "message": 1},
        {"type": "message_start", "message": {"usage": [1]}},
        {"choices": 1},
    ]
    odd += [
        {"choices": [{"delta": {"tool_calls": 1}}]},
        {"choices": [{"index": None}]},
        {"error": "x"},
        {"type": "error"},
        {"content": [1, None]},
        {"type": "message", "content": [1]},
    ]
    deep = "[" * 100_000
    for provider in PROVIDERS:
        for value in odd:
            text = json.dumps(value)
            provider.answer(text)
            provider.prompt(text)
            provider.stream(frames([value]))
            provider.stream(frames([value], ends=False))
            provider.prompt(json.dumps({"messages": value, "tools": value, "system": value, "functions": value}))
        provider.answer(deep)
        provider.prompt(deep)
        provider.prompt('{"messages":[' + deep)
        provider.stream(frames([deep.encode()]))


def test_sent_list_is_written_as_it_came() -> None:
    from unit.llm_events import streamed

    from agentsight.analyzers import LlmCalls

    body = '{"model":"m","messages":[{"role":"user","content":"1.0 \\u00e9","n":1.50}]}'
    call = LlmCalls().feed_many(streamed(anthropic_events(), body))[-1]
    assert b'"messages":[{"role":"user","content":"1.0 \\u00e9","n":1.50}]' in to_json(call)

"""Joined events say what the single ones said."""

from __future__ import annotations

import array
import json
import random

import msgspec
import pytest

from agentsight.events import SseFrames
from agentsight.providers.anthropic import Anthropic
from agentsight.providers.openai_chat import OpenAIChat
from agentsight.providers.squeeze import squeeze

TEXT = b'"type":"text_delta","text":"'


def pack(payloads: list[bytes]) -> tuple[bytes, bytes]:
    frames, ends = bytearray(), array.array("I")
    for payload in payloads:
        frames += (b"," if frames else b"[") + payload
        ends.append(len(frames))
    return bytes(frames) + b"]", ends.tobytes()


def sse(payloads: list[bytes], *, joined: bool) -> SseFrames:
    frames, ends = pack(payloads)
    n = len(payloads)
    return SseFrames(0, 0, 0, 0, "", "1", 0, frames, b"[]", bytes(8 * n), ["[DONE]"], n, 0, ends if joined else b"")


def delta(index: int, text: str, kind: str = "text") -> bytes:
    field = {"text": "text", "thinking": "thinking", "input_json": "partial_json"}[kind]
    event = {"type": "content_block_delta", "index": index, "delta": {"type": f"{kind}_delta", field: text}}
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def start(index: int, kind: str = "text") -> bytes:
    block = {"text": {"type": "text", "text": ""}, "thinking": {"type": "thinking", "thinking": ""}}.get(
        kind, {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}
    )
    return json.dumps({"type": "content_block_start", "index": index, "content_block": block}, separators=(",", ":")).encode()


def test_many_become_one() -> None:
    words = [f"w{i} " for i in range(100)]
    frames, ends = pack([start(0), *(delta(0, w) for w in words), b'{"type":"message_stop"}'])
    events = json.loads(squeeze(frames, ends, (TEXT,)))
    assert [e["type"] for e in events] == ["content_block_start", "content_block_delta", "message_stop"]
    assert events[1]["delta"]["text"] == "".join(words)


def test_few_stay_as_they_are() -> None:
    frames, ends = pack([delta(0, "a")] * 10)
    assert squeeze(frames, ends, (TEXT,)) == frames


def test_an_event_that_only_ends_alike_is_left_alone() -> None:
    """A start whose last bytes are those of a delta is no delta."""
    frames, ends = pack([start(0), *[delta(0, "x")] * 20, delta(1, "y", "thinking"), *[delta(0, "z")] * 20])
    events = json.loads(squeeze(frames, ends, (TEXT,)))
    assert [(e["type"], e.get("index")) for e in events] == [
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 1),
        ("content_block_delta", 0),
    ]


TEXTS = ["a", "", '"', "\\", '\\"', '"}}', '"}},{"type":"content_block_delta"', "é\n\t", "x" * 300, "\U0001f600", ',{"index":0', "}"]


def anthropic(rng: random.Random) -> list[bytes]:
    out = [b'{"type":"message_start","message":{"id":"m","model":"x","usage":{"input_tokens":1}}}']
    for index in range(rng.randint(1, 4)):
        kind = rng.choice(["text", "thinking", "input_json"])
        out.append(start(index, kind))
        for _ in range(rng.randint(0, 60)):
            out.append(delta(rng.choice([index] * 9 + [0]), rng.choice(TEXTS), kind))
            if not rng.randint(0, 20):
                out.append(b'{"type":"ping"}')
    return [*out, b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}', b'{"type":"message_stop"}']


def openai(rng: random.Random) -> list[bytes]:
    out = []
    for i in range(rng.randint(1, 120)):
        kind = rng.choice([{"content": rng.choice(TEXTS)}] * 8 + [{"reasoning_content": "r"}, {"role": "assistant", "content": ""}])
        chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": kind, "finish_reason": None}]}
        if not rng.randint(0, 30):
            chunk["usage"] = {"prompt_tokens": i, "completion_tokens": i}
        out.append(json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode())
    return out


@pytest.mark.parametrize(("provider", "make"), [(Anthropic(), anthropic), (OpenAIChat(), openai)])
def test_the_answer_is_the_same(provider: Anthropic | OpenAIChat, make: object) -> None:
    rng = random.Random(7)
    for _ in range(400):
        payloads = make(rng)  # type: ignore[operator]
        one, many = (provider.stream(sse(payloads, joined=joined)) for joined in (True, False))
        for name in one.__slots__:
            assert msgspec.json.encode(getattr(one, name)) == msgspec.json.encode(getattr(many, name)), name

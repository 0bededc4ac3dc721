"""Redaction: the fast look is never a false no, every field of every event is covered, nothing else is touched."""

from __future__ import annotations

import random
import re
import time
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentsight import events as ev
from agentsight._native import redact as native
from agentsight.analyzers.redact import Redactor
from agentsight.analyzers.secrets import RULES, is_secret, redact, spans
from agentsight.providers.base import SentList

ANTHROPIC = "sk-ant-api03-" + "aB3x" * 20
GITHUB = "ghp_" + "a1B2" * 9
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlMTIz"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabcd+/==\n-----END RSA PRIVATE KEY-----"

FOUND = [  # text, what must be gone, kind
    (f"key is {ANTHROPIC}.", ANTHROPIC, "anthropic-key"),
    ("sk-proj-" + "Ab1_" * 12, "Ab1_Ab1_", "openai-key"),
    ("use sk-" + "a1b2c3d4" * 6, "a1b2c3d4", "openai-key"),
    (r"{\"k\":\"x\nsk-" + "a1b2c3d4" * 6, "a1b2c3d4", "openai-key"),
    ("sk_live_" + "4eC39HqLyjWD", "4eC39HqLyjWD", "stripe-key"),
    (f"remote https://x:{GITHUB}@github.com/a", GITHUB, "github-token"),
    ("github_pat_" + "11ABCDEFG0" * 3, "11ABCDEFG0", "github-token"),
    ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE", "aws-key"),
    ("aws_secret_access_key = 'wJalrXUtnFEMI/K7MDENG'", "wJalrXUtnFEMI", "credential"),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI", "credential"),
    ("AIza" + "Sy0-_" * 7, "Sy0-_", "google-key"),
    ("xoxb-1234567890-abcdef", "1234567890", "slack-token"),
    ("glpat-" + "aBcD1234" * 3, "aBcD1234", "gitlab-token"),
    ("hf_" + "aBcD1234" * 4, "aBcD1234", "huggingface-token"),
    ("npm_" + "aBcD1234" * 5, "aBcD1234", "npm-token"),
    (f"token {JWT} end", JWT, "jwt"),
    ("curl -H 'X-Auth: bearer abcdefghij0123456789'", "abcdefghij0123456789", "bearer"),
    (PEM, "MIIEpAIBAAKCAQEA", "private-key"),
    (PEM.replace("\n", "\\n"), "MIIEpAIBAAKCAQEA", "private-key"),
    ("postgres://app:hunter2@db/x", "hunter2", "url-password"),
    ("GET / HTTP/1.1\r\nAuthorization: Basic dXNlcjpw\r\nHost: a\r\n\r\n", "dXNlcjpw", "header"),
    ("Cookie: session=abc; x=y\r\n", "session=abc", "header"),
    ('{"authorization": "Basic dXNlcjpw"}', "dXNlcjpw", "credential"),
    (r'"{\"authorization\": \"Basic dXNlcjpw\", \"a\": 1}"', "dXNlcjpw", "credential"),
    ('{"password":"a \\"quoted\\" one"}', "quoted", "credential"),
    ("api_key='abcdefgh1234'", "abcdefgh1234", "credential"),
    ("line\nMY_TOKEN=abcdef123\n", "abcdef123", "credential"),
    ("/v1/models?key=short&x=1", "short", "credential"),
    ("/cb?x=1&access_token=abc", "abc", "credential"),
    ("grant_type=x&client_secret=abc", "=abc", "credential"),
    ("tool --api-key abc123def --verbose", "abc123def", "credential"),
    ("grün: ghp_" + "a1B2" * 9 + " für API_KEY=grüßgott1 ende", "grüßgott1", "credential"),
]
HARMLESS = [
    '{"max_tokens": 1024, "key": "value", "next_page_token": "abcdefghijkl"}',
    "risk-based task-management-system-overview-with-a-long-name",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "https://example.com:8080/a?q=1#f and mailto:a@b",
    "self.key = other[key]; token = get_token(); password: str",
    'API_KEY=$OTHER api_key="${{ secrets.X }}"',
    "Bearer tokens are used",
    "the cookie: a small file",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
]


def everything(text: str) -> str:
    return redact(text, native.ALL)


@pytest.mark.parametrize(("text", "gone", "kind"), FOUND)
def test_found(text: str, gone: str, kind: str) -> None:
    kinds = native.kinds(text)
    clean = redact(text, kinds)
    assert native.scan(text)
    assert gone not in clean
    assert f"[REDACTED:{kind}]" in clean
    assert redact(clean, native.kinds(clean)) is clean or redact(clean, native.kinds(clean)) == clean
    assert everything(clean) == clean


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    assert everything(text) is text


def test_json_stays_json() -> None:
    for text, gone, _ in FOUND:
        for raw in (msgspec.json.encode({"a": text}), msgspec.json.encode({"a": msgspec.json.encode({"b": text}).decode()})):
            clean = redact(raw.decode(), native.kinds(raw))
            assert gone not in clean
            msgspec.json.decode(clean)


PATTERNS = [(bit, pattern) for bit, rules in enumerate(RULES) for pattern, _ in rules]
NOISE = st.text(alphabet=st.sampled_from(list(" \n\r\t\"'\\=:-_&?/@.aZ0éß\x1c€")), max_size=40)


@pytest.mark.parametrize(("bit", "pattern"), PATTERNS, ids=lambda x: str(x)[:20])
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_false_negative(bit: int, pattern: re.Pattern[str], data: st.DataObject) -> None:
    """Whatever a rule's expression matches, the scanner sees: at any place, in any surroundings."""
    # the strategies know no look-behind of choices: what stands before is left to the noise
    plain = re.compile(
        re.sub(r"\(\?<[=!](?:[^()\\]|\\.|\[[^\]]*\])*\)", "", pattern.pattern.replace(_BOUNDARY, "")), pattern.flags
    )
    body = data.draw(st.from_regex(plain))
    if bit == len(RULES) - 1:
        names = (
            "api_key",
            "X-Api-Key",
            "TOKEN",
            "password",
            "ACCESS_KEY",
            "authorization",
            "key",
            "sig",
            "auth",
            "credentials",
            "pwd",
        )
        name = data.draw(st.sampled_from(names))
        found = plain.search(body)
        if found and found.groupdict().get("name"):
            a, b = found.span("name")
            body = body[:a] + name + body[b:]
    text = data.draw(NOISE) + body + data.draw(NOISE)
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    for spotted in spans(text, native.ALL):
        kinds = native.kinds(text)
        hit = [
            b for b, rules in enumerate(RULES) if any(spotted in filter(None, map(pick, p.finditer(text))) for p, pick in rules)
        ]
        assert all(kinds >> b & 1 for b in hit), (text, spotted)


_BOUNDARY = re.search(r"sk-(\(\?:\(\?<!.*?\))\[A-Za-z0-9\]\{16", RULES[1][1][0].pattern)[1]  # type: ignore[index]
SNIPPETS = [t for t, _, _ in FOUND] + HARMLESS


def test_scan_of_mixtures_misses_nothing() -> None:
    """Pieces of secrets and near misses put together, cut anywhere: the look promises, and the guided search finds the same."""
    rng = random.Random(11)
    found = 0
    for _ in range(6000):
        text = "".join(_piece(rng) for _ in range(rng.randrange(1, 5)))
        kinds = native.kinds(text)
        assert native.kinds(text.encode()) == kinds
        for bit, rules in enumerate(RULES):
            if kinds >> bit & 1:
                continue
            for pattern, pick in rules:
                assert not [s for s in map(pick, pattern.finditer(text)) if s], (text, pattern.pattern)
        by_place, full = redact(text, kinds), text.encode().decode("latin-1")
        for rules in RULES:
            for pattern, pick in rules:
                full = _plain(full, pattern, pick)
        assert by_place == full.encode("latin-1").decode()
        found += by_place != text
    assert found > 1000


def _piece(rng: random.Random) -> str:
    text = rng.choice(SNIPPETS)
    a = rng.randrange(max(1, len(text) // 2)) if rng.random() < 0.4 else 0
    b = rng.randrange(a, len(text) + 1) if rng.random() < 0.4 else len(text)
    return rng.choice(["", " ", "\n", "\\n", '"', "é", "&", "x"]) + text[a:b]


def _plain(text: str, pattern: re.Pattern[str], pick: Any) -> str:
    out, done = [], 0
    for m in pattern.finditer(text):
        span = pick(m)
        if span:
            out += [text[done : span[0]], f"[REDACTED:{span[2]}]"]
            done = span[1]
    return "".join([*out, text[done:]])


def test_every_offset_and_alignment() -> None:
    for text, _, _ in FOUND:
        for pad in range(40):
            assert native.kinds("\n" * pad + text) == native.kinds(text), (pad, text)


def test_no_slow_text() -> None:
    """Texts made to be slow: time grows with the length, not with its square."""
    for unit in (
        "eyJ",
        "\\",
        '\\"',
        "sk-",
        "api_key=",
        "a://",
        "a://:",
        "-----BEGIN PRIVATE KEY-----",
        "Bearer ",
        "token:",
        "--token ",
        "A",
        "+",
        '"a":"',
    ):
        text = unit * (200_000 // len(unit))
        start = time.thread_time()
        redact(text, native.kinds(text))
        assert time.thread_time() - start < 3, unit


SECRET_TEXT = f"before {ANTHROPIC} after"
BASE: dict[str, Any] = {"seq": 1, "timestamp": 2, "timestamp_ns": 3, "pid": 4, "comm": "x"}
EVENTS = [
    c for c in vars(ev).values() if isinstance(c, type) and issubclass(c, ev.Event) and c is not ev.Event and not c.internal
]


def planted(t: Any) -> Any:
    """A value of a type with the secret wherever there can be text; None where there can be none."""
    origin, args = typing.get_origin(t), typing.get_args(t)
    if t is str or t is Any:
        return SECRET_TEXT
    if origin is list:
        return [planted(args[0])] if planted(args[0]) is not None else None
    if origin is dict:
        if args[1] is int:
            return {SECRET_TEXT: 1}
        return {"a": planted(args[1]), "b": [{"c": [SECRET_TEXT]}]} if args[1] is Any else {"a": SECRET_TEXT, "api-key": "short"}
    if args and type(None) in args:
        return next((p for p in map(planted, args) if p is not None), None)
    if isinstance(t, type) and issubclass(t, msgspec.Struct):
        fields = {k: planted(v) for k, v in typing.get_type_hints(t).items() if k in t.__struct_fields__}
        defaults = {int: 0, float: 0.0, bool: False}
        hints = typing.get_type_hints(t)
        return t(**{k: v if v is not None else defaults.get(hints[k]) for k, v in fields.items()})
    return None


@pytest.mark.parametrize("cls", EVENTS, ids=lambda c: c.__name__)
def test_every_text_field_of_every_event(cls: type[ev.Event]) -> None:
    hints = {k: v for k, v in typing.get_type_hints(cls).items() if k in cls.__struct_fields__}
    empty = {int: 0, float: 0.0, bool: False, str: ""}
    plain = {
        k: BASE.get(k, empty.get(t, [] if typing.get_origin(t) is list else {} if typing.get_origin(t) is dict else None))
        for k, t in hints.items()
    }
    harmless = cls(**plain)
    assert Redactor().feed_many([harmless])[0] is harmless
    some = 0
    for name, t in hints.items():
        value = planted(t)
        if value is None:
            continue
        some += 1
        event = cls(**{**plain, name: value})
        assert ANTHROPIC.encode() in ev.to_json(event)
        clean = Redactor().feed_many([event])[0]
        assert ANTHROPIC.encode() not in ev.to_json(clean), name
        assert Redactor().feed_many([clean])[0] == clean
    assert some


def ssl(data: str | None, offset: int, size: int | None = None, **more: Any) -> ev.SslEvent:
    fields = {
        "function": "WRITE/SEND",
        "len": len(data or "") if size is None else size,
        "data": data,
        "truncated": False,
        "latency_ms": None,
        "is_handshake": False,
        "tid": 1,
        "uid": 0,
        "conn": "1",
        "offset": offset,
    }
    return ev.SslEvent(**BASE, **{**fields, **more})


def test_binary_is_withheld() -> None:
    (e,) = Redactor().feed_many([ssl(None, 0, 3, data_base64="AAEC")])
    assert isinstance(e, ev.SslEvent)
    assert (e.data, e.data_base64, e.len, e.withheld) == (None, None, 3, True)


@pytest.mark.parametrize("cut", range(1, 60))
def test_header_cut_over_two_raw_events(cut: int) -> None:
    whole = "GET / HTTP/1.1\r\nAuthorization: Basic c2VjcmV0LXNlY3JldA==\r\nHost: example\r\n\r\n"
    a, b = ssl(whole[:cut], 0), ssl(whole[cut:], cut)
    out = Redactor().feed_many([a, b])
    shown = "".join(e.data or "" for e in out if isinstance(e, ev.SslEvent))
    assert shown.startswith("GET / HTTP/1.1\r\n")
    assert shown.endswith("\r\nHost: example\r\n\r\n")
    assert "c2VjcmV0LXNlY3JldA==" not in shown


def test_token_cut_over_two_raw_events() -> None:
    text = f"the key is {ANTHROPIC} ok\n"
    for cut in range(text.index("sk-") + 15, text.index(" ok")):
        out = Redactor().feed_many([ssl(text[:cut], 0), ssl(text[cut:], cut)])
        second = out[1]
        assert isinstance(second, ev.SslEvent)
        assert second.data == "[REDACTED:anthropic-key] ok\n"
    apart = [ssl(text[:40], 0), ssl("plain text\n", 999)]  # not the bytes that follow
    assert Redactor().feed_many(apart)[1] is apart[1]


def test_arguments_of_commands() -> None:
    args = ["tool", "--token", "abc", "-H", "Authorization: Basic abc", "--max-tokens", "100"]
    e = ev.ProcessEvent(
        **BASE, event="EXEC", ppid=1, uid=0, start_ticks=0, args=args, full_command=" ".join(args) + " --password secret123"
    )
    (clean,) = Redactor().feed_many([e])
    assert isinstance(clean, ev.ProcessEvent)
    assert clean.args == [
        "tool",
        "--token",
        "[REDACTED:credential]",
        "-H",
        "Authorization: [REDACTED:header]",
        "--max-tokens",
        "100",
    ]
    assert "secret123" not in (clean.full_command or "")


def test_encoded_prompt_is_redacted() -> None:
    sent = SentList([msgspec.Raw(msgspec.json.encode({"role": "user", "content": SECRET_TEXT}))])
    assert native.kinds_within(sent, is_secret)
    assert not native.kinds_within(sent, is_secret, False)
    plain = {k: BASE.get(k) for k in ev.LlmCall.__struct_fields__[:5]}
    call = ev.LlmCall(
        **plain,
        provider="p",
        api="a",
        model=None,
        response_model=None,
        host=None,
        path="/",
        stream=False,
        status_code=None,
        error=None,
        messages=sent,
        parts=[],
        tool_calls=[],
        stop_reason=None,
        usage=None,
        ttfb_ms=None,
        ttft_ms=None,
        duration_ms=0.0,
        complete=True,
        conn="1",
        exchange_id=1,
        start_ns=0,
        end_ns=0,
    )
    (clean,) = Redactor().feed_many([call])
    assert isinstance(clean, ev.LlmCall)
    assert clean.messages == [{"role": "user", "content": "before [REDACTED:anthropic-key] after"}]
    assert isinstance(clean.messages, SentList)


def test_names() -> None:
    for name in (
        "Authorization",
        "x-api-key",
        "apiKey",
        "OPENAI_API_KEY",
        "access_token",
        "Set-Cookie",
        "client_secret",
        "x-goog-api-key",
    ):
        assert is_secret(name), name
    for name in ("Sec-WebSocket-Key", "key", "next_page_token", "max_tokens", "idempotency-key", "content-type", "eos_token"):
        assert not is_secret(name), name

"""The C core's HTTP/1 against other implementations: httptools (llhttp) and h11 on generated messages, h11's refusals
on bad ones, and zlib, brotli and zstandard on coded bodies. The rules one by one, with every split, are text cases:
tests/cases/http."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import brotli
import h11
import httptools
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from native import drive

CUTS = st.sampled_from([1, 2, 3, 7, 64, drive.WHOLE])
TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.!#$%&'*+^`|~", min_size=1, max_size=12)
RESERVED = {
    "content-length", "transfer-encoding", "content-encoding", "content-type", "connection", "upgrade", "host", "expect",
    "proxy-connection", "keep-alive", "te", "trailer",
}  # fmt: skip
NAME = TOKEN.filter(lambda t: t.lower() not in RESERVED)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.strip)
TARGET = st.text("abcXYZ019-._~!$&'()*+,;=:@/?%", max_size=30).map(lambda t: "/" + t)
BODY = st.binary(max_size=300)


@st.composite
def framed(draw: Any, request: bool) -> tuple[list[tuple[str, str]], bytes, bytes, list[tuple[str, str]]]:
    """Headers, the body, its bytes on the wire, and trailers."""
    headers = draw(st.lists(st.tuples(NAME, VALUE), max_size=5))
    kind = draw(st.sampled_from(["length", "chunked", "none"] if request else ["length", "chunked"]))
    if kind == "none":
        return headers, b"", b"", []
    body: bytes = draw(BODY)
    at = draw(st.integers(0, len(headers)))
    if kind == "length":
        headers.insert(at, ("Content-Length", str(len(body))))
        return headers, body, body, []
    headers.insert(at, ("Transfer-Encoding", draw(st.sampled_from(["chunked", "Chunked"]))))
    wire, i = b"", 0
    while i < len(body):
        n = draw(st.integers(1, len(body) - i))
        size = draw(st.sampled_from(["%x", "%X", "0%x"])) % n
        ext = draw(st.sampled_from(["", ";a", ";a=b", ';a="b c"']))
        wire += f"{size}{ext}\r\n".encode() + body[i : i + n] + b"\r\n"
        i += n
    trailers = draw(st.lists(st.tuples(NAME, VALUE), max_size=2))
    wire += b"0\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in trailers) + b"\r\n"
    return headers, body, wire, trailers


@st.composite
def requests(draw: Any) -> tuple[bytes, bytes, bytes, list[tuple[str, str]]]:
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))
    target = draw(TARGET)
    headers, body, wire, _ = draw(framed(True))
    headers.insert(0, ("Host", "example.org"))
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers) + "\r\n"
    return f"{method} {target} HTTP/1.1".encode(), head.encode() + wire, body, headers


@st.composite
def responses(draw: Any) -> tuple[bytes, bytes, bytes, list[tuple[str, str]]]:
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 404, 500]))
    headers, body, wire, _ = draw(framed(False))
    if status in (204, 304):
        body = wire = b""
        headers = [h for h in headers if h[0] not in ("Transfer-Encoding", "Content-Length")]
    line = f"HTTP/1.1 {status} Some Reason"
    head = line + "\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers) + "\r\n"
    return line.encode(), head.encode() + wire, body, headers


class Reference:
    """What httptools makes of a direction: one entry per message."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, list[tuple[bytes, bytes]], bytes]] = []

    def on_message_begin(self) -> None:
        self.url, self.headers, self.body, self.seen = b"", [], b"", False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.seen:  # trailers come through here as well
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.seen = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.messages.append((self.url.decode("latin1"), self.headers, self.body))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive.Core(tmp_path_factory.mktemp("core"))


@settings(max_examples=150, deadline=None)
@given(asked=st.lists(requests(), min_size=1, max_size=4), cut=CUTS)
def test_requests_as_httptools(core: Any, asked: list[Any], cut: int) -> None:
    wire = b"".join(a[1] for a in asked)
    ref = Reference()
    httptools.HttpRequestParser(ref).feed_data(wire)
    got = core.http(("feed", "client", wire), cut=cut)
    assert [e.kind for e in got] == ["request"] * len(asked)
    assert not any(e.flags for e in got)
    assert [(e.first_line.split(b" ")[1].decode("latin1"), e.headers, e.body) for e in got] == ref.messages
    assert [e.body for e in got] == [a[2] for a in asked]


@settings(max_examples=150, deadline=None)
@given(answers=st.lists(responses(), min_size=1, max_size=4), cut=CUTS)
def test_responses_as_httptools(core: Any, answers: list[Any], cut: int) -> None:
    wire = b"".join(a[1] for a in answers)
    ref = Reference()
    httptools.HttpResponseParser(ref).feed_data(wire)
    asked = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(len(answers)))
    got = core.http(("feed", "client", asked), ("feed", "server", wire), cut=cut)
    mine = [e for e in got if e.kind == "response"]
    assert [(e.headers, e.body) for e in mine] == [(h, b) for _, h, b in ref.messages]
    assert [e.first_line for e in mine] == [a[0] for a in answers]
    assert [e.request for e in mine] == [b"GET /%d HTTP/1.1" % i for i in range(len(answers))]
    assert not any(e.flags for e in mine)


def by_h11(wire: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes] | None:
    """One request as h11 reads it; None where it refuses."""
    conn = h11.Connection(h11.SERVER)
    conn.receive_data(wire)
    request, body = None, b""
    try:
        while True:
            event = conn.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert request
                return bytes(request.target), [(bytes(n), bytes(v)) for n, v in request.headers.raw_items()], body
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def alike(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without what h11 rewrites: lists of Content-Length, the case of Transfer-Encoding, blanks before a fold."""
    out = []
    for name, value in headers:
        low = name.lower()
        if low != b"content-length":
            out.append((name, b" ".join((value.lower() if low == b"transfer-encoding" else value).split())))
    return out


@settings(max_examples=200, deadline=None)
@given(asked=requests(), cut=CUTS)
def test_a_request_as_h11(core: Any, asked: Any, cut: int) -> None:
    want = by_h11(asked[1])
    assert want is not None
    (got,) = core.http(("feed", "client", asked[1]), cut=cut)
    assert (got.first_line.split(b" ")[1], alike(got.headers), got.body) == (want[0], alike(want[1]), want[2])


LINES = st.sampled_from(
    ["Content-Length: 3", "Content-Length: 4", "content-length:3", "Content-Length: 3, 3", "Content-Length: 3,4",
     "Content-Length: -3", "Content-Length: 3x", "Content-Length:", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip",
     "Transfer-Encoding: chunked, gzip", "A: b", "A : b", ": b", "A", "A b: c", "A: b\rc", "A: b\0c", "A(: b", " folded",
     "\tfolded", "A:", "A:\tb \t"]
)  # fmt: skip


def flagged(events: list[Any]) -> bool:
    marks = {"FRAMING_ERROR", "SMUGGLING", "BODY_CUT"}
    return any(e.kind == "raw" or e.flags & marks for e in events)


@settings(max_examples=600, deadline=None)
@given(lines=st.lists(LINES, max_size=4), body=st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n"]), cut=CUTS)
def test_what_h11_refuses_is_marked(core: Any, lines: list[str], body: bytes, cut: int) -> None:
    """h11 takes it: we read the same. h11 refuses it: we mark it or take it for no message.

    Where we are more lenient on purpose, as RFC 9112 allows or observed clients need: blank lines of a fold before the first
    field are dropped (section 2.2; h11 refuses).
    """
    wire = ("POST / HTTP/1.1\r\n" + "".join(x + "\r\n" for x in [*lines, "Host: a"]) + "\r\n").encode() + body
    want, got = by_h11(wire), core.http(("feed", "client", wire), cut=cut)
    if want is not None:
        assert got and got[0].kind == "request"
        assert (alike(got[0].headers), got[0].body) == (alike(want[1]), want[2])
        assert "FRAMING_ERROR" not in got[0].flags
    elif not (lines and lines[0][0] in " \t"):
        assert flagged(got), (wire, got)


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/1", b"GET /", b"GET  HTTP/1.1", b"G@T / HTTP/1.1", b"GET /\x01 HTTP/1.1", b" GET / HTTP/1.1"],
)
def test_start_lines_that_h11_refuses(core: Any, line: bytes) -> None:
    wire = line + b"\r\nHost: a\r\n\r\n"
    assert by_h11(wire) is None
    assert not any(e.kind == "request" for e in core.http(("feed", "client", wire)) if e.first_line == line)


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": lambda b: gzip.compress(b, 1),
    "deflate": zlib.compress,
    "br": lambda b: brotli.compress(b, quality=5),
    "zstd": lambda b: zstandard.ZstdCompressor(level=3).compress(b),
}
TEXT = st.lists(st.sampled_from([b"hello ", b"\0\xff", b"event: x\n", b"0123456789" * 30]), max_size=40).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(
    codings=st.lists(st.sampled_from(sorted(ENCODERS)), min_size=1, max_size=3), body=TEXT | BODY, cut=CUTS, chunked=st.booleans()
)
def test_codings(core: Any, codings: list[str], body: bytes, cut: int, chunked: bool) -> None:
    coded = body
    for c in codings:
        coded = ENCODERS[c](coded)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: " + ", ".join(codings).encode() + b"\r\n"
    if chunked:
        wire = head + b"Transfer-Encoding: chunked\r\n\r\n"
        for i in range(0, len(coded), 50):
            piece = coded[i : i + 50]
            wire += b"%x\r\n" % len(piece) + piece + b"\r\n"
        wire += b"0\r\n\r\n"
    else:
        wire = head + b"Content-Length: %d\r\n\r\n" % len(coded) + coded
    (got,) = core.http(("feed", "client", wire), cut=cut)
    assert got.body == body and not got.flags


@pytest.mark.parametrize("coding", sorted(ENCODERS))
@pytest.mark.parametrize("cut", [1, 5, drive.WHOLE])
def test_events_inside_codings(core: Any, coding: str, cut: int) -> None:
    stream = b"".join(b"event: e%d\r\ndata: {}\r\n\r\n" % i for i in range(30)) + b"data: [DONE]\n\n"
    coded = ENCODERS[coding](stream)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: %s\r\n\r\n" % coding.encode()
    asked = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    got = core.http(("feed", "client", asked), ("feed", "server", head + coded), cut=cut, keep_sse_body=True)
    assert [e.event for e in got if e.kind == "sse"] == [*(b"e%d" % i for i in range(30)), b"message"]
    (answer,) = [e for e in got if e.kind == "response"]
    assert answer.flags == {"TERMINATED"} and answer.body == stream


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(requests(), min_size=1, max_size=3),
    start=st.integers(0, 400),
    gap=st.integers(1, 300),
    known=st.booleans(),
    cut=CUTS,
)
def test_behind_a_hole_the_next_message_is_found(
    core: Any, asked: list[Any], start: int, gap: int, known: bool, cut: int
) -> None:
    """Whatever a hole swallowed, a request that lies wholly behind it is read as if there had been none."""
    wire = b"".join(a[1] for a in asked)
    last = b"\r\nPUT /last HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nlast"
    start, end = min(start, len(wire)), min(start + gap, len(wire))
    hole = ("gap", "client", end - start if known else 0)
    got = core.http(("feed", "client", wire[:start]), hole, ("feed", "client", wire[end:] + last), cut=cut)
    assert (got[-1].kind, got[-1].first_line, got[-1].body) == ("request", b"PUT /last HTTP/1.1", b"last")

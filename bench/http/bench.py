"""HTTP/1 decoding in the C core against llhttp (PyPI httptools), in the same run, on the same pieces.

    python bench/http/bench.py

Three loads: a model call's request of 80 KB in pieces of 16 KB; its answer, 200 server-sent events in a chunk and a piece each;
small keep-alive requests with ten fields. Both directions are parsed by both. Ours also keeps heads and bodies, pairs requests
with answers and takes the events apart. httptools is measured twice: with callbacks that keep heads and bodies (no events, no
pairing), and with none, where it walks over the bytes and keeps nothing. A ratio above 1 says that ours is faster.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import httptools

ROOT = Path(__file__).resolve().parents[2]
CORE = [*sorted((ROOT / "native/core").glob("http_*.c")), ROOT / "native/core/sse.c", ROOT / "native/core/coding.c"]


class Piece(ctypes.Structure):
    _fields_ = [("p", ctypes.c_char_p), ("n", ctypes.c_size_t), ("flow", ctypes.c_int)]


class Seen(ctypes.Structure):
    _fields_ = [("messages", ctypes.c_uint64), ("events", ctypes.c_uint64), ("body", ctypes.c_uint64)]


def build(directory: Path) -> ctypes.CDLL:
    lib = directory / "bench.so"
    sources = [str(ROOT / "bench/http/core.c"), *map(str, CORE)]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", f"-I{ROOT / 'native/core'}"]
    subprocess.run([os.environ.get("CC", "cc"), *flags, *sources, "-o", str(lib), "-lz", "-lbrotlidec", "-lzstd"], check=True)
    out = ctypes.CDLL(str(lib))
    out.bench_http.restype = ctypes.c_uint64
    return out


FIELDS = "".join(f"X-Field-{i}: some value of ordinary length {i}\r\n" for i in range(8))
SMALL = f"GET /v1/models HTTP/1.1\r\nHost: api.example.org\r\nAccept: */*\r\n{FIELDS}\r\n".encode()
BODY = json.dumps({"messages": [{"role": "user", "content": "x" * 81_800}]}).encode()
REQUEST = f"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n{FIELDS}\r\n".encode() + BODY
EVENT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " some more words"}}
DELTA = b"event: content_block_delta\ndata: " + json.dumps(EVENT).encode() + b"\n\n"
ANSWER = [
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    *[b"%x\r\n" % len(DELTA) + DELTA + b"\r\n"] * 200,
    b"0\r\n\r\n",
]
ANSWERED = [b"HTTP/1.1 204 No Content\r\n\r\n"]


def ours(lib: ctypes.CDLL, asked: list[bytes], answered: list[bytes], rounds: int) -> tuple[float, Seen]:
    pieces = [Piece(p, len(p), 0) for p in asked] + [Piece(p, len(p), 1) for p in answered]
    seen = Seen()
    array = (Piece * len(pieces))(*pieces)
    return lib.bench_http(array, ctypes.c_size_t(len(pieces)), ctypes.c_uint64(rounds), ctypes.byref(seen)) / rounds, seen


class Keep:
    """Keeps what a consumer of messages needs."""

    def on_message_begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, data: bytes) -> None:
        self.body.append(data)


def llhttp(asked: list[bytes], answered: list[bytes], rounds: int, keep: type) -> float:
    """Nanoseconds a round for both directions."""
    both = (httptools.HttpRequestParser(keep()), asked), (httptools.HttpResponseParser(keep()), answered)
    start = time.perf_counter_ns()
    for _ in range(rounds):
        for parser, pieces in both:
            for p in pieces:
                parser.feed_data(p)
    return (time.perf_counter_ns() - start) / rounds


def main() -> None:
    with tempfile.TemporaryDirectory() as d:
        lib = build(Path(d))
    asked = [REQUEST[i : i + 16384] for i in range(0, len(REQUEST), 16384)]
    for name, req, resp, rounds, events in [
        ("request of 80 KB in pieces of 16 KB", asked, ANSWERED, 20_000, 0),
        ("answer of 200 events in 202 pieces", [SMALL], ANSWER, 3_000, 200),
        ("small request with ten fields", [SMALL], ANSWERED, 200_000, 0),
    ]:
        mine, seen = min((ours(lib, req, resp, rounds) for _ in range(3)), key=lambda r: r[0])
        few = max(rounds // 5, 100)
        kept, bare = (min(llhttp(req, resp, few, k) for _ in range(3)) for k in (Keep, object))
        n, each = sum(map(len, req)) + sum(map(len, resp)), mine / (len(req) + len(resp))
        assert seen.messages == 2 * rounds and seen.events == events * rounds
        print(f"{name}: {mine / 1000:.2f} us, {n / mine:.2f} GB/s, {each:.0f} ns a piece")
        print(f"  httptools keeping heads and bodies {kept / 1000:.2f} us: ratio {kept / mine:.1f}")
        print(f"  httptools keeping nothing {bare / 1000:.2f} us: ratio {bare / mine:.1f}")


if __name__ == "__main__":
    main()

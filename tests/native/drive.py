"""Builds tests/native/http_driver.c with the C core and calls it: bytes in, events out.

Used by tests/unit/test_http_core.py and test_sse_core.py to compare the C core with other implementations. Needs a C compiler and
the headers of zlib, brotli and zstd, as the package's own build does.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = [*sorted((ROOT / "native/core").glob("http_*.c")), ROOT / "native/core/sse.c", ROOT / "native/core/coding.c"]
WHOLE = 1 << 30

_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)")
_PAIR = re.compile(rb' (header|trailer)="((?:[^"\\]|\\.)*)":"((?:[^"\\]|\\.)*)"')


def _unquote(s: bytes) -> bytes:
    def one(m: re.Match[bytes]) -> bytes:
        c = m[1]
        if c[:1] == b"x" and len(c) == 3:
            return bytes([int(c[1:], 16)])
        return {b"r": b"\r", b"n": b"\n", b"t": b"\t"}.get(c, c)

    return _ESCAPE.sub(one, s)


@dataclass
class Event:
    side: str  # "client" (flow 0), "server" (flow 1)
    kind: str  # request, response, head, sse, raw
    number: int = -1
    first_line: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    flags: set[str] = field(default_factory=set)
    request: bytes = b""
    event: bytes = b""


def _parse(line: bytes) -> Event:
    side, kind, rest = line.split(b" ", 2)
    e = Event(side.decode(), kind.decode())
    if kind == b"raw":
        m = _QUOTED.search(rest)
        assert m
        e.body = _unquote(m[1])
        return e
    number = re.match(rb"#(\d+)", rest)
    assert number
    e.number = int(number[1])
    strings = [_unquote(s) for s in _QUOTED.findall(rest)]
    if kind in (b"request", b"response"):
        e.first_line = strings[0]
        for what, name, value in _PAIR.findall(rest):
            (e.headers if what == b"header" else e.trailers).append((_unquote(name), _unquote(value)))
        rest = _PAIR.sub(b"", rest)
        m = re.search(rb' body="((?:[^"\\]|\\.)*)"', rest)
        assert m
        e.body = _unquote(m[1])
        e.flags = {f.decode() for f in re.findall(rb" ([A-Z_]+)(?= |$)", rest[m.end() :])}
        of = re.search(rb' of="((?:[^"\\]|\\.)*)"', rest)
        e.request = _unquote(of[1]) if of else b""
    elif kind == b"sse":
        e.event, e.body = strings[0], strings[1]
    return e


@dataclass
class SseEvent:
    event: bytes
    data: bytes
    id: bytes
    retry: int
    truncated: bool


class Core:
    """The C core, built once into `directory`."""

    def __init__(self, directory: Path) -> None:
        lib = directory / "http_driver.so"
        cc = os.environ.get("CC", "cc")
        sources = [str(ROOT / "tests/native/http_driver.c"), *map(str, CORE)]
        flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-shared", "-fPIC", "-w", f"-I{ROOT / 'native/core'}"]
        subprocess.run([cc, *flags, *sources, "-o", str(lib), "-lz", "-lbrotlidec", "-lzstd"], check=True)
        self._lib = ctypes.CDLL(str(lib))
        for name in ("as_drive_http", "as_drive_sse"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.as_drive_free.argtypes = [ctypes.c_void_p]

    def _text(self, pointer: int) -> list[bytes]:
        text = ctypes.string_at(pointer)
        self._lib.as_drive_free(pointer)
        return text.splitlines()

    def http(self, *ops: tuple[str, str, bytes | int], cut: int = WHOLE, keep_sse_body: bool = False) -> list[Event]:
        """Runs ("feed"|"gap"|"eof", "client"|"server", bytes or length) operations; pieces of at most `cut` bytes."""
        script = b""
        for op, side, what in ops:
            code = {"feed": 0, "gap": 2, "eof": 4}[op] + (side == "server")
            data = what if isinstance(what, bytes) else b""
            script += struct.pack("<BI", code, len(data) if op == "feed" else int(what or 0)) + data
        n = ctypes.c_size_t(len(script))
        out = self._lib.as_drive_http(script, n, ctypes.c_size_t(cut), int(keep_sse_body))
        return [_parse(line) for line in self._text(out)]

    def sse(self, stream: bytes, cut: int = WHOLE) -> list[SseEvent]:
        """All events of a stream fed in pieces of at most `cut` bytes."""
        out = []
        lines = self._text(self._lib.as_drive_sse(stream, ctypes.c_size_t(len(stream)), ctypes.c_size_t(cut)))
        for line in lines:
            strings = [_unquote(s) for s in _QUOTED.findall(line)]
            rest = _QUOTED.sub(b"", line)
            retry = re.search(rb"retry=(\d+)", rest)
            out.append(
                SseEvent(
                    strings[0],
                    strings[1],
                    strings[2] if len(strings) > 2 else b"",
                    int(retry[1]) if retry else -1,
                    b"truncated" in rest,
                )
            )
        return out

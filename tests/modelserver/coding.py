"""Content codings (RFC 9110 section 8.4.1), streamed: what the model server applies to answers and takes off requests.

In: pieces of bytes. Out: coded bytes, flushed at the end of every piece, so that a reader can decode each piece when it arrives.
Codings: gzip, deflate (zlib format), rawdeflate (the header says deflate; some servers do that), br, zstd.
"""

from __future__ import annotations

import zlib
from typing import Any, Protocol

_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15, "rawdeflate": -15}
CODINGS = ("gzip", "deflate", "rawdeflate", "br", "zstd")


class Coder(Protocol):
    """Codes a stream piece by piece."""

    def feed(self, data: bytes) -> bytes:
        """Code `data` and flush: all of it can be decoded from what was given out so far."""

    def finish(self) -> bytes:
        """End the stream and give its last bytes."""


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._state = zlib.compressobj(6, zlib.DEFLATED, wbits)

    def feed(self, data: bytes) -> bytes:
        return self._state.compress(data) + self._state.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._state.flush()


class _Brotli:
    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped]

        self._state: Any = brotli.Compressor(quality=4)

    def feed(self, data: bytes) -> bytes:
        return bytes(self._state.process(data) + self._state.flush())

    def finish(self) -> bytes:
        return bytes(self._state.finish())


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        self._state = zstandard.ZstdCompressor(level=3).compressobj()

    def feed(self, data: bytes) -> bytes:
        return self._state.compress(data) + self._state.flush(self._block)

    def finish(self) -> bytes:
        return self._state.flush()


class _Chain:
    def __init__(self, coders: list[Coder]) -> None:
        self._coders = coders

    def feed(self, data: bytes) -> bytes:
        for coder in self._coders:
            data = coder.feed(data)
        return data

    def finish(self) -> bytes:
        data = b""
        for coder in self._coders:
            data = (coder.feed(data) if data else b"") + coder.finish()
        return data


def names(value: str) -> list[str]:
    """The codings in a Content-Encoding-like list, in the order in which they are applied."""
    return [name for name in (part.strip().lower() for part in value.split(",")) if name not in ("", "identity")]


def coder(value: str) -> Coder | None:
    """A coder for a list like `gzip` or `deflate, br`; None for no coding. ValueError for an unknown name."""
    coders: list[Coder] = []
    for name in names(value):
        if name in _WBITS:
            coders.append(_Zlib(_WBITS[name]))
        elif name == "br":
            coders.append(_Brotli())
        elif name == "zstd":
            coders.append(_Zstd())
        else:
            raise ValueError(f"unknown content coding {name!r}")
    return _Chain(coders) if coders else None


def header(value: str) -> str:
    """The Content-Encoding field for a list of our names."""
    return ", ".join("deflate" if name == "rawdeflate" else name for name in names(value))


def decode(body: bytes, value: str) -> bytes:
    """Take the codings of a Content-Encoding list off a whole body. Raises what the libraries raise for bad data."""
    for name in reversed(names(value)):
        if name in _WBITS:
            body = zlib.decompressobj(_WBITS[name]).decompress(body)
        elif name == "br":
            import brotli

            body = bytes(brotli.decompress(body))
        elif name == "zstd":
            import zstandard

            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        else:
            raise ValueError(f"unknown content coding {name!r}")
    return body

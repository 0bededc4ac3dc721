"""HTTP/1.1 on one connection of the model server: reads requests, writes answers, each byte through the journal.

`Wire` reads whole requests (Content-Length or chunked, `Expect: 100-continue`, pipelined ones from its buffer) and sends bytes;
`Answer` frames one response. `Gone` is raised when the client has left, `BadRequest` for what is no HTTP.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable
from typing import NamedTuple

from . import coding
from .journal import Writer

MAX_HEAD = 1 << 20
MAX_BODY = 256 << 20
_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    413: "Content Too Large",
    529: "Overloaded",
}


class Gone(Exception):  # noqa: N818 - the usual end of a connection, no error
    """The client has closed, or does not take our bytes any more."""


class BadRequest(Exception):  # noqa: N818
    """The client's bytes are no HTTP/1.1 request."""


class Request(NamedTuple):
    """One whole request; header names in lower case, the body without its transfer coding but with its content codings."""

    method: str
    target: str
    version: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may stay open after the answer."""
        options = self.headers.get("connection", "").lower()
        return "close" not in options and (self.version == "HTTP/1.1" or "keep-alive" in options)


class Wire:
    """Buffered reading and journalled writing on a connected socket (plain or TLS, blocking, with a timeout)."""

    def __init__(self, sock: socket.socket, journal: Writer) -> None:
        self.sock = sock
        self._journal = journal
        self._buffer = bytearray()
        self._sent = 0

    # ---- reading ----

    def _fill(self) -> None:
        try:
            data = self.sock.recv(65536)
        except (OSError, ValueError) as error:  # ValueError: read on a socket that was shut down
            raise Gone(_words(error)) from error
        if not data:
            raise Gone("" if not self._buffer else "closed within a request")
        self._journal.received(data)
        self._buffer += data

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _line(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_HEAD:
                raise BadRequest("line too long")
            self._fill()
        return self._take(end + 1).rstrip(b"\r\n")

    def _fields(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        while line := self._line():
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name.strip():
                raise BadRequest(f"no field: {line[:80]!r}")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    def request(self) -> Request:
        """The next request, waiting for it."""
        line = self._line()
        if not line:  # RFC 9112 2.2: an empty line before a request
            line = self._line()
        words = line.decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequest(f"no request line: {line[:80]!r}")
        headers = self._fields()
        self._journal.request()
        refused = headers.get("x-script", "") == "early-413"  # answered before the body has come, which is then read
        if refused:
            body = b'{"type":"error","error":{"type":"request_too_large","message":"too large"}}'
            answer = Answer(self, 413, {"Content-Type": "application/json"}, "length")
            answer.send([(0.0, body)])
        elif headers.get("expect", "").lower() == "100-continue" and not self._buffer:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._body(headers)
        return self.request() if refused else Request(words[0], words[1], words[2], headers, body)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = bytearray()
            while True:
                size_line = self._line().partition(b";")[0].strip()
                try:
                    size = int(size_line, 16)
                except ValueError:
                    raise BadRequest(f"no chunk size: {size_line[:80]!r}") from None
                if size == 0:
                    self._fields()  # trailers
                    return bytes(body)
                if len(body) + size > MAX_BODY:
                    raise BadRequest("body too large")
                body += self._take(size)
                if self._line():
                    raise BadRequest("no line end after a chunk")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            raise BadRequest(f"content-length {length[:40]!r}")
        return self._take(int(length))

    # ---- writing ----

    def write(self, data: bytes) -> None:
        """Send `data` with one call, or as many as it takes."""
        self._journal.sending(data)
        view = memoryview(data)
        while view:
            try:
                count = self.sock.send(view)
            except (OSError, ValueError) as error:
                self._journal.send_failed(self._sent)
                raise Gone(_words(error)) from error
            self._sent += count
            view = view[count:]

    def wait_gone(self, seconds: float) -> None:
        """Return when the client closes, sends something, or after `seconds`."""
        self.sock.settimeout(seconds)
        try:
            self._fill()
        except Gone:
            return


def _words(error: Exception) -> str:
    # A client that closes without close_notify is no error in HTTP/1.1 practice, but the journal says so.
    return "eof without close_notify" if isinstance(error, ssl.SSLEOFError) else f"{type(error).__name__}: {error}"


class Answer:
    """One response.

    `framing`: length, chunked, trailers (chunked with a trailer and an extension) or close; `content_coding`: as in
    `coding.coder`; `split`: send in writes of so many bytes, else the head and each piece with one call of their
    own (a length-framed answer whole with one).
    """

    def __init__(
        self,
        wire: Wire,
        status: int,
        headers: dict[str, str],
        framing: str,
        content_coding: str = "",
        split: int = 0,
        body_allowed: bool = True,
    ) -> None:
        self._wire, self._status, self._headers = wire, status, headers
        self._framing, self._split, self._body_allowed = framing, split, body_allowed
        self._coding, self._coder = content_coding, coding.coder(content_coding)
        self._held = b""

    def send(self, pieces: Iterable[tuple[float, bytes]], *, finish: bool = True) -> None:
        """Send the head and (seconds to wait before it, bytes) pieces. Without `finish` the body is left without its end."""
        if self._framing == "length":
            whole = b"".join(self._coded(piece) for _, piece in pieces) + (self._coder.finish() if self._coder else b"")
            self._out(self._head(len(whole)) + (whole if self._body_allowed else b""))
        else:
            self._out(self._head(None))
            if not self._body_allowed:
                return
            for delay, piece in pieces:
                if delay:
                    self._flush()
                    time.sleep(delay)
                self._framed(self._coded(piece))
            if finish:
                self._framed(self._coder.finish() if self._coder else b"")
                if self._framing == "chunked":
                    self._out(b"0\r\n\r\n")
                elif self._framing == "trailers":
                    self._out(b"0;last\r\nX-Checked: yes\r\n\r\n")
        self._flush()

    def _head(self, length: int | None) -> bytes:
        headers = dict(self._headers)
        if self._coder:
            headers["Content-Encoding"] = coding.header(self._coding)
        if length is not None:
            headers["Content-Length"] = str(length)
        elif self._framing == "close":
            headers["Connection"] = "close"
        else:
            headers["Transfer-Encoding"] = "chunked"
            if self._framing == "trailers":
                headers["Trailer"] = "X-Checked"
        lines = [f"HTTP/1.1 {self._status} {_REASONS.get(self._status, 'Error')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _coded(self, piece: bytes) -> bytes:
        return self._coder.feed(piece) if self._coder and piece else piece

    def _framed(self, data: bytes) -> None:
        if not data:
            return
        if self._framing == "close":
            self._out(data)
        else:
            extension = b";x=1" if self._framing == "trailers" else b""
            self._out(b"%x%s\r\n%s\r\n" % (len(data), extension, data))

    def _out(self, data: bytes) -> None:
        if not self._split:
            self._wire.write(data)
            return
        data = self._held + data
        whole = len(data) - len(data) % self._split
        for at in range(0, whole, self._split):
            self._wire.write(data[at : at + self._split])
        self._held = data[whole:]

    def _flush(self) -> None:
        if self._held:
            self._wire.write(self._held)
            self._held = b""

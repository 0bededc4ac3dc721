"""The model server itself: accepts, opens TLS, answers requests by script, journals. `__main__` starts it.

Paths: `POST /v1/messages`, `POST /v1/messages/count_tokens`, `POST /v1/chat/completions`, `POST /v1/responses`, `GET /v1/models`,
`HEAD|GET /`, `/echo` (answers with the request's body), `/bytes/N` (N bytes, each told by its place). Request headers
that choose: `x-script` (in place of the model's name; `early-413` refuses before the body has come), `x-coding`
(content coding of the answer), `x-framing` (length, chunked, trailers, close), `x-split`.
"""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import coding, scripts
from .formats import FORMATS, Call, Format
from .http import Answer, BadRequest, Gone, Request, Wire
from .journal import Writer

IDLE = 120.0  # seconds that a connection may be silent
_PATTERN = bytes(range(251))  # a prime, so that no power of two hides a shift


def pattern(count: int) -> bytes:
    """What `/bytes/N` answers."""
    return (_PATTERN * (count // len(_PATTERN) + 1))[:count]


class Server:
    """Listens on `address`; `context` None is plain HTTP. One thread per connection, at most `threads` at once."""

    def __init__(self, address: tuple[str, int], journal: Path, context: ssl.SSLContext | None, threads: int) -> None:
        self._context = context
        self._directory = journal
        self._numbers = itertools.count(1)
        self._calls = itertools.count(1)
        self._call_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="connection")
        self._listener = socket.create_server(address, backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._names: dict[int, str] = {}
        if context:
            context.sni_callback = self._note_name

    def _note_name(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        if name:
            self._names[threading.get_ident()] = name

    def serve(self) -> None:
        """Accept for ever."""
        while True:
            sock, peer = self._listener.accept()
            # made here, so that numbers are in order of accept and a connection is in the journal as soon as it exists
            journal = Writer(
                self._directory,
                next(self._numbers),
                peer=peer[:2],
                local=sock.getsockname()[:2],
                tls=self._context is not None,
            )
            self._pool.submit(self._connection, sock, journal)

    def _connection(self, sock: socket.socket, journal: Writer) -> None:
        error: str | None = "internal error"
        try:
            sock.settimeout(IDLE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context:
                sock = self._handshake(sock, journal)
            wire = Wire(sock, journal)
            try:
                while self._exchange(wire):
                    pass
                error = None
            except BadRequest as problem:
                error = str(problem)
                body = json.dumps({"error": error}).encode()
                Answer(wire, 400, {"Content-Type": "application/json", "Connection": "close"}, "length").send([(0.0, body)])
            self._leave(sock)
        except Gone as gone:
            error = str(gone) or None
        except (OSError, ssl.SSLError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        finally:
            # closed first: who sees `end_ns` knows that the socket is gone
            sock.close()
            journal.close(error)

    def _handshake(self, sock: socket.socket, journal: Writer) -> ssl.SSLSocket:
        assert self._context
        me = threading.get_ident()
        self._names.pop(me, None)
        opened = self._context.wrap_socket(sock, server_side=True)
        cipher = opened.cipher()
        journal.update(
            version=opened.version(),
            cipher=cipher[0] if cipher else None,
            sni=self._names.get(me),
            alpn=opened.selected_alpn_protocol(),
            resumed=opened.session_reused,
        )
        return opened

    @staticmethod
    def _leave(sock: socket.socket) -> None:
        """Our side ends: say so, then let the client finish, lest unread bytes turn into a reset."""
        sock.settimeout(2.0)
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock = sock.unwrap()
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except OSError:  # it has left already, or does not answer
            return
        finally:
            sock.close()

    def _exchange(self, wire: Wire) -> bool:
        """One request and its answer; whether the connection goes on."""
        request = wire.request()
        path = request.path
        if path in FORMATS and request.method == "POST":
            return self._model(wire, request, FORMATS[path])
        if path == "/echo":
            kind = request.headers.get("content-type", "application/octet-stream")
            return self._plain(wire, request, 200, request.body, kind)
        if path.startswith("/bytes/") and path[7:].isdigit():
            return self._plain(wire, request, 200, pattern(int(path[7:])), "application/octet-stream")
        if path == "/v1/messages/count_tokens":
            return self._json(wire, request, 200, {"input_tokens": max(8, len(request.body) // 4)})
        if path == "/v1/models":
            models = [{"type": "model", "object": "model", "id": f"script-{name}"} for name in ("text", "tool", "thinking")]
            return self._json(wire, request, 200, {"object": "list", "data": models, "has_more": False})
        if path == "/":
            return self._plain(wire, request, 200, b"agentsight model server\n", "text/plain")
        return self._json(wire, request, 404, {"type": "error", "error": {"type": "not_found_error", "message": path}})

    def _json(self, wire: Wire, request: Request, status: int, body: dict[str, Any], **headers: str) -> bool:
        return self._plain(wire, request, status, json.dumps(body).encode(), "application/json", **headers)

    def _plain(self, wire: Wire, request: Request, status: int, body: bytes, kind: str, **headers: str) -> bool:
        framing = request.headers.get("x-framing", "length")
        answer = Answer(
            wire,
            status,
            {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}},
            framing,
            request.headers.get("x-coding", ""),
            int(request.headers.get("x-split", "0")),
            request.method != "HEAD",
        )
        answer.send((0.0, body[at : at + 65536]) for at in range(0, len(body), 65536))
        return request.keep_alive and framing != "close"

    def _model(self, wire: Wire, request: Request, style: Format) -> bool:
        with self._call_lock:
            number = next(self._calls)
        try:
            body = json.loads(coding.decode(request.body, request.headers.get("content-encoding", "")))
            script = request.headers.get("x-script")
            plan = scripts.plan(f"script-{script}" if script else str(body.get("model")), body)
        except (ValueError, AttributeError) as problem:
            error = {"type": "invalid_request_error", "message": str(problem)}
            return self._json(wire, request, 400, {"type": "error", "error": error})
        call = Call(body, len(request.body), number)
        names = {"request_id": f"req_{number:08d}"}
        if plan.error:
            extra = {"retry_after": "1"} if plan.error in (429, 529) else {}
            return self._json(wire, request, plan.error, style.error(plan.error, call), **names, **extra)
        streamed = bool(body.get("stream"))
        framing = request.headers.get("x-framing") or plan.framing or ("chunked" if streamed else "length")
        kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
        answer = Answer(
            wire,
            200,
            {"Content-Type": kind, "Cache-Control": "no-cache", "request-id": names["request_id"]},
            framing,
            request.headers.get("x-coding", plan.coding),
            int(request.headers.get("x-split", plan.split)),
        )
        pieces = _sse(plan, style, call) if streamed else _whole(plan, style, call)
        left_open = streamed and plan.fault in ("cut", "linger")
        answer.send(pieces, finish=not left_open)
        if left_open and plan.fault == "linger":
            wire.wait_gone(30.0)
        if left_open:
            raise Gone(f"script {plan.base}")  # dropped as it is: no end of the body, no close_notify
        return request.keep_alive and framing != "close"


def _text(value: Any, plan: scripts.Plan) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=plan.ascii, separators=(",", ":"))


def _sse(plan: scripts.Plan, style: Format, call: Call) -> Iterator[tuple[float, bytes]]:
    """Each SSE event as one piece. An empty payload is a comment, as servers send to keep a connection alive."""
    end, colon = plan.newline, ":" + plan.space
    for name, value in style.stream(plan, call):
        if value == "":
            yield plan.delay, f": keep-alive{end}{end}".encode()
        else:
            event = f"event{colon}{name}{end}" if name else ""
            yield plan.delay, f"{event}data{colon}{_text(value, plan)}{end}{end}".encode()


def _whole(plan: scripts.Plan, style: Format, call: Call) -> Iterator[tuple[float, bytes]]:
    yield plan.delay, _text(style.whole(plan, call), plan).encode()

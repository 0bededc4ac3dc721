"""A TLS server in our own process for the self-test, on 127.0.0.1 with a throw-away certificate. It keeps a journal."""

from __future__ import annotations

import socket
import ssl
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from agentsight.doctor import certificate

BODY = b"agentsight self-test\n" * 200
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
SECONDS = 10.0
REQUEST_MAX = 16384


@dataclass(frozen=True, slots=True)
class Served:
    """One connection: who (the path without its slash), from which port, and the plaintext bytes of both directions."""

    name: str
    port: int
    request: bytes
    answer: int


class Server:
    """Answers every request with the same text and closes. A context manager; `served` grows."""

    def __init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory(prefix="agentsight-") as directory:  # 0700, gone when the key is loaded
            pem = Path(directory) / "server.pem"
            pem.write_text(certificate.make())
            context.load_cert_chain(pem)
        self._context = context
        self.served: list[Served] = []
        self.problems: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._work, name="as-doctor", daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *args: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(SECONDS)

    def _work(self) -> None:
        while True:
            try:
                plain, peer = self._socket.accept()
            except OSError:
                return  # closed: we are done
            plain.settimeout(SECONDS)
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    self._serve(connection, int(peer[1]))
            except OSError as e:  # ssl.SSLError too: a client that does not like us
                self.problems.append(str(e))
                plain.close()

    def _serve(self, connection: ssl.SSLSocket, port: int) -> None:
        request = b""
        while b"\r\n\r\n" not in request and len(request) < REQUEST_MAX:
            part = connection.recv(4096)
            if not part:
                return
            request += part
        connection.sendall(ANSWER)
        words = request.split(b" ", 2)
        name = words[1].decode("latin-1").strip("/") if len(words) > 1 else ""
        self.served.append(Served(name, port, request, len(ANSWER)))
        try:
            connection.unwrap()
        except OSError:
            return  # it closed at once

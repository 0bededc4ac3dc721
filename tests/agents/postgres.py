"""A PostgreSQL server that gets no further than refusing a client, over TLS, and keeps what was said after the handshake.

Protocol 3.0 (PostgreSQL documentation, "Message Formats"): the client asks for TLS by an SSLRequest in the clear, is answered `S`,
and then sends its start-up message inside TLS. Usage: postgres.py CERTIFICATE DIRECTORY. Prints `ready PORT`; serves one client; the
files `c2s`, `s2c`, `peer` in DIRECTORY are the journal.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
from pathlib import Path

SSL_REQUEST = struct.pack("!II", 8, 80877103)


def main() -> None:
    certificate, directory = sys.argv[1], Path(sys.argv[2])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"ready {listener.getsockname()[1]}", flush=True)
    plain, peer = listener.accept()
    plain.settimeout(20)
    asked = plain.recv(8, socket.MSG_WAITALL)
    if asked != SSL_REQUEST:
        raise SystemExit(f"not an SSLRequest: {asked!r}")
    plain.sendall(b"S")
    opened = context.wrap_socket(plain, server_side=True)
    got = opened.recv(65536)
    fields = b"SFATAL\0C28000\0Mno user is let in here\0\0"
    answer = b"E" + struct.pack("!I", 4 + len(fields)) + fields
    opened.sendall(answer)
    while more := opened.recv(65536):
        got += more
    (directory / "c2s").write_bytes(got)
    (directory / "s2c").write_bytes(answer)
    (directory / "peer").write_text(str(peer[1]))


main()

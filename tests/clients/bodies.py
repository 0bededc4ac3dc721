"""Bodies of many sizes to /echo and back, on one connection, each sent with one write and with many.

Prints {"sizes", "writes", "sent", "received"} (bytes of bodies). `--how iov` (plain HTTP only) gathers with sendmsg.
"""

from __future__ import annotations

import socket
import ssl

from clientlib import connect, options, read_answer, report, request

SIZES = "1,2,100,4095,4096,16383,16384,16385,65536,262143,1000000,5242880"
STEPS = (1, 7, 1000, 16384, 3, 16385, 70000, 4096)  # sizes of the many writes, again and again


def content(size: int) -> bytes:
    """Bytes that tell their place: no two of the first 251 * 256 positions have the same neighbours."""
    row = bytes(range(251))
    return b"".join(row[:250] + bytes([at % 256]) for at in range(size // 251 + 1))[:size]


def send(sock: socket.socket, data: bytes, how: str) -> int:
    """Send it; how many calls it took."""
    if how == "one":
        sock.sendall(data)
        return 1
    if how == "iov":
        assert not isinstance(sock, ssl.SSLSocket)
        calls, view = 0, memoryview(data)
        while view:
            third = max(1, min(len(view), 300_000) // 3)
            view = view[sock.sendmsg([view[:third], view[third : 2 * third], view[2 * third : 300_000]]) :]
            calls += 1
        return calls
    calls = at = 0
    while at < len(data):
        step = STEPS[calls % len(STEPS)]
        sock.sendall(data[at : at + step])
        at, calls = at + step, calls + 1
    return calls


def main() -> None:
    wanted = options(__doc__, sizes=SIZES, how=("both", "one", "many", "iov"))
    sizes = [int(text) for text in wanted.sizes.split(",")]
    writes = sent = received = 0
    buffer = bytearray()
    with connect(wanted.url) as sock:
        for how in ("one", "many") if wanted.how == "both" else (wanted.how,):
            for size in sizes:
                data = content(size)
                writes += send(sock, request(wanted.url, "/echo", data), how)
                answer = read_answer(sock, buffer)
                assert answer == data, size
                sent, received = sent + len(data), received + len(answer)
    report(sizes=sizes, writes=writes, sent=sent, received=received)


main()

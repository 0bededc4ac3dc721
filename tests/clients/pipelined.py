"""Pipelining: several requests written before the first answer is read, on one connection.

Prints {"requests", "sent", "received"} (bytes of bodies). With `--together` all requests go with one write.
"""

from __future__ import annotations

from clientlib import connect, options, read_answer, report, request


def main() -> None:
    wanted = options(__doc__, count=2, size=1000, together=False)
    bodies = [(b"%d:" % number + b"p" * wanted.size)[: wanted.size] for number in range(wanted.count)]
    requests = [request(wanted.url, "/echo", data) for data in bodies]
    with connect(wanted.url) as sock:
        for data in [b"".join(requests)] if wanted.together else requests:
            sock.sendall(data)
        buffer = bytearray()
        answers = [read_answer(sock, buffer) for _ in bodies]
    assert answers == bodies
    assert not buffer
    report(requests=wanted.count, sent=sum(map(len, bodies)), received=sum(map(len, answers)))


main()

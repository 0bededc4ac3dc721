"""A connection that changes hands: who connects, who writes and who reads are not one process.

--how fork   the parent writes the request, its forked child reads the answer, with the TLS state that it inherited.
--how read   the socket is passed (SCM_RIGHTS) to another program, which receives every byte of the answer and hands it back;
             the TLS state stays here.
--how whole  the fresh socket is passed on; handshake, request and answer are the other program's.

Prints {"how", "other": pid of the other process, "received": bytes of the body}. HTTP and HTTPS.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys

from clientlib import address, connect, context, options, read_answer, report, request

SIZE = 300_000


class Relayed:
    """Just enough of a socket for `read_answer`: the bytes come from another process, TLS is undone here."""

    def __init__(self, channel: socket.socket, tls: ssl.SSLObject | None, incoming: ssl.MemoryBIO) -> None:
        self._channel, self._tls, self._incoming = channel, tls, incoming

    def recv(self, count: int) -> bytes:
        while self._tls:
            try:
                return self._tls.read(count)
            except ssl.SSLWantReadError:
                self._incoming.write(self._channel.recv(65536))
        return self._channel.recv(count)


def exchange(sock: socket.socket, url: str) -> int:
    """One request and its answer; the size of its body."""
    data = os.urandom(SIZE)
    sock.sendall(request(url, "/echo", data))
    answer = read_answer(sock, bytearray())
    assert answer == data
    return len(answer)


def by_fork(url: str) -> tuple[int, int]:
    sock = connect(url)
    data = b"f" * SIZE
    sock.sendall(request(url, "/echo", data))
    child = os.fork()
    if child == 0:
        os._exit(0 if read_answer(sock, bytearray()) == data else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    sock.close()
    return child, len(data)


def other_program(url: str, role: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, url, "--role", role, "--channel", str(theirs.fileno())]
    started = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    return started, ours


def by_passing_reader(url: str) -> tuple[int, int]:
    """Our TLS state works on memory; the socket is written here and read there."""
    sock = socket.create_connection(address(url), timeout=60)
    program, channel = other_program(url, "reader")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = None
    if url.startswith("https:"):
        tls = context().wrap_bio(incoming, outgoing, server_hostname=address(url)[0])
        while True:  # the handshake is done here, before the socket is passed on
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        sock.sendall(outgoing.read())
    socket.send_fds(channel, [b"x"], [sock.fileno()])
    assert channel.recv(1) == b"r"  # it has it, and from now on it alone reads
    data = b"r" * SIZE
    wire = request(url, "/echo", data)
    if tls:
        tls.write(wire)
        wire = outgoing.read()
    sock.sendall(wire)
    answer = read_answer(Relayed(channel, tls, incoming), bytearray())  # type: ignore[arg-type]
    assert answer == data
    sock.shutdown(socket.SHUT_WR)
    sock.close()
    while channel.recv(65536):  # tickets, close_notify
        pass
    channel.close()
    assert program.wait(60) == 0
    return program.pid, len(answer)


def by_passing_whole(url: str) -> tuple[int, int]:
    sock = socket.create_connection(address(url), timeout=60)
    program, channel = other_program(url, "whole")
    socket.send_fds(channel, [b"x"], [sock.fileno()])
    sock.close()
    received = int(channel.recv(100))
    channel.close()
    assert program.wait(60) == 0
    return program.pid, received


def play(url: str, role: str, channel: socket.socket) -> None:
    """The other program."""
    _, (fd, *_), _, _ = socket.recv_fds(channel, 1, 1)
    sock = socket.socket(fileno=fd)
    sock.settimeout(60)
    if role == "reader":
        channel.sendall(b"r")
        while data := sock.recv(65536):
            channel.sendall(data)
        sock.close()
    else:
        if url.startswith("https:"):
            sock = context().wrap_socket(sock, server_hostname=address(url)[0])
        with sock:
            received = exchange(sock, url)
        channel.sendall(str(received).encode())
    channel.close()


def main() -> None:
    wanted = options(__doc__, how=("fork", "read", "whole"), role="", channel=-1)
    if wanted.role:
        play(wanted.url, wanted.role, socket.socket(fileno=wanted.channel))
        return
    ways = {"fork": by_fork, "read": by_passing_reader, "whole": by_passing_whole}
    other, received = ways[wanted.how](wanted.url)
    report(how=wanted.how, other=other, received=received)


main()

"""The kernel programs and the ring on real calls: what the records say against what the other end saw.

Every I/O test runs both ways in: at sock_send_length/sock_recv_length, and at sys_exit.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import time
from typing import Any

import pytest
from kernel import ringtools as rt
from kernel.ringtools import (
    DATA,
    IO,
    PREAMBLE,
    PROC,
    READ,
    WRITE,
    Target,
    capturing,
    closed_ok,
    read_all,
    serving,
)

BLOB = random.Random(7).randbytes(6 << 20)


@pytest.fixture(params=["sock", "sys_exit"])
def hook(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def one_channel(run: rt.Run, pid: int) -> int:
    chans = {r.chan for r in run.of(rt.CONN) if r.tgid == pid}
    assert len(chans) == 1
    return chans.pop()


def talk(hook: str, script: str, answer: bytes = b"", **options: Any) -> tuple[rt.Run, int, bytes]:
    """A target that connects and does `script` with socket `s`; the server sends `answer`, then reads all."""

    def handle(s: socket.socket) -> bytes:
        s.sendall(answer)
        return read_all(s)

    with capturing(io_hook=hook, **options) as (capture, run), serving(handle) as (port, got):
        target = Target(capture, PREAMBLE + "s = connect(sys.argv[1])\n" + script, port)
        target.go()
    chan = one_channel(run, target.pid)
    return run, chan, got[0]


CALLS = {
    "write": "os.write(s.fileno(), b'w' * 3000)",
    "send": "s.send(b'x' * 70000)",
    "sendmsg": "s.sendmsg([b'one', b'', b'two' * 1000, b'three'])",
    "writev": "os.writev(s.fileno(), [b'%d,' % i for i in range(1000)])",
    "five-megabytes": "s.sendall(bytes(range(256)) * 20480)",
}


@pytest.mark.parametrize("call", CALLS)
def test_sends_arrive_whole(hook: str, call: str) -> None:
    run, chan, got = talk(hook, CALLS[call])
    data, holes = run.flow(chan, WRITE)
    assert not holes
    assert hashlib.sha256(data).digest() == hashlib.sha256(got).digest()
    (conn,) = run.of(rt.CONN)
    assert conn.cflags & (rt.FROM_START | rt.CLIENT) == rt.FROM_START | rt.CLIENT
    closed_ok(run, chan)
    assert run.counters["io_hook"] == hook


READS = {
    "read": "while os.read(s.fileno(), 777777): pass",
    "recv_into": "b = bytearray(3000000)\nwhile s.recv_into(b, 0, socket.MSG_WAITALL): pass",
    "readv": "b = [bytearray(97) for _ in range(500)]\nwhile os.readv(s.fileno(), b): pass",
    "recvmsg": "while s.recvmsg(100000)[0]: pass",
}


@pytest.mark.parametrize("call", READS)
def test_receives_arrive_whole(hook: str, call: str) -> None:
    blob = BLOB[:5300000] if call != "readv" else BLOB[:300000]

    def handle(s: socket.socket) -> None:
        s.sendall(blob)

    with capturing(io_hook=hook) as (capture, run), serving(handle) as (port, _):
        target = Target(capture, PREAMBLE + "s = connect(sys.argv[1])\n" + READS[call], port)
        target.go()
    chan = one_channel(run, target.pid)
    data, holes = run.flow(chan, READ)
    assert data == blob and not holes
    closed_ok(run, chan)


def test_peek_is_not_counted(hook: str) -> None:
    run, chan, _ = talk(
        hook,
        "s.recv(5, socket.MSG_PEEK); s.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL); s.recv(5, socket.MSG_WAITALL)",
        b"hello",
    )
    assert run.flow(chan, READ) == (b"hello", [])
    assert run.counters["kernel"]["peeks"] == 2


def test_truncated_reads_are_a_hole(hook: str) -> None:
    script = "s.recv(4, socket.MSG_WAITALL); s.recv(6, socket.MSG_TRUNC | socket.MSG_WAITALL); s.recv(5, socket.MSG_WAITALL)"
    run, chan, _ = talk(hook, script, b"head......tail!")
    assert run.flow(chan, READ) == (b"head" + bytes(6) + b"tail!", [(4, 6, rt.TRUNC)])


def test_splice_is_a_hole_at_its_place(hook: str) -> None:
    script = """
s.recv(10, socket.MSG_WAITALL)
r, w = os.pipe()
n = 0
while n < 5000:
    n += os.splice(s.fileno(), w, 5000 - n)
print(len(os.read(r, 5000)))
s.recv(10, socket.MSG_WAITALL)
s.send(b"before")
f = os.open(sys.executable, os.O_RDONLY)
os.sendfile(s.fileno(), f, 0, 9000)
s.send(b"after")
"""
    run, chan, got = talk(hook, script, b"a" * 10 + b"b" * 5000 + b"c" * 10)
    data, holes = run.flow(chan, READ)
    assert data == b"a" * 10 + bytes(5000) + b"c" * 10
    assert [h[:2] for h in holes] == [(10, 5000)]
    data, holes = run.flow(chan, WRITE)
    assert sum(h[1] for h in holes) == 9000 and holes[0][0] == 6
    assert data == b"before" + bytes(9000) + b"after" and len(got) == len(data)
    assert {h[2] for h in holes} <= {rt.NO_BUFFER, rt.JUMP}


MMSG = """
libc = ctypes.CDLL(None, use_errno=True)
class Iov(ctypes.Structure): _fields_ = [("base", ctypes.c_char_p), ("len", ctypes.c_size_t)]
class Hdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(Iov)), ("iovlen", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int)]
class Mmsg(ctypes.Structure): _fields_ = [("hdr", Hdr), ("len", ctypes.c_uint)]
def messages(parts):
    v = (Mmsg * len(parts))()
    for m, segments in zip(v, parts):
        iov = (Iov * len(segments))(*[Iov(b, len(b)) for b in segments])
        m.hdr.iov, m.hdr.iovlen = iov, len(segments)
    return v
"""


def test_sendmmsg(hook: str) -> None:
    script = (
        MMSG
        + """
v = messages([[b"first"], [b"second-", b"in-two"], [b"third" * 2000]])
for _ in range(3):
    assert libc.sendmmsg(s.fileno(), v, 3, 0) == 3
"""
    )
    run, chan, got = talk(hook, script)
    assert run.flow(chan, WRITE) == (got, [])
    assert got == (b"first" + b"second-in-two" + b"third" * 2000) * 3


def test_recvmmsg(hook: str) -> None:
    script = (
        MMSG
        + """
bufs = [[ctypes.create_string_buffer(5)], [ctypes.create_string_buffer(7)]]
v = messages([[b"12345"], [b"1234567"]])
assert libc.recvmmsg(s.fileno(), v, 2, socket.MSG_WAITALL, None) == 2
"""
    )
    run, chan, _ = talk(hook, script, b"abcdeABCDEFG")
    assert run.flow(chan, READ) == (b"abcdeABCDEFG", [])


def test_dup_and_inheritance_keep_the_channel(hook: str) -> None:
    script = """
t = s.dup()
t.send(b"dup,")
if os.fork() == 0:
    s.send(b"child")
    os._exit(0)
os.wait()
s.send(b",parent")
"""
    run, chan, got = talk(hook, script)
    assert run.flow(chan, WRITE) == (got, []) and got == b"dup,child,parent"
    assert len({r.tgid for r in run.of(DATA, chan=chan)}) == 2


def test_io_of_others_is_not_seen(hook: str) -> None:
    with capturing(io_hook=hook) as (capture, run), serving(read_all) as (port, got):
        capture.add_target(1, IO)
        Target(None, PREAMBLE + "connect(sys.argv[1]).send(b'secret')", port).go()
    assert got == [b"secret"]
    assert not run.of(DATA, rt.CONN)
    assert run.counters["kernel"]["hits"] == 0


def test_ipv6_addresses(hook: str) -> None:
    script = "import socket\ns = socket.create_connection(('::1', int(sys.argv[1])))\ns.send(b'six')\nprint(s.getsockname()[1])"
    with capturing(io_hook=hook) as (capture, run), serving(read_all, socket.AF_INET6) as (port, _):
        target = Target(capture, script, port)
        own = int(target.go())
    (conn,) = run.of(rt.CONN)
    assert (conn.family, conn.sport, conn.dport) == (socket.AF_INET6, own, int(port))
    assert conn.saddr == conn.daddr == socket.inet_pton(socket.AF_INET6, "::1")
    assert conn.netns == os.stat("/proc/self/ns/net").st_ino


def wait_for(run: rt.Run, kind: int) -> rt.Record:
    deadline = time.monotonic() + 5
    while not run.of(kind):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return run.of(kind)[0]


def test_skip_and_resume(hook: str) -> None:
    script = """
s.send(b'one')
print('', flush=True)
sys.stdin.readline()
s.send(b'skipped')
print('', flush=True)
sys.stdin.readline()
s.send(b'two')
"""
    with capturing(io_hook=hook) as (capture, run), serving(read_all) as (port, _):
        target = Target(capture, PREAMBLE + "s = connect(sys.argv[1])\n" + script, port)
        target.begin()
        target.line()
        chan = wait_for(run, DATA).chan
        capture.skip_channel(chan)
        target.tell()
        target.line()
        capture.resume_channel(chan)
        target.tell()
        target.end()
    assert run.flow(chan, WRITE) == (b"one" + bytes(7) + b"two", [(3, 7, rt.SKIPPED)])
    assert closed_ok(run, chan).skipped_w == 7


SERVER = """
import socket, sys
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(5)
print(l.getsockname()[1], flush=True)
s, _ = l.accept()
got = b""
while len(got) < 300000:
    got += s.recv(100000)
s.sendall(b"answer" * 1000)
s.close()
"""


@pytest.mark.parametrize("mirror", [True, False])
def test_both_ends_tracked(hook: str, mirror: bool) -> None:
    with capturing(io_hook=hook, mirror=mirror) as (capture, run):
        server = Target(capture, SERVER)
        server.begin()
        port = server.line()
        client = Target(
            capture,
            PREAMBLE
            + "s = connect(sys.argv[1])\ns.sendall(b'request' * 42858)\nn = 1\nwhile n: n = len(s.recv(4096))",
            port,
        )
        client.go()
        server.end()
        time.sleep(0.1)
    conns = {r.tgid: r for r in run.of(rt.CONN)}
    c, s = conns[client.pid], conns[server.pid]
    assert (c.sport, c.dport, c.tx_base, c.rx_base) == (s.dport, s.sport, s.rx_base, s.tx_base)
    assert c.cflags & rt.CLIENT and s.cflags & rt.SERVER and s.cflags & c.cflags & rt.FROM_START
    assert run.flow(c.chan, WRITE) == (b"request" * 42858, [])
    assert run.flow(s.chan, WRITE) == (b"answer" * 1000, [])
    at_client, at_server = closed_ok(run, c.chan), closed_ok(run, s.chan)
    assert at_client.seen_w == at_server.seen_r and at_client.seen_r == at_server.seen_w == 6000
    if mirror:
        # a receiver may be told before its sender's first call is: such bytes are copied at both ends
        assert at_server.mirrored_r + at_server.copied_r == at_server.seen_r and at_server.mirrored_r
        assert at_client.mirrored_r + at_client.copied_r == 6000
    else:
        assert run.flow(s.chan, READ)[0] == b"request" * 42858
        assert run.flow(c.chan, READ)[0] == b"answer" * 1000


def test_peer_that_uses_sendfile_is_copied_at_the_receiver(hook: str) -> None:
    server = SERVER.replace(
        's.sendall(b"answer" * 1000)',
        """
import os, time
f = os.memfd_create("x"); os.write(f, b"file" * 1000)
s.sendall(b"head"); time.sleep(0.1)
os.sendfile(s.fileno(), f, 0, 2000); time.sleep(0.1)
os.sendfile(s.fileno(), f, 2000, 2000)
""",
    )
    with capturing(io_hook=hook) as (capture, run):
        peer = Target(capture, server)
        peer.begin()
        port = peer.line()
        client = Target(
            capture,
            PREAMBLE
            + "import time\ns = connect(sys.argv[1])\ns.sendall(b'r' * 300000)\nwhile s.recv(9999): time.sleep(0.15)",
            port,
        )
        client.go()
        peer.end()
    chan = next(r.chan for r in run.of(rt.CONN) if r.tgid == client.pid)
    got = b"".join(r.data for r in sorted(run.of(DATA, chan=chan, dir=READ), key=lambda r: r.off))
    if hook == "sock":  # at sys_exit a sendfile is first noticed by the next call of its kind, or never
        assert got == b"file" * 1000


def test_joined_in_the_middle(hook: str) -> None:
    script = """
s.send(b'before')
s.recv(4)
print('', flush=True)
sys.stdin.readline()
s.send(b'seen')
s.recv(5)
s.send(b'too')
"""

    def handle(s: socket.socket) -> bytes:
        s.sendall(b"head")
        assert s.recv(6, socket.MSG_WAITALL) == b"before"
        assert s.recv(4, socket.MSG_WAITALL) == b"seen"
        s.sendall(b"later")
        return read_all(s)

    with capturing(io_hook=hook) as (capture, run), serving(handle) as (port, _):
        target = Target(None, PREAMBLE + "s = connect(sys.argv[1])\n" + script, port)
        target.begin()
        target.line()
        capture.add_target(target.pid, IO | PROC)
        target.tell()
        target.end()
    (conn,) = run.of(rt.CONN)
    assert not conn.cflags & rt.FROM_START
    assert run.flow(conn.chan, WRITE) == (b"seentoo", [])
    assert run.flow(conn.chan, READ) == (b"later", [])
    closed_ok(run, conn.chan)


def test_a_full_ring_loses_bytes_at_known_places_and_no_life(hook: str) -> None:
    """Nobody reads: the arena fills, then the ring. What is lost is counted; process records still find room."""
    from agentsight._native.ringbuf import Capture

    from agentsight import _native

    capture = Capture(obj=_native.bpf_object(), io_hook=hook, ring_bytes=1 << 18, arena_bytes=1 << 20)
    run = rt.Run()
    capture.start()
    script = """
import os
s.sendall(b'0123456789abcdef' * 500000)
for _ in range(20):
  if not os.fork(): os._exit(7)
  os.wait()
"""
    with serving(read_all) as (port, got):
        target = Target(capture, PREAMBLE + "s = connect(sys.argv[1])\n" + script, port)
        target.go()
    capture.stop()
    while (batch := capture.read(0)) is not None:
        run.records.extend(rt.parse(batch))
    assert capture.closed and len(got[0]) == 8000000
    counters = capture.counters()
    lost = counters["drops"]["data"]["bytes"]
    assert lost > 4000000 and counters["ring_peak"] <= 1 << 18
    assert counters["arena_peak"] <= 2 << 20  # the bound, our own records, and one ring at the end
    (close,) = run.of(rt.CLOSE)
    assert close.seen_w == 8000000 and close.dropped_w == lost and close.copied_w == 8000000 - lost
    for r in run.of(DATA, dir=WRITE):
        assert r.data == got[0][r.off : r.off + r.cap]
    assert len(run.of(rt.FORK)) == 20 and len(run.of(rt.EXIT)) == 21
    assert {name for name, d in counters["drops"].items() if d["records"]} == {"data"}
    assert run.of(rt.DROPS)[-1].b0 == lost

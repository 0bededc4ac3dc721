"""For tests of the ring: parses records as bpf/agentsight.h lays them out, and runs small programs as targets of a Capture."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agentsight._native.ringbuf import Capture

from agentsight import _native

CONN, CLOSE, DATA, STDIO, SECRET, FORK, EXEC, EXEC_ARGS, EXIT = range(1, 10)
CLOCK, TICK, DROPS, NOTE = 65, 66, 67, 68
READ, WRITE = 0, 1
IO, ST, PROC, FOLLOW = 1, 2, 4, 8
NO_BUFFER, TRUNC, SKIPPED, JUMP = 1, 4, 7, 9
FROM_START, CLIENT, SERVER = 1, 2, 4
ANY = 15  # AS_R_NONE
OPENSSL = (
    1 | 1 << 8 | ANY << 12 | 2 << 16 | 3 << 20 | 0 << 24 | ANY << 28
)  # label rsi, secret rdx, its length rcx, rdi


@dataclass
class Record:
    kind: int
    flags: int
    ts: int
    tgid: int
    tid: int
    body: bytes  # behind the header
    f: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.f[name]
        except KeyError:
            raise AttributeError(name) from None


LAYOUT: dict[int, tuple[str, str]] = {
    CONN: ("<QIHHHHIII16s16s", "chan netns family cflags sport dport tx_base rx_base uid saddr daddr"),
    CLOSE: (
        "<Q12QI2BH",
        "chan seen_r seen_w copied_r copied_w mirrored_r mirrored_w skipped_r skipped_w holes_r holes_w dropped_r dropped_w "
        "err cls_r cls_w cflags",
    ),
    DATA: ("<QQIIBBHI", "chan off cap real dir hole nr uid"),
    STDIO: ("<QIiQIIBBHI", "ino dev fd off cap real dir obj nr uid"),
    SECRET: ("<QBBBBI32s48s64s", "arg1 stack label_len secret_len sflags uid random label secret"),
    FORK: ("<IIQ16s", "child uid start comm"),
    EXEC: (
        "<IIIIQQIHHII16s",
        "ppid uid gid args_len start cgroup netns name_len cwd_len args_cap ns_pid comm",
    ),
    EXEC_ARGS: ("<II", "off cap"),
    EXIT: ("<IIIIQ16s", "ppid uid status maxrss start comm"),
    CLOCK: ("<Q", "wall"),
    DROPS: ("<16Q", " ".join(f"r{i} b{i}" for i in range(8))),
    NOTE: ("<II", "n pad"),
}


def parse(data: Any) -> Iterator[Record]:
    """The records of one batch; every length must fit."""
    view = memoryview(data)
    at = 0
    while at < len(view):
        n, kind, flags, ts, tgid, tid = struct.unpack_from("<IHHQII", view, at)
        assert n >= 24 and n % 8 == 0 and at + n <= len(view)
        r = Record(kind, flags, ts, tgid, tid, bytes(view[at + 24 : at + n]))
        if kind in LAYOUT:
            fmt, names = LAYOUT[kind]
            r.f.update(zip(names.split(), struct.unpack_from(fmt, r.body), strict=True))
            rest = r.body[struct.calcsize(fmt) :]
            r.f["data"] = (
                rest[: r.f["cap"]] if "cap" in r.f else rest
            )  # an exec has three parts in it, and no "cap"
            if "comm" in r.f:
                r.f["comm"] = r.f["comm"].rstrip(b"\0").decode()
        yield r
        at += n


@dataclass
class Run:
    """What one run has brought."""

    records: list[Record] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)
    stop_seconds: float = 0.0

    def of(self, *kinds: int, **where: Any) -> list[Record]:
        return [
            r for r in self.records if r.kind in kinds and all(getattr(r, k) == v for k, v in where.items())
        ]

    def flow(self, chan: int, direction: int) -> tuple[bytes, list[tuple[int, int, int]]]:
        """The bytes of one direction, holes as zeros, and the holes: (offset, length, reason). No gap is accepted."""
        out = bytearray()
        holes = []
        for r in sorted(self.of(DATA, chan=chan, dir=direction), key=lambda r: (r.off, r.real)):
            assert r.off == len(out), f"gap at {len(out)}, next record at {r.off}"
            out += r.data
            if r.real > r.cap:
                holes.append((r.off + r.cap, r.real - r.cap, r.hole))
                out += bytes(r.real - r.cap)
        return bytes(out), holes


@contextlib.contextmanager
def capturing(**options: Any) -> Iterator[tuple[Capture, Run]]:
    """A started capture; when the block ends it is stopped and its records are in the Run."""
    capture = Capture(obj=_native.bpf_object(), **options)
    run = Run()
    done = threading.Event()

    def read() -> None:
        while True:
            batch = capture.read(0.05)
            if batch is not None:
                run.records.extend(parse(batch))
            elif done.is_set() and capture.closed:
                return

    reader = threading.Thread(target=read)
    capture.start()
    reader.start()
    try:
        yield capture, run
    finally:
        time.sleep(0.05)
        begin = time.monotonic()
        capture.stop()
        run.stop_seconds = time.monotonic() - begin
        done.set()
        reader.join(10)
        run.counters = dict(capture.counters())


def closed_ok(run: Run, chan: int) -> Any:
    """The one CLOSE of a channel, whose counts must be those of its records."""
    (close,) = run.of(CLOSE, chan=chan)
    for d, n in (("r", READ), ("w", WRITE)):
        told = sum(r.cap for r in run.of(DATA, chan=chan, dir=n))
        assert getattr(close, f"copied_{d}") == told
        parts = sum(getattr(close, f"{k}_{d}") for k in ("copied", "mirrored", "skipped", "holes", "dropped"))
        assert getattr(close, f"seen_{d}") == parts
    return close


class Target:
    """A Python program that waits for `go` before it does `script`; a target from its first line on."""

    def __init__(
        self, capture: Capture | None, script: str, *args: str, flags: int = IO | PROC | FOLLOW, **more: Any
    ) -> None:
        ready, write = os.pipe()  # Popen can return before the exec is told
        code = f"import os, sys\nos.write({write}, b'.')\nos.close({write})\nsys.stdin.readline()\n" + script
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[write],
            **more,
        )
        os.close(write)
        assert os.read(ready, 1) == b"."
        os.close(ready)
        self.pid = self.process.pid
        if capture is not None:
            capture.add_target(self.pid, flags)

    def begin(self) -> None:
        """Let it run; `line` reads what it prints, `tell` answers."""
        self.tell()

    def tell(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self, timeout: float = 30) -> None:
        """Wait for its end, which must be a good one."""
        self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0

    def go(self, timeout: float = 60) -> str:
        out, _ = self.process.communicate("go\n", timeout)
        assert self.process.returncode == 0, out
        return out


@contextlib.contextmanager
def serving(
    handle: Callable[[socket.socket], Any], family: int = socket.AF_INET
) -> Iterator[tuple[str, list[Any]]]:
    """One connection to a server in this process, which no capture sees. Gives its port and what `handle` returned."""
    listener = socket.socket(family)
    listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    listener.listen(5)
    results: list[Any] = []

    def work() -> None:
        s, _ = listener.accept()
        with s:
            results.append(handle(s))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield str(listener.getsockname()[1]), results
        thread.join(30)
        assert not thread.is_alive()
    finally:
        listener.close()


def read_all(s: socket.socket) -> bytes:
    """Everything to the peer's end."""
    parts = []
    while part := s.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


PREAMBLE = """
import ctypes, os, socket, struct
def connect(port):
    s = socket.create_connection(("127.0.0.1", int(port)))
    return s
"""

"""The exec gate on real programs: who is held, for how long, and that everybody runs on whatever happens to the gate."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel.harness import wait_for

from agentsight.capture import gate as gate_module
from agentsight.capture import procfs
from agentsight.capture.gate import Gate, available, helper, mounts, name_of

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
IO, PROCESS = 1, 4
NR_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]


class Looker:
    """What a gate calls: keeps what it was asked about the test's own programs (the host has others), and how the process was."""

    def __init__(self, place: Path, seconds: float = 0.0) -> None:
        self.place = place
        self.seconds = seconds
        self.asked: list[tuple[str, int]] = []
        self.waited: list[bool] = []  # whether the process was still its old program when the look ended
        self.ended: list[str] = []

    def __call__(self, fd: int, pid: int) -> None:
        name = name_of(fd)
        if not name.startswith(str(self.place)):
            return
        time.sleep(self.seconds)
        self.asked.append((name, pid))
        self.waited.append(procfs.exe(pid) != name and procfs.proc(pid) is not None)

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


@contextlib.contextmanager
def gating(looker: Callable[[int, int], object], **options: object) -> Iterator[Gate]:
    gate = Gate(looker, on_end=getattr(looker, "ended", []).append, **options)  # type: ignore[arg-type]
    gate.start()
    try:
        yield gate
    finally:
        gate.stop()
    assert not gate.running


@pytest.fixture
def new(tmp_path: Path) -> Callable[..., str]:
    """Copies a program to a file that nobody has ever executed."""
    count = iter(range(10**6))

    def copy(program: str = "true") -> str:
        found = shutil.which(program)
        assert found is not None
        return shutil.copy(found, str(tmp_path / f"{program}-{next(count)}"))

    return copy


def took(*argv: str) -> float:
    """Seconds that a command took, started by a shell that is no child of the gate's user alone."""
    begin = time.monotonic()
    done = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *argv], timeout=30, stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    return time.monotonic() - begin


def test_each_new_binary_is_held_until_it_was_looked_at(new: Callable[..., str], tmp_path: Path) -> None:
    looker = Looker(tmp_path, 0.05)
    with gating(looker) as gate:
        for _ in range(50):
            path = new("openssl")
            assert took(path, "version") >= 0.05
            assert looker.waited[looker.names().index(path)]
            took(path, "version")
            assert looker.names().count(path) == 1  # known now
        counters = gate.counters()
    assert len(looker.asked) == 50
    assert counters["late"] == counters["busy"] == counters["paused"] == 0
    assert not looker.ended and not gate.problems


def test_a_file_is_asked_about_again_when_it_has_changed(new: Callable[..., str], tmp_path: Path) -> None:
    looker, path = Looker(tmp_path), new()
    with gating(looker):
        took(path)
        took(path)
        assert looker.names().count(path) == 1
        with open(path, "ab") as f:
            f.write(b"x")
        took(path)
        took(path)
        assert looker.names().count(path) == 2
        os.unlink(path)
        shutil.copy(shutil.which("true") or "", path)
        took(path)
        assert looker.names().count(path) == 3


def test_scripts_pass_and_their_interpreter_is_asked_about(new: Callable[..., str], tmp_path: Path) -> None:
    looker, shell = Looker(tmp_path), new("sh")
    script = tmp_path / "script"
    script.write_text(f"#!{shell}\nexit 0\n")
    script.chmod(0o755)
    with gating(looker) as gate:
        took(str(script))
        assert str(script) not in looker.names() and shell in looker.names()
        assert gate.counters()["scripts"] >= 1


class Map:
    """A map like the kernel side's `targets`."""

    def __init__(self) -> None:
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self.fd = self._bpf(0, struct.pack("=IIIII", 1, 4, 8, 64, 0))

    def _bpf(self, command: int, attributes: bytes) -> int:
        room = ctypes.create_string_buffer(attributes.ljust(128, b"\0"))
        result = self._syscall(NR_BPF, command, room, 128)
        assert result >= 0, os.strerror(ctypes.get_errno())
        return int(result)

    def add(self, pid: int, flags: int) -> None:
        key, value = ctypes.create_string_buffer(struct.pack("=I", pid)), ctypes.create_string_buffer(struct.pack("=II", flags, pid))
        self._bpf(2, struct.pack("=IIQQQ", self.fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0))


@pytest.mark.parametrize(("flags", "held"), [(IO, True), (PROCESS, False), (None, False)])
def test_only_tracked_processes_are_held(new: Callable[..., str], tmp_path: Path, flags: int | None, held: bool) -> None:
    looker, path, targets = Looker(tmp_path, 0.2), new(), Map()
    with gating(looker, targets=targets.fd) as gate:
        with subprocess.Popen(["sh", "-c", 'read x; exec "$0"', path], stdin=subprocess.PIPE) as process:
            if flags is not None:
                targets.add(process.pid, flags)
            begin = time.monotonic()
            process.communicate(b"go\n", 20)
            seconds = time.monotonic() - begin
        counters = gate.counters()
    os.close(targets.fd)
    assert (seconds >= 0.2) == held == (path in looker.names())
    if not held:
        assert counters["asked"] == 0 and counters["others"] >= 2


JOBS = """
set -m
$1; echo "status $?"
$2 30 & sleep 0.2; kill -TERM %1; wait %1; echo "after TERM $?"
$3 30 & sleep 0.2; kill -STOP %1; sleep 0.2; jobs | sed 's/ 30.*//'; kill -KILL %1; sleep 0.2; echo killed
$4 | cat; echo "pipe ${PIPESTATUS[*]}"
(trap 'echo child died' CHLD; $5; true)
echo "pgrp $(ps -o pgid= -p $$ | tr -d ' ') $(ps -o tpgid= -p $$ | tr -d ' ')" | sed "s/$$/self/"
"""


def test_a_shell_sees_nothing_of_it(new: Callable[..., str], tmp_path: Path) -> None:
    def run() -> str:
        argv = [new("false"), new("sleep"), new("sleep"), new("false"), new("true")]
        done = subprocess.run(
            ["bash", "-c", JOBS, "bash", *argv], capture_output=True, text=True, timeout=30, start_new_session=True
        )
        text = done.stdout + done.stderr
        for i, path in enumerate(argv):
            text = text.replace(path, f"program{i}")
        text = re.sub(r"line \d+: +\d+ ", "line N: ", text)
        return re.sub(r"[ \t]+", " ", text)

    without = run()
    looker = Looker(tmp_path, 0.05)
    with gating(looker):
        assert run() == without
    assert len(looker.asked) >= 5
    assert "status 1" in without and "after TERM 143" in without and "Killed" in without and "Stopped" in without


def test_the_deadline_ends_the_waiting_and_the_late_answer_still_counts(new: Callable[..., str], tmp_path: Path) -> None:
    looker, path = Looker(tmp_path), new()
    with gating(looker, deadline=0.3) as gate:
        took("true")
        looker.seconds = 0.8
        assert 0.3 <= took(path) < 0.7
        assert took(path) < 0.2  # not held twice while the answer is missing
        wait_for(lambda: path in looker.names())
        time.sleep(0.1)
        looker.seconds = 0.0
        took(path)
        counters = gate.counters()
        assert gate.running
    assert looker.names().count(path) == 1
    assert counters["late"] >= 2 and counters["held_max_ns"] < 0.5e9


def test_after_a_missed_deadline_nobody_is_held_and_silence_ends_the_gate(new: Callable[..., str], tmp_path: Path) -> None:
    release = threading.Event()
    looker = Looker(tmp_path)

    def never(fd: int, pid: int) -> None:
        if name_of(fd).startswith(str(tmp_path)):
            release.wait(20)

    with gating(never, deadline=0.2) as gate:
        gate._on_end = looker.ended.append
        begin = time.monotonic()
        assert took(new()) >= 0.2
        assert took(new()) < 0.2 and gate.running
        wait_for(lambda: gate.counters()["end"])
        assert 1.0 <= time.monotonic() - begin < 2.0
        assert took(new()) < 0.2
        release.set()
        wait_for(lambda: not gate.running)
        wait_for(lambda: looker.ended)
    assert looker.ended == ["the search in new programs took too long"]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    """Stand still without being stopped by a signal: as under a debugger."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    assert libc.ptrace(PTRACE_SEIZE, pid, None, None) == 0
    assert libc.ptrace(PTRACE_INTERRUPT, pid, None, None) == 0


@pytest.mark.parametrize("whom", ["gate_pid", "watchdog_pid"])
@pytest.mark.parametrize(("how", "why"), [(stop, "it was stopped by a signal"), (kill, "it was killed"), (freeze, "it hung")])
def test_everybody_runs_when_the_gate_is_hurt(
    new: Callable[..., str], tmp_path: Path, whom: str, how: Callable[[int], None], why: str
) -> None:
    looker = Looker(tmp_path)
    with gating(looker) as gate:
        took(new())
        waiting = subprocess.Popen(["sh", "-c", '"$0"; exit $?', new("true")])
        how(gate.counters()[whom])
        assert took(new()) < 2.0
        assert waiting.wait(2) == 0
        wait_for(lambda: not gate.running, 5)
        wait_for(lambda: looker.ended)
        assert took(new()) < 0.5
    if not (how is freeze and whom == "watchdog_pid"):  # a watchdog under a debugger counts as stopped
        assert looker.ended == [why]


def test_everybody_runs_when_gate_and_watchdog_are_stopped_together(new: Callable[..., str], tmp_path: Path) -> None:
    looker = Looker(tmp_path)
    with gating(looker) as gate:
        took(new())
        pids = gate.pids
        for pid in reversed(pids):  # the watchdog first: it would notice
            stop(pid)
        assert 0.5 < took(new()) < 3.0
        wait_for(lambda: looker.ended)
        assert not gate.running
    wait_for(lambda: not any(procfs.proc(pid) for pid in pids), 2)


PARENT = """
import sys, time
from agentsight.capture.gate import Gate, name_of
g = Gate(lambda fd, pid: time.sleep(60 if name_of(fd).startswith(sys.argv[1]) else 0), deadline=15.0)
g.start()
print(*g.pids, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def foreign_gate(place: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A gate whose parent never answers, about programs in `place`; in a process that may be hurt."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, [int(word) for word in process.stdout.readline().split()]
        finally:
            process.kill()


def test_everybody_runs_when_the_parent_is_killed(new: Callable[..., str], tmp_path: Path) -> None:
    path = new()
    with foreign_gate(tmp_path) as (parent, pids):
        waiting = subprocess.Popen(["sh", "-c", '"$0"; exit $?', path])
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)  # held
        parent.kill()
        assert waiting.wait(1) == 0
        wait_for(lambda: not any(procfs.proc(pid) for pid in pids), 3)
    assert took(path) < 0.5


def test_everybody_runs_while_the_parent_is_stopped(new: Callable[..., str], tmp_path: Path) -> None:
    path = new()
    with foreign_gate(tmp_path) as (parent, pids):
        waiting = subprocess.Popen(["sh", "-c", '"$0"; exit $?', path])
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        os.kill(parent.pid, signal.SIGSTOP)
        assert waiting.wait(1) == 0
        assert took(new()) < 0.5
        assert all(procfs.proc(pid) for pid in pids)  # it is ready for when the parent goes on
        os.kill(parent.pid, signal.SIGCONT)


def test_what_we_start_ourselves_is_not_held(new: Callable[..., str], tmp_path: Path) -> None:
    """Python may hold its own lock until the exec of its child is done: waiting for it would be a deadlock."""
    looker = Looker(tmp_path)
    with gating(looker, deadline=5.0):
        path = new()
        begin = time.monotonic()
        subprocess.run([path], check=True)
        assert time.monotonic() - begin < 1.0
        assert path not in looker.names()


def test_many_at_once(new: Callable[..., str], tmp_path: Path) -> None:
    looker, paths = Looker(tmp_path, 0.01), [new() for _ in range(16)]
    with gating(looker) as gate:
        script = 'for p in "$@"; do for i in 1 2 3 4; do "$p" & done; done; wait'
        subprocess.run(["sh", "-c", script, "sh", *paths], check=True, timeout=20)
        counters = gate.counters()
    assert sorted(name for name in looker.names() if name in paths) == sorted(paths)
    assert counters["late"] == counters["busy"] == 0
    assert counters["answered"] >= 16


def test_a_look_that_fails_holds_nobody(new: Callable[..., str]) -> None:
    def broken(fd: int, pid: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    path = new()
    with gating(broken) as gate:
        assert took(path) < 1.0
    assert any(path in problem and "broken disk" in problem for problem in gate.problems)


def test_what_is_mounted_later_is_watched(new: Callable[..., str], tmp_path: Path) -> None:
    looker, mount = Looker(tmp_path), tmp_path / "mount point"
    mount.mkdir()
    with gating(looker) as gate:
        subprocess.run(["mount", "-t", "tmpfs", "none", str(mount)], check=True)
        try:
            device = os.stat(mount).st_dev
            wait_for(lambda: device in gate.marked)
            path = shutil.copy(new(), mount / "program")
            took(str(path))
            assert str(path) in looker.names()
        finally:
            gate.stop()
            subprocess.run(["umount", str(mount)], check=True)


def test_nothing_is_left_open_or_running(new: Callable[..., str], tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    looker = Looker(tmp_path)
    with gating(looker) as gate:
        took(new())
        pids = gate.pids
        assert len(pids) == 2 and gate.counters()["locked"] == 1
        for pid in pids:
            resident = next(line for line in procfs.read(f"/proc/{pid}/status", 8192).splitlines() if line.startswith(b"VmRSS"))
            assert int(resident.split()[1]) < 4096  # KiB
    wait_for(lambda: not any(procfs.proc(pid) for pid in pids), 2)
    assert sorted(os.listdir("/proc/self/fd")) == before
    gate.stop()


def test_it_says_why_it_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert available() is None and os.access(helper(), os.X_OK)
    with monkeypatch.context() as m:
        m.setattr(procfs, "read", lambda path, limit: b"Name:\tx\nCapEff:\t%016x\n" % (1 << 1 | 1 << 39))
        assert available() == "it needs CAP_SYS_ADMIN"
        m.setattr(procfs, "read", lambda path, limit: b"Name:\tx\nCapEff:\t%016x\n" % (1 << 21))
        assert available() == "it needs CAP_DAC_READ_SEARCH"
    monkeypatch.setattr(gate_module, "helper", lambda: str(tmp_path / "none"))
    assert "install the package again" in (available() or "")


def test_which_mounts_are_watched() -> None:
    text = rb"""22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
28 27 254:0 /a /again rw - ext4 /dev/vda rw
30 27 0:30 / /with\040space\134 rw,nosuid - tmpfs none rw
31 27 0:31 / /no rw,noexec - tmpfs none rw
32 27 0:32 / /net rw - nfs4 host:/ rw
33 27 0:33 / /fuse rw - fuse.sshfs x rw
34 27 0:34 / /merged rw master:1 - overlay overlay rw
nonsense"""
    found = list(mounts(text))
    assert found == [(os.makedev(254, 0), "/"), (os.makedev(0, 30), "/with space\\"), (os.makedev(0, 34), "/merged")]

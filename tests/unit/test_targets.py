"""Targets, launching and attaching, against a fake kernel and this machine's own processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from unit.fakes import FakeKernel, execed, exited, forked

from agentsight.capture import launch, procfs, targets
from agentsight.capture.attach import Attacher
from agentsight.capture.launch import Child, LaunchError, programs, user_environment
from agentsight.capture.lifetime import Alive
from agentsight.capture.priority import Priority
from agentsight.capture.procfs import Proc
from agentsight.capture.rights import kernel_version
from agentsight.capture.targets import FOLLOW, IO, PROCESS, STDIO, Targets, flags_of
from agentsight.errors import TargetError
from agentsight.options import Options


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[bytes]]:
    """A shell with a child that sleeps."""
    process = subprocess.Popen(["sh", "-c", "sleep 60; true"])
    deadline = time.monotonic() + 5
    while not any(p.ppid == process.pid and p.comm == "sleep" for p in procfs.all_procs()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    for p in [p for p in procfs.all_procs() if p.ppid == process.pid]:
        os.kill(p.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def test_a_pid_brings_its_descendants(tree: subprocess.Popen[bytes]) -> None:
    kernel, wanted = FakeKernel(), Targets(Options(pids=(tree.pid,)))
    wanted.check()
    wanted.arm(kernel)
    added = [pid for pid, _ in kernel.of("target")]
    assert added[0] == tree.pid
    assert len(added) == 2
    assert wanted.pids == set(added)


def test_without_children_only_the_pid(tree: subprocess.Popen[bytes]) -> None:
    kernel = FakeKernel()
    Targets(Options(pids=(tree.pid,), children=False)).arm(kernel)
    assert kernel.of("target") == [(tree.pid, IO | PROCESS)]


def test_a_name_goes_to_the_kernel_before_proc_is_searched(tmp_path: Path) -> None:
    name = f"as_test_{os.getpid()}"
    script = tmp_path / f"{name}.py"
    script.write_text("import time; time.sleep(60)")
    process = subprocess.Popen([sys.executable, str(script)])
    try:
        kernel, wanted = FakeKernel(), Targets(Options(comms=(script.name, "no_such_program_x")))
        wanted.arm(kernel)
        assert kernel.calls[0][0] == "name"
        assert (process.pid, flags_of(Options())) in kernel.of("target")
        assert wanted.waiting == ["no_such_program_x"]
    finally:
        process.kill()
        process.wait()


def test_processes_that_appear_during_the_search_are_found() -> None:
    """Each look shows one generation more, as when forks go on meanwhile."""
    looks = iter([[Proc(10, 1, "a", 0, False)], [Proc(10, 1, "a", 0, False), Proc(11, 10, "b", 0, False)]])
    last = [Proc(10, 1, "a", 0, False), Proc(11, 10, "b", 0, False), Proc(12, 11, "c", 0, False)]
    kernel = FakeKernel()
    wanted = Targets(Options(comms=("none-at-all",)), processes=lambda: next(looks, last))
    wanted.arm(kernel, child=10)
    # the first look finds nothing new and ends the search unless the child's own children are there
    assert wanted.pids == {10}
    looks = iter([[Proc(10, 1, "a", 0, False), Proc(11, 10, "b", 0, False)]])
    wanted.arm(kernel, child=10)
    assert wanted.pids == {10, 11, 12}


def test_mode_0_tells_the_processes_of_everyone_else() -> None:
    kernel = FakeKernel()
    mine = [Proc(10, 1, "a", 0, False), Proc(11, 10, "b", 0, False)]
    looks = iter([[1, 2, 10, 11, 30], [1, 2, 10, 11, 30, 31]])
    last = [1, 2, 10, 11, 30, 31]
    targets_ = Targets(Options(mode=0, comms=("none-at-all",)), processes=lambda: mine, all_pids=lambda: next(looks, last))
    targets_.arm(kernel, child=10)
    assert {pid for pid, flags in kernel.of("target") if flags & IO} == {10, 11}
    assert {pid for pid, flags in kernel.of("target") if flags == PROCESS | FOLLOW} == {1, 2, 30, 31}


def test_we_are_never_our_own_target() -> None:
    me = procfs.proc(os.getpid())
    assert me is not None
    kernel = FakeKernel()
    Targets(Options(comms=tuple(sorted(targets.names_of(me.pid, me.comm))))).arm(kernel)
    assert os.getpid() not in [pid for pid, _ in kernel.of("target")]
    with pytest.raises(TargetError, match="itself"):
        Targets(Options(pids=(os.getpid(),))).check()


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for options, said in (
        (Options(pids=(ended.pid,)), f"no process {ended.pid}"),
        (Options(binary_path=str(tmp_path / "none")), "there is no file"),
        (Options(binary_path=str(tmp_path)), "no readable program"),
    ):
        with pytest.raises(TargetError, match=said) as e:
            Targets(options).check()
        assert "\n" not in str(e.value)


def test_flags() -> None:
    assert flags_of(Options()) == IO | PROCESS | FOLLOW
    assert flags_of(Options(ssl=False, stdio=True, children=False)) == STDIO | PROCESS


@pytest.mark.parametrize(
    ("args", "script"),
    [
        ([b"python3", b"/a/b.py"], "/a/b.py"),
        ([b"python3", b"-u", b"b.py", b"c"], "b.py"), ([b"python3", b"-c", b"x.py"], ""),
        ([b"node", b"--flag", b"cli.js"], "cli.js"), ([b"cat", b"x.py"], ""), ([], ""), ([b"-bash"], ""),
        ([b"sh", b"run"], "run"),
    ],
)  # fmt: skip
def test_the_script_of_an_interpreter(args: list[bytes], script: str) -> None:
    assert targets._script(args) == script


def test_proc_reads_bounded_and_never_fails() -> None:
    me = procfs.proc(os.getpid())
    assert me is not None
    assert (me.ppid, me.kernel) == (os.getppid(), False)
    assert procfs.proc(1 << 22) is None
    assert procfs.leader(1 << 22) == 0
    assert procfs.read("/no/such/file", 10) == b""
    assert len(procfs.read("/proc/self/maps", 100)) == 100
    assert procfs.ids(os.getpid())[0] == os.geteuid()
    assert os.fsencode(sys.argv[0]) in procfs.arguments(os.getpid()) or procfs.arguments(os.getpid())


# ---- launching


def ended(child: Child) -> int:
    child.go()
    child.wait()
    assert child.status is not None
    return child.status


def test_the_command_waits_until_it_is_let_go(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = Child(["touch", str(mark)])
    time.sleep(0.1)
    assert not mark.exists()
    assert ended(child) == 0
    assert mark.exists()


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -INT $$", 130)])
def test_exit_status_is_the_commands(script: str, status: int) -> None:
    child = Child(["sh", "-c", script])
    assert ended(child) == status
    assert child.signal == (status - 128 if status > 128 else 0)


def test_signals_have_their_defaults_in_the_command() -> None:
    """Python ignores SIGPIPE; a program that is started by us must not."""
    child = Child(
        [
            sys.executable,
            "-c",
            "import sys;m=[l for l in open('/proc/self/status') if l[:6]=='SigIgn'];sys.exit(m[0][-5:-1]!='1000')",
        ]
    )
    assert ended(child) == 0  # only Python's own SIGPIPE (13)
    assert ended(Child(["sh", "-c", "grep -q '^SigIgn:.*0000$' /proc/self/status"])) == 0


def test_a_cancelled_command_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = Child(["touch", str(mark)])
    child.cancel()
    child.cancel()
    assert not mark.exists()
    assert procfs.proc(child.pid) is None


def test_what_cannot_be_run_is_one_line_with_the_status_of_env(tmp_path: Path) -> None:
    for name, status in (("no_such_program_x", 127), (str(tmp_path / "none"), 127), ("", 127)):
        with pytest.raises(LaunchError) as e:
            Child([name])
        assert e.value.exit_code == status
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for mode, status in ((0o644, 126), (0o755, 126)):
        plain.chmod(mode)
        with pytest.raises(LaunchError) as e:
            Child([str(plain)]).go()
        assert e.value.exit_code == status
    gone = tmp_path / "gone"
    gone.write_text("#!/no/such/interpreter\n")
    gone.chmod(0o755)
    with pytest.raises(LaunchError) as e:
        Child([str(gone)]).go()
    assert e.value.exit_code == 127


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root, needs it")
def test_the_command_is_the_invoking_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for part in tmp_path.parents:
        if part.owner() == "root" and str(part) not in ("/", "/tmp"):
            part.chmod(0o755)
    monkeypatch.setenv("SUDO_UID", "65534")
    monkeypatch.setenv("SUDO_GID", "65534")
    out = tmp_path / "out"
    assert ended(Child(["sh", "-c", f"id -u > {out}; id -g >> {out}; id -G >> {out}; env >> {out}"])) == 0
    uid, gid, groups, *environment = out.read_text().splitlines()
    assert (uid, gid, groups) == ("65534", "65534", "65534")
    assert not any(line.startswith("SUDO_") for line in environment)
    assert "USER=nobody" in environment


def test_the_environment_of_the_user_behind_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"HOME": "/home/u", "PATH": "/home/u/bin:/usr/bin", "KEY": "1"}
    monkeypatch.setattr(launch, "_environment_of_sudo", lambda: theirs)
    ours = {"HOME": "/root", "PATH": "/usr/sbin", "SUDO_UID": "1", "SUDO_COMMAND": "x", "EXTRA": "2", "USER": "root"}
    assert user_environment(ours, 1) == {**theirs, "EXTRA": "2"}


def test_the_programs_behind_a_script(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text("#!/usr/bin/env -S sh -e\n")
    outer.write_text(f"#!{inner} -x\n")
    for p in (inner, outer):
        p.chmod(0o755)
    found = programs(str(outer), os.defpath)
    assert found[:2] == [str(outer), str(inner)]
    assert os.path.basename(found[2]) in ("sh", "dash", "bash", "busybox")
    loop = tmp_path / "loop"
    loop.write_text(f"#!{loop}\n")
    assert programs(str(loop), "") == [str(loop)]
    assert programs(str(tmp_path / "none"), "") == []


# ---- attaching


@dataclass(frozen=True)
class Probe:
    path: str
    offset: int
    cookie: int = 1
    stack: str = "openssl"
    how: str = "dynsym"
    dev: int = 1

    @property
    def ino(self) -> int:
        return hash(self.path)

    @property
    def display_path(self) -> str:
        return self.path


class FakeDiscovery:
    def __init__(self) -> None:
        self.of: dict[int, list[Probe]] = {}
        self.looks: list[tuple[float, int]] = []
        self.dark: list[Any] = []
        self.problems: list[str] = []

    def close(self) -> None:
        pass

    def host(self) -> list[Probe]:
        return [Probe("/lib/a", 1), Probe("/lib/a", 2), Probe("/lib/b", 3)]

    def process(self, pid: int) -> list[Probe]:
        self.looks.append((time.monotonic(), pid))
        if pid == 0:
            raise ValueError("strange process")
        return self.of.get(pid, [])

    def file(self, path: str) -> list[Probe]:
        return []


def notes(kernel: FakeKernel) -> list[dict[str, Any]]:
    return [msgspec.json.decode(n[0]) for n in kernel.of("note")]


def test_each_place_is_attached_once_and_noted() -> None:
    kernel, discovery = FakeKernel(), FakeDiscovery()
    attacher = Attacher(kernel, discovery)
    assert attacher.host() == 3
    assert attacher.host() == 0
    assert kernel.of("attach") == [("/lib/a", [(1, 1), (2, 1)]), ("/lib/b", [(3, 1)])]
    assert not notes(kernel)  # the stream has not begun
    attacher.open_notes()
    assert [n["kind"] for n in notes(kernel)] == ["attach", "attach"]


def test_a_refused_attachment_is_a_note_and_not_tried_again() -> None:
    kernel = FakeKernel()
    kernel.refuse.add("/lib/a")
    attacher = Attacher(kernel, FakeDiscovery())
    attacher.open_notes()
    assert attacher.host() == 1
    assert attacher.host() == 0
    assert [(n["kind"], n["path"]) for n in notes(kernel)] == [("warning", "/lib/a"), ("attach", "/lib/b")]


def test_what_the_discovery_could_not_do_is_noted_once() -> None:
    kernel, discovery = FakeKernel(), FakeDiscovery()
    attacher = Attacher(kernel, discovery)
    attacher.open_notes()
    discovery.problems.append("ldconfig failed")
    discovery.dark.append(SimpleNamespace(path="/x", stack="openssl", reason="not found"))
    attacher.host()
    attacher.host()
    discovery.dark.append(SimpleNamespace(path="/y", stack="openssl", reason="not found"))
    attacher.process(5)
    said = [(n["kind"], n["message"]) for n in notes(kernel) if n["kind"] != "attach"]
    assert said == [
        ("dark-host", "openssl in /x: not found"),
        ("warning", "ldconfig failed"),
        ("dark", "openssl in /y: not found"),
    ]


def test_a_process_is_looked_at_again_since_libraries_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsight.capture.attach.LOOKS", (0.0, 0.05, 0.1))
    kernel, discovery = FakeKernel(), FakeDiscovery()
    attacher = Attacher(kernel, discovery)
    attacher.open_notes()
    me = os.getpid()
    attacher.look([me, 0])
    attacher.start()
    time.sleep(0.03)
    discovery.of[me] = [Probe("/lib/late", 9)]
    time.sleep(0.3)
    attacher.stop()
    assert [pid for _, pid in discovery.looks].count(me) == 3
    assert kernel.of("attach") == [("/lib/late", [(9, 1)])]
    assert [n["kind"] for n in notes(kernel)].count("warning") == 1  # the strange process, once: it is not alive


def test_who_falls_behind_takes_priority_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, given = [0, 100 << 20, 50 << 20, 10 << 20, 1 << 20, 0], []
    monkeypatch.setattr("agentsight.capture.priority.LOOK_SECONDS", 0)
    monkeypatch.setattr(os, "setpriority", lambda which, thread, nice: given.append(nice))
    priority = Priority(SimpleNamespace(counters=lambda: {"arena_used": waiting.pop(0)}))
    for _ in range(6):
        priority.look()
    assert given == [-20, 0]
    assert priority.raised


def test_without_the_right_to_a_priority_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, thread: int, nice: int) -> None:
        raise PermissionError

    monkeypatch.setattr("agentsight.capture.priority.LOOK_SECONDS", 0)
    monkeypatch.setattr(os, "setpriority", refuse)
    priority = Priority(SimpleNamespace(counters=lambda: {"arena_used": 1 << 30}))
    priority.look()
    priority.look()
    assert not priority.raised


def test_who_still_lives() -> None:
    alive = Alive([1])
    alive.observe([forked(1, 1, 2), execed(2, 2), forked(3, 9, 10), exited(4, 1)])
    assert alive.pids == {2}
    alive.observe([exited(5, 2)])
    assert not alive.pids


def test_kernel_versions() -> None:
    assert kernel_version("6.1.0-18-amd64") == (6, 1)
    assert kernel_version("5.15") == (5, 15)
    assert kernel_version("odd") == (0, 0)

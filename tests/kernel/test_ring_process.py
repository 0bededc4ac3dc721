"""Process and stdio records on real programs: fork, exec, exit, names, filters; pipes, terminals, unix sockets."""

from __future__ import annotations

import os
import pty
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kernel import ringtools as rt
from kernel.ringtools import (
    EXEC,
    EXEC_ARGS,
    EXIT,
    FOLLOW,
    FORK,
    PROC,
    ST,
    STDIO,
    Record,
    Run,
    Target,
    capturing,
)

BECOME = "import os\nos.execvp(sys.argv[1], sys.argv[1:])"


def text(run: Run, e: Record) -> tuple[str, str, list[str]]:
    """File, directory and arguments of an exec, put together from its parts."""
    name, cwd = e.data[: e.name_len], e.data[e.name_len : e.name_len + e.cwd_len]
    block = e.data[e.name_len + e.cwd_len :][: e.args_cap]
    return os.fsdecode(name), os.fsdecode(cwd), os.fsdecode(arguments(run, e, block)).split("\0")[:-1]


def arguments(run: Run, e: Record, block: bytes) -> bytes:
    for part in run.of(EXEC_ARGS, tgid=e.tgid, ts=e.ts):
        assert part.off == len(block)
        block += part.data
    return block


def watch(
    *argv: str, flags: int = PROC | FOLLOW, cwd: str | None = None, **options: object
) -> tuple[Run, int]:
    """Everything about a command that was a target before its exec."""
    with capturing(want_io=False, **options) as (capture, run):
        target = Target(capture, BECOME, *argv, flags=flags, cwd=cwd)
        target.process.communicate("go\n", 60)
        time.sleep(0.1)
    return run, target.pid


def test_a_shell_and_its_children() -> None:
    run, pid = watch("sh", "-c", "/bin/true; sleep 0.1 | cat; exit 3", cwd="/dev/shm")
    by_pid = {e.tgid: text(run, e) for e in run.of(EXEC)}
    assert by_pid[pid][0].endswith("/sh")
    assert by_pid[pid][1:] == ("/dev/shm", ["sh", "-c", "/bin/true; sleep 0.1 | cat; exit 3"])
    argvs = sorted(v[2] for k, v in by_pid.items() if k != pid)
    assert argvs == [["/bin/true"], ["cat"], ["sleep", "0.1"]]
    forks = {f.child: f for f in run.of(FORK)}
    exits = {x.tgid: x for x in run.of(EXIT)}
    assert set(exits) == set(by_pid) and set(forks) == set(by_pid) - {pid}
    for e in run.of(EXEC):
        assert e.comm == os.path.basename(text(run, e)[0])
        assert (e.uid, e.gid, e.ns_pid) == (os.geteuid(), os.getegid(), e.tgid)
        assert e.netns == os.stat("/proc/self/ns/net").st_ino
        assert e.flags == 8  # AS_F_LAST_ARGS
        x = exits[e.tgid]
        assert x.start == e.start and x.ppid == e.ppid and x.ts > e.ts > e.start
        if e.tgid != pid:
            assert e.ppid == pid and forks[e.tgid].tgid == pid and forks[e.tgid].start == e.start
            assert x.status == 0
        if text(run, e)[2] == ["sleep", "0.1"]:
            assert 0.1e9 <= x.ts - e.ts < 1e9
    assert exits[pid].status == 3 << 8


def test_death_by_signal() -> None:
    run, pid = watch("sh", "-c", "kill -9 $$")
    (x,) = run.of(EXIT, tgid=pid)
    assert x.status == 9


def test_threads_are_not_processes() -> None:
    script = """
import threading
t = [threading.Thread(target=lambda: None) for _ in range(20)]
[x.start() for x in t]
[x.join() for x in t]
"""
    with capturing(want_io=False) as (capture, run):
        target = Target(capture, script, flags=PROC | FOLLOW)
        target.go()
        time.sleep(0.05)
    assert not run.of(FORK) and len(run.of(EXIT)) == 1


def test_exit_of_the_leader_is_not_the_end() -> None:
    script = """
import ctypes, threading, time
def work():
    time.sleep(0.3)
    ctypes.CDLL(None).syscall(231, 5)  # exit_group
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(60, 0)  # only this thread
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the system calls' numbers are those of x86-64")
    with capturing(want_io=False) as (capture, run):
        target = Target(capture, script, flags=PROC | FOLLOW)
        begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        target.process.communicate("go\n", 30)
        time.sleep(0.05)
    (x,) = run.of(EXIT)
    assert x.status == 5 << 8 and x.ts - begin > 0.3e9


@pytest.mark.parametrize("size", [1000, 30000, 100 << 10, 200 << 10])
def test_long_arguments(size: int) -> None:
    args = ["x" * 999 for _ in range(size // 1000)]
    run, pid = watch("/bin/true", *args)
    (e,) = run.of(EXEC, tgid=pid)
    whole = b"/bin/true\0" + b"".join(a.encode() + b"\0" for a in args)
    got = arguments(run, e, e.data[e.name_len + e.cwd_len :][: e.args_cap])
    assert e.args_len == len(whole)
    assert got == whole[: 128 << 10]
    assert bool(e.flags & 2) == (len(whole) > 128 << 10)
    last = [*run.of(EXEC_ARGS), e] if not run.of(EXEC_ARGS) else run.of(EXEC_ARGS)
    assert last[-1].flags & 8 and all(not p.flags & 8 for p in last[:-1])


def test_deep_directory(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["a-directory-of-some-length"] * 40)
    deep.mkdir(parents=True)
    run, pid = watch("/bin/true", cwd=str(deep))
    (e,) = run.of(EXEC, tgid=pid)
    assert text(run, e)[1] == str(deep)


def test_root_directory() -> None:
    run, pid = watch("/bin/true", cwd="/")
    assert text(run, run.of(EXEC, tgid=pid)[0])[1] == "/"


def test_pid_namespace() -> None:
    run, pid = watch("unshare", "--pid", "--fork", "/bin/true")
    (e,) = [e for e in run.of(EXEC) if e.tgid != pid]
    assert e.ns_pid == 1 and e.tgid != 1


def test_peak_memory() -> None:
    with capturing(want_io=False) as (capture, run):
        target = Target(
            capture,
            "b = bytearray(120 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1",
            flags=PROC | FOLLOW,
        )
        small = Target(capture, BECOME, "/bin/true", flags=PROC | FOLLOW)
        small.go()
        target.go()
        time.sleep(0.05)
    (x,) = run.of(EXIT, tgid=target.pid)
    assert x.maxrss > 120 << 10  # not bounded above: what the process used before its exec counts too, as in getrusage
    assert x.maxrss <= resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def test_children_are_not_followed_where_not_asked() -> None:
    run, pid = watch("sh", "-c", "/bin/true; /bin/true", flags=PROC)
    assert {e.tgid for e in run.of(EXEC, EXIT)} == {pid}


@pytest.mark.parametrize("how", ["file", "script", "interpreter", "option", "argv0", "long"])
def test_names(how: str, tmp_path: Path) -> None:
    name = "agent-with-a-name-longer-than-any-comm-can-ever-be" if how == "long" else "an-agent"
    tool = tmp_path / name
    tool.write_text(f"#!{sys.executable}\nimport os\nos.system('/bin/true')\n")
    tool.chmod(0o755)
    python = os.path.realpath(sys.executable)
    argv = {
        "file": [str(tool)],
        "long": [str(tool)],
        "script": [sys.executable, str(tool)],
        "interpreter": ["bash", "-c", f"exec {tool}"],
        "option": [sys.executable, "-I", "-u", str(tool), "more"],
        "argv0": ["bash", "-c", f"exec -a {name} {python} -c 'import os; os.system(\"/bin/true\")'"],
    }[how]
    with capturing(want_io=False) as (capture, run):
        capture.add_name(name, PROC | FOLLOW)
        subprocess.run(argv, check=True)
        subprocess.run(["cat", str(tool)], check=True, stdout=subprocess.DEVNULL)  # an argument is no name
        time.sleep(0.05)
    first, *rest = run.of(EXEC)
    assert rest and all("true" in text(run, e)[2][-1] for e in rest), "its children follow"
    assert first.tgid in {e.ppid for e in rest} and len(run.of(EXIT, tgid=first.tgid)) == 1


def test_everything_of_one_user() -> None:
    with capturing(want_io=False, track_all=True, uid=65534) as (_, run):
        subprocess.run(["/bin/true", "as-root"], check=True)
        subprocess.run(["/bin/true", "as-nobody"], check=True, user=65534, group=65534)
        time.sleep(0.05)
    assert [text(run, e)[2][1] for e in run.of(EXEC)] == ["as-nobody"]


def test_everything_but_the_excluded() -> None:
    with capturing(want_io=False, track_all=True) as (capture, run):
        shell = Target(None, BECOME, "sh", "-c", "/bin/true excluded-parent; echo")
        capture.exclude(shell.pid)
        shell.go()
        time.sleep(0.05)
    told = [text(run, e)[2] for e in run.of(EXEC)]
    assert ["/bin/true", "excluded-parent"] in told and not [a for a in told if a[:2] == ["sh", "-c"]]
    assert os.getpid() not in {r.tgid for r in run.of(EXEC, EXIT, FORK)}


# ---- stdio ----


def stdio(*argv: str, script: str | None = None, **options: object) -> tuple[Run, int]:
    with capturing(want_io=False, want_stdio=True, **options) as (capture, run):
        target = Target(capture, BECOME if script is None else script, *argv, flags=PROC | FOLLOW | ST)
        target.process.communicate("go\n", 60)
        time.sleep(0.05)
    return run, target.pid


def test_a_pipe_between_two_programs() -> None:
    run, _ = stdio("sh", "-c", "printf 'hello %s' world | cat > /dev/null")
    (wrote,) = [r for r in run.of(STDIO, dir=rt.WRITE) if r.data == b"hello world"]
    (read,) = [r for r in run.of(STDIO, dir=rt.READ) if r.data == b"hello world"]
    assert (wrote.ino, wrote.dev, wrote.obj, wrote.fd) == (read.ino, read.dev, 1, 1) and read.fd == 0
    assert wrote.real == read.real == 11 and wrote.off == read.off == 0 and wrote.tgid != read.tgid


def test_bound_and_real_length() -> None:
    run, pid = stdio(script="import os\nos.write(1, b'a' * 10000)\nos.write(1, b'b' * 50)", stdio_max=4096)
    first, second = run.of(STDIO, tgid=pid, dir=rt.WRITE)
    assert (first.data, first.real, first.off, first.flags) == (b"a" * 4096, 10000, 0, 2)
    assert (second.data, second.real, second.off, second.flags) == (b"b" * 50, 50, 10000, 0)


def test_long_call_in_parts() -> None:
    run, pid = stdio(
        script="import os\nprint(os.writev(1, [b'x' * 40000, b'y' * 50000]), file=sys.stderr)",
        stdio_max=1 << 20,
    )
    parts = run.of(STDIO, tgid=pid, dir=rt.WRITE, fd=1)
    assert b"".join(p.data for p in parts).startswith(b"x" * 40000 + b"y") and parts[0].real == sum(
        p.cap for p in parts
    )
    assert [p.real for p in parts[1:]] == [0] * (len(parts) - 1)
    assert [p.off for p in parts] == [sum(p.cap for p in parts[:i]) for i in range(len(parts))]


def test_files_behind_standard_fds_only(tmp_path: Path) -> None:
    script = f"""
import os
f = os.open({str(tmp_path / "x")!r}, os.O_CREAT | os.O_RDWR)
os.write(f, b'no')
os.dup2(f, 2)
os.write(2, b'yes')
"""
    run, pid = stdio(script=script)
    (r,) = run.of(STDIO, tgid=pid, dir=rt.WRITE)
    st = (tmp_path / "x").stat()
    assert (r.data, r.obj, r.fd, r.ino) == (b"yes", 4, 2, st.st_ino)
    assert r.dev == os.major(st.st_dev) << 20 | os.minor(st.st_dev)


def test_unix_sockets_with_all_fds() -> None:
    script = "import os, socket\na, b = socket.socketpair()\na.send(b'ping')\nb.recv(9)\nos.close(os.dup(0))"
    run, pid = stdio(script=script, stdio_all_fds=True)
    found = [(r.dir, r.data) for r in run.of(STDIO, tgid=pid, obj=3)]
    assert found == [(rt.WRITE, b"ping"), (rt.READ, b"ping")]
    run, pid = stdio(script=script)
    assert not run.of(STDIO, tgid=pid, obj=3)


def test_terminal_and_its_exclusion() -> None:
    master, slave = pty.openpty()
    st = os.fstat(slave)
    for exclude in ([], [(st.st_dev, st.st_ino)]):
        with capturing(want_io=False, want_stdio=True, stdio_exclude=exclude) as (capture, run):
            p = subprocess.Popen(
                ["sh", "-c", "read x; echo on-a-terminal"], stdin=subprocess.PIPE, stdout=slave, text=True
            )
            capture.add_target(p.pid, ST)
            p.communicate("\n", 10)
        told = [r for r in run.of(STDIO) if r.obj == 2]
        assert [r.data for r in told] == ([] if exclude else [b"on-a-terminal\n"])
    os.close(master)
    os.close(slave)


def test_sockets_are_no_stdio() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
    script = f"""
import os, socket
s = socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}))
os.dup2(s.fileno(), 2)
os.write(2, b'tcp')
"""
    run, pid = stdio(script=script)
    listener.close()
    assert not [r for r in run.of(STDIO, tgid=pid) if r.data == b"tcp"]

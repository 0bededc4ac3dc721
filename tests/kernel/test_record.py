"""The commands against the real kernel: targets, output, launching, signals, logs that survive, replay byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import pty
import re
import shutil
import signal
import ssl  # noqa: F401  (its library is looked for in our own mappings)
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel.harness import AGENTSIGHT, CLIENTS, data, events, run, watching
from modelserver import ModelServer

from agentsight import HTTPParser, SslRunner
from agentsight.capture import procfs
from agentsight.events import HttpEvent

PYTHON = sys.executable


def shell(script: str, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more)


# ---- record -- CMD


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)])
def test_the_status_is_the_commands(script: str, status: int) -> None:
    assert run("record", "-q", "--", "sh", "-c", script).returncode == status


def test_a_command_that_is_not_there() -> None:
    done = run("record", "--", "no_such_program_x")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr.splitlines()[-1].startswith("Error: cannot run no_such_program_x")


def test_the_whole_tree_is_seen_from_the_first_exec(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    done = run("record", "--log-file", log, "--", "sh", "-c", "/bin/true; sh -c '/bin/echo inner; exit 3'; true")
    assert done.returncode == 0
    assert done.stdout == "inner\n"
    found = events(log)
    execs = [e["args"] for e in data(found, "process") if e["event"] == "EXEC"]
    assert execs == [
        ["sh", "-c", "/bin/true; sh -c '/bin/echo inner; exit 3'; true"],
        ["/bin/true"],
        ["sh", "-c", "/bin/echo inner; exit 3"],
        ["/bin/echo", "inner"],
    ]
    exits = [e["data"]["exit_code"] for e in found if e["source"] == "process" and e["data"]["event"] == "EXIT"]
    assert sorted(exits) == [0, 0, 0, 3]
    assert re.search(r"Processes\n  \d+ sh -c .*\[exit 0, ", done.stderr)
    assert "  ├─ " in done.stderr


def test_two_hundred_short_lived_children_are_all_seen(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    run("record", "-q", "--log-file", log, "--", "sh", "-c", "for i in $(seq 200); do /bin/true $i; done")
    numbers = [e["args"][1] for e in data(events(log), "process") if e["event"] == "EXEC" and e["args"][0] == "/bin/true"]
    assert numbers == [str(i) for i in range(1, 201)]


def test_the_terminal_is_the_commands_own(tmp_path: Path) -> None:
    """Nothing of ours is written before the command ended, and what is typed reaches it: Ctrl-C too."""
    script = (
        "import time,sys\ntry:\n  print('BEGIN', flush=True); time.sleep(30)\n"
        "except KeyboardInterrupt:\n  print('GOT IT'); sys.exit(5)"
    )
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(AGENTSIGHT, [str(AGENTSIGHT), "record", "--", PYTHON, "-c", script])
    seen = b""
    while b"BEGIN" not in seen:
        seen += os.read(fd, 4096)
    assert seen.strip() == b"BEGIN"
    os.write(fd, b"\x03")
    while True:
        try:
            part = os.read(fd, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5
    text = seen.decode()
    assert text.index("GOT IT") < text.index("Processes")


def test_the_command_runs_as_the_invoking_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for part in tmp_path.parents:
        if part.owner() == "root" and str(part) not in ("/", "/tmp"):
            part.chmod(0o755)
    env = {**os.environ, "SUDO_UID": "65534", "SUDO_GID": "65534", "KEPT": "yes"}
    log, capture = tmp_path / "x.jsonl", tmp_path / "x.cap"
    done = run(
        "record",
        "-q",
        "--log-file",
        log,
        "--capture",
        capture,
        "--",
        "sh",
        "-c",
        "id -u; id -G; echo $KEPT; pwd",
        env=env,
        cwd="/usr",
    )
    assert done.stdout.split() == ["65534", "65534", "yes", "/usr"]
    for path in (log, capture):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (65534, 0o600)
    assert {e["uid"] for e in data(events(log), "process") if e["event"] == "EXEC" and e["args"][0] == "sh"} == {65534}


def test_descendants_that_live_on_do_not_hold_the_end_up() -> None:
    begun = time.monotonic()
    done = run("record", "-q", "--", "sh", "-c", "sleep 20 >/dev/null 2>&1 & echo $!; exit 4")
    assert done.returncode == 4
    assert time.monotonic() - begun < 10
    os.kill(int(done.stdout), signal.SIGKILL)  # still running: nothing is ever sent to what we watch


# ---- replay


@pytest.mark.parametrize("source", [["--stdio"], []])
def test_replay_writes_the_same_bytes_as_the_live_log(tmp_path: Path, source: list[str]) -> None:
    log, capture, again = tmp_path / "live.jsonl", tmp_path / "x.cap", tmp_path / "again.jsonl"
    script = "for i in 1 2 3; do echo line $i; /bin/true; done; sh -c 'sleep 0.3; echo end'"
    done = run("record", "-q", *source, "--log-file", log, "--capture", capture, "--", "sh", "-c", script)
    assert done.returncode == 0
    assert run("replay", "-q", "--log-file", again, capture).returncode == 0
    assert again.read_bytes() == log.read_bytes()
    assert run("replay", capture).stdout.encode() == log.read_bytes()
    found = events(log)
    assert (found[0]["source"], found[-1]["source"]) == ("schema", "summary")
    assert bool(data(found, "stdio")) == bool(source)


def test_a_capture_alone_is_not_decoded_and_replays(tmp_path: Path) -> None:
    capture = tmp_path / "x.cap"
    done = run("record", "-q", "--capture", capture, "--", "sh", "-c", "/bin/true; exit 3")
    assert done.returncode == 3
    assert f"agentsight replay {capture}" in done.stderr
    found = events(run("replay", capture).stdout)
    assert [e["args"][0] for e in data(found, "process") if e["event"] == "EXEC"] == ["sh", "/bin/true"]


def test_a_torn_capture_is_read_to_its_last_whole_batch(tmp_path: Path) -> None:
    capture = tmp_path / "x.cap"
    run("record", "-q", "--capture", capture, "--", "sh", "-c", "/bin/true; sleep 0.5; /bin/true")
    raw = capture.read_bytes()
    capture.write_bytes(raw[:-7])
    done = run("replay", capture)
    assert done.returncode == 0
    assert "has no end" in done.stderr
    assert events(done.stdout)[0]["source"] == "schema"


# ---- trace, process, stdio


def test_stdio_of_everything(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    mark = f"mark-{os.getpid()}"
    with watching("trace", "--stdio", "--stdio-max-bytes", "4096", "--log-file", log, "-q"):
        shell(f"/bin/echo {mark}; head -c 9000 /dev/zero | tr '\\0' z").communicate()
        time.sleep(0.5)
    shown = [e for e in data(events(log), "stdio") if e["direction"] == "WRITE"]
    assert any(e["data"] == mark + "\n" and e["fd_role"] == "stdout" for e in shown)
    cut = [e for e in shown if e["truncated"] and set(e["data"] or "") == {"z"}]
    assert cut
    assert all(len(e["data"]) <= 4096 < e["len"] for e in cut)


def test_what_shows_us_is_not_watched(tmp_path: Path) -> None:
    """Each event that a filter behind us prints would be an event of its own, for ever."""
    shown, err = tmp_path / "shown", tmp_path / "err"
    err.touch()
    script = f"exec {AGENTSIGHT} trace --stdio 2>{err} | exec sed s/x/x/ | exec sed s/y/y/ > {shown}"
    pipeline = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while "watching" not in err.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        shell("/bin/echo once").communicate()
        time.sleep(1)
        for p in procfs.all_procs():  # agentsight alone: the filters end with their input
            if p.ppid == pipeline.pid and b"agentsight" in procfs.arguments(p.pid):
                os.kill(p.pid, signal.SIGINT)
        pipeline.wait(30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pipeline.pid, signal.SIGKILL)
        pipeline.wait()
    by = [e["comm"] for e in events(shown) if e["source"] == "stdio"]
    assert "echo" in by
    assert by.count("sed") == 0


def test_one_ctrl_c_that_arrives_twice_is_one(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    with watching("trace", "-q", "--log-file", log) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert process.returncode == 130
    assert events(log)[-1]["source"] == "summary"


def test_a_name_also_matches_scripts_and_later_starts(tmp_path: Path) -> None:
    script, log = tmp_path / "as_named_tool.py", tmp_path / "x.jsonl"
    script.write_text("import subprocess; subprocess.run(['/bin/echo', 'child'], stdout=subprocess.DEVNULL); input()")
    early = subprocess.Popen([PYTHON, script], stdin=subprocess.PIPE)
    time.sleep(0.3)
    with watching("trace", "--comm", script.name, "--log-file", log, "--quiet"):
        late = subprocess.Popen([PYTHON, script], stdin=subprocess.PIPE)
        other = shell("/bin/true")
        time.sleep(0.7)
        for p in (early, late, other):
            p.communicate(b"\n")
    found = data(events(log), "process")
    running = {e["data"]["pid"] if "pid" in e["data"] else e["pid"] for e in events(log) if e["source"] == "process"}
    assert {early.pid, late.pid} <= running
    assert other.pid not in running
    assert any(e["event"] == "EXEC" and e["args"] == ["/bin/echo", "child"] for e in found)


def test_a_pid_and_its_descendants_until_they_end(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    target = shell("read x; /bin/true a; (/bin/true b); exit 6")
    with watching("trace", "-p", str(target.pid), "--log-file", log, "-q") as traced:
        shell("/bin/true outside").communicate()
        target.communicate(b"go\n")
        assert traced.wait(10) == 0
    found = data(events(log), "process")
    assert [e["args"][1] for e in found if e["event"] == "EXEC" and e["args"][0] == "/bin/true"] == ["a", "b"]
    assert [e["exit_code"] for e in found if e["event"] == "EXIT"][-1] == 6


def test_without_children_only_the_process_itself(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    target = shell("read x; /bin/true a; exit 6")
    with watching("trace", "-p", str(target.pid), "--no-children", "--log-file", log, "-q") as traced:
        target.communicate(b"go\n")
        assert traced.wait(10) == 0
    assert not [e for e in data(events(log), "process") if e["event"] == "EXEC" and e.get("args", [""])[0] == "/bin/true"]


def test_only_processes_that_lived_long_enough(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    with watching("process", "--duration", "100", "--log-file", log, "-q"):
        shell("sleep 0.3; /bin/true quick").communicate()
        long = subprocess.Popen(["sleep", "30"])
        time.sleep(2.5)
    long.kill()
    long.wait()
    args = [e["args"] for e in data(events(log), "process") if e["event"] == "EXEC" and not e.get("snapshot")]
    assert ["sleep", "0.3"] in args
    assert ["sleep", "30"] in args
    assert ["/bin/true", "quick"] not in args


def test_mode_0_is_every_process(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    target = shell("read x")
    with watching("trace", "--mode", "0", "-p", str(target.pid), "--log-file", log, "-q"):
        shell("/bin/true outside").communicate()
        time.sleep(0.3)
    target.communicate(b"\n")
    assert ["/bin/true", "outside"] in [e["args"] for e in data(events(log), "process") if e["event"] == "EXEC"]


def test_a_user(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    with watching("process", "-u", "65534", "--log-file", log, "-q"):
        subprocess.run(["/bin/true", "root"], check=True)
        subprocess.run(["/bin/true", "nobody"], check=True, user=65534)
        time.sleep(0.3)
    args = [e["args"] for e in data(events(log), "process") if e["event"] == "EXEC" and e["args"][0] == "/bin/true"]
    assert args == [["/bin/true", "nobody"]]


# ---- TLS, live


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def call(server: ModelServer, client: str = "httpx_call.py", program: str = PYTHON) -> None:
    words = [program, CLIENTS / client, server.url]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **server.environment()})


def sources(found: list[dict[str, Any]]) -> set[str]:
    """What was shown of the traffic itself (a diagnostic may be about any file on this machine)."""
    return {e["source"] for e in found} - {"schema", "summary", "connection", "diagnostic"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--http-parser", "--sse-merge"], {"http_parser", "sse_processor"}),
        ([], {"ssl"}),
        (["--ssl-handshake", "--http-parser"], {"http_parser", "sse_processor", "ssl"}),
        (["--no-openssl"], set()),
    ],
)
def test_ssl_shows_what_was_asked_for(server: ModelServer, tmp_path: Path, options: list[str], expected: set[str]) -> None:
    log = tmp_path / "x.jsonl"
    with watching("ssl", *options, "-c", "httpx_call.py", "--log-file", log, "-q") as process:
        call(server)
        time.sleep(0.3)
    found = events(log)
    assert sources(found) == expected
    (summary,) = data(found, "summary")
    opened = summary["bytes"].get("tls_opened", 0)
    assert (opened > 0, summary.get("complete", True)) == (bool(expected), bool(expected)), process.err
    if "--sse-merge" in options:
        (stream,) = data(found, "sse_processor")
        assert stream["text_content"]
        assert stream["event_count"] > 3
    if not expected:
        assert summary["bytes"]["tls_not_opened"] > 0
        assert "NOT opened" in process.err


def test_a_program_by_its_path(server: ModelServer, tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node
    log = tmp_path / "x.jsonl"
    with watching("ssl", "--http-parser", "--binary-path", node, "--log-file", log, "-q"):
        call(server)  # not by node
        call(server, "node_fetch.mjs", node)
        time.sleep(0.3)
    assert len([m for m in data(events(log), "http_parser") if m["message_type"] == "request"]) == 1


def test_a_live_trace_of_calls_replays_byte_for_byte(server: ModelServer, tmp_path: Path) -> None:
    log, capture = tmp_path / "x.jsonl", tmp_path / "x.cap"
    with watching("trace", "--log-file", log, "--capture", capture, "-q"):
        call(server)
        call(server, "node_fetch.mjs", "node")
        time.sleep(0.3)
    assert len(data(events(log), "llm_call")) == 2
    assert run("replay", capture).stdout.encode() == log.read_bytes()


def test_a_library_that_is_loaded_late_is_found(server: ModelServer, tmp_path: Path) -> None:
    """A copy of libssl that nobody else has, so that only looking at the process again can find it."""
    library = next(Path(p) for line in Path("/proc/self/maps").read_text().splitlines() if "libssl" in (p := line.split()[-1]))
    copy, log = tmp_path / library.name, tmp_path / "x.jsonl"
    shutil.copy(library, copy)
    script = tmp_path / "late.py"
    script.write_text(
        f"import ctypes, time\ntime.sleep(0.5)\nctypes.CDLL({str(copy)!r}, mode=ctypes.RTLD_GLOBAL)\ntime.sleep(1.2)\n"
        "import sys, urllib_call\n"
    )
    env = {**os.environ, **server.environment(), "PYTHONPATH": str(CLIENTS), "LD_PRELOAD": ""}
    with watching("trace", "--comm", "late.py", "--log-file", log, "--capture", tmp_path / "c", "-q"):
        subprocess.run([PYTHON, script, server.url], check=True, stdout=subprocess.DEVNULL, env=env)
        time.sleep(0.3)
    assert str(copy).encode() in (tmp_path / "c").read_bytes()  # the note of the attachment
    assert len(data(events(log), "llm_call")) == 1


def test_a_runner_from_python(server: ModelServer) -> None:
    runner = SslRunner(comms=["httpx_call.py"]).add_analyzer(HTTPParser())

    async def first_response() -> HttpEvent:
        task = asyncio.create_task(asyncio.to_thread(client))
        async with contextlib.aclosing(runner.__aiter__()) as stream:
            async for event in stream:
                if isinstance(event, HttpEvent) and event.message_type == "response":
                    await task
                    return event
        raise AssertionError("no response")

    def client() -> None:
        time.sleep(1.5)  # until it is armed
        call(server)

    assert asyncio.run(first_response()).status_code == 200


# ---- signals, output, errors


def test_ctrl_c_gives_130_and_the_summary(tmp_path: Path) -> None:
    with watching("trace", "-q", "--log-file", tmp_path / "x.jsonl") as process:
        time.sleep(0.3)
    assert process.returncode == 130
    assert re.search(r"agentsight: \d+\.\d s: ", process.err)
    assert events(tmp_path / "x.jsonl")[-1]["source"] == "summary"


def test_no_target_says_that_every_users_tls_is_opened() -> None:
    with watching("trace", "-q") as process:
        pass
    assert sum("every user" in line for line in process.err.splitlines()) == 1


def test_events_are_json_lines_on_a_pipe_and_head_ends_it() -> None:
    process = subprocess.Popen(
        f"{AGENTSIGHT} process | head -n 3", shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        subprocess.run(["/bin/true"], check=True)
        time.sleep(0.05)
    out, err = process.communicate(timeout=10)
    assert len([json.loads(line) for line in out.splitlines()]) == 3
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_killed_with_9_the_log_is_valid_and_no_probe_is_left(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    with watching("trace", "-q", "--log-file", log) as process:
        ours = programs_of(process.pid)
        assert len(ours & loaded_programs()) >= 5
        for _ in range(20):
            subprocess.run(["/bin/true"], check=True)
        time.sleep(0.5)
        process.kill()
        process.wait()
    raw = log.read_bytes()
    found = [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]
    assert found[0]["source"] == "schema"
    assert sum(e["source"] == "process" for e in found) >= 20
    deadline = time.monotonic() + 10
    while ours & loaded_programs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not ours & loaded_programs()


def programs_of(pid: int) -> set[int]:
    """Ids of the BPF programs that a process has descriptors of, or links to."""
    text = ""
    for p in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # its threads open and close others
            text += p.read_text()
    return {int(n) for n in re.findall(r"^prog_id:\s*(\d+)$", text, re.MULTILINE)}


def loaded_programs() -> set[int]:
    """Ids of all loaded BPF programs (bpf(2), BPF_PROG_GET_NEXT_ID)."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    attr = (ctypes.c_uint32 * 16)()
    found = set()
    while libc.syscall(number, 11, attr, ctypes.sizeof(attr)) == 0:
        found.add(attr[1])
        attr[0] = attr[1]
    return found


def test_what_is_not_there_is_one_line() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for words, said in (
        (["trace", "-p", str(ended.pid)], f"no process {ended.pid}"),
        (["ssl", "--binary-path", "/no/such/binary"], "no file /no/such/binary"),
        (["ssl", "--binary-path", "/bin/true"], "no known TLS in /bin/true"),
    ):
        done = run(*words)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("Error: ")
        assert said in done.stderr


def test_without_rights_the_command_to_type_is_told() -> None:
    # a root without capabilities: another user could not even enter a virtual environment in root's home
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", AGENTSIGHT, "trace", "-q"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"sudo {AGENTSIGHT} trace -q" in done.stderr
    assert done.stderr.count("\n") == 1


def test_term_ends_cleanly() -> None:
    with watching("process", "-q") as process:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    assert process.returncode == 0

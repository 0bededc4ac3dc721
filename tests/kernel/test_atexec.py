"""`record` with the exec gate: the first connection of a program that nobody has seen before, and what is said without the gate."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kernel.harness import AGENTSIGHT, CLIENTS, assert_equal_to_journal, data, events, record, replay, run, wait_for, watching
from modelserver import ModelServer

from agentsight.capture import procfs
from agentsight.capture.atexec import companions, is_library

MISSED = "may be missed"


def gates() -> list[int]:
    """Processes of exec gates that are not about to end."""
    return [p.pid for p in procfs.all_procs() if p.comm.startswith("as-execgate")]


def test_the_first_connection_of_a_program_never_seen_before_is_opened(tmp_path: Path) -> None:
    """Copies of node, each executed once, by a shell that is watched: TLS is inside the program, unknown until its exec."""
    capture, runs = tmp_path / "capture", 10
    script = f'for i in $(seq {runs}); do cp "$0" "$1/n$i"; "$1/n$i" "$2" "$3" || exit 1; rm "$1/n$i"; done'
    with ModelServer() as server:
        command = ["sh", "-c", script, str(shutil.which("node")), str(tmp_path), str(CLIENTS / "node_fetch.mjs"), server.url]
        said = record(capture, command, env=server.environment())
        journal = server.journal.wait_closed(at_least=runs)
    assert assert_equal_to_journal(replay(capture, "--ssl-http", "false"), journal, runs) > 300 * runs
    assert MISSED not in said and "before they were looked at" not in said


def test_a_library_that_is_installed_with_the_program_is_opened_too(tmp_path: Path) -> None:
    """Prefixes like conda's, each used once: the program finds its own copy of libssl beside it."""
    capture, runs = tmp_path / "capture", 10
    openssl = shutil.which("openssl")
    assert openssl is not None
    listed = subprocess.run(["ldd", openssl], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in listed.split() if word.startswith("/") and ("libssl" in word or "libcrypto" in word)]
    assert len(libraries) == 2
    request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for i in range(runs):
        (tmp_path / f"{i}/bin").mkdir(parents=True)
        (tmp_path / f"{i}/lib").mkdir()
        shutil.copy(openssl, tmp_path / f"{i}/bin/client")
        for library in libraries:
            shutil.copy(library, tmp_path / f"{i}/lib")
    script = (
        'for i in "$1"/[0-9]*; do printf "$2" | LD_LIBRARY_PATH=$i/lib "$i/bin/client" s_client -quiet -ign_eof -connect "$3" '
        "2>/dev/null || exit 1; done"
    )
    with ModelServer() as server:
        record(capture, ["sh", "-c", script, "sh", str(tmp_path), request, f"localhost:{server.port}"])
        journal = server.journal.wait_closed(at_least=runs)
    assert_equal_to_journal(replay(capture, "--ssl-http", "false"), journal, runs)


def test_where_companions_are_looked_for(tmp_path: Path) -> None:
    for name in ("bin/x", "lib/libssl.so.3", "lib/libz.so", "lib64/libgnutls.so.30", "bin/libssl.so", "other/libssl.so"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(path, tmp_path) for path in companions(str(tmp_path / "bin/x"), is_library)]
    assert found == ["lib/libssl.so.3", "lib64/libgnutls.so.30", "bin/libssl.so"]
    assert companions("/usr/bin/x", is_library) == companions("/proc/self/fd/3", is_library) == []


def test_without_the_right_to_it_the_capture_goes_on_and_says_so(tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv, "setpriv (util-linux) has to be installed"
    log = tmp_path / "log"
    words = ["record", "--log-file", str(log), "--", "sh", "-c", "/bin/true; exit 3"]
    done = subprocess.run(
        [setpriv, "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", str(AGENTSIGHT), *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert MISSED in done.stderr and "CAP_SYS_ADMIN" in done.stderr
    notes = [d["message"] for d in data(events(log), "diagnostic")]
    assert any(MISSED in note for note in notes)


def test_nothing_is_held_when_no_tree_is_watched() -> None:
    before = gates()
    with watching("trace"):
        assert gates() == before


@pytest.mark.parametrize("hurt", [signal.SIGKILL, signal.SIGSTOP])
def test_a_gate_that_is_hurt_is_told(tmp_path: Path, hurt: signal.Signals) -> None:
    log, before = tmp_path / "log", set(gates())
    with watching("trace", "-p", str(os.getpid()), "--log-file", log) as process:
        (gate,) = [pid for pid in gates() if pid not in before and procfs.proc(pid).comm == "as-execgate"]  # type: ignore[union-attr]
        os.kill(gate, hurt)
        wait_for(lambda: procfs.proc(gate) is None, 3)
        begin = time.monotonic()
        assert run("--version").returncode == 0
        assert time.monotonic() - begin < 5
        time.sleep(0.3)
    assert "the exec gate has ended" in process.err  # type: ignore[attr-defined]
    assert not set(gates()) - before

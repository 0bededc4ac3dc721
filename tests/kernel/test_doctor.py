"""``doctor`` and ``discover`` on this very host, as root: real programs, real clients; and with rights taken away."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import Any

import pytest
from kernel.harness import AGENTSIGHT, run

from agentsight.capture.discovery import Discovery
from agentsight.doctor import clients, selftest
from agentsight.doctor.clients import Client
from agentsight.doctor.server import ANSWER, Server
from agentsight.tls import Arguments, KeylogFunction, Reg, TlsStack

Json = dict[str, Any]


@pytest.fixture(scope="module")
def report() -> Json:
    """What the command says here; it passes."""
    done = run("doctor", "--json", timeout=180)
    assert done.stderr == ""
    found: Json = json.loads(done.stdout)
    assert done.returncode == 0, [c for c in found["checks"] if c["status"] == "fail"]
    assert found["ok"] is True
    return found


def group(report: Json, name: str) -> dict[str, Json]:
    return {c["name"]: c for c in report["checks"] if c["group"] == name}


def test_every_program_was_loaded_and_attached(report: Json) -> None:
    lines = group(report, "programs")
    assert set(lines) == {"processes", "sockets (sock)", "sockets (sys_exit)", "stdio", "probe", "probe (single)"}
    assert all(c["status"] == "ok" or "not in this kernel" in c["text"] for c in lines.values()), lines


@pytest.mark.parametrize("client", ["python", "curl", "wget", "openssl", "node"])
def test_what_each_client_said_was_opened(report: Json, client: str) -> None:
    lines = {name: c for name, c in group(report, "tls self-test").items() if name.startswith(client + " at ")}
    if client != "python" and shutil.which(client) is None:
        pytest.skip(f"{client} is not installed")
    assert lines
    for line in lines.values():
        opened, _, seen = line["text"].partition(" TLS bytes")[0].partition(" of ")
        assert line["status"] == "ok" and opened == seen and int(opened.replace(",", "")) > len(ANSWER)


def test_both_ways_of_reading_sockets_were_tested(report: Json) -> None:
    ways = {name.rpartition(" at ")[2] for name in group(report, "tls self-test") if name.startswith("python")}
    assert "sys_exit" in ways
    if group(report, "programs")["sockets (sock)"]["status"] == "ok":
        assert ways == {"sock", "sys_exit"}


def test_every_line_that_is_not_ok_names_its_fix(report: Json) -> None:
    for c in report["checks"]:
        assert c["status"] in ("ok", "skip") or c["fix"], c


def test_the_self_test_fails_where_the_stack_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = TlsStack("nothing", 200, (KeylogFunction(("no_such_function",), Arguments(Reg.SI, Reg.DX, Reg.CX)),))
    monkeypatch.setattr(selftest, "Discovery", lambda stacks: Discovery((nothing,), cache_dir=None))
    result = selftest.measure("auto", only=("python",)).results[0]
    line = selftest._line(result, "here", "sudo agentsight doctor")
    assert line.status == "fail" and line.text.startswith("0 of ") and line.fix


def test_a_client_that_hangs_is_ended_and_the_next_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Client("sleeper", "none", "sleep 98761", "/bin/sleep")
    real = clients.present
    monkeypatch.setattr(selftest, "present", lambda port: [hanging, real(port)[0]])
    monkeypatch.setattr(selftest, "CLIENT_SECONDS", 2.0)
    since = time.monotonic()
    first, second = selftest.measure("auto", only=("sleeper", "python")).results
    assert time.monotonic() - since < 20
    assert first.served is None and "did not end" in first.problem
    assert subprocess.run(["pgrep", "-fx", "sleep 98761"], capture_output=True, check=False).stdout == b""
    assert second.equal


def test_the_server_is_reached_on_loopback_only() -> None:
    with Server() as server:
        assert server._socket.getsockname()[0] == "127.0.0.1"


def test_without_capabilities_it_fails_with_the_sudo_line() -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    line = ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon", "--inh-caps=-sys_admin,-bpf,-perfmon"]
    done = subprocess.run([*line, AGENTSIGHT, "doctor", "--json"], capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["ok"] is False
    failed = {c["name"]: c for c in report["checks"] if c["status"] == "fail"}
    assert set(failed) == {"CAP_BPF", "CAP_PERFMON"}
    assert all(f"sudo {AGENTSIGHT} doctor --json" in c["fix"] for c in failed.values())


def test_discover_finds_the_libraries_and_is_quick_the_second_time() -> None:
    first = json.loads(run("discover", "--json").stdout)
    since = time.monotonic()
    done = run("discover", "--json")
    took = time.monotonic() - since
    again = json.loads(done.stdout)
    assert done.returncode == 0
    assert {r["path"] for r in first["libraries"]} == {r["path"] for r in again["libraries"]}
    assert any(s["stack"] == "openssl" for r in again["libraries"] for s in r["stacks"])
    assert took < 5, "the goal is 1 s; the rest is for machines that do other things meanwhile"

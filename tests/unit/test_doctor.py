"""``doctor``: each check on hosts that lack something, the certificate, the server and the clients of the self-test; no root."""

from __future__ import annotations

import dataclasses
import json
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from agentsight.cli import doctor as command
from agentsight.cli import main
from agentsight.doctor import certificate, clients, programs, selftest, system
from agentsight.doctor.clients import Client
from agentsight.doctor.lines import FAIL, OK, SKIP, WARN, Line, passed
from agentsight.doctor.selftest import Result
from agentsight.doctor.server import ANSWER, Served, Server
from agentsight.doctor.system import Host
from agentsight.errors import CaptureError
from agentsight.events import ConnectionEvent

SUDO = "sudo agentsight doctor"
ALL = "000001ffffffffff"
BTF = b"\0btf_trace_sock_send_length\0btf_trace_sock_recv_length\0bpf_uprobe_multi_link\0BPF_FUNC_loop\0"


def host(**changes: Any) -> Host:
    """A host that has everything, with changes."""
    good: dict[str, Any] = {
        "release": "6.12.9-amd64",
        "machine": "x86_64",
        "btf": BTF,
        "lockdown": "[none] integrity confidentiality",
        "status": f"CapEff:\t{ALL}\n".encode(),
        "meminfo": b"MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
        "cgroup_max": b"max",
        "lock_limit": 64 << 20,
        "tracefs": True,
        "sudo": SUDO,
    }
    return Host(**{**good, **changes})


def without(*bits: int) -> bytes:
    mask = int(ALL, 16)
    for bit in bits:
        mask &= ~(1 << bit)
    return f"Name:\tx\nCapEff:\t{mask:016x}\n".encode()


def status(lines: list[Line], name: str) -> str:
    found = [line for line in lines if line.name == name]
    assert len(found) == 1, [line.name for line in lines]
    return found[0].status


def test_a_host_that_has_everything_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.gate, "available", lambda: None)
    lines = system.check(host())
    assert {line.status for line in lines} == {OK}


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ({"release": "5.10.0-30-amd64"}, "kernel", FAIL),
        ({"release": "strange"}, "kernel", FAIL),
        ({"release": "5.15.0"}, "kernel", OK),
        ({"btf": b""}, "BTF", FAIL),
        ({"lockdown": "none integrity [confidentiality]"}, "lockdown", FAIL),
        ({"lockdown": "none [integrity] confidentiality"}, "lockdown", OK),
        ({"lockdown": ""}, "lockdown", OK),
        ({"status": without(39, 21)}, "CAP_BPF", FAIL),
        ({"status": without(38, 21)}, "CAP_PERFMON", FAIL),
        ({"status": without(38, 39)}, "CAP_BPF", OK),  # CAP_SYS_ADMIN stands for it
        ({"status": without(19)}, "CAP_SYS_PTRACE", FAIL),
        ({"status": without(21)}, "CAP_SYS_ADMIN", WARN),
        ({"status": without(24)}, "CAP_SYS_RESOURCE", OK),
        ({"btf": b"\0bpf_uprobe_multi_link\0"}, "sock_send_length", WARN),
        ({"btf": b"\0x\0"}, "uprobe_multi", OK),
        ({"btf": b"\0x\0"}, "bpf_loop", OK),
        ({"btf": b""}, "newer abilities", SKIP),
        ({"cgroup_max": b"104857600"}, "memory", WARN),
        ({"meminfo": b"MemAvailable: 1000 kB\n"}, "memory", WARN),
        ({"meminfo": b""}, "memory", WARN),
        ({"status": without(14), "lock_limit": 65536}, "locked memory", WARN),
        ({"status": without(14), "lock_limit": -1}, "locked memory", OK),
        ({"tracefs": False}, "tracefs", OK),
    ],
)
def test_what_a_host_lacks(changes: dict[str, Any], name: str, expected: str) -> None:
    lines = system.check(host(**changes))
    assert status(lines, name) == expected
    assert passed([line for line in lines if line.name == name]) is (expected != FAIL)
    for line in lines:
        assert line.text and "\n" not in line.text
        assert line.fix or line.status in (OK, SKIP), f"{line} names no fix"


def test_the_note_on_return_probes_is_for_the_kernels_concerned() -> None:
    for release, expected in (("6.10.1", False), ("6.11.0", True), ("6.13.9", True), ("6.14.0", False)):
        assert any(line.name == "uretprobes" for line in system.check(host(release=release))) is expected


def test_the_checks_of_this_very_host_raise_nothing() -> None:
    lines = system.check(Host(sudo=SUDO))
    assert status(lines, "kernel") == OK  # the suite's own requirement


class FakeCapture:
    """Refuses what `refuse` says; counts what is still attached."""

    live = 0

    def __init__(self, **options: Any) -> None:
        why = type(self).refuse(options)
        if why:
            raise CaptureError(why)
        self.options = options

    @staticmethod
    def refuse(options: dict[str, Any]) -> str | None:
        return None

    def start(self) -> None:
        type(self).live += 1

    def attach_secret(self, path: str, places: list[tuple[int, int]]) -> int:
        assert Path(path).name == "execgate" and places[0][0] > 0
        return 0

    def stop(self) -> None:
        type(self).live -= 1


def check_programs(refuse: Any) -> list[Line]:
    fake = type("Fake", (FakeCapture,), {"refuse": staticmethod(refuse), "live": 0})
    lines = programs.check(SUDO, make=fake)
    assert fake.live == 0, "something was left attached"
    return lines


def test_programs_that_all_load() -> None:
    lines = check_programs(lambda options: None)
    assert [line.status for line in lines] == [OK] * 6


def test_one_way_of_reading_sockets_is_enough() -> None:
    old = "this kernel has no sock_send_length tracepoint (6.3 or newer has): leave the I/O hook to be chosen"
    lines = check_programs(lambda o: old if o.get("io_hook") == "sock" else None)
    assert status(lines, "sockets (sock)") == SKIP and passed(lines)
    lines = check_programs(lambda o: "refused" if o.get("io_hook") == "sys_exit" else None)
    assert status(lines, "sockets (sys_exit)") == WARN and passed(lines)


def test_no_way_of_reading_sockets_fails() -> None:
    lines = check_programs(lambda o: "refused" if o["want_io"] else None)
    assert status(lines, "sockets (sock)") == status(lines, "sockets (sys_exit)") == FAIL
    assert status(lines, "probe") == status(lines, "probe (single)") == FAIL and not passed(lines)


def test_not_allowed_gives_the_sudo_line() -> None:
    lines = check_programs(lambda o: "the kernel refused a program: not allowed: run as root")
    assert not passed(lines)
    assert all(SUDO in line.fix for line in lines if line.status != OK)


def test_the_certificate_is_right(tmp_path: Path) -> None:
    for _ in range(20):  # its numbers are drawn: none may come out with a wrong length
        pem = certificate.make().encode()
        cert = x509.load_pem_x509_certificate(pem)
        key = cert.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert cert.signature_hash_algorithm is not None
        key.verify(cert.signature, cert.tbs_certificate_bytes, ec.ECDSA(cert.signature_hash_algorithm))
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["localhost"]
        assert cert.not_valid_before_utc < cert.not_valid_after_utc
        path = tmp_path / "pem"
        path.write_bytes(pem)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)  # the key belongs to it


def test_the_server_keeps_a_journal_and_outlives_bad_clients() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with Server() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(b"this is no TLS\r\n\r\n")
        with context.wrap_socket(socket.create_connection(("127.0.0.1", server.port))) as s:
            port = s.getsockname()[1]
            s.sendall(b"GET /me HTTP/1.1\r\n\r\n")
            got = b""
            while part := s.recv(65536):
                got += part
    assert got == ANSWER
    assert server.served == [Served("me", port, b"GET /me HTTP/1.1\r\n\r\n", len(ANSWER))]
    assert len(server.problems) == 1


def test_every_client_that_is_here_makes_its_request(tmp_path: Path) -> None:
    with Server() as server:
        found = clients.present(server.port)
        assert "python" in [c.name for c in found]
        for client in found:
            environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
            done = subprocess.run(["/bin/sh", "-c", client.command], env=environ, capture_output=True, timeout=60, check=False)
            assert client.name in [s.name for s in server.served], f"{client.command}: {done.stderr!r}"


CLIENT = Client("curl", "openssl", "curl ...", "/usr/bin/curl")
REQUEST = b"GET /curl HTTP/1.1\r\n\r\n"


def connection(**changes: Any) -> ConnectionEvent:
    values: dict[str, Any] = {
        "seq": 1, "timestamp": 1, "timestamp_ns": 1, "pid": 1, "comm": "curl", "conn": "1", "local": "127.0.0.1:1",
        "remote": "127.0.0.1:2", "protocol": "tls", "seen": 9000, "tls_opened": 5000, "tls_not_opened": 0, "skipped": 0,
        "missing": 0, "plaintext": 0, "decoded": 0, "version": "TLSv1.3",
    }  # fmt: skip
    return ConnectionEvent(**{**values, **changes})


def verdict(**changes: Any) -> Line:
    served = Served("curl", 1, REQUEST, len(ANSWER))
    result = Result(CLIENT, served, connection(), REQUEST, ANSWER)
    return selftest._line(dataclasses.replace(result, **changes), "at sock", SUDO)


def test_verdicts_of_the_self_test() -> None:
    good = verdict()
    assert good.status == OK and "5,000 of 5,000" in good.text and f"{len(REQUEST) + len(ANSWER):,} bytes" in good.text
    dark = verdict(connection=connection(tls_opened=0, tls_not_opened=5000, reasons={"no secret": 5000}), sent=b"", received=b"")
    assert dark.status == FAIL and "0 of 5,000" in dark.text and "no secret" in dark.text and dark.fix
    wrong = verdict(received=ANSWER[:-1] + b"?")
    assert wrong.status == FAIL and "differ" in wrong.text
    assert verdict(connection=None).status == FAIL
    silent = verdict(served=None, problem="exit status 7")
    assert silent.status == WARN and "exit status 7" in silent.text


def test_a_self_test_in_which_nothing_was_said_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = selftest.Run([Result(CLIENT, problem="exit status 7")], "sock", [("go", "no compiler")])
    monkeypatch.setattr(selftest, "measure", lambda hook, only=(): run)
    lines = selftest.check(SUDO)
    assert [line.status for line in lines] == [WARN, SKIP, FAIL] and "lo up" in lines[-1].fix


def test_the_exit_status_says_whether_it_can_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for worst, expected in ((OK, 0), (WARN, 0), (SKIP, 0), (FAIL, 1)):
        lines = [Line("system", "kernel", OK, "6.12"), Line("system", "thing", worst, "text", "do this")]
        monkeypatch.setattr(command, "checks", lambda words, lines=lines, **more: iter(lines))
        assert main(["doctor", "--json"]) == expected
        report = json.loads(capsys.readouterr().out)
        assert report["ok"] is (expected == 0)
        assert report["checks"][1] == {"group": "system", "name": "thing", "status": worst, "text": "text", "fix": "do this"}


def test_lines_for_people_have_their_fix(capsys: pytest.CaptureFixture[str]) -> None:
    command._show(Line("system", "BTF", FAIL, "missing", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"), first=True)
    shown = capsys.readouterr().out
    assert "SYSTEM" in shown and "fail  BTF: missing" in shown and "fix: use a kernel built with CONFIG_DEBUG_INFO_BTF=y" in shown


def test_without_rights_the_rest_is_checked_and_the_sudo_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentsight.capture import rights

    monkeypatch.setattr(rights, "missing_capabilities", lambda: ["CAP_BPF"])
    lines = list(command.checks(["doctor"]))
    for group in (programs.GROUP, selftest.GROUP):
        assert [(line.status, line.fix.startswith("sudo ")) for line in lines if line.group == group] == [(SKIP, True)]
    assert [line for line in lines if line.group == "tls libraries"]

"""Secrets from real TLS clients against the server's own key log, the wire's bytes beside them; and that nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel import ringtools as rt
from kernel.ringtools import PROC, READ, WRITE, capturing, closed_ok, read_all, serving


def libssl() -> str:
    import _ssl

    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libssl.so" in line:
            return line.split()[-1]
    pytest.skip(f"this Python has no shared libssl ({_ssl.__file__})")


def key_log_function(path: str) -> int:
    """File offset of ssl_log_secret, by objdump: what is called behind the load of the label CLIENT_RANDOM."""
    data = Path(path).read_bytes()
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout
    where = f"# {data.index(b'CLIENT_RANDOM' + bytes(1)):x} "
    lines = iter(text.splitlines())
    for line in lines:
        if where in line + " " and "lea" in line:
            for follow in lines:
                if "call" in follow:
                    return int(follow.split("call")[1].split()[0], 16)
    raise AssertionError("not found")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            path,
            "-out",
            path.with_suffix(".crt"),
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ],
        check=True,
        capture_output=True,
    )
    with path.open("ab") as f:
        f.write(path.with_suffix(".crt").read_bytes())
    return path


CLIENTS = {
    "curl": ["curl", "-sk", "https://127.0.0.1:{port}/"],
    "python": [
        sys.executable,
        "-c",
        "import ssl,urllib.request as u; u.urlopen('https://127.0.0.1:{port}/', context=ssl._create_unverified_context()).read()",
    ],
    "openssl": ["openssl", "s_client", "-quiet", "-connect", "127.0.0.1:{port}"],
}


@pytest.mark.parametrize("single", [False, True], ids=["multi", "single"])
@pytest.mark.parametrize("client", CLIENTS)
def test_secrets_of_real_clients(client: str, single: bool, certificate: Path, tmp_path: Path) -> None:
    library = libssl()
    log = tmp_path / "keys"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.keylog_filename = str(log)
    wire: list[bytes] = []

    def handle(raw: socket.socket) -> None:
        # TLS over memory, so that this end knows the very bytes on the wire
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        received, sent, request = b"", b"", b""
        while b"\r\n\r\n" not in request:
            try:
                request += tls.read(65536)
            except ssl.SSLWantReadError:
                out = outgoing.read()
                sent += out
                raw.sendall(out)
                part = raw.recv(65536)
                assert part
                received += part
                incoming.write(part)
        tls.write(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        if client == "openssl":  # it wants a proper end; the others leave without reading it
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
        out = outgoing.read()
        sent += out
        raw.sendall(out)
        raw.shutdown(socket.SHUT_WR)
        received += read_all(raw)
        wire.extend([received, sent])

    with capturing(single_probes=single) as (capture, run), serving(handle) as (port, _):
        capture.attach_secret(library, [(key_log_function(library), rt.OPENSSL)])
        argv = [a.format(port=port) for a in CLIENTS[client]]
        capture.add_name(os.path.basename(argv[0]), 15)
        p = subprocess.run(
            argv,
            input=b"GET / HTTP/1.0\r\n\r\n" if client == "openssl" else None,
            capture_output=True,
            timeout=30,
        )
        assert p.returncode == 0, p.stderr
    (conn,) = run.of(rt.CONN)
    assert run.flow(conn.chan, WRITE) == (wire[0], [])
    assert run.flow(conn.chan, READ) == (wire[1], [])
    close = closed_ok(run, conn.chan)
    assert (close.cls_r, close.cls_w) == (1, 1)
    logged = {
        (w[0], w[2])
        for w in (line.split() for line in log.read_text().splitlines())
        if not line_is_comment(w)
    }
    seen = {(r.label[: r.label_len].decode(), r.secret[: r.secret_len].hex()) for r in run.of(rt.SECRET)}
    assert seen == logged and len(seen) >= 5


def line_is_comment(words: list[str]) -> bool:
    return not words or words[0].startswith("#")


# ---- nothing stays behind ----


def test_kill_leaves_nothing_attached() -> None:
    before = loaded_programs()
    code = (
        "import sys, time\nfrom agentsight import _native\nfrom agentsight._native.ringbuf import Capture\n"
        "c = Capture(obj=_native.bpf_object(), want_stdio=True, track_all=True)\n"
        f"""
c.attach_secret({libssl()!r}, [({key_log_function(libssl())}, {rt.OPENSSL})])
c.start()
print('up', flush=True)
time.sleep(60)
"""
    )
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert p.stdout and p.stdout.readline() == "up\n"
    assert len(loaded_programs() - before) >= 9
    p.send_signal(signal.SIGKILL)
    p.communicate()
    deadline = time.monotonic() + 5
    while loaded_programs() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not loaded_programs() - before


def loaded_programs() -> set[int]:
    """Ids of all BPF programs in the kernel (bpf(2), BPF_PROG_GET_NEXT_ID)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    found: set[int] = set()
    attr = (ctypes.c_uint32 * 8)()
    while libc.syscall(321 if os.uname().machine == "x86_64" else 280, 11, attr, 32) == 0:
        found.add(attr[1])
        attr[0] = attr[1]
    return found


def test_stop_is_quick() -> None:
    with capturing(want_stdio=True) as (capture, run):
        capture.attach_secret(libssl(), [(key_log_function(libssl()), rt.OPENSSL)])
        capture.add_target(1, PROC)
    assert run.stop_seconds < 0.5

"""The places that discovery finds, tried: a uprobe there, by tracefs, sees the secrets of a real handshake.

A client of each stack calls a server here that writes a key log; label and secret as they are in the registers of the stack's
`Arguments` must be those of the key log, all of them but the exporter's; for Go the client random too.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import subjects
from modelserver import certs

from agentsight.capture.discovery import Discovery
from agentsight.tls import STACKS, Reg

TRACEFS = Path("/sys/kernel/tracing")
CLIENTS = Path(__file__).resolve().parent.parent / "clients"
NAMES = ("di", "si", "dx", "cx", "r8", "r9", "ax", "bx", "r10", "r11")  # by Reg

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="registers of x86-64"),
    pytest.mark.skipif(not os.access(TRACEFS / "uprobe_events", os.W_OK), reason="no uprobe_events in tracefs"),
]


@dataclass(frozen=True)
class Secret:
    """One line of a key log; the client random empty where the stack has none."""

    label: str
    secret: str
    random: str = ""


def append(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def server(directory: Path, version: str) -> Iterator[tuple[int, Path]]:
    """A port where TLS of that version answers each request, and its key log."""
    certs.make(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    context.keylog_filename = str(directory / "keys")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:  # closed: the test is over
                return
            with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], directory / "keys"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@contextlib.contextmanager
def probe(path: Path, offset: int, stack: str) -> Iterator[list[Secret]]:
    """A probe while the block runs; the secrets are in the list behind it."""
    arguments = next(s for s in STACKS if s.name == stack).functions[0].arguments
    at = {
        name: NAMES[reg]
        for name in ("label", "label_len", "secret", "secret_len", "random")
        if (reg := getattr(arguments, name)) < 15
    }
    fields = f"secret=+0(%{at['secret']}):x8[48] n=%{at['secret_len']}:u64"
    if arguments.label_len == Reg.NONE:
        fields += f" label=+0(%{at['label']}):string"
    else:
        fields += f" label=+0(%{at['label']}):x8[48] label_len=%{at['label_len']}:u64"
    if "random" in at:
        fields += f" random=+0(%{at['random']}):x8[32]"
    seen: list[Secret] = []
    name = f"agentsight_test/p{os.getpid()}"
    append(TRACEFS / "uprobe_events", f"p:{name} {path}:{offset:#x} {fields}\n")
    instance = TRACEFS / "instances" / f"agentsight-test-{os.getpid()}"
    try:
        instance.mkdir()
        (instance / "events" / name / "enable").write_text("1")
        yield seen
        seen += map(parse, [line for line in (instance / "trace").read_text().splitlines() if " secret={" in line])
    finally:
        if instance.exists():
            (instance / "events" / name / "enable").write_text("0")
            instance.rmdir()
        append(TRACEFS / "uprobe_events", f"-:{name}\n")


def parse(line: str) -> Secret:
    """One hit."""

    def numbers(field: str) -> bytes:
        found = re.search(rf" {field}=\{{([^}}]*)\}}", line)
        return bytes(int(x, 16) for x in found[1].split(",")) if found else b""

    def number(field: str) -> int:
        found = re.search(rf" {field}=(\d+)", line)
        assert found, line
        return int(found[1])

    text = re.search(r' label="([^"]*)"', line)
    label = text[1] if text else numbers("label")[: number("label_len")].decode()
    return Secret(label, numbers("secret")[: number("n")].hex(), numbers("random").hex())


def check(tmp_path: Path, version: str, stack: str, file: Path, command: list[str | Path]) -> None:
    """Find the function, probe it, run the client, compare."""
    target = next(t for t in Discovery(STACKS, cache_dir=None).file(file) if t.stack == stack)
    with server(tmp_path, version) as (port, log):
        words = [str(word).replace("PORT", str(port)) for word in command]
        with probe(file.resolve(), target.offset, stack) as seen:
            subprocess.run(words, timeout=60, check=False, capture_output=True, stdin=subprocess.DEVNULL)
        lines = [line.split() for line in log.read_text().splitlines() if not line.startswith("#")]
    with_random = any(s.random for s in seen)
    truth = {Secret(label, secret, random if with_random else "") for label, random, secret in lines}
    assert seen, "the probe was not hit"
    assert set(seen) <= truth
    assert {s.label for s in truth - set(seen)} <= {"EXPORTER_SECRET"}  # Go does not log it


VERSIONS = pytest.mark.parametrize("version", ["1.3", "1.2"])


def subject(make: object, *arguments: str | Path, **more: str) -> Path:
    assert callable(make)
    try:
        path = make(*arguments, **more)
    except subjects.UnavailableError as e:
        pytest.skip(str(e))
    assert isinstance(path, Path)
    return path


def library_of(name: str) -> Path:
    path = next((p for d in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64") for p in Path(d).glob(name)), None)
    if path is None:
        pytest.skip(f"no {name} here")
    return path


@VERSIONS
@pytest.mark.parametrize(
    "command",
    [
        ["wget", "--no-check-certificate", "-q", "-t", "1", "-O", "/dev/null", "https://localhost:PORT/"],
        ["git", "-c", "http.sslVerify=false", "ls-remote", "https://localhost:PORT/x.git"],
    ],
    ids=["wget", "git"],
)
def test_gnutls(tmp_path: Path, version: str, command: list[str | Path]) -> None:
    program = shutil.which(str(command[0]))
    used = [program, *Path("/usr/lib/git-core").glob("git-remote-http")] if program else []
    listed = [subprocess.run(["ldd", p], capture_output=True, text=True, check=False).stdout for p in used if p]
    if not any("gnutls" in text for text in listed):
        pytest.skip(f"no {command[0]} with GnuTLS")
    check(tmp_path, version, "gnutls", library_of("libgnutls.so.30"), command)


@VERSIONS
@pytest.mark.parametrize("flags", [("-trimpath",), ("-trimpath", "-buildmode=pie")], ids=["fixed", "pie"])
def test_go(tmp_path: Path, version: str, flags: tuple[str, ...]) -> None:
    program = subject(subjects.go, CLIENTS / "go_call.go", *flags, "-ldflags=-s -w")
    check(tmp_path, version, "go", program, [program, "localhost:PORT"])


@pytest.mark.agents
@pytest.mark.parametrize("go", ["1.18.10", "1.19.13", "1.20.14", "1.21.13", "1.22.12", "1.23.12", "1.24.11", "1.25.5"])
def test_every_go(tmp_path: Path, go: str) -> None:
    program = subject(subjects.go, CLIENTS / "go_call.go", "-trimpath", "-ldflags=-s -w", toolchain=f"go{go}")
    check(tmp_path, "1.3", "go", program, [program, "localhost:PORT"])


FETCH = "console.log((await fetch('https://localhost:PORT/', {tls: {rejectUnauthorized: false}})).status)"


@VERSIONS
def test_bun(tmp_path: Path, version: str) -> None:
    bun = subject(subjects.npm, "@oven/bun-linux-x64", "1.3.14", "bin/bun")
    check(tmp_path, version, "boringssl", bun, [bun, "-e", FETCH])


@pytest.mark.agents
@pytest.mark.parametrize("bun", ["1.0.36", "1.1.45", "1.2.23", "1.4.5"])
@VERSIONS
def test_every_bun(tmp_path: Path, version: str, bun: str) -> None:
    program = subject(subjects.npm, "@oven/bun-linux-x64", bun, "bin/bun")
    check(tmp_path, version, "boringssl", program, [program, "-e", FETCH])

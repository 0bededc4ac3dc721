"""The clients of the self-test: one small program per TLS stack, as far as installed. Each asks ``/NAME`` once, on loopback.

They trust any certificate, use no proxy, read no configuration, and start from an empty environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

GO_SECONDS = 20.0  # for the compiler; what it finished meanwhile is cached for the next time

_PYTHON = """\
import socket, ssl, sys
context = ssl._create_unverified_context()
with context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)) as s:
    s.sendall(b"GET /python HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    while s.recv(65536):
        pass
"""
_NODE = """\
require("https").get({host: "127.0.0.1", port: process.argv[1], path: "/node", rejectUnauthorized: false}, r => r.resume())
"""
_BUN = 'await (await fetch("https://127.0.0.1:" + process.argv.at(-1) + "/bun", {tls: {rejectUnauthorized: false}})).text()'
_GO = """\
package main

import (
\t"crypto/tls"
\t"io"
\t"os"
)

func main() {
\tc, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[1], &tls.Config{InsecureSkipVerify: true})
\tif err != nil {
\t\tpanic(err)
\t}
\tio.WriteString(c, "GET /go HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
\tio.Copy(io.Discard, c)
}
"""


@dataclass(frozen=True, slots=True)
class Client:
    """`command`: a line for the shell. `program`: its binary, for a look at it beforehand."""

    name: str
    stack: str
    command: str
    program: str


def present(port: int) -> list[Client]:
    """Those that are installed, but for Go."""
    url = f"https://127.0.0.1:{port}"
    python = _quoted(sys.executable)
    found = [Client("python", "openssl", f"{python} -I -c {_quoted(_PYTHON)} {port}", sys.executable)]
    for name, stack, program, line in (
        ("curl", "openssl or what libcurl uses", "curl", f"-q -s -k --noproxy '*' -o /dev/null {url}/curl"),
        ("wget", "gnutls or openssl", "wget", f"--no-config --no-check-certificate --no-proxy -t 1 -q -O /dev/null {url}/wget"),
        ("openssl", "openssl", "openssl", f"s_client -connect 127.0.0.1:{port} -quiet"),
        ("node", "openssl, inside node", "node", f"-e {_quoted(_NODE)} {port}"),
        ("bun", "boringssl", "bun", f"-e {_quoted(_BUN)} {port}"),
    ):
        path = shutil.which(program)
        if path is None:
            continue
        command = f"{_quoted(path)} {line}"
        if name == "openssl":
            command = f"printf 'GET /openssl HTTP/1.0\\r\\n\\r\\n' | {command}"
        found.append(Client(name, stack, command, path))
    return found


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


class GoClient:
    """Compiles the Go client in the background, with a toolchain that is there; nothing is downloaded."""

    def __init__(self, directory: Path) -> None:
        self._out = directory / "goclient"
        self._process: subprocess.Popen[bytes] | None = None
        tool = shutil.which("go")
        if tool is None:
            return
        source = directory / "main.go"
        source.write_text(_GO)
        offline = {"GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "", "CGO_ENABLED": "0", "GO111MODULE": "off"}
        environ = {**os.environ, **offline}
        environ.setdefault("HOME", str(directory))
        self._process = subprocess.Popen(
            [tool, "build", "-o", str(self._out), str(source)],
            env=environ,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._since = time.monotonic()

    @property
    def present(self) -> bool:
        """Whether there is a toolchain."""
        return self._process is not None

    def client(self, port: int) -> Client | str:
        """The client when it is compiled; else why there is none."""
        process = self._process
        if process is None:
            return "no Go toolchain"
        try:
            _, err = process.communicate(timeout=max(0.0, GO_SECONDS - (time.monotonic() - self._since)))
        except subprocess.TimeoutExpired:
            self.close()
            return f"compiling took longer than {GO_SECONDS:.0f} s (what was compiled is kept: run it again)"
        if process.returncode:
            return "go build failed: " + (err.decode("utf-8", "replace").splitlines() or ["no message"])[-1][:200]
        return Client("go", "go", f"{_quoted(str(self._out))} {port}", str(self._out))

    def close(self) -> None:
        """End the compiler, with all it started."""
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, 9)  # a session of its own: only what we started
            process.communicate()

"""Start the model server from a test, as a process of its own, and reach its journal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from .journal import Journal

_HERE = Path(__file__).resolve().parent


class ModelServer:
    """A running model server: `with ModelServer() as server: ... server.url ...`.

    `arguments` are those of `python -m tests.modelserver`, beside --dir, for example "--plain" or "--tls-max", "1.2". Without a
    `directory` a temporary one is made, and removed at the end. RuntimeError if it does not start.
    """

    def __init__(self, *arguments: str, directory: str | Path | None = None) -> None:
        self._arguments = arguments
        self._own = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="modelserver-"))
        self.journal = Journal(self.directory / "journal")
        self.ca = self.directory / "ca.pem"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> ModelServer:
        """Start, and wait until it listens."""
        command = [
            sys.executable,
            "-m",
            _HERE.name,
            "--dir",
            str(self.directory),
            "--stdin",
            *self._arguments,
        ]
        path = os.pathsep.join([str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        )
        assert self._process.stdout
        line = self._process.stdout.readline().decode()
        if not line.startswith("ready "):
            self.stop()
            raise RuntimeError(f"the model server did not start: {line!r}")
        self.port = int(line.split()[1])
        return self

    def stop(self) -> None:
        """End the process, and remove the directory if it was made here."""
        if self._process:
            self._process.terminate()
            self._process.communicate(timeout=10)
            self._process = None
        if self._own:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def plain(self) -> bool:
        """Whether it speaks HTTP without TLS."""
        return "--plain" in self._arguments

    @property
    def url(self) -> str:
        """Base URL, with the name that the certificate has."""
        return f"http{'' if self.plain else 's'}://localhost:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """This process's environment with what makes clients trust the server and use it: Python, curl, node, the SDKs."""
        trusting = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
        return {
            **os.environ,
            **({} if self.plain else dict.fromkeys(trusting, str(self.ca))),
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "sk-ant-test",
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": "sk-test",
        }

    def __enter__(self) -> ModelServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

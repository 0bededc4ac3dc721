"""The TLS self-test: small clients ask a server in this process, on loopback alone, under a real capture.

What the capture opened is laid beside what the server sent and received.

The clients are children of a shell that is the capture's target, so they are tracked from their first instruction, as under
``record``. Everything has a time limit.
"""

from __future__ import annotations

import base64
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentsight.capture.attach import Attacher
from agentsight.capture.discovery import Discovery
from agentsight.capture.live import bpf_object
from agentsight.capture.targets import flags_of
from agentsight.doctor.clients import Client, GoClient, present
from agentsight.doctor.lines import FAIL, OK, SKIP, WARN, Line
from agentsight.doctor.server import ANSWER, Served, Server
from agentsight.errors import AgentsightError
from agentsight.events import ConnectionEvent, Event, ProcessEvent, SslEvent
from agentsight.options import Options
from agentsight.pipeline import make_decoder
from agentsight.tls import STACKS

GROUP = "tls self-test"
CLIENT_SECONDS = 10.0
SETTLE_SECONDS = 0.2
RING_BYTES = 4 << 20


@dataclass
class Result:
    """What became of one client. `sent`, `received`: its plaintext as captured."""

    client: Client
    served: Served | None = None
    connection: ConnectionEvent | None = None
    sent: bytes = b""
    received: bytes = b""
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Whether both directions were captured byte for byte."""
        return self.served is not None and self.sent == self.served.request and self.received == ANSWER


@dataclass
class Run:
    """One capture over some clients."""

    results: list[Result] = field(default_factory=list)
    hook: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)  # client, why


def check(sudo: str) -> list[Line]:
    """The self-test as lines: one per client, then the other way of reading sockets with one client."""
    lines: list[Line] = []
    try:
        run = measure("auto")
        lines += [_line(result, f"at {run.hook}", sudo) for result in run.results]
        lines += [Line(GROUP, name, SKIP, why) for name, why in run.skipped]
        if not any(result.served for result in run.results):
            text = "no client reached the server on 127.0.0.1: nothing was proven"
            lines.append(Line(GROUP, "loopback", FAIL, text, "ip link set lo up; then see the lines above"))
            return lines
        if run.hook == "sock":
            other = measure("sys_exit", only=("python",))
            lines += [_line(result, f"at {other.hook}", sudo) for result in other.results]
    except (AgentsightError, OSError) as e:
        lines.append(Line(GROUP, "capture", FAIL, str(e), f"see the lines above; as root: {sudo}"))
    return lines


def _line(result: Result, where: str, sudo: str) -> Line:
    name, c = f"{result.client.name} {where}", result.connection
    report = f"report it with the output of: {sudo} --json"
    if result.served is None:
        text = result.problem or "the client made no request"
        return Line(GROUP, name, WARN, f"not tested: {text}", f"try it by hand: {result.client.program} --version")
    if c is None:
        return Line(GROUP, name, FAIL, "its connection was not seen at all", report)
    tls = c.tls_opened + c.tls_not_opened + c.missing
    bytes_ = f"{c.tls_opened:,} of {tls:,} TLS bytes opened"
    whole = len(result.served.request) + len(ANSWER)
    what = f"{result.client.stack}, {c.version or 'TLS'} {c.cipher or ''}".rstrip()
    if result.equal:
        return Line(GROUP, name, OK, f"{bytes_}; {whole:,} bytes of plaintext equal to the server's ({what})")
    why = ", ".join(f"{n:,} bytes: {reason}" for reason, n in c.reasons.items())
    if not c.tls_opened:
        text = f"{bytes_} ({what}){': ' + why if why else ''}"
        return Line(GROUP, name, FAIL, text, f"agentsight discover shows why; {report}")
    got = len(result.sent) + len(result.received)
    text = f"{bytes_}, and {got:,} bytes of plaintext differ from the server's {whole:,} ({what}) {why}"
    return Line(GROUP, name, FAIL, text.rstrip(), report)


def measure(io_hook: str, only: Iterable[str] = ()) -> Run:
    """Run the clients under a capture that reads sockets in this way. CaptureError where it cannot be set up."""
    wanted = set(only)
    with tempfile.TemporaryDirectory(prefix="agentsight-") as place, Server() as server:
        directory = Path(place)
        go = None if wanted else GoClient(directory)
        try:
            with _Watched(io_hook, directory) as watched:
                run = Run(hook=watched.capture.io_hook)
                clients = [c for c in present(server.port) if not wanted or c.name in wanted]
                for client in clients:
                    run.results.append(watched.ask(client, server))
                if go is not None and go.present:
                    client_or_why = go.client(server.port)
                    if isinstance(client_or_why, Client):
                        run.results.append(watched.ask(client_or_why, server))
                    else:
                        run.skipped.append(("go", client_or_why))
            watched.sort_out(run.results)
            return run
        finally:
            if go is not None:
                go.close()


class _Watched:
    """A shell under a capture. Leaving it ends both; `events` then is whole."""

    def __init__(self, io_hook: str, directory: Path) -> None:
        from agentsight._native.ringbuf import Capture

        options = self._options = Options(http=False, sse_merge=False, llm=False)
        self.events: list[Event] = []
        self._decoder = make_decoder(options)
        self.capture: Any = Capture(obj=bpf_object(), io_hook=io_hook, ring_bytes=RING_BYTES)
        self._attacher = Attacher(self.capture, Discovery(STACKS))
        self._directory = directory
        self._shell: subprocess.Popen[bytes] | None = None
        try:
            self.capture.exclude(os.getpid())
            self._attacher.host()
            self.capture.start()
            self._attacher.open_notes()
            self._attacher.start()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *args: object) -> None:
        self._end()

    def ask(self, client: Client, server: Server) -> Result:
        """Let the client make its request, and read the capture meanwhile."""
        self._attacher.file(os.path.realpath(client.program))
        shell = self._tracked_shell()
        assert shell.stdin is not None and shell.stdout is not None
        result = Result(client)
        before = len(server.problems)
        shell.stdin.write(f"( {client.command} ) </dev/null >/dev/null 2>&1; echo $?\n".encode())
        shell.stdin.flush()
        end = time.monotonic() + CLIENT_SECONDS
        while not select.select([shell.stdout], [], [], 0)[0]:
            self._read(0.02)
            if time.monotonic() > end:
                result.problem = f"it did not end within {CLIENT_SECONDS:.0f} s"
                self._end_shell()
                break
        else:
            status = os.read(shell.stdout.fileno(), 64).decode("ascii", "replace").strip()
            if status not in ("", "0"):
                result.problem = f"exit status {status}"
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            self._read(0.02)
        result.served = next((s for s in reversed(server.served) if s.name.partition("?")[0] == client.name), None)
        if result.served is None:
            result.problem = "; ".join([result.problem, *server.problems[before:]]).strip("; ") or "it sent no request"
        return result

    def sort_out(self, results: list[Result]) -> None:
        """Give each client its connection and its plaintext."""
        by_port = {int(e.local.rpartition(":")[2]): e for e in self.events if type(e) is ConnectionEvent}
        for result in results:
            if result.served is None:
                continue
            result.connection = by_port.get(result.served.port)
            if result.connection is not None:
                mine = [e for e in self.events if type(e) is SslEvent and not e.is_handshake and e.conn == result.connection.conn]
                result.sent = b"".join(_bytes(e) for e in mine if e.function == "WRITE/SEND")
                result.received = b"".join(_bytes(e) for e in mine if e.function != "WRITE/SEND")

    def _read(self, seconds: float) -> None:
        batch = self.capture.read(seconds)
        if batch is None:
            return
        events = self._decoder.feed(batch)
        self.events += events
        execs = [e.pid for e in events if type(e) is ProcessEvent and e.event == "EXEC"]
        if execs:
            self._attacher.again(execs)

    def _tracked_shell(self) -> subprocess.Popen[bytes]:
        """The shell that starts the clients: a new one where a client had to be ended."""
        if self._shell is None:
            self._shell = subprocess.Popen(
                ["/bin/sh"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self._directory,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._directory), "LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C is ours
            )
            self.capture.add_target(self._shell.pid, flags_of(self._options))
        return self._shell

    def _end_shell(self) -> None:
        shell, self._shell = self._shell, None
        if shell is not None:
            if shell.poll() is None:
                os.killpg(shell.pid, 9)  # a session of its own: it and the client
            shell.communicate()

    def _end(self) -> None:
        self._end_shell()
        self._attacher.stop()
        self.capture.stop()
        while (batch := self.capture.read(0)) is not None:
            self.events += self._decoder.feed(batch)
        self.events += self._decoder.flush()


def _bytes(event: SslEvent) -> bytes:
    return base64.b64decode(event.data_base64) if event.data_base64 is not None else (event.data or "").encode()

"""What the kernel tests share: run the installed `agentsight`, and lay what it captured beside the model server's journal."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelserver import Connection

AGENTSIGHT = Path(sys.executable).with_name("agentsight")
CLIENTS = Path(__file__).resolve().parent.parent / "clients"
Json = dict[str, Any]


def run(*words: str | Path, timeout: float = 120, **more: Any) -> subprocess.CompletedProcess[str]:
    """`agentsight WORDS`, to its end."""
    return subprocess.run(
        [str(AGENTSIGHT), *map(str, words)], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **more
    )


@contextlib.contextmanager
def watching(*words: str | Path, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A capturing command in the background: armed when the block begins, stopped by Ctrl-C and read to its end behind it.

    `process.err` is its whole stderr afterwards.
    """
    process = subprocess.Popen(
        [str(AGENTSIGHT), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=more.pop("stdout", subprocess.DEVNULL),
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    head: list[str] = []
    assert process.stderr is not None
    try:
        for line in process.stderr:
            head.append(line)
            if line.startswith("agentsight: watching"):
                break
        else:
            raise AssertionError(f"never armed: {''.join(head)}")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            rest = process.stderr.read()
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        process.stderr.close()
        process.err = "".join(head) + rest  # type: ignore[attr-defined]


def events(text: str | Path) -> list[Json]:
    """The events of a log; every line must be one."""
    raw = text.read_text() if isinstance(text, Path) else text
    return [json.loads(line) for line in raw.splitlines()]


def data(found: Sequence[Json], source: str) -> list[Json]:
    """What the events of one source carry."""
    return [event["data"] for event in found if event["source"] == source]


def content(event: Json) -> bytes:
    """The bytes of a raw event."""
    if event.get("data_base64") is not None:
        return base64.b64decode(event["data_base64"])
    return (event["data"] or "").encode()


@dataclasses.dataclass
class Flows:
    """The plaintext of one connection as captured, from the side of the client."""

    c2s: bytes = b""
    s2c: bytes = b""


def flows(found: Sequence[Json], side: str = "client") -> dict[int, Flows]:
    """Raw events put together, by the client's port. Offsets must join: no gap, no overlap."""
    port_of = {}
    for c in data(found, "connection"):
        port_of[c["conn"]] = int(c["local"].rpartition(":")[2])
    out: dict[int, Flows] = {}
    for event in data(found, "ssl"):
        if event["is_handshake"]:
            continue
        flow = out.setdefault(port_of[event["conn"]], Flows())
        sent = event["function"] == "WRITE/SEND"
        got = flow.c2s if sent == (side == "client") else flow.s2c
        assert event["offset"] == len(got), f"gap or overlap at {event['offset']}, have {len(got)}"
        assert not event["truncated"]
        if sent == (side == "client"):
            flow.c2s += content(event)
        else:
            flow.s2c += content(event)
    return out


def assert_equal_to_journal(found: Sequence[Json], journal: Sequence[Connection], at_least: int = 1) -> int:
    """Every connection of the journal was captured byte for byte, in both directions. Gives the bytes compared."""
    captured = flows(found)
    compared = 0
    spoken = [c for c in journal if c.c2s]
    assert len(spoken) >= at_least
    for connection in spoken:
        flow = captured.get(connection.peer[1])
        assert flow is not None, f"connection from port {connection.peer[1]} was not captured; have {sorted(captured)}"
        assert flow.c2s == connection.c2s, f"client to server differs: {len(flow.c2s)} bytes of {len(connection.c2s)}"
        if connection.s2c_sure == len(connection.s2c):
            assert flow.s2c == connection.s2c, f"server to client differs: {len(flow.s2c)} bytes of {len(connection.s2c)}"
        compared += len(flow.c2s) + len(flow.s2c)
    return compared


def record(capture: Path, command: Sequence[str | Path], *, env: dict[str, str] | None = None, timeout: float = 180) -> str:
    """`agentsight record --capture CAPTURE -- COMMAND`; gives what it and the command printed."""
    done = run(
        "record", "--capture", capture, "--quiet", "--", *command, env={**os.environ, **(env or {})}, timeout=timeout
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def replay(capture: Path, *words: str) -> list[Json]:
    """The events of a capture file."""
    done = run("replay", capture, "--format", "json", "--disable-auth-removal", *words)
    assert done.returncode == 0, done.stderr
    return events(done.stdout)


def wait_for(condition: Any, timeout: float = 10.0) -> Any:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            assert value, "waited in vain"
            return value
        time.sleep(0.02)

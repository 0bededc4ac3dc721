"""What the tests of real agents share: a network of their own, a clean environment, the comparison, and the rows of the table.

An agent and the model server live in a network namespace that has nothing but a loopback device, so telemetry and update checks
reach nothing. `agentsight` itself runs outside of it, as a user would run it. Every comparison leaves one row, whatever it finds,
in `.cache/agents/`; `report.py` makes `docs/agents.md` of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import subjects
from kernel.harness import Json, assert_equal_to_journal, data, flows, record, replay
from modelserver import Connection, ModelServer

from agentsight.capture.discovery import Discovery
from agentsight.tls import STACKS

ROWS = subjects.CACHE.parent / "agents"
CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, in another network namespace."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(namespace, os.O_RDONLY)
    try:
        if _libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            if _libc.setns(here, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(here)
        os.close(there)


class Island:
    """A network namespace with the model server, and the way to run a command in it. Made by `island`."""

    def __init__(self, namespace: str, server: ModelServer, home: Path) -> None:
        self.namespace = namespace
        self.server = server
        self.home = home

    def environment(self) -> dict[str, str]:
        """All that an agent gets: nothing of this process's environment."""
        ca = str(self.server.ca)
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "SSL_CERT_FILE": ca,
            "NODE_EXTRA_CA_CERTS": ca,
            "ANTHROPIC_BASE_URL": self.server.url,
            "ANTHROPIC_API_KEY": "sk-ant-test",
        }

    def command(self, *words: str | Path, **more: str) -> list[str]:
        """The command line that runs `words` in here, in the clean environment and `more`."""
        variables = [f"{k}={v}" for k, v in {**self.environment(), **more}.items()]
        return ["nsenter", f"--net={self.namespace}", "env", "-i", *variables, *map(str, words)]


@contextlib.contextmanager
def island(tmp_path: Path, *server_arguments: str) -> Iterator[Island]:
    """A namespace with loopback up and a model server in it; both end with the block."""
    holder = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n", "no network namespace"
        namespace = f"/proc/{holder.pid}/ns/net"
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        server = ModelServer(*server_arguments)
        with inside(namespace):
            server.start()
        try:
            yield Island(namespace, server, home)
        finally:
            server.stop()
    finally:
        holder.communicate(timeout=10)


def subject(make: Any, *arguments: str | Path, **more: str) -> Path:
    """A program by one of the functions of `subjects`; the test is skipped, with the reason, where it cannot be had."""
    try:
        path: Path = make(*arguments, **more)
    except subjects.UnavailableError as e:
        pytest.skip(str(e))
    return path


def bun(version: str) -> Path:
    return subject(subjects.npm, "@oven/bun-linux-x64", version, "bin/bun")


def how_found(file: Path) -> tuple[str, str]:
    """Stack and method by which `agentsight` finds its place in a file."""
    targets = Discovery(STACKS, cache_dir=None).file(str(file))
    assert targets, f"no TLS found in {file}"
    return " + ".join(sorted({t.stack for t in targets})), " + ".join(sorted({t.how for t in targets}))


def compare(capture: Path, journal: Sequence[Connection], *, agent: str, version: str, file: Path) -> int:
    """A capture against the journal, byte for byte in both directions; leaves a row, then fails where they differ.

    `file`: the binary that holds the TLS code. Gives the bytes compared.
    """
    stack, method = how_found(file)
    raw = replay(capture, "--ssl-http", "false")
    captured = flows(raw)
    spoken = [c for c in journal if c.c2s]
    opened = 0
    for c in spoken:
        flow = captured.get(c.peer[1])
        if flow is not None:
            opened += sum(len(got) for got, true in ((flow.c2s, c.c2s), (flow.s2c, c.s2c)) if true.startswith(got))
    row(
        agent,
        version,
        stack=stack,
        method=method,
        connections=len(spoken),
        opened=opened,
        journal=sum(len(c.c2s) + len(c.s2c) for c in spoken),
    )
    compared = assert_equal_to_journal(raw, journal)
    for account in data(raw, "connection"):
        assert account["tls_not_opened"] == 0 and account["missing"] == 0, account
    return compared


def row(agent: str, version: str, **measured: Any) -> None:
    """Keep what was measured of one agent."""
    ROWS.mkdir(parents=True, exist_ok=True)
    name = f"{agent}-{version}".replace("/", "_").replace(" ", "_")
    where = f"Linux {platform.release()}, {platform.machine()}"
    found = {"agent": agent, "version": version, **measured, "where": where, "when": time.strftime("%Y-%m-%d")}
    (ROWS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def recorded(island: Island, tmp_path: Path, command: Sequence[str], *, at_least: int = 1) -> tuple[Path, list[Connection], str]:
    """Run a command under `record`: the capture file, the journal when all connections have ended, what was printed."""
    capture = tmp_path / "capture"
    printed = record(capture, command)
    return capture, island.server.journal.wait_closed(30, at_least=at_least), printed


def llm_calls(capture: Path) -> list[Json]:
    """The model calls of a capture in the order of their beginning."""
    return sorted(data(replay(capture), "llm_call"), key=lambda call: int(call["start_ns"]))

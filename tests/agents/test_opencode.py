"""opencode, a program compiled by Bun, with its Anthropic provider against the model server's journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import subjects
from agents.harness import compare, island, llm_calls, recorded, subject
from agents.truth import assert_calls_equal, calls

pytestmark = [pytest.mark.agents, pytest.mark.kernel]
NEWEST = "1.18.34"
SETTINGS = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}


@pytest.mark.parametrize("script", ["text", "tool"])
def test_opencode(script: str, tmp_path: Path) -> None:
    program = subject(subjects.npm, "opencode-linux-x64", NEWEST, "bin/opencode")
    model = f"script-{script}"
    with island(tmp_path) as place:
        work = place.home / "work"
        work.mkdir()
        provider = {
            "npm": "@ai-sdk/anthropic",
            "name": "mock",
            "options": {"baseURL": f"{place.server.url}/v1", "apiKey": "x"},
            "models": {model: {"name": "mock"}},
        }
        chosen = {"model": f"mock/{model}", "small_model": f"mock/{model}", "autoupdate": False, "share": "disabled"}
        (work / "opencode.json").write_text(json.dumps({"provider": {"mock": provider}, **chosen}))
        words = place.command(program, "run", "Use the tool.\nRUN: echo from-$((40+2))-tool\nThat is all.", **SETTINGS)
        capture, journal, _ = recorded(place, tmp_path, ["env", "-C", str(work), *words])
        name = "opencode" if script == "text" else f"opencode, {script}"
        assert compare(capture, journal, agent=name, version=NEWEST, file=program) > 10_000
        true = calls(journal)
    assert true
    if script == "tool":
        assert any("from-42-tool" in str(call.results) for call in true)
    assert_calls_equal(llm_calls(capture), true)

"""Claude Code, native builds from npm, against the model server's journal: its bytes, its model calls, its tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import subjects
from agents.harness import Island, compare, island, llm_calls, recorded, subject
from agents.truth import assert_calls_equal, calls

pytestmark = [pytest.mark.agents, pytest.mark.kernel]

NEWEST = "2.1.332"
VERSIONS = [NEWEST, "2.1.197", "2.1.150", "2.1.110"]
SETTINGS = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "IS_SANDBOX": "1",
    "ENABLE_TOOL_SEARCH": "false",
}


def claude(version: str) -> Path:
    return subject(subjects.npm, "@anthropic-ai/claude-code-linux-x64", version, "claude")


def ask(place: Island, program: Path, prompt: str, *more: str) -> list[str]:
    return place.command(program, "-p", prompt, *more, **SETTINGS)


@pytest.mark.parametrize("version", VERSIONS)
def test_equals_journal(version: str, tmp_path: Path) -> None:
    program = claude(version)
    with island(tmp_path) as place:
        capture, journal, printed = recorded(place, tmp_path, ask(place, program, "say hi"))
        assert "The sockets told me everything" in printed
        compared = compare(capture, journal, agent="Claude Code", version=version, file=program)
        true = calls(journal)
    assert compared > 10_000
    assert any("say hi" in str(call.request["messages"]) for call in true)
    assert_calls_equal(llm_calls(capture), true)


@pytest.mark.parametrize("version", [NEWEST, "2.1.110"])
@pytest.mark.parametrize("script", ["tool", "tools"])
def test_tools(script: str, version: str, tmp_path: Path) -> None:
    """The model asks for one and for two shell commands; they run, and their results are in the next request."""
    program = claude(version)
    model = f"script-{script}"
    prompt = "Use the tool.\nRUN: echo from-$((40+2))-tool"
    with island(tmp_path) as place:
        more = ("--model", model, "--tools", "Bash", "--allowedTools", "Bash")
        capture, journal, printed = recorded(place, tmp_path, ask(place, program, prompt, *more))
        assert "The tool said" in printed and "from-42-tool" in printed
        compare(capture, journal, agent=f"Claude Code, {script}", version=version, file=program)
        true = calls(journal)
    asked = [call for call in true if call.request["model"] == model]
    count = 1 if script == "tool" else 2
    assert [len(call.tools) for call in asked] == [count, 0]
    assert len(asked[1].results) == count
    assert [name for _, name, _ in asked[0].tools] == ["Bash"] * count
    assert [i for i, _, _ in asked[0].tools] == [i for i, _ in asked[1].results]
    assert "from-42-tool" in str(asked[1].results)
    assert_calls_equal(llm_calls(capture), true)


def test_read(tmp_path: Path) -> None:
    """The tool that reads files; the script's path is `file_path 0`, in the directory where the agent works."""
    program = claude(NEWEST)
    with island(tmp_path) as place:
        (place.home / "file_path 0").write_text("a line that only this file has\n")
        more = ("--model", "script-tool", "--tools", "Read", "--allowedTools", "Read")
        command = ["env", "-C", str(place.home), *ask(place, program, "Read it.", *more)]
        capture, journal, _ = recorded(place, tmp_path, command)
        compare(capture, journal, agent="Claude Code, Read", version=NEWEST, file=program)
        true = calls(journal)
    asked = [call for call in true if call.request["model"] == "script-tool"]
    assert [name for call in asked for _, name, _ in call.tools] == ["Read"]
    assert "a line that only this file has" in str(asked[1].results)
    assert_calls_equal(llm_calls(capture), true)

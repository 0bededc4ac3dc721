"""``discover``: agents on disk and running, each with its stack; what is unknown, unreadable or too late is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agentsight.capture import agents
from agentsight.cli import discover as command
from agentsight.cli import main
from agentsight.doctor import installed, running
from agentsight.doctor import survey as survey_module
from agentsight.doctor.installed import Finder, Installed
from agentsight.doctor.survey import TIME_IS_UP, Survey

# a program that is large enough to be looked into; with WITH_TLS it holds OpenSSL's key-log function under its name
SOURCE = r"""
#include <unistd.h>
__attribute__((used)) const char filler[512 << 10] = {1};
#ifdef WITH_TLS
__attribute__((noipa)) void ssl_log_secret(void *s, const char *label, const unsigned char *secret, unsigned long n) { pause(); }
#endif
int main(void) {
    write(1, "ready\n", 6);
    pause();
    return 0;
}
"""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Compiled programs, with TLS and without."""
    directory = tmp_path_factory.mktemp("programs")
    out = {}
    for with_tls in (True, False):
        out[with_tls] = directory / f"program-{with_tls}"
        flags = ["-DWITH_TLS"] if with_tls else []
        line = ["gcc", "-O1", "-w", *flags, "-x", "c", "-", "-o", str(out[with_tls])]
        subprocess.run(line, input=SOURCE.encode(), check=True, timeout=120)
    return out


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Survey:
    """A survey of a host with nothing on it: no home, an empty PATH, no cache on disk."""
    monkeypatch.setattr(installed, "SYSTEM_NPM", ())
    monkeypatch.setattr(Finder, "_homes", lambda self: [])
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return Survey(30, cache_dir=None)


def put(source: Path, *parts: str | Path) -> Path:
    """A copy of a program at a path."""
    path = Path(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    path.chmod(0o755)
    return path


def npm(root: Path, name: str, version: str, **more: object) -> Path:
    """An npm package."""
    directory = root / "node_modules" / name
    directory.mkdir(parents=True)
    (directory / "package.json").write_text(json.dumps({"name": name, "version": version, **more}))
    return directory


def one(found: list[Installed], agent: str) -> Installed:
    matching = [f for f in found if f.agent == agent]
    assert len(matching) == 1, found
    return matching[0]


def test_a_package_with_a_native_binary_beside_it(survey: Survey, programs: dict[bool, Path], tmp_path: Path) -> None:
    ours = {"x86_64": "x64", "aarch64": "arm64"}[os.uname().machine]
    other = {"x64": "arm64", "arm64": "x64"}[ours]
    optional = {f"@openai/codex-linux-{m}": "0.1" for m in (ours, other)} | {"@openai/codex-darwin-x64": "0.1"}
    directory = npm(tmp_path, "@openai/codex", "0.169.2", bin={"codex": "bin/codex.js"}, optionalDependencies=optional)
    (directory / "bin").mkdir()
    (directory / "bin/codex.js").write_text("#!/usr/bin/env node\n")
    native = put(programs[True], npm(tmp_path, f"@openai/codex-linux-{ours}", "0.169.2"), "vendor/bin/codex")
    put(programs[False], npm(tmp_path, f"@openai/codex-linux-{other}", "0.169.2"), "vendor/bin/codex")

    found = one(Finder(survey, [str(tmp_path)]).find(), "codex")
    assert (found.version, found.how, found.runs_on) == ("0.169.2", "npm @openai/codex", None)
    assert found.path == str(directory / "bin/codex.js")
    assert [(f.path, [(p.stack, p.how, p.confidence) for p in f.places]) for f in found.files] == [
        (str(native), [("openssl", "symtab", "certain")])
    ]


def test_a_script_has_the_stack_of_its_interpreter(
    survey: Survey, programs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = put(programs[True], tmp_path, "usr/bin/node")
    monkeypatch.setenv("PATH", str(node.parent))
    directory = npm(tmp_path, "@google/gemini-cli", "1.4.0", bin="cli.js")
    (directory / "cli.js").write_text("#!/usr/bin/env -S node --no-warnings\n")
    found = one(Finder(survey, [str(tmp_path)]).find(), "gemini-cli")
    assert found.runs_on == str(node)
    assert [p.stack for f in found.files for p in f.places] == ["openssl"]


def test_a_link_on_path_is_the_same_agent_as_its_package(
    survey: Survey, programs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = npm(tmp_path, "@anthropic-ai/claude-code", "2.1.5", bin={"claude": "claude"})
    program = put(programs[True], directory, "claude")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/claude").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert one(Finder(survey, [str(tmp_path)]).find(), "claude-code").version == "2.1.5"
    alone = one(Finder(survey).find(), "claude-code")  # by PATH only
    assert (alone.path, alone.version, alone.how) == (str(tmp_path / "bin/claude"), "2.1.5", "npm @anthropic-ai/claude-code")


def test_an_agent_in_a_python_environment(survey: Survey, programs: dict[bool, Path], tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    put(programs[True], venv, "bin/python")
    (venv / "lib/python3.12/site-packages/aider_chat-0.86.1.dist-info").mkdir(parents=True)
    (venv / "bin/aider").write_text(f"#!{venv}/bin/python\n")
    found = one(Finder(survey, [str(tmp_path)]).find(), "aider")
    assert (found.version, found.how, found.path) == ("0.86.1", "python package", str(venv / "bin/aider"))
    assert [p.stack for f in found.files for p in f.places] == ["openssl"]


def test_another_program_of_an_agents_name_is_not_taken_for_it(
    survey: Survey, programs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(programs[True], tmp_path, "bin/copilot")  # the one of another vendor
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert Finder(survey).find() == []


def test_nothing_is_executed(survey: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "bin").mkdir()
    for name in ("claude", "codex", "node"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho {name} >> {trace}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert {f.agent for f in Finder(survey).find()} == {"claude-code", "codex"}
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["truncated", "noise", "32-bit"])
def test_a_damaged_program_is_said_to_be_damaged(survey: Survey, programs: dict[bool, Path], tmp_path: Path, damage: str) -> None:
    whole = programs[True].read_bytes()
    data = {
        "truncated": whole[: 300 << 10],
        "noise": b"\x7fELF" + bytes(range(256)) * 2048,
        "32-bit": whole[:4] + b"\1" + whole[5:],
    }[damage]
    directory = npm(tmp_path, "@anthropic-ai/claude-code", "2.1.5", bin={"claude": "claude"})
    (directory / "claude").write_bytes(data)
    (directory / "claude").chmod(0o755)
    report = command.collect((str(tmp_path),))
    row = next(r for r in report["agents"] if r["path"] == str(directory / "claude"))
    assert row["stacks"] == [] and all(d["reason"] for d in row["dark"]) and row["dark"]


def test_a_stack_that_nobody_knows_is_dark_with_a_reason(programs: dict[bool, Path], tmp_path: Path) -> None:
    directory = npm(tmp_path, "@anthropic-ai/claude-code", "2.1.5", bin={"claude": "claude"})
    put(programs[False], directory, "claude")
    report = command.collect((str(tmp_path),))
    row = next(r for r in report["agents"] if r["path"] == str(directory / "claude"))
    assert row["stacks"] == [] and row["dark"]


def test_a_dark_native_agent_is_not_given_the_stack_of_node(survey: Survey, programs: dict[bool, Path], tmp_path: Path) -> None:
    ours = {"x86_64": "x64", "aarch64": "arm64"}[os.uname().machine]
    native = f"@openai/codex-linux-{ours}"
    directory = npm(tmp_path, "@openai/codex", "0.2", bin={"codex": "codex.js"}, optionalDependencies={native: "0.2"})
    (directory / "codex.js").write_text("#!/usr/bin/env node\n")
    put(programs[False], npm(tmp_path, native, "0.2"), "vendor/codex")
    found = one(Finder(survey, [str(tmp_path)]).find(), "codex")
    assert (found.runs_on, found.files) == (None, ())


def test_a_stack_without_a_probe_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(survey_module, "FOREIGN", (("newtls", b"/newtls-"), ("othertls", b"/othertls-"), ("openssl", b"program")))
    path = tmp_path / "agent"
    text = 'const char *where(void) { return "/src/newtls-0.1/conn.rs"; }\n'
    line = ["gcc", "-O1", "-w", "-DWITH_TLS", "-x", "c", "-", "-o", str(path)]
    subprocess.run(line, input=(text + SOURCE).encode(), check=True, timeout=120)
    looked = Survey(30, cache_dir=None).program(str(path))
    assert [p.stack for p in looked.places] == ["openssl"], "what has a probe keeps it"
    assert looked.dark == (("newtls", survey_module.NO_PROBE),)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_processes_of_others_are_counted_as_not_looked_at() -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        survey = Survey(30, cache_dir=None)
        survey.running(os.getppid())
        os.write(write_end, str(survey.hidden).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as f:
        assert f.read() == "1"
    os.waitpid(child, 0)


def test_what_is_not_searched_in_time_is_counted(programs: dict[bool, Path]) -> None:
    survey = Survey(-1, cache_dir=None)
    assert survey.program(str(programs[True])).error == TIME_IS_UP
    assert survey.left_out == 1


def test_a_running_agent_has_its_pid_version_and_stack(programs: dict[bool, Path], tmp_path: Path) -> None:
    program = put(programs[True], tmp_path, "home/.local/share/claude/versions/2.0.31")
    with subprocess.Popen([program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            rows = running.find(Survey(30, cache_dir=None))
        finally:
            process.kill()
    row = next(r for r in rows if process.pid in r.pids)
    assert (row.agent, row.version, row.path) == ("claude-code", "2.0.31", str(program))
    assert [p.stack for f in row.files for p in f.places] == ["openssl"]
    assert rows.index(row) < len([r for r in rows if r.agent]), "agents come first"


def test_processes_of_one_program_are_one_row(programs: dict[bool, Path], tmp_path: Path) -> None:
    program = put(programs[True], tmp_path, "server")
    processes = [subprocess.Popen([program], stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        rows = [r for r in running.find(Survey(30, cache_dir=None)) if r.path == str(program)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [sorted(r.pids) for r in rows] == [sorted(p.pid for p in processes)]
    assert rows[0].agent is None


@pytest.mark.parametrize(
    ("exe", "argv", "agent"),
    [
        ("/home/u/.local/share/claude/versions/2.1.0", ["claude"], "claude-code"),
        ("/usr/bin/node", ["node", "/x/node_modules/@google/gemini-cli/dist/index.js"], "gemini-cli"),
        ("/usr/bin/node", ["node", "--max-old-space-size=1", "/x/node_modules/@qwen-code/qwen-code/cli.js"], "qwen-code"),
        ("/x/node_modules/@openai/codex-linux-x64/vendor/bin/codex", ["codex"], "codex"),
        ("/x/node_modules/opencode-linux-x64/bin/opencode", ["opencode"], "opencode"),
        ("/usr/bin/python3", ["python3", "/opt/bin/aider"], "aider"),
        ("/usr/bin/copilot", ["copilot"], None),
        ("/usr/bin/script", ["script", "-qc", "/x/node_modules/.bin/claude"], None),
        ("/usr/bin/sudo", ["sudo", "/usr/bin/claude"], None),
        ("/usr/bin/node", ["node", "server.js"], None),
        ("/x/node_modules/@anthropic-ai/sdk/index.js", ["node"], None),
        ("", [], None),
    ],
)
def test_agents_are_recognised_among_processes(exe: str, argv: list[str], agent: str | None) -> None:
    found = agents.of_process(exe, argv)
    assert (found.name if found else None) == agent


def test_the_table_of_agents_is_in_order() -> None:
    names = [a.name for a in agents.AGENTS]
    packages = [p for a in agents.AGENTS for p in (*a.npm, *a.pypi)]
    assert len(set(names)) == len(names) and len(set(packages)) == len(packages)


def test_json_on_stdout(programs: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(programs[True], npm(tmp_path, "@anthropic-ai/claude-code", "9.9.9", bin={"claude": "claude"}), "claude")
    assert main(["discover", "--json", "--path", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"agents", "running", "libraries", "not_looked_at"}
    row = next(r for r in report["agents"] if r["version"] == "9.9.9")
    assert row["stacks"][0]["method"] == "symtab" and row["stacks"][0]["offset"] > 0


def test_a_table_for_people(programs: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(programs[True], npm(tmp_path, "@anthropic-ai/claude-code", "9.9.9", bin={"claude": "claude"}), "claude")
    command._show(command.collect((str(tmp_path),)))
    shown = capsys.readouterr().out
    assert "claude-code" in shown and "9.9.9" in shown and "symtab" in shown


def test_a_directory_that_is_not_there_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--path", "/nonexistent"]) == 2
    assert "/nonexistent" in capsys.readouterr().err

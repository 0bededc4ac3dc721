"""The command line: every way of writing an option, one line per error, exit statuses, help with an example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from agentsight.capture import rights
from agentsight.cli import cli, main, run
from agentsight.errors import CaptureError
from agentsight.options import Options
from agentsight.registry import load, names

COMMANDS = ["trace", "ssl", "process", "stdio", "record", "replay"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Options, Any]]:
    """What commands would run, in place of running it."""
    calls: list[tuple[Options, Any]] = []
    monkeypatch.setattr(run, "live", lambda options, arguments: calls.append((options, arguments)) or 0)
    monkeypatch.setattr(run, "record", lambda options, arguments, command: calls.append((options, command)) or 0)
    monkeypatch.setattr(run, "replay", lambda options, path: calls.append((options, path)) or 0)
    return calls


def options_of(asked: list[tuple[Options, Any]], *arguments: str) -> Options:
    assert main(arguments) == 0
    return asked[-1][0]


@pytest.mark.parametrize("command", [[], ["debug"], *([c] for c in COMMANDS), *(["debug", c] for c in COMMANDS[:4])])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_an_example(command: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, flag]) == 0
    out = capsys.readouterr().out
    assert "Example" in out
    assert "agentsight " + " ".join(command) in out


def test_every_option_says_what_it_does() -> None:
    for name in names("commands"):
        command = load("commands", name)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.opts}"


def test_options_of_later_versions_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        main([command, "--help"])
        shown = capsys.readouterr().out
        for word in ("--server", "--otel", "--db", "--system", "--files", "--network", "--ssl-filter", "io-hook"):
            assert word not in shown, f"{command} {word}"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("agentsight ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        (["trace", "--nonsense"], "--nonsense"),
        (["trace", "word"], "word"),
        (["trace", "-p", "0"], "-p"),
        (["trace", "-p", "x"], "-p"),
        (["trace", "--ssl", "false", "--process", "false"], "nothing to watch"),
        (["trace", "--mode", "2"], "--mode"),
        (["trace", "--rotate-logs"], "--log-file"),
        (["trace", "--format", "xml"], "--format"),
        (["trace", "--plain-http=70000"], "70000"),
        (["trace", "--ssl=maybe"], "maybe"),
        (["trace", "-c", "a/b"], "a/b"),
        (["ssl", "word"], "word"),
        (["ssl", "--", "-x"], "behind --"),
        (["ssl", "--", "word"], "word"),
        (["record"], "nothing to record"),
        (["record", "-p", "1", "--", "true"], "not both"),
        (["record", "--format", "json", "--", "true"], "stdout belongs to CMD"),
        (["replay"], "FILE"),
        (["replay", "a", "b"], "b"),
        (["debug", "record"], "record"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize("words", [[], ["debug"]])
def test_no_command_at_all_shows_the_help_and_fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "ssl", "stdio"),
    [
        ([], True, False),
        (["--stdio"], True, True),
        (["--stdio", "--ssl", "false"], False, True),
        (["--ssl=false", "--stdio=true"], False, True),
        (["--ssl", "off", "--stdio", "on"], False, True),
        (["--stdio", "--stdio-max-bytes", "4096"], True, True),
        (["--stdio", "-q"], True, True),
    ],
)
def test_booleans_take_a_value_or_none(asked: Any, words: list[str], ssl: bool, stdio: bool) -> None:
    options = options_of(asked, "trace", *words)
    assert (options.ssl, options.stdio) == (ssl, stdio)


def test_a_file_behind_a_boolean_stays_a_file(asked: Any) -> None:
    assert main(["replay", "--ssl-http", "false", "x.cap"]) == 0
    assert (asked[-1][0].http, asked[-1][1]) == (False, "x.cap")
    assert main(["replay", "--ssl-http", "x.cap"]) == 0
    assert (asked[-1][0].http, asked[-1][1]) == (True, "x.cap")
    assert main(["replay", "--log-file", "--", "x.cap"]) == 0
    assert str(asked[-1][0].log_file) == "--"


def test_ports(asked: Any) -> None:
    assert options_of(asked, "trace").plain_http is None
    assert options_of(asked, "trace", "--plain-http").plain_http == ()
    assert options_of(asked, "trace", "--plain-http", "80,8080").plain_http == (80, 8080)
    assert options_of(asked, "trace", "--plain-http", "-q").plain_http == ()


def test_targets(asked: Any) -> None:
    options = options_of(asked, "trace", "-c", "a,b", "--comm", "c", "-p", "1", "--pid=2", "-u", "0", "--no-children")
    assert (options.comms, options.pids, options.uid, options.children) == (("a", "b", "c"), (1, 2), 0, False)
    assert options.has_target
    assert not options_of(asked, "trace").has_target


def test_output(asked: Any) -> None:
    options = options_of(
        asked, "trace", "--log-file", "x", "--rotate-logs", "--max-log-size", "3", "--disable-auth-removal", "--format", "text"
    )
    assert (options.log_file, options.rotate_logs, options.max_log_mb, options.redact, options.format) == (
        Path("x"),
        True,
        3,
        False,
        "text",
    )


def test_ssl_shows_raw_events_unless_http_is_asked_for(asked: Any) -> None:
    assert not options_of(asked, "ssl").http
    for flag in ("--http-parser", "--sse-merge", "--http-raw-data"):
        assert options_of(asked, "ssl", flag).http
    options = options_of(asked, "debug", "ssl", "--http-parser", "--sse-merge")
    assert (options.process, options.llm, options.sse_merge) == (False, False, True)


def test_what_stands_behind_the_dashes(asked: Any) -> None:
    options = options_of(asked, "ssl", "-p", "1", "--", "-p", "2", "-h", "-c", "x,y")
    assert (options.pids, options.handshakes, options.comms) == ((1, 2), True, ("x", "y"))
    assert options_of(asked, "process", "--", "-d", "100", "-m", "0").min_duration_ms == 100
    assert options_of(asked, "stdio", "--", "-p", "7").pids == (7,)


def test_a_recorded_command_keeps_its_own_options(asked: Any) -> None:
    for before in ([], ["--"]):
        assert main(["record", "-q", "--plain-http", *before, "python3", "-c", "x", "--stdio", "--", "-q"]) == 0
        options, command = asked[-1]
        assert command == ("python3", "-c", "x", "--stdio", "--", "-q")
        assert (options.quiet, options.stdio, options.plain_http) == (True, False, ())


def test_verbosity(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of(asked, "-vv", "trace").verbose == 2
    monkeypatch.setenv("AGENTSIGHT_LOG", "debug")
    assert options_of(asked, "trace").verbose == 2


def test_the_words_as_typed_are_known(asked: Any) -> None:
    main(["-v", "trace", "-q"])
    assert asked[-1][1] == ["-v", "trace", "-q"]


def test_no_rights_gives_the_command_to_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rights, "missing_capabilities", lambda: ["CAP_BPF"])
    assert main(["trace", "-c", "a b"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"sudo {sys.executable} -P -m agentsight trace -c 'a b'" in said


def test_an_old_kernel_and_one_without_btf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "missing_capabilities", list)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    with pytest.raises(CaptureError, match="BTF"):
        rights.require([])
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "x", "5.10.0-1", "", "x86_64")))
    with pytest.raises(CaptureError, match=r"5\.15 or newer"):
        rights.require([])


def test_targets_that_are_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(rights, "require", lambda arguments: None)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for words, said in (
        (["-p", str(ended.pid)], f"no process {ended.pid}"),
        (["--binary-path", str(tmp_path / "none")], "there is no file"),
        (["--log-file", str(tmp_path / "no" / "x")], "directory does not exist"),
    ):
        assert main(["trace", *words]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith("Error: ")
        assert said in err


@pytest.mark.parametrize("content", [None, b"", b"no capture file at all", os.urandom(5000)])
def test_a_file_that_is_no_capture(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.cap"
    if content is not None:
        path.write_bytes(content)
    assert main(["replay", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_record_that_cannot_begin_is_125(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rights, "missing_capabilities", lambda: ["CAP_BPF"])
    assert main(["record", "--", "true"]) == 125
    monkeypatch.setattr(rights, "require", lambda arguments: None)
    assert main(["record", "--", "no_such_program_x"]) == 127
    assert "not found in PATH" in capsys.readouterr().err


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "agentsight", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("agentsight ")
    done = subprocess.run([sys.executable, "-m", "agentsight", "trace", "--nonsense"], capture_output=True, text=True)
    assert done.returncode == 2


def test_commands_are_imported_when_used() -> None:
    code = "import sys, agentsight.cli; print(sorted(m for m in sys.modules if m.startswith('agentsight.c')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "agentsight.capture" not in done.stdout
    assert isinstance(cli, click.Group)

"""``agentsight doctor``: can it work here, and what to do where it cannot."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from agentsight.cli import params

EPILOG = """\b
Examples:
  sudo agentsight doctor                everything, with a TLS self-test on loopback
  sudo agentsight doctor --no-self-test
  agentsight doctor --json              what can be told without root
"""
SEARCH_SECONDS = 5.0
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@click.command(cls=params.Command, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="One JSON object, also on a terminal.")
@click.option("--no-self-test", is_flag=True, help="Start no clients: leave the TLS self-test out.")
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, no_self_test: bool) -> int:
    """Check whether agentsight can work here: kernel, rights, each kernel program, TLS libraries, agents, and a TLS self-test.

    Each line that is not ok names its fix. Exit status 0 if all that is required is there, 1 otherwise. The self-test starts
    small clients (python, curl, wget, node, ..., as far as installed) that ask a server of its own; nothing leaves the machine.
    """
    from agentsight.doctor.lines import Line, passed

    as_json = as_json or not os.isatty(1)
    shown: list[Line] = []
    for line in checks(params.words(ctx), self_test=not no_self_test, verbose=int((ctx.find_root().obj or {}).get("verbose", 0))):
        shown.append(line)
        if not as_json:
            _show(line, first=len(shown) < 2 or shown[-2].group != line.group)
    good = passed(shown)
    if as_json:
        sys.stdout.write(json.dumps({"ok": good, "checks": [asdict(line) for line in shown]}, ensure_ascii=False) + "\n")
    else:
        _summary(shown, good)
    return 0 if good else 1


def checks(words: list[str], *, self_test: bool = True, verbose: int = 0) -> Iterator[Any]:
    """The lines as they are found. `words`: the command line, for the sudo line to type."""
    from agentsight.capture import rights
    from agentsight.doctor import programs, selftest, system, tls
    from agentsight.doctor.lines import SKIP, Line
    from agentsight.doctor.survey import Survey

    sudo = sudo_line(words or ["doctor"])
    yield from system.check(system.Host(sudo=sudo))
    allowed = not rights.missing_capabilities()
    if allowed:
        rights.make_undumpable()
        yield from programs.check(sudo, verbose)
    else:
        yield Line(programs.GROUP, "kernel programs", SKIP, "not loaded: needs root", sudo)
    yield from tls.check(Survey(SEARCH_SECONDS))
    if not self_test:
        yield Line(selftest.GROUP, "clients", SKIP, "left out (--no-self-test)")
    elif allowed:
        yield from selftest.check(sudo)
    else:
        yield Line(selftest.GROUP, "clients", SKIP, "not run: needs root", sudo)


def sudo_line(words: list[str]) -> str:
    """What to type to run this very installation as root: a virtual environment is not on sudo's path."""
    script = os.path.abspath(sys.argv[0])
    ours = [script] if os.path.basename(script) == "agentsight" else [sys.executable, "-P", "-m", "agentsight"]
    return shlex.join(["sudo", *ours, *words])


def _show(line: Any, first: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if first:
        console.print(Text(line.group.upper(), style="bold"))
    text = Text("  ").append(f"{line.status:4}", style=STYLES[line.status]).append(f"  {line.name}: {line.text}")
    console.print(text)
    if line.fix and line.status != "ok":
        console.print(Text(f"        fix: {line.fix}", style="cyan"))


def _summary(lines: list[Any], good: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    counts = {status: sum(line.status == status for line in lines) for status in STYLES}
    text = "agentsight can work here" if good else "agentsight cannot work here as it is"
    numbers = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    Console(highlight=False).print(Text(f"{text} ({numbers})", style="bold green" if good else "bold red"))

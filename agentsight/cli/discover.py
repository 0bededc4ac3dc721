"""``agentsight discover``: agents and TLS stacks on this host, and how each would be watched."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from agentsight.cli import params

EPILOG = """\b
Examples:
  sudo agentsight discover                    agents, running programs and libraries with TLS
  agentsight discover --path ~/src/my-agent   also what a project has in node_modules or .venv
  sudo agentsight discover --json             for programs
"""
SEARCH_SECONDS = 5.0
MAX_PIDS_SHOWN = 4
NO_STACK = "no TLS stack was found that we have a probe for: its TLS bytes will be counted as dark"


@click.command(cls=params.Command, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="One JSON object, also on a terminal.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Look here too: a project, a node_modules, a bin directory or a virtual environment. Repeatable.",
)
def discover(as_json: bool, paths: tuple[str, ...]) -> int:
    """Show which agents and TLS stacks are on this host, running or installed, and how each would be attached.

    Reads files and executes none of what it finds. Without root it shows what this user may see, and says what it could not
    look at.
    """
    report = collect(paths)
    if as_json or not os.isatty(1):
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        _show(report)
    return 0


def collect(paths: tuple[str, ...] = (), seconds: float = SEARCH_SECONDS) -> dict[str, Any]:
    """All of it, as the JSON object that is printed. Files are searched for at most about `seconds`."""
    from agentsight.doctor import running
    from agentsight.doctor.installed import Finder
    from agentsight.doctor.survey import Survey

    survey = Survey(seconds)
    finder = Finder(survey, [os.path.abspath(path) for path in paths])
    active = running.find(survey)
    installed = finder.find()
    libraries = survey.libraries()
    survey.save()
    missing = [*survey.problems, *finder.problems]
    if survey.hidden:
        remedy = (
            "needs root: sudo agentsight discover" if os.geteuid() else "this root may not, they may belong to another container"
        )
        missing.append(f"{survey.hidden} processes of others ({remedy})")
    if survey.left_out:
        missing.append(f"{survey.left_out} files were not searched: the time for this was used up (run it again)")
    return {
        "agents": [
            {
                "agent": one.agent,
                "path": one.path,
                "version": one.version,
                "found_as": one.how,
                "runs_on": one.runs_on,
                "pids": [],
                **_tls(one.files),
            }
            for one in installed
        ],
        "running": [
            {"agent": row.agent, "path": row.path, "version": row.version, "pids": sorted(row.pids), **_tls(row.files)}
            for row in active
        ],
        "libraries": [{"path": file.path, "build_id": file.build_id, **_tls([file])} for file in libraries],
        "not_looked_at": missing,
    }


def _tls(files: Any) -> dict[str, Any]:
    stacks = [
        {
            "stack": p.stack,
            "file": f.path,
            "method": p.how,
            "confidence": p.confidence,
            "offset": p.offset,
            "build_id": f.build_id,
        }
        for f in files
        for p in f.places
    ]
    dark = [{"stack": stack or None, "file": f.path, "reason": reason} for f in files for stack, reason in f.dark]
    dark += [{"stack": None, "file": f.path, "reason": f.error} for f in files if f.error]
    if not stacks and not dark:
        dark = [{"stack": None, "file": None, "reason": NO_STACK}]
    return {"stacks": stacks, "dark": dark}


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for title, rows in (
        ("Agents installed", report["agents"]),
        ("Running", report["running"]),
        ("Libraries", report["libraries"]),
    ):
        if not rows:
            console.print(f"{title}: none found", style="bold")
        else:
            console.print(_table(title, rows))
    for line in report["not_looked_at"]:
        console.print(f"not looked at: {line}", style="yellow", markup=False)


def _table(title: str, rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, expand=False)
    for name in ("name", "version", "pids", "TLS and how it is found", "path"):
        table.add_column(name, overflow="fold")
    for row in rows:
        name = row.get("agent") or os.path.basename(row["path"])
        good = dict.fromkeys(f"{s['stack']}: {s['method']} ({s['confidence']})" for s in row["stacks"])
        bad = dict.fromkeys(f"{d['stack'] or 'unknown'}: dark, {d['reason']}" for d in row["dark"])
        tls = Text("\n").join([*(Text(line, style="green") for line in good), *(Text(line, style="red") for line in bad)])
        table.add_row(Text(name), Text(row.get("version") or ""), _pids(row.get("pids", [])), tls, Text(row["path"]))
    return table


def _pids(pids: list[int]) -> str:
    shown = " ".join(map(str, pids[:MAX_PIDS_SHOWN]))
    return shown + (f" +{len(pids) - MAX_PIDS_SHOWN}" if len(pids) > MAX_PIDS_SHOWN else "")

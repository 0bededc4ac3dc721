"""Programs that run now and hold TLS, or are agents: processes of one program are one row."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from agentsight.capture import procfs
from agentsight.capture.agents import of_process, version_in_venv, version_of
from agentsight.doctor.survey import Looked, Survey


@dataclass
class Running:
    """A program with its processes. `agent`: its name in the table, or None."""

    agent: str | None
    path: str
    version: str | None
    pids: list[int] = field(default_factory=list)
    files: list[Looked] = field(default_factory=list)


def find(survey: Survey) -> list[Running]:
    """Agents and programs with a TLS stack among the running processes, agents first. Our own process is left out."""
    rows: dict[tuple[str | None, str], Running] = {}
    for pid in procfs.pids():
        if pid == os.getpid():
            continue
        exe = procfs.exe(pid)
        argv = [os.fsdecode(a) for a in procfs.arguments(pid).split(b"\0")[:8]]
        agent = of_process(exe, argv) if exe or any(argv) else None
        files = survey.running(pid)
        if agent is None and not files:
            continue
        path = exe or next(iter(argv), "")
        script = next((word for word in argv[1:] if word.startswith("/")), path)
        row = rows.get((agent.name if agent else None, path))
        if row is None:
            version = None
            if agent is not None:
                version = version_in_venv(_venv(script), agent) or version_of(os.path.realpath(script))
            row = rows[agent.name if agent else None, path] = Running(agent.name if agent else None, path, version)
        row.pids.append(pid)
        row.files += [f for f in files if f not in row.files]
    return sorted(rows.values(), key=lambda row: (row.agent is None, row.agent or "", row.path))


def _venv(script: str) -> Path:
    return Path(script).parent.parent

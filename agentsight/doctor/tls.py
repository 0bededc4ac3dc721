"""Checks of what is to be watched: the TLS libraries of this host, and each known agent with its stack."""

from __future__ import annotations

from agentsight.doctor import running
from agentsight.doctor.installed import Finder
from agentsight.doctor.lines import OK, SKIP, WARN, Line
from agentsight.doctor.survey import Looked, Survey

SEE = "its bytes will be counted as dark; agentsight discover --json has the details"


def check(survey: Survey) -> list[Line]:
    """One line per library and per agent. None is required: a host without agents is a good host."""
    lines = [_line("tls libraries", file.path, [file]) for file in survey.libraries()]
    if not lines:
        lines.append(Line("tls libraries", "libraries", SKIP, "none found by the dynamic linker"))
    finder = Finder(survey)
    agents = [_line("agents", _name(one.agent, one.version, one.path), one.files) for one in finder.find()]
    for row in running.find(survey):
        if row.agent is not None:
            pids = ", ".join(map(str, sorted(row.pids)[:4]))
            agents.append(_line("agents", _name(row.agent, row.version, f"running, process {pids}"), row.files))
    survey.save()
    if not agents:
        agents.append(Line("agents", "agents", SKIP, "none of the known ones was found (any program can be watched)"))
    return [*lines, *agents, *_unseen(survey, finder)]


def _unseen(survey: Survey, finder: Finder) -> list[Line]:
    lines = [Line("agents", "cannot be told", SKIP, problem) for problem in (*survey.problems, *finder.problems)]
    if survey.hidden:
        lines.append(Line("agents", "others", SKIP, f"{survey.hidden} processes were not looked at: not allowed"))
    return lines


def _name(agent: str, version: str | None, where: str) -> str:
    return f"{agent} {version or ''}".rstrip() + f" ({where})"


def _line(group: str, name: str, files: tuple[Looked, ...] | list[Looked]) -> Line:
    places = [f"{p.stack} by {p.how} ({p.confidence})" for f in files for p in f.places]
    dark = [f"{stack or 'unknown TLS'}: {reason}" for f in files for stack, reason in f.dark]
    dark += [f"{f.path}: {f.error}" for f in files if f.error]
    if places:
        if dark:
            return Line(group, name, WARN, ", ".join(dict.fromkeys(places)) + "; but " + "; ".join(dict.fromkeys(dark)), SEE)
        return Line(group, name, OK, ", ".join(dict.fromkeys(places)))
    return Line(group, name, WARN, "; ".join(dark) or "no TLS stack was found that we have a probe for", SEE)

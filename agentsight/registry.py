"""What there is, by name: commands, analyzers, providers, sinks. Built-ins and third parties come in through the same door.

A built-in is one line in a tuple here. Others are Python entry points in the groups ``agentsight.analyzers``,
``agentsight.sinks``, ...: loaded only when somebody names them, since we may be root.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from agentsight.errors import UsageError

BUILTIN: dict[str, tuple[tuple[str, str], ...]] = {
    "commands": (
        ("record", "agentsight.cli.record:record"),
        ("trace", "agentsight.cli.trace:trace"),
        ("ssl", "agentsight.cli.ssl:ssl"),
        ("process", "agentsight.cli.process:process"),
        ("stdio", "agentsight.cli.stdio:stdio"),
        ("replay", "agentsight.cli.replay:replay"),
        ("discover", "agentsight.cli.discover:discover"),
        ("doctor", "agentsight.cli.doctor:doctor"),
        ("debug", "agentsight.cli.debug:debug"),
    ),
    "analyzers": (
        ("sse", "agentsight.analyzers.sse_merge:SSEProcessor"),
        ("http", "agentsight.analyzers.http:HTTPParser"),
        ("llm", "agentsight.analyzers.llm_calls:LlmCalls"),
        ("redaction", "agentsight.analyzers.redact:Redactor"),
    ),
    "sinks": (
        ("console", "agentsight.sinks.console:Console"),
        ("jsonl", "agentsight.sinks.jsonl:FileLogger"),
    ),
}


def names(group: str) -> list[str]:
    """The built-ins of a group, in their order."""
    return [name for name, _ in BUILTIN.get(group, ())]


def load(group: str, name: str) -> Any:
    """The class or command registered as `name`; UsageError where neither a built-in nor an entry point has that name."""
    for known, where in BUILTIN.get(group, ()):
        if known == name:
            module, _, attribute = where.partition(":")
            return getattr(import_module(module), attribute)
    from importlib.metadata import entry_points  # slow to import, rarely wanted

    for point in entry_points(group=f"agentsight.{group}", name=name):
        return point.load()
    raise UsageError(f"there is no {group.removesuffix('s')} {name!r}")

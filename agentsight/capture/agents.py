"""The agents we know by name: how each is recognised when it is installed and when it runs, and how its version is read.

This is for `discover` and `doctor` alone: capture needs no such table. One `Agent` per agent, one entry in `AGENTS`. Nothing is
ever executed to learn a version: it comes from package.json, from a Python package's metadata, or from the path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentsight.capture import hostfile

METADATA_MAX = 1 << 20  # bytes read of a package.json or METADATA
INTERPRETERS = ("node", "python", "bun", "deno", "pypy")
UPWARD = 8  # directories from a file to its package.json

_VERSION = re.compile(r"^v?\d+\.\d+(?:\.\d+)?(?:[-+.][0-9A-Za-z.-]+)?$")


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent. `commands`: names of its program. `npm`, `pypi`: packages that contain it. `places`: globs below a home
    directory where its own installer puts programs. `plain`: a command's name alone proves it (it is nobody else's)."""

    name: str
    commands: tuple[str, ...]
    npm: tuple[str, ...] = ()
    pypi: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    plain: bool = True


AGENTS: tuple[Agent, ...] = (
    Agent(
        "claude-code",
        ("claude",),
        npm=("@anthropic-ai/claude-code",),
        places=(".local/share/claude/versions/*", ".claude/local/node_modules/.bin/claude"),
    ),
    Agent("codex", ("codex",), npm=("@openai/codex",)),
    Agent("gemini-cli", ("gemini",), npm=("@google/gemini-cli",)),
    Agent("qwen-code", ("qwen",), npm=("@qwen-code/qwen-code",)),
    Agent("opencode", ("opencode",), npm=("opencode-ai",), places=(".opencode/bin/opencode",)),
    Agent("copilot-cli", ("copilot",), npm=("@github/copilot",), plain=False),
    Agent("cursor-agent", ("cursor-agent",), places=(".local/share/cursor-agent/versions/*/cursor-agent",)),
    Agent("amp", ("amp",), npm=("@sourcegraph/amp", "@ampcode/cli"), plain=False),
    Agent("auggie", ("auggie",), npm=("@augmentcode/auggie",)),
    Agent("cline", ("cline",), npm=("cline",)),
    Agent("continue", ("cn",), npm=("@continuedev/cli",), plain=False),
    Agent("droid", ("droid",), npm=("droid",), places=(".factory/bin/droid",), plain=False),
    Agent("crush", ("crush",), npm=("@charmland/crush",), plain=False),
    Agent("goose", ("goose", "goosed"), plain=False),
    Agent("kiro", ("kiro-cli",)),
    Agent("openclaw", ("openclaw",), npm=("openclaw",)),
    Agent("plandex", ("plandex", "pdx")),
    Agent("pi", ("pi",), npm=("@mariozechner/pi-coding-agent",), plain=False),
    Agent("aider", ("aider",), pypi=("aider-chat", "aider-install")),
    Agent("openhands", ("openhands",), pypi=("openhands-ai", "openhands")),
    Agent("open-interpreter", ("interpreter",), pypi=("open-interpreter",), plain=False),
    Agent("llm", ("llm",), pypi=("llm",), plain=False),
    Agent("mistral-vibe", ("vibe",), pypi=("mistral-vibe",), plain=False),
    Agent("kimi-cli", ("kimi",), pypi=("kimi-cli",)),
)


def by_package(path: str) -> tuple[Agent, str] | None:
    """The agent, and its package, that a path inside ``node_modules`` belongs to; platform packages (``X-linux-x64``) count."""
    at = path.rfind("/node_modules/")
    while at >= 0:
        parts = path[at + len("/node_modules/") :].split("/")
        package = "/".join(parts[:2]) if parts[0].startswith("@") else parts[0]
        for agent in AGENTS:
            for name in agent.npm:
                if package == name or package.startswith(name + "-linux-"):
                    return agent, package
        at = path.rfind("/node_modules/", 0, at)
    return None


def by_place(path: str) -> Agent | None:
    """The agent whose own installer puts programs at such a path."""
    for agent in AGENTS:
        for place in agent.places:
            pattern = "(?:^|/)" + "[^/]+".join(re.escape(part) for part in place.split("*")) + "$"
            if re.search(pattern, path):
                return agent
    return None


def by_command(name: str) -> Agent | None:
    """The agent whose program has that name, where the name is nobody else's."""
    return next((a for a in AGENTS if a.plain and name in a.commands), None)


def of_process(exe: str, argv: Sequence[str]) -> Agent | None:
    """The agent that a process is, by its executable and the first words of its command line; None for any other program."""
    words = [exe, *argv[:1], *_script(exe, argv)]
    for word in words:
        found = by_package(os.path.realpath(word) if word.startswith("/") else word)
        agent = found[0] if found else by_place(word)
        if agent is not None:
            return agent
    for word in words:
        agent = by_command(os.path.basename(word))
        if agent is not None:
            return agent
    return _by_python_script(exe, argv)


def _script(exe: str, argv: Sequence[str]) -> list[str]:
    """The script that an interpreter was given: its first argument that is no option. Others (sh, script, sudo) only start it."""
    if not os.path.basename(exe or next(iter(argv), "")).startswith(INTERPRETERS):
        return []
    return next(([word] for word in argv[1:8] if word and not word.startswith("-")), [])


def _by_python_script(exe: str, argv: Sequence[str]) -> Agent | None:
    """``python /venv/bin/llm``: a name that others have too, beside the metadata of the agent's package."""
    for word in _script(exe, argv):
        name = os.path.basename(word)
        for agent in AGENTS:
            if name in agent.commands and agent.pypi and version_in_venv(Path(word).parent.parent, agent) is not None:
                return agent
    return None


def version_of(path: str) -> str | None:
    """The version of a file by the package.json above it, or by a directory or file name that is a version."""
    directory = Path(path).parent
    for _ in range(UPWARD):
        manifest = read_json(directory / "package.json")
        if isinstance(manifest.get("version"), str) and isinstance(manifest.get("name"), str):
            return str(manifest["version"])
        if directory.name == "node_modules" or directory == directory.parent:
            break
        directory = directory.parent
    return next((part.removeprefix("v") for part in reversed(Path(path).parts[-3:]) if _VERSION.match(part)), None)


def version_in_venv(venv: Path, agent: Agent) -> str | None:
    """The version of an agent's Python package in a virtual environment; None where it is not in it."""
    for package in agent.pypi:
        stem = package.replace("-", "_")
        for info in sorted(venv.glob(f"lib/python3*/site-packages/{stem}-*.dist-info")):
            return info.name.removesuffix(".dist-info").removeprefix(stem + "-")
    return None


def read_json(path: Path) -> dict[str, object]:
    """A small JSON object from a file; empty where there is none that can be read."""
    try:
        with open(hostfile.open_file(str(path)), "rb") as f:
            value = json.loads(f.read(METADATA_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

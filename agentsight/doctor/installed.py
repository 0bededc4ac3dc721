"""Agents that are installed: on PATH, in npm's global directories, where their own installers put them, in Python environments.

Nothing is executed. Every walk is bounded; what cannot be read is told in `problems`.
"""

from __future__ import annotations

import os
import platform
import pwd
import shlex
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentsight.capture import hostfile
from agentsight.capture.agents import AGENTS, Agent, by_command, by_package, by_place, read_json, version_in_venv, version_of
from agentsight.doctor.survey import Looked, Survey, is_program, settle

MAX_HOMES = 64
MAX_ENTRIES = 4000  # directory entries looked at in one package
MAX_DEPTH = 6
HOME_BINS = (".local/bin", "bin", ".bun/bin", ".cargo/bin", ".npm-global/bin", ".volta/bin", "go/bin", ".nvm/versions/node/*/bin")
HOME_NPM = (".npm-global/lib/node_modules", ".nvm/versions/node/*/lib/node_modules", ".bun/install/global/node_modules")
HOME_VENVS = (".local/pipx/venvs/*", ".local/share/pipx/venvs/*", ".local/share/uv/tools/*", "venv", ".venv")
SYSTEM_NPM = ("/usr/lib/node_modules", "/usr/local/lib/node_modules", "/opt/*/lib/node_modules")


@dataclass(frozen=True, slots=True)
class Installed:
    """An agent on disk. `path`: what a user starts; `files`: where its TLS is; `runs_on`: its interpreter, if it has one."""

    agent: str
    path: str
    version: str | None
    how: str  # npm NAME, python package, command, own installer
    runs_on: str | None
    files: tuple[Looked, ...]


@dataclass
class Finder:
    """Looks for agents. `extra`: further directories: a project, a node_modules, a bin directory or a virtual environment."""

    survey: Survey
    extra: Iterable[str] = ()
    problems: list[str] = field(default_factory=list)

    def find(self) -> list[Installed]:
        """All of them, each program once, ordered by agent and path."""
        found: dict[str, Installed] = {}
        homes = self._homes()
        for one in (*self._packages(homes), *self._environments(homes), *self._commands(homes), *self._own(homes)):
            # a launcher in node_modules/.bin leads to a package that was found as such
            found.setdefault(os.path.realpath(one.path), one)
        return sorted(found.values(), key=lambda one: (one.agent, one.path))

    # ---- where ----

    def _homes(self) -> list[Path]:
        homes = [Path(p.pw_dir) for p in pwd.getpwall() if p.pw_uid == 0 or 1000 <= p.pw_uid < 60000 or p.pw_uid == os.getuid()]
        homes = list(dict.fromkeys([Path.home(), *homes]))[:MAX_HOMES]
        return [home for home in homes if home != Path("/") and self._may_look(home)]

    def _may_look(self, directory: Path) -> bool:
        try:
            if not directory.is_dir():
                return False
        except PermissionError:
            pass
        if os.access(directory, os.R_OK | os.X_OK):
            return True
        self.problems.append(f"{directory} may not be read by this user")
        return False

    def _extra(self, *below: str) -> Iterator[Path]:
        for directory in self.extra:
            for name in below:
                yield Path(directory) / name

    def _packages(self, homes: list[Path]) -> Iterator[Installed]:
        roots = [*self._extra("", "node_modules", "lib/node_modules"), *_glob(Path("/"), (p[1:] for p in SYSTEM_NPM))]
        roots += [path for home in homes for path in _glob(home, HOME_NPM)]
        node = shutil.which("node")
        if node is not None:
            roots.append(Path(os.path.realpath(node)).parent.parent / "lib/node_modules")
        for root in dict.fromkeys(roots):
            if root.name == "node_modules":
                yield from self._packages_in(root)

    def _packages_in(self, root: Path) -> Iterator[Installed]:
        for agent in AGENTS:
            for name in agent.npm:
                manifest = read_json(root / name / "package.json")
                if manifest:
                    version = manifest.get("version")
                    yield self._package(agent, root, name, str(version) if version else None, manifest)

    def _package(self, agent: Agent, root: Path, name: str, version: str | None, manifest: dict[str, object]) -> Installed:
        start = root / name
        optional = manifest.get("optionalDependencies")
        platform_packages = [p for p in optional if _is_ours(p)] if isinstance(optional, dict) else []
        places = [start]
        for package in platform_packages:
            places += [d for d in (root / package, root / name / "node_modules" / package) if d.is_dir()]
        binaries = [list(_binaries(place)) for place in places]
        looked = settle(self.survey.program(path) for paths in binaries for path in paths)
        script = _script_of(manifest, start, agent)
        # a launcher in JavaScript with the program in a platform package, or the program itself
        native = any("." not in os.path.basename(path) for paths in binaries[1:] for path in paths)
        if native or (script is not None and is_program(str(script))):
            return Installed(agent.name, str(script or start), version, f"npm {name}", None, tuple(looked))
        return self._script(agent, str(script or start), version, f"npm {name}", "node", looked)

    def _environments(self, homes: list[Path]) -> Iterator[Installed]:
        venvs = [*self._extra("", ".venv", "venv"), *(path for home in homes for path in _glob(home, HOME_VENVS))]
        for venv in dict.fromkeys(venvs):
            for agent in AGENTS:
                version = version_in_venv(venv, agent)
                if version is not None:
                    program = next((venv / "bin" / c for c in agent.commands if (venv / "bin" / c).is_file()), venv)
                    yield self._script(agent, str(program), version, "python package", str(venv / "bin/python"))

    def _commands(self, homes: list[Path]) -> Iterator[Installed]:
        bins = [Path(d) for d in os.environ.get("PATH", os.defpath).split(":") if d.startswith("/")]
        bins += [*self._extra("", "bin", ".bin", "node_modules/.bin"), *(p for home in homes for p in _glob(home, HOME_BINS))]
        for directory in dict.fromkeys(bins):
            for agent in AGENTS:
                for command in agent.commands:
                    path = directory / command
                    if os.access(path, os.X_OK) and path.is_file():
                        yield from self._command(agent, path)

    def _command(self, agent: Agent, path: Path) -> Iterator[Installed]:
        real = os.path.realpath(path)
        package = by_package(real)
        venv = Path(real).parent.parent
        version = version_in_venv(venv, agent)
        if package is None and by_place(real) is None and version is None and by_command(path.name) is None:
            return  # some other program of that name
        how = f"npm {package[1]}" if package else "python package" if version else "command"
        yield self._one((package[0] if package else agent), str(path), version or version_of(real), how)

    def _own(self, homes: list[Path]) -> Iterator[Installed]:
        for home in homes:
            for agent in AGENTS:
                for path in _glob(home, agent.places):
                    if path.is_file() and os.access(path, os.X_OK):
                        yield self._one(agent, str(path), version_of(os.path.realpath(path)), "own installer")

    # ---- what ----

    def _one(self, agent: Agent, path: str, version: str | None, how: str) -> Installed:
        if is_program(path):
            return Installed(agent.name, path, version, how, None, tuple(settle([self.survey.program(path)])))
        return self._script(agent, path, version, how, None)

    def _script(
        self, agent: Agent, path: str, version: str | None, how: str, otherwise: str | None, also: Iterable[Looked] = ()
    ) -> Installed:
        """An agent in a scripting language: its TLS is its interpreter's."""
        interpreter = interpreter_of(path) or otherwise
        program = shutil.which(interpreter) if interpreter else None
        if program is None:
            missing = Looked(interpreter or path, error=f"{interpreter or 'its interpreter'} was not found")
            return Installed(agent.name, path, version, how, interpreter, (missing, *also))
        return Installed(agent.name, path, version, how, program, tuple(settle([*self._interpreter(program), *also])))

    def _interpreter(self, program: str) -> Iterator[Looked]:
        real = os.path.realpath(program)
        yield self.survey.program(real)
        if os.path.basename(real).startswith("python"):
            yield from (self.survey.program(path) for path in python_tls(real, self.survey.library_paths()))


def python_tls(program: str, libraries: dict[str, str]) -> list[str]:
    """The files in which an interpreter's ``ssl`` module has its TLS: itself, or the libssl that it is linked with."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    found = []
    name = os.path.basename(program)
    for module in sorted((Path(program).parent.parent / "lib" / name / "lib-dynload").glob("_ssl*.so")):
        try:
            with open(hostfile.open_file(str(module)), "rb") as f:
                dynamic = ELFFile(f).get_section_by_name(".dynamic")
                tags: list[Any] = list(dynamic.iter_tags("DT_NEEDED")) if isinstance(dynamic, DynamicSection) else []
                needed = [str(tag.needed) for tag in tags]
        except (
            OSError,
            ELFError,
            ValueError,
            TypeError,
            LookupError,
            struct.error,
        ):  # whatever a damaged file does to the reader
            continue
        own = [str(Path(program).parent.parent / "lib" / n) for n in needed if n.startswith("libssl")]
        system = [libraries[n] for n in needed if n in libraries]
        found += [path for path in own if os.path.isfile(path)] or system or [str(module)]
    return found


def interpreter_of(path: str) -> str | None:
    """The program that a script's first line names; None where it has no such line."""
    try:
        with open(hostfile.open_file(path), "rb") as f:
            first = f.read(512).split(b"\n", 1)[0]
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    try:
        words = shlex.split(os.fsdecode(first[2:]))
    except ValueError:
        return None
    if words and os.path.basename(words[0]) == "env":
        words = [w for w in words[1:] if not w.startswith("-") and "=" not in w]
    return words[0] if words else None


def _is_ours(package: str) -> bool:
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "?")
    return f"linux-{machine}" in package


def _script_of(manifest: dict[str, object], directory: Path, agent: Agent) -> Path | None:
    programs = manifest.get("bin")
    names = [programs] if isinstance(programs, str) else [*programs.values()] if isinstance(programs, dict) else []
    preferred = [programs[c] for c in agent.commands if c in programs] if isinstance(programs, dict) else []
    return next((directory / name for name in [*preferred, *names] if isinstance(name, str)), None)


def _binaries(directory: Path) -> Iterator[str]:
    """ELF files of some size below a directory, as far as the bounds allow; other packages inside it are not entered."""
    left = MAX_ENTRIES
    todo = [(directory, 0)]
    while todo and left > 0:
        where, depth = todo.pop()
        try:
            entries = sorted(os.scandir(where), key=lambda e: e.name)
        except OSError:
            continue
        for entry in entries:
            left -= 1
            if left <= 0:
                return
            if entry.is_dir(follow_symlinks=False):
                if depth < MAX_DEPTH and entry.name != "node_modules":
                    todo.append((Path(entry.path), depth + 1))
            elif ("." not in entry.name or entry.name.endswith((".node", ".so", ".exe"))) and is_program(entry.path):
                yield entry.path


def _glob(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(root.glob(pattern))

"""Which processes are watched: from pids, names, a user or a program to the kernel's target map, without a gap.

The order closes the races: a name or pid is given to the kernel first, which follows every fork and exec from then on; after
that /proc is looked through again and again until nothing new is found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Protocol

from agentsight.capture import procfs
from agentsight.capture.procfs import Proc
from agentsight.errors import TargetError
from agentsight.options import Options

# AS_T_* of bpf/agentsight.h
IO, STDIO, PROCESS, FOLLOW = 1, 2, 4, 8
MAX_ROUNDS = 20


class Kernel(Protocol):
    """The part of Capture that concerns targets."""

    def add_target(self, tgid: int, flags: int, root: int) -> None: ...
    def add_name(self, name: str, flags: int) -> None: ...


def flags_of(options: Options) -> int:
    """The target flags for what the options ask for."""
    flags = 0
    if options.ssl:
        flags |= IO
    if options.stdio:
        flags |= STDIO
    flags |= PROCESS  # also when not shown: names of processes, and new programs to attach to
    if options.children:
        flags |= FOLLOW
    return flags


def names_of(pid: int, comm: str) -> set[str]:
    """Every name that a process answers to: comm, basename of the executable, of argv[0] and of the script."""
    args = procfs.arguments(pid).split(b"\0")
    names = {comm, os.path.basename(procfs.exe(pid))}
    names.update(os.path.basename(os.fsdecode(a)) for a in args[:1])
    script = _script(args)
    if script:
        names.add(os.path.basename(script))
    names.discard("")
    return names


_INTERPRETERS = ("python", "node", "bun", "deno", "ruby", "perl", "sh", "bash", "dash", "zsh")


def _script(args: list[bytes]) -> str:
    """The script that an interpreter was started with: its first argument that is no option."""
    program = os.path.basename(os.fsdecode(args[0])) if args else ""
    if not program.lstrip("-").startswith(_INTERPRETERS):
        return ""
    for arg in args[1:8]:
        if arg in (b"-c", b"-m", b"-e", b""):
            return ""
        if not arg.startswith(b"-"):
            return os.fsdecode(arg)
    return ""


class Targets:
    """Arms the kernel's filter.

    `pids` are all processes that were targets when armed, `waiting` the names that nothing matches yet.
    """

    def __init__(
        self,
        options: Options,
        *,
        processes: Callable[[], Iterable[Proc]] = procfs.all_procs,
        all_pids: Callable[[], Iterable[int]] = procfs.pids,
        own: Iterable[int] = (),
    ) -> None:
        self.pids: set[int] = set()
        self.waiting: list[str] = []
        self._options = options
        self._flags = flags_of(options)
        self._processes = processes
        self._all_pids = all_pids
        self._others: set[int] = set()  # mode 0: those who are no targets
        self._own = {os.getpid(), *own}

    def check(self) -> None:
        """TargetError, in one line, for what cannot be found. To be called before anything is loaded."""
        for pid in self._options.pids:
            tgid = procfs.leader(pid)
            if tgid == 0 or procfs.proc(tgid) is None:
                raise TargetError(f"there is no process {pid}: it has ended, or the number is wrong (see ps -e)")
            if tgid in self._own:
                raise TargetError(f"process {pid} is agentsight itself: give another one")
        path = self._options.binary_path
        if path is not None:
            if not os.path.exists(path):
                raise TargetError(f"there is no file {path}: give the path of a program or library")
            if not os.path.isfile(path) or not os.access(path, os.R_OK):
                raise TargetError(f"{path} is no readable program or library")

    def arm(self, kernel: Kernel, child: int = 0) -> None:
        """Give the targets to the kernel. `child` is a process that we hold back until this has returned."""
        options = self._options
        roots = [procfs.leader(pid) for pid in options.pids]
        if child:
            roots.append(child)
        for tgid in roots:
            if tgid:
                self._add(kernel, tgid)
        names = list(options.comms)
        program = options.binary_path if options.binary_path and is_program(options.binary_path) else None
        if program:
            names.append(os.path.basename(program))
        for name in names:
            kernel.add_name(name, self._flags)
        if not (roots or names):
            return
        matched: set[str] = set()
        for _ in range(MAX_ROUNDS):
            found = self._look(kernel, names, program, matched)
            if options.mode == 0:
                found |= self._add_everyone(kernel)
            if not found:
                break
        self.waiting = [name for name in options.comms if name not in matched]

    def _look(self, kernel: Kernel, names: list[str], program: str | None, matched: set[str]) -> bool:
        """One look through /proc. Whether anything new was found."""
        table = {p.pid: p for p in self._processes()}
        found = False
        if names:
            wanted = set(names)
            for p in table.values():
                if p.pid in self._own:
                    continue
                hit = wanted & names_of(p.pid, p.comm)
                if program and not hit and _same_file(f"/proc/{p.pid}/exe", program):
                    hit = {program}
                matched |= hit
                if hit and p.pid not in self.pids:
                    self._add(kernel, p.pid)
                    found = True
        if self._options.children:
            for pid in _descendants(self.pids, table) - self.pids - self._own:
                self._add(kernel, pid)
                found = True
        return found

    def _add_everyone(self, kernel: Kernel) -> bool:
        """Mode 0: of whoever is no target the process events are told. Kernel threads too: they start programs."""
        new = set(self._all_pids()) - self.pids - self._own - self._others
        for pid in new:
            kernel.add_target(pid, PROCESS | FOLLOW, 0)
        self._others |= new
        return bool(new)

    def _add(self, kernel: Kernel, pid: int) -> None:
        kernel.add_target(pid, self._flags, pid)
        self.pids.add(pid)


def _descendants(roots: Iterable[int], table: dict[int, Proc]) -> set[int]:
    children: dict[int, list[int]] = {}
    for p in table.values():
        children.setdefault(p.ppid, []).append(p.pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def is_program(path: str) -> bool:
    """Whether a path is to be run (then its processes are the targets) and no library."""
    return os.access(path, os.X_OK) and ".so" not in os.path.basename(path)

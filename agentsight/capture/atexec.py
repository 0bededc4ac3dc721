"""The exec gate at work for a capture: what a tracked process is about to become gets its probes before it runs.

Without the gate (no right to it, or a kernel that refuses) the capture goes on; a note in the stream and a line at the end
tell, also when the gate ends before its time. Libraries are loaded after the exec, when nobody waits for us: those in the usual
place beside the program (``PREFIX/bin``, ``PREFIX/lib``, as conda has it) are looked at while it is held; the others are the
Attacher's affair.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable

from agentsight.capture import gate
from agentsight.capture.attach import Attacher
from agentsight.capture.gate import Gate
from agentsight.errors import AgentsightError, CaptureError
from agentsight.tls import STACKS

MISSING = "programs are not held at their start, so a new one's first TLS connection may be missed"
LIBRARY_DIRS = ("../lib", "../lib64", ".", "lib")  # from the program's directory
MAX_ENTRIES = 4096  # of a directory
MAX_COMPANIONS = 16


class AtExec:
    """Holds tracked processes at exec while `attacher` looks at new binaries. `start` never raises: it tells what it cannot."""

    def __init__(self, attacher: Attacher) -> None:
        self._attacher = attacher
        self._gate: Gate | None = None
        self._problems: list[str] = []

    def start(self, targets: int | None, pids: Iterable[int] = ()) -> None:
        """Hold from now on. `targets`, `pids`: see Gate and its start."""
        why = gate.available()
        if why is None:
            held = Gate(self._look, targets=targets, on_end=self._ended)
            try:
                held.start(pids)
            except CaptureError as e:
                why = str(e)
            else:
                self._gate = held
        if why is not None:
            self._tell(f"{MISSING}: {why}")

    def stop(self) -> list[str]:
        """Let everybody run; before the attacher and the capture stop. What to tell the user. Harmless twice."""
        held, self._gate = self._gate, None
        if held is not None:
            held.stop()
            self._problems += held.problems
            counters = held.counters()
            early = counters["late"] + counters["busy"]
            if early:
                self._problems.append(f"{early} new programs ran before they were looked at: it took long, or they were too many")
        problems, self._problems = self._problems, []
        return problems

    def _look(self, fd: int, pid: int) -> None:
        name = gate.name_of(fd)
        self._attacher.file(name)
        for library in companions(name, is_library):
            try:
                self._attacher.file(library)
            except (AgentsightError, OSError):
                pass  # it may never be loaded; the Attacher tells of one that is and cannot be read

    def _ended(self, why: str) -> None:
        self._tell(f"the exec gate has ended ({why}): {MISSING}")

    def _tell(self, text: str) -> None:
        self._problems.append(text)
        self._attacher.note("warning", text)


def is_library(name: str) -> bool:
    """Whether a base name is that of a TLS stack's library."""
    return any(stack.is_library(name) for stack in STACKS)


def companions(program: str, wanted: Callable[[str], bool]) -> list[str]:
    """TLS libraries that are installed with a program. Those of the system's directories are known already: left out."""
    directory = os.path.dirname(program)
    if directory.startswith(("/proc/", "/usr/bin", "/usr/sbin", "/usr/lib")) or directory in ("/bin", "/sbin", "/"):
        return []
    found: list[str] = []
    for place in dict.fromkeys(os.path.normpath(os.path.join(directory, d)) for d in LIBRARY_DIRS):
        try:
            with os.scandir(place) as entries:
                found += sorted(e.path for e in itertools.islice(entries, MAX_ENTRIES) if wanted(e.name))
        except OSError:
            continue  # there is none
    return found[:MAX_COMPANIONS]

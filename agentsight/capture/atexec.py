"""The exec gate at work for a capture: what a tracked process is about to become gets its probes before it runs.

Without the gate (no right to it, or a kernel that refuses) the capture goes on; a note in the stream and a line at the end
tell, also when the gate ends before its time. A library that is loaded after the exec is the Attacher's own affair.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentsight.capture import gate
from agentsight.capture.attach import Attacher
from agentsight.capture.gate import Gate
from agentsight.errors import CaptureError

MISSING = "programs are not held at their start, so a new one's first TLS connection may be missed"


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
        self._attacher.file(gate.name_of(fd))

    def _ended(self, why: str) -> None:
        self._tell(f"the exec gate has ended ({why}): {MISSING}")

    def _tell(self, text: str) -> None:
        self._problems.append(text)
        self._attacher.note("warning", text)

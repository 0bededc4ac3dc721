"""When is a live run over? When its command, or all processes that it was limited to, have ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from agentsight.capture import procfs
from agentsight.capture.live import LiveSource
from agentsight.events import Event, ProcessEvent

LINGER_SECONDS = 0.5  # how long descendants that outlive the command are waited for
LOOK_SECONDS = 0.5  # between looks into /proc where nothing is decoded


class Alive:
    """Which of the watched processes still live, as the stream tells it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = set(pids)
        self.began = bool(self.pids)

    def observe(self, events: list[Event]) -> None:
        """Learn from decoded events."""
        for e in events:
            if type(e) is not ProcessEvent:
                continue
            if e.event == "EXIT":
                self.pids.discard(e.pid)
            elif e.event == "FORK" and e.child_pid and e.pid in self.pids:
                self.pids.add(e.child_pid)


def until_over(source: LiveSource, steps: Iterable[Any], alive: Alive | None) -> Iterator[Any]:
    """Pass `steps` (batches) on, and stop the source when it is time. `alive` None: nothing is decoded."""
    child = source.child
    limited = child is None and bool(source.options.pids) and not source.options.comms
    first = set(source.pids)
    ended_at = looked_at = time.monotonic()
    ended = False
    for step in steps:
        yield step
        now = time.monotonic()
        if child is not None:
            if not ended and child.poll():
                ended, ended_at = True, now
            if ended and (now - ended_at >= LINGER_SECONDS or alive is None or not alive.pids):
                source.stop()
        elif limited and now - looked_at >= LOOK_SECONDS:
            looked_at = now
            # /proc is asked too: an exit may have been lost, or come before the snapshot
            living = {p for p in (first | alive.pids if alive is not None else first) if procfs.proc(p) is not None}
            if not living:
                source.stop()

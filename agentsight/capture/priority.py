"""A decoding thread that falls behind takes a higher priority, and gives it back when it has caught up.

Behind means that batches wait in the arena, which is bounded: when it is full, records are lost. Nobody can slow down what is
watched; on a busy machine the scheduler has to be told that reading comes first.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

BEHIND_BYTES = 8 << 20
CAUGHT_UP_BYTES = 2 << 20
LOOK_SECONDS = 0.1
NICE = -20


class Priority:
    """For the thread that calls `look`. `raised` tells whether it ever was."""

    def __init__(self, capture: Any) -> None:
        self.raised = False
        self._capture = capture
        self._now = False
        self._possible = True
        self._next = 0.0

    def look(self) -> None:
        """To be called often; looks ten times a second at most."""
        now = time.monotonic()
        if now < self._next or not self._possible:
            return
        self._next = now + LOOK_SECONDS
        waiting = self._capture.counters()["arena_used"]
        if waiting > BEHIND_BYTES and not self._now:
            self._set(NICE)
        elif waiting < CAUGHT_UP_BYTES and self._now:
            self._set(0)

    def _set(self, nice: int) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        except PermissionError:  # no CAP_SYS_NICE: it stays as it is, and losses are counted
            self._possible = False
            return
        self._now = nice < 0
        self.raised |= self._now

"""Keeps the probes on TLS key-log functions up to date while a capture runs.

`host` and `program` attach before the start. Then a thread looks at each new process and at each one that begins TLS: at once,
and again a little later, since libraries are loaded at any time after exec. Every attachment and every failure becomes a note
in the record stream, so that a replay knows of it.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from agentsight.capture import procfs

LOOKS = (0.0, 0.05, 0.3, 1.0, 3.0)  # seconds after an exec at which a process is looked at
MAX_WAITING = 4096


class Kernel(Protocol):
    """The part of Capture that concerns probes."""

    def attach_secret(self, path: str, targets: list[tuple[int, int]]) -> Any: ...
    def note(self, payload: bytes) -> Any: ...


class Attacher:
    """Finds TLS stacks through `discovery` and attaches their probes to `kernel`."""

    def __init__(self, kernel: Kernel, discovery: Any) -> None:
        self.attached: dict[tuple[str, int], str] = {}  # (file, offset): stack
        self.failed: dict[tuple[str, int], str] = {}
        self._kernel = kernel
        self._discovery = discovery
        self._heap: list[tuple[float, int, int]] = []  # when, pid, which look
        self._waiting: set[int] = set()
        self._change = threading.Condition()
        self._ending = False
        self._attach_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.overflow = 0  # processes that were not looked at since too many waited

    def host(self) -> int:
        """Attach to every stack found on the host. How many probes are new."""
        return self._attach(self._discovery.host())

    def file(self, path: str) -> int:
        """Attach to the stacks inside one file."""
        return self._attach(self._discovery.file(path))

    def process(self, pid: int) -> int:
        """Attach to the stacks that a process has mapped."""
        return self._attach(self._discovery.process(pid))

    def start(self) -> None:
        """Begin to look at processes in the background."""
        self._thread = threading.Thread(target=self._work, name="as-attach", daemon=True)
        self._thread.start()

    def look(self, pids: Iterable[int]) -> None:
        """Look at these processes now and a few times more."""
        now = time.monotonic()
        with self._change:
            for pid in pids:
                if pid in self._waiting:
                    continue
                if len(self._waiting) >= MAX_WAITING:
                    self.overflow += 1
                    continue
                self._waiting.add(pid)
                heapq.heappush(self._heap, (now + LOOKS[0], pid, 0))
            self._change.notify()

    def again(self, pids: Iterable[int]) -> None:
        """A process became another program: what was seen of it before no longer counts."""
        with self._change:
            self._waiting.difference_update(pids)
            gone = set(pids)
            self._heap = [entry for entry in self._heap if entry[1] not in gone]
            heapq.heapify(self._heap)
        self.look(pids)

    def stop(self) -> None:
        """End the thread; what it is doing is finished first."""
        with self._change:
            self._ending = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join(10)

    def note(self, kind: str, message: str, **details: Any) -> None:
        """Put a note into the record stream."""
        self._kernel.note(msgspec.json.encode({"kind": kind, "message": message, **details}))

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._ending and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._change.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._ending:
                    return
                _, pid, look = heapq.heappop(self._heap)
            try:
                self.process(pid)
            except Exception as e:  # noqa: BLE001  one strange process must not end the looking at all others
                self.note("warning", f"process {pid} could not be looked at for TLS: {e}", process=pid)
            with self._change:
                if look + 1 < len(LOOKS) and procfs.proc(pid) is not None:
                    heapq.heappush(self._heap, (time.monotonic() + LOOKS[look + 1] - LOOKS[look], pid, look + 1))
                else:
                    self._waiting.discard(pid)

    def _attach(self, targets: Iterable[Any]) -> int:
        with self._attach_lock:
            files: dict[str, list[Any]] = {}
            for t in targets:
                key = (t.path, t.offset)
                if key not in self.attached and key not in self.failed:
                    files.setdefault(t.path, []).append(t)
            return sum(self._attach_file(path, found) for path, found in files.items())

    def _attach_file(self, path: str, found: list[Any]) -> int:
        offsets = [(t.offset, t.cookie) for t in found]
        stack = found[0].stack
        try:
            self._kernel.attach_secret(path, offsets)
        except (OSError, RuntimeError) as e:
            for t in found:
                self.failed[(path, t.offset)] = str(e)
            self.note("warning", f"cannot attach to {stack} in {path}: {e}", path=path, stack=stack)
            return 0
        for t in found:
            self.attached[(path, t.offset)] = t.stack
        self.note("attach", f"{stack} in {path}", path=path, stack=stack, offsets=[f"{o:#x}" for o, _ in offsets])
        return len(found)

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
from agentsight.errors import CaptureError

Place = tuple[int, int, int]  # device, inode, offset

LOOKS = (0.0, 0.05, 0.3, 1.0, 3.0)  # seconds after an exec at which a process is looked at
MAX_WAITING = 4096


class Kernel(Protocol):
    """The part of Capture that concerns probes."""

    def attach_secret(self, path: str, targets: list[tuple[int, int]]) -> Any: ...
    def note(self, payload: bytes) -> Any: ...


class Attacher:
    """Finds TLS stacks through `discovery` and attaches their probes to `kernel`."""

    def __init__(self, kernel: Kernel, discovery: Any) -> None:
        self.attached: dict[Place, str] = {}  # to the stack's name
        self.failed: dict[Place, str] = {}  # to the reason
        self._kernel = kernel
        self._discovery = discovery
        self._heap: list[tuple[float, int, int]] = []  # when, pid, which look
        self._waiting: set[int] = set()
        self._change = threading.Condition()
        self._ending = False
        self._attach_lock = threading.Lock()
        self._early: list[bytes] | None = []  # notes from before the stream began
        self._told_dark = self._told_problems = 0
        self._thread: threading.Thread | None = None
        self.overflow = 0  # processes that were not looked at since too many waited

    def host(self) -> int:
        """Attach to every stack found on the host. How many probes are new."""
        return self._attach(self._discovery.host(), dark_kind="dark-host")

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
            self._thread = None
            self._discovery.close()

    def note(self, kind: str, message: str, **details: Any) -> None:
        """Put a note into the record stream; before `open_notes` it waits."""
        payload = msgspec.json.encode({"kind": kind, "message": message, **details})
        if self._early is None:
            self._kernel.note(payload)
        else:
            self._early.append(payload)

    def open_notes(self) -> None:
        """The stream has begun: put what was noted so far into it."""
        early, self._early = self._early or [], None
        for payload in early:
            self._kernel.note(payload)

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

    def _attach(self, targets: Iterable[Any], dark_kind: str = "dark") -> int:
        with self._attach_lock:
            files: dict[str, list[Any]] = {}
            for t in targets:
                place = (t.dev, t.ino, t.offset)
                if place not in self.attached and place not in self.failed:
                    files.setdefault(t.path, []).append(t)
            self._tell(dark_kind)
            return sum(self._attach_file(path, found) for path, found in files.items())

    def _tell(self, dark_kind: str) -> None:
        """What the discovery could not do. On the host at large a dark file is nobody's concern yet: it is not shown."""
        for dark in self._discovery.dark[self._told_dark :]:
            self._told_dark += 1
            self.note(dark_kind, f"{dark.stack} in {dark.path}: {dark.reason}", path=dark.path, stack=dark.stack)
        for problem in self._discovery.problems[self._told_problems :]:
            self._told_problems += 1
            self.note("warning", problem)

    def _attach_file(self, path: str, found: list[Any]) -> int:
        offsets = [(t.offset, t.cookie) for t in found]
        stack, name = " and ".join(sorted({t.stack for t in found})), found[0].display_path
        try:
            self._kernel.attach_secret(path, offsets)
        except (OSError, CaptureError) as e:
            for t in found:
                self.failed[t.dev, t.ino, t.offset] = str(e)
            self.note("warning", f"cannot attach to {stack} in {name}: {e}", path=name, stack=stack)
            return 0
        for t in found:
            self.attached[t.dev, t.ino, t.offset] = t.stack
        how = sorted({t.how for t in found})
        self.note("attach", f"{stack} in {name}", path=name, stack=stack, offsets=[f"{t.offset:#x}" for t in found], how=how)
        return len(found)

"""Looks for TLS secrets in the memory of watched processes, for connections that no probe has seen begin.

Each process is searched when we attach to it while it runs (`attach`), and again when records of its connections wait for a
secret (`dark`): a stack that no probe knows, or a handshake that fell between a library's loading and its probe. One thread at
low priority searches, one process at a time, within stated bounds; the process is never stopped. What is found goes into the
record stream as secret records, so that a replay opens what the live run opened; each search leaves a note.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from agentsight.capture import procfs
from agentsight.errors import CaptureError

MAX_WAITING = 256
MAX_KNOWN = 4096  # processes remembered; secrets remembered of one
NICE = 10
SECRET_BYTES = 64  # at the end of a record


class Stream(Protocol):
    """The part of Capture that takes what was found."""

    def insert_secrets(self, records: Any) -> int: ...
    def note(self, payload: bytes) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bounds. Bytes and CPU seconds of one search; per process, the pause between searches and their number.

    The pause doubles with each search that found nothing new, and `searches` counts those only: a process whose new connections
    are found each time is searched as long as that goes on.
    """

    max_bytes: int = 2 << 30
    max_seconds: float = 5.0
    pause: float = 0.5
    searches: int = 8


@dataclasses.dataclass
class _Process:
    """What is known of one process, by pid and start time."""

    start: int
    last: float = -1e9  # end of the last search, monotonic
    pause: float = 0.0
    fruitless: int = 0
    found: set[bytes] = dataclasses.field(default_factory=set)  # keyed digests of what was found before
    failed: bool = False


class MemorySearcher:
    """Searches processes in the background and puts what is found into `stream`."""

    def __init__(
        self, stream: Stream, budget: Budget | None = None, *, search: Callable[..., Any] | None = None, low_priority: bool = True
    ) -> None:
        from agentsight._native import memscan

        self.budget = budget or Budget()
        self.searches = self.secrets = self.keys = 0
        self.cpu_seconds = 0.0
        self.overflow = 0  # processes that were not searched since too many waited
        self._stream = stream
        self._search = search or memscan.search
        self._halt = memscan.Stop()
        self._low = low_priority
        self._known: dict[int, _Process] = {}
        self._salt = os.urandom(32)
        self._queue: deque[tuple[int, str]] = deque()
        self._change = threading.Condition()
        self._ending = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to search in the background; before it, what is asked for waits."""
        self._thread = threading.Thread(target=self._work, name="as-memory", daemon=True)
        self._thread.start()

    def attach(self, pids: Iterable[int]) -> None:
        """These processes ran before we came: search each once, whatever it does."""
        self._ask(pids, "attach")

    def dark(self, pids: Iterable[int]) -> None:
        """Records of these processes wait for a secret: search each, as often as the budget allows."""
        self._ask(pids, "dark")

    def stop(self) -> None:
        """End; a search under way ends within some milliseconds, and what it found is still given."""
        with self._change:
            self._ending = True
            self._queue.clear()
            self._change.notify()
        self._halt.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def _ask(self, pids: Iterable[int], why: str) -> None:
        with self._change:
            waiting = {pid for pid, _ in self._queue}
            for pid in pids:
                if pid in waiting or pid == os.getpid():
                    continue
                if len(self._queue) >= MAX_WAITING:
                    self.overflow += 1
                    continue
                waiting.add(pid)
                self._queue.append((pid, why))
            self._change.notify()

    def _work(self) -> None:
        if self._low:
            with contextlib.suppress(OSError):  # then at the usual one
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self._change:
                while not self._ending and not self._queue:
                    self._change.wait()
                if self._ending:
                    return
                pid, why = self._queue.popleft()
            try:
                self._one(pid, why)
            except CaptureError:
                return  # the capture was stopped
            except Exception as e:  # noqa: BLE001  one strange process must not end the searching of all others
                self._note("warning", f"the memory of process {pid} could not be searched: {e}", pid)

    def _due(self, pid: int, why: str) -> _Process | None:
        """Whether this process may be searched now."""
        proc = procfs.proc(pid)
        if proc is None:
            return None
        known = self._known.get(pid)
        if known is None or known.start != proc.start_ticks:
            if len(self._known) >= MAX_KNOWN:
                self._known = {p: k for p, k in self._known.items() if procfs.proc(p) is not None}
            known = self._known[pid] = _Process(proc.start_ticks)
        if known.failed or known.fruitless >= self.budget.searches:
            return None
        if why == "attach" and not _has_socket(pid):
            return None
        if why == "dark" and time.monotonic() < known.last + known.pause:
            return None
        return known

    def _one(self, pid: int, why: str) -> None:
        known = self._due(pid, why)
        if known is None:
            return
        budget = self.budget
        uid = procfs.ids(pid)[0]
        try:
            result = self._search(pid, max_bytes=budget.max_bytes, max_seconds=budget.max_seconds, uid=uid, stop=self._halt)
        except OSError as e:
            known.failed = True
            if procfs.proc(pid) is not None:
                self._note("warning", f"the memory of process {pid} cannot be searched for TLS secrets: {e.strerror}", pid)
            return
        stats = result.stats
        with result.records as records:
            if len(records):
                self._stream.insert_secrets(records)
            known.fruitless = 0 if self._news(known, records) else known.fruitless + 1
        known.pause = budget.pause * 2**known.fruitless
        known.last = time.monotonic()
        cpu = sum(stats["cpu_seconds"])
        self.searches += 1
        self.secrets += stats["secrets"]
        self.keys += stats["keys"]
        self.cpu_seconds += cpu
        end = {"done": "", "bytes": "; it has more memory than is looked at", "time": "; the time was over"}.get(result.end, "")
        self._note(
            "memory",
            f"process {pid}: {stats['secrets']} TLS secrets found in {stats['present'] / 1e6:.0f} MB of memory, "
            f"{cpu:.2f} s of CPU{end}",
            pid,
            why=why,
            end=result.end,
            secrets=stats["secrets"],
            keys=stats["keys"],
            schedules=stats["schedules"],
            present=stats["present"],
            read=stats["read"],
            swapped=stats["swapped"],
            full=stats["full"],
            cpu_seconds=round(cpu, 4),
            seconds=round(stats["seconds"], 4),
        )

    def _news(self, known: _Process, records: Any) -> bool:
        """Whether anything was found that no earlier search of this process had. Keeps digests, never the secrets."""
        if not records.count:
            return False
        size = len(records) // records.count
        with memoryview(records) as view:
            now = {
                hashlib.blake2b(view[at + size - SECRET_BYTES : at + size], key=self._salt, digest_size=16).digest()
                for at in range(0, len(records), size)
            }
        news = not now <= known.found
        known.found = now if len(known.found) > MAX_KNOWN else known.found | now
        return news

    def _note(self, kind: str, message: str, pid: int, **details: Any) -> None:
        self._stream.note(msgspec.json.encode({"kind": kind, "message": message, "process": pid, **details}))


def _has_socket(pid: int) -> bool:
    """Whether the process has a socket open. Without one it has no connection whose secrets would be worth a search."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path).startswith("socket:"):
                    return True
    return False

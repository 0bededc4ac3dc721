"""The pipeline's own small analyzers: what notes and loss counters say, which events were asked for, who lived long enough.

Each takes a list of events and gives a list (`feed_many`), and at the end what it held back (`flush`). None looks at the
clock: what happens depends on the events alone, so that a replay gives the same.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import msgspec

from agentsight.events import (
    ConnectionEvent,
    DiagnosticEvent,
    Drops,
    Event,
    HttpEvent,
    LlmCall,
    Note,
    ProcessEvent,
    SseEvent,
    SseStream,
    SslEvent,
    StdioEvent,
)

SHOWN_NOTES = ("dark", "warning")  # kinds of notes that become events; the others only have effects


class Notes:
    """Notes of user space and loss counters become diagnostics; the counters' last state is kept for the summary."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}  # records lost since the start, by kind
        self.dropped_bytes: dict[str, int] = {}
        self.start: dict[str, object] = {}  # what the capture said of itself when it began

    def feed_many(self, events: list[Event]) -> list[Event]:
        """Replace Note and Drops by what the user should see of them."""
        for e in events:
            if type(e) is Note or type(e) is Drops:
                break
        else:
            return events
        out: list[Event] = []
        for e in events:
            if type(e) is Note:
                shown = self._note(e)
            elif type(e) is Drops:
                shown = self._drops(e)
            else:
                shown = e
            if shown is not None:
                out.append(shown)
        return out

    def flush(self) -> list[Event]:
        """Nothing is held back."""
        return []

    def _note(self, e: Note) -> Event | None:
        try:
            note = msgspec.json.decode(e.payload, type=dict[str, object])
        except msgspec.DecodeError:
            note = {"kind": "warning", "message": "a note in the capture is unreadable"}
        kind = str(note.get("kind"))
        if kind == "start":
            self.start = note
        if kind not in SHOWN_NOTES:
            return None
        message = str(note.pop("message", kind))
        note.pop("kind", None)
        return _diagnostic(e, kind, message, note)

    def _drops(self, e: Drops) -> Event | None:
        grown = {k: n - self.dropped.get(k, 0) for k, n in e.records.items() if n > self.dropped.get(k, 0)}
        self.dropped = {k: n for k, n in e.records.items() if n}
        self.dropped_bytes = {k: n for k, n in e.bytes.items() if n}
        if not grown:
            return None
        what = ", ".join(f"{n} {k}" for k, n in grown.items())
        return _diagnostic(e, "loss", f"records lost, the reader was too slow: {what}", {"records": e.records, "bytes": e.bytes})


def _diagnostic(e: Event, kind: str, message: str, details: dict[str, object]) -> DiagnosticEvent:
    return DiagnosticEvent(
        seq=e.seq,
        timestamp=e.timestamp,
        timestamp_ns=e.timestamp_ns,
        pid=e.pid,
        comm=e.comm,
        kind=kind,
        message=message,
        details=details,
    )


_TLS_EVENTS = (SslEvent, HttpEvent, SseEvent, SseStream, LlmCall, ConnectionEvent)


class Wanted:
    """Leaves only what was asked for: process events or not, and the users and programs of single sources."""

    def __init__(
        self, *, process: bool = True, ssl_uid: int | None = None, stdio_uid: int | None = None, stdio_comms: Collection[str] = ()
    ) -> None:
        self.process = process
        self.ssl_uid = ssl_uid
        self.stdio_uid = stdio_uid
        self.stdio_comms = frozenset(stdio_comms)
        self.active = not process or ssl_uid is not None or stdio_uid is not None or bool(stdio_comms)
        self._uids: dict[int, int] = {}  # pid to uid, as told by process events
        self._names: dict[int, frozenset[str]] = {}

    def feed_many(self, events: list[Event]) -> list[Event]:
        """Filter a list."""
        if not self.active:
            return events
        return [e for e in events if self._keep(e)]

    def flush(self) -> list[Event]:
        """Nothing is held back."""
        return []

    def _keep(self, e: Event) -> bool:
        if type(e) is ProcessEvent:
            self._learn(e)
            return self.process
        if type(e) is StdioEvent:
            if self.stdio_uid is not None and e.uid != self.stdio_uid:
                return False
            return not self.stdio_comms or bool(self.stdio_comms & (self._names.get(e.pid, frozenset()) | {e.comm}))
        if self.ssl_uid is not None and isinstance(e, _TLS_EVENTS):
            uid = e.uid if isinstance(e, SslEvent) else self._uids.get(e.pid)
            return uid == self.ssl_uid
        return True

    def _learn(self, e: ProcessEvent) -> None:
        if e.event == "EXIT":
            return  # its connections' last events are still to come
        if e.event == "FORK" and e.child_pid:
            self._uids[e.child_pid] = e.uid
            self._names[e.child_pid] = self._names.get(e.pid, frozenset()) | {e.comm}
            return
        self._uids[e.pid] = e.uid
        names = {e.comm}
        if e.filename:
            names.add(os.path.basename(e.filename))
        names.update(os.path.basename(a) for a in e.args[:2])
        self._names[e.pid] = frozenset(names)
        if len(self._uids) > 1 << 16:  # pids come round again: the oldest entries are the stalest
            for pid in list(self._uids)[: 1 << 15]:
                self._uids.pop(pid, None)
                self._names.pop(pid, None)


_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class LongLived:
    """Process events only of processes that live at least `min_ms`: until then what they did is held back.

    Time is that of the events that pass. A process still running at the end has lived until the last event.
    """

    MAX_HELD = 1 << 16

    def __init__(self, min_ms: int) -> None:
        self.min_ns = min_ms * 1_000_000
        self._held: dict[int, tuple[int, list[Event]]] = {}  # pid: when it is old enough, what waits
        self._old: set[int] = set()
        self._next = 0  # nothing falls due before
        self._now = 0
        self.overflow = 0  # processes shown without waiting since too many were held

    def feed_many(self, events: list[Event]) -> list[Event]:
        """Hold back, release what fell due, drop what ended too early."""
        if not self.min_ns:
            return events
        out: list[Event] = []
        for e in events:
            if e.timestamp_ns > self._now:
                self._now = e.timestamp_ns
                if self._held and self._now >= self._next:
                    self._release(out)
            if type(e) is not ProcessEvent:
                out.append(e)
            elif e.event == "EXIT":
                self._exit(e, out)
            elif e.event == "FORK":
                self._hold(e.child_pid or 0, e.timestamp_ns, e, out)
            else:
                self._hold(e.pid, e.start_ticks * _TICK_NS or e.timestamp_ns, e, out)
        return out

    def flush(self) -> list[Event]:
        """Who is old enough by now."""
        out: list[Event] = []
        self._release(out)
        self._held.clear()
        return out

    def _hold(self, pid: int, born: int, e: Event, out: list[Event]) -> None:
        if pid in self._old:
            out.append(e)
            return
        entry = self._held.get(pid)
        if entry is not None:
            entry[1].append(e)
            return
        due = born + self.min_ns
        if due <= self._now or len(self._held) >= self.MAX_HELD:
            self.overflow += due > self._now
            self._old.add(pid)
            out.append(e)
            return
        self._held[pid] = (due, [e])
        self._next = min(self._next, due) if len(self._held) > 1 else due

    def _exit(self, e: ProcessEvent, out: list[Event]) -> None:
        waiting = self._held.pop(e.pid, None)
        long = e.duration_ms is not None and e.duration_ms * 1e6 >= self.min_ns
        if long or e.pid in self._old:
            if waiting:
                out.extend(waiting[1])
            out.append(e)
        self._old.discard(e.pid)

    def _release(self, out: list[Event]) -> None:
        due = [pid for pid, (when, _) in self._held.items() if when <= self._now]
        for pid in due:
            out.extend(self._held.pop(pid)[1])
            self._old.add(pid)
        self._next = min((when for when, _ in self._held.values()), default=0)

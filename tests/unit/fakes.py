"""Stand-ins for the native parts in tests of pure Python logic, and short ways to make events."""

from __future__ import annotations

from typing import Any

from agentsight.events import DiagnosticEvent, Drops, Event, Note, ProcessEvent, StdioEvent

MS = 1_000_000


def common(t_ms: int, pid: int = 7, comm: str = "prog") -> dict[str, Any]:
    """The fields that all events have, at `t_ms` after boot."""
    return {"seq": t_ms, "timestamp": 1_700_000_000_000 + t_ms, "timestamp_ns": t_ms * MS, "pid": pid, "comm": comm}


def execed(t_ms: int, pid: int = 7, comm: str = "prog", *, start_ms: int | None = None, **more: Any) -> ProcessEvent:
    start = (t_ms if start_ms is None else start_ms) // 10
    return ProcessEvent(**common(t_ms, pid, comm), event="EXEC", ppid=1, uid=more.pop("uid", 0), start_ticks=start, **more)


def forked(t_ms: int, pid: int, child: int) -> ProcessEvent:
    return ProcessEvent(**common(t_ms, pid), event="FORK", ppid=1, uid=0, start_ticks=0, child_pid=child)


def exited(t_ms: int, pid: int = 7, *, after_ms: float = 0, code: int = 0, signal: int | None = None) -> ProcessEvent:
    return ProcessEvent(
        **common(t_ms, pid), event="EXIT", ppid=1, uid=0, start_ticks=0, exit_code=code, signal=signal, duration_ms=after_ms
    )


def printed(t_ms: int, data: str = "hi", pid: int = 7, *, uid: int = 0, comm: str = "prog") -> StdioEvent:
    return StdioEvent(
        **common(t_ms, pid, comm), direction="WRITE", tid=pid, uid=uid, fd=1, fd_role="stdout", fd_target="pipe:[1]",
        len=len(data), data=data, truncated=False, offset=0,
    )  # fmt: skip


def noted(t_ms: int, payload: bytes) -> Note:
    return Note(**common(t_ms, 0, ""), payload=payload)


def dropped(t_ms: int, **records: int) -> Drops:
    return Drops(**common(t_ms, 0, ""), records=records, bytes={k: 100 * n for k, n in records.items()})


def diagnosed(t_ms: int, message: str) -> DiagnosticEvent:
    return DiagnosticEvent(**common(t_ms), kind="test", message=message)


class FakeDecoder:
    """Takes lists of events for batches and gives them back."""

    def __init__(self, at_end: list[Event] | None = None, **account: int) -> None:
        self._end = at_end or []
        self._account = account

    def feed(self, batch: Any) -> list[Event]:
        return list(batch)

    def flush(self) -> list[Event]:
        return self._end

    def account(self) -> dict[str, Any]:
        zero = dict.fromkeys(("connections", "seen", "tls_opened", "tls_not_opened", "missing", "plaintext", "decoded"), 0)
        return {**zero, "reasons": {}, **self._account}

    def dark(self) -> list[dict[str, Any]]:
        return []


class ListSink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False
        self.ended = False
        self.idles = 0

    def write(self, events: Any) -> None:
        self.events.extend(events)

    def idle(self) -> None:
        self.idles += 1

    def close(self) -> None:
        self.ended = True


class FakeKernel:
    """Remembers what it is told, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuse: set[str] = set()

    def add_target(self, tgid: int, flags: int, root: int) -> None:
        self.calls.append(("target", tgid, flags))

    def add_name(self, name: str, flags: int) -> None:
        self.calls.append(("name", name, flags))

    def attach_secret(self, path: str, targets: list[tuple[int, int]]) -> None:
        if path in self.refuse:
            raise OSError(22, "refused")
        self.calls.append(("attach", path, targets))

    def note(self, payload: bytes) -> None:
        self.calls.append(("note", payload))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [c[1:] for c in self.calls if c[0] == kind]

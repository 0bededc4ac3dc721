"""What every analyzer is: events in, events out, and at the end what was held back. No clock, no /proc, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from agentsight.events import DiagnosticEvent, Event

# what an analyzer may ask for, and the Decoder keyword that builds it
KEYWORDS = {
    "raw": "raw",
    "http": "http",
    "frames": "frames",
    "sse": "sse_each",
    "handshakes": "handshakes",
    "stdio": "stdio",
    "process": "process",
    "connections": "connections",
}


class Analyzer:
    """Base of analyzers: override `feed`, or `feed_many` where a call per event would cost too much, and `flush`."""

    requires: ClassVar[frozenset[str]] = frozenset()  # kinds of events that the decoder must build, see KEYWORDS

    @property
    def decoder_options(self) -> dict[str, bool]:
        """Keywords of the Decoder that switch on what is required."""
        return {KEYWORDS[word]: True for word in self.requires}

    def feed(self, event: Event) -> Iterable[Event]:
        """One event; gives none, it, or others."""
        return self.feed_many([event])

    def feed_many(self, events: list[Event]) -> list[Event]:
        """A list of events; gives the same list where nothing changes."""
        out: list[Event] = []
        for event in events:
            out.extend(self.feed(event))
        return out

    def flush(self) -> Iterable[Event]:
        """The stream has ended: what was held back."""
        return ()


def diagnostic(at: Event, kind: str, message: str, **details: object) -> DiagnosticEvent:
    """A DiagnosticEvent at the time of `at`."""
    return DiagnosticEvent(at.seq, at.timestamp, at.timestamp_ns, at.pid, at.comm, kind, message, details)

"""The view of HTTP messages: asks the decoder for whole messages, and filters by direction where that is wanted."""

from __future__ import annotations

from typing import ClassVar

from agentsight.analyzers.base import Analyzer
from agentsight.errors import UsageError
from agentsight.events import Event, HttpEvent


class HTTPParser(Analyzer):
    """Makes the decoder put whole HTTP messages in place of the raw bytes that they came in.

    `only` is "request" or "response" to leave the other kind out, or None for both. Other events pass.
    """

    requires: ClassVar[frozenset[str]] = frozenset(("http",))

    def __init__(self, only: str | None = None) -> None:
        if only not in (None, "request", "response"):
            raise UsageError(f"{only!r} is no kind of HTTP message: use request or response")
        self.only = only

    def feed_many(self, events: list[Event]) -> list[Event]:
        """See Analyzer."""
        only = self.only
        if only is None:
            return events
        return [e for e in events if type(e) is not HttpEvent or e.message_type == only]

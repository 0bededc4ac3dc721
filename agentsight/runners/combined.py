"""AgentRunner: several sources in one capture, events of all of them in one order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

from agentsight.errors import UsageError
from agentsight.events import Event
from agentsight.options import Options
from agentsight.runners.base import Runner


class AgentRunner(Runner):
    """All sources of the runners added to it, captured together; alone it is what ``agentsight trace`` watches.

    Targets and settings of the added runners are joined: a target of one is a target of all, since one ring and one filter in the
    kernel keep the events in order.
    """

    kind = "ssl"
    base = Options()

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._runners: list[Runner] = []

    def add_runner(self, runner: Runner) -> Self:
        """Add a source. Its own analyzers see only events of its source."""
        self._runners.append(runner)
        return self

    def add_global_analyzer(self, analyzer: Any) -> Self:
        """Add an analyzer that sees the events of every source, behind the runners' own."""
        return self.add_analyzer(analyzer)

    def batches(self) -> Iterator[list[Event]]:
        if self._runners:
            self.options = _join(self.options, self._runners)
            own = [_OfSource(a, r.options) for r in self._runners for a in r._analyzers]  # noqa: SLF001  (the same class)
            self._analyzers = [*own, *self._analyzers]
            self._runners = []
        return super().batches()


def _join(options: Options, runners: list[Runner]) -> Options:
    each = [r.options for r in runners]
    uids = {o.uid for o in each} | {options.uid}
    if len(uids - {None}) > 1:
        raise UsageError("runners with different users cannot be combined")
    ssl = [o for o in each if o.ssl]
    stdio = [o for o in each if o.stdio]
    joined = replace(
        options,
        ssl=bool(ssl),
        process=any(o.process for o in each),
        stdio=bool(stdio),
        pids=tuple(dict.fromkeys(p for o in (options, *each) for p in o.pids)),
        comms=tuple(dict.fromkeys(c for o in (options, *each) for c in o.comms)),
        uid=next(iter(uids - {None}), None),
        min_duration_ms=max(o.min_duration_ms for o in (options, *each)),
        mode=min(o.mode for o in (options, *each)),
    )
    if ssl:
        joined = replace(
            joined,
            http=any(o.http for o in ssl),
            sse_merge=any(o.sse_merge for o in ssl),
            llm=any(o.llm for o in ssl),
            raw_data=any(o.raw_data for o in ssl),
            handshakes=any(o.handshakes for o in ssl),
            plain_http=next((o.plain_http for o in ssl if o.plain_http is not None), None),
        )
    if stdio:
        joined = replace(
            joined,
            stdio_all_fds=any(o.stdio_all_fds for o in stdio),
            stdio_max_bytes=max(o.stdio_max_bytes for o in stdio),
        )
    return joined


class _OfSource:
    """An analyzer that sees the events of one source and lets all others pass by it."""

    def __init__(self, inner: Any, options: Options) -> None:
        self.decoder_options = getattr(inner, "decoder_options", {})
        self._inner = inner
        sources = set()
        if options.ssl:
            sources |= {"ssl", "http_parser", "sse_processor", "sse_frames", "llm_call", "connection"}
        if options.process:
            sources.add("process")
        if options.stdio:
            sources.add("stdio")
        self._sources = frozenset(sources)

    def feed_many(self, events: list[Event]) -> list[Event]:
        out: list[Event] = []
        for event in events:
            if event.source in self._sources:
                out.extend(self._inner.feed(event))
            else:
                out.append(event)
        return out

    def flush(self) -> list[Event]:
        return list(self._inner.flush())

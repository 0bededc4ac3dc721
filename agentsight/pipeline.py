"""The way of every record: batches in, decoder, analyzers, redaction, sinks; the same for live capture and replay.

Nothing here looks at the clock, /proc or anything else outside the batches: the schema line takes its time from the first
event, the summary from the last, so that a replay writes the same bytes. Lists of events are passed on whole; an analyzer
with `feed_many` is called once per batch, one with `feed` alone once per event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from agentsight.events import SCHEMA_VERSION, Event, SchemaEvent, SummaryEvent
from agentsight.options import Options
from agentsight.registry import load
from agentsight.stages import LongLived, Notes, Wanted

Buffer: TypeAlias = Any  # collections.abc.Buffer is only in Python 3.12


@runtime_checkable
class Analyzer(Protocol):
    """Takes events, gives events: fewer, more or others. `flush` gives what was held back when the stream ends.

    An analyzer may also have ``feed_many(list) -> list`` (one call per batch), and a mapping ``decoder_options`` of Decoder
    keywords that it needs, such as ``{"http": True}``.
    """

    def feed(self, event: Event) -> Iterable[Event]: ...
    def flush(self) -> Iterable[Event]: ...


class Sink(Protocol):
    """Where events go. It is given only redacted events, first a SchemaEvent and last a SummaryEvent."""

    closed: bool  # whoever read it went away: the run may end

    def write(self, events: Sequence[Event]) -> None: ...
    def idle(self) -> None:
        """Nothing comes for the moment: what is buffered should go out."""

    def close(self) -> None: ...


class Decoder(Protocol):
    """The native Decoder, as far as the pipeline uses it."""

    def feed(self, batch: Buffer) -> list[Event]: ...
    def flush(self) -> list[Event]: ...
    def account(self) -> Any: ...
    def dark(self) -> list[dict[str, Any]]: ...


Many = Callable[[list[Event]], list[Event]]


def as_many(analyzer: Any) -> Many:
    """The list form of an analyzer."""
    many: Many | None = getattr(analyzer, "feed_many", None)
    if many is not None:
        return many
    feed = analyzer.feed

    def run(events: list[Event]) -> list[Event]:
        out: list[Event] = []
        for event in events:
            out.extend(feed(event))
        return out

    return run


def make_decoder(options: Options, analyzers: Iterable[Any] = ()) -> Any:
    """The native decoder for `options`, with what the analyzers need switched on."""
    from agentsight._native.httpparse import Decoder as Native

    keywords = options.decoder()
    for analyzer in analyzers:
        keywords.update(getattr(analyzer, "decoder_options", {}))
    return Native(**keywords)


def built_in_analyzers(options: Options) -> list[Any]:
    """The analyzers that `options` ask for, in the order in which they run."""
    chosen: list[Any] = []
    if options.ssl and options.http:
        if options.sse_merge:
            chosen.append(load("analyzers", "sse")())
        if options.llm:
            chosen.append(load("analyzers", "llm")())
    return chosen


class Pipeline:
    """Decoder to sinks. `feed` each batch, `idle` when none comes, `finish` once; each gives the events that it let out."""

    def __init__(
        self, decoder: Decoder, options: Options, *, analyzers: Sequence[Any] | None = None, sinks: Sequence[Sink] = ()
    ) -> None:
        self.decoder = decoder
        self.sinks = list(sinks)
        self.notes = Notes()
        self.counts: dict[str, int] = {}
        self.summary: SummaryEvent | None = None
        self.observers: list[Callable[[list[Event]], None]] = []  # see decoded events before anything else does
        self._first: Event | None = None
        self._last: Event | None = None
        # first, since it tells the time by everything that passes, notes too
        stages: list[Any] = [LongLived(options.min_duration_ms)] if options.min_duration_ms else []
        stages.append(self.notes)
        wanted = Wanted(
            process=options.process,
            ssl_uid=options.ssl_uid,
            stdio_uid=options.stdio_uid,
            stdio_comms=options.stdio_comms,
        )
        stages.extend(built_in_analyzers(options) if analyzers is None else analyzers)
        if wanted.active:
            stages.append(wanted)
        self._stages = stages
        self._steps = [as_many(s) for s in stages]
        self._redact = as_many(load("analyzers", "redaction")()) if options.redact else None

    @property
    def closed(self) -> bool:
        """Whether a sink's reader went away."""
        return any(sink.closed for sink in self.sinks)

    def feed(self, batch: Buffer) -> list[Event]:
        """One batch of records; the events that came out, as the sinks got them."""
        events = self.decoder.feed(batch)
        return self._run(events, 0) if events else events

    def idle(self) -> None:
        """Let the sinks put out what they hold."""
        for sink in self.sinks:
            sink.idle()

    def finish(self) -> list[Event]:
        """The stream has ended: what every stage still held, then the summary. Closes the sinks."""
        out = self._run(self.decoder.flush(), 0)
        for i, stage in enumerate(self._stages):
            out += self._run(list(stage.flush()), i + 1)
        self.summary = self._summary()
        self._give([self.summary])
        for sink in self.sinks:
            sink.close()
        return out

    def _run(self, events: list[Event], stage: int) -> list[Event]:
        if not events:
            return events
        if stage == 0:
            for observe in self.observers:
                observe(events)
            if self._first is None:
                self._begin(events[0])
            self._last = events[-1]
        for step in self._steps[stage:]:
            events = step(events)
        events = [e for e in events if not e.internal]
        if not events:
            return events
        if self._redact is not None:
            events = self._redact(events)
        counts = self.counts
        for e in events:
            counts[e.source] = counts.get(e.source, 0) + 1
        self._give(events)
        return events

    def _give(self, events: Sequence[Event]) -> None:
        for sink in self.sinks:
            sink.write(events)

    def _begin(self, first: Event) -> None:
        from agentsight import __version__

        self._first = first
        schema = SchemaEvent(
            seq=first.seq,
            timestamp=first.timestamp,
            timestamp_ns=first.timestamp_ns,
            pid=0,
            comm="",
            schema_version=SCHEMA_VERSION,
            version=__version__,
        )
        self._give([schema])

    def _summary(self) -> SummaryEvent:
        first, last = self._first, self._last
        account = self.decoder.account()
        total = {k: v for k, v in account.items() if isinstance(v, int) and v}
        not_decoded = account["plaintext"] - account["decoded"]
        if not_decoded > 0:
            total["not_decoded"] = not_decoded
        dropped = self.notes.dropped
        lost = account["tls_not_opened"] or account["missing"] or account.get("tls_undecodable") or not_decoded > 0
        return SummaryEvent(
            seq=last.seq if last else 0,
            timestamp=last.timestamp if last else 0,
            timestamp_ns=last.timestamp_ns if last else 0,
            pid=0,
            comm="",
            counts=dict(sorted(self.counts.items())),
            bytes=total,
            dark=self.decoder.dark(),
            drops=dropped,
            complete=not dropped and not lost,
            duration_s=round((last.timestamp_ns - first.timestamp_ns) / 1e9, 3) if first and last else 0.0,
        )


def drive(source: Iterable[Any], pipeline: Pipeline) -> Iterator[list[Event]]:
    """Run a source through a pipeline to its end, giving the events of each step. None from the source means a quiet moment."""
    for batch in source:
        if batch is None:
            pipeline.idle()
        else:
            events = pipeline.feed(batch)
            if events:
                yield events
        if pipeline.closed:
            break
    rest = pipeline.finish()
    if rest:
        yield rest

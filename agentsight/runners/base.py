"""One source each: SslRunner, ProcessRunner, StdioRunner, and ReplayRunner for capture files.

A runner is set up first (keywords are the fields of `Options`; `with_args` takes the short options of the command line), then
iterated once. Leaving the loop, or `stop` from any thread, ends the capture; `summary` is there afterwards. Events stream: each
step of the loop gives what the kernel has delivered meanwhile, and a slow consumer slows the reading, whose loss is counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self

from agentsight.errors import UsageError
from agentsight.events import Event, SummaryEvent
from agentsight.options import Options, parse_short
from agentsight.pipeline import Pipeline, built_in_analyzers, drive, make_decoder
from agentsight.registry import load
from agentsight.sinks.jsonl import FileLogger


class Runner:
    """What all runners have. Not to be used itself."""

    kind: ClassVar[str] = ""
    base: ClassVar[Options]

    def __init__(self, **keywords: Any) -> None:
        self.options = self.base.with_changes(keywords)
        self.summary: SummaryEvent | None = None
        self._analyzers: list[Any] = []
        self._source: Any = None
        self._stopped = False

    def with_args(self, args: Sequence[str]) -> Self:
        """Short options as behind ``--`` on the command line, such as ``["-p", "4711", "-h"]``."""
        self.options = self.options.with_changes(parse_short(self.kind, args))
        return self

    def add_analyzer(self, analyzer: Any) -> Self:
        """Add an analyzer, or the name of a registered one. They run in the order in which they were added."""
        self._analyzers.append(load("analyzers", analyzer)() if isinstance(analyzer, str) else analyzer)
        return self

    def stop(self) -> None:
        """End the capture; the loop gives what is still under way, then ends."""
        self._stopped = True
        if self._source is not None:
            self._source.stop()

    def _open(self) -> Any:
        """The source, armed, and with what observes it."""
        from agentsight.capture.live import LiveSource

        source = LiveSource(self.options, arguments=[self.kind])
        source.check()
        try:
            source.arm()
        except BaseException:
            source.close()
            raise
        return source

    def batches(self) -> Iterator[list[Event]]:
        """Events in lists, as they come; the fastest way to consume them."""
        if self._source is not None:
            raise UsageError("a runner runs once: make a new one")
        loggers = [a for a in self._analyzers if isinstance(a, FileLogger)]
        own = [a for a in self._analyzers if not isinstance(a, FileLogger)]
        analyzers = merge_analyzers(built_in_analyzers(self.options), own)
        source = self._source = self._open()
        try:
            decoder = make_decoder(self.options, analyzers)
            pipeline = Pipeline(decoder, self.options, analyzers=analyzers, sinks=[*loggers, *self._log_file()])
            if hasattr(source, "observe"):
                source.decoder = decoder
                pipeline.observers.append(source.observe)
            if self._stopped:
                source.stop()
            yield from drive(source, pipeline)
            self.summary = pipeline.summary
        finally:
            if hasattr(source, "close"):
                source.close()

    def _log_file(self) -> list[FileLogger]:
        o = self.options
        return [] if o.log_file is None else [FileLogger(o.log_file, rotate=o.rotate_logs, max_size_mb=o.max_log_mb)]

    def __iter__(self) -> Iterator[Event]:
        for events in self.batches():
            yield from events

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        batches = self.batches()
        end: list[Event] = []
        # one thread of its own: the same thread for every step, and the loop stays free meanwhile
        with ThreadPoolExecutor(1, thread_name_prefix="as-runner") as pool:
            try:
                while (events := await loop.run_in_executor(pool, next, batches, end)) is not end:
                    for event in events:
                        yield event
            finally:
                self.stop()
                await asyncio.shield(loop.run_in_executor(pool, batches.close))  # type: ignore[attr-defined]


def merge_analyzers(built_in: list[Any], own: list[Any]) -> list[Any]:
    """The built-ins, each replaced by one of the same class that the user added, then the user's others."""
    merged = [next((o for o in own if type(o) is type(b)), b) for b in built_in]
    return merged + [o for o in own if not any(o is m for m in merged)]


class SslRunner(Runner):
    """TLS traffic, opened. Raw events, unless ``http=True`` or an HTTPParser asks for whole messages."""

    kind = "ssl"
    base = Options(process=False, http=False, sse_merge=False, llm=False)


class ProcessRunner(Runner):
    """Starts and ends of processes."""

    kind = "process"
    base = Options(ssl=False)


class StdioRunner(Runner):
    """What programs read and print."""

    kind = "stdio"
    base = Options(ssl=False, process=False, stdio=True)


class ReplayRunner(Runner):
    """A capture file, with the defaults of ``agentsight replay``. No root."""

    kind = "ssl"
    base = Options(stdio=True)

    def __init__(self, path: str | os.PathLike[str], **keywords: Any) -> None:
        super().__init__(**keywords)
        self.path = os.fspath(path)

    def _open(self) -> Any:
        from agentsight.capture.replay import ReplaySource

        return ReplaySource(self.path)

"""Runs a source through a pipeline for a command: sinks, signals, the lines on stderr, the exit status."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from agentsight.capture.launch import Child
from agentsight.capture.lifetime import Alive, until_over
from agentsight.capture.live import LiveSource
from agentsight.errors import AgentsightError
from agentsight.options import Options
from agentsight.pipeline import Pipeline, Sink, drive, make_decoder
from agentsight.sinks.console import BLOCK_SECONDS, Console
from agentsight.sinks.jsonl import FileLogger, lines
from agentsight.sinks.render import size, summary_lines, text
from agentsight.sinks.story import Story

PATIENCE_SECONDS = 1.0  # timeout(1) and terminals of several layers send one Ctrl-C twice
HELD_LINES = 1000  # stderr lines kept back while a command has the terminal


class Stderr:
    """Our lines on stderr, held back while the terminal is not ours."""

    def __init__(self) -> None:
        self._held: list[str] | None = None

    def hold(self) -> None:
        """From now on keep the lines."""
        self._held = []

    def release(self) -> None:
        """Print what was kept; from now on print at once."""
        held, self._held = self._held or [], None
        for line in held:
            self(line)

    def __call__(self, line: str) -> None:
        if self._held is None:
            click.echo(line, err=True)
        elif len(self._held) < HELD_LINES:
            self._held.append(line)


class Signals:
    """Ctrl-C, TERM and HUP ask for a clean end; a second Ctrl-C ends at once. `received` is the first of them.

    While `child` runs what is typed at the terminal (Ctrl-C, Ctrl-backslash) is for it alone.
    """

    def __init__(self, child: Child | None = None) -> None:
        self.received = 0
        self._since = 0.0
        self._child = child
        self._stop: Callable[[], None] = lambda: None

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Within it, a signal calls `stop`."""
        self._stop = stop
        old = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            if number == signal.SIGQUIT and self._child is None:
                continue
            old[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGQUIT):
            if self._child is not None and self._child.running:
                return
            if self.received and time.monotonic() - self._since > PATIENCE_SECONDS:
                raise KeyboardInterrupt
        if not self.received:
            self.received, self._since = number, time.monotonic()
        self._stop()

    def status(self) -> int:
        """Exit status for how it ended."""
        return 130 if self.received == signal.SIGINT else 0


def console(options: Options, *, patient: bool) -> Console | None:
    """The sink on stdout; None where no events are wanted there. `patient`: never drop (a replay has time)."""
    if options.quiet:
        return None
    readable = options.format == "text" or (options.format == "auto" and os.isatty(1))
    return Console(render=text if readable else lines, patience=None if patient else BLOCK_SECONDS)


def log_file(options: Options, say: Callable[[str], None]) -> FileLogger | None:
    """The log file sink, if one is wanted."""
    if options.log_file is None:
        return None
    return FileLogger(options.log_file, rotate=options.rotate_logs, max_size_mb=options.max_log_mb, say=say)


def live(options: Options, arguments: Sequence[str]) -> int:
    """A capture with events on stdout. Returns the exit status."""
    say, signals = Stderr(), Signals()
    source = LiveSource(options, arguments=arguments)
    source.check()
    sinks = _sinks(log_file(options, say), console(options, patient=False))
    with signals.stopping(source.stop):
        _watch(source, sinks, say)
    return signals.status()


def record(options: Options, arguments: Sequence[str], command: Sequence[str]) -> int:
    """A capture of a command (or of targets) with a readable record at its end. Returns the exit status."""
    if not command:
        return _record_targets(options, arguments)
    LiveSource(options, arguments=arguments).check()
    say, child = Stderr(), Child(command)  # forked before any thread of ours exists
    source = LiveSource(options, arguments=arguments, child=child)
    signals = Signals(child)
    with signals.stopping(source.stop):
        try:
            story = Story()
            sinks = _sinks(log_file(options, say), story if options.consumed else None)
            say.hold()
            _watch(source, sinks, say, story)
        except BaseException:
            child.cancel()
            child.wait()  # what runs already is not ours to end, and the terminal is its own until then
            raise
        finally:
            say.release()
    if child.status is None:
        child.cancel()
        return 128 + signals.received if signals.received else 125
    return child.status


def _record_targets(options: Options, arguments: Sequence[str]) -> int:
    say, signals = Stderr(), Signals()
    source = LiveSource(options, arguments=arguments)
    source.check()
    story = Story()
    sinks = _sinks(log_file(options, say), console(options, patient=False) if options.format == "json" else None, story)
    with signals.stopping(source.stop):
        _watch(source, sinks, say, story)
    return signals.status()


def replay(options: Options, path: str, say: Stderr | None = None) -> int:
    """A capture file through the pipeline. Returns the exit status."""
    from agentsight.capture.replay import ReplaySource

    say, signals = say or Stderr(), Signals()
    source = ReplaySource(path)
    sinks = _sinks(log_file(options, say), console(options, patient=True))
    pipeline = Pipeline(make_decoder(options), options, sinks=sinks)
    few_collections()
    with signals.stopping(source.stop):
        for _ in drive(source, pipeline):
            pass
    _end(pipeline, sinks, say)
    if source.torn:
        say(f"agentsight: {path} has no end (the capture was cut off); all up to its last whole batch was read")
    return signals.status()


def few_collections() -> None:
    """Events come by the hundred thousand and hold no cycles: looking for garbage among them is wasted time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def _sinks(*sinks: Any) -> list[Sink]:
    return [sink for sink in sinks if sink is not None]


def _watch(source: LiveSource, sinks: Sequence[Sink], say: Stderr, story: Story | None = None) -> None:
    options = source.options
    source.tell = say
    try:
        source.arm()
        _announce(source, say)
        if source.child is not None and not source.done.is_set():
            source.child.go()
        if options.consumed:
            _decode(source, sinks, say, story)
        else:
            for _ in until_over(source, source.record(), None):
                pass
            say.release()
    finally:
        source.close()
    for problem in source.problems:
        say(f"agentsight: {problem}")
    if options.capture is not None:
        say(f"agentsight: {size(source.recorded)} in {options.capture}: agentsight replay {options.capture}")
    lost = {kind: n["records"] for kind, n in source.counters.get("drops", {}).items() if n["records"]}
    if lost and not options.consumed:
        say("agentsight: records lost: " + ", ".join(f"{n} {kind}" for kind, n in lost.items()))
    if source.counters.get("priority_raised") or source.priority.raised:
        say("agentsight: reading had fallen behind, so its threads raised their own priority")


def _decode(source: LiveSource, sinks: Sequence[Sink], say: Stderr, story: Story | None) -> None:
    # nobody reads the events: they are counted, there is nothing to redact
    options = source.options if sinks else source.options.with_changes({"redact": False})
    decoder = source.decoder = make_decoder(options)
    pipeline = Pipeline(decoder, options, sinks=sinks)
    few_collections()
    alive = Alive({source.child.pid} if source.child is not None else source.pids)
    pipeline.observers = [alive.observe, source.observe]
    try:
        for _ in drive(until_over(source, source, alive), pipeline):
            pass
    finally:
        for sink in sinks:  # whatever happened, what is logged is written
            sink.close()
    say.release()
    if story is not None and not source.options.quiet:
        for line in story.text():
            say(line)
    _end(pipeline, sinks, say)


def _announce(source: LiveSource, say: Stderr) -> None:
    options = source.options
    if options.capture is not None:
        say(f"agentsight: {options.capture} will hold plaintext and TLS secrets as they are (mode 0600)")
    if options.ssl and not options.has_target and source.child is None:
        say("agentsight: no target given: the TLS of every user's programs is opened")
    for name in source.waiting:
        say(f"agentsight: waiting for a program named {name}: none runs now")
    if source.child is None or options.verbose:
        say(f"agentsight: watching {source.describe()}")


def _end(pipeline: Pipeline, sinks: Sequence[Sink], say: Stderr) -> None:
    if pipeline.summary is None:
        raise AgentsightError("the pipeline ended without its summary")
    for line in summary_lines(pipeline.summary):
        say(line)
    for sink in sinks:
        if isinstance(sink, Console) and sink.dropped:
            say(f"agentsight: {sink.dropped} events were not shown: the reader of stdout was too slow (a --log-file has them)")
        elif isinstance(sink, FileLogger):
            say(f"agentsight: {sink.lines} lines in {sink.path}")

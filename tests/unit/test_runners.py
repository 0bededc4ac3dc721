"""The public API: runners as iterators and async iterators, their analyzers, several sources in one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.fakes import FakeDecoder, execed, exited, printed

from agentsight.errors import AgentsightError, UsageError
from agentsight.events import Event, ProcessEvent, StdioEvent
from agentsight.runners import AgentRunner, ProcessRunner, ReplayRunner, SslRunner, StdioRunner, base
from agentsight.runners.base import Runner, merge_analyzers
from agentsight.sinks.jsonl import FileLogger


class FakeSource:
    """Gives lists of events for batches until it is stopped."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self.stopped = self.closed = False

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self.stopped:
                return
            yield batch

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    fake = FakeSource([[execed(1), printed(2)], None, [printed(3), exited(4)]])
    monkeypatch.setattr(Runner, "_open", lambda self: fake)
    monkeypatch.setattr(base, "make_decoder", lambda options, analyzers: FakeDecoder())
    return fake


def make(kind: type[Any] = StdioRunner, **more: Any) -> Any:
    return kind(process=True, redact=False, **more)


def test_a_runner_is_an_iterator_of_events(source: FakeSource) -> None:
    runner = make()
    assert [e.seq for e in runner] == [1, 2, 3, 4]
    assert runner.summary.counts == {"process": 2, "stdio": 2}
    assert source.closed
    with pytest.raises(UsageError, match="runs once"):
        list(runner)


def test_and_an_async_iterator(source: FakeSource) -> None:
    async def collect() -> list[int]:
        return [e.seq async for e in make()]

    assert asyncio.run(collect()) == [1, 2, 3, 4]
    assert source.closed


def test_leaving_the_loop_closes_the_source(source: FakeSource) -> None:
    for event in make():
        assert event.seq == 1
        break
    assert source.closed


def test_leaving_the_async_loop_closes_it_too(source: FakeSource) -> None:
    async def first() -> int:
        events = make().__aiter__()
        event = await anext(events)
        await events.aclose()
        return int(event.seq)

    assert asyncio.run(first()) == 1
    assert source.closed


def test_stop_ends_the_loop(source: FakeSource) -> None:
    runner = make()
    seen = []
    for event in runner:
        seen.append(event.seq)
        runner.stop()
    assert seen == [1, 2]
    assert runner.summary is not None


class Counter:
    """Counts what it sees and lets it pass."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def feed(self, event: Event) -> Iterable[Event]:
        self.seen.append(event.source)
        return (event,)

    def flush(self) -> Iterable[Event]:
        return ()


def test_analyzers_of_ones_own_and_a_log(source: FakeSource, tmp_path: Path) -> None:
    counter = Counter()
    log = tmp_path / "x.jsonl"
    runner = make().add_analyzer(counter).add_analyzer(FileLogger(log))
    assert len(list(runner)) == 4
    assert counter.seen == ["process", "stdio", "stdio", "process"]
    assert len(log.read_text().splitlines()) == 6  # with schema and summary


def test_an_analyzer_by_a_name_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no analyzer 'nonsense'"):
        SslRunner().add_analyzer("nonsense")


def test_short_options_and_keywords() -> None:
    runner = SslRunner(comms="python3").with_args(["-p", "4", "-h"])
    assert (runner.options.comms, runner.options.pids, runner.options.handshakes) == (("python3",), (4,), True)
    assert not runner.options.http
    assert ProcessRunner().with_args(["-d", "5"]).options.min_duration_ms == 5
    with pytest.raises(UsageError, match="no option 'colour'"):
        SslRunner(colour=1)


def test_an_added_built_in_takes_the_place_of_ours() -> None:
    mine, other = Counter(), object()
    assert merge_analyzers([Counter(), "x"], [other, mine]) == [mine, "x", other]


def test_several_sources_are_captured_together(source: FakeSource) -> None:
    of_stdio, of_process, of_all = Counter(), Counter(), Counter()
    runner = AgentRunner(redact=False)
    runner.add_runner(StdioRunner(pids=5, stdio_max_bytes=10).add_analyzer(of_stdio))
    runner.add_runner(ProcessRunner(comms=["x"]).add_analyzer(of_process))
    runner.add_global_analyzer(of_all)
    events = list(runner)
    assert [type(e) for e in events] == [ProcessEvent, StdioEvent, StdioEvent, ProcessEvent]
    assert of_stdio.seen == ["stdio"] * 2
    assert of_process.seen == ["process"] * 2
    assert of_all.seen == ["process", "stdio", "stdio", "process"]
    o = runner.options
    assert (o.ssl, o.process, o.stdio, o.pids, o.comms, o.stdio_max_bytes) == (False, True, True, (5,), ("x",), 10)


def test_different_users_cannot_be_joined(source: FakeSource) -> None:
    runner = AgentRunner().add_runner(StdioRunner(uid=1)).add_runner(ProcessRunner(uid=2))
    with pytest.raises(UsageError, match="different users"):
        list(runner)


def test_a_replay_of_nothing_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(AgentsightError, match="there is no file"):
        list(ReplayRunner(tmp_path / "none"))

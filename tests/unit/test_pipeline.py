"""The pipeline's own logic: schema first, summary last, lists through stages, nothing that depends on batch borders."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from unit.fakes import FakeDecoder, ListSink, diagnosed, dropped, execed, exited, forked, noted, printed

from agentsight.errors import UsageError
from agentsight.events import DiagnosticEvent, Event, Note, ProcessEvent, SchemaEvent, SummaryEvent, to_json
from agentsight.options import Options, parse_short, split_names
from agentsight.pipeline import Pipeline, drive
from agentsight.stages import LongLived, Notes, Wanted

PLAIN = Options(redact=False)


def run(events: list[list[Event]], options: Options = PLAIN, *, analyzers: Any = (), decoder: Any = None) -> list[Event]:
    sink = ListSink()
    pipeline = Pipeline(decoder or FakeDecoder(), options, analyzers=list(analyzers), sinks=[sink])
    for _ in drive(events, pipeline):
        pass
    assert sink.ended
    return sink.events


def test_schema_first_summary_last_with_the_times_of_the_stream() -> None:
    out = run([[execed(100), printed(150)], [exited(2100)]])
    assert [type(e) for e in out] == [SchemaEvent, ProcessEvent, type(out[2]), ProcessEvent, SummaryEvent]
    assert out[0].timestamp_ns == 100_000_000
    summary = out[-1]
    assert isinstance(summary, SummaryEvent)
    assert (summary.duration_s, summary.timestamp_ns, summary.counts) == (2.0, 2_100_000_000, {"process": 2, "stdio": 1})
    assert summary.complete


def test_an_empty_stream_still_has_a_summary() -> None:
    assert [type(e) for e in run([])] == [SummaryEvent]


def test_what_the_decoder_held_back_comes_before_the_summary() -> None:
    out = run([[execed(1)]], decoder=FakeDecoder([exited(2)]))
    assert [e.source for e in out] == ["schema", "process", "process", "summary"]


def test_internal_events_never_reach_a_sink_but_begin_the_log() -> None:
    out = run([[noted(5, b'{"kind":"start","version":"1"}')], [printed(9)]])
    assert [e.source for e in out] == ["schema", "stdio", "summary"]
    assert out[0].timestamp_ns == 5_000_000


def test_notes_for_the_user_become_diagnostics() -> None:
    out = run([[noted(1, b'{"kind":"warning","message":"m","path":"/x"}'), noted(2, b"no json"), noted(3, b'{"kind":"tick"}')]])
    shown = [e for e in out if isinstance(e, DiagnosticEvent)]
    assert (shown[0].kind, shown[0].message, shown[0].details) == ("warning", "m", {"path": "/x"})
    assert len(shown) == 2


def test_growing_loss_counters_are_told_and_end_up_in_the_summary() -> None:
    out = run([[dropped(1, data=0), dropped(2, data=3), dropped(3, data=3), dropped(4, data=5)]])
    told = [e.message for e in out if isinstance(e, DiagnosticEvent)]
    assert [m.rsplit(": ", 1)[1] for m in told] == ["3 data", "2 data"]
    summary = out[-1]
    assert isinstance(summary, SummaryEvent)
    assert summary.drops == {"data": 5}
    assert not summary.complete


@pytest.mark.parametrize("account", [{"tls_not_opened": 1}, {"missing": 1}, {"plaintext": 5, "decoded": 4}])
def test_the_summary_is_incomplete_when_bytes_are(account: dict[str, int]) -> None:
    summary = run([[printed(1)]], decoder=FakeDecoder(**account))[-1]
    assert isinstance(summary, SummaryEvent)
    assert not summary.complete


class Doubler:
    """Gives each event twice, and one at the end."""

    def feed(self, event: Event) -> Iterable[Event]:
        return (event, event)

    def flush(self) -> Iterable[Event]:
        return (diagnosed(99, "end"),)


class Upper:
    """Works on lists."""

    calls = 0

    def feed_many(self, events: list[Event]) -> list[Event]:
        self.calls += 1
        return [e for e in events if not isinstance(e, DiagnosticEvent)]

    def flush(self) -> list[Event]:
        return []


def test_flushed_events_pass_through_the_later_stages_only() -> None:
    upper = Upper()
    out = run([[printed(1), printed(2)]], analyzers=[Doubler(), upper])
    assert [e.source for e in out] == ["schema", "stdio", "stdio", "stdio", "stdio", "summary"]
    assert upper.calls == 2
    assert [e.source for e in run([[printed(1)]], analyzers=[upper, Doubler()])][-2:] == ["diagnostic", "summary"]


def test_a_quiet_moment_lets_sinks_write_and_a_gone_reader_ends_the_run() -> None:
    sink = ListSink()
    pipeline = Pipeline(FakeDecoder(), PLAIN, analyzers=[], sinks=[sink])

    def source() -> Iterable[Any]:
        yield [printed(1)]
        yield None
        sink.closed = True
        yield [printed(2)]
        raise AssertionError("read on after the sink was closed")

    assert len(list(drive(source(), pipeline))) == 2
    assert sink.idles == 1


STORY = [
    execed(10, 1), forked(20, 1, 2), execed(25, 2), printed(30, pid=2), exited(90, 2, after_ms=70), forked(95, 1, 3),
    printed(210, pid=1), execed(230, 3), exited(400, 3, after_ms=305), exited(500, 1, after_ms=490), forked(510, 9, 4),
    execed(515, 4), printed(560),
]  # fmt: skip


def lived(batches: list[list[Event]], ms: int) -> list[bytes]:
    return [to_json(e) for e in run(batches, Options(redact=False, min_duration_ms=ms), analyzers=[])]


def test_only_processes_that_lived_long_enough_are_told() -> None:
    out = run([STORY], Options(redact=False, min_duration_ms=100), analyzers=[])
    seen = [(e.event, e.child_pid or e.pid, e.seq) for e in out if isinstance(e, ProcessEvent)]
    assert seen == [
        ("EXEC", 1, 10),
        ("FORK", 3, 95),
        ("EXEC", 3, 230),
        ("EXIT", 3, 400),
        ("EXIT", 1, 500),
    ]  # fmt: skip  (4 lived 50 ms at the end, 2 only 70)


def test_the_result_does_not_depend_on_where_batches_are_cut() -> None:
    whole = lived([list(STORY)], 100)
    assert whole == lived([[e] for e in STORY], 100)
    for cut in range(1, len(STORY)):
        assert lived([STORY[:cut], STORY[cut:]], 100) == whole


def test_held_back_processes_are_bounded() -> None:
    stage = LongLived(1000)
    stage.MAX_HELD = 3  # type: ignore[misc]
    out = list(itertools.chain.from_iterable(stage.feed_many([execed(i, i)]) for i in range(1, 6)))
    assert [e.pid for e in out] == [4, 5]
    assert stage.overflow == 2


def test_process_events_only_where_asked_for() -> None:
    out = run([STORY], Options(redact=False, process=False), analyzers=[])
    assert {e.source for e in out} == {"schema", "stdio", "summary"}


def test_stdio_of_one_user_or_program() -> None:
    events = [execed(1, 5, args=["python3", "tool.py"]), printed(2, pid=5), printed(3, pid=6, uid=9), printed(4, pid=8, comm="x")]
    by_user = Wanted(stdio_uid=9).feed_many(list(events))
    assert [e.pid for e in by_user if e.source == "stdio"] == [6]
    by_name = Wanted(stdio_comms=["tool.py", "x"]).feed_many(list(events))
    assert [e.pid for e in by_name if e.source == "stdio"] == [5, 8]


def test_a_forked_child_is_known_by_its_parents_names_and_user() -> None:
    wanted = Wanted(stdio_comms=["tool.py"])
    out = wanted.feed_many([execed(1, 5, args=["python3", "tool.py"]), forked(2, 5, 6), printed(3, pid=6)])
    assert [e.pid for e in out if e.source == "stdio"] == [6]


def test_notes_pass_lists_without_notes_on_untouched() -> None:
    events: list[Event] = [printed(1)]
    assert Notes().feed_many(events) is events
    assert Notes().feed_many([Note(**{f: getattr(noted(1, b"{}"), f) for f in Note.__struct_fields__})]) == []


def test_nothing_is_decoded_when_only_a_capture_is_wanted() -> None:
    from pathlib import Path

    assert not Options(quiet=True, capture=Path("x")).consumed
    assert Options(quiet=True, capture=Path("x"), log_file=Path("y")).consumed
    assert Options(quiet=True).consumed
    assert Options(capture=Path("x")).consumed


def test_the_decoder_builds_only_what_is_wanted() -> None:
    trace = Options().decoder()
    assert (trace["raw"], trace["http"], trace["sse_each"], trace["frames"], trace["stdio"]) == (True, True, False, True, False)
    raw = Options(http=False).decoder()
    assert (raw["raw"], raw["http"], raw["frames"]) == (True, False, False)
    each = Options(sse_merge=False, llm=False).decoder()
    assert (each["sse_each"], each["frames"]) == (True, False)
    none = Options(ssl=False, plain_http=()).decoder()
    assert (none["raw"], none["http"], none["connections"], none["plain_http"]) == (False, False, False, None)
    assert none["process"]


@pytest.mark.parametrize(
    "bad",
    [
        {"ssl": False, "process": False, "stdio": False},
        {"format": "xml"}, {"mode": 2}, {"pids": (0,)}, {"comms": ("/sh",)},
        {"comms": ("",)}, {"comms": ("x" * 64,)}, {"stdio_max_bytes": 0}, {"max_log_mb": 0}, {"min_duration_ms": -1},
        {"nonsense": 1},
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options().with_changes(bad)


def test_short_options() -> None:
    assert parse_short("ssl", ["-p", "4", "-p5", "-c", "a,b", "-h", "-u", "0", "-v"]) == {
        "pids": (4, 5),
        "comms": ("a", "b"),
        "handshakes": True,
        "uid": 0,
        "verbose": 1,
    }
    assert parse_short("process", ["-d", "100", "-m", "0"]) == {"min_duration_ms": 100, "mode": 0}
    for wrong in (["-x"], ["-p"], ["-p", "x"], ["word"], ["-d", "1"]):
        with pytest.raises(UsageError, match="behind --"):
            parse_short("stdio", wrong)
    assert split_names(["a, b", "c,"]) == ("a", "b", "c")


def test_the_time_that_notes_tell_reaches_those_who_wait_for_it() -> None:
    """On an idle machine only the capture's own notes tell that a process has lived long enough."""
    pipeline = Pipeline(FakeDecoder(), PLAIN.with_changes({"min_duration_ms": 100}), analyzers=[])
    assert pipeline.feed([execed(1000)]) == []
    assert pipeline.feed([noted(2000, b'{"kind":"tick"}')]) == [execed(1000)]

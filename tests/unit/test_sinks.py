"""Sinks: whole lines, rotation, a full disk, slow and vanished readers, text without control characters."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from unit.fakes import common, execed, exited, forked, printed

from agentsight.errors import AgentsightError
from agentsight.events import LlmCall, SchemaEvent, SslEvent, SummaryEvent, ToolCall, Usage
from agentsight.sinks import files
from agentsight.sinks.console import Console
from agentsight.sinks.jsonl import KEEP, FileLogger, lines
from agentsight.sinks.render import one_line, size, summary_lines, text, text_line
from agentsight.sinks.story import SHOWN_CALLS, Story

SCHEMA = SchemaEvent(**common(0, 0, ""), schema_version=1, version="x")


def parsed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_has_whole_lines_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    log = FileLogger(path)
    log.write([SCHEMA, printed(1, "a\nb")])
    log.idle()
    assert [e["source"] for e in parsed(path)] == ["schema", "stdio"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.write([printed(2)])
    log.close()
    log.close()
    assert len(parsed(path)) == 3
    assert log.lines == 3


def test_a_log_is_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old\n")
    path.chmod(0o644)
    log = FileLogger(path)
    log.write([SCHEMA])
    log.close()
    assert [e["source"] for e in parsed(path)] == ["schema"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rotation_keeps_five_and_each_begins_with_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    log = FileLogger(path, rotate=True, max_size_mb=1)
    log.write([SCHEMA])
    for i in range(90):
        log.write([printed(i, "x" * 100_000)])
    log.close()
    kept = [path, *(path.with_name(f"x.jsonl.{n}") for n in range(1, KEEP + 1))]
    assert sorted(os.listdir(tmp_path)) == sorted(p.name for p in kept)
    for p in kept:
        events = parsed(p)
        assert events[0]["source"] == "schema"
        assert p.stat().st_size <= 1_000_000
    newest, older = parsed(kept[0])[-1], parsed(kept[1])[-1]
    assert newest["data"]["seq"] == 89
    assert older["data"]["seq"] < parsed(kept[0])[1]["data"]["seq"]


def test_an_event_larger_than_the_limit_is_still_written(tmp_path: Path) -> None:
    log = FileLogger(tmp_path / "x", rotate=True, max_size_mb=1)
    log.write([SCHEMA, printed(1, "x" * 2_000_000), printed(2)])
    log.close()
    assert [e["source"] for e in parsed(tmp_path / "x.1")] == ["schema", "stdio"]
    assert [e["data"]["len"] for e in parsed(tmp_path / "x")[1:]] == [2]


def test_symbolic_links_and_odd_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("keep")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(AgentsightError, match="symbolic link"):
        FileLogger(tmp_path / "link")
    assert target.read_text() == "keep"
    with pytest.raises(AgentsightError, match="directory does not exist"):
        FileLogger(tmp_path / "no" / "x")
    with pytest.raises(AgentsightError, match="cannot write"):
        FileLogger(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(AgentsightError, match="fifo"):
        FileLogger(tmp_path / "fifo")


def test_a_full_disk_is_said_once_counted_and_left_without_torn_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "x", []
    log = FileLogger(path, say=said.append)
    log.write([SCHEMA])
    log.idle()
    real, room = os.write, 150

    def limited(fd: int, data: Any) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        n = real(fd, data[:room])
        room -= n
        return n

    monkeypatch.setattr(os, "write", limited)
    for i in range(10):
        log.write([printed(i)])
        log.flush_file()
    assert len(said) == 1
    assert "no space left" in said[0]
    assert log.lost_lines == 10
    room = 1 << 30
    log.write([printed(11)])
    log.close()
    assert [e["source"] for e in parsed(path)] == ["schema", "stdio"]
    assert "10 lines could not be written" in said[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="changes file ids, needs root")
def test_files_belong_to_the_invoking_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "12346")
    for part in (tmp_path, *tmp_path.parents):
        if part.owner() == "root" and str(part) not in ("/", "/tmp"):
            part.chmod(0o755)
    theirs, roots = tmp_path / "theirs", tmp_path / "roots"
    theirs.mkdir()
    roots.mkdir(mode=0o755)
    os.chown(theirs, 12345, 12346)
    FileLogger(theirs / "x").close()
    assert (os.stat(theirs / "x").st_uid, os.stat(theirs / "x").st_gid) == (12345, 12346)
    FileLogger(roots / "x").close()
    assert os.stat(roots / "x").st_uid == 12345
    (theirs / "way").symlink_to(roots)
    with pytest.raises(AgentsightError, match="cannot write"):
        FileLogger(theirs / "way" / "y")  # root's directory through the user's link
    assert files.invoking_ids() == (12345, 12346)


def test_a_slow_reader_blocks_then_loses_whole_events_which_are_counted() -> None:
    r, w = os.pipe()
    sink = Console(fd=w, patience=0.05, queue_bytes=100_000)
    batch = [printed(1, "x" * 1000)] * 10
    for _ in range(100):
        sink.write(batch)
    assert sink.dropped > 0
    assert sink.dropped % 10 == 0
    got = bytearray()

    def read() -> None:
        while part := os.read(r, 1 << 16):
            got.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    sink.close()
    os.close(w)
    reader.join()
    os.close(r)
    whole = [json.loads(line) for line in got.splitlines()]
    assert len(whole) + sink.dropped == 1000


def test_a_patient_console_loses_nothing() -> None:
    r, w = os.pipe()
    sink = Console(fd=w, patience=None, queue_bytes=10_000)
    count = 0

    def read() -> None:
        nonlocal count
        while part := os.read(r, 4096):
            count += part.count(b"\n")
            time.sleep(0.0002)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        sink.write([printed(1, "x" * 1000)] * 10)
    sink.close()
    os.close(w)
    reader.join()
    os.close(r)
    assert (count, sink.dropped) == (500, 0)


def test_a_gone_reader_closes_the_sink() -> None:
    r, w = os.pipe()
    sink = Console(fd=w)
    os.close(r)
    sink.write([printed(1)])
    deadline = time.monotonic() + 5
    while not sink.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sink.closed
    sink.write([printed(2)])
    sink.close()
    os.close(w)


def test_a_stopped_reader_does_not_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsight.sinks.console.CLOSE_SECONDS", 0.1)
    r, w = os.pipe()
    sink = Console(fd=w, patience=0.01)
    sink.write([printed(1, "x" * 1_000_000)])
    begun = time.monotonic()
    sink.close()
    assert time.monotonic() - begun < 3
    os.close(r)
    os.close(w)


def test_control_characters_do_not_reach_the_terminal() -> None:
    evil = "\x1b[31mred\x07\x9b2J\u202egnp.exe\r\n\x00"
    for line in (one_line(evil), text_line(printed(1, evil)), text_line(execed(1, full_command=evil, comm=evil))):
        assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c == "\u202e" for c in line)
    assert text([SCHEMA]) == b""
    assert text([printed(1)]).endswith(b"hi\n")
    assert len(one_line("x" * 1000)) == 160


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_234_567, 5e9)] == ["0 B", "999 B", "1.0 KB", "1.2 MB", "5.0 GB"]


def test_bytes_that_are_no_text_are_told_by_their_number() -> None:
    raw = SslEvent(
        **common(1), function="READ/RECV", len=3, data=None, truncated=False, latency_ms=None, is_handshake=False, tid=1, uid=0,
        conn="1", offset=0, data_base64="AAAA",
    )  # fmt: skip
    assert "<3 bytes, not text>" in text_line(raw)


def call(number: int = 1, **more: Any) -> LlmCall:
    fields: dict[str, Any] = {
        "provider": "anthropic", "api": "messages", "model": "claude-x", "response_model": "claude-x", "host": "localhost:1",
        "path": "/v1/m", "stream": True, "status_code": 200, "error": None,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "say hi"}]}],
        "parts": [], "tool_calls": [ToolCall("t1", "Bash", {"command": "ls"})], "stop_reason": "tool_use",
        "usage": Usage(input_tokens=12, output_tokens=34, cache_read_tokens=2), "ttfb_ms": 1.0, "ttft_ms": 20.0,
        "duration_ms": 1500.0, "complete": True, "conn": "1", "exchange_id": number, "start_ns": 0, "end_ns": 1,
        "text": "Hi\nthere",
    }  # fmt: skip
    return LlmCall(**common(50), **{**fields, **more})


def test_the_story_tells_tree_calls_answers_and_tokens() -> None:
    story = Story()
    story.write([execed(1, 10, full_command="python3 agent.py"), forked(2, 10, 11), execed(3, 11, full_command="sh -c ls")])
    story.write(
        [
            forked(4, 11, 12),
            exited(5, 12, after_ms=1),
            exited(6, 11, after_ms=3, code=2),
            call(),
            exited(9, 10, after_ms=8, signal=9),
        ]
    )
    told = "\n".join(story.text())
    assert "  10 python3 agent.py  [signal 9, 8 ms]" in told
    assert "  └─ 11 sh -c ls  [exit 2, 4 ms]" in told
    assert "     └─ 12 (prog)  [exit 0, 1 ms]" in told
    for part in (
        "anthropic claude-x",
        "200 streamed",
        "user: say hi",
        "answer:",
        "       there",
        "Bash",
        '{"command":"ls"}',
        "12 in (2 cached), 34 out",
    ):
        assert part in told


def test_the_story_shows_what_is_new_in_a_prompt() -> None:
    story = Story()
    old = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "reply"}]
    story.write([call(messages=[*old, {"role": "user", "content": "second"}])])
    told = "\n".join(story.text())
    assert "2 earlier messages" in told
    assert "user: second" in told
    assert "first" not in told.split("2 earlier")[1]


def test_the_story_is_bounded() -> None:
    story = Story()
    story.write([call(i) for i in range(SHOWN_CALLS + 5)])
    for i in range(3000):
        story.write([forked(i, i + 1, i + 2)])
    told = story.text()
    assert f"Model calls: {SHOWN_CALLS + 5}" in told
    assert any("5 more calls" in line for line in told)
    assert any("2940 more processes" in line for line in told)


def test_the_summary_names_what_stayed_dark() -> None:
    summary = SummaryEvent(
        **common(1), counts={"ssl": 2}, bytes={"seen": 3000, "connections": 1, "tls_opened": 1000, "tls_not_opened": 1500},
        dark=[{"pid": 4, "comm": "app", "bytes": 1500, "reason": "no-secret"}], drops={"data": 7}, complete=False,
    )  # fmt: skip
    told = "\n".join(summary_lines(summary))
    for part in ("1.0 KB of 2.5 KB", "1.5 KB NOT opened", "process 4 app: no-secret", "7 data"):
        assert part in told


def test_as_an_analyzer_a_log_lets_events_pass(tmp_path: Path) -> None:
    log = FileLogger(tmp_path / "x")
    event = printed(1)
    assert list(log.feed(event)) == [event]
    assert list(log.flush()) == []
    log.close()
    assert (tmp_path / "x").read_bytes() == bytes(lines([event]))

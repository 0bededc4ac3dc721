"""The memory searcher: who is searched when, what is told, and that nothing of a strange process ends it. The search is a double."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentsight.capture.memory import Budget, MemorySearcher
from agentsight.errors import CaptureError

RECORD = 184


class Records(bytearray):
    """As memscan.Secrets: so many records, closed behind its block."""

    def __init__(self, *secrets: int) -> None:
        super().__init__(b"".join(bytes(RECORD - 64) + bytes([s]) * 64 for s in secrets))
        self.count = len(secrets)
        self.closed = False

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True


class Result:
    def __init__(self, *secrets: int, end: str = "done") -> None:
        self.records = Records(*secrets)
        self.end = end
        self.stats = {"secrets": len(secrets), "keys": 0, "schedules": 1, "present": 5, "read": 9, "swapped": 0, "full": 0}
        self.stats |= {"cpu_seconds": [0.25, 0, 0, 0], "seconds": 0.5}


class Stream:
    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        self.given: list[bytes] = []

    def note(self, payload: bytes) -> None:
        self.notes.append(json.loads(payload))

    def insert_secrets(self, records: Any) -> int:
        assert not records.closed
        self.given.append(bytes(records))
        return int(records.count)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a socket."""
    code = "import socket,sys; s = socket.socket(); print(1, flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def settle(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run(searcher: MemorySearcher, pid: int, why: str) -> None:
    """One request, to its end."""
    searcher._one(pid, why)


def test_what_is_found_goes_into_the_stream(child: subprocess.Popen[bytes]) -> None:
    stream, calls = Stream(), []

    def search(pid: int, **bounds: Any) -> Result:
        calls.append((pid, bounds["max_seconds"]))
        return Result(1, 2)

    searcher = MemorySearcher(stream, Budget(max_seconds=3), search=search)
    searcher.attach([child.pid, child.pid, os.getpid()])
    searcher.start()
    settle(lambda: bool(stream.notes))
    searcher.stop()
    assert calls == [(child.pid, 3)]
    assert [len(given) for given in stream.given] == [2 * RECORD]
    (note,) = stream.notes
    assert (note["kind"], note["process"], note["why"], note["secrets"]) == ("memory", child.pid, "attach", 2)
    assert note["message"] == f"process {child.pid}: 2 TLS secrets found in 0 MB of memory, 0.25 s of CPU"
    assert "\\u0001" not in json.dumps(note)
    assert (searcher.searches, searcher.secrets, searcher.cpu_seconds) == (1, 2, 0.25)


def test_without_a_socket_nothing_is_searched_at_attach() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        stream = Stream()
        searcher = MemorySearcher(stream, search=lambda *a, **k: Result())
        run(searcher, process.pid, "attach")
        assert searcher.searches == 0 and not stream.notes
        run(searcher, process.pid, "dark")  # here somebody saw a connection
        assert searcher.searches == 1
    finally:
        process.kill()
        process.communicate()


def test_a_pause_between_searches_that_grows_while_nothing_is_found(child: subprocess.Popen[bytes]) -> None:
    stream = Stream()
    searcher = MemorySearcher(stream, Budget(pause=0.05, searches=3), search=lambda *a, **k: Result())
    run(searcher, child.pid, "dark")
    run(searcher, child.pid, "dark")
    assert searcher.searches == 1
    time.sleep(0.11)
    run(searcher, child.pid, "dark")
    time.sleep(0.11)
    run(searcher, child.pid, "dark")  # 0.2 s now
    assert searcher.searches == 2
    time.sleep(0.11)
    run(searcher, child.pid, "dark")
    time.sleep(0.5)
    run(searcher, child.pid, "dark")  # three in vain: no more
    assert searcher.searches == 3


def test_new_secrets_keep_it_going_the_same_ones_do_not(child: subprocess.Popen[bytes]) -> None:
    found = [Result(1, 2), Result(3), Result(1), Result(3, 2), Result(9)]
    searcher = MemorySearcher(Stream(), Budget(pause=0, searches=2), search=lambda *a, **k: found.pop(0))
    for _ in range(9):
        run(searcher, child.pid, "dark")
    assert len(found) == 1  # two new ones, then twice what was known


def test_what_cannot_be_read_is_told_once(child: subprocess.Popen[bytes]) -> None:
    stream = Stream()

    def search(pid: int, **bounds: Any) -> Result:
        raise PermissionError(1, "Operation not permitted")

    searcher = MemorySearcher(stream, Budget(pause=0), search=search)
    for _ in range(3):
        run(searcher, child.pid, "dark")
    assert [note["kind"] for note in stream.notes] == ["warning"]
    assert "Operation not permitted" in stream.notes[0]["message"]


def test_a_process_that_is_gone_is_passed_over() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    stream = Stream()
    searcher = MemorySearcher(stream, search=lambda *a, **k: Result(1))
    run(searcher, process.pid, "dark")
    assert not stream.notes and not searcher.searches


def test_trouble_with_one_does_not_end_it_the_end_of_the_capture_does(child: subprocess.Popen[bytes]) -> None:
    stream, troubles = Stream(), [ValueError("strange"), CaptureError("the capture has been stopped")]

    def search(pid: int, **bounds: Any) -> Result:
        raise troubles.pop(0)

    searcher = MemorySearcher(stream, Budget(pause=0), search=search)
    searcher.start()
    searcher.dark([child.pid])
    settle(lambda: bool(stream.notes))
    assert "strange" in stream.notes[0]["message"]
    searcher.dark([child.pid])
    settle(lambda: not troubles)
    thread = searcher._thread
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive()
    searcher.stop()
    searcher.stop()


def test_the_queue_is_bounded() -> None:
    searcher = MemorySearcher(Stream(), search=lambda *a, **k: Result())
    searcher.dark(range(1, 1001))
    assert searcher.overflow > 700

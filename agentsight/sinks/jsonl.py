"""Log files: one JSON object a line, written in whole lines, so that a log cut off by SIGKILL is valid to its last newline.

A full disk is said once and counted; what was half written is taken back, and writing goes on when there is room again.
With rotation a file that would grow over its size becomes ``NAME.1``, the older ones ``NAME.2`` to ``NAME.5``; each new file
begins with the schema line again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from agentsight.errors import AgentsightError
from agentsight.events import Event, SchemaEvent, append_json_line
from agentsight.sinks import files

KEEP = 5  # rotated files
FLUSH_BYTES = 1 << 18
FLUSH_SECONDS = 0.2


def lines(events: Iterable[Event]) -> bytearray:
    """Events as JSON lines."""
    text = bytearray()
    for event in events:
        append_json_line(event, text)
    return text


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


class FileLogger:
    """Writes events to a log file. Also an analyzer for runners: it lets every event pass (and gets them redacted)."""

    is_sink = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rotate: bool = False,
        max_size_mb: int = 10,
        say: Callable[[str], None] = _to_stderr,
    ) -> None:
        self.path = Path(path)
        self.closed = False
        self.lost_lines = 0  # not written: disk full
        self.lines = 0
        self._say = say
        self._max = max_size_mb * 1_000_000 if rotate else 0
        self._schema = bytearray()
        self._buffer = bytearray()
        self._last = time.monotonic()
        self._failing = False
        self._size = 0
        self._fd = files.create(self.path)

    def write(self, events: Sequence[Event]) -> None:
        """Add events; they are in the file after at most 0.2 s or 256 KiB."""
        if events and type(events[0]) is SchemaEvent:
            self._schema = lines(events[:1])
        buffer = self._buffer
        for event in events:
            begin = len(buffer)
            append_json_line(event, buffer)
            if self._max and self._size + len(buffer) > self._max and self._size + begin > len(self._schema):
                self._rotate_at(begin)
        self.lines += len(events)
        if len(buffer) >= FLUSH_BYTES or time.monotonic() - self._last >= FLUSH_SECONDS:
            self.flush_file()

    def _rotate_at(self, end: int) -> None:
        """Begin a new file with what stands in the buffer behind `end`."""
        newest = bytes(self._buffer[end:])
        del self._buffer[end:]
        self.flush_file()
        self._rotate()
        self._buffer += newest

    def idle(self) -> None:
        """Write what is buffered."""
        if self._buffer:
            self.flush_file()

    def flush_file(self) -> None:
        """Write what is buffered, in whole lines."""
        data, done = self._buffer, 0
        self._last = time.monotonic()
        try:
            while done < len(data):
                with memoryview(data) as view:
                    done += os.write(self._fd, view[done:])
            self._size += done
            self._failing = False
        except OSError as e:
            self._take_back(data, done, e)
        data.clear()

    def _take_back(self, data: bytearray, done: int, e: OSError) -> None:
        whole = data.rfind(b"\n", 0, done) + 1
        try:
            os.ftruncate(self._fd, self._size + whole)
            self._size += whole
        except OSError:
            whole = done  # cannot even be shortened: the torn line stays, and is no valid JSON
            self._size += done
        lost = data.count(b"\n", whole)
        self.lost_lines += lost
        self.lines -= lost
        if not self._failing:
            reason = (e.strerror or str(e)).lower()
            self._say(f"agentsight: cannot write {self.path}: {reason}; lines are lost until there is room")
        self._failing = True

    def _rotate(self) -> None:
        try:
            for n in range(KEEP - 1, 0, -1):
                old = self.path.with_name(f"{self.path.name}.{n}")
                if os.path.lexists(old):
                    files.rename(old, self.path.with_name(f"{self.path.name}.{n + 1}"))
            files.rename(self.path, self.path.with_name(f"{self.path.name}.1"))
            fd = files.create(self.path)
        except (OSError, AgentsightError) as e:  # the old file goes on being written: nothing is lost
            self._say(f"agentsight: cannot rotate {self.path}: {e}; writing on without rotation")
            self._max = 0
            return
        os.close(self._fd)
        self._fd = fd
        self._size = 0
        self._buffer += self._schema

    def close(self) -> None:
        """Write the rest and close the file."""
        if self._fd < 0:
            return
        self.idle()
        if self.lost_lines:
            self._say(f"agentsight: {self.lost_lines} lines could not be written to {self.path}")
        os.close(self._fd)
        self._fd = -1

    def feed(self, event: Event) -> Iterable[Event]:
        """As an analyzer: write, and let pass."""
        self.write((event,))
        return (event,)

    def flush(self) -> Iterable[Event]:
        """As an analyzer: the stream has ended."""
        self.idle()
        return ()

"""Events on stdout: JSON lines, or readable text on a terminal.

A thread writes, behind a queue with a bound in bytes. When the reader of stdout is slow the queue first blocks (a live capture
for a moment, a replay for as long as it takes), then drops whole events and counts them. When the reader goes away (``| head``)
the sink is closed and the run ends cleanly.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from agentsight.events import Event
from agentsight.sinks.jsonl import lines

QUEUE_BYTES = 16 << 20
BLOCK_SECONDS = 0.5  # how long a live capture waits for a slow reader
CLOSE_SECONDS = 5.0  # and at the end


class Console:
    """Writes events to a file descriptor. `render` makes bytes of events; `patience` in seconds, None for ever."""

    def __init__(
        self,
        *,
        fd: int = 1,
        render: Callable[[Sequence[Event]], bytes | bytearray] = lines,
        patience: float | None = BLOCK_SECONDS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self.closed = False
        self.dropped = 0  # events
        self._fd = fd
        # a pipe or terminal that poll calls writable takes PIPE_BUF bytes without blocking; a file takes anything
        self._chunk = 1 << 20 if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
        self._render = render
        self._patience = patience
        self._max = queue_bytes
        self._queue: deque[tuple[bytes | bytearray, int]] = deque()
        self._queued = 0
        self._ending = False
        self._give_up = False
        self._change = threading.Condition()
        self._dropping = False
        self._thread = threading.Thread(target=self._work, name="as-console", daemon=True)
        self._thread.start()

    def write(self, events: Sequence[Event]) -> None:
        """Queue events; see above for what happens when the queue is full."""
        if self.closed or not events:
            return
        data = self._render(events)
        if not data:
            return
        with self._change:
            if self._queued + len(data) > self._max and self._queued:
                # once dropping, every batch waits no more: decoding must not crawl behind a stopped reader
                if not self._dropping:
                    self._change.wait_for(lambda: self._fits(len(data)), self._patience)
                if not self._fits(len(data)):
                    self._dropping = True
                    self.dropped += len(events)
                    return
            self._dropping = False
            self._queue.append((data, len(events)))
            self._queued += len(data)
            self._change.notify_all()

    def _fits(self, n: int) -> bool:
        return self.closed or not self._queued or self._queued + n <= self._max

    def idle(self) -> None:
        """The thread writes as soon as it can: nothing to do."""

    def close(self) -> None:
        """Write what is queued, within the patience."""
        with self._change:
            self._ending = True
            self._change.notify_all()
        self._thread.join(None if self._patience is None else CLOSE_SECONDS)
        if self._thread.is_alive():
            self._give_up = True
            self._thread.join(1.0)
            with self._change:
                self.dropped += sum(n for _, n in self._queue)
        self.closed = True

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._ending)
                if not self._queue:
                    return
                parts, events = [], 0
                size = 0
                while self._queue and size < 1 << 20:
                    data, n = self._queue.popleft()
                    parts.append(data)
                    size += len(data)
                    events += n
            gone = not self._put(b"".join(parts))
            with self._change:
                self._queued -= size
                if gone:
                    self.closed = True
                    self._queue.clear()
                self._change.notify_all()
                if gone:
                    return

    def _put(self, data: bytes) -> bool:
        """Write it all; False when the reader is gone or the end has no more time."""
        view = memoryview(data)
        while view:
            try:
                # waiting in poll, not in write: a thread inside write(2) on a stopped terminal could not be given up
                if not _writable(self._fd, 0.2):
                    if self._give_up:
                        return False
                    continue
                view = view[os.write(self._fd, view[: self._chunk]) :]
            except BlockingIOError:
                time.sleep(0.01)
            except OSError as e:
                if e.errno == errno.EINTR:
                    continue
                return False
        return True


def _writable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    try:
        return bool(poll.poll(seconds * 1000))
    except OSError:
        return True

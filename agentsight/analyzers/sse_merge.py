"""SSE merge: every finished SSE response becomes one SseStream with its text, thinking and tool arguments put together.

It stands behind the HttpEvent of the response. Contents are known for the wire formats of agentsight.providers; of other
streams the event tells counts and times. A stream whose response never comes is given at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from agentsight.analyzers.base import Analyzer
from agentsight.analyzers.exchange import DecodedFrames, Key, decoded, times
from agentsight.events import Event, HttpEvent, SseFrames, SseStream


class SSEProcessor(Analyzer):
    """One SseStream per finished SSE response; every other event passes."""

    requires: ClassVar[frozenset[str]] = frozenset(("http", "frames"))
    MAX_HELD = 1024  # frames that wait for their response, which the decoder gives next

    def __init__(self) -> None:
        self._held: dict[Key, SseFrames] = {}

    def feed_many(self, events: list[Event]) -> list[Event]:
        """See Analyzer."""
        held = self._held
        if not held and not any(isinstance(e, SseFrames) for e in events):
            return events
        out: list[Event] = []
        for e in events:
            if type(e) is HttpEvent:
                frames = held.pop((e.conn, e.exchange_id), None) if held and e.message_type == "response" else None
                if frames is None:
                    out.append(e)
                else:
                    known = decoded(frames, e)
                    out += (known, e, _stream(known, e))
            elif isinstance(e, SseFrames):
                held[e.conn, e.exchange_id] = e
                if len(held) > self.MAX_HELD:
                    out += self._alone(next(iter(held)))
            else:
                out.append(e)
        return out

    def flush(self) -> Iterable[Event]:
        """See Analyzer."""
        return [e for key in list(self._held) for e in self._alone(key)]

    def _alone(self, key: Key) -> list[Event]:
        known = decoded(self._held.pop(key), None)
        return [known, _stream(known, None)]


def _stream(frames: DecodedFrames, response: HttpEvent | None) -> SseStream:
    at = times(frames)
    at_event: Event = response if response is not None else frames
    start = at[0] if at else frames.timestamp_ns
    end = at[-1] if at else frames.timestamp_ns
    answer = frames.answer
    whole = answer.finished if answer is not None else False
    return SseStream(
        seq=at_event.seq,
        timestamp=at_event.timestamp,
        timestamp_ns=at_event.timestamp_ns,
        pid=at_event.pid,
        comm=at_event.comm,
        conn=frames.conn,
        exchange_id=frames.exchange_id,
        message_id=answer.response_id if answer is not None else None,
        start_time=start,
        end_time=end,
        duration_ns=max(0, end - start),
        host=response.host if response is not None else None,
        method=response.method if response is not None else None,
        path=response.path if response is not None else None,
        status_code=response.status_code if response is not None else None,
        json_content=answer.tool_json if answer is not None else "",
        text_content=answer.text if answer is not None else "",
        total_size=_size(frames),
        event_count=frames.count,
        has_message_start=answer.started if answer is not None else False,
        complete=not frames.gaps and not frames.body_limited and (whole or (response is not None and response.complete)),
        tid=response.tid if response is not None else 0,
        thinking_content=answer.thinking if answer is not None else "",
    )


def _size(frames: SseFrames) -> int:
    """Bytes of the payloads: those in `frames` are one less by its brackets and commas."""
    n = frames.count - len(frames.others)
    return (max(0, len(frames.frames) - 1 - n) if n > 0 else 0) + sum(len(o.encode()) for o in frames.others)

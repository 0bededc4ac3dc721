"""A streamed answer decoded once for all analyzers that want it.

`decoded` reads SseFrames by its provider. The result is itself SseFrames, so that an analyzer may hand it on in place of what it
was given and the next one finds the work done.
"""

from __future__ import annotations

from agentsight.events import HttpEvent, SseFrames
from agentsight.providers import Answer, Provider, of_path, of_stream

Key = tuple[str, int]  # connection and exchange


class DecodedFrames(SseFrames, frozen=True, gc=True):
    """SseFrames with what its provider read; both None where no provider knows the stream."""

    provider: Provider | None = None
    answer: Answer | None = None


_FIELDS = SseFrames.__struct_fields__


def decoded(frames: SseFrames, response: HttpEvent | None) -> DecodedFrames:
    """Read a stream, unless that was done before."""
    if isinstance(frames, DecodedFrames):
        return frames
    path = response.path if response is not None else None
    provider = of_path(path) if path else of_stream(frames)
    answer = provider.stream(frames) if provider is not None else None
    return DecodedFrames(**{name: getattr(frames, name) for name in _FIELDS}, provider=provider, answer=answer)


def times(frames: SseFrames) -> memoryview:
    """Arrival of each payload, ns since boot."""
    whole = len(frames.times) // 8 * 8
    return memoryview(frames.times)[:whole].cast("Q")

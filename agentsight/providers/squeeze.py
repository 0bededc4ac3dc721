"""Neighbouring events of a stream that differ in one string alone, made into one event.

An answer comes as hundreds of events like
``{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}``.
JSON strings can be joined as they are written: what stands between two such texts, from the closing quote of the one to the
opening quote of the next, is the same bytes each time, and leaving it out joins the texts. One pass over bytes takes the
place of hundreds of decoded objects.

Joined are only events that begin and end with the very same bytes, so the provider sees the same content in the same order. The
text of the first and the index of the first event that has content stay what they were.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

FEW = 16  # events: below, there is nothing to win
_SHAPES = 8  # different events that are looked for per marker
_TRIES = 4
_inside = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)  # a string's content, up to its closing quote


def squeeze(frames: bytes, ends: bytes, markers: Sequence[bytes]) -> bytes:
    """`frames`, a JSON array, with such events joined.

    `ends`: see SseFrames. `markers`: what stands before the growing string, its opening quote included; it must be content that
    the provider joins with nothing between.
    """
    bounds = memoryview(ends[: len(ends) // 4 * 4]).cast("I")
    if len(bounds) < FEW:
        return frames
    whole, joints = frames, 0
    for marker in markers:
        if marker not in frames:  # what was joined already is short
            continue
        at = whole.find(marker)
        tries = 0
        while at >= 0 and joints < _SHAPES and tries < _TRIES:
            joint = _joint(whole, bounds, at, marker)
            pieces = frames.split(joint[0]) if joint is not None else []
            if joint is not None and len(pieces) > FEW // 2:
                frames = _join(pieces, *joint)
                joints += 1
                at = whole.find(marker, whole.rfind(joint[0]) + len(joint[0]))
            else:
                tries += 1
                at = whole.find(marker, at + len(marker))
    return frames


def _joint(frames: bytes, bounds: memoryview, at: int, marker: bytes) -> tuple[bytes, bytes] | None:
    """What stands between the string at `at` and the next event's, and how that event begins."""
    inside = _inside.match(frames, at + len(marker))
    if inside is None or inside.end() >= len(frames):
        return None
    close = inside.end()
    following = frames.find(marker, close)
    if following < 0:
        return None
    i = bisect_right(bounds, close)
    if i >= len(bounds) or bounds[i] > following or (i + 1 < len(bounds) and bounds[i + 1] <= following):
        return None  # they are not neighbours
    stop = following + len(marker)
    return frames[close:stop], frames[bounds[i] + 1 : stop]


def _join(pieces: list[bytes], between: bytes, head: bytes) -> bytes:
    """What was split at `between` put together again, without it wherever the event before it begins with `head` as well."""
    first = pieces[0]
    begin = first.rfind(head)
    text = first[begin + len(head) :]
    same = begin >= 0 and text != b"" and _whole(text)  # an empty text at the beginning is no content yet
    out = [first]
    for piece in pieces[1:]:
        if not same:
            out.append(between)
        out.append(piece)
        same = (same or piece != b"") and (b'"' not in piece or _whole(piece))
    return b"".join(out)


def _whole(piece: bytes) -> bool:
    """Whether this is the content of one string and nothing else."""
    return _inside.fullmatch(piece) is not None

"""The C core's event streams against a second implementation, written here from the WHATWG HTML standard, section 9.2.6."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import drive


def by_the_standard(stream: bytes) -> list[tuple[bytes, bytes, bytes, int]]:
    """Events as (type, data, last event id, retry that came since the last event or -1); all at once, on the whole stream."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines = re.split(rb"\r\n|\n|\r", stream)[:-1]  # what lies behind the last line end is no line
    out: list[tuple[bytes, bytes, bytes, int]] = []
    data, kind, last_id, retry = b"", b"", b"", -1
    for line in lines:
        if not line:
            if data:
                out.append((kind or b"message", data.removesuffix(b"\n"), last_id, retry))
                retry = -1
            data, kind = b"", b""
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            kind = value
        elif name == b"data":
            data += value + b"\n"
        elif name == b"id" and b"\0" not in value:
            last_id = value
        elif name == b"retry" and re.fullmatch(rb"[0-9]+", value):
            retry = int(value)
    return out


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive.Core(tmp_path_factory.mktemp("core"))


PIECES = st.sampled_from(
    [b"data", b"data: ", b"data:", b"event", b"event: ", b"id: ", b"id", b"retry: ", b": ", b":", b" ", b"x", b"{}", b"12", b"\0",
     b"\xef\xbb\xbf", b"\xef", b"\xff\xc3", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"message_stop", b"[DONE]"]
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(stream=st.lists(PIECES, max_size=40).map(b"".join), cut=st.sampled_from([1, 2, 3, 5, 17, drive.WHOLE]))
def test_as_the_standard(core: Any, stream: bytes, cut: int) -> None:
    got = [(e.event, e.data, e.id, e.retry) for e in core.sse(stream, cut) if not e.truncated]
    assert got == by_the_standard(stream)


@settings(max_examples=300, deadline=None)
@given(stream=st.binary(max_size=60), cut=st.sampled_from([1, 2, drive.WHOLE]))
def test_any_bytes(core: Any, stream: bytes, cut: int) -> None:
    got = [(e.event, e.data, e.id, e.retry) for e in core.sse(stream, cut) if not e.truncated]
    assert got == by_the_standard(stream)


TAILS = [(b'{"a":1}', True), (b"[1] ", True), (b'{"a":', False), (b"text", False), (b"{", False)]


@pytest.mark.parametrize(("tail", "kept"), TAILS)
def test_an_unfinished_event_is_kept_when_it_looks_whole(core: Any, tail: bytes, kept: bool) -> None:
    got = core.sse(b"data: 1\n\nevent: e\ndata: " + tail)
    assert [e.data for e in got] == ([b"1", tail] if kept else [b"1"])
    assert [e.truncated for e in got] == [False, True][: len(got)]

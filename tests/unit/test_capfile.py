"""Capture files from Python: written, read, torn, refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from agentsight._native.ringbuf import CaptureReader, CaptureWriter

from agentsight.errors import CaptureFileError

BATCHES = [b"x" * 24, b"y" * 4096, bytes(range(256)) * 1000]


def write(path: Path, **meta: object) -> Path:
    writer = CaptureWriter(path, meta)
    for batch in BATCHES:
        writer.write(batch)
    assert writer.bytes == sum(map(len, BATCHES))
    writer.close()
    writer.close()
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    reader = CaptureReader(write(tmp_path / "f", version="1", text="ä\udcff"))
    assert reader.meta == {"version": "1", "text": "ä\udcff"}
    batches = list(reader)
    assert [bytes(b) for b in batches] == BATCHES and [len(b) for b in batches] == [len(b) for b in BATCHES]
    assert reader.torn == 0 and list(reader) == []
    assert 0 < reader.boot_ns < reader.wall_ns


def test_a_batch_is_read_only_memory(tmp_path: Path) -> None:
    (first, *_) = CaptureReader(write(tmp_path / "f"))
    view = memoryview(first)
    del first
    assert view.readonly and bytes(view) == BATCHES[0]


def test_torn_end(tmp_path: Path) -> None:
    path = write(tmp_path / "f")
    os.truncate(path, path.stat().st_size - 7)
    reader = CaptureReader(path)
    assert [bytes(b) for b in reader] == BATCHES[:2]
    assert reader.torn == len(BATCHES[2]) + 16 - 7


def test_damage_ends_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f")
    data = bytearray(path.read_bytes())
    data[data.index(b"yyyy") + 100] ^= 1
    path.write_bytes(data)
    reader = CaptureReader(path)
    assert [bytes(b) for b in reader] == BATCHES[:1] and reader.torn


def test_mode_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old" * 100000)
    path.chmod(0o644)
    write(path)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert len(list(CaptureReader(path))) == 3


def test_links_are_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(CaptureFileError, match="link"):
        CaptureWriter(link, {})
    with pytest.raises(CaptureFileError, match="no regular file"):
        CaptureWriter("/dev/null", {})
    assert target.read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF" + bytes(100), b"ASCAP\r\n\x1a" + b"\xff" * 60])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(CaptureFileError, match=str(path)):
        CaptureReader(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CaptureReader(tmp_path / "none")


def test_full_disk() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(CaptureFileError):
        CaptureWriter("/dev/full", {})


def test_closed_writer(tmp_path: Path) -> None:
    writer = CaptureWriter(tmp_path / "f", {})
    writer.close()
    with pytest.raises(CaptureFileError, match="closed"):
        writer.write(b"x")

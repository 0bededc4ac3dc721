"""What was found in which binary, so that each is searched once: in memory, and on disk for root.

A file is known by device, inode, size and both times; the change time cannot be set by its owner, so a file that was altered and
dated back is another file. What comes from disk counts only if the build id is the same too. The file on disk is ours alone
(owner and mode are checked, links are not followed), written whole and renamed, bounded; one that is damaged, or was made for
another table of stacks, is put aside and written anew.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agentsight.tls import TlsStack

DEFAULT_DIR = Path("/var/cache/agentsight")
FILE_NAME = "elfscan.json"
MAX_ENTRIES = 4096
MAX_BYTES = 8 << 20
# of the search itself: a change of its rules makes old results void
SEARCH_VERSION = 2


class FileKey(msgspec.Struct, frozen=True, array_like=True):
    """Which file, and which state of it. Times in ns since the epoch."""

    dev: int
    ino: int
    size: int
    mtime: int
    ctime: int

    @staticmethod
    def of(st: os.stat_result) -> FileKey:
        """The key of a file that was looked at with stat."""
        return FileKey(st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A function that was found: its offset in the file, and the rung of the ladder that found it."""

    stack: str
    function: int  # index into the stack's functions
    offset: int
    how: str


class Miss(msgspec.Struct, frozen=True, array_like=True):
    """A stack that was not found. `likely`: it seems to be in the file."""

    stack: str
    reason: str
    likely: bool


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """All that a search of one file told. `status`: why it was not searched, empty if it was."""

    key: FileKey
    build_id: str
    status: str
    places: tuple[Place, ...]
    misses: tuple[Miss, ...]
    machine: str  # as in ScanResult


class _OnDisk(msgspec.Struct):
    version: str
    entries: list[Entry]


def table_version(stacks: Iterable[TlsStack]) -> str:
    """A name for what is searched for and how: equal for equal tables only."""
    return hashlib.sha256(repr((SEARCH_VERSION, tuple(stacks))).encode()).hexdigest()


class ScanCache:
    """Results by file. `directory` None: in memory only. Problems with the disk are told in `problems`, never raised."""

    def __init__(self, stacks: Iterable[TlsStack], directory: Path | None) -> None:
        self.problems: list[str] = []
        self._version = table_version(stacks)
        self._directory = directory
        self._entries: dict[FileKey, Entry] = {}
        self._unproven: set[FileKey] = set()  # came from disk, build id not compared yet
        self._dirty = False
        if directory is not None:
            self._load(directory / FILE_NAME)

    def get(self, key: FileKey) -> Entry | None:
        """What is known of a file."""
        return self._entries.get(key)

    def is_proven(self, key: FileKey) -> bool:
        """Whether its build id was compared, or it was searched by us."""
        return key not in self._unproven

    def prove(self, key: FileKey, build_id: str) -> bool:
        """Compare the build id of an entry from disk. False: it was another file's, and is forgotten."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        self._unproven.discard(key)
        if entry.build_id == build_id:
            return True
        del self._entries[key]
        return False

    def put(self, entry: Entry) -> None:
        """Keep a result; the oldest goes when there are too many."""
        self._unproven.discard(entry.key)
        self._entries.pop(entry.key, None)
        while len(self._entries) >= MAX_ENTRIES:
            oldest = next(iter(self._entries))
            del self._entries[oldest]
            self._unproven.discard(oldest)
        self._entries[entry.key] = entry
        self._dirty = True

    def save(self) -> None:
        """Write to disk what is new."""
        if self._directory is None or not self._dirty:
            return
        self._dirty = False
        data = msgspec.json.encode(_OnDisk(self._version, list(self._entries.values())))
        temporary = self._directory / f".{FILE_NAME}.{os.getpid()}"
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not _is_ours(self._directory.lstat(), stat.S_ISDIR):
                self._give_up(f"{self._directory} is not only ours to write")
                return
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as f:
                f.write(data)
            temporary.replace(self._directory / FILE_NAME)
        except OSError as e:
            self._give_up(f"{self._directory} cannot be written: {e.strerror}")

    def _give_up(self, problem: str) -> None:
        self.problems.append(problem)
        self._directory = None

    def _load(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as e:
            self.problems.append(f"{path} cannot be read: {e.strerror}")
            return
        with open(fd, "rb") as f:
            if not _is_ours(os.fstat(fd), stat.S_ISREG):
                self.problems.append(f"{path} is not only ours to write: not used")
                return
            data = f.read(MAX_BYTES + 1)
        try:
            disk = msgspec.json.decode(data, type=_OnDisk)
        except msgspec.MsgspecError as e:
            self.problems.append(f"{path} is damaged, made anew: {e}")
            return
        if disk.version != self._version or len(data) > MAX_BYTES:
            return
        for entry in disk.entries[:MAX_ENTRIES]:
            if all(0 <= place.offset < entry.key.size for place in entry.places):
                self._entries[entry.key] = entry
                self._unproven.add(entry.key)


def _is_ours(st: os.stat_result, is_type: object) -> bool:
    return callable(is_type) and is_type(st.st_mode) and st.st_uid == os.geteuid() and not st.st_mode & 0o022

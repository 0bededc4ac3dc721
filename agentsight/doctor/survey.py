"""Which TLS stacks are in which file, asked file by file and process by process.

Built on the capture's own discovery (same search, same cache), so what is told here is what a capture would do. A file is read
once. After `seconds` no further file is searched, and what was left out is told as such.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agentsight.capture import hostfile, procfs
from agentsight.capture.discovery import PROGRAM_MIN, Discovery, _File
from agentsight.capture.scancache import DEFAULT_DIR, Entry, FileKey, Miss
from agentsight.tls import STACKS

CONFIDENCE = {"dynsym": "certain", "symtab": "certain", "debug": "certain", "gopclntab": "certain", "xref": "high"}
NO_PROBE = "it is in this file and there is no probe for it: what goes through it will be counted as dark"
# name (of the stack that would have a probe), what it leaves in a program: the path of its sources in messages
FOREIGN = (("rustls", b"/rustls-"),)
WINDOW = 1 << 20
RODATA_MAX = 128 << 20
TIME_IS_UP = "not searched: the time for this was used up (run it again)"


@dataclass(frozen=True, slots=True)
class Place:
    """A stack with its probe: the rung of the ladder that found the function, and how sure that is."""

    stack: str
    how: str
    offset: int

    @property
    def confidence(self) -> str:
        """``certain``: a symbol names it; ``high``: the code that loads the key-log labels agrees. What opens proves it."""
        return CONFIDENCE.get(self.how, "high")


@dataclass(frozen=True, slots=True)
class Looked:
    """One file. `dark`: each stack without a probe, and why. `doubt`: only its name speaks for a stack."""

    path: str
    build_id: str = ""
    places: tuple[Place, ...] = ()
    dark: tuple[tuple[str, str], ...] = ()
    doubt: tuple[tuple[str, str], ...] = ()
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether there is anything about TLS to tell."""
        return bool(self.places or self.dark)


class Survey(Discovery):
    """Asks about files without telling each only once. Not for attaching."""

    def __init__(self, seconds: float = 5.0, cache_dir: Path | None = DEFAULT_DIR) -> None:
        super().__init__(STACKS, cache_dir)
        self.hidden = 0  # processes that we may not look at
        self.left_out = 0  # files not searched since time was up
        self._end = time.monotonic() + seconds
        self._known_files: dict[FileKey, Entry] = {}
        self._foreign: dict[FileKey, tuple[str, ...]] = {}

    def program(self, path: str) -> Looked:
        """What a program or library on disk holds."""
        return self._ask(self._library(path))

    def libraries(self) -> list[Looked]:
        """The linker's libraries that hold a stack, or should."""
        looked: dict[str, Looked] = {}
        for path in self._linker_libraries():
            real = os.path.realpath(path)
            if real not in looked:
                looked[real] = self._ask(self._library(path))
        return settle(looked.values())

    def library_paths(self) -> dict[str, str]:
        """The linker's libraries of the stacks: base name to path."""
        return {os.path.basename(path): path for path in reversed(self._linker_libraries())}

    def running(self, pid: int) -> list[Looked]:
        """The program and the libraries of a process that hold a stack."""
        try:
            os.readlink(f"/proc/{pid}/exe")
        except PermissionError:
            process = procfs.proc(pid)
            self.hidden += process is not None and not process.kernel
            return []
        except OSError:  # a kernel thread, or gone
            return []
        return settle(self._ask(file) for file in self._of_process(pid))

    def save(self) -> None:
        """Keep what was learnt for the next time (root only)."""
        self._cache.save()

    def _ask(self, file: _File) -> Looked:
        try:
            entry = self._entry(file)
        except (FileNotFoundError, ProcessLookupError):
            return Looked(file.display, error="is gone")
        except OSError as e:
            return Looked(file.display, error=(e.strerror or "cannot be read").lower())
        if entry is None:
            return Looked(file.display)
        if entry is _LATE:
            self.left_out += 1
            return Looked(file.display, error=TIME_IS_UP)
        places = tuple(Place(p.stack, p.how, p.offset) for p in entry.places)
        # as a capture tells it: labels alone do not tell stacks with equal labels apart
        likely = [m for m in entry.misses if m.likely and (m.stack in file.stacks or not file.stacks)]
        named = [] if places or likely else [m for m in entry.misses if m.stack in file.stacks]
        dark = _by_reason(likely) + tuple((name, NO_PROBE) for name in self._foreign.get(entry.key, ()))
        return Looked(file.display, entry.build_id, places, dark, _by_reason(named), entry.status)

    def _entry(self, file: _File) -> Entry | None:
        try:
            key = FileKey.of(os.stat(file.stat_path))
        except PermissionError:
            key = None
        if key is not None:
            if key.size < file.least:
                return None
            known = self._known_files.get(key)
            if known is not None:
                return known
        fd = file.open()
        try:
            key = FileKey.of(os.fstat(fd))
            entry = self._known(key, fd)
            if entry is None:
                if time.monotonic() > self._end:
                    return _LATE
                entry = self._search(key, fd)
            self._known_files[key] = entry
            if not file.stacks and not entry.status and time.monotonic() < self._end:
                self._foreign[key] = foreign(fd)
            return entry
        finally:
            os.close(fd)


_LATE = Entry(FileKey(0, 0, 0, 0, 0), "", TIME_IS_UP, (), (), "")


def foreign(fd: int) -> tuple[str, ...]:
    """Stacks in an ELF file that we know of but have no probe for, by what they leave in its read-only data.

    A hint, not a proof: a build that hides its source paths leaves nothing. Memory: one window of 1 MiB.
    """
    missing = [(name, mark) for name, mark in FOREIGN if not any(stack.name.startswith(name) for stack in STACKS)]
    if not missing:
        return ()
    offset, size = _read_only_data(fd)
    end = offset + min(size, RODATA_MAX)
    found: set[str] = set()
    longest = max(len(mark) for _, mark in missing)
    while offset < end and len(found) < len(missing):
        window = os.pread(fd, min(WINDOW + longest, end - offset), offset)
        if not window:
            break
        found.update(name for name, mark in missing if mark in window)
        offset += WINDOW
    return tuple(name for name, _ in missing if name in found)


def _read_only_data(fd: int) -> tuple[int, int]:
    """Offset and size of a file's .rodata; nothing where it has none or is damaged."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(fd, "rb", closefd=False) as f:
            section = ELFFile(f).get_section_by_name(".rodata")
            return (int(section["sh_offset"]), int(section["sh_size"])) if section is not None else (0, 0)
    except (OSError, ELFError, ValueError, TypeError, LookupError, struct.error):  # whatever a damaged file does to the reader
        return 0, 0


def _by_reason(misses: Iterable[Miss]) -> tuple[tuple[str, str], ...]:
    reasons: dict[str, list[str]] = {}
    for miss in misses:
        reasons.setdefault(miss.reason, []).append(miss.stack)
    return tuple((" or ".join(stacks), reason) for reason, stacks in reasons.items())


def settle(files: Iterable[Looked]) -> list[Looked]:
    """Of files that belong together, those with something to tell.

    A file that is dark by its name alone (``libgnutls-dane.so``) is none of them where the same stack was found beside it.
    """
    looked = list(files)
    found = {place.stack for file in looked for place in file.places}
    out = []
    for file in looked:
        doubt = tuple(d for d in file.doubt if d[0] not in found)
        if file.holds or doubt:
            out.append(Looked(file.path, file.build_id, file.places, file.dark + doubt, (), file.error))
    return out


def is_program(path: str) -> bool:
    """Whether it is an ELF file that is large enough to hold a TLS stack."""
    try:
        fd = hostfile.open_file(path)
    except OSError:
        return False
    try:
        return os.fstat(fd).st_size >= PROGRAM_MIN and os.pread(fd, 4, 0) == b"\x7fELF"
    finally:
        os.close(fd)

"""Which TLS stacks are in which file, asked file by file and process by process.

Built on the capture's own discovery (same search, same cache), so what is told here is what a capture would do. A file is read
once. After `seconds` no further file is searched, and what was left out is told as such.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agentsight.capture import hostfile, procfs
from agentsight.capture.discovery import PROGRAM_MIN, Discovery, _File
from agentsight.capture.scancache import DEFAULT_DIR, Entry, FileKey, Miss
from agentsight.tls import STACKS

CONFIDENCE = {"dynsym": "certain", "symtab": "certain", "debug": "certain", "gopclntab": "certain", "xref": "high"}
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
    """One file. `dark`: stack (empty: unknown) and why there is no probe. `doubt`: only its name speaks for a stack."""

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
        return Looked(file.display, entry.build_id, places, _by_reason(likely), _by_reason(named), entry.status)

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
            return entry
        finally:
            os.close(fd)


_LATE = Entry(FileKey(0, 0, 0, 0, 0), "", TIME_IS_UP, (), (), "")


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

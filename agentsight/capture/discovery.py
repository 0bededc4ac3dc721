"""Which binaries hold a TLS stack, and where in them a probe belongs.

Looked at: the libraries that the dynamic linker knows, those that running processes have mapped (through their own root
directory, replaced and deleted ones too), the programs of running processes, known commands on PATH, and files that are named.
Each file is searched once, whoever maps it, and searched again when it changes; each place is told once. What looks like a TLS
stack and gives no place is kept as `Dark`, so that a summary can name it.

Everything may vanish meanwhile: that is no error. Only a file that the caller named raises.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agentsight._native import elfscan
from agentsight.capture import hostfile, procfs
from agentsight.capture.scancache import DEFAULT_DIR, Entry, FileKey, Miss, Place, ScanCache
from agentsight.errors import TargetError
from agentsight.tls import KeylogFunction, TlsStack

MAPS_MAX = 16 << 20  # bytes of one /proc/PID/maps: 65,530 mappings of ordinary length
PROGRAM_MIN = 256 << 10  # a program with a TLS stack inside is larger
MAX_SEEN = 65536
MAX_OPEN = 256
MAX_DARK = 256
SAVE_EVERY = 5.0  # seconds
DEBUG_DIR = "/usr/lib/debug/.build-id"
LIBRARY_DIRS = ("/lib64", "/usr/lib64", "/usr/lib", "/usr/local/lib", "/usr/local/lib64", "/usr/lib/*-linux-*")


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A place for an entry probe. `path` opens the very file that was searched, as long as its Discovery is not closed."""

    path: str
    dev: int
    ino: int
    stack: str
    offset: int
    cookie: int
    how: str  # dynsym, symtab, debug, gopclntab, xref
    display_path: str  # as its user calls it


@dataclass(frozen=True, slots=True)
class Dark:
    """A file that seems to hold a stack whose secrets we cannot take. `stack`: several, ``a or b``, where it is unclear which.

    `used`: by a process asked for, or the file was named.
    """

    path: str
    stack: str
    reason: str
    used: bool = False


@dataclass(slots=True)
class Counters:
    """What was done, and what could not be."""

    searched: int = 0  # files read
    known: int = 0  # files that needed no reading
    vanished: int = 0  # processes or files that were gone when we came
    unreadable: int = 0
    maps_cut: int = 0  # processes with more mappings than are read
    closed: int = 0  # descriptors closed because there were too many
    dark_left_out: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    """A file that may be worth a look, not opened yet. `stacks`: those that its name speaks for."""

    stat_path: str
    display: str
    open: Callable[[], int]
    stacks: tuple[str, ...] = ()
    least: int = 0  # bytes


@dataclass
class Discovery:
    """Finds places for the probes of `stacks`. `cache_dir`: where root keeps results (None: nowhere). Thread-safe."""

    stacks: Iterable[TlsStack]
    cache_dir: Path | None = DEFAULT_DIR
    dark: list[Dark] = field(default_factory=list, init=False)
    problems: list[str] = field(default_factory=list, init=False)
    counters: Counters = field(default_factory=Counters, init=False)

    def __post_init__(self) -> None:
        self.stacks = tuple(self.stacks)
        self._lock = threading.RLock()
        self._wanted: list[tuple[TlsStack, int]] = []
        wanted = []
        for stack in self.stacks:
            for index, function in enumerate(stack.functions):
                self._wanted.append((stack, index))
                wanted.append(wanted_of(function))
        self._elf_wanted = wanted
        self._cache = ScanCache(self.stacks, self.cache_dir if os.geteuid() == 0 else None)
        self.problems = self._cache.problems
        self._mapped = _mapped_pattern(self.stacks)
        self._programs = any(stack.executables for stack in self.stacks)
        self._seen: dict[FileKey, list[tuple[str, str]]] = {}  # its dark stacks and why
        self._given: dict[tuple[int, int, int], None] = {}  # device, inode, offset
        self._open: dict[int, None] = {}  # descriptors behind the paths of targets
        self._saved = 0.0

    # ---- what is asked ----

    def host(self) -> list[ProbeTarget]:
        """Every place on this machine that is not told yet: linker's libraries, known commands, running processes."""
        if not self.stacks:
            return []
        files = [self._library(path) for path in self._linker_libraries()]
        for command in sorted({name for stack in self.stacks for name in stack.commands}):
            path = shutil.which(command)
            if path is not None:
                files.append(_plain_file(path))
        found = self._look(files)
        for pid in procfs.pids():
            found += self._look(self._of_process(pid))
        with self._lock:
            self._cache.save()
        return found

    def process(self, pid: int) -> list[ProbeTarget]:
        """Places in the program and the mapped libraries of a process that are not told yet; empty for one that is gone."""
        found = self._look(self._of_process(pid), used=True) if self.stacks else []
        if found and time.monotonic() - self._saved > SAVE_EVERY:
            with self._lock:
                self._cache.save()
                self._saved = time.monotonic()
        return found

    def file(self, path: str | os.PathLike[str]) -> list[ProbeTarget]:
        """Places in one file that are not told yet. TargetError where it cannot be opened."""
        name = os.fspath(path)
        try:
            os.close(hostfile.open_file(name))
        except OSError as e:
            raise TargetError(f"{name} cannot be opened: {e.strerror}") from None
        return self._look([_plain_file(name)], used=True)

    def close(self) -> None:
        """Save what was learnt and close the files behind the targets: to be called when probes are attached for good."""
        with self._lock:
            self._cache.save()
            for fd in self._open:
                os.close(fd)
            self._open.clear()

    # ---- where files come from ----

    def _library(self, path: str) -> _File:
        name = os.path.basename(path)
        stacks = tuple(stack.name for stack in self.stacks if stack.is_library(name))
        return _File(path, path, lambda: hostfile.open_file(path), stacks)

    def _linker_libraries(self) -> list[str]:
        """Paths of the stacks' libraries in the dynamic linker's cache; without ldconfig, in the usual directories."""
        tool = shutil.which("ldconfig", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
        paths: list[str] = []
        try:
            if tool is None:
                raise FileNotFoundError(2, "not installed")
            done = subprocess.run([tool, "-p"], capture_output=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
            paths = re.findall(r"=> (/\S.*)$", os.fsdecode(done.stdout), re.MULTILINE)
        except (OSError, subprocess.SubprocessError) as e:
            self.problems.append(f"ldconfig -p failed, looked into the usual directories instead: {e}")
            for pattern in LIBRARY_DIRS:
                for directory in sorted(Path("/").glob(pattern[1:])):
                    paths += [str(path) for path in directory.glob("lib*.so*")]
        return [path for path in paths if any(stack.is_library(os.path.basename(path)) for stack in self.stacks)]

    def _of_process(self, pid: int) -> Iterator[_File]:
        if self._programs:
            exe = f"/proc/{pid}/exe"
            name = procfs.link(exe).removesuffix(" (deleted)")
            if not name:  # a kernel thread, a zombie, or gone
                return
            yield _File(exe, name, lambda: hostfile.open_file(exe), least=PROGRAM_MIN)
        maps = procfs.read(f"/proc/{pid}/maps", MAPS_MAX)
        if len(maps) >= MAPS_MAX:
            self.counters.maps_cut += 1
        looked_at: set[bytes] = set()
        for match in self._mapped.finditer(maps):
            line = maps[maps.rfind(b"\n", 0, match.start()) + 1 : match.end() - 1]
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[4] not in looked_at:
                looked_at.add(fields[4])
                yield self._mapped_file(pid, fields[0], int(fields[4]), fields[5])

    def _mapped_file(self, pid: int, extent: bytes, ino: int, path: bytes) -> _File:
        """A file by one of its mappings: through map_files, which is the very file, or by its path inside the process's root."""
        begin, end = (int(x, 16) for x in extent.split(b"-"))
        direct = f"/proc/{pid}/map_files/{begin:x}-{end:x}"
        path = path.removesuffix(b" (deleted)").replace(b"\\012", b"\n")

        def open_it() -> int:
            try:
                return hostfile.open_file(direct)
            except PermissionError:  # needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN (Linux 5.9)
                fd = hostfile.open_in_root(pid, path)
            if os.fstat(fd).st_ino != ino:
                os.close(fd)
                raise FileNotFoundError(2, "was replaced on disk while it is in use")
            return fd

        display = os.fsdecode(path)
        name = os.path.basename(display)
        stacks = tuple(stack.name for stack in self.stacks if stack.is_library(name))
        return _File(direct, display, open_it, stacks)

    # ---- looking ----

    def _look(self, files: Iterable[_File], used: bool = False) -> list[ProbeTarget]:
        found: list[ProbeTarget] = []
        for file in files:
            with self._lock:
                try:
                    found += self._look_at(file, used)
                except (FileNotFoundError, ProcessLookupError):
                    self.counters.vanished += 1
                except OSError as e:
                    self.counters.unreadable += 1
                    for stack in file.stacks:
                        self._tell_dark(Dark(file.display, stack, e.strerror or "cannot be read", used))
        return found

    def _look_at(self, file: _File, used: bool) -> list[ProbeTarget]:
        try:
            key = FileKey.of(os.stat(file.stat_path))
        except PermissionError:  # map_files without the right to it
            key = None
        if key is not None:
            if key.size < file.least or self._is_seen(file, key, used):
                return []
            entry = self._cache.get(key)
            if entry is not None and not entry.places:
                self._done(file, entry, used)
                return []
        fd = file.open()
        keep = False
        try:
            key = FileKey.of(os.fstat(fd))
            if self._is_seen(file, key, used):
                return []
            entry = self._known(key, fd) or self._search(key, fd)
            self._done(file, entry, used)
            targets = self._targets(entry, fd, file.display)
            keep = bool(targets)
            return targets
        finally:
            if keep:
                self._keep(fd)
            else:
                os.close(fd)

    def _known(self, key: FileKey, fd: int) -> Entry | None:
        entry = self._cache.get(key)
        if entry is not None and not self._cache.is_proven(key) and not self._cache.prove(key, elfscan.build_id(fd)):
            return None
        if entry is not None:
            self.counters.known += 1
        return entry

    def _search(self, key: FileKey, fd: int) -> Entry:
        self.counters.searched += 1
        result = elfscan.scan(fd, self._elf_wanted)
        if any(found.likely for found in result.found):
            result = _scan_with_debug_file(fd, result, self._elf_wanted)
        places: list[Place] = []
        misses: dict[str, Miss] = {}
        for (stack, index), found in zip(self._wanted, result.found, strict=bool(result.found)):
            if found.how:
                places.append(Place(stack.name, index, found.offset, found.how))
                continue
            if found.likely or stack.name not in misses:
                misses[stack.name] = Miss(stack.name, found.reason, found.likely)
        for place in places:
            misses.pop(place.stack, None)
        entry = Entry(key, result.build_id, result.status, tuple(places), tuple(misses.values()), result.machine)
        if FileKey.of(os.fstat(fd)) == key:  # not changed while we read
            self._cache.put(entry)
        return entry

    def _is_seen(self, file: _File, key: FileKey, used: bool) -> bool:
        """Whether a file was looked at before. What is dark in it is told again when it turns out to be used."""
        dark = self._seen.get(key)
        for stack, reason in dark or ():
            self._tell_dark(Dark(file.display, stack, reason, used))
        return dark is not None

    def _done(self, file: _File, entry: Entry, used: bool) -> None:
        while len(self._seen) >= MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        dark = [(stack, entry.status) for stack in file.stacks if entry.status]
        # a library's name promises a stack, unless another is in it; labels alone do not tell stacks with equal labels apart
        named = [miss for miss in entry.misses if miss.stack in file.stacks and (miss.likely or not entry.places)]
        reasons: dict[str, list[str]] = {}
        for miss in named or [miss for miss in entry.misses if miss.likely]:
            reasons.setdefault(miss.reason, []).append(miss.stack)
        dark += [(" or ".join(stacks), reason) for reason, stacks in reasons.items()]
        self._seen[entry.key] = dark
        self._is_seen(file, entry.key, used)

    def _tell_dark(self, dark: Dark) -> None:
        if dark in self.dark:
            return
        if len(self.dark) < MAX_DARK:
            self.dark.append(dark)
        else:
            self.counters.dark_left_out += 1

    def _targets(self, entry: Entry, fd: int, display: str) -> list[ProbeTarget]:
        stacks = {stack.name: stack for stack in self.stacks}
        targets = []
        for place in entry.places:
            stack = stacks.get(place.stack)
            where = (entry.key.dev, entry.key.ino, place.offset)
            if stack is None or place.function >= len(stack.functions) or where in self._given:
                continue
            while len(self._given) >= MAX_SEEN:
                del self._given[next(iter(self._given))]
            self._given[where] = None
            cookie = stack.cookie(stack.functions[place.function], entry.machine)
            targets.append(ProbeTarget(f"/proc/self/fd/{fd}", *where[:2], stack.name, place.offset, cookie, place.how, display))
        return targets

    def _keep(self, fd: int) -> None:
        while len(self._open) >= MAX_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            os.close(oldest)
            self.counters.closed += 1
        self._open[fd] = None


def wanted_of(function: KeylogFunction) -> elfscan.Wanted:
    """A key-log function as the search takes it."""
    return elfscan.Wanted(
        function.symbols,
        function.labels,
        function.anchors,
        function.arguments.label.x86,
        require=function.require,
        never=function.never,
        go=function.go,
        file=function.source_file,
        error=function.error,
    )


def _scan_with_debug_file(fd: int, result: elfscan.ScanResult, wanted: list[elfscan.Wanted]) -> elfscan.ScanResult:
    """The search once more with the symbols that the distribution keeps apart, where they are installed."""
    if len(result.build_id) < 4:
        return result
    try:
        debug = hostfile.open_file(f"{DEBUG_DIR}/{result.build_id[:2]}/{result.build_id[2:]}.debug")
    except OSError:  # not installed: the usual case
        return result
    try:
        return elfscan.scan(fd, wanted, debug=debug)
    finally:
        os.close(debug)


def _plain_file(path: str) -> _File:
    return _File(path, path, lambda: hostfile.open_file(path))


def _mapped_pattern(stacks: Iterable[TlsStack]) -> re.Pattern[bytes]:
    """Matches the end of each line of /proc/PID/maps whose file may be a library of a stack."""
    names = []
    for stack in stacks:
        for library in stack.libraries:
            parts = (b"[^/\n]*" if c == "*" else b"[^/\n]" if c == "?" else re.escape(os.fsencode(c)) for c in library)
            names.append(b"".join(parts))
    # no library at all: a pattern that matches nothing
    return re.compile(rb"/(?:" + b"|".join(names) + rb")(?: \(deleted\))?\n" if names else rb"(?!)")

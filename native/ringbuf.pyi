"""The kernel side: loads and attaches the BPF programs, drains their records; writes and reads capture files.

The C behind it is native/core/loader.c, drain.c and capfile.c; the records are those of bpf/agentsight.h.
"""

from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any, Literal, TypedDict, final

from typing_extensions import Buffer

class DropCount(TypedDict):
    records: int
    bytes: int

class Counters(TypedDict, total=False):
    """`drops`: what the kernel refused, by kind (data, stdio, secret, process, connection, arena). `kernel`: its statistics
    (hits, copied_bytes, peeks, not_tcp, faults, compat, mirrored_calls, no_call, races, no_state, stdio_calls). `io_hook`:
    "sock" or "sys_exit". The rest is the reading thread's; bytes throughout."""

    drops: dict[str, DropCount]
    kernel: dict[str, int]
    io_hook: str
    records: int
    bytes: int
    batches: int
    ring_bytes: int
    ring_peak: int
    arena_used: int
    arena_peak: int
    arena_full: int
    priority_raised: bool

@final
class Batch(Buffer):
    """A block of whole records, read-only; its memory goes back when the last reference (and view) is gone."""

    records: int
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Capture:
    """Programs and maps in the kernel, and the thread that reads their ring.

    The constructor loads (about 0.3 s), `start` attaches and begins to read, `stop` takes everything out of the kernel again.
    Our own process is excluded. All methods but the constructor may be called from any thread. CaptureError, one line, where
    the kernel refuses.

    obj: the BPF object. want_io: TCP sockets and secrets; want_stdio; want_process: fork, exec and exit. track_all: every
    process but the excluded ones, with these AS_T_* flags (True: all of them); 0: those given by `add_target` and `add_name`,
    kept up to date by fork, exec and exit. uid and cgroup (v2 id, cgroup_level its depth below the root) narrow either way.
    mirror: loopback bytes are copied once, at their sender, where both ends are targets. io_hook: "sock" needs the tracepoints
    of kernel 6.3. stdio_max: bytes copied per call. ring_bytes: a power of two. arena_bytes: bound of all unreleased batches.
    stdio_exclude: (st_dev, st_ino) as os.stat gives them. single_probes: no uprobe_multi links. log_level: 1 shows libbpf's
    warnings and notes, 2 everything.
    """

    def __init__(
        self,
        *,
        obj: bytes,
        want_io: bool = True,
        want_stdio: bool = False,
        want_process: bool = True,
        track_all: bool | int = False,
        mirror: bool = True,
        io_hook: Literal["auto", "sock", "sys_exit"] | str = "auto",
        stdio_all_fds: bool = False,
        stdio_max: int = 8192,
        uid: int | None = None,
        cgroup: int | None = None,
        cgroup_level: int = 0,
        ring_bytes: int = 16 << 20,
        arena_bytes: int = 256 << 20,
        exclude_tgids: Iterable[int] = (),
        stdio_exclude: Iterable[tuple[int, int]] = (),
        single_probes: bool = False,
        log_level: int = 0,
    ) -> None: ...
    def add_target(self, tgid: int, flags: int, root: int = 0) -> None:
        """Track a process with these AS_T_* flags. root: tgid of the tree's root (0: itself)."""

    def remove_target(self, tgid: int) -> None:
        """Track it no longer; harmless where it is gone."""

    def add_name(self, name: str, flags: int) -> None:
        """Track every program that is started from now on and answers to this name: basename of the file, of argv[0], or of
        the script. Cut to 63 bytes."""

    def exclude(self, tgid: int) -> None:
        """Never track this process by `track_all` or by a name."""

    def exclude_stdio(self, dev: int, ino: int) -> None:
        """Do not copy what crosses this pipe, terminal or file (as os.stat names it)."""

    def skip_channel(self, cookie: int) -> None:
        """Count the bytes of this socket, copy them no longer."""

    def resume_channel(self, cookie: int) -> None:
        """Copy them again; a hole record tells what was skipped."""

    def attach_secret(self, path: str, offsets: Iterable[tuple[int, int]]) -> int:
        """Probes at (file offset, cookie) pairs of one file, in one multi link where the kernel has it. A handle."""

    def detach(self, handle: int) -> None:
        """Take those probes away."""

    def note(self, payload: bytes) -> None:
        """Put an AS_K_NOTE with this JSON into the stream."""

    def insert_secrets(self, records: Buffer) -> int:
        """Put finished AS_K_SECRET records (memscan.Secrets) into the stream; how many. ValueError where it is anything else."""

    def snapshot_process(
        self,
        tgid: int,
        *,
        ppid: int,
        uid: int,
        gid: int,
        start_ns: int,
        comm: str,
        exe: str,
        cwd: str,
        args: bytes,
        ns_pid: int = 0,
        cgroup: int = 0,
        netns: int = 0,
    ) -> None:
        """Put an AS_K_EXEC marked AS_F_SNAPSHOT into the stream. args: the block of /proc/PID/cmdline."""

    def start(self, priority: bool = True) -> None:
        """Attach, and read from now on. priority: the thread may raise its own when more than an eighth of the ring waits."""

    def read(self, timeout: float = 0.0) -> Batch | None:
        """The next batch, waiting up to `timeout` seconds without the GIL. None: nothing came, or (see `closed`) the end."""

    @property
    def closed(self) -> bool:
        """Stopped, and every batch has been read."""

    @property
    def io_hook(self) -> str:
        """The way that is used: "sock" or "sys_exit"."""

    @property
    def targets_fd(self) -> int:
        """Descriptor of the map of tracked processes (tgid to struct as_target), for the exec gate; it is closed by `stop`."""

    def write_to(self, writer: CaptureWriter, timeout: float = 0.1) -> list[int]:
        """For `timeout` seconds write batches as they come into a capture file, all in C without the GIL.

        The tgids of the processes that became another program meanwhile, so that their libraries can be looked at."""

    def stop(self) -> None:
        """Detach everything, take what the ring still holds into batches, end the stream. Harmless twice."""

    def counters(self) -> Counters:
        """See Counters; also after `stop`."""

@final
class CaptureWriter:
    """Writes a capture file: mode 0600, never through a symbolic link; an existing regular file is emptied.

    meta: what the capture says of itself, kept as JSON. CaptureFileError, one line, when it cannot be written."""

    bytes: int
    def __init__(
        self,
        path: str | PathLike[str],
        meta: dict[str, Any],
        *,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None: ...
    def write(self, batch: Buffer) -> None:
        """Append one batch, with its checksum."""

    def close(self) -> None:
        """Harmless twice."""

@final
class CaptureReader:
    """Iterates over the batches of a capture file, each checked against its checksum.

    A torn end (a batch that is cut off or does not match) ends the iteration; `torn` then tells how many bytes it left out.
    OSError where the file cannot be opened; CaptureFileError where it is none of ours."""

    meta: dict[str, Any]
    def __init__(self, path: str | PathLike[str]) -> None: ...
    @property
    def torn(self) -> int: ...
    @property
    def wall_ns(self) -> int:
        """Wall time of the file's making."""

    @property
    def boot_ns(self) -> int:
        """The same moment in the records' time."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...

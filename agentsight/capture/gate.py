"""The exec gate: a tracked process waits inside execve until its binary, where it is a new one, has been looked at.

fanotify (``FAN_OPEN_EXEC_PERM``) does the holding, in a small process of its own (native/gate): no signal is sent to what is
watched, and when that process or this one ends, stops or stays silent, everybody runs on. Here is the side that answers: it
chooses what is marked, and calls `on_exec` with each file that the gate has not seen before.

Marked are the local file systems of this mount namespace (and of the tracked processes' own), also those mounted later. Left
out are network file systems and FUSE: the kernel refuses an exec there whose file root may not read. Not reached either:
programs that live only in memory (memfd).
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from agentsight.capture import procfs
from agentsight.errors import CaptureError

DEADLINE = 2.0  # seconds that a process waits at most for one file
START_SECONDS = 5.0
NICE = -10
LOOK_MS, STILL_LOOKS = 400, 4  # how often we look whether the gate moves, and when it is taken for dead
MAX_PROBLEMS = 16
MOUNTINFO_MAX = 4 << 20

# native/gate/execgate.h
_MESSAGE = struct.Struct("=IIIi")  # kind, id, pid, error
_READY, _MARK, _MARKED, _ASK, _DONE, _QUIT = range(1, 7)
_SHARED = (
    "beats", "end", "gate_pid", "watchdog_pid", "locked", "events", "others", "scripts", "asked", "joined", "answered", "late",
    "busy", "paused", "known", "held_ns", "held_max_ns",
)
_ENDS = {
    0: "it was killed",
    1: "",
    2: "",
    3: "the search in new programs took too long",
    4: "it was stopped by a signal",
    5: "it hung",
    6: "it was killed",
    7: "its events could not be read",
}

# linux/fanotify.h
_FAN_CLASS_CONTENT, _FAN_CLOEXEC, _FAN_NONBLOCK = 4, 1, 2
_FAN_MARK_ADD, _FAN_OPEN_EXEC_PERM, _AT_FDCWD = 1, 0x40000, -100
# linux/capability.h: to watch; to open what its users may only execute (else the kernel refuses them the exec)
_CAP_SYS_ADMIN, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 21, 1, 2

LOCAL = frozenset((
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "jfs", "reiserfs", "overlay", "aufs", "tmpfs", "ramfs",
    "erofs", "squashfs", "iso9660", "udf", "vfat", "exfat", "ntfs3", "hfsplus",
))


def available() -> str | None:
    """Why there can be no gate here, in one line; None where there can be one. Nothing is left behind."""
    status = dict(line.partition(b":")[::2] for line in procfs.read("/proc/self/status", 8192).splitlines())
    mask = int(status.get(b"CapEff", b"0"), 16)
    if not mask >> _CAP_SYS_ADMIN & 1:
        return "it needs CAP_SYS_ADMIN"
    if not (mask >> _CAP_DAC_OVERRIDE | mask >> _CAP_DAC_READ_SEARCH) & 1:
        return "it needs CAP_DAC_READ_SEARCH"
    if not os.access(helper(), os.X_OK):
        return f"{helper()} cannot be executed: install the package again"
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.fanotify_init(_FAN_CLASS_CONTENT | _FAN_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        return f"the kernel refuses fanotify ({os.strerror(ctypes.get_errno()).lower()})"
    try:  # a mark on a file that nobody executes now; it is gone with the descriptor
        path = ctypes.c_char_p(os.fsencode(helper()))
        if libc.fanotify_mark(fd, _FAN_MARK_ADD, ctypes.c_uint64(_FAN_OPEN_EXEC_PERM), _AT_FDCWD, path) < 0:
            return f"the kernel has no FAN_OPEN_EXEC_PERM ({os.strerror(ctypes.get_errno()).lower()})"
    finally:
        os.close(fd)
    return None


def helper() -> str:
    """Path of the gate's program, which the package carries."""
    from agentsight import _native

    return str(Path(_native.__file__).with_name("execgate"))


def name_of(fd: int) -> str:
    """A path that leads to the open file: its name where that is still true (and in our mount namespace), else through the fd."""
    direct = f"/proc/self/fd/{fd}"
    name = procfs.link(direct)
    try:
        return name if os.path.samestat(os.stat(name), os.fstat(fd)) else direct
    except OSError:
        return direct


class Gate:
    """Calls `on_exec(fd, pid)` in a thread of its own, while `pid` waits in execve of the file behind `fd`.

    `on_exec` runs for each ELF file that is new to the gate or has changed; the fd is closed after it. What it raises is kept in
    `problems`: the process runs on all the same, as it does after `deadline` seconds. `targets`: descriptor of the kernel's
    map of tracked processes (those with AS_T_IO are held); None: everybody is held but what we start ourselves. `on_end` is
    called, in that thread too, when the gate ended and nobody had asked it to, with the reason.
    """

    def __init__(
        self,
        on_exec: Callable[[int, int], object],
        *,
        targets: int | None = None,
        deadline: float = DEADLINE,
        on_end: Callable[[str], object] | None = None,
    ) -> None:
        self.problems: list[str] = []
        self.marked: dict[int, str] = {}  # device to mount point
        self._on_exec = on_exec
        self._on_end = on_end
        self._targets = -1 if targets is None else targets
        self._deadline = deadline
        self._asked_marks: dict[int, tuple[int, str]] = {}  # message id to device and mount point
        self._next = 0
        self._namespaces: set[str] = set()
        self._lock = threading.Lock()  # of the shared page
        self._ending = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._shared: mmap.mmap | None = None
        self._last: tuple[int, ...] = ()
        self._ready = False
        self._stopping = False

    def start(self, pids: Iterable[int] = ()) -> None:
        """Mark, and hold from now on; also what the mount namespaces of `pids` show. CaptureError, one line, where it fails."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("agentsight-gate", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, mmap.PAGESIZE)
            self._shared = mmap.mmap(memory, mmap.PAGESIZE)
            numbers = (theirs.fileno(), memory, self._targets, round(self._deadline * 1000), os.getpid())
            self._process = subprocess.Popen(
                [helper(), *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[fd for fd in numbers[:3] if fd >= 0],
                env={},
            )
        except OSError as e:
            ours.close()
            raise CaptureError(f"the exec gate cannot be started: {e}") from None
        finally:
            theirs.close()
            os.close(memory)
        self._socket = ours
        try:
            ours.settimeout(START_SECONDS)
            while not self._ready:
                self._receive(ours)
            self._cover("self")
            for pid in pids:
                self.cover(pid)
            while self._asked_marks:
                self._receive(ours)
            if not self.marked:
                raise CaptureError("the exec gate found no file system to watch" + "".join(f"; {p}" for p in self.problems))
        except (OSError, EOFError) as e:
            self.stop()
            raise CaptureError(f"the exec gate did not start: {e}") from None
        except CaptureError:
            self.stop()
            raise
        ours.settimeout(None)
        self._thread = threading.Thread(target=self._work, name="as-gate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the marks away; whoever waits runs. Harmless twice, and when the gate has ended by itself."""
        self._stopping = True
        if self._socket is not None:
            try:
                self._socket.send(_MESSAGE.pack(_QUIT, 0, 0, 0))
            except OSError:
                pass  # it has ended
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(START_SECONDS)
            self._thread = None
        self._reap()
        if self._socket is not None and self._thread is None:
            self._socket.close()
            self._socket = None

    @property
    def running(self) -> bool:
        """Whether execs are held now."""
        return self._process is not None and self._process.returncode is None

    @property
    def pids(self) -> list[int]:
        """The gate's own two processes."""
        counters = self.counters()
        return [pid for pid in (counters.get("gate_pid", 0), counters.get("watchdog_pid", 0)) if pid]

    def counters(self) -> dict[str, int]:
        """What the gate did, by the names of native/gate/execgate.h; empty before the start."""
        with self._lock:
            if self._shared is not None:
                self._last = struct.unpack_from(f"={len(_SHARED)}Q", self._shared)
        return dict(zip(_SHARED, self._last, strict=True)) if self._last else {}

    def cover(self, pid: int) -> None:
        """Mark also what the mount namespace of a process shows, where that is another one."""
        namespace = procfs.link(f"/proc/{pid}/ns/mnt")
        if namespace and namespace not in self._namespaces:
            self._cover(str(pid))

    def _cover(self, who: str) -> None:
        namespace = procfs.link(f"/proc/{who}/ns/mnt")
        for device, path in mounts(procfs.read(f"/proc/{who}/mountinfo", MOUNTINFO_MAX)):
            if device in self.marked or any(device == d for d, _ in self._asked_marks.values()):
                continue
            try:
                fd = os.open(f"/proc/{who}/root" + path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue  # hidden below another mount, or a file
            try:
                if os.fstat(fd).st_dev == device:
                    self._next += 1
                    self._asked_marks[self._next] = (device, path)
                    self._send(_MESSAGE.pack(_MARK, self._next, 0, 0), fd)
            finally:
                os.close(fd)
        self._namespaces.add(namespace)

    def _send(self, message: bytes, fd: int) -> None:
        assert self._socket is not None
        self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])

    def _receive(self, sock: socket.socket) -> None:
        """One message of the gate. EOFError: it has ended."""
        try:
            data, control, _, _ = sock.recvmsg(_MESSAGE.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as e:
            raise EOFError(str(e)) from None
        if not data:
            raise EOFError(self._why() or "it has ended")
        kind, number, pid, error = _MESSAGE.unpack(data)
        if kind == _ASK and control:
            fd = array.array("i", control[0][2])[0]
            try:
                self._answer(fd, pid)
            finally:
                os.close(fd)
                sock.send(_MESSAGE.pack(_DONE, number, 0, 0))
        elif kind == _READY:
            if error:
                raise OSError(error, os.strerror(error).lower())
            self._ready = True
        elif kind == _MARKED:
            device, path = self._asked_marks.pop(number)
            if error:
                self._problem(f"{path} is not watched by the exec gate: {os.strerror(error).lower()}")
            else:
                self.marked[device] = path

    def _answer(self, fd: int, pid: int) -> None:
        try:
            self._on_exec(fd, pid)
        except Exception as e:  # noqa: BLE001  whatever is wrong with one file must not end the gate
            self._problem(f"{name_of(fd)} could not be looked at when process {pid} executed it: {e}")
        try:
            self.cover(pid)
        except OSError as e:
            self._problem(f"the mounts of process {pid} are not watched: {e}")

    def _problem(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS and text not in self.problems:
            self.problems.append(text)

    def _work(self) -> None:
        sock = self._socket
        assert sock is not None
        try:  # somebody waits for this thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except PermissionError:
            pass  # then in its turn
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        with open("/proc/self/mountinfo", "rb") as mountinfo:
            poll.register(mountinfo, select.POLLPRI)  # something was mounted
            try:
                beats = still = 0
                while still < STILL_LOOKS:
                    events = poll.poll(LOOK_MS)
                    for fd, _ in events:
                        if fd == sock.fileno():
                            self._receive(sock)
                        else:
                            self._cover("self")
                    now = self.counters()["beats"]
                    beats, still = now, 0 if events or now != beats else still + 1
                # neither the gate nor its watchdog moves, and its watchdog takes it along: killed below
            except (EOFError, OSError):
                still = 0  # the gate is gone; it says why in the shared page
        self._reap(0.0 if still else START_SECONDS)
        if not self._stopping and self._on_end is not None:
            self._on_end(self._why())

    def _reap(self, seconds: float = START_SECONDS) -> None:
        with self._ending:
            process = self._process
            if process is not None and process.returncode is None:
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:  # it takes the other one with it
                    process.kill()
                    process.wait()
            self.counters()
            with self._lock:
                if self._shared is not None:
                    self._shared.close()
                    self._shared = None

    def _why(self) -> str:
        return _ENDS.get(self.counters().get("end", 0), "")


def mounts(mountinfo: bytes) -> Iterator[tuple[int, str]]:
    """Device and mount point of each local file system in a mountinfo text (proc(5)) from which programs can be executed."""
    seen = set()
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(b" - ")
        fields, kind = head.split(b" "), tail.partition(b" ")[0]
        if len(fields) < 6 or kind.decode("ascii", "replace") not in LOCAL or b"noexec" in fields[5].split(b","):
            continue
        major, _, minor = fields[2].partition(b":")
        device = os.makedev(int(major), int(minor))
        if device not in seen:
            path = fields[4]
            for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
                path = path.replace(code, char)
            seen.add(device)
            yield device, os.fsdecode(path)

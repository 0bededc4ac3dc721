"""What /proc says about processes: one small struct each, None for a process that is gone. Live capture only.

Reads are bounded; whatever cannot be read (a process that ends meanwhile, no rights) is left empty, never an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

ARGS_MAX = 128 * 1024
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Proc:
    """A process as /proc/PID/stat has it. `start_ticks`: field 22, clock ticks since boot."""

    pid: int
    ppid: int
    comm: str
    start_ticks: int
    kernel: bool  # a kernel thread

    @property
    def start_ns(self) -> int:
        """Start time in ns since boot, as coarse as the clock tick."""
        return self.start_ticks * _TICK_NS


def read(path: str, limit: int) -> bytes:
    """Up to `limit` bytes of a file; empty where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while limit > 0:
            part = os.read(fd, min(limit, 1 << 16))
            if not part:
                break
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def link(path: str) -> str:
    """Where a symbolic link points; empty where it cannot be read."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def proc(pid: int) -> Proc | None:
    """The process (group leader) `pid`, None if there is none."""
    text = read(f"/proc/{pid}/stat", 4096)
    begin, end = text.find(b"("), text.rfind(b")")
    if begin < 0 or end < 0:
        return None
    rest = text[end + 2 :].split()
    if len(rest) < 20 or rest[0] in (b"Z", b"X"):
        return None
    return Proc(pid, int(rest[1]), text[begin + 1 : end].decode("utf-8", "replace"), int(rest[19]), bool(int(rest[6]) & 0x200000))


def pids() -> list[int]:
    """All process ids."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def all_procs() -> Iterator[Proc]:
    """All processes that are no kernel threads."""
    for pid in pids():
        p = proc(pid)
        if p is not None and not p.kernel:
            yield p


def leader(pid: int) -> int:
    """The process that a thread id belongs to; 0 if there is no such thread."""
    for line in read(f"/proc/{pid}/status", 4096).splitlines():
        if line.startswith(b"Tgid:"):
            return int(line[5:])
    return 0


def ids(pid: int) -> tuple[int, int, int]:
    """Effective uid and gid, and the pid in the innermost pid namespace."""
    uid = gid = 0
    ns_pid = pid
    for line in read(f"/proc/{pid}/status", 8192).splitlines():
        if line.startswith(b"Uid:"):
            uid = int(line.split()[2])
        elif line.startswith(b"Gid:"):
            gid = int(line.split()[2])
        elif line.startswith(b"NSpid:"):
            ns_pid = int(line.split()[-1])
    return uid, gid, ns_pid


def arguments(pid: int) -> bytes:
    """The argument block, NUL behind each argument, at most 128 KiB and one byte more where it is longer."""
    return read(f"/proc/{pid}/cmdline", ARGS_MAX + 1)


def exe(pid: int) -> str:
    """Path of the executable, without the kernel's mark of a deleted file; empty for a kernel thread or without rights."""
    return link(f"/proc/{pid}/exe").removesuffix(" (deleted)")


def cwd(pid: int) -> str:
    """Working directory."""
    return link(f"/proc/{pid}/cwd")


def netns(pid: int) -> int:
    """Inode of the network namespace; 0 unknown."""
    text = link(f"/proc/{pid}/ns/net")
    number = text[5:-1] if text.startswith("net:[") else ""
    return int(number) if number.isdigit() else 0


def cgroup_id(pid: int) -> int:
    """cgroup v2 id (inode of its directory); 0 unknown."""
    for line in read(f"/proc/{pid}/cgroup", 65536).splitlines():
        if line.startswith(b"0::"):
            try:
                return os.stat("/sys/fs/cgroup" + os.fsdecode(line[3:])).st_ino
            except OSError:
                return 0
    return 0


def controlling_terminal() -> int:
    """Device number of our controlling terminal (field 7 of /proc/self/stat); 0 where there is none."""
    rest = read("/proc/self/stat", 4096).rpartition(b")")[2].split()
    number = int(rest[4]) if len(rest) > 4 else 0
    # the kernel's old encoding: minor in bits 0-7 and 20-31, major in bits 8-15
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00) if number > 0 else 0

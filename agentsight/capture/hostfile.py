"""Opening files that belong to somebody else: without touching devices or pipes, and without leaving the other's root directory.

Each function returns a descriptor of a regular file, open for reading, or raises OSError. A file is first opened as a mere path
(``O_PATH``), looked at, and only then opened for reading: opening a device or a FIFO can have effects or block.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

_SYS_OPENAT2 = 437  # on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2), Linux 5.6."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_file(path: str | bytes) -> int:
    """The file that `path` leads to for us; links, also those of /proc, are followed."""
    return _reopen(os.open(path, os.O_PATH | os.O_CLOEXEC))


def open_in_root(pid: int, path: bytes) -> int:
    """The file that `path` leads to inside the root directory of process `pid`; no link leads out of it."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        fd = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(root),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fsdecode(path))
        return _reopen(fd)
    finally:
        os.close(root)


def _reopen(path_fd: int) -> int:
    try:
        if not stat.S_ISREG(os.fstat(path_fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(path_fd)

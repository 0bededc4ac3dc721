"""Files that a privileged process makes for the user who started it.

Created with the invoking user's ids (SUDO_UID, SUDO_GID), mode 0600, never through a symbolic link at the last step. A
directory where only root may write is taken as root, and then no step of the path may be a symbolic link: the user must not be
able to lead us elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentsight.errors import AgentsightError

MODE = 0o600
_libc = ctypes.CDLL(None, use_errno=True)


def invoking_ids() -> tuple[int, int] | None:
    """uid and gid of the user behind sudo; None where there is none or it is ourselves."""
    try:
        uid, gid = int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    except (KeyError, ValueError):
        return None
    if os.geteuid() != 0 or uid == 0 or uid < 0 or gid < 0:
        return None
    return uid, gid


@contextmanager
def as_invoking_user() -> Iterator[bool]:
    """File access of this thread is the invoking user's, the new files too. Gives False where there is no such user.

    setfsuid(2) concerns the calling thread alone, and with it the kernel takes the thread's file capabilities away.
    """
    ids = invoking_ids()
    if ids is None:
        yield False
        return
    uid, gid = ids
    old_gid = _libc.setfsgid(gid)
    old_uid = _libc.setfsuid(uid)
    try:
        yield True
    finally:
        _libc.setfsuid(old_uid)
        _libc.setfsgid(old_gid)


def create(path: Path, flags: int = os.O_WRONLY | os.O_APPEND) -> int:
    """A new, empty file at `path`, replacing a regular file of that name. Its descriptor; AgentsightError with the reason."""
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        with as_invoking_user() as other:
            try:
                fd = os.open(path, flags, MODE)
            except PermissionError:
                if not other:
                    raise
                fd = -1
        if fd < 0:
            fd = _create_as_root(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise AgentsightError(f"{path} is no regular file: choose another name")
            os.ftruncate(fd, 0)
            os.fchmod(fd, MODE)
            os.set_blocking(fd, True)
        except BaseException:
            os.close(fd)
            raise
    except OSError as e:
        raise AgentsightError(f"cannot write {path}: {_reason(e)}") from None
    return fd


def _create_as_root(path: Path, flags: int) -> int:
    """Where the user may not write: every step of the way is opened by itself, none may be a symbolic link."""
    absolute = Path(os.path.abspath(path))
    at = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in absolute.parent.parts[1:]:
            deeper = os.open(step, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = deeper
        fd = os.open(absolute.name, flags, MODE, dir_fd=at)
    finally:
        os.close(at)
    ids = invoking_ids()
    if ids is not None and os.fstat(fd).st_nlink == 1:
        os.fchown(fd, *ids)
    return fd


def rename(old: Path, new: Path) -> None:
    """Rename as the invoking user; as root where only root may (the file itself was made by us)."""
    with as_invoking_user() as other:
        try:
            os.replace(old, new)
            return
        except PermissionError:
            if not other:
                raise
    os.replace(old, new)


def _reason(e: OSError) -> str:
    if isinstance(e, FileNotFoundError):
        return "the directory does not exist"
    if e.errno == 40:  # ELOOP: what O_NOFOLLOW says
        return "it is a symbolic link, which is not followed"
    return (e.strerror or str(e)).lower()

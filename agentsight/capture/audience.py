"""Where our own output is shown: pipes, terminals and files that must not be watched when everybody's stdio is.

What is shown there would be captured from whoever shows it, shown again, captured again. So they are left out: what we print to,
our terminal and the side where terminal programs read it, and what the programs behind our pipe print to
(``agentsight trace --stdio | jq . > file``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agentsight.capture import procfs

DEPTH = 4  # programs in a pipeline behind us
Object = tuple[int, int]  # st_dev, st_ino


def objects() -> list[Object]:
    """Device and inode of each."""
    found: set[Object] = set()
    pipes = _outputs("/proc/self/fd", (0, 1, 2), found)
    seen = {os.getpid()}
    for _ in range(DEPTH):
        readers = _holders(pipes) - seen
        if not readers:
            break
        seen |= readers
        pipes = set()
        for pid in readers:
            pipes |= _outputs(f"/proc/{pid}/fd", (1, 2), found)
    found.update(_terminal())
    for master in ("/dev/ptmx", "/dev/pts/ptmx"):  # all terminals have this one in common
        if os.path.exists(master):
            st = os.stat(master)
            found.add((st.st_dev, st.st_ino))
    return sorted(found)


def _outputs(directory: str, fds: tuple[int, ...], found: set[Object]) -> set[str]:
    """Add what these descriptors lead to; the pipes among it, by the name that /proc has for them."""
    pipes = set()
    for fd in fds:
        path = f"{directory}/{fd}"
        try:
            st = os.stat(path)
            name = os.readlink(path)
        except OSError:
            continue  # closed, or the process is gone
        if name == "/dev/null":
            continue
        found.add((st.st_dev, st.st_ino))
        if stat.S_ISFIFO(st.st_mode) and fd != 0:
            pipes.add(name)
    return pipes


def _holders(pipes: set[str]) -> set[int]:
    """Processes that have one of these pipes as standard input."""
    return {pid for pid in procfs.pids() if procfs.link(f"/proc/{pid}/fd/0") in pipes} if pipes else set()


def _terminal() -> set[Object]:
    """Our controlling terminal: a pipeline's last program may show things on it to which we have no descriptor."""
    number = procfs.controlling_terminal()
    if not number:
        return set()
    for path in [*Path("/dev/pts").glob("*"), *Path("/dev").glob("tty*")]:
        try:
            st = path.stat()
        except OSError:
            continue
        if stat.S_ISCHR(st.st_mode) and st.st_rdev == number and path.name != "tty":
            return {(st.st_dev, st.st_ino)}
    return set()

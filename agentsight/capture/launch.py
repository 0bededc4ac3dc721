"""Starts a command as the invoking user, held back until it is watched.

The child is forked first and waits on a pipe; when its tracking is armed it gives up root (groups, gid, uid), takes the user's
environment and becomes the command. So its very first exec is seen. Its terminal, directory and descriptors are ours.
Exit statuses are those of env(1): 127 not found, 126 found but not to be run.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import signal
import time
from collections.abc import Mapping, Sequence

from agentsight.capture import procfs
from agentsight.errors import AgentsightError
from agentsight.sinks.files import invoking_ids

# set by sudo for root, not by the user
_SUDO_OWN = ("HOME", "PATH", "USER", "LOGNAME", "SHELL", "MAIL", "TERM", "USERNAME")
_SUDO_MARKS = ("SUDO_COMMAND", "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_HOME", "SUDO_TTY")


class LaunchError(AgentsightError):
    """The command cannot be started."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.exit_code = status


def user_environment(environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """The environment that the user `uid` would have given the command without sudo.

    sudo's own process still shows what it was started with. What was set on top of it (``sudo NAME=value ...``) is kept.
    """
    theirs = _environment_of_sudo()
    result = {k: v for k, v in environ.items() if k not in _SUDO_MARKS}
    if theirs:
        for name in _SUDO_OWN:
            result.pop(name, None)
        return {**theirs, **result}
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return result
    return {**result, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell or "/bin/sh"}


def _environment_of_sudo() -> dict[str, str]:
    pid = os.getppid()
    for _ in range(8):  # sudo may put a monitor of its own between
        p = procfs.proc(pid)
        if p is None or pid <= 1:
            return {}
        if p.comm == "sudo":
            above = procfs.proc(p.ppid)
            if above is None or above.comm != "sudo":
                text = procfs.read(f"/proc/{pid}/environ", 1 << 20)
                pairs = (os.fsdecode(v).partition("=") for v in text.split(b"\0") if b"=" in v)
                return {k: v for k, _, v in pairs}
        pid = p.ppid
    return {}


class Child:
    """A command that waits to be let go. `pid` is there at once, `path` the file that it will execute."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        ids = invoking_ids()
        self.environ = dict(os.environ) if ids is None else user_environment(os.environ, ids[0])
        self.path = _find(argv[0], self.environ.get("PATH", os.defpath))
        self.status: int | None = None  # exit status, 128 + N after signal N
        self.signal = 0
        self._cancelled = False  # it never became the command
        self._go_read, self._go = os.pipe()
        self._error, self._error_write = os.pipe()
        user = pwd_groups(ids)
        self.pid = os.fork()
        if self.pid == 0:
            self._become(ids, user)
        os.close(self._go_read)
        os.close(self._error_write)

    def _become(self, ids: tuple[int, int] | None, groups: list[int]) -> None:
        """In the child: wait, drop rights, exec. Never returns."""
        try:
            os.close(self._go)
            os.close(self._error)
            for number in (signal.SIGINT, signal.SIGQUIT):
                # until it is let go a Ctrl-C is ours to handle: the end of the pipe then ends this process
                signal.signal(number, signal.SIG_IGN)
            if os.read(self._go_read, 1) != b"x":
                os._exit(125)
            if ids is not None:
                os.setgroups(groups)
                os.setgid(ids[1])
                os.setuid(ids[0])
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.execve(self.path, self.argv, self.environ)  # noqa: S606
        except OSError as e:
            os.write(self._error_write, b"%d" % (e.errno or errno.EIO))
        except BaseException:  # noqa: BLE001  a forked Python must never return into its parent's code
            os.write(self._error_write, b"%d" % errno.EIO)
        os._exit(125)

    def go(self) -> None:
        """Let it run. LaunchError if it could not become the command."""
        os.write(self._go, b"x")
        os.close(self._go)
        self._go = -1
        said = os.read(self._error, 64)  # empty: the exec closed the pipe
        os.close(self._error)
        self._error = -1
        if said:
            self._cancelled = True
            os.waitpid(self.pid, 0)
            number = int(said)
            raise LaunchError(f"cannot run {self.argv[0]}: {os.strerror(number).lower()}", 127 if number == errno.ENOENT else 126)

    def poll(self) -> bool:
        """Whether it has ended; then `status` and `signal` are known."""
        if self.status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid == self.pid:
                self.signal = os.WTERMSIG(raw) if os.WIFSIGNALED(raw) else 0
                self.status = 128 + self.signal if self.signal else os.waitstatus_to_exitcode(raw)
        return self.status is not None

    @property
    def running(self) -> bool:
        """Whether it was let go and has not ended."""
        return self._go < 0 and not self._cancelled and self.status is None

    def wait(self) -> None:
        """Wait for the end of a command that was let go."""
        while self.running and not self.poll():
            time.sleep(0.05)

    def cancel(self) -> None:
        """Give up a command that was not let go yet: it ends without having run."""
        if self._go >= 0:
            self._cancelled = True
            os.close(self._go)
            os.close(self._error)
            self._go = self._error = -1
            os.waitpid(self.pid, 0)


def pwd_groups(ids: tuple[int, int] | None) -> list[int]:
    """Supplementary groups of the invoking user; just the gid where the user has no name."""
    if ids is None:
        return []
    try:
        name = pwd.getpwuid(ids[0]).pw_name
    except KeyError:
        return [ids[1]]
    return os.getgrouplist(name, ids[1])


def _find(name: str, path: str) -> str:
    if not name:
        raise LaunchError("cannot run an empty command name", 127)
    if "/" in name:
        if not os.path.exists(name):
            raise LaunchError(f"cannot run {name}: there is no such file", 127)
        return name
    found = shutil.which(name, path=path)
    if found is None:
        raise LaunchError(f"cannot run {name}: not found in PATH", 127)
    return found


def programs(path: str, search: str) -> list[str]:
    """The executables that running `path` will lead to: itself, and behind ``#!`` the interpreter, through env(1) too."""
    found: list[str] = []
    for _ in range(5):
        real = os.path.realpath(path)
        if real in found or not os.path.isfile(real):
            break
        found.append(real)
        head = procfs.read(real, 512)
        if not head.startswith(b"#!"):
            break
        words = os.fsdecode(head[2:].split(b"\n")[0]).split()
        if not words:
            break
        path = words[0]
        if os.path.basename(path) == "env":
            rest = [w for w in words[1:] if not w.startswith("-") and "=" not in w]
            where = shutil.which(rest[0], path=search) if rest else None
            if where is None:
                break
            path = where
    return found

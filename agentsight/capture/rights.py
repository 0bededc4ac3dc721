"""May we do this? Capabilities, kernel and BTF are looked at before anything is loaded; each lack is one line with its remedy."""

from __future__ import annotations

import ctypes
import os
import shlex
import sys

from agentsight.errors import CaptureError

# linux/capability.h; what each is for
_NEEDED = {39: "CAP_BPF", 38: "CAP_PERFMON", 19: "CAP_SYS_PTRACE"}
_SYS_ADMIN = 21
_PR_SET_DUMPABLE = 4
MIN_KERNEL = (5, 15)


def require(arguments: list[str]) -> None:
    """CaptureError unless the kernel side can be loaded here. `arguments`: the command line, for the sudo line to type."""
    release = os.uname().release
    if kernel_version(release) < MIN_KERNEL:
        raise CaptureError(f"kernel {release} is too old: 5.15 or newer is needed (replay works everywhere)")
    missing = missing_capabilities()
    if missing:
        command = shlex.join(["sudo", *_ourselves(), *arguments])
        raise CaptureError(f"no rights to watch ({', '.join(missing)} missing): run as root: {command}")
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        raise CaptureError("this kernel has no BTF (/sys/kernel/btf/vmlinux): use one built with CONFIG_DEBUG_INFO_BTF=y")


def _ourselves() -> list[str]:
    """How this very installation is started: a virtual environment is not on sudo's path."""
    script = os.path.abspath(sys.argv[0])
    if os.path.basename(script) == "agentsight" and os.access(script, os.X_OK):
        return [script]
    return [sys.executable, "-P", "-m", "agentsight"]  # -P: no modules from the current directory


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of a release such as ``6.1.0-18-amd64``; (0, 0) where it is none."""
    parts = release.split(".")
    try:
        return int(parts[0]), int(parts[1].split("-")[0])
    except (IndexError, ValueError):
        return 0, 0


def missing_capabilities() -> list[str]:
    """Names of the capabilities that we lack. CAP_SYS_ADMIN stands for BPF and PERFMON, as in the kernel."""
    mask = 0
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapEff:"):
                mask = int(line.split()[1], 16)
    if mask >> _SYS_ADMIN & 1:
        mask |= 1 << 39 | 1 << 38
    return [name for bit, name in _NEEDED.items() if not mask >> bit & 1]


def make_undumpable() -> None:
    """No core dump and no ptrace by the same user: TLS secrets pass through this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise CaptureError(f"cannot make the process undumpable: {os.strerror(ctypes.get_errno())}")

"""Checks of the host itself: kernel, BTF, lockdown, capabilities, newer abilities of the kernel, memory. Reads files only."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass, field

from agentsight.capture import gate, procfs, rights
from agentsight.doctor.lines import FAIL, OK, SKIP, WARN, Line

BTF = "/sys/kernel/btf/vmlinux"
LOCKDOWN = "/sys/kernel/security/lockdown"
UNPRIVILEGED = "/proc/sys/kernel/unprivileged_bpf_disabled"
BTF_MAX = 64 << 20
MEMORY_WISH = 512 << 20  # the arena's bound of 256 MiB, the ring, the interpreter, and bodies that are put together
LOCK_WISH = 4 << 20  # the exec gate and the secrets
GROUP = "system"

# linux/capability.h: bit, name, what goes without it (None: nothing does)
CAPABILITIES: tuple[tuple[int, str, str | None], ...] = (
    (39, "CAP_BPF", None),
    (38, "CAP_PERFMON", None),
    (19, "CAP_SYS_PTRACE", None),
    (21, "CAP_SYS_ADMIN", "no exec gate: the first handshake of a binary that is new to us can be missed"),
    (24, "CAP_SYS_RESOURCE", ""),  # needed before Linux 5.11 only
)


@dataclass
class Host:
    """What the checks look at; a test gives another one."""

    release: str = field(default_factory=lambda: os.uname().release)
    machine: str = field(default_factory=platform.machine)
    btf: bytes = field(default_factory=lambda: procfs.read(BTF, BTF_MAX))
    lockdown: str = field(default_factory=lambda: procfs.read(LOCKDOWN, 256).decode("ascii", "replace"))
    status: bytes = field(default_factory=lambda: procfs.read("/proc/self/status", 8192))
    meminfo: bytes = field(default_factory=lambda: procfs.read("/proc/meminfo", 8192))
    cgroup_max: bytes = field(default_factory=lambda: _cgroup_memory())
    lock_limit: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
    unprivileged: str = field(default_factory=lambda: procfs.read(UNPRIVILEGED, 16).decode("ascii", "replace").strip())
    tracefs: bool = field(default_factory=lambda: os.path.exists("/sys/kernel/tracing/events"))
    sudo: str = ""  # the line that runs this again as root

    def capability(self, bit: int) -> bool:
        """Whether we have it; CAP_SYS_ADMIN stands for BPF and PERFMON, as in the kernel."""
        line = next((x for x in self.status.splitlines() if x.startswith(b"CapEff:")), b"CapEff: 0")
        mask = int(line.split()[1], 16)
        return bool(mask >> bit & 1 or (bit in (38, 39) and mask >> 21 & 1))

    def names(self, word: str) -> bool:
        """Whether the kernel's type information has that name."""
        return b"\0" + word.encode() + b"\0" in self.btf


def check(host: Host) -> list[Line]:
    """All of them."""
    return [
        *_kernel(host),
        *_capabilities(host),
        *_features(host),
        *_memory(host),
        _tracefs(host),
        _line(
            "unprivileged_bpf", OK, f"kernel.unprivileged_bpf_disabled is {host.unprivileged or 'not there'}; it does not matter"
        ),
    ]


def _line(name: str, status: str, text: str, fix: str = "") -> Line:
    return Line(GROUP, name, status, text, fix)


def _kernel(host: Host) -> list[Line]:
    version = rights.kernel_version(host.release)
    least = ".".join(map(str, rights.MIN_KERNEL))
    lines = [
        _line("kernel", OK, f"{host.release} ({host.machine}), {least} or newer is needed")
        if version >= rights.MIN_KERNEL
        else _line("kernel", FAIL, f"{host.release} is too old", f"boot kernel {least} or newer (replay works everywhere)")
    ]
    if host.btf:
        lines.append(_line("BTF", OK, f"{BTF}, {len(host.btf) >> 10} KiB"))
    else:
        lines.append(_line("BTF", FAIL, f"{BTF} is missing", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"))
    mode = host.lockdown.partition("[")[2].partition("]")[0]
    if mode == "confidentiality":
        fix = "boot without lockdown=confidentiality (integrity is fine), or with Secure Boot's lockdown off"
        lines.append(_line("lockdown", FAIL, "confidentiality: BPF programs may not read memory", fix))
    else:
        lines.append(_line("lockdown", OK, mode or "not built into this kernel"))
    return lines


def _capabilities(host: Host) -> list[Line]:
    lines = []
    for bit, name, without in CAPABILITIES:
        if host.capability(bit):
            lines.append(_line(name, OK, "held"))
        elif without is None:
            lines.append(_line(name, FAIL, "missing", f"run as root: {host.sudo}"))
        elif without:
            lines.append(_line(name, WARN, f"missing: {without}", f"run as root: {host.sudo}"))
        else:
            lines.append(_line(name, OK, "missing, and not needed since Linux 5.11"))
    return lines


def _features(host: Host) -> list[Line]:
    if not host.btf:
        return [_line("newer abilities", SKIP, "cannot be told without BTF")]
    lines = []
    if host.names("btf_trace_sock_send_length") and host.names("btf_trace_sock_recv_length"):
        lines.append(_line("sock_send_length", OK, "sockets are watched where only they are: other system calls pay nothing"))
    else:
        text = "not in this kernel (6.3 has it): sys_exit is used, which costs every system call of the host about 0.1 us"
        lines.append(_line("sock_send_length", WARN, text, "boot kernel 6.3 or newer to be rid of that cost"))
    if host.names("bpf_uprobe_multi_link"):
        lines.append(_line("uprobe_multi", OK, "one link per binary"))
    else:
        lines.append(_line("uprobe_multi", OK, "not in this kernel (6.6 has it): single uprobes are used, detaching is slower"))
    has_loop = host.names("BPF_FUNC_loop")
    lines.append(_line("bpf_loop", OK, ("there" if has_loop else "not in this kernel (5.17 has it)") + "; not needed"))
    if host.machine == "x86_64" and (6, 11) <= rights.kernel_version(host.release) <= (6, 13):
        text = "on Linux 6.11 to 6.13 a strict seccomp filter kills programs under return probes; we use entry probes only"
        lines.append(_line("uretprobes", OK, text))
    why = gate.available()
    if why is None:
        lines.append(_line("exec gate", OK, "permission marks on exec can be set"))
    else:
        fix = f"run as root: {host.sudo}" if "CAP_" in why else "use a kernel built with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y"
        lines.append(_line("exec gate", WARN, f"{why}; the first handshake of a binary that is new to us can be missed", fix))
    return lines


def _memory(host: Host) -> list[Line]:
    values = {}
    for line in host.meminfo.splitlines():
        name, _, rest = line.partition(b":")
        values[name] = int((rest.split() or [b"0"])[0]) << 10
    free = values.get(b"MemAvailable", 0)
    limit = int(host.cgroup_max) if host.cgroup_max.isdigit() else 0
    text = f"{free >> 20} MiB available" + (f", control group limit {limit >> 20} MiB" if limit else "")
    if 0 < limit < MEMORY_WISH:
        fix = f"raise it: MemoryMax={MEMORY_WISH >> 20}M for the service, or docker run --memory {MEMORY_WISH >> 20}m"
        lines = [_line("memory", WARN, f"{text}: heavy traffic may need up to {MEMORY_WISH >> 20} MiB", fix)]
    elif free < MEMORY_WISH:
        lines = [_line("memory", WARN, f"{text}: heavy traffic may need up to {MEMORY_WISH >> 20} MiB", "free some memory")]
    else:
        lines = [_line("memory", OK, text)]
    limited = 0 <= host.lock_limit < LOCK_WISH
    if limited and not host.capability(14):  # CAP_IPC_LOCK
        text = f"{host.lock_limit >> 10} KiB may be locked: secrets in our memory could be swapped out"
        lines.append(_line("locked memory", WARN, text, f"ulimit -l {LOCK_WISH >> 10}, or give CAP_IPC_LOCK"))
    else:
        lines.append(_line("locked memory", OK, "not limited for us" if host.capability(14) else "enough may be locked"))
    return lines


def _tracefs(host: Host) -> Line:
    return _line("tracefs", OK, ("mounted" if host.tracefs else "not mounted or not readable") + "; not needed")


def _cgroup_memory() -> bytes:
    for line in procfs.read("/proc/self/cgroup", 65536).splitlines():
        if line.startswith(b"0::"):
            return procfs.read("/sys/fs/cgroup" + os.fsdecode(line[3:]) + "/memory.max", 64).strip()
    return b""

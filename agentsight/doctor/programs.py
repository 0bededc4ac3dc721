"""Every BPF program is loaded and attached for real, in the groups in which a capture uses them, and taken out at once."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from agentsight.capture import gate
from agentsight.capture.live import bpf_object
from agentsight.doctor.lines import FAIL, OK, SKIP, WARN, Line
from agentsight.errors import CaptureError

GROUP = "programs"
RING_BYTES = 1 << 20
TOO_NEW = "report it with the output of: sudo agentsight -v -v doctor"
_OFF: dict[str, Any] = {"want_io": False, "want_process": False, "want_stdio": False}

# name, what it is, what it is made with
GROUPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("processes", "fork, exec, exit", {**_OFF, "want_process": True}),
    ("sockets (sock)", "sock_send_length, sock_recv_length, connect and close", {**_OFF, "want_io": True, "io_hook": "sock"}),
    ("sockets (sys_exit)", "sys_exit, connect and close", {**_OFF, "want_io": True, "io_hook": "sys_exit"}),
    ("stdio", "sys_exit for pipes and terminals", {**_OFF, "want_stdio": True}),
)


def check(sudo: str, log_level: int = 0, make: Callable[..., Any] | None = None) -> list[Line]:
    """One line per group, then one per kind of probe. `make`: the class Capture (a test gives another)."""
    try:
        obj = bpf_object()
    except CaptureError as e:
        return [Line(GROUP, "object", FAIL, str(e), "pip install --force-reinstall agentsight")]
    if make is None:
        from agentsight._native.ringbuf import Capture

        make = Capture
    common = {"obj": obj, "ring_bytes": RING_BYTES, "log_level": log_level}
    lines, failed = [], {}
    for name, what, options in GROUPS:
        problem = _try(make, {**common, **options}, None)
        if problem is None:
            lines.append(Line(GROUP, name, OK, f"{what}: loaded and attached"))
        else:
            failed[name] = problem
    lines += [_failed_group(name, problem, failed, sudo) for name, problem in failed.items()]
    return lines + _probes(make, common, sudo)


def _failed_group(name: str, problem: str, failed: dict[str, str], sudo: str) -> Line:
    fix = f"run as root: {sudo}" if "not allowed" in problem else TOO_NEW
    one_rung_left = name.startswith("sockets") and len([n for n in failed if n.startswith("sockets")]) == 1
    if one_rung_left and "6.3 or newer" in problem:
        return Line(GROUP, name, SKIP, "not in this kernel; the other way is used")
    poorer = one_rung_left or name == "stdio"
    return Line(GROUP, name, WARN if poorer else FAIL, problem, fix)


def _probes(make: Callable[..., Any], common: dict[str, Any], sudo: str) -> list[Line]:
    """A probe at the first instruction of a program of ours: as multi link where the kernel has it, and as a single one."""
    path = gate.helper()
    try:
        place = (entry_offset(path), 0)
    except (OSError, ValueError) as e:
        return [Line(GROUP, "probe", SKIP, f"{path}: {e}", "pip install --force-reinstall agentsight")]

    def attach(capture: Any) -> None:
        capture.attach_secret(path, [place])

    lines, problems = [], []
    for name, single in (("probe", False), ("probe (single)", True)):
        problem = _try(make, {**common, **_OFF, "want_io": True, "single_probes": single}, attach)
        if problem is None:
            lines.append(Line(GROUP, name, OK, "an entry uprobe was attached and taken away"))
        else:
            problems.append((name, problem))
    for name, problem in problems:
        status = FAIL if len(problems) == 2 else WARN
        lines.append(Line(GROUP, name, status, problem, f"run as root: {sudo}" if "not allowed" in problem else TOO_NEW))
    return lines


def _try(make: Callable[..., Any], options: dict[str, Any], use: Callable[[Any], Any] | None) -> str | None:
    """Load, attach, use, take out. The kernel's refusal in one line, None where it did not refuse."""
    try:
        capture = make(**options)
    except CaptureError as e:
        return str(e)
    try:
        capture.start()
        if use is not None:
            use(capture)
    except (CaptureError, OSError) as e:
        return str(e)
    finally:
        capture.stop()
    return None


def entry_offset(path: str) -> int:
    """File offset of an ELF program's entry point. ValueError where it has none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as f:
            elf = ELFFile(f)
            offset = next(iter(elf.address_offsets(elf["e_entry"])), None)
    except ELFError as e:
        raise ValueError(f"no ELF file for {platform.machine()}: {e}") from None
    if offset is None:
        raise ValueError("has no entry point")
    return int(offset)

"""What is to be known of a TLS stack to take its secrets: its files, its key-log function, where the arguments are.

One `TlsStack` per stack, one file each beside this one. The search itself is `agentsight._native.elfscan`; the place of the
arguments travels to the kernel program as the probe's cookie (``AS_COOKIE_*`` in ``bpf/agentsight.h``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase


class Reg(IntEnum):
    """Registers at function entry, as ``enum as_reg`` numbers them. On arm64 0 to 9 are x0 to x9.

    The first six are the integer arguments of a C function in order, on both machines (System V x86-64 ABI 3.2.3, AAPCS64 6.8.2).
    """

    DI = 0
    SI = 1
    DX = 2
    CX = 3
    R8 = 4
    R9 = 5
    AX = 6
    BX = 7
    R10 = 8
    R11 = 9
    NONE = 15

    @property
    def x86(self) -> int:
        """The number in x86-64 instructions, -1 for NONE."""
        return _X86[self]


_X86 = {
    Reg.DI: 7,
    Reg.SI: 6,
    Reg.DX: 2,
    Reg.CX: 1,
    Reg.R8: 8,
    Reg.R9: 9,
    Reg.AX: 0,
    Reg.BX: 3,
    Reg.R10: 10,
    Reg.R11: 11,
    Reg.NONE: -1,
}


@dataclass(frozen=True, slots=True)
class Arguments:
    """Which register holds what when the function is entered. `label_len` NONE: the label ends with NUL."""

    label: Reg
    secret: Reg
    secret_len: Reg
    label_len: Reg = Reg.NONE
    first: Reg = Reg.DI  # the same for all secrets of one connection
    random: Reg = Reg.NONE  # pointer to the 32 bytes of the client random


# What stacks in C write into a key log (the SSLKEYLOGFILE format); CLIENT_RANDOM is of TLS 1.2.
LABELS = (
    "CLIENT_RANDOM",
    "EARLY_EXPORTER_SECRET",
    "EXPORTER_SECRET",
    "CLIENT_EARLY_TRAFFIC_SECRET",
    "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    "CLIENT_TRAFFIC_SECRET_0",
    "SERVER_TRAFFIC_SECRET_0",
)


@dataclass(frozen=True, slots=True)
class KeylogFunction:
    """A function that is handed secrets, and the ladder by which it is found: symbols, then loads of key-log labels.

    `anchors`: labels that are always loaded as an argument of the call; one of them must lead to the function.
    `require`, `never`: labels that all do, and that never do: so stacks with the same labels are told apart.
    `go`: the symbols are Go's; they are looked up in the program's own function table too.
    `arguments_arm64`: where they are on arm64, if it is not the C argument of the same position.
    `kind`: what the kernel program does with the arguments (``AS_PROBE_*``).
    `source_file`, `error`: for a function without labels: the end of its source file's path, and the number of the error that
    only this function of that file reports (``ERR_put_error``).
    """

    symbols: tuple[str, ...]
    arguments: Arguments
    labels: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    go: bool = False
    arguments_arm64: Arguments | None = None
    kind: int = 0
    source_file: str = ""
    error: int = 0


@dataclass(frozen=True, slots=True)
class TlsStack:
    """One TLS implementation.

    `id`: 1 to 255, never given twice, since capture files hold it. `libraries`: patterns (``*``, ``?``) of the base names of its
    shared libraries, or of modules that contain it. `executables`: programs may contain it; they are searched too.
    `commands`: programs known to contain it; those on PATH are searched even before they run.
    """

    name: str
    id: int
    functions: tuple[KeylogFunction, ...]
    libraries: tuple[str, ...] = ()
    executables: bool = False
    commands: tuple[str, ...] = ()
    title: str = ""  # for people; the name where it is not given

    def __post_init__(self) -> None:
        if not 1 <= self.id <= 255:
            raise ValueError(f"TLS stack {self.name}: id {self.id} does not fit into the cookie")

    def is_library(self, name: str) -> bool:
        """Whether a file of that base name may be one of its libraries."""
        return any(fnmatchcase(name, pattern) for pattern in self.libraries)

    def cookie(self, function: KeylogFunction, machine: str = "x86_64") -> int:
        """The 64-bit cookie of a probe at `function` in a file for `machine` (``x86_64``, ``aarch64``)."""
        a = (function.arguments_arm64 if machine == "aarch64" else None) or function.arguments
        nibbles = (a.label, a.label_len, a.secret, a.secret_len, a.first, a.random, function.kind)
        value = self.id
        for i, nibble in enumerate(nibbles):
            value |= int(nibble) << (8 + 4 * i)
        return value

"""Where in a binary the function is that a TLS stack hands its secrets to. The search itself is C (core/elfscan.h), without the GIL."""

from collections.abc import Sequence
from os import PathLike

class Wanted:
    """A function that is looked for.

    `names`: symbols, the first that is in the file is taken. `labels`: key-log labels for the string cross-reference, 8 to 62
    characters each, at most 32; none switches it off. `anchors`: those labels of which one must agree. `label_register`: the
    x86-64 register (0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi, 7 rdi, 8 r8, ...) of the label argument, on arm64 the argument of
    the same position; -1: any. `require`, `never`: labels that the stack's function, as it is known, takes all and none of: this
    tells stacks with equal labels apart. `go`: the names are Go's, and are looked up in the program's function table too.
    `file`, `error`: the end of its source file's path, and the error reason that only this function of that file reports; an
    empty path switches the search by error sites off.
    ValueError for what cannot be searched for.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    anchors: tuple[str, ...]
    require: tuple[str, ...]
    never: tuple[str, ...]
    label_register: int
    go: bool
    file: str
    error: int

    def __init__(
        self,
        names: Sequence[str],
        labels: Sequence[str] = (),
        anchors: Sequence[str] = (),
        label_register: int = 6,
        *,
        require: Sequence[str] = (),
        never: Sequence[str] = (),
        go: bool = False,
        file: str = "",
        error: int = 0,
    ) -> None: ...

class Found:
    """What became of one Wanted. `how`: ``dynsym``, ``symtab``, ``debug``, ``gopclntab``, ``xref``, or empty and `reason` says why.

    `offset` is the place in the file (for a uprobe), `address` the virtual address in the file's own numbering. `evidence`: the
    labels that are in the file; looked for only where no symbol is. `agree`: those whose loads led to the address (xref).
    `likely`: nothing was found, but the stack seems to be in the file.
    """

    how: str
    offset: int
    address: int
    evidence: tuple[str, ...]
    agree: tuple[str, ...]
    likely: bool
    reason: str

class ScanResult:
    """A whole file. `status`: empty, or why it was not searched (no ELF file, damaged, 32-bit, cannot be read); `found` then is empty.

    `build_id`: hex, empty where there is none. `machine`: ``x86_64``, ``aarch64`` or empty. `size`: bytes of the file.
    """

    status: str
    build_id: str
    machine: str
    size: int
    found: tuple[Found, ...]

def scan(source: int | str | bytes | PathLike[str], wanted: Sequence[Wanted], *, debug: int = -1) -> ScanResult:
    """Looks for each of 1 to 16 functions in a file, given as an open descriptor (left open, its position unused) or a path.

    `debug`: a descriptor of the file that its symbols were moved to, or -1; used if it has the same build id.
    Memory: one window of 1 MiB, whatever the file. Time: that of reading it once or twice. No file contents raise; OSError where
    a path cannot be opened, ValueError for a bad `wanted`.
    """

def build_id(source: int | str | bytes | PathLike[str]) -> str:
    """The GNU build id of a file in hex; empty where it has none or is no ELF file of ours. OSError as in `scan`."""

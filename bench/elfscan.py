"""How fast a stripped binary is searched for its key-log function, beside the same search by another hand in the same run.

    python bench/elfscan.py [FILE ...] [--size MB]

Peer: the cross-reference written with numpy where it is installed (a compare of every 32-bit word with the labels' addresses),
else in pure Python with ``bytes.find`` and a regular expression; both read the file and answer the same question, and the run
fails where the answers differ. Without FILE: a file of 250 MB is made (random code, a real call site at its end). Prints
milliseconds, MB/s, peak memory of the search above the start, and the ratio.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from elftools.elf.elffile import ELFFile

from agentsight._native import elfscan
from agentsight.tls import STACKS

try:
    import numpy
except ImportError:
    numpy = None

FUNCTION = next(stack for stack in STACKS if stack.name == "openssl").functions[0]
# no symbol: the whole way has to be gone
WANTED = elfscan.Wanted(("no_such_symbol",), FUNCTION.labels, FUNCTION.anchors)
PAGE = 4096


def make_file(path: Path, size: int) -> None:
    """An x86-64 executable of `size` bytes: 40 % read-only data with the labels, 60 % code with one caller of the function."""
    rodata = size * 2 // 5 // PAGE * PAGE
    base, code_va = 0x400000, 0x400000 + rodata
    labels = [label.encode() + b"\0" for label in FUNCTION.labels[:2]]
    body = bytearray(os.urandom(1 << 20)) * (size // (1 << 20) + 1)
    del body[size:]
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, code_va, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 4, 0, base, base, rodata, rodata, PAGE)
    head += struct.pack("<IIQQQQQQ", 1, 5, rodata, code_va, code_va, size - rodata, size - rodata, PAGE)
    body[: len(head)] = head
    at = rodata - 200
    places = []
    for label in labels:
        body[at : at + len(label)] = label
        places.append(base + at)
        at += len(label)
    function = size - 512
    body[function : function + 6] = b"\x55\x48\x89\xe5\x5d\xc3"
    at = size - 256
    for place in places:
        call = b"\x48\x8d\x35" + struct.pack("<i", place - (base + at + 7)) + b"\xe8" + struct.pack("<i", function - (at + 12))
        body[at : at + len(call)] = call
        at += len(call)
    path.write_bytes(body)


def vote(data: bytes, sites: list[tuple[int, str]]) -> int:
    """The peer's answer: the file offset called within 40 bytes behind loads of two labels; -1: none."""
    votes: dict[int, set[str]] = defaultdict(set)
    for behind, label in sites:
        call = data.find(b"\xe8", behind, behind + 40)
        if call >= 0:
            votes[call + 5 + struct.unpack_from("<i", data, call + 1)[0]].add(label)
    good = [to for to, names in votes.items() if len(names) >= 2 and names & set(FUNCTION.anchors)]
    return good[0] if len(good) == 1 else -1


def segments(path: Path) -> list[tuple[int, int, int, bool]]:
    """(offset, size, address, executable) of what is loaded and not writable."""
    with path.open("rb") as f:
        loads = [s.header for s in ELFFile(f).iter_segments("PT_LOAD")]
    return [(h.p_offset, h.p_filesz, h.p_vaddr, bool(h.p_flags & 1)) for h in loads if not h.p_flags & 2]


def labels_in(data: bytes, loads: list[tuple[int, int, int, bool]]) -> dict[int, str]:
    """Address of each label."""
    found = {}
    for label in FUNCTION.labels:
        raw, at = label.encode() + b"\0", -1
        while (at := data.find(raw, at + 1)) >= 0:
            found.update({at - off + va: label for off, n, va, _ in loads if off <= at < off + n})
    return found


def peer_numpy(path: Path) -> int:
    """The search with numpy."""
    data, loads = path.read_bytes(), segments(path)
    places = labels_in(data, loads)
    targets = numpy.array(sorted(places), dtype=numpy.int64)
    sites = []
    for off, n, va, executable in loads:
        if not executable or not len(targets):
            continue
        for shift in range(4):
            words = numpy.frombuffer(data, dtype="<i4", count=(n - shift) // 4, offset=off + shift)
            at = numpy.arange(len(words), dtype=numpy.int64) * 4 + (shift + va + 4)
            # lea rsi, [rip + disp32]; mov esi, imm32
            for to, opcode in ((words + at, b"\x48\x8d\x35"), (words, b"\xbe")):
                for i in numpy.nonzero((to >= targets[0]) & (to <= targets[-1]))[0]:
                    place, p = int(to[i]), off + shift + int(i) * 4
                    if place in places and data[p - len(opcode) : p] == opcode:
                        sites.append((p + 4, places[place]))
    return vote(data, sites)


def peer_python(path: Path) -> int:
    """The search with the standard library."""
    data, loads = path.read_bytes(), segments(path)
    places = labels_in(data, loads)
    sites = []
    for off, n, va, executable in loads:
        if executable:
            for match in re.compile(rb"\x48\x8d\x35|\xbe", re.DOTALL).finditer(data, off, off + n - 4):
                p = match.end()
                to = struct.unpack_from("<i", data, p)[0]
                if match[0] != b"\xbe":
                    to += p - off + va + 4
                if to in places:
                    sites.append((p + 4, places[to]))
    return vote(data, sites)


def ours(path: Path) -> int:
    """The search in C."""
    found = elfscan.scan(path, [WANTED]).found[0]
    return found.offset if found.how else -1


def best(run: Callable[[Path], int], path: Path, rounds: int) -> tuple[float, int]:
    """Shortest time in seconds, and the answer."""
    times, answer = [], -1
    for _ in range(rounds):
        begin = time.perf_counter()
        answer = run(path)
        times.append(time.perf_counter() - begin)
    return min(times), answer


def peak_kib() -> int:
    """VmHWM of this process."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def compare(path: Path) -> bool:
    """One line for a file; False where the answers differ."""
    size = path.stat().st_size
    with path.open("rb") as f:  # into the page cache, for both alike
        while f.read(1 << 20):
            pass
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = peak_kib()
    mine, answer = best(ours, path, 5)
    grown = peak_kib() - before
    peer, name = (peer_numpy, "numpy") if numpy is not None else (peer_python, "python")
    theirs, other = best(peer, path, 2)
    verdict = "same answer" if answer == other else f"the peer says {other:#x}"
    print(
        f"{path.name}: {size / 1e6:.1f} MB; elfscan {mine * 1e3:.1f} ms ({size / mine / 1e6:.0f} MB/s, +{grown} KiB); "
        f"{name} {theirs * 1e3:.0f} ms; ratio {theirs / mine:.1f}; at {answer:#x}, {verdict}"
    )
    return answer == other


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--size", type=int, default=250, help="MB of the file that is made (250)")
    args = parser.parse_args()
    if args.files:
        return 0 if min(map(compare, args.files)) else 1
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "made"
        make_file(path, args.size * 1_000_000 // PAGE * PAGE)
        return 0 if compare(path) else 1


if __name__ == "__main__":
    sys.exit(main())

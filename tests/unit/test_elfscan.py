"""The ELF scan on real files: small programs compiled here in every flavour, the machine's own libssl, and damaged copies.

Invariant for damaged files: a scan never raises and never ends the process; what it finds lies inside the file.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from agentsight._native import elfscan
from agentsight.tls import STACKS

OPENSSL = next(stack for stack in STACKS if stack.name == "openssl")
FUNCTION = OPENSSL.functions[0]
WANTED = elfscan.Wanted(FUNCTION.symbols, FUNCTION.labels, FUNCTION.anchors, FUNCTION.arguments.label.x86)

# As in OpenSSL: two labels are arguments, the others go through a variable. noipa keeps the compiler from changing the call.
SOURCE = r"""
#include <stdio.h>
#include <string.h>
typedef struct ssl { int a; } ssl;
__attribute__((noipa)) int ssl_log_secret(ssl *s, const char *label, const unsigned char *secret, size_t n) {
    return printf("%s %d %d\n", label, (int)n, secret[0] + s->a);
}
__attribute__((noipa)) void other(const char *label) { puts(label); }
__attribute__((noipa)) int finish(ssl *s, const unsigned char *secret, int which) {
    const char *label = which & 1 ? "SERVER_TRAFFIC_SECRET_0" : "CLIENT_TRAFFIC_SECRET_0";
    other(which & 2 ? "CLIENT_HANDSHAKE_TRAFFIC_SECRET" : "SERVER_HANDSHAKE_TRAFFIC_SECRET");
    if (ssl_log_secret(s, "CLIENT_RANDOM", secret, 48) && ssl_log_secret(s, "EARLY_EXPORTER_SECRET", secret, 32))
        return ssl_log_secret(s, label, secret, 32);
    return 0;
}
int main(int argc, char **argv) {
    ssl s = {argc};
    return finish(&s, (const unsigned char *)argv[0], argc) == 0;
}
"""
FLAVOURS = {
    "pie": ("-fPIE", "-pie"),
    "no-pie": ("-fno-pie", "-no-pie"),
    "static": ("-fno-pie", "-no-pie", "-static"),
    "static-pie": ("-fPIE", "-static-pie"),
    "shared": ("-fPIC", "-shared", "-Wl,-soname,libssl.so.9", "-Wl,-Bsymbolic-functions"),
    "unoptimised": ("-O0", "-fPIE", "-pie"),
    "no-unwind": ("-fno-pie", "-no-pie", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
}


def compile_c(out: Path, *flags: str, source: str = SOURCE) -> Path:
    """A compiled file; `flags` may undo the -O2."""
    subprocess.run(["gcc", "-O2", "-x", "c", "-", "-o", str(out), *flags], input=source.encode(), check=True, timeout=120)
    return out


def true_offset(path: Path, name: str = "ssl_log_secret") -> int:
    """The file offset of a function by pyelftools."""
    with path.open("rb") as f:
        elf = ELFFile(f)
        table = elf.get_section_by_name(".symtab")
        address = table.get_symbol_by_name(name)[0]["st_value"]
        return next(iter(elf.address_offsets(address)))


def one(path: Path) -> elfscan.Found:
    """The result for OpenSSL's function."""
    result = elfscan.scan(path, [WANTED])
    assert result.status == ""
    return result.found[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every flavour, with symbols."""
    directory = tmp_path_factory.mktemp("elf")
    return {name: compile_c(directory / name, *flags) for name, flags in FLAVOURS.items()}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_by_symbol_and_by_reference_agree(built: dict[str, Path], flavour: str, tmp_path: Path) -> None:
    path = built[flavour]
    found = one(path)
    assert found.how == ("dynsym" if flavour == "shared" else "symtab")
    assert found.offset == true_offset(path)
    # the same, found only by its labels
    hidden = elfscan.scan(path, [elfscan.Wanted(("no_such_symbol",), FUNCTION.labels, FUNCTION.anchors)]).found[0]
    assert hidden.how == "xref"
    assert hidden.offset == found.offset
    assert {"CLIENT_RANDOM", "EARLY_EXPORTER_SECRET"} <= set(hidden.agree)


@pytest.mark.parametrize("flavour", [f for f in FLAVOURS if f != "shared"])
def test_stripped(built: dict[str, Path], flavour: str, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-s", "-o", str(stripped), str(built[flavour])], check=True)
    found = one(stripped)
    assert (found.how, found.offset) == ("xref", true_offset(built[flavour]))


def test_build_id_and_machine(built: dict[str, Path], tmp_path: Path) -> None:
    path = compile_c(tmp_path / "named", "-Wl,--build-id=0x0123456789abcdef")
    result = elfscan.scan(path, [WANTED])
    assert result.build_id == "0123456789abcdef"
    assert result.machine == os.uname().machine
    assert result.size == path.stat().st_size
    assert elfscan.build_id(path) == "0123456789abcdef"
    assert elfscan.build_id(__file__) == ""


def test_descriptor_is_left_alone(built: dict[str, Path]) -> None:
    with built["pie"].open("rb") as f:
        f.seek(7)
        assert elfscan.scan(f.fileno(), [WANTED]).found[0].how == "symtab"
        assert f.tell() == 7


def test_two_functions_of_one_file(built: dict[str, Path]) -> None:
    wanted = [WANTED, elfscan.Wanted(("finish",)), elfscan.Wanted(("not_there",))]
    found = elfscan.scan(built["pie"], wanted).found
    assert [f.how for f in found] == ["symtab", "symtab", ""]
    assert found[1].offset == true_offset(built["pie"], "finish")
    assert found[2].reason == "no symbol of that name"


def test_labels_of_a_reader_are_no_function(tmp_path: Path) -> None:
    """A program that reads key logs compares with the labels; the function that it calls is strcmp, imported."""
    source = r"""
    #include <string.h>
    int main(int argc, char **argv) {
        return strcmp(argv[0], "CLIENT_RANDOM") == 0 || strcmp(argv[0], "EARLY_EXPORTER_SECRET") == 0 ||
               strcmp(argv[argc - 1], "SERVER_TRAFFIC_SECRET_0") == 0;
    }
    """
    found = one(compile_c(tmp_path / "reader", "-O2", "-fno-builtin", source=source))
    assert found.how == ""
    assert "CLIENT_RANDOM" in found.evidence
    assert found.reason


def test_nothing_there() -> None:
    found = one(Path(shutil.which("true") or "/bin/true"))
    assert (found.how, found.evidence, found.reason) == ("", (), "no symbol, and 0 of its key-log labels")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(200), b"\0" * 5000])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    result = elfscan.scan(path, [WANTED])
    assert result.status
    assert result.found == ()


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert elfscan.scan(tmp_path / "fifo", [WANTED]).status == "no ELF file"
    assert elfscan.scan("/dev/zero", [WANTED]).status == "no ELF file"
    with pytest.raises(FileNotFoundError):
        elfscan.scan(tmp_path / "missing", [WANTED])
    assert elfscan.scan(99999, [WANTED]).status == "cannot be read: Bad file descriptor"


@pytest.mark.parametrize(
    ("names", "labels", "anchors", "register"),
    [
        (("x",), (), (), 6),
        (("good",), ("short",), (), 6),
        (("good",), ("x" * 63,), (), 6),
        (("good",), ("CLIENT_RANDOM",), ("OTHER_LABEL",), 6),
        (("good",), ("CLIENT_\0RANDOM",), (), 6),
        (("good",), tuple(f"LABEL_NUMBER_{i}" for i in range(33)), (), 6),
        (("good",), (), (), 16),
    ],
)
def test_what_cannot_be_searched(
    names: tuple[str, ...], labels: tuple[str, ...], anchors: tuple[str, ...], register: int
) -> None:
    with pytest.raises(ValueError, match=r"."):
        elfscan.Wanted(names, labels, anchors, register)


def test_too_much_at_once() -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        elfscan.scan("/bin/true", [WANTED] * 17)
    with pytest.raises(ValueError, match="1 to 16"):
        elfscan.scan("/bin/true", [])
    with pytest.raises(ValueError, match="at most 64"):
        elfscan.scan("/bin/true", [WANTED] * 9)
    with pytest.raises(TypeError):
        elfscan.scan("/bin/true", ["ssl_log_secret"])  # type: ignore[list-item]


def test_damaged_files(built: dict[str, Path]) -> None:
    """Headers, section headers and symbols of a real file, changed at random; and every short length."""
    seed = int(os.environ.get("AGENTSIGHT_SEED", random.randrange(1 << 32)))
    rnd = random.Random(seed)
    whole = built["no-pie"].read_bytes()
    sections = int.from_bytes(whole[0x28:0x30], "little")
    fd = os.memfd_create("damaged")
    try:
        for round_ in range(3000):
            data = bytearray(whole)
            for _ in range(rnd.randrange(1, 8)):
                at = rnd.choice((rnd.randrange(64 + 13 * 56), rnd.randrange(sections, len(whole)), rnd.randrange(len(whole))))
                data[at] = rnd.choice((0, 1, 0x7F, 0x80, 0xFF, rnd.randrange(256)))
            if round_ % 5 == 0:
                del data[rnd.randrange(len(data)) :]
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
            result = elfscan.scan(fd, [WANTED])
            assert bool(result.status) != bool(result.found), f"seed {seed}"
            for found in result.found:
                assert found.how or found.reason, f"seed {seed}"
                assert not found.how or found.offset < len(data), f"seed {seed}"
    finally:
        os.close(fd)


def test_other_threads_run_meanwhile(tmp_path: Path) -> None:
    """The GIL is free during a scan."""
    sparse = tmp_path / "sparse"
    program = compile_c(tmp_path / "p")
    data = bytearray(program.read_bytes())
    # the first PT_LOAD now reaches over 128 MiB of zeros
    for i in range(int.from_bytes(data[56:58], "little")):
        at = 64 + 56 * i
        if data[at] == 1:
            data[at + 32 : at + 48] = (128 << 20).to_bytes(8, "little") * 2
            break
    sparse.write_bytes(data)
    os.truncate(sparse, 129 << 20)
    started, done = threading.Event(), threading.Event()

    def search() -> None:
        started.set()
        elfscan.scan(sparse, [elfscan.Wanted(("no_such_symbol",), FUNCTION.labels, FUNCTION.anchors)])
        done.set()

    thread = threading.Thread(target=search)
    thread.start()
    started.wait()
    turns = 0
    while not done.is_set():
        turns += 1
    thread.join()
    assert turns > 100


def test_libssl_of_this_machine() -> None:
    """The distribution's stripped library: the place found has the call shape of the function, at a function's start."""
    path = next((p for d in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64") for p in Path(d).glob("libssl.so.3*")), None)
    if path is None:
        pytest.skip("no libssl.so.3 here")
    found = one(path)
    assert found.how in ("dynsym", "symtab", "xref")
    with path.open("rb") as f:
        starts = {
            entry.header["initial_location"] for entry in ELFFile(f).get_dwarf_info().EH_CFI_entries() if isinstance(entry, FDE)
        }
    assert found.address in starts


def test_symbols_kept_apart(tmp_path: Path) -> None:
    """A stripped file and the debug file of it, of another build, and no ELF file at all."""
    whole = compile_c(tmp_path / "whole", "-Wl,--build-id=0x0123456789abcdef")
    debug, stripped = tmp_path / "debug", tmp_path / "stripped"
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    subprocess.run(["strip", "-s", "-o", stripped, whole], check=True)
    names_only = elfscan.Wanted(FUNCTION.symbols)
    assert elfscan.scan(stripped, [names_only]).found[0].how == ""
    for other, how in ((debug, "debug"), (stripped, ""), (Path("/bin/true"), ""), (Path(__file__), "")):
        with other.open("rb") as f:
            found = elfscan.scan(stripped, [names_only], debug=f.fileno()).found[0]
        assert found.how == how
        assert not how or found.offset == true_offset(whole)

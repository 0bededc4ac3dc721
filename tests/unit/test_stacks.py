"""The TLS stacks' functions in real files: Go programs built here, this machine's GnuTLS, BoringSSL in Bun and in its programs.

Offsets in stripped files are those at which a probe saw the secrets of a handshake, equal to the key log of the server
(tests/kernel/test_stacks.py does that again for what runs here); in arm64 files, those whose code was read. Go's: its symbols.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import subjects
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from agentsight._native import elfscan
from agentsight.capture.discovery import Discovery, wanted_of
from agentsight.tls import STACKS

GO_SOURCE = Path(__file__).resolve().parent.parent / "clients" / "go_call.go"
GO_NAME = "crypto/tls.(*Config).writeKeyLog"
ALL = [(stack.name, wanted_of(function)) for stack in STACKS for function in stack.functions]
x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="the package is for x86-64")


def get(subject: Callable[..., Path], *arguments: str | Path, **more: str) -> Path:
    """A subject, or the test is skipped."""
    try:
        return subject(*arguments, **more)
    except subjects.UnavailableError as e:
        pytest.skip(str(e))


def search(source: Path | int) -> dict[str, elfscan.Found]:
    """What was found of each stack."""
    result = elfscan.scan(source, [wanted for _, wanted in ALL])
    assert result.status == ""
    return {name: found for (name, _), found in zip(ALL, result.found, strict=True)}


def places(source: Path | int) -> dict[str, tuple[str, int]]:
    """How and where, of the stacks that were found; of those that were not, none may seem to be there."""
    all_ = search(source)
    assert [name for name, found in all_.items() if not found.how and found.likely] == []
    return {name: (found.how, found.offset) for name, found in all_.items() if found.how}


def symbol_offset(path: Path, name: str) -> int:
    """By pyelftools."""
    with path.open("rb") as f:
        elf = ELFFile(f)
        address = elf.get_section_by_name(".symtab").get_symbol_by_name(name)[0]["st_value"]
        return next(iter(elf.address_offsets(address)))


def without(path: Path, what: str) -> int:
    """A copy in memory without its symbol table, or without all its section headers."""
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<Q", data, 0x28)
    (count,) = struct.unpack_from("<H", data, 0x3C)
    if what == "sections":
        data[0x28:0x30] = bytes(8)
        data[0x3C:0x40] = bytes(4)
    for i in range(count):
        if what == "symbols" and data[at + 64 * i + 4] == 2:
            data[at + 64 * i + 4] = 0
    fd = os.memfd_create("copy")
    os.write(fd, data)
    return fd


# ---- Go ----

PLAIN = ("-trimpath",)
PIE = ("-trimpath", "-buildmode=pie")
GO_VERSIONS = ("1.18.10", "1.19.13", "1.20.14", "1.21.13", "1.22.12", "1.23.12", "1.24.11", "1.25.5")


def check_go(flags: tuple[str, ...], *, sections: bool = True, **how: str) -> None:
    whole, stripped = get(subjects.go, GO_SOURCE, *flags, **how), get(subjects.go, GO_SOURCE, *flags, "-ldflags=-s -w", **how)
    offset = symbol_offset(whole, GO_NAME)
    assert places(whole) == {"go": ("symtab", offset)}
    assert places(stripped) == {"go": ("gopclntab", offset)}
    for what in ("symbols", "sections") if sections else ("symbols",):
        fd = without(whole, what)
        try:
            assert places(fd) == {"go": ("gopclntab", offset)}
        finally:
            os.close(fd)


@pytest.mark.parametrize("flags", [PLAIN, PIE], ids=["fixed", "pie"])
def test_go(flags: tuple[str, ...]) -> None:
    check_go(flags)


def test_go_for_arm64() -> None:
    check_go(PLAIN, GOARCH="arm64")


@pytest.mark.agents
@pytest.mark.parametrize("version", GO_VERSIONS)
def test_every_go(version: str) -> None:
    for flags in (PLAIN, PIE):
        check_go(flags, toolchain=f"go{version}")
    check_go(PLAIN, toolchain=f"go{version}", GOARCH="arm64")


@pytest.mark.agents
@pytest.mark.parametrize("version", ["local", *(f"go{v}" for v in GO_VERSIONS)])
@pytest.mark.parametrize("mode", ["exe", "pie"])
def test_go_linked_by_gcc(version: str, mode: str) -> None:
    """Go's code then begins somewhere inside .text."""
    path = get(
        subjects.go,
        GO_SOURCE,
        "-trimpath",
        f"-buildmode={mode}",
        "-ldflags=-linkmode=external",
        toolchain=version,
        CGO_ENABLED="1",
    )
    fd = without(path, "symbols")
    try:
        assert places(fd) == {"go": ("gopclntab", symbol_offset(path, GO_NAME))}
    finally:
        os.close(fd)


def test_go_without_tls(tmp_path: Path) -> None:
    source = tmp_path / "no_tls.go"
    source.write_text('package main\n\nfunc main() { println("no TLS") }\n')
    found = search(get(subjects.go, source, *PLAIN))["go"]
    assert (found.how, found.likely, found.reason) == ("", False, "its functions are not in this Go program")


def test_no_go_at_all() -> None:
    assert search(Path(shutil.which("true") or "/bin/true"))["go"].reason == "no Go program"


# ---- GnuTLS ----


def test_gnutls_of_this_machine() -> None:
    path = next((p for d in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64") for p in Path(d).glob("libgnutls.so.30")), None)
    if path is None:
        pytest.skip("no libgnutls.so.30 here")
    found = search(path)
    assert [name for name in found if found[name].how] == ["gnutls"]
    assert {"EARLY_EXPORTER_SECRET", "CLIENT_EARLY_TRAFFIC_SECRET"} <= set(found["gnutls"].agree)
    assert not any(f.likely for name, f in found.items() if name != "gnutls")
    with path.open("rb") as f:
        starts = {e.header["initial_location"] for e in ELFFile(f).get_dwarf_info().EH_CFI_entries() if isinstance(e, FDE)}
    assert found["gnutls"].address in starts


# ---- BoringSSL ----

SMALLEST_BUN = ("@oven/bun-linux-x64", "1.3.14", "bin/bun", 0x39FF4B0)
OTHERS = [
    ("@oven/bun-linux-x64", "1.0.36", "bin/bun", 0x36FFA10),
    ("@oven/bun-linux-x64", "1.1.45", "bin/bun", 0x5917030),
    ("@oven/bun-linux-x64", "1.2.23", "bin/bun", 0x5EDD020),
    ("@oven/bun-linux-x64", "1.4.5", "bin/bun", 0x23898E0),
    ("@oven/bun-linux-aarch64", "1.4.5", "bin/bun", 0x2130300),
    ("@anthropic-ai/claude-code-linux-x64", "2.1.110", "claude", 0x4FF3260),
    ("@anthropic-ai/claude-code-linux-x64", "2.1.150", "claude", 0x4161140),
    ("@anthropic-ai/claude-code-linux-x64", "2.1.197", "claude", 0x3209B00),
    ("@anthropic-ai/claude-code-linux-x64", "2.1.332", "claude", 0x32FCCB0),
    ("@anthropic-ai/claude-code-linux-arm64", "2.1.332", "claude", 0x2DC13D8),
    ("opencode-linux-x64", "1.18.34", "bin/opencode", 0x367C0F0),
]
EVERY_LABEL = 7  # that BoringSSL has
GRPC = "1.85.3"


def check_boringssl(package: str, version: str, file: str, offset: int) -> None:
    path = get(subjects.npm, package, version, file)
    assert places(path) == {"boringssl": ("xref", offset)}
    assert len(search(path)["boringssl"].agree) == EVERY_LABEL


def test_bun() -> None:
    check_boringssl(*SMALLEST_BUN)


@pytest.mark.agents
@pytest.mark.parametrize(("package", "version", "file", "offset"), OTHERS)
def test_what_bun_compiled(package: str, version: str, file: str, offset: int) -> None:
    check_boringssl(package, version, file, offset)


@x86_only
@pytest.mark.agents
def test_grpc_module() -> None:
    """In a shared object."""
    path = get(subjects.pip, "grpcio", GRPC, "grpc/_cython/cygrpc.*.so")
    assert set(places(path)) == {"boringssl"}
    assert len(search(path)["boringssl"].agree) == EVERY_LABEL


@x86_only
def test_running_bun_is_found() -> None:
    """By its process; nothing is said to be dark in it."""
    path = get(subjects.npm, *SMALLEST_BUN[:3])
    discovery = Discovery(STACKS, cache_dir=None)
    process = subprocess.Popen(
        [path, "-e", "console.log('ready'); setTimeout(() => {}, 60000)"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        ours = [t for t in discovery.process(process.pid) if t.display_path == str(path)]
        assert [(t.stack, t.how, t.offset) for t in ours] == [("boringssl", "xref", SMALLEST_BUN[3])]
        assert [d for d in discovery.dark if d.path == str(path)] == []
    finally:
        process.kill()
        process.communicate()
        discovery.close()


# ---- the table ----


def test_where_go_has_its_arguments() -> None:
    stack = next(s for s in STACKS if s.name == "go")
    # label, its length, secret, its length, first argument, client random: registers of bpf/agentsight.h
    x86 = stack.cookie(stack.functions[0], "x86_64")
    assert [x86 >> shift & 0xF for shift in range(8, 32, 4)] == [7, 3, 5, 8, 15, 0]
    arm64 = stack.cookie(stack.functions[0], "aarch64")  # x1, x2, x6, x7, none, x3
    assert [arm64 >> shift & 0xF for shift in range(8, 32, 4)] == [1, 2, 6, 7, 15, 3]
    c = next(s for s in STACKS if s.name == "boringssl")
    assert c.cookie(c.functions[0], "x86_64") == c.cookie(c.functions[0], "aarch64")

"""Discovery on real processes that map libraries compiled here; its cache; the table of stacks and its cookies."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import agentsight.tls
from agentsight.capture import hostfile
from agentsight.capture.discovery import Dark, Discovery, ProbeTarget
from agentsight.capture.scancache import FILE_NAME
from agentsight.errors import TargetError, UsageError
from agentsight.tls import STACKS, Arguments, KeylogFunction, Reg, TlsStack, select

SOURCE = r"""
#include <stdio.h>
#include <unistd.h>
__attribute__((noipa)) int ssl_log_secret(void *s, const char *label, const unsigned char *secret, size_t n) {
    return printf("%p %s %d %d\n", s, label, (int)n, secret[0]);
}
int finish(void *s, const unsigned char *secret) {
    return ssl_log_secret(s, "CLIENT_RANDOM", secret, 48) && ssl_log_secret(s, "EARLY_EXPORTER_SECRET", secret, 32);
}
int main(int argc, char **argv) {
    if (argc > 9)
        finish(argv, (const unsigned char *)argv[0]);
    write(1, "ready\n", 6);
    pause();
    return 0;
}
"""
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def compile_c(out: Path, *flags: str, source: str = SOURCE) -> Path:
    """A compiled file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-O2", "-x", "c", "-", "-o", str(out), *flags], input=source.encode(), check=True, timeout=120)
    return out


def library(out: Path, extra: str = "") -> Path:
    """A shared library with the function."""
    return compile_c(out, "-shared", "-fPIC", "-Wl,-Bsymbolic-functions", source=extra + SOURCE)


def offset_of(path: Path) -> int:
    """Where the function is, by pyelftools."""
    with path.open("rb") as f:
        elf = ELFFile(f)
        address = elf.get_section_by_name(".symtab").get_symbol_by_name("ssl_log_secret")[0]["st_value"]
        return next(iter(elf.address_offsets(address)))


class Running:
    """A process that has mapped some files; ended at exit."""

    def __init__(self, *libraries: Path, command: list[str] | None = None) -> None:
        code = "import ctypes, sys, time; [ctypes.CDLL(p) for p in sys.argv[1:]]; print('ready', flush=True); time.sleep(60)"
        line = command or [sys.executable, "-c", code, *map(str, libraries)]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.pid = self.process.pid

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def discovery() -> Iterator[Discovery]:
    """One without a cache on disk."""
    d = Discovery(STACKS, cache_dir=None)
    yield d
    d.close()


def same_file(target: ProbeTarget, path: Path) -> bool:
    st = os.stat(target.path)
    return os.path.samestat(st, path.stat()) and (target.dev, target.ino) == (st.st_dev, st.st_ino)


# ---- processes ----


def test_mapped_library(discovery: Discovery, tmp_path: Path) -> None:
    lib = library(tmp_path / "libssl.so.9")
    with Running(lib) as a, Running(lib) as b:
        targets = discovery.process(a.pid)
        ours = [t for t in targets if t.display_path == str(lib)]
        assert len(ours) == 1
        assert ours[0].stack == "openssl"
        assert ours[0].how == "dynsym"
        assert ours[0].offset == offset_of(lib)
        assert same_file(ours[0], lib)
        searched = discovery.counters.searched
        assert discovery.process(a.pid) == []
        assert discovery.process(b.pid) == []
        assert discovery.counters.searched == searched


def test_names_that_are_other_libraries(discovery: Discovery, tmp_path: Path) -> None:
    libs = [library(tmp_path / name) for name in ("libssl3.so", "libsslx.so", "xlibssl.so", "libssl.txt")]
    with Running(*libs) as p:
        assert [t for t in discovery.process(p.pid) if t.display_path.startswith(str(tmp_path))] == []


@pytest.mark.parametrize("name", ["libssl.so", "libssl.so.1.1", "libssl-81ffa89e.so.3", "libssl.so.9 (deleted)", "a b/libssl.so"])
def test_names_of_the_library(discovery: Discovery, tmp_path: Path, name: str) -> None:
    lib = library(tmp_path / name)
    with Running(lib) as p:
        found = [t for t in discovery.process(p.pid) if t.display_path.startswith(str(tmp_path))]
        assert len(found) == 1


@ROOT_ONLY
def test_deleted_and_replaced_while_in_use(discovery: Discovery, tmp_path: Path) -> None:
    lib = library(tmp_path / "libssl.so.9")
    offset = offset_of(lib)
    with Running(lib) as p:
        ino = lib.stat().st_ino
        other = library(tmp_path / "other", "int shift(int x) { return x * 77 % 13; }\n")
        other.rename(lib)
        targets = [t for t in discovery.process(p.pid) if t.display_path == str(lib)]
        assert [(t.ino, t.offset) for t in targets] == [(ino, offset)]
        with Running(lib) as q:  # the new one, at the same path
            targets = [t for t in discovery.process(q.pid) if t.display_path == str(lib)]
            assert [t.ino for t in targets] == [lib.stat().st_ino]


def test_program_with_a_static_copy(discovery: Discovery, tmp_path: Path) -> None:
    program = compile_c(tmp_path / "agent", "-static")
    stripped = tmp_path / "agent-stripped"
    subprocess.run(["strip", "-s", "-o", str(stripped), str(program)], check=True)
    with Running(command=[str(stripped)]) as p:
        targets = discovery.process(p.pid)
        assert [(t.how, t.offset, t.display_path) for t in targets] == [("xref", offset_of(program), str(stripped))]
        assert same_file(targets[0], stripped)


def test_small_programs_are_not_searched(discovery: Discovery, tmp_path: Path) -> None:
    program = compile_c(tmp_path / "small")
    with Running(command=[str(program)]) as p:
        assert discovery.process(p.pid) == []
        assert discovery.counters.searched == 0


def test_gone(discovery: Discovery) -> None:
    p = subprocess.Popen(["true"])
    p.wait()
    assert discovery.process(p.pid) == []
    assert discovery.process(2**22 + 1) == []


def test_known_process_is_quick(discovery: Discovery, tmp_path: Path) -> None:
    lib = library(tmp_path / "libssl.so.9")
    with Running(lib) as p:
        discovery.process(p.pid)
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            discovery.process(p.pid)
            times.append(time.perf_counter() - begin)
    assert min(times) < 0.005


@ROOT_ONLY
def test_open_in_the_root_of_a_process(tmp_path: Path) -> None:
    """Links of a container lead to the container's files, never to ours."""
    compile_c(tmp_path / "bin/agent", "-static")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"of the container")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "up").symlink_to("../../../../../../etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    with Running(command=[shutil.which("chroot") or "/usr/sbin/chroot", str(tmp_path), "/bin/agent"]) as p:
        for name in (b"/link", b"/up", b"/etc/passwd", b"etc/passwd"):
            fd = hostfile.open_in_root(p.pid, name)
            assert os.read(fd, 100) == b"of the container"
            os.close(fd)
        with pytest.raises(OSError, match="not a regular file"):
            hostfile.open_in_root(p.pid, b"/fifo")
        with pytest.raises(FileNotFoundError):
            hostfile.open_in_root(p.pid, b"/bin/sh")


# ---- files ----


def test_named_file(discovery: Discovery, tmp_path: Path) -> None:
    program = compile_c(tmp_path / "tool")
    targets = discovery.file(program)
    assert [(t.stack, t.offset) for t in targets] == [("openssl", offset_of(program))]
    assert discovery.file(str(program)) == []
    link = tmp_path / "link"
    link.symlink_to(program)
    assert discovery.file(link) == []
    assert discovery.file(__file__) == []


def test_named_file_that_cannot_be(discovery: Discovery, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="missing cannot be opened: No such file"):
        discovery.file(tmp_path / "missing")
    with pytest.raises(TargetError, match="not a regular file"):
        discovery.file(tmp_path)


def test_changed_file_is_searched_again(discovery: Discovery, tmp_path: Path) -> None:
    program = tmp_path / "tool"
    first = compile_c(tmp_path / "first")
    second = compile_c(tmp_path / "second", source="int shift[9]; int more(int x) { return shift[x] * 77; }\n" + SOURCE)
    assert offset_of(first) != offset_of(second)
    shutil.copyfile(first, program)
    assert [t.offset for t in discovery.file(program)] == [offset_of(first)]
    shutil.copyfile(second, program)
    assert [t.offset for t in discovery.file(program)] == [offset_of(second)]
    os.utime(program)  # the same content: the place is known
    assert discovery.file(program) == []


def test_dark(discovery: Discovery, tmp_path: Path) -> None:
    compile_c(tmp_path / "libssl.so.7", "-shared", "-fPIC", source="int unrelated(void) { return 1; }")
    with Running(tmp_path / "libssl.so.7") as p:
        for _ in range(2):
            assert [t for t in discovery.process(p.pid) if t.display_path.startswith(str(tmp_path))] == []
    reason = "no symbol, and 0 of its key-log labels"
    assert discovery.dark == [Dark(str(tmp_path / "libssl.so.7"), "openssl", reason, used=True)]


def test_dark_on_the_host_is_told_again_when_used(discovery: Discovery, tmp_path: Path) -> None:
    path = compile_c(tmp_path / "libssl.so.7", "-shared", "-fPIC", source="int unrelated(void) { return 1; }")
    with Running(path) as p:
        discovery.host()
        assert [d.used for d in discovery.dark if d.path == str(path)] == [False]
        discovery.process(p.pid)
        assert [d.used for d in discovery.dark if d.path == str(path)] == [False, True]


def test_paths_stay_open_until_closed(tmp_path: Path) -> None:
    discovery = Discovery(STACKS, cache_dir=None)
    target = discovery.file(compile_c(tmp_path / "tool"))[0]
    assert Path(target.path).read_bytes()[:4] == b"\x7fELF"
    discovery.close()
    assert not os.path.exists(target.path)


def test_no_stacks(tmp_path: Path) -> None:
    discovery = Discovery((), cache_dir=None)
    lib = library(tmp_path / "libssl.so.9")
    with Running(lib) as p:
        assert discovery.process(p.pid) == []
    assert discovery.host() == []


def test_host_finds_running_and_installed(discovery: Discovery, tmp_path: Path) -> None:
    lib = library(tmp_path / "libssl.so.9")
    with Running(lib):
        targets = discovery.host()
    assert str(lib) in [t.display_path for t in targets]
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    if "libssl.so.3 " in listed:
        assert any(Path(t.display_path).name == "libssl.so.3" for t in targets)
    assert len({(t.dev, t.ino, t.offset) for t in targets}) == len(targets)
    assert discovery.host() == []


def test_without_ldconfig(discovery: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsight.capture.discovery.shutil.which", lambda *args, **kwargs: None)
    found = {os.path.basename(os.path.realpath(t.display_path)) for t in discovery.host()}
    assert discovery.problems
    assert "ldconfig" in discovery.problems[0]
    if list(Path("/usr/lib").glob("*-linux-*/libssl.so.3")):
        assert "libssl.so.3" in found


def test_symbols_of_the_distribution(discovery: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels say that the stack is there, nothing shows where: then a separate debug file is asked."""
    source = SOURCE.replace(
        'return ssl_log_secret(s, "CLIENT_RANDOM", secret, 48) &&',
        'const char *l = *secret ? "CLIENT_RANDOM" : "x"; return ssl_log_secret(s, l, secret, 48) &&',
    )
    lib = compile_c(
        tmp_path / "libssl.so.9",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-O0",
        "-Wl,--build-id=0x0123456789abcdef",
        source=source,
    )
    debug = tmp_path / "01" / "23456789abcdef.debug"
    debug.parent.mkdir()
    offset = offset_of(lib)
    subprocess.run(["objcopy", "--only-keep-debug", lib, debug], check=True)
    subprocess.run(["strip", "-s", lib], check=True)
    assert discovery.file(lib) == []
    assert [d.stack for d in discovery.dark] == ["openssl or boringssl or gnutls"]  # a named file is taken as a program
    monkeypatch.setattr("agentsight.capture.discovery.DEBUG_DIR", str(tmp_path))
    again = Discovery(STACKS, cache_dir=None)
    assert [(t.how, t.offset) for t in again.file(lib)] == [("debug", offset)]
    assert again.dark == []
    again.close()


# ---- the cache on disk ----


def run_with_cache(cache: Path, program: Path) -> Discovery:
    discovery = Discovery(STACKS, cache_dir=cache)
    assert [t.offset for t in discovery.file(program)] == [offset_of(program)]
    discovery.close()
    return discovery


@ROOT_ONLY
def test_cache_on_disk(tmp_path: Path) -> None:
    program, cache = compile_c(tmp_path / "tool"), tmp_path / "cache"
    assert run_with_cache(cache, program).counters.searched == 1
    assert (cache / FILE_NAME).stat().st_mode & 0o777 == 0o600
    again = run_with_cache(cache, program)
    assert (again.counters.searched, again.counters.known) == (0, 1)
    os.utime(program, ns=(1, 1))  # dated back: its change time tells
    assert run_with_cache(cache, program).counters.searched == 1


@ROOT_ONLY
@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"version": 1}', "\0" * 99, "cut", "mode", "link", "build-id", "offset", "table"]
)
def test_cache_that_cannot_be_trusted(tmp_path: Path, damage: str) -> None:
    program, cache = compile_c(tmp_path / "tool"), tmp_path / "cache"
    run_with_cache(cache, program)
    file = cache / FILE_NAME
    good = json.loads(file.read_text())
    if damage == "cut":
        file.write_text(file.read_text()[:-20])
    elif damage == "mode":
        file.chmod(0o666)
    elif damage == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "build-id":
        good["entries"][0][1] = "00" * 20
        file.write_text(json.dumps(good))
    elif damage == "offset":
        good["entries"][0][3][0][2] = 1 << 40
        file.write_text(json.dumps(good))
    elif damage == "table":
        good["version"] = "of another table"
        file.write_text(json.dumps(good))
    else:
        file.write_text(damage)
    assert run_with_cache(cache, program).counters.searched == 1
    assert run_with_cache(cache, program).counters.searched == 0  # written anew
    assert not file.is_symlink()


@ROOT_ONLY
def test_cache_directory_of_others(tmp_path: Path) -> None:
    program, cache = compile_c(tmp_path / "tool"), tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    discovery = run_with_cache(cache, program)
    assert discovery.problems == [f"{cache} is not only ours to write"]
    assert list(cache.iterdir()) == []


# ---- the table ----


def test_cookie_says_where_the_arguments_are() -> None:
    stack = next(s for s in STACKS if s.name == "openssl")
    cookie = stack.cookie(stack.functions[0])
    assert cookie & 0xFF == stack.id
    # label, its length, secret, its length, first argument, client random, kind: bpf/agentsight.h
    assert [cookie >> shift & 0xF for shift in range(8, 36, 4)] == [1, 15, 2, 3, 0, 15, 0]
    go = Arguments(label=Reg.BX, label_len=Reg.CX, secret=Reg.R9, secret_len=Reg.R10, first=Reg.AX, random=Reg.DI)
    cookie = TlsStack("go", 0xFE, ()).cookie(KeylogFunction((), go, kind=1))
    assert [cookie >> shift & 0xF for shift in range(8, 36, 4)] == [7, 3, 5, 8, 6, 0, 1]
    assert cookie & 0xFF == 0xFE


def test_table_is_sound() -> None:
    assert len({s.id for s in STACKS}) == len({s.name for s in STACKS}) == len(STACKS)
    for stack in STACKS:
        for function in stack.functions:
            assert set(function.anchors) <= set(function.labels)
    assert agentsight.tls.name_of(1) == "openssl"
    assert agentsight.tls.name_of(200) == "tls-200"
    with pytest.raises(ValueError, match="cookie"):
        TlsStack("x", 256, ())


def test_select(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select() == STACKS
    assert "openssl" not in [s.name for s in select(without=["openssl"])]
    with pytest.raises(UsageError, match="no TLS stack 'nosuch'"):
        select(without=["nosuch"])
    with pytest.raises(UsageError, match="in the entry points"):
        select(extra=["mine"])
    mine = TlsStack("mine", 201, ())
    points = {"mine": mine, "wrong": 3, "taken": TlsStack("other", 1, ())}

    class Point:
        value = "package:NAME"

        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> object:
            return points[self.name]

    def entry_points(*, group: str, name: str) -> list[Point]:
        assert group == "agentsight.tls"
        return [Point(name)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert select(extra=["mine"]) == (*STACKS, mine)
    with pytest.raises(UsageError, match="is no TlsStack"):
        select(extra=["wrong"])
    with pytest.raises(UsageError, match="is taken"):
        select(extra=["taken"])

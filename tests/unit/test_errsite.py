"""Functions found by the errors that only they report: stand-ins of aws-lc's hkdf.c in several flavours, and real programs.

Invariant: what is found is the function's first byte, whatever the compiler did; where it is not found, that is told as likely.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
import subjects
from elftools.elf.elffile import ELFFile

from agentsight._native import elfscan
from agentsight.capture.discovery import Discovery, wanted_of
from agentsight.tls import STACKS, TlsStack

RUSTLS = next(stack for stack in STACKS if stack.name == "rustls")
WANTED = wanted_of(RUSTLS.functions[0])
PATH = "/aws-lc/crypto/fipsmodule/hkdf/hkdf.c"

# The shape of the real file: who calls whom, which errors are where, and an argument on the stack.
SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#ifdef TWICE
#define NAME(x) x##_2
#else
#define NAME(x) x
#endif
#ifdef APART
#define OWN __attribute__((noinline, noclone))
#else
#define OWN
#endif
typedef struct { int size, flags; } EVP_MD;
#ifdef TWICE
void ERR_put_error(int library, int unused, int reason, const char *file, unsigned line);
const void *HMAC(const EVP_MD *d, const void *key, size_t n, const uint8_t *in, size_t in_len, uint8_t *out, unsigned *len);
#else
__attribute__((noipa COLD)) void ERR_put_error(int library, int unused, int reason, const char *file, unsigned line) {
    printf("%d %d %d %s %u\n", library, unused, reason, file, line);
}
__attribute__((noipa)) const void *HMAC(const EVP_MD *d, const void *key, size_t n, const uint8_t *in, size_t in_len, uint8_t *out,
                                        unsigned *len) {
    memset(out, ((const uint8_t *)key)[0] ^ (in_len ? in[0] : 0), (size_t)d->size);
    return n > 1000 ? NULL : (*len = (unsigned)d->size, out);
}
#endif
#line 1 "FILE"
int NAME(HKDF_extract)(uint8_t *out, size_t *out_len, const EVP_MD *d, const uint8_t *in, size_t n, const uint8_t *salt, size_t salt_n) {
    unsigned len;
    if (d->flags & 4) {
        ERR_put_error(0x1f, 0, 0x65, __FILE__, __LINE__);
        return 0;
    }
    if (!HMAC(d, salt, salt_n, in, n, out, &len)) {
        ERR_put_error(0x1f, 0, 0x1c, __FILE__, __LINE__);
        return 0;
    }
    *out_len = len;
    return 1;
}
OWN int NAME(HKDF_expand)(uint8_t *out, size_t out_len, const EVP_MD *d, const uint8_t *prk, size_t prk_len, const uint8_t *info,
                      size_t info_len) {
    size_t size = (size_t)d->size, n, done = 0;
    uint8_t previous[64], input[256];
    unsigned len;
    int ret = 0;
    if (d->flags & 4) {
        ERR_put_error(0x1f, 0, 0x65, __FILE__, __LINE__);
        return 0;
    }
    n = (out_len + size - 1) / size;
    if (out_len + size < out_len || n > 255) {
        ERR_put_error(0x1f, 0, 0x64, __FILE__, __LINE__);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        size_t at = i ? size : 0, todo = size;
        memcpy(input, previous, at);
        memcpy(input + at, info, info_len);
        input[at + info_len] = (uint8_t)(i + 1);
        if (!HMAC(d, prk, prk_len, input, at + info_len + 1, previous, &len))
            goto out;
        if (todo > out_len - done)
            todo = out_len - done;
        memcpy(out + done, previous, todo);
        done += todo;
    }
    ret = 1;
out:
    if (!ret)
        ERR_put_error(0x1f, 0, 0x1c, __FILE__, __LINE__);
    return ret;
}
int NAME(HKDF)(uint8_t *out, size_t out_len, const EVP_MD *d, const uint8_t *secret, size_t n, const uint8_t *salt, size_t salt_n,
               const uint8_t *info, size_t info_len) {
    uint8_t prk[64];
    size_t prk_len;
    if (d->flags & 4) {
        ERR_put_error(0x1f, 0, 0x65, __FILE__, __LINE__);
        return 0;
    }
    return NAME(HKDF_extract)(prk, &prk_len, d, secret, n, salt, salt_n) && NAME(HKDF_expand)(out, out_len, d, prk, prk_len, info, info_len);
}
"""
MAIN = r"""
#include <stddef.h>
#include <stdint.h>
int HKDF(uint8_t *, size_t, const void *, const uint8_t *, size_t, const uint8_t *, size_t, const uint8_t *, size_t);
int HKDF_expand(uint8_t *, size_t, const void *, const uint8_t *, size_t, const uint8_t *, size_t);
#ifdef WITH_SECOND
int HKDF_expand_2(uint8_t *, size_t, const void *, const uint8_t *, size_t, const uint8_t *, size_t);
int second(uint8_t *out, const void *md, const uint8_t *in) { return HKDF_expand_2(out, 64, md, in, 32, in, 4); }
#endif
int main(int argc, char **argv) {
    int md[2] = {32, argc};
    uint8_t out[300], *in = (uint8_t *)argv[0];
#ifdef WITH_SECOND
    second(out, md, in);
#endif
    return HKDF(out, 64, md, in, 4, in, 4, in, 4) + HKDF_expand(out, 64, md, in, 32, in, 4);
}
"""
FLAVOURS = {
    "gcc-O2": ("gcc", "-O2"),
    "gcc-O1": ("gcc", "-O1"),
    "gcc-O0": ("gcc", "-O0"),
    "gcc-Os": ("gcc", "-Os"),
    "gcc-O3-cold": ("gcc", "-O3", "-DCOLD=,cold"),
    "gcc-no-unwind": ("gcc", "-O2", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    "gcc-no-pie": ("gcc", "-O2", "-fno-pie", "-no-pie"),
    "gcc-static-pie": ("gcc", "-O2", "-fPIE", "-static-pie"),
    "clang-O2": ("clang", "-O2"),
    "clang-O3": ("clang", "-O3"),
    "clang-Oz": ("clang", "-Oz"),
    "clang-Oz-no-unwind": ("clang", "-Oz", "-fno-asynchronous-unwind-tables"),
}


def build(
    directory: Path, compiler: str, *flags: str, file: str = f"/build/aws-lc-sys-0.38.0{PATH}", second: str = "", main: str = MAIN
) -> Path:
    """The stand-in as a program with symbols. `second`: defines for a second copy under other names."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    (directory / "hkdf.c").write_text(
        SOURCE.replace('FILE"', f'{file}"').replace("noipa", "noipa" if compiler == "gcc" else "noinline")
    )
    (directory / "main.c").write_text(main)
    cold = () if any(f.startswith("-DCOLD") for f in flags) else ("-DCOLD=",)
    objects = []
    for name, source, more in (
        ("hkdf", "hkdf.c", ()),
        ("second", "hkdf.c", ("-DTWICE",)),
        ("main", "main.c", ("-DWITH_SECOND",) if second else ()),
    ):
        if name == "second" and not second:
            continue
        compile_flags = [f for f in flags if f not in ("-no-pie", "-static-pie")]
        subprocess.run([compiler, *compile_flags, *cold, *more, "-w", "-c", source, "-o", f"{name}.o"], cwd=directory, check=True)
        objects.append(f"{name}.o")
    subprocess.run([compiler, *flags, *objects, "-o", "program"], cwd=directory, check=True)
    return directory / "program"


def true_offset(path: Path) -> int:
    with path.open("rb") as f:
        elf = ELFFile(f)
        address = elf.get_section_by_name(".symtab").get_symbol_by_name("HKDF_expand")[0]["st_value"]
        return next(iter(elf.address_offsets(address)))


def stripped(path: Path) -> Path:
    out = path.with_name("stripped")
    subprocess.run(["strip", "-s", "-o", out, path], check=True)
    return out


def one(path: Path) -> elfscan.Found:
    result = elfscan.scan(path, [WANTED])
    assert result.status == ""
    return result.found[0]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_stand_in(flavour: str, tmp_path: Path) -> None:
    path = build(tmp_path, *FLAVOURS[flavour], "-DAPART")
    found = one(stripped(path))
    assert (found.how, found.reason) == ("xref", "")
    assert found.offset == true_offset(path)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_never_wrong_where_it_is_inlined(flavour: str, tmp_path: Path) -> None:
    """A compiler may put a copy of it into its caller: then it is found, or told to be there and not found."""
    path = build(tmp_path, *FLAVOURS[flavour])
    found = one(stripped(path))
    if found.how:
        assert found.offset == true_offset(path)
    else:
        assert found.likely and "several" in found.reason


def test_the_cold_part_is_not_the_function(tmp_path: Path) -> None:
    """Its error site lies in a cold part of its own, with a frame of its own: the function is where the jump comes from."""
    path = build(tmp_path, *FLAVOURS["gcc-O3-cold"], "-DAPART")
    with path.open("rb") as f:
        cold = ELFFile(f).get_section_by_name(".symtab").get_symbol_by_name("HKDF_expand.cold")
    assert cold, "the compiler made none: the test tests nothing"
    assert one(stripped(path)).offset == true_offset(path)


def test_two_copies_are_no_answer(tmp_path: Path) -> None:
    found = one(build(tmp_path, "gcc", "-O2", "-DAPART", second="yes"))
    assert (found.how, found.likely) == ("", True)
    assert "several" in found.reason


def test_other_source_files(tmp_path: Path) -> None:
    """BoringSSL's file of that name has another path; a path alone, with no code that names it, is not enough."""
    found = one(build(tmp_path, "gcc", "-O2", file="/boringssl/crypto/hkdf/hkdf.c"))
    assert (found.how, found.likely) == ("", False)
    assert found.reason == "no symbol, and its source file is not named in it"
    main = f'#include <stdio.h>\nint main(int argc, char **argv) {{ return puts("{PATH}" + (argc > 5)); }}'
    (tmp_path / "main.c").write_text(main)
    subprocess.run(["gcc", "-O2", "main.c", "-o", "text"], cwd=tmp_path, check=True)
    found = one(tmp_path / "text")
    assert (found.how, found.likely) == ("", True)
    assert "no code" in found.reason


def test_damaged(tmp_path: Path) -> None:
    """Bytes of code and headers changed at random: no exception, and what is found lies inside the file."""
    whole = stripped(build(tmp_path, "gcc", "-O2", "-DAPART")).read_bytes()
    seed = random.Random(5)
    outcomes = set()
    for round_ in range(400):
        damaged = bytearray(whole)
        for _ in range(seed.choice((1, 10, 200))):
            damaged[seed.randrange(len(damaged))] = seed.randrange(256)
        if round_ % 5 == 0:
            del damaged[seed.randrange(len(damaged)) :]
        (tmp_path / "damaged").write_bytes(damaged)
        result = elfscan.scan(tmp_path / "damaged", [WANTED])
        for found in result.found:
            outcomes.add(found.how)
            assert not found.how or 0 < found.offset < len(damaged)
            assert found.how or found.reason
    assert outcomes == {"", "xref"}


def test_wanted_is_checked() -> None:
    with pytest.raises(ValueError, match="cannot be searched for"):
        elfscan.Wanted((), file="short")
    with pytest.raises(ValueError, match="cannot be searched for"):
        elfscan.Wanted((), file="x" * 64)


UV = ("pip", "uv", "0.13.9", "uv-*/scripts/uv")
CODEX = ("npm", "@openai/codex", "0.169.0-linux-x64", "vendor/x86_64-unknown-linux-musl/bin/codex")
DENO = ("npm", "@deno/linux-x64-glibc", "2.9.6", "deno")


# Offsets with which the connections of these very files were opened byte for byte.
@pytest.mark.parametrize(
    ("subject", "offset"),
    [
        pytest.param(UV, 0x9FA5D0, id="uv"),
        pytest.param(CODEX, 0x11278980, id="codex", marks=pytest.mark.agents),
        pytest.param(DENO, 0x584CA13, id="deno", marks=pytest.mark.agents),
    ],
)
def test_real(subject: tuple[str, ...], offset: int) -> None:
    assert one(getattr(subjects, subject[0])(*subject[1:])).offset == offset


@pytest.mark.agents
def test_a_file_with_two_stacks_gets_a_probe_on_each() -> None:
    path = subjects.npm(*CODEX[1:])
    discovery = Discovery(STACKS, cache_dir=None)
    targets = {t.stack: t for t in discovery.file(str(path))}
    assert set(targets) == {"openssl", "rustls"}
    assert not discovery.dark
    assert [targets["rustls"].cookie >> 32 & 0xF, targets["openssl"].cookie >> 32 & 0xF] == [1, 0]


def test_arguments() -> None:
    """The cookie says where the C ABI puts the arguments: info sixth, key fourth, its length fifth; on arm64 likewise."""
    stack: TlsStack = RUSTLS
    cookie = stack.cookie(stack.functions[0])
    assert cookie == stack.cookie(stack.functions[0], "aarch64")
    assert [cookie >> shift & 0xF for shift in (8, 12, 16, 20, 24, 28, 32)] == [5, 15, 3, 4, 15, 15, 1]

"""The package as installed: what is in it, what it exports and needs, and that the set-up and the build explain themselves."""

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import agentsight
from agentsight import _native

ROOT = Path(__file__).resolve().parents[2]
NATIVE = Path(_native.__file__).parent
EXTENSIONS = {p.name.split(".")[0]: p for p in NATIVE.glob("*.so")}
ALL = {p.stem for p in (ROOT / "native").glob("*.pyx")}


def run(*argv: object, **kw: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=300, **kw)  # type: ignore[call-overload]


def test_version_is_that_of_the_distribution() -> None:
    assert agentsight.__version__ == version("agentsight")
    assert agentsight.__version__[0].isdigit()
    assert agentsight.__version__ != "0+unknown"


def test_import_is_light() -> None:
    code = "import sys, agentsight; print(*[m for m in sys.modules if m.startswith(('agentsight.', 'msgspec', 'click', 'rich'))])"
    assert run(sys.executable, "-c", code, cwd="/").stdout.strip() == ""


def test_public_names_exist() -> None:
    assert set(agentsight.__all__) == {*agentsight._PUBLIC, "__version__"}
    for name in agentsight._PUBLIC:
        assert getattr(agentsight, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        agentsight.no_such_name  # noqa: B018


def test_every_extension_is_there_with_its_stub() -> None:
    assert {"ringbuf", "httpparse", "elfscan"} <= ALL
    assert set(EXTENSIONS) == ALL
    assert {p.stem for p in NATIVE.glob("*.pyi")} >= ALL


@pytest.mark.parametrize("name", sorted(ALL))
def test_an_extension_exports_its_init_function_only(name: str) -> None:
    with EXTENSIONS[name].open("rb") as f:
        symbols = ELFFile(f).get_section_by_name(".dynsym").iter_symbols()
        defined = [s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"]
    assert defined == [f"PyInit_{name}"]


def test_libbpf_is_inside_and_only_ringbuf_needs_libelf() -> None:
    needed = {}
    for name, path in EXTENSIONS.items():
        with path.open("rb") as f:
            tags = ELFFile(f).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
            needed[name] = {t.needed.split(".so")[0] for t in tags}
    assert {n for n, libs in needed.items() if "libelf" in libs} == {"ringbuf"}
    assert not any("libbpf" in libs for libs in needed.values())
    assert {"libcrypto", "libz", "libbrotlidec", "libzstd"} <= needed["httpparse"]


def test_bpf_object_has_types_and_no_debug_information() -> None:
    with (NATIVE / "agentsight.bpf.o").open("rb") as f:
        elf = ELFFile(f)
        assert elf["e_machine"] == "EM_BPF"
        names = {s.name for s in elf.iter_sections()}
        assert {".BTF", ".BTF.ext", ".maps", "license"} <= names
        assert not [n for n in names if n.startswith(".debug")]
        assert elf.get_section_by_name("license").data() == b"Dual BSD/GPL\0"


def test_wheel_carries_licences_and_no_sources() -> None:
    files = [str(f) for f in distribution("agentsight").files or ()]
    assert any(f.endswith("licenses/LICENSE") for f in files)
    assert any(f.endswith("libbpf/LICENSE.BSD-2-Clause") for f in files)
    assert "agentsight/py.typed" in files
    assert [f for f in files if f.endswith((".c", ".h", ".pyx", ".pxd"))] == []
    assert {f.split("/")[0] for f in files if not f.startswith("..")} - {"agentsight"} == {
        f"agentsight-{agentsight.__version__}.dist-info"
    }


def test_a_tree_that_was_not_built_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "agentsight", tmp_path / "agentsight", ignore=shutil.ignore_patterns("__pycache__"))
    done = run(sys.executable, "-c", "import agentsight._native", cwd=tmp_path)
    assert done.returncode == 1
    assert "make build" in done.stderr.splitlines()[-1]


def test_build_without_libbpf_names_the_command(tmp_path: Path) -> None:
    done = run("cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DAGENTSIGHT_LIBBPF_DIR=" + str(tmp_path / "none"))
    assert done.returncode != 0
    assert "Run: scripts/setup.sh" in " ".join(done.stderr.split())


def test_set_up_again_does_nothing_and_needs_no_network() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    done = run("unshare", "--net", ROOT / "scripts" / "setup.sh")
    assert (done.returncode, done.stderr) == (0, "setup: all there\n")


def test_sdist_has_every_source_and_nothing_fetched(tmp_path: Path) -> None:
    listed = run("git", "-C", ROOT, "ls-files")
    if listed.returncode != 0:
        pytest.skip("no git checkout: " + listed.stderr.strip())
    code = f"import scikit_build_core.build as b; print(b.build_sdist({str(tmp_path)!r}))"
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        inside = {m.name.split("/", 1)[1] for m in tar.getmembers() if m.isfile()}
    left_out = (".ci/", ".github/")
    wanted = {f for f in listed.stdout.splitlines() if (ROOT / f).is_file() and not f.startswith(left_out)}
    assert wanted - inside == set()
    assert not [f for f in inside if f.startswith((".cache", ".venv", "build/"))]
    if (ROOT / "native/libbpf/src/libbpf.c").exists():
        assert "native/libbpf/src/libbpf.c" in inside

"""Small programs of the other stacks: wget and git (GnuTLS), Go stripped, curl (OpenSSL), against the model server's journal."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import subjects
from agents.harness import compare, island, recorded, subject
from kernel.harness import CLIENTS

pytestmark = [pytest.mark.agents, pytest.mark.kernel]


def linked(program: Path, name: str) -> Path:
    """The shared library of that name which a program is linked with."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"=> (\S*/{name}\S*)", listed)
    if found is None:
        pytest.skip(f"{program.name} is not linked with {name}")
    return Path(found[1])


def installed(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return Path(path)


def version_of(*words: str | Path) -> str:
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+[.\d]*", text)
    assert found, text
    return found[0]


def test_wget(tmp_path: Path) -> None:
    program = installed("wget")
    library = linked(program, "libgnutls")
    with island(tmp_path) as place:
        words = (program, "-q", "-O", "/dev/null", f"--ca-certificate={place.server.ca}", f"{place.server.url}/bytes/300000")
        capture, journal, _ = recorded(place, tmp_path, place.command(*words))
        assert compare(capture, journal, agent="wget", version=version_of(program, "--version"), file=library) > 300_000


def test_git(tmp_path: Path) -> None:
    program = installed("git")
    core = subprocess.run([program, "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    curl_library = linked(Path(core) / "git-remote-http", "libcurl")
    library = linked(curl_library, "libgnutls")
    with island(tmp_path) as place:
        ask = f"{program} ls-remote {place.server.url}/x.git; true"
        words = place.command("sh", "-c", ask, GIT_SSL_CAINFO=str(place.server.ca), GIT_TERMINAL_PROMPT="0")
        capture, journal, _ = recorded(place, tmp_path, words)
        compare(capture, journal, agent="git", version=version_of(program, "--version"), file=library)


def test_curl(tmp_path: Path) -> None:
    program = installed("curl")
    library = linked(linked(program, "libcurl"), "libssl")
    with island(tmp_path) as place:
        words = (program, "-sS", "--cacert", place.server.ca, "-o", "/dev/null", f"{place.server.url}/bytes/300000")
        capture, journal, _ = recorded(place, tmp_path, place.command(*words))
        assert compare(capture, journal, agent="curl", version=version_of(program, "--version"), file=library) > 300_000


@pytest.mark.parametrize("toolchain", ["local", "go1.18.10", "go1.21.13", "go1.25.5"])
def test_go(toolchain: str, tmp_path: Path) -> None:
    program = subject(subjects.go, CLIENTS / "go_call.go", "-trimpath", "-ldflags=-s -w", toolchain=toolchain)
    version = toolchain.removeprefix("go")
    if toolchain == "local":
        version = version_of("go", "env", "GOVERSION")
    with island(tmp_path) as place:
        capture, journal, _ = recorded(place, tmp_path, place.command(program, f"localhost:{place.server.port}"))
        compare(capture, journal, agent="Go, stripped", version=version, file=program)

"""Real programs that tests look at: fetched when first asked for, kept in `.cache/subjects` (git ignores it).

Each function gives the path of a file, or raises `UnavailableError` with one line why not: the tool is not installed, or the
registry cannot be reached. Nothing that is fetched runs while it is fetched (no install scripts).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "subjects"
TIMEOUT = 900  # seconds for a fetch or a build


class UnavailableError(Exception):
    """A subject that this machine cannot have now."""


def npm(package: str, version: str, file: str) -> Path:
    """A file of an npm package, by its path inside the package."""

    def fetch(directory: Path) -> None:
        _run(directory, "npm", "pack", "--silent", "--ignore-scripts", f"{package}@{version}")
        archive = next(directory.glob("*.tgz"))
        _run(directory, "tar", "-xzf", archive.name)
        archive.unlink()

    return _cached(f"npm/{package.replace('@', '').replace('/', '-')}-{version}", f"package/{file}", fetch)


def pip(package: str, version: str, pattern: str) -> Path:
    """The one file of a wheel for this machine that matches a pattern."""

    def fetch(directory: Path) -> None:
        _run(directory, "python3", "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", f"{package}=={version}")
        wheel = next(directory.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(directory)
        wheel.unlink()

    return _cached(f"pip/{package}-{version}", pattern, fetch)


def go(source: Path, *flags: str, toolchain: str = "local", **environment: str) -> Path:
    """A Go program of one file, built with these flags; `toolchain` as in GOTOOLCHAIN (``go1.21.13``)."""
    how = "_".join((toolchain, *flags, *(f"{k}-{v}" for k, v in sorted(environment.items())))).replace(" ", "").replace("=", "")

    def build(directory: Path) -> None:
        more = {"GOTOOLCHAIN": toolchain, "GOFLAGS": "", "CGO_ENABLED": "0", "GOWORK": "off", **environment}
        shutil.copy(source, directory / "main.go")
        _run(directory, "go", "build", *flags, "-o", "program", "main.go", **more)

    if toolchain == "local":
        how = f"{_installed_go()}{how}"
    return _cached(f"go/{source.stem}-{how}", "program", build)


def _installed_go() -> str:
    return _run(Path("/"), "go", "env", "GOVERSION", GOTOOLCHAIN="local").strip()


def _run(directory: Path, *command: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as e:
        raise UnavailableError(f"{command[0]}: {e}") from None
    if done.returncode:
        raise UnavailableError(f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def _cached(name: str, pattern: str, make: Callable[[Path], None]) -> Path:
    """The file in the subject's directory, which is made whole or not at all."""
    directory = CACHE / name
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            make(made)
            try:
                made.rename(directory)
            except OSError:  # somebody else was faster
                if not directory.exists():
                    raise
    path = next(directory.glob(pattern), None)
    if path is None:
        raise UnavailableError(f"{name} has no {pattern}")
    path.chmod(0o755)
    return path

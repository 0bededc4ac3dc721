"""Settings of every test: which package is under test, and what needs root.

The tests run against the installed package (`make build`), never against the source tree, whose compiled part is missing.
Tests in tests/kernel load eBPF programs and are skipped, with the reason, where that is impossible.
"""

import os
import platform
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def why_no_kernel_tests() -> str | None:
    """One line why eBPF programs cannot be loaded here; None where they can be."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        return "the kernel has no BTF (/sys/kernel/btf/vmlinux)"
    return None


def pytest_configure(config: pytest.Config) -> None:
    import agentsight

    if Path(agentsight.__file__).resolve().is_relative_to(ROOT / "agentsight"):
        raise pytest.UsageError("the source tree is first on the path: start with `pytest`, not with `python -m pytest`")
    import agentsight._native


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests start in an empty directory: from here, `python -c` and `python -m` would take the source tree."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


def pytest_report_header() -> list[str]:
    import agentsight

    return [f"agentsight {agentsight.__version__}, Linux {platform.release()}; kernel tests: {why_no_kernel_tests() or 'yes'}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = why_no_kernel_tests()
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "kernel"):
            item.add_marker("kernel")
        if why and item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason=why))

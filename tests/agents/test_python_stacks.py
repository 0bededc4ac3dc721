"""The OpenSSLs that Python programs bring or find: the system's, and a wheel's own copy (1.1.1, old and renamed)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import subjects
from agents.harness import compare, how_found, inside, island, llm_calls, recorded, row, subject
from agents.truth import assert_calls_equal, calls
from kernel.harness import CLIENTS, data, flows, record, replay

pytestmark = [pytest.mark.agents, pytest.mark.kernel]
WHEEL = "psycopg2-binary"
WHEEL_VERSIONS = ["2.9.10", "2.9.11"]


def library_of(extension: Path, name: str) -> Path:
    """The library of that name that the dynamic linker takes for an extension module."""
    listed = subprocess.run(["ldd", extension], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"=> (\S*/{name}\S*)", listed)
    if found is None:
        pytest.skip(f"{extension.name} is not linked with a shared {name}")
    return Path(found[1])


def openssl_version(library: Path) -> str:
    """The version that an OpenSSL library, or the libcrypto beside it, tells of itself."""
    for file in (library, *library.parent.glob(library.name.replace("libssl", "libcrypto").partition("-")[0] + "*")):
        found = re.search(rb"OpenSSL (\d+\.\d+\.\d+[a-z]?)", file.read_bytes())
        if found:
            return found[1].decode()
    return "unknown"


@pytest.mark.parametrize("client", ["httpx", "urllib"])
def test_system_openssl(client: str, tmp_path: Path) -> None:
    import _ssl

    library = library_of(Path(_ssl.__file__), "libssl")
    with island(tmp_path) as place:
        words = (sys.executable, CLIENTS / f"{client}_call.py", place.server.url)
        capture, journal, _ = recorded(place, tmp_path, place.command(*words))
        version = f"{sys.version_info.major}.{sys.version_info.minor}, OpenSSL {openssl_version(library)}"
        compare(capture, journal, agent=f"Python, {client}", version=version, file=library)
        true = calls(journal)
    assert_calls_equal(llm_calls(capture), true)


@pytest.mark.parametrize("wait", [0, 1.5], ids=["at once", "later"])
@pytest.mark.parametrize("version", WHEEL_VERSIONS)
def test_wheel_with_its_own_openssl(version: str, wait: float, tmp_path: Path) -> None:
    """psycopg2-binary: a libssl under a name of its own, loaded after the start; TLS begins in the middle of the connection.

    A program that connects the moment it has loaded the library may be faster than the probe: then every byte is counted as dark.
    """
    library = subject(subjects.pip, WHEEL, version, "psycopg2_binary.libs/libssl*")
    packages = library.parent.parent
    connect = (
        "import psycopg2, sys, time\n"
        "time.sleep(float(sys.argv[2]))\n"
        "try: psycopg2.connect(host='127.0.0.1', port=int(sys.argv[1]), user='somebody', dbname='x', sslmode='require')\n"
        "except psycopg2.OperationalError as e: print(e)\n"
    )
    server = Path(__file__).with_name("postgres.py")
    with island(tmp_path) as place:
        certificate = place.server.directory / "server.pem"
        with inside(place.namespace):
            database = subprocess.Popen([sys.executable, server, certificate, tmp_path], stdout=subprocess.PIPE, text=True)
        try:
            assert database.stdout is not None
            port = database.stdout.readline().split()[1]
            command = place.command(sys.executable, "-c", connect, port, str(wait), PYTHONPATH=str(packages))
            printed = record(tmp_path / "capture", command)
            assert database.wait(20) == 0
        finally:
            database.kill()
            database.communicate()
    assert "no user is let in here" in printed, printed
    stack, method = how_found(library)
    raw = replay(tmp_path / "capture", "--ssl-http", "false")
    flow = flows(raw).get(int((tmp_path / "peer").read_text()))
    true = ((tmp_path / "c2s").read_bytes(), (tmp_path / "s2c").read_bytes())
    got = (flow.c2s, flow.s2c) if flow else (b"", b"")
    opened = sum(len(a) for a, b in zip(got, true, strict=True) if b.startswith(a))
    (account,) = [c for c in data(raw, "connection") if c["protocol"] == "tls"]
    assert account["other"] == 8 + 1 and account["missing"] == 0, account
    assert b"somebody" in true[0]
    if wait or account["tls_opened"]:
        told = f"{version}, OpenSSL {openssl_version(library)}"
        row(WHEEL, told, stack=stack, method=method, connections=1, opened=opened, journal=sum(map(len, true)))
        assert got == true
        assert account["tls_not_opened"] == 0, account
    else:
        assert got == (b"", b"")
        assert account["reasons"] == {"no-secret": account["tls_not_opened"]}
        assert account["tls_not_opened"] > sum(map(len, true))


def test_standalone_python() -> None:
    pytest.skip("the standalone builds that uv installs are not in a package registry")

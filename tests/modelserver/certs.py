"""A certificate authority of the model server's own, made with the `openssl` program (so that no Python package is needed).

Out: in a directory `ca.pem` (what clients must trust) and `server.pem` (private key, leaf and CA). The leaf is CA:FALSE, which
rustls insists on, with SAN localhost, 127.0.0.1 and ::1. The key usages are what strict checkers (Python 3.13) ask for.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_CONFIG = """\
[req]
prompt = no
distinguished_name = name
[name]
CN = agentsight test {what}
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def _openssl(directory: Path, *arguments: str) -> None:
    command = ["openssl", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def make(directory: Path, key: str = "ec") -> None:
    """Write `ca.pem` and `server.pem` into `directory`. `key` is the leaf's kind: `ec` (P-256) or `rsa` (2048 bits).

    RuntimeError with openssl's own words when it fails; FileNotFoundError without the program.
    """
    new_key = {"ec": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "rsa": ("-newkey", "rsa:2048")}
    for what in ("ca", "server"):
        (directory / f"{what}.cnf").write_text(_CONFIG.format(what=what))
    common = ("-nodes", "-sha256")
    _openssl(
        directory, "req", "-x509", *common, *new_key["ec"], "-days", "30", "-config", "ca.cnf", "-extensions", "ca",
        "-keyout", "ca.key", "-out", "ca.pem",
    )  # fmt: skip
    _openssl(
        directory,
        "req",
        *common,
        *new_key[key],
        "-config",
        "server.cnf",
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
    )
    _openssl(
        directory, "x509", "-req", "-sha256", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "30",
        "-set_serial", "2", "-extfile", "server.cnf", "-extensions", "leaf", "-out", "leaf.pem",
    )  # fmt: skip
    whole = b"".join((directory / name).read_bytes() for name in ("server.key", "leaf.pem", "ca.pem"))
    (directory / "server.pem").touch(0o600)
    (directory / "server.pem").write_bytes(whole)
    for name in ("ca.key", "ca.cnf", "server.key", "server.cnf", "server.csr", "leaf.pem"):
        (directory / name).unlink()

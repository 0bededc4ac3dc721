"""`python -m tests.modelserver --dir DIR`: the scripted model server as a process of its own.

Writes DIR/ca.pem (TLS), DIR/port and DIR/journal/; prints `ready PORT` when it listens. Ends, with 0, on SIGTERM, SIGINT, or with
--stdin when its standard input closes (so that it cannot outlive the test that started it).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

_VERSIONS = ("1.2", "1.3")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="modelserver", description="A scripted, journalling model server on loopback.")
    parser.add_argument("--dir", type=Path, required=True, help="for ca.pem, port and journal/")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="HTTP without TLS")
    parser.add_argument("--tls-min", choices=_VERSIONS, default="1.2")
    parser.add_argument("--tls-max", choices=_VERSIONS, default="1.3")
    parser.add_argument("--ciphersuites", help="TLS 1.3 suites, for example TLS_CHACHA20_POLY1305_SHA256")
    parser.add_argument("--ciphers", help="TLS 1.2 ciphers, in OpenSSL's words")
    parser.add_argument("--no-tickets", action="store_true", help="no session tickets, so no resumption")
    parser.add_argument("--keylog", action="store_true", help="write the secrets to DIR/keylog.txt")
    parser.add_argument("--key", choices=("ec", "rsa"), default="ec", help="kind of the certificate's key")
    parser.add_argument("--threads", type=int, default=256, help="connections served at once")
    parser.add_argument("--stdin", action="store_true", help="end when standard input closes")
    return parser.parse_args()


def _with_suites(directory: Path, suites: str) -> None:
    """Start this process anew with an OpenSSL configuration: Python before 3.15 cannot set TLS 1.3 suites by itself."""
    path = directory / "openssl.cnf"
    if os.environ.get("OPENSSL_CONF") == str(path):
        return
    path.write_text(
        f"openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = default\n[default]\nCiphersuites = {suites}\n"
    )
    os.environ["OPENSSL_CONF"] = str(path)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _stop(*_: object) -> NoReturn:
    os._exit(0)  # the journal is unbuffered: nothing is lost


def _watch_stdin() -> None:
    while os.read(0, 1024):
        pass
    _stop()


def main() -> None:
    """Serve until told to stop."""
    options = _arguments()
    directory: Path = options.dir.resolve()
    (directory / "journal").mkdir(parents=True, exist_ok=True)
    if options.ciphersuites:
        _with_suites(directory, options.ciphersuites)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)

    import ssl  # after the configuration is in place

    from . import certs
    from .server import Server

    context = None
    if not options.plain:
        certs.make(directory, options.key)
        versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.pem")
        context.minimum_version, context.maximum_version = (
            versions[options.tls_min],
            versions[options.tls_max],
        )
        context.set_alpn_protocols(["http/1.1"])
        if options.ciphers:
            context.set_ciphers(options.ciphers)
        if options.no_tickets:
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        if options.keylog:
            context.keylog_filename = str(directory / "keylog.txt")
    server = Server((options.host, options.port), directory / "journal", context, options.threads)
    (directory / "port").write_text(f"{server.port}\n")
    print(f"ready {server.port}", flush=True)
    if options.stdin:
        threading.Thread(target=_watch_stdin, daemon=True).start()
    server.serve()


main()

"""OpenSSL 1.1.1 and 3, shared, or static as in node: ``ssl_log_secret(ssl, label, secret, secret_len)`` in ssl/ssl_lib.c.

It is called for each secret whether or not a key log is wanted. Distributions strip it from libssl; node exports it. Of the
TLS 1.3 labels only EARLY_EXPORTER_SECRET and EXPORTER_SECRET are loaded where it is called (ssl/tls13_enc.c), the others go
through a variable; CLIENT_RANDOM is TLS 1.2's master secret.

Libraries: the usual names, those of Python wheels (``libssl-81ffa89e.so.3``), and the modules of Python's ``cryptography``, which
hold a static copy (pyOpenSSL uses it). Not matched: ``libssl3.so``, which is NSS.
"""

from __future__ import annotations

from agentsight.tls.stack import LABELS, Arguments, KeylogFunction, Reg, TlsStack

OPENSSL = TlsStack(
    name="openssl",
    title="OpenSSL",
    id=1,
    libraries=("libssl.so", "libssl.so.*", "libssl-*.so*", "_rust.abi3.so", "_openssl.abi3.so"),
    executables=True,
    commands=("node", "nodejs"),
    functions=(
        KeylogFunction(
            symbols=("ssl_log_secret",),
            arguments=Arguments(label=Reg.SI, secret=Reg.DX, secret_len=Reg.CX),
            labels=LABELS,
            anchors=("CLIENT_RANDOM", "EARLY_EXPORTER_SECRET"),
            never=("CLIENT_EARLY_TRAFFIC_SECRET", "CLIENT_TRAFFIC_SECRET_0"),
        ),
    ),
)

"""BoringSSL, static and stripped: ``bssl::ssl_log_secret(ssl, label, Span<const uint8_t> secret)`` in ssl/ssl_lib.cc.

The span is passed as pointer and length in two registers, so it is entered like OpenSSL's function of that name. Called for each
secret whether or not a key log is wanted, and every label is loaded where it is called; there is no early exporter secret.

Where it is: every program that Bun compiled (Claude Code, opencode), Bun itself, gRPC's Python module.
"""

from __future__ import annotations

from agentsight.tls.stack import LABELS, Arguments, KeylogFunction, Reg, TlsStack

BORINGSSL = TlsStack(
    name="boringssl",
    title="BoringSSL (Bun, Claude Code)",
    id=2,
    libraries=("cygrpc.*.so",),
    executables=True,
    commands=("bun", "claude", "opencode"),
    functions=(
        KeylogFunction(
            symbols=("_ZN4bssl14ssl_log_secretEPK6ssl_stPKcNS_4SpanIKhEE",),
            arguments=Arguments(label=Reg.SI, secret=Reg.DX, secret_len=Reg.CX),
            labels=LABELS,
            anchors=("CLIENT_RANDOM", "EXPORTER_SECRET"),
            require=("CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"),
            never=("EARLY_EXPORTER_SECRET",),
        ),
    ),
)

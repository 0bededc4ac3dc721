"""rustls on aws-lc, static and stripped: aws-lc's C function ``HKDF_expand(out, out_len, digest, prk, prk_len, info, info_len)``.

rustls calls no key-log function that one could find; but each record key of TLS 1.3 is expanded from its traffic secret (RFC 8446
7.3), of either direction, phase and generation, by this C function. The kernel program passes over all other derivations, QUIC's
among them, and the tag of the first record says which direction the secret is of. TLS 1.2 does not come here.

The function alone reports HKDF_R_OUTPUT_TOO_LARGE (100) in its source file. Its symbol has another name in each version of aws-lc
(``aws_lc_0_38_0_HKDF_expand``), so it is looked for by that error even where symbols are.

Where it is: Codex, uv, deno, and the Rust programs that use reqwest or hyper with rustls's default provider (rustls 0.23 on).
"""

from __future__ import annotations

from agentsight.tls.stack import Arguments, KeylogFunction, Reg, TlsStack

EXPAND = 1  # AS_PROBE_EXPAND in bpf/agentsight.h

RUSTLS = TlsStack(
    name="rustls",
    id=5,
    libraries=("runtime.node",),  # Copilot's: OpenSSL beside it
    executables=True,
    commands=("codex", "uv", "deno"),
    functions=(
        KeylogFunction(
            symbols=(),
            # the "label" is the info; nothing groups a connection's secrets
            arguments=Arguments(label=Reg.R9, secret=Reg.CX, secret_len=Reg.R8, first=Reg.NONE),
            kind=EXPAND,
            source_file="/aws-lc/crypto/fipsmodule/hkdf/hkdf.c",
            error=100,
        ),
    ),
)

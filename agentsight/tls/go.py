"""Go's crypto/tls, 1.18 to 1.26, stripped or not: ``(*Config).writeKeyLog(label string, clientRandom, secret []byte)``.

It is called for each secret and looks itself whether a key log is wanted. Arguments are in registers by Go's own rules since
1.17 (cmd/compile/abi-internal.md): receiver, then a string as pointer and length, then each slice as pointer, length, capacity.
The label does not end with NUL. The receiver is the configuration, which connections share, so it groups nothing: the client
random says whose a secret is.
"""

from __future__ import annotations

from agentsight.tls.stack import Arguments, KeylogFunction, Reg, TlsStack

GO = TlsStack(
    name="go",
    title="Go programs",
    id=4,
    executables=True,
    functions=(
        KeylogFunction(
            symbols=("crypto/tls.(*Config).writeKeyLog",),
            go=True,
            arguments=Arguments(label=Reg.BX, label_len=Reg.CX, random=Reg.DI, secret=Reg.R9, secret_len=Reg.R10, first=Reg.NONE),
            # x1 label, x2 its length, x3 random, x6 secret, x7 its length: as Reg numbers them on arm64
            arguments_arm64=Arguments(
                label=Reg.SI, label_len=Reg.DX, random=Reg.CX, secret=Reg.AX, secret_len=Reg.BX, first=Reg.NONE
            ),
        ),
    ),
)

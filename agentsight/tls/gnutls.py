"""GnuTLS 3.6.13 and newer, shared: ``_gnutls_call_keylog_func(session, label, secret, secret_len)`` in lib/kx.c.

It is called for each secret whether or not a key log is wanted; a static function, stripped from distributions' libraries.
TLS 1.3's handshake and traffic labels come through a variable, CLIENT_EARLY_TRAFFIC_SECRET and EARLY_EXPORTER_SECRET are loaded
where it is called. CLIENT_RANDOM is TLS 1.2's master secret.

Libraries: the usual names, and those of Python wheels (``libgnutls-1a2b3c4d.so.30``), not libgnutls-dane and -openssl.

Users: Debian's wget, git (libcurl-gnutls), apt, emacs, everything on glib-networking.
"""

from __future__ import annotations

from agentsight.tls.stack import LABELS, Arguments, KeylogFunction, Reg, TlsStack

GNUTLS = TlsStack(
    name="gnutls",
    title="GnuTLS",
    id=3,
    libraries=("libgnutls.so", "libgnutls.so.*", "libgnutls-????????.so*"),
    functions=(
        KeylogFunction(
            symbols=("_gnutls_call_keylog_func",),
            arguments=Arguments(label=Reg.SI, secret=Reg.DX, secret_len=Reg.CX),
            labels=LABELS,
            anchors=("CLIENT_RANDOM", "EARLY_EXPORTER_SECRET"),
            require=("CLIENT_EARLY_TRAFFIC_SECRET", "EARLY_EXPORTER_SECRET"),
            never=("CLIENT_TRAFFIC_SECRET_0",),
        ),
    ),
)

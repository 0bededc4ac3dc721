"""A certificate for one minute on loopback, made in Python alone: the self-test needs no openssl program and no package.

ECDSA on P-256 with SHA-256 (FIPS 186-4, SEC 1), X.509 version 3 (RFC 5280), key as in RFC 5915. The arithmetic takes no care of
side channels: such a key protects nothing.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time

_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_PRIME256V1 = bytes.fromhex("06082a8648ce3d030107")
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_COMMON_NAME = bytes.fromhex("0603550403")
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
_DAY = 86400

_Point = tuple[int, int]


def make(name: str = "localhost") -> str:
    """Private key and self-signed certificate for `name` and 127.0.0.1 as PEM, valid from yesterday until tomorrow."""
    private = secrets.randbelow(_N - 1) + 1
    public = _point_bytes(_times(private, _G))
    subject = _seq(_der(0x31, _seq(_COMMON_NAME, _der(0x0C, b"agentsight self-test"))))
    alt_names = _seq(_der(0x82, name.encode()), _der(0x87, bytes((127, 0, 0, 1))))
    body = _seq(
        _der(0xA0, _integer(2)),
        _integer(secrets.randbits(63) + 1),
        _ECDSA_SHA256,
        subject,
        _seq(_time(time.time() - _DAY), _time(time.time() + _DAY)),
        subject,
        _seq(_seq(_EC_PUBLIC_KEY, _PRIME256V1), _bits(public)),
        _der(0xA3, _seq(_seq(_SUBJECT_ALT_NAME, _der(0x04, alt_names)))),
    )
    certificate = _seq(body, _ECDSA_SHA256, _bits(_sign(private, body)))
    key = _seq(_integer(1), _der(0x04, private.to_bytes(32, "big")), _der(0xA0, _PRIME256V1), _der(0xA1, _bits(public)))
    return _pem("EC PRIVATE KEY", key) + _pem("CERTIFICATE", certificate)


def _sign(private: int, data: bytes) -> bytes:
    digest = int.from_bytes(hashlib.sha256(data).digest(), "big")
    while True:
        k = secrets.randbelow(_N - 1) + 1
        r = _times(k, _G)[0] % _N
        s = pow(k, -1, _N) * (digest + r * private) % _N
        if r and s:
            return _seq(_integer(r), _integer(s))


def _add(a: _Point | None, b: _Point | None) -> _Point | None:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % _P == 0:
            return None
        slope = 3 * (a[0] * a[0] - 1) * pow(2 * a[1], -1, _P) % _P  # the curve's a is -3
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, _P) % _P
    x = (slope * slope - a[0] - b[0]) % _P
    return x, (slope * (a[0] - x) - a[1]) % _P


def _times(factor: int, point: _Point) -> _Point:
    result: _Point | None = None
    step: _Point | None = point
    while factor:
        if factor & 1:
            result = _add(result, step)
        step = _add(step, step)
        factor >>= 1
    assert result is not None  # factor is between 1 and the group's order
    return result


def _point_bytes(point: _Point) -> bytes:
    return b"\4" + point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")


def _der(tag: int, content: bytes) -> bytes:
    n = len(content)
    if n < 0x80:
        return bytes((tag, n)) + content
    size = n.to_bytes((n.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def _seq(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _bits(content: bytes) -> bytes:
    return _der(0x03, b"\0" + content)


def _time(seconds: float) -> bytes:
    return _der(0x17, time.strftime("%y%m%d%H%M%SZ", time.gmtime(seconds)).encode())


def _pem(label: str, der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n"

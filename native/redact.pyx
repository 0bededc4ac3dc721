# cython: language_level=3, boundscheck=False, wraparound=False
"""Which events may hold a secret. See redact.pyi; the scanning itself is core/redact.c."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint32_t

import msgspec


cdef extern from "redact.h" nogil:
    enum:
        AS_R_NAMED
        AS_R_KINDS
    void as_redact_init()
    uint32_t as_redact_scan(const uint8_t *p, size_t n)
    size_t as_redact_names(const uint8_t *p, size_t n, size_t *at, size_t max)


as_redact_init()
KINDS = AS_R_KINDS
NAMED = 1 << AS_R_NAMED
ALL = (1 << AS_R_KINDS) - 1
cdef uint32_t _ALL = ALL
cdef object _Struct = msgspec.Struct
cdef object _Raw = msgspec.Raw
cdef dict _names = {}
cdef enum:
    MAX_NAMES = 4096
    MAX_DEPTH = 200
    MAX_PLACES = 1024


cdef uint32_t _text(str text):
    cdef Py_ssize_t n
    cdef const char *p
    try:
        p = PyUnicode_AsUTF8AndSize(text, &n)
    except UnicodeEncodeError:  # lone surrogates: looked at in Python
        return _ALL
    return as_redact_scan(<const uint8_t *>p, n)


cdef uint32_t _pair(object key, object value, object secret) except? 0xFFFFFFFF:
    """Whether the key names a secret and the value is one not redacted yet."""
    if type(key) is not str or type(value) is not str or not value:
        return 0
    known = _names.get(key)
    if known is None:
        known = bool(secret(key))
        if len(_names) >= MAX_NAMES:
            _names.clear()
        if len(<str>key) <= 64:
            _names[key] = known
    if known and not (<str>value).startswith("[REDACTED"):
        return 1 << AS_R_NAMED
    return 0


cdef uint32_t _any(object x, object secret, bint sent, int depth) except? 0xFFFFFFFF:
    cdef uint32_t mask = 0
    cdef Py_ssize_t i
    t = type(x)
    if t is str:
        return _text(<str>x)
    if x is None or t is int or t is bool or t is float:
        return 0
    if depth > MAX_DEPTH:
        return _ALL
    if t is bytes:
        return as_redact_scan(<const uint8_t *>PyBytes_AS_STRING(x), PyBytes_GET_SIZE(x))
    if t is dict:
        for k, v in (<dict>x).items():
            mask |= _any(k, secret, sent, depth + 1) | _any(v, secret, sent, depth + 1) | _pair(k, v, secret)
        return mask
    if isinstance(x, list):  # also of encoded elements: the items as they are kept
        if not sent and t is not list:
            return 0
        for i in range(len(<list>x)):
            mask |= _any((<list>x)[i], secret, sent, depth + 1)
        return mask
    if t is _Raw:
        return _buffer(x)
    if isinstance(x, tuple):
        for v in x:
            mask |= _any(v, secret, sent, depth + 1)
        return mask
    if isinstance(x, _Struct):
        for name in t.__struct_fields__:
            mask |= _any(getattr(x, name), secret, sent, depth + 1)
        return mask
    return _text(str(x))


cdef uint32_t _buffer(object x) except? 0xFFFFFFFF:
    cdef const uint8_t[::1] view = memoryview(x).cast("B")
    if view.shape[0] == 0:
        return 0
    return as_redact_scan(&view[0], view.shape[0])


def kinds(text):
    if type(text) is str:
        return _text(<str>text)
    return _buffer(text)


def scan(text):
    return kinds(text) != 0


def kinds_within(x, secret, bint sent=True):
    return _any(x, secret, sent, 0)


def names(bytes text):
    cdef size_t at[MAX_PLACES]
    cdef size_t n, i
    n = as_redact_names(<const uint8_t *>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), at, MAX_PLACES)
    if n > MAX_PLACES:
        return None
    return sorted({at[i] for i in range(n)})

# cython: language_level=3, boundscheck=False, wraparound=False
"""Finding TLS functions in binaries. See elfscan.pyi; the search itself is core/elfscan.h and what it names."""

from libc.stdlib cimport calloc, free
from libc.string cimport strerror

import os

HOW = ("", "dynsym", "symtab", "xref", "gopclntab", "debug")
MACHINES = {62: "x86_64", 183: "aarch64"}
LABELS_MAX = 32
LABEL_MIN = 8


cdef class Wanted:
    cdef readonly tuple names
    cdef readonly tuple labels
    cdef readonly tuple anchors
    cdef readonly tuple require
    cdef readonly tuple never
    cdef readonly int label_register
    cdef readonly bint go
    cdef readonly str file
    cdef readonly uint32_t error
    cdef bytes raw_file
    cdef tuple raw_names
    cdef tuple raw_labels
    cdef uint32_t anchor_bits
    cdef uint32_t require_bits
    cdef uint32_t never_bits

    def __init__(self, names, labels=(), anchors=(), int label_register=6, *, require=(), never=(), bint go=False,
                 str file="", uint32_t error=0):
        self.names = tuple(names)
        self.labels = tuple(labels)
        self.anchors = tuple(anchors)
        self.require = tuple(require)
        self.never = tuple(never)
        self.go = go
        self.file = file
        self.error = error
        self.raw_file = _raw(file, LABEL_MIN) if file else b""
        if not -1 <= label_register <= 15:
            raise ValueError(f"there is no register {label_register}")
        if len(self.labels) > LABELS_MAX or len(self.names) > AS_PATS_MAX:
            raise ValueError("too many names or labels")
        self.label_register = label_register
        self.raw_names = tuple(_raw(name, 2) for name in self.names)
        self.raw_labels = tuple(_raw(label, LABEL_MIN) for label in self.labels)
        self.anchor_bits = _bits(self.labels, self.anchors)
        self.require_bits = _bits(self.labels, self.require)
        self.never_bits = _bits(self.labels, self.never)


cdef uint32_t _bits(tuple labels, tuple chosen) except? 0xffffffff:
    cdef uint32_t bits = 0
    for label in chosen:
        if label not in labels:
            raise ValueError(f"{label!r} is none of the labels")
        bits |= <uint32_t>1 << <int>labels.index(label)
    return bits


def _raw(text, least):
    raw = text.encode()
    if not least <= len(raw) < AS_PAT_MAX or b"\0" in raw:
        raise ValueError(f"{text!r} cannot be searched for")
    return raw


cdef class Found:
    cdef readonly str how
    cdef readonly object offset
    cdef readonly object address
    cdef readonly tuple evidence
    cdef readonly tuple agree
    cdef readonly bint likely
    cdef readonly str reason

    def __repr__(self):
        if self.how:
            return f"Found(how={self.how!r}, offset={self.offset:#x}, address={self.address:#x})"
        return f"Found(reason={self.reason!r})"


cdef class ScanResult:
    cdef readonly str status
    cdef readonly str build_id
    cdef readonly str machine
    cdef readonly object size
    cdef readonly tuple found

    def __repr__(self):
        return f"ScanResult(status={self.status!r}, build_id={self.build_id!r}, found={self.found!r})"


cdef tuple _chosen(tuple labels, uint32_t bits):
    return tuple([label for i, label in enumerate(labels) if bits >> <int>i & 1])


cdef Found _found(Wanted want, const as_found *f):
    cdef Found out = Found.__new__(Found)
    out.how = HOW[f.how]
    out.offset = f.off
    out.address = f.va
    out.evidence = _chosen(want.labels, f.evidence)
    out.agree = _chosen(want.labels, f.agree)
    out.likely = f.likely
    out.reason = "" if f.how != AS_HOW_NONE else (<bytes>f.reason).decode()
    return out


cdef ScanResult _result(const as_elf *e, int rc, list wants, const as_found *found):
    cdef ScanResult out = ScanResult.__new__(ScanResult)
    out.status = "" if rc == AS_ELF_OK else as_elf_strstatus(rc).decode()
    if rc == AS_ELF_IO:
        out.status += f": {strerror(e.err).decode()}"
    out.build_id = (<bytes>e.build_id[:e.build_id_len]).hex()
    out.machine = MACHINES.get(e.machine, "")
    out.size = e.size
    out.found = tuple([_found(want, &found[i]) for i, want in enumerate(wants)]) if rc == AS_ELF_OK else ()
    return out


cdef ScanResult _scan(int fd, list wants, int debug):
    cdef as_want *c_wants = NULL
    cdef as_found *found = NULL
    cdef const char **strings = NULL
    cdef as_elf e
    cdef Wanted want
    cdef uint32_t n = <uint32_t>len(wants), at = 0
    cdef int rc
    cdef size_t total = sum([len(want.names) + len(want.labels) for want in wants])
    try:
        c_wants = <as_want *>calloc(n, sizeof(as_want))
        found = <as_found *>calloc(n, sizeof(as_found))
        strings = <const char **>calloc(total + 1, sizeof(char *))
        if c_wants == NULL or found == NULL or strings == NULL:
            raise MemoryError
        for i, want in enumerate(wants):
            c_wants[i].names = strings + at
            c_wants[i].n_names = <uint32_t>len(want.raw_names)
            for raw in want.raw_names:
                strings[at] = <bytes>raw
                at += 1
            c_wants[i].labels = strings + at
            c_wants[i].n_labels = <uint32_t>len(want.raw_labels)
            for raw in want.raw_labels:
                strings[at] = <bytes>raw
                at += 1
            c_wants[i].anchors = want.anchor_bits
            c_wants[i].require = want.require_bits
            c_wants[i].never = want.never_bits
            c_wants[i].go = want.go
            c_wants[i].file = <const char *>want.raw_file if want.raw_file else NULL
            c_wants[i].error = want.error
            c_wants[i].label_reg = <int8_t>want.label_register
        with nogil:
            rc = as_elf_scan_debug(&e, fd, debug, c_wants, n, found)
            as_elf_close(&e)
        return _result(&e, rc, wants, found)
    finally:
        free(c_wants)
        free(found)
        free(strings)


def scan(source, wanted, *, int debug=-1):
    wants = list(wanted)
    if not 1 <= len(wants) <= AS_WANTS_MAX:
        raise ValueError(f"1 to {AS_WANTS_MAX} functions can be looked for at once")
    for want in wants:
        if not isinstance(want, Wanted):
            raise TypeError(f"{type(want).__name__} is no Wanted")
    for count in (sum(len(w.names) for w in wants), sum(len(w.labels) for w in wants)):
        if count > AS_PATS_MAX:
            raise ValueError(f"at most {AS_PATS_MAX} names and labels can be looked for at once")
    if isinstance(source, int):
        return _scan(source, wants, debug)
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return _scan(fd, wants, debug)
    finally:
        os.close(fd)


cdef str _build_id(int fd):
    cdef as_elf e
    with nogil:
        as_elf_open(&e, fd)
        as_elf_close(&e)
    return (<bytes>e.build_id[:e.build_id_len]).hex()


def build_id(source):
    if isinstance(source, int):
        return _build_id(source)
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return _build_id(fd)
    finally:
        os.close(fd)

# cython: language_level=3, boundscheck=False, wraparound=False
"""Finding TLS secrets in a process's memory. See memscan.pyi; the search itself is core/memscan.c, memaes.c and memread.c."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.string cimport memset

import os

ENDS = ("done", "bytes", "time", "stopped")


cdef class Stop:
    cdef volatile int flag

    def set(self):
        self.flag = 1


cdef class Secrets:
    cdef void *p
    cdef size_t size
    cdef readonly Py_ssize_t count
    cdef int views

    def __len__(self):
        return <Py_ssize_t>(self.count * <Py_ssize_t>sizeof(as_secret))

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.p if self.p != NULL else <void *>&self.size, len(self), 1, flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.views -= 1

    def close(self):
        if self.views:
            raise BufferError("the secrets are still being read")
        as_ms_unlock(self.p, self.size)
        self.p = NULL
        self.count = 0

    def __dealloc__(self):
        as_ms_unlock(self.p, self.size)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        return f"<{self.count} secrets>"


cdef class SearchResult:
    cdef readonly int pid
    cdef readonly Secrets records
    cdef readonly dict stats
    cdef readonly str end

    def __repr__(self):
        return f"SearchResult(pid={self.pid}, end={self.end!r}, stats={self.stats!r})"


cdef Secrets _records(const as_ms *s, uint32_t tgid, uint32_t uid, bint keys):
    cdef Secrets out = Secrets.__new__(Secrets)
    cdef size_t n = as_mem_records(s, tgid, uid, keys, NULL, 0)
    if n:
        out.size = n * sizeof(as_secret)
        out.p = as_ms_lock(out.size)
        if out.p == NULL:
            raise MemoryError
        out.count = <Py_ssize_t>as_mem_records(s, tgid, uid, keys, <as_secret *>out.p, n)
    return out


def search(int pid, *, uint64_t max_bytes=1 << 30, double max_seconds=5.0, bint chacha=True, bint keys=True,
           unsigned int uid=0, Stop stop=None):
    if max_seconds < 0:
        raise ValueError("max_seconds cannot be negative")
    cdef as_mem_opts o
    cdef as_mem_stats st
    cdef int r
    cdef as_ms *s = as_ms_new()
    if s == NULL:
        raise MemoryError
    memset(&o, 0, sizeof(o))
    o.max_bytes = max_bytes
    o.max_cpu_ns = <uint64_t>(max_seconds * 1e9)
    o.chacha = chacha
    o.stop = NULL if stop is None else <const int *>&stop.flag
    cdef SearchResult out = SearchResult.__new__(SearchResult)
    try:
        with nogil:
            r = as_mem_search(s, pid, &o, &st)
        if r:
            raise OSError(-r, os.strerror(-r), f"/proc/{pid}/mem")
        out.records = _records(s, <uint32_t>pid, uid, keys)
    finally:
        as_ms_free(s)
    out.pid = pid
    out.end = ENDS[st.end]
    out.stats = {
        "mapped": st.mapped, "present": st.present, "swapped": st.swapped, "read": st.read, "gone": st.gone,
        "windows": st.s.windows, "tests": st.s.tests, "schedules": st.s.schedules, "secrets": st.s.secrets, "keys": st.s.keys,
        "full": st.s.full, "cpu_seconds": [st.cpu_ns[i] / 1e9 for i in range(4)], "seconds": st.wall_ns / 1e9,
    }
    return out

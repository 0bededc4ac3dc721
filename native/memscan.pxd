"""C declarations of the memory search: core/memscan.h and memread.h."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "agentsight.h" nogil:
    cdef struct as_secret:
        pass

cdef extern from "memscan.h" nogil:
    int AS_MS_PASSES
    ctypedef struct as_ms:
        pass
    ctypedef struct as_ms_stats:
        uint64_t windows
        uint64_t tests
        uint32_t schedules
        uint32_t secrets
        uint32_t keys
        uint32_t full
    as_ms *as_ms_new()
    void as_ms_free(as_ms *s)
    void *as_ms_lock(size_t n)
    void as_ms_unlock(void *p, size_t n)

cdef extern from "memread.h" nogil:
    ctypedef struct as_mem_opts:
        uint64_t max_bytes
        uint64_t max_cpu_ns
        int chacha
        const int *stop
    ctypedef struct as_mem_stats:
        as_ms_stats s
        uint64_t mapped
        uint64_t present
        uint64_t swapped
        uint64_t read
        uint64_t gone
        uint64_t[4] cpu_ns
        uint64_t wall_ns
        int end
    int as_mem_search(as_ms *s, int pid, const as_mem_opts *o, as_mem_stats *out)
    size_t as_mem_records(const as_ms *s, uint32_t tgid, uint32_t uid, int keys, as_secret *out, size_t max)

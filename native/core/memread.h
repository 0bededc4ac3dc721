/* SPDX-License-Identifier: MIT
 *
 * The memory search (memscan.h) over a living process: which of its pages to read, within what bounds.
 *
 * Only memory that it can write to, and of that only pages that are present (its own copies where a file is mapped): from
 * /proc/PID/maps and pagemap, so that nothing is paged in for us. Read by process_vm_readv in windows of 256 KiB, which are
 * zeroed afterwards. The process is never stopped; what changes meanwhile is found or missed. Needs the right to ptrace it.
 */
#ifndef AS_MEMREAD_H
#define AS_MEMREAD_H

#include "memscan.h"

typedef struct as_mem_opts {
    uint64_t max_bytes;  /* of present memory; what lies behind is not looked at */
    uint64_t max_cpu_ns; /* of the calling thread */
    int chacha;          /* look for ChaCha20 secrets too */
    const volatile int *stop; /* end soon when it becomes non-zero; NULL: never */
} as_mem_opts;

enum as_mem_end { /* why the search ended */
                  AS_MEM_DONE = 0,
                  AS_MEM_BYTES = 1, /* more memory than max_bytes */
                  AS_MEM_TIME = 2,
                  AS_MEM_STOPPED = 3,
};

typedef struct as_mem_stats {
    as_ms_stats s;
    uint64_t mapped;  /* bytes of writable mappings */
    uint64_t present; /* of them, in pages that are present */
    uint64_t swapped; /* pages that were swapped out were not brought back */
    uint64_t read;    /* bytes read, all passes */
    uint64_t gone;    /* bytes that could not be read: unmapped meanwhile, or protected */
    uint64_t cpu_ns[AS_MS_PASSES];
    uint64_t wall_ns;
    enum as_mem_end end;
} as_mem_stats;

/* Searches the process; the hits are in `s` afterwards. 0, or -errno where it cannot be read at all (ESRCH, EACCES, EPERM). */
int as_mem_search(as_ms *s, int pid, const as_mem_opts *o, as_mem_stats *out);

struct as_secret; /* bpf/agentsight.h */
/* Writes what was found as records of the stream, at most max of them (out NULL: only counts): the secrets, and with `keys` the
 * AES keys too. Their time is left 0, for as_drain_put to fill in. */
size_t as_mem_records(const as_ms *s, uint32_t tgid, uint32_t uid, int keys, struct as_secret *out, size_t max);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The drain: one thread that copies records from the kernel's ring into batches, and nothing else. Batches come out in order,
 * each a block of whole records. User space puts records of its own into the same stream.
 *
 * Memory is bounded: batches that nobody has released use up to `arena_bytes`; then the thread leaves the data in the ring, and
 * what no longer fits there the kernel programs refuse and count. The thread adds AS_K_CLOCK at the start and each second,
 * AS_K_TICK when nothing came for 100 ms, AS_K_DROPS when a loss counter has grown and at the end.
 */
#ifndef AS_DRAIN_H
#define AS_DRAIN_H

#include <stddef.h>
#include <stdint.h>

#include "agentsight.h"

typedef struct as_drain as_drain;

typedef struct as_batch {
    uint8_t *data;
    size_t len, cap;
    uint32_t records;
    uint8_t has_secret; /* zeroed when it is released */
    uint8_t user;       /* made of user space's own records: more may be added while it waits */
    struct as_batch *next;
    as_drain *owner;
} as_batch;

typedef struct as_drain_opts {
    int ring_fd; /* of a BPF_MAP_TYPE_RINGBUF */
    size_t ring_bytes;
    size_t arena_bytes;
    int (*drops)(void *ctx, struct as_drop_counter out[AS_D_MAX]); /* 0 when out is filled */
    void *drops_ctx;
} as_drain_opts;

typedef struct as_drain_counters {
    uint64_t records, bytes; /* taken out of the ring; bytes without the rounding */
    uint64_t ring_peak;      /* most bytes found waiting in the ring */
    uint64_t arena_used, arena_peak;
    uint64_t arena_full; /* times the thread had to leave data in the ring */
    uint64_t batches;
    int priority_raised; /* the thread's nice value was lowered because the ring was more than an eighth full */
} as_drain_counters;

as_drain *as_drain_new(const as_drain_opts *o, int *error); /* NULL and errno in *error */
int as_drain_start(as_drain *d, int may_raise_priority);    /* 0, -errno */
void as_drain_stop(as_drain *d);                            /* takes what the ring still holds, then closes the stream */
/* Gives up one reference; the last one (the drain's, or a batch's) frees everything. The thread must have been stopped. */
void as_drain_free(as_drain *d);

/* The next batch, waiting up to timeout_ms. NULL: none came, or the stream is closed and empty. */
as_batch *as_drain_read(as_drain *d, int timeout_ms);
int as_drain_closed(as_drain *d); /* stopped, and every batch was read */
void as_batch_release(as_batch *b);

/* Puts a copy of a record into the stream; its length is rounded and filled in, its time too if it is 0. 0, -errno. */
int as_drain_put(as_drain *d, struct as_hdr *rec, const void *rest, size_t rest_len);

void as_drain_count(as_drain *d, as_drain_counters *out);
uint64_t as_boot_ns(void);
uint64_t as_wall_ns(void);

#endif

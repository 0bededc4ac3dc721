/* SPDX-License-Identifier: MIT
 *
 * What every layer passes along with bytes: when, and by whose call. Shared by engine, TLS and HTTP; no code.
 */
#ifndef AS_META_H
#define AS_META_H

#include <stddef.h>
#include <stdint.h>

/* A connection has two flows: 0 carries what side 0 sends, 1 what side 1 sends. Which side is the client is decided by the
 * content (ClientHello, HTTP request), not by the number. */
typedef struct as_meta {
    uint64_t ts;   /* ns since boot of the call that completed these bytes */
    uint32_t tgid; /* process whose call carried them (0: unknown) */
    uint32_t tid;
    uint32_t uid;
    uint32_t seq;  /* low bits of the stream's record number: evidence */
} as_meta;

typedef struct as_slice {
    const uint8_t *p;
    size_t n;
} as_slice;

#endif

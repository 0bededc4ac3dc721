/* SPDX-License-Identifier: MIT
 *
 * A growing byte buffer for the HTTP layer. Growth is by doubling, so appending n bytes costs O(n) in all; a failed allocation
 * leaves the buffer as it was and is reported, never fatal (the caller counts what it could not keep).
 */
#ifndef AS_HTTP_BUF_H
#define AS_HTTP_BUF_H

#include <stdlib.h>
#include <string.h>

#include "meta.h"

typedef struct as_hbuf {
    uint8_t *p;
    size_t n, cap;
} as_hbuf;

/* Room for `need` bytes in all. 1 on success, 0 when there is no memory. */
static inline int as_hbuf_reserve(as_hbuf *b, size_t need) {
    if (need <= b->cap)
        return 1;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    uint8_t *p = realloc(b->p, cap);
    if (!p)
        return 0;
    b->p = p;
    b->cap = cap;
    return 1;
}

static inline int as_hbuf_add(as_hbuf *b, const uint8_t *p, size_t n) {
    if (!n)
        return 1;
    if (n > SIZE_MAX - b->n || !as_hbuf_reserve(b, b->n + n))
        return 0;
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 1;
}

static inline void as_hbuf_free(as_hbuf *b) {
    free(b->p);
    b->p = NULL;
    b->n = b->cap = 0;
}

/* Empty it, and give its memory back where it is more than `keep`. */
static inline void as_hbuf_clear(as_hbuf *b, size_t keep) {
    b->n = 0;
    if (b->cap > keep)
        as_hbuf_free(b);
}

static inline void as_hbuf_swap(as_hbuf *a, as_hbuf *b) {
    as_hbuf t = *a;
    *a = *b;
    *b = t;
}

#endif

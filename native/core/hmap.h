/* SPDX-License-Identifier: MIT
 *
 * A map from a 64-bit key to a pointer: open addressing, linear probing, backward-shift deletion. Key 0 is a key like any
 * other. Not thread-safe. as_hmap_put returns -1 when memory is out, else 0.
 */
#ifndef AS_HMAP_H
#define AS_HMAP_H

#include <stddef.h>
#include <stdint.h>

typedef struct as_hslot {
    uint64_t key;
    void *val; /* NULL: empty */
} as_hslot;

typedef struct as_hmap {
    as_hslot *slots;
    size_t cap, n; /* cap: a power of two, or 0 */
} as_hmap;

void *as_hmap_get(const as_hmap *m, uint64_t key);
int as_hmap_put(as_hmap *m, uint64_t key, void *val); /* val must not be NULL; replaces */
void *as_hmap_del(as_hmap *m, uint64_t key);          /* the value that was there, or NULL */
void as_hmap_free(as_hmap *m);                        /* frees the table, not the values */

#endif

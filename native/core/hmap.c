/* SPDX-License-Identifier: MIT
 * See hmap.h.
 */
#include "hmap.h"

#include <stdlib.h>

static size_t spread(uint64_t k) {
    k ^= k >> 33;
    k *= 0xff51afd7ed558ccdULL;
    k ^= k >> 33;
    return (size_t)k;
}

void *as_hmap_get(const as_hmap *m, uint64_t key) {
    if (!m->cap)
        return NULL;
    for (size_t i = spread(key) & (m->cap - 1);; i = (i + 1) & (m->cap - 1)) {
        if (!m->slots[i].val)
            return NULL;
        if (m->slots[i].key == key)
            return m->slots[i].val;
    }
}

static void place(as_hslot *slots, size_t cap, uint64_t key, void *val) {
    size_t i = spread(key) & (cap - 1);
    while (slots[i].val)
        i = (i + 1) & (cap - 1);
    slots[i].key = key;
    slots[i].val = val;
}

int as_hmap_put(as_hmap *m, uint64_t key, void *val) {
    if (m->cap) {
        for (size_t i = spread(key) & (m->cap - 1); m->slots[i].val; i = (i + 1) & (m->cap - 1)) {
            if (m->slots[i].key == key) {
                m->slots[i].val = val;
                return 0;
            }
        }
    }
    if ((m->n + 1) * 4 > m->cap * 3) {
        size_t cap = m->cap ? m->cap * 2 : 64;
        as_hslot *slots = calloc(cap, sizeof *slots);
        if (!slots)
            return -1;
        for (size_t i = 0; i < m->cap; i++)
            if (m->slots[i].val)
                place(slots, cap, m->slots[i].key, m->slots[i].val);
        free(m->slots);
        m->slots = slots;
        m->cap = cap;
    }
    place(m->slots, m->cap, key, val);
    m->n++;
    return 0;
}

void *as_hmap_del(as_hmap *m, uint64_t key) {
    if (!m->cap)
        return NULL;
    size_t mask = m->cap - 1, i = spread(key) & mask;
    while (m->slots[i].val && m->slots[i].key != key)
        i = (i + 1) & mask;
    void *val = m->slots[i].val;
    if (!val)
        return NULL;
    /* close the gap: move back every entry whose own place is at or before it */
    for (size_t j = (i + 1) & mask; m->slots[j].val; j = (j + 1) & mask) {
        size_t home = spread(m->slots[j].key) & mask;
        if (((j - home) & mask) >= ((j - i) & mask)) {
            m->slots[i] = m->slots[j];
            i = j;
        }
    }
    m->slots[i].val = NULL;
    m->n--;
    return val;
}

void as_hmap_free(as_hmap *m) {
    free(m->slots);
    m->slots = NULL;
    m->cap = m->n = 0;
}

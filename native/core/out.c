/* SPDX-License-Identifier: MIT
 * See out.h.
 */
#include "out.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK ((size_t)1 << 20)
#define SPARE 8 /* blocks kept for the next batch: memory that is faulted in anew each time costs more than what it holds */

struct as_block {
    struct as_block *next;
    size_t used, cap;
    _Alignas(16) uint8_t data[];
};

void *as_arena_get(as_arena *a, size_t n) {
    n = (n + 15) & ~(size_t)15;
    struct as_block *b = a->blocks;
    if (!b || b->cap - b->used < n) {
        size_t cap = n > BLOCK / 2 ? n : BLOCK;
        if (cap == BLOCK && a->spare) {
            b = a->spare;
            a->spare = b->next;
            a->n_spare--;
        } else {
            b = malloc(sizeof *b + cap);
            if (!b)
                return NULL;
            b->cap = cap;
        }
        b->used = 0;
        if (cap != BLOCK && a->blocks) { /* a block of its own: keep filling the first one */
            b->next = a->blocks->next;
            a->blocks->next = b;
        } else {
            b->next = a->blocks;
            a->blocks = b;
        }
    }
    void *p = b->data + b->used;
    b->used += n;
    return p;
}

static void free_list(struct as_block *b) {
    while (b) {
        struct as_block *next = b->next;
        free(b);
        b = next;
    }
}

void as_arena_clear(as_arena *a) {
    struct as_block *next, *large = NULL;
    for (struct as_block *b = a->blocks; b; b = next) {
        next = b->next;
        if (b->cap == BLOCK && a->n_spare < SPARE) {
            b->next = a->spare;
            a->spare = b;
            a->n_spare++;
        } else {
            b->next = large;
            large = b;
        }
    }
    free_list(large);
    a->blocks = NULL;
}

void as_arena_free(as_arena *a) {
    free_list(a->blocks);
    free_list(a->spare);
    memset(a, 0, sizeof *a);
}

void as_outs_init(as_outs *o) {
    memset(o, 0, sizeof *o);
    o->tail = &o->head;
}

void as_outs_clear(as_outs *o) {
    as_arena_clear(&o->arena);
    o->head = NULL;
    o->tail = &o->head;
    o->n = 0;
}

void as_outs_free(as_outs *o) {
    as_arena_free(&o->arena);
    o->head = NULL;
    o->tail = &o->head;
}

as_out *as_outs_add(as_outs *o, as_out_kind kind) {
    as_out *out = as_arena_get(&o->arena, sizeof *out);
    if (!out) {
        o->lost++;
        return NULL;
    }
    memset(out, 0, sizeof *out);
    out->kind = kind;
    *o->tail = out;
    o->tail = &out->next;
    o->n++;
    return out;
}

as_slice as_outs_copy(as_outs *o, const void *p, size_t n) {
    as_slice s = {NULL, 0};
    if (!n)
        return s;
    uint8_t *d = as_arena_get(&o->arena, n);
    if (!d) {
        o->lost++;
        return s;
    }
    memcpy(d, p, n);
    s.p = d;
    s.n = n;
    return s;
}

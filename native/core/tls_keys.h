/* SPDX-License-Identifier: MIT
 *
 * The keyring's own structures, for tls_keys.c (adding, forgetting, claiming) and tls_find.c (looking for candidates).
 */
#ifndef AS_TLS_KEYS_H
#define AS_TLS_KEYS_H

#include <string.h>

#include "agentsight.h"
#include "tls_int.h"

#define RELATIONS 4096 /* direct-mapped: a colliding pair replaces the older one */
#define CHILDREN 8
#define NBUF 4

#define KEPT_NS (12 * 3600 * 1000000000ull) /* secrets found in memory expire after this time */

#define OF(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))

struct as_group {
    as_hl h;
    uint64_t id;
    uint32_t tgid, claims, n;
    uint8_t by_random, hashed;
    uint8_t random[32];
    as_node entries;
};

struct as_owner { /* a process (tid 0) or a thread with unmatched secrets */
    as_hl h;
    uint32_t tgid, tid, n;
    as_node list[AS_NLABEL]; /* newest first */
};

typedef struct chunk {
    struct chunk *next;
} chunk;

struct as_keyring {
    as_crypto c;
    size_t max, n, mask;
    uint64_t ttl, serial, stamp;
    as_keyring_stats st;
    as_node age, held; /* oldest first: nobody's; of groups that an open connection claims */
    as_node kept;      /* found in memory: their connection may be silent for long */
    as_hl **by_secret, **by_random, **groups, **owners;
    chunk *chunks;
    void *free_cells;
    struct {
        uint32_t tgid, parent;
    } up[RELATIONS];
    struct {
        uint32_t parent, child[CHILDREN], next;
    } down[RELATIONS];
    uint8_t *buf[NBUF];
    size_t nbuf;
};

/* ---- lists ---- */
static inline void list_init(as_node *h) {
    h->prev = h->next = h;
}
static inline void list_add(as_node *h, as_node *n) { /* behind h; with h->prev: at the tail */
    n->prev = h;
    n->next = h->next;
    h->next->prev = n;
    h->next = n;
}
static inline void list_del(as_node *n) {
    if (!n->next)
        return;
    n->prev->next = n->next;
    n->next->prev = n->prev;
    n->prev = n->next = NULL;
}
static inline void hl_add(as_hl **b, as_hl *n) {
    n->next = *b;
    n->pprev = b;
    if (*b)
        (*b)->pprev = &n->next;
    *b = n;
}
static inline void hl_del(as_hl *n) {
    if (!n->pprev)
        return;
    *n->pprev = n->next;
    if (n->next)
        n->next->pprev = n->pprev;
    n->next = NULL;
    n->pprev = NULL;
}
static inline uint64_t mix(uint64_t a, uint64_t b) {
    a = (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2))) * 0xff51afd7ed558ccdu;
    a = (a ^ (a >> 33)) * 0xc4ceb9fe1a85ec53u;
    return a ^ (a >> 29);
}
static inline uint64_t hash_bytes(const uint8_t *p) {
    return mix(mix(as_be64(p), as_be64(p + 8)), as_be64(p + 16));
}

static inline as_hl **bucket(const as_keyring *k, as_hl **table, uint64_t h) {
    return &table[h & k->mask];
}

static inline as_owner *as_owner_find(const as_keyring *k, uint32_t tgid, uint32_t tid) {
    for (as_hl *h = *bucket(k, k->owners, mix(tgid, tid)); h; h = h->next) {
        as_owner *o = OF(h, as_owner, h);
        if (o->tgid == tgid && o->tid == tid)
            return o;
    }
    return NULL;
}

#endif

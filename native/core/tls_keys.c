/* SPDX-License-Identifier: MIT
 *
 * The keyring: every TLS secret that probes saw, until a connection takes it or it grows old. Found (tls_find.c) by client random, by
 * group (one connection's secrets share the probed function's first argument) and, newest first, by thread and by process;
 * each index is a hash, so nothing here walks the whole ring. Secrets lie in locked memory that core dumps leave out, and
 * are zeroed when dropped. Bounded: at max_secrets the oldest goes, those of open connections last.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MADV_DONTDUMP, mlock */
#endif
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tls_keys.h"

#define CELL_SIZE 128
#define CHUNK_CELLS 256

_Static_assert(sizeof(as_cell) <= CELL_SIZE, "a cell holds a secret and its keys");

/* ---- locked memory ---- */
static int more_cells(as_keyring *k) {
    size_t size = (CHUNK_CELLS + 1) * CELL_SIZE;
    uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -1;
    (void)mlock(p, size); /* where the limit allows it; without, only swapping could bring them to a disk */
    (void)madvise(p, size, MADV_DONTDUMP);
    chunk *c = (chunk *)(void *)p;
    c->next = k->chunks;
    k->chunks = c;
    for (size_t i = CHUNK_CELLS; i > 0; i--) {
        void *cell = p + i * CELL_SIZE;
        memcpy(cell, &k->free_cells, sizeof(void *));
        k->free_cells = cell;
    }
    return 0;
}

as_cell *as_cell_new(as_keyring *k) {
    if (!k->free_cells && more_cells(k))
        return NULL;
    void *c = k->free_cells;
    memcpy(&k->free_cells, c, sizeof(void *));
    memset(c, 0, CELL_SIZE);
    return c;
}

void as_cell_free(as_keyring *k, as_cell *c) {
    if (!c)
        return;
    OPENSSL_cleanse(c, CELL_SIZE);
    memcpy(c, &k->free_cells, sizeof(void *));
    k->free_cells = c;
}

uint8_t *as_buf_get(as_keyring *k) {
    return k->nbuf ? k->buf[--k->nbuf] : malloc(AS_BUF_SIZE);
}
void as_buf_put(as_keyring *k, uint8_t *b) {
    if (k->nbuf < NBUF)
        k->buf[k->nbuf++] = b;
    else
        free(b);
}

as_keyring *as_keyring_new(size_t max_secrets, uint64_t ttl_ns) {
    as_keyring *k = calloc(1, sizeof *k);
    if (!k)
        return NULL;
    k->max = max_secrets ? max_secrets : 1;
    k->ttl = ttl_ns;
    size_t b = 16;
    while (b < k->max && b < ((size_t)1 << 20))
        b *= 2;
    k->mask = b - 1;
    list_init(&k->age);
    list_init(&k->held);
    list_init(&k->kept);
    k->by_secret = calloc(4 * b, sizeof(as_hl *));
    if (!k->by_secret || as_crypto_init(&k->c)) {
        free(k->by_secret);
        free(k);
        return NULL;
    }
    k->by_random = k->by_secret + b;
    k->groups = k->by_secret + 2 * b;
    k->owners = k->by_secret + 3 * b;
    return k;
}

/* ---- owners and groups ---- */
static as_owner *owner_get(as_keyring *k, uint32_t tgid, uint32_t tid) {
    as_owner *o = as_owner_find(k, tgid, tid);
    if (o || !(o = calloc(1, sizeof *o)))
        return o;
    o->tgid = tgid;
    o->tid = tid;
    for (int i = 0; i < AS_NLABEL; i++)
        list_init(&o->list[i]);
    hl_add(bucket(k, k->owners, mix(tgid, tid)), &o->h);
    return o;
}

static void owner_put(as_owner *o) {
    if (o && --o->n == 0) {
        hl_del(&o->h);
        free(o);
    }
}

static void unlist(as_entry *e) { /* no more a candidate for trials */
    list_del(&e->byproc);
    list_del(&e->bythread);
    owner_put(e->proc);
    owner_put(e->thread);
    e->proc = e->thread = NULL;
}

static uint64_t group_hash(uint32_t tgid, uint64_t id, const uint8_t *random) {
    return mix(tgid, random ? hash_bytes(random) : id);
}

/* The group of a new secret. The object at an address may be another connection's by now: a label that the group has
 * already (with other bytes, or it would have been a duplicate) begins a new group. */
static as_group *group_get(as_keyring *k, uint32_t tgid, uint64_t id, const uint8_t *random, uint8_t label) {
    as_hl **b = bucket(k, k->groups, group_hash(tgid, id, random));
    for (as_hl *h = *b; h; h = h->next) {
        as_group *g = OF(h, as_group, h);
        if (g->tgid != tgid || g->by_random != (random != NULL) || (random ? memcmp(g->random, random, 32) != 0 : g->id != id))
            continue;
        int has = 0;
        for (as_node *i = g->entries.next; i != &g->entries; i = i->next)
            has |= label != AS_L_ANY && OF(i, as_entry, ingroup)->label == label;
        if (!has && g->n < 16)
            return g;
        hl_del(&g->h);
        break;
    }
    as_group *g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->tgid = tgid;
    g->id = id;
    g->by_random = random != NULL;
    if (random)
        memcpy(g->random, random, 32);
    list_init(&g->entries);
    hl_add(b, &g->h);
    return g;
}

static void group_put(as_group *g) {
    if (g->n || g->claims)
        return;
    hl_del(&g->h);
    free(g);
}

static void drop(as_keyring *k, as_entry *e) {
    unlist(e);
    list_del(&e->age);
    list_del(&e->ingroup);
    hl_del(&e->hsecret);
    hl_del(&e->hrandom);
    if (e->group) {
        e->group->n--;
        group_put(e->group);
    }
    as_cell_free(k, e->cell);
    free(e);
    k->n--;
}

void as_keyring_free(as_keyring *k) {
    if (!k)
        return;
    for (int i = 0; i < 3; i++)
        for (as_node *h = i == 2 ? &k->kept : i ? &k->held : &k->age; h->next != h;)
            drop(k, OF(h->next, as_entry, age));
    for (chunk *c = k->chunks, *next; c; c = next) {
        next = c->next;
        OPENSSL_cleanse(c, (CHUNK_CELLS + 1) * CELL_SIZE);
        munmap(c, (CHUNK_CELLS + 1) * CELL_SIZE);
    }
    while (k->nbuf)
        free(k->buf[--k->nbuf]);
    as_crypto_free(&k->c);
    free(k->by_secret);
    free(k);
}

static int label_of(const uint8_t *s, size_t n) {
    static const char *const names[AS_NLABEL] = {
        "CLIENT_EARLY_TRAFFIC_SECRET",
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
        "CLIENT_RANDOM",
        "TRAFFIC_SECRET", /* one of the five above, not told which */
        "AES_KEY", /* TLS 1.2: the key itself, of one direction */
    };
    for (int i = 0; i < AS_NLABEL; i++)
        if (strlen(names[i]) == n && memcmp(names[i], s, n) == 0)
            return i;
    return -1;
}

void as_keyring_add(as_keyring *k, const struct as_secret *r) {
    size_t n = r->secret_len;
    int label = r->label_len <= AS_LABEL_MAX ? label_of(r->label, r->label_len) : -1;
    if (label < 0 || (label == AS_L_MASTER ? n != 48 : label == AS_L_KEY ? n != 16 && n != 32 : n != 32 && n != 48))
        return; /* exporter secrets, later key updates (derived instead), hashes that no suite of ours has */
    as_hl **b = bucket(k, k->by_secret, hash_bytes(r->secret));
    for (as_hl *h = *b; h; h = h->next) {
        as_entry *e = OF(h, as_entry, hsecret);
        if (e->tgid == r->h.tgid && e->label == label && e->cell->len == n && !CRYPTO_memcmp(e->cell->secret, r->secret, n)) {
            k->st.duplicates++;
            return;
        }
    }
    if (k->n >= k->max) {
        as_node *old = k->age.next != &k->age ? k->age.next : k->kept.next != &k->kept ? k->kept.next : k->held.next;
        drop(k, OF(old, as_entry, age));
        k->st.evicted++;
    }
    as_entry *e = calloc(1, sizeof *e);
    if (!e || !(e->cell = as_cell_new(k))) {
        free(e);
        k->st.evicted++;
        return;
    }
    e->serial = ++k->serial;
    e->ts = r->h.ts;
    e->tgid = r->h.tgid;
    e->tid = r->h.tid;
    e->label = (uint8_t)label;
    e->memory = r->stack == AS_STACK_MEMORY;
    e->chacha = e->memory && r->flags & AS_SEC_CHACHA;
    memcpy(e->cell->secret, r->secret, n);
    e->cell->len = (uint8_t)n;
    k->n++;
    k->st.added++;
    hl_add(b, &e->hsecret);
    if (r->flags & AS_SEC_HAS_RANDOM) {
        e->has_random = 1;
        memcpy(e->random, r->random, 32);
        hl_add(bucket(k, k->by_random, hash_bytes(e->random)), &e->hrandom);
    }
    e->group = group_get(k, e->tgid, r->arg1, e->has_random ? e->random : NULL, e->label);
    if (e->group) {
        list_add(e->group->entries.prev, &e->ingroup);
        e->group->n++;
    }
    list_add(e->group && e->group->claims ? k->held.prev : e->memory ? k->kept.prev : k->age.prev, &e->age);
    if ((e->proc = owner_get(k, e->tgid, 0))) {
        e->proc->n++;
        list_add(&e->proc->list[label], &e->byproc);
    }
    if (e->tid && (e->thread = owner_get(k, e->tgid, e->tid))) {
        e->thread->n++;
        list_add(&e->thread->list[label], &e->bythread);
    }
}

static void expire(as_keyring *k, as_node *list, uint64_t ttl, uint64_t now) {
    while (list->next != list) {
        as_entry *e = OF(list->next, as_entry, age);
        if (now < e->ts || now - e->ts <= ttl)
            return;
        if (!e->used)
            k->st.expired++;
        drop(k, e);
    }
}

void as_keyring_expire(as_keyring *k, uint64_t now) {
    expire(k, &k->age, k->ttl, now);
    expire(k, &k->kept, k->ttl > KEPT_NS ? k->ttl : KEPT_NS, now);
}

void as_keyring_stats_get(const as_keyring *k, as_keyring_stats *out) {
    *out = k->st;
}

as_crypto *as_keyring_crypto(as_keyring *k) {
    return &k->c;
}
uint64_t as_keyring_serial(const as_keyring *k) {
    return k->serial;
}
void as_keyring_count(as_keyring *k, uint64_t trials, uint64_t cap_hits) {
    k->st.trials += trials;
    k->st.trial_cap_hits += cap_hits;
}

/* A connection was opened by e: it is nobody else's candidate any more, its group is kept as long as the connection lives,
 * and the group's other secrets become everyone else's last choice. random: the connection's, where known: the other end,
 * if it is decoded by itself, finds the secrets by it. */
as_group *as_keyring_claim(as_keyring *k, as_entry *e, const uint8_t *random) {
    if (!e->used) {
        e->used = 1;
        k->st.matched++;
    }
    unlist(e);
    if (random && !e->has_random) {
        e->has_random = 1;
        memcpy(e->random, random, 32);
        hl_add(bucket(k, k->by_random, hash_bytes(random)), &e->hrandom);
    }
    as_group *g = e->group;
    if (!g)
        return NULL;
    g->claims++;
    for (as_node *i = g->entries.next; i != &g->entries; i = i->next) {
        as_entry *o = OF(i, as_entry, ingroup);
        list_del(&o->age);
        list_add(k->held.prev, &o->age);
        if (o->proc) {
            list_del(&o->byproc);
            list_add(o->proc->list[o->label].prev, &o->byproc);
        }
        if (o->thread) {
            list_del(&o->bythread);
            list_add(o->thread->list[o->label].prev, &o->bythread);
        }
    }
    return g;
}

void as_keyring_release(as_keyring *k, as_group *g) {
    if (--g->claims)
        return;
    for (as_node *i = g->entries.next; i != &g->entries; i = i->next) {
        as_entry *o = OF(i, as_entry, ingroup);
        list_del(&o->age);
        list_add(k->age.prev, &o->age);
    }
    group_put(g);
}

/* SPDX-License-Identifier: MIT
 *
 * Looking for the secrets that may belong to a connection, the likeliest first: those with its client random, those of groups
 * that it uses already, then, newest first, those of the threads that touched it, of their processes, and of their relatives.
 */
#include "tls_keys.h"

void as_keyring_relate(as_keyring *k, uint32_t tgid, uint32_t parent) {
    if (!tgid || !parent || tgid == parent)
        return;
    size_t i = mix(tgid, 0) % RELATIONS, j = mix(parent, 0) % RELATIONS;
    k->up[i].tgid = tgid;
    k->up[i].parent = parent;
    if (k->down[j].parent != parent)
        memset(&k->down[j], 0, sizeof k->down[j]);
    k->down[j].parent = parent;
    for (int c = 0; c < CHILDREN; c++)
        if (k->down[j].child[c] == tgid)
            return;
    k->down[j].child[k->down[j].next++ % CHILDREN] = tgid;
}

typedef struct walk {
    as_keyring *k;
    const as_query *q;
    int (*fn)(void *, as_entry *);
    void *u;
    as_entry *found;
} walk;

static int consider(walk *w, as_entry *e) { /* non-zero: end of the search */
    if (e->stamp == w->k->stamp || !(w->q->labels & AS_LB(e->label)) || e->serial <= w->q->after)
        return 0;
    e->stamp = w->k->stamp;
    if (w->q->random && e->has_random && memcmp(e->random, w->q->random, 32) != 0)
        return 0;
    int r = w->fn(w->u, e);
    if (r > 0)
        w->found = e;
    return r;
}

static int walk_owner(walk *w, uint32_t tgid, uint32_t tid) {
    as_owner *o = as_owner_find(w->k, tgid, tid);
    for (int l = 0; o && l < AS_NLABEL; l++) {
        if (!(w->q->labels & AS_LB(l)))
            continue;
        for (as_node *i = o->list[l].next; i != &o->list[l]; i = i->next) {
            as_entry *e = tid ? OF(i, as_entry, bythread) : OF(i, as_entry, byproc);
            if (e->serial <= w->q->after)
                break; /* newest first */
            if (consider(w, e))
                return 1;
        }
    }
    return 0;
}

static void walk_all(walk *w) {
    const as_query *q = w->q;
    const as_keyring *k = w->k;
    if (q->random)
        for (as_hl *h = *bucket(k, k->by_random, hash_bytes(q->random)), *next; h; h = next) {
            as_entry *e = OF(h, as_entry, hrandom);
            next = h->next;
            if (memcmp(e->random, q->random, 32) == 0 && consider(w, e))
                return;
        }
    for (size_t g = 0; g < q->ngroups; g++)
        for (as_node *i = q->groups[g]->entries.next; i != &q->groups[g]->entries; i = i->next)
            if (consider(w, OF(i, as_entry, ingroup)))
                return;
    for (size_t t = 0; t < q->ntouch; t++)
        if (q->touch[t].tid && walk_owner(w, q->touch[t].tgid, q->touch[t].tid))
            return;
    for (size_t t = 0; t < q->ntouch; t++)
        if (walk_owner(w, q->touch[t].tgid, 0))
            return;
    for (size_t t = 0; t < q->ntouch; t++) {
        uint32_t p = q->touch[t].tgid;
        size_t j = mix(p, 0) % RELATIONS;
        for (int c = 0; c < CHILDREN && k->down[j].parent == p; c++)
            if (k->down[j].child[c] && walk_owner(w, k->down[j].child[c], 0))
                return;
        for (int up = 0; up < 4; up++) {
            size_t i = mix(p, 0) % RELATIONS;
            if (k->up[i].tgid != p || !p)
                break;
            p = k->up[i].parent;
            if (walk_owner(w, p, 0))
                return;
        }
    }
}

as_entry *as_keyring_find(as_keyring *k, const as_query *q, int (*fn)(void *, as_entry *), void *u) {
    walk w = {k, q, fn, u, NULL};
    if (q->after >= k->serial)
        return NULL;
    k->stamp++;
    walk_all(&w);
    return w.found;
}

/* SPDX-License-Identifier: MIT
 *
 * Connections: their ends, their two flows, bytes put in order, holes told. What the bytes mean is layers.c.
 */
#include "engine_int.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CONNS 200000 /* a CLOSE record ends a connection; this bounds what a lost one could leave behind */

static uint64_t mix(uint64_t h, uint64_t v) {
    h ^= v;
    h *= 0x9e3779b97f4a7c15ULL;
    return h ^ (h >> 29);
}

static uint64_t tuple_hash(const struct as_conn *r, int reversed) {
    uint64_t a[2], b[2], h = mix(r->netns, r->family);
    memcpy(a, reversed ? r->daddr : r->saddr, 16);
    memcpy(b, reversed ? r->saddr : r->daddr, 16);
    h = mix(mix(h, a[0]), a[1]);
    h = mix(mix(h, b[0]), b[1]);
    return mix(h, reversed ? ((uint64_t)r->dport << 16 | r->sport) : ((uint64_t)r->sport << 16 | r->dport));
}

static conn *conn_new(as_engine *e, uint64_t cookie, uint64_t ts) {
    if (e->ends.n >= MAX_CONNS)
        return NULL;
    conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->e = e;
    c->id = cookie;
    c->client = -1;
    c->start = ts;
    c->next = e->conns;
    if (e->conns)
        e->conns->prev = c;
    e->conns = c;
    e->st.connections++;
    return c;
}

static int add_end(as_engine *e, conn *c, int s, uint64_t cookie) {
    c->side[s].cookie = cookie;
    c->side[s].present = 1;
    /* the pointer says the connection, its lowest bit the side */
    return as_hmap_put(&e->ends, cookie, (void *)((uintptr_t)c | (uintptr_t)s));
}

static conn *find_end(as_engine *e, uint64_t cookie, int *s) {
    uintptr_t v = (uintptr_t)as_hmap_get(&e->ends, cookie);
    *s = (int)(v & 1);
    return (conn *)(v & ~(uintptr_t)1);
}

/* An end of the connection counts a flow from its own base: make both count alike. The first end known decides. */
static void base_flow(flow *f, uint32_t seq) {
    if (!f->based) {
        f->based = 1;
        f->base_seq = seq;
    }
}

static uint64_t canonical(const flow *f, uint64_t off, uint32_t end_base) {
    return off + (uint64_t)(int64_t)(int32_t)(end_base - f->base_seq);
}

static void touch(conn *c, int s, uint32_t tgid, uint32_t tid) {
    side *d = &c->side[s];
    if (!tgid)
        return;
    if (c->tls && (d->tgid != tgid || d->tid != tid))
        as_tls_touch(c->tls, tgid, tid);
    d->tgid = tgid;
    d->tid = tid;
}

void conn_record(as_engine *e, const struct as_conn *r) {
    int s;
    conn *c = find_end(e, r->chan, &s);
    if (!c) {
        /* the other end may be known: then this is its second side */
        c = as_hmap_get(&e->tuples, tuple_hash(r, 1));
        if (c && c->netns == r->netns && c->family == r->family && c->port[0] == r->dport && c->port[1] == r->sport &&
            !c->side[1].present && !memcmp(c->addr[0], r->daddr, 16) && !memcmp(c->addr[1], r->saddr, 16)) {
            s = 1;
        } else {
            c = conn_new(e, r->chan, r->h.ts);
            if (!c) {
                e->st.lost_outputs++;
                return;
            }
            s = 0;
            c->netns = r->netns;
            c->family = r->family;
            c->port[0] = r->sport;
            c->port[1] = r->dport;
            memcpy(c->addr[0], r->saddr, 16);
            memcpy(c->addr[1], r->daddr, 16);
            c->tuple = tuple_hash(r, 0);
            if (as_hmap_put(&e->tuples, c->tuple, c))
                e->st.lost_outputs++; /* its other end will be a connection of its own */
        }
        if (add_end(e, c, s, r->chan)) {
            e->st.lost_outputs++;
            return;
        }
        side *d = &c->side[s];
        d->tx_base = r->tx_base;
        d->rx_base = r->rx_base;
        d->from_start = !!(r->flags & AS_CONN_FROM_START);
        d->uid = r->uid;
        base_flow(&c->flow[s], r->tx_base);
        base_flow(&c->flow[1 - s], r->rx_base);
        if (d->from_start)
            c->flow[0].begun = c->flow[1].begun = 1;
        if (c->kind == C_OTHER && c->skip_told) { /* this end needs not be copied either */
            c->skip_told = 0;
            conn_skip(c);
        }
    }
    touch(c, s, r->h.tgid, r->h.tid);
    if (c->client < 0 && r->flags & (AS_CONN_CLIENT | AS_CONN_SERVER))
        c->client = r->flags & AS_CONN_CLIENT ? s : 1 - s;
}

/* ---- order ---- */

static void give(conn *c, int f, uint64_t off, const uint8_t *p, size_t n, uint64_t hole, int reason, const as_meta *m) {
    flow *w = &c->flow[f];
    if ((int64_t)(off - w->next) < 0) { /* both ends copied it, it was told twice, or it came before what we began with */
        uint64_t dup = w->next - off;
        uint64_t cut = dup < n ? dup : n;
        w->dup += cut;
        p += cut;
        n -= cut;
        dup -= cut;
        hole = dup < hole ? hole - dup : 0;
    }
    if (n) {
        w->next += n;
        w->seen += n;
        layer_bytes(c, f, p, n, m);
    }
    if (hole) {
        w->next += hole;
        if (reason == AS_HOLE_SKIPPED)
            w->skipped += hole;
        else
            w->missing += hole;
        layer_gap(c, f, hole, m);
    }
}

static void settle(conn *c, int f) { /* what waited and now follows */
    flow *w = &c->flow[f];
    while (w->pending && w->pending->off <= w->next) {
        seg *g = w->pending;
        w->pending = g->next;
        w->pending_bytes -= g->n;
        give(c, f, g->off, g->data, g->n, g->hole, g->reason, &g->meta);
        free(g);
    }
}

static void jump(conn *c, int f) { /* what is awaited will not come */
    flow *w = &c->flow[f];
    seg *g = w->pending;
    uint64_t n = g->off - w->next;
    as_meta m = g->meta;
    w->next += n;
    w->missing += n;
    layer_gap(c, f, n, &m);
    settle(c, f);
}

static void hold(conn *c, int f, uint64_t off, const uint8_t *p, size_t n, uint64_t hole, int reason, const as_meta *m) {
    flow *w = &c->flow[f];
    while (w->pending && (w->pending_bytes + n > c->e->o.max_pending || n > c->e->o.max_pending))
        jump(c, f);
    if (off <= w->next || n > c->e->o.max_pending) {
        if (off > w->next) {
            uint64_t gap = off - w->next;
            w->next = off;
            w->missing += gap;
            layer_gap(c, f, gap, m);
        }
        give(c, f, off, p, n, hole, reason, m);
        settle(c, f);
        return;
    }
    seg *g = malloc(sizeof *g + n);
    if (!g) {
        c->e->st.lost_outputs++;
        return;
    }
    g->off = off;
    g->n = n;
    g->hole = hole;
    g->reason = reason;
    g->since = c->e->now;
    g->meta = *m;
    if (n)
        memcpy(g->data, p, n);
    seg **at = &w->pending;
    while (*at && (*at)->off <= off)
        at = &(*at)->next;
    g->next = *at;
    *at = g;
    w->pending_bytes += n;
    conn_wait(c);
}

void conn_data(as_engine *e, const struct as_data *r) {
    int s;
    conn *c = find_end(e, r->chan, &s);
    as_meta m = meta_of(e, &r->h, r->uid);
    if (r->cap > r->h.len - sizeof *r || r->real < r->cap) {
        e->st.damaged++;
        return;
    }
    if (!c) { /* its CONN record was lost: addresses stay unknown */
        c = conn_new(e, r->chan, r->h.ts);
        if (!c || add_end(e, c, 0, r->chan)) {
            e->st.lost_outputs++;
            return;
        }
        s = 0;
    }
    touch(c, s, r->h.tgid, r->h.tid);
    int f = r->dir == AS_DIR_WRITE ? s : 1 - s;
    flow *w = &c->flow[f];
    if (!w->based)
        w->based = 1;
    uint64_t off = canonical(w, r->off, r->dir == AS_DIR_WRITE ? c->side[s].tx_base : c->side[s].rx_base);
    if (!c->side[s].cookie || !w->base_seq)
        off = r->off;
    if (!w->begun) { /* joined late: what comes first is the beginning */
        w->begun = 1;
        w->first = w->next = off;
    }
    uint64_t hole = r->real - r->cap;
    if ((int64_t)(off - w->next) > 0) {
        hold(c, f, off, r->data, r->cap, hole, r->hole, &m);
        return;
    }
    give(c, f, off, r->data, r->cap, hole, r->hole, &m);
    if (w->pending)
        settle(c, f);
}

/* ---- what waits ---- */

void conn_wait(conn *c) {
    if (c->waiting)
        return;
    c->waiting = 1;
    c->wprev = NULL;
    c->wnext = c->e->waiters;
    if (c->wnext)
        c->wnext->wprev = c;
    c->e->waiters = c;
}

static void unwait(conn *c) {
    if (!c->waiting)
        return;
    c->waiting = 0;
    if (c->wprev)
        c->wprev->wnext = c->wnext;
    else
        c->e->waiters = c->wnext;
    if (c->wnext)
        c->wnext->wprev = c->wprev;
}

#define WANT_NS 60000000ull       /* a probe's secret comes sooner */
#define WANT_AGAIN_NS 1000000000ull

static void want_memory(conn *c) { /* its records wait: a live capture may look for their secret in the processes' memory */
    as_engine *e = c->e;
    uint64_t since = as_tls_waits_since(c->tls);
    if (!since || e->now < since + WANT_NS || (c->want_told && e->now < c->want_told + WANT_AGAIN_NS))
        return;
    c->want_told = e->now;
    for (int s = 0; s < 2; s++) {
        uint32_t tgid = c->side[s].tgid;
        int known = !tgid;
        for (size_t i = 0; i < e->n_wants; i++)
            known |= e->wants[i] == tgid;
        if (!known && e->n_wants < sizeof e->wants / sizeof *e->wants)
            e->wants[e->n_wants++] = tgid;
    }
}

void conn_tick(as_engine *e, const as_meta *m) {
    for (conn *c = e->waiters, *next; c; c = next) {
        next = c->wnext;
        for (int f = 0; f < 2; f++)
            while (c->flow[f].pending && e->now - c->flow[f].pending->since > e->o.reorder_ns)
                jump(c, f);
        if (c->tls) {
            want_memory(c);
            as_tls_tick(c->tls, m);
        }
        if (!c->flow[0].pending && !c->flow[1].pending && !(c->tls && as_tls_waiting(c->tls)))
            unwait(c);
    }
}

static int related(as_engine *e, uint32_t a, uint32_t b) {
    const proc *p = proc_get(e, a), *q = proc_get(e, b);
    return (p && p->ppid == b) || (q && q->ppid == a);
}

void conn_secret(as_engine *e, const struct as_secret *r, const as_meta *m) {
    as_keyring_add(e->keys, r);
    for (conn *c = e->waiters, *next; c; c = next) {
        next = c->wnext;
        if (!c->tls || !as_tls_waiting(c->tls))
            continue;
        int mine = 0;
        for (int s = 0; s < 2; s++)
            mine |= c->side[s].tgid && (c->side[s].tgid == r->h.tgid || related(e, c->side[s].tgid, r->h.tgid));
        if (mine)
            as_tls_retry(c->tls, m);
    }
}

/* ---- the end ---- */

void conn_close(as_engine *e, const struct as_close *r) {
    int s;
    conn *c = find_end(e, r->chan, &s);
    as_meta m = meta_of(e, &r->h, 0);
    if (!c)
        return;
    side *d = &c->side[s];
    d->closed = 1;
    d->mirrored += r->mirrored[0] + r->mirrored[1];
    for (int dir = 0; dir < 2; dir++) {
        int f = dir == AS_DIR_WRITE ? s : 1 - s;
        flow *w = &c->flow[f];
        while (w->pending)
            jump(c, f);
        /* bytes behind the last record: lost in the ring, or left to the sender's copy */
        if (!w->begun || (dir == AS_DIR_READ && c->side[1 - s].present))
            continue;
        uint64_t end = canonical(w, r->seen[dir], dir == AS_DIR_WRITE ? d->tx_base : d->rx_base);
        if (end > w->next && end - w->next < (1ULL << 40)) {
            uint64_t n = end - w->next;
            uint64_t skipped = r->skipped[dir] > w->skipped ? r->skipped[dir] - w->skipped : 0;
            skipped = skipped < n ? skipped : n;
            w->next = end;
            w->skipped += skipped;
            w->missing += n - skipped;
            layer_gap(c, f, n, &m);
        }
    }
    if (!c->flow[s].ended) {
        c->flow[s].ended = 1;
        layer_eof(c, s, &m);
    }
    if (!c->side[1 - s].present && !c->flow[1 - s].ended) {
        c->flow[1 - s].ended = 1;
        layer_eof(c, 1 - s, &m);
    }
    if (d->closed && (!c->side[1 - s].present || c->side[1 - s].closed))
        conn_end(c, &m);
}

void conn_account(const conn *c, as_conn_account *a) {
    memset(a, 0, sizeof *a);
    for (int f = 0; f < 2; f++) {
        const flow *w = &c->flow[f];
        a->seen += w->seen + w->missing + w->skipped;
        a->missing += w->missing;
        a->skipped += w->skipped;
        a->duplicate += w->dup;
        a->plaintext += w->plaintext;
        a->undecoded += w->undecoded;
        a->mirrored += c->side[f].mirrored;
        if (c->tls) {
            as_tls_flow_stats t;
            as_tls_stats_get(c->tls, f, &t);
            a->tls_handshake += t.handshake;
            a->tls_opened += t.opened;
            a->waiting += t.waiting;
            a->other += w->clear;
            for (int r = 0; r < AS_TLS_REASONS; r++)
                a->tls_closed[r] += t.closed[r];
        } else if (c->kind == C_HTTP) {
            a->plain += w->seen;
        } else {
            a->other += w->seen;
        }
    }
}

static void sum_up(as_engine *e, const as_conn_account *a) {
    uint64_t *to = (uint64_t *)(void *)&e->done;
    const uint64_t *from = (const uint64_t *)(const void *)a;
    for (size_t i = 0; i < sizeof *a / sizeof *to; i++) /* the structure is nothing but counters */
        to[i] += from[i];
}

void conn_end(conn *c, const as_meta *m) {
    as_engine *e = c->e;
    as_conn_account a;
    for (int f = 0; f < 2; f++)
        while (c->flow[f].pending)
            jump(c, f);
    layer_flush(c, m);
    conn_account(c, &a);
    sum_up(e, &a);
    if (c->tls) { /* whose bytes stayed closed: the client's, where both are known */
        int s = c->client >= 0 && c->side[c->client].tgid ? c->client : c->side[0].tgid ? 0 : 1;
        proc *p = proc_need(e, c->side[s].tgid);
        for (int r = 1; p && r < AS_TLS_REASONS; r++)
            p->dark[r] += a.tls_closed[r];
    }
    if (e->o.want_conns && a.seen)
        emit_conn(c, m);
    unwait(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        e->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    for (int s = 0; s < 2; s++)
        if (c->side[s].present)
            as_hmap_del(&e->ends, c->side[s].cookie);
    if (as_hmap_get(&e->tuples, c->tuple) == c)
        as_hmap_del(&e->tuples, c->tuple);
    as_tls_free(c->tls);
    as_hconn_free(c->http);
    layer_free(c);
    frames_free(c);
    free(c);
}

int conn_plain_allowed(const conn *c) {
    const as_engine_opts *o = &c->e->o;
    if (o->plain_http < 2)
        return o->plain_http;
    for (size_t i = 0; i < o->n_plain_ports; i++)
        if (o->plain_ports[i] == c->port[0] || o->plain_ports[i] == c->port[1])
            return 1;
    return 0;
}

void conn_skip(conn *c) { /* nobody can use its bytes: tell the kernel not to copy them */
    as_engine *e = c->e;
    if (c->skip_told)
        return;
    c->skip_told = 1;
    for (int s = 0; s < 2; s++)
        if (c->side[s].present && e->n_skips < sizeof e->skips / sizeof *e->skips)
            e->skips[e->n_skips++] = c->side[s].cookie;
}

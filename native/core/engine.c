/* SPDX-License-Identifier: MIT
 *
 * Walks the records of a batch and gives each to its room: processes (proc.c), connections (conn.c), outputs (emit.c).
 */
#include "engine_int.h"

#include <stdlib.h>
#include <string.h>

#define TICK_NS (20 * 1000 * 1000ULL)
#define KEY_TTL_NS (60 * 1000 * 1000 * 1000ULL)
#define MAX_KEYS 65536

as_engine *as_engine_new(const as_engine_opts *o) {
    as_engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->o = *o;
    if (!e->o.max_pending)
        e->o.max_pending = 1 << 20;
    if (!e->o.reorder_ns)
        e->o.reorder_ns = 50 * 1000 * 1000ULL;
    as_outs_init(&e->outs);
    e->budget.max = o->body_budget ? o->body_budget : (size_t)256 << 20;
    e->keys = as_keyring_new(MAX_KEYS, KEY_TTL_NS);
    if (o->n_plain_ports) {
        e->ports = malloc(o->n_plain_ports * sizeof *e->ports);
        if (e->ports)
            memcpy(e->ports, o->plain_ports, o->n_plain_ports * sizeof *e->ports);
    }
    e->o.plain_ports = e->ports;
    if (!e->keys || (o->n_plain_ports && !e->ports)) {
        as_engine_free(e);
        return NULL;
    }
    return e;
}

void as_engine_free(as_engine *e) {
    if (!e)
        return;
    as_meta m = {.ts = e->now};
    while (e->conns)
        conn_end(e->conns, &m);
    proc_free_all(e);
    as_keyring_free(e->keys);
    as_hmap_free(&e->procs);
    as_hmap_free(&e->ends);
    as_hmap_free(&e->tuples);
    as_hmap_free(&e->execs);
    as_outs_free(&e->outs);
    free(e->ports);
    free(e);
}

as_outs *as_engine_outs(as_engine *e) {
    return &e->outs;
}

as_meta meta_of(as_engine *e, const struct as_hdr *h, uint32_t uid) {
    as_meta m = {.ts = h->ts, .tgid = h->tgid, .tid = h->tid, .uid = uid, .seq = (uint32_t)e->seq};
    return m;
}

static void copy_record(as_engine *e, as_out_kind kind, const struct as_hdr *h) {
    as_meta m = meta_of(e, h, 0);
    as_out *o = emit_new(e, kind, &m);
    if (o)
        o->u.rec.rec = as_outs_copy(&e->outs, h, h->len).p;
}

static void one(as_engine *e, const struct as_hdr *h) {
    as_meta m;
    switch (h->kind) { /* each case: the record is at least as long as its structure */
#define NEED(type)                                                                                                               \
    if (h->len < sizeof(type)) {                                                                                                 \
        e->st.damaged++;                                                                                                         \
        return;                                                                                                                  \
    }
    case AS_K_DATA:
        NEED(struct as_data)
        conn_data(e, (const struct as_data *)h);
        break;
    case AS_K_CONN:
        NEED(struct as_conn)
        conn_record(e, (const struct as_conn *)h);
        break;
    case AS_K_CLOSE:
        NEED(struct as_close)
        conn_close(e, (const struct as_close *)h);
        break;
    case AS_K_SECRET:
        NEED(struct as_secret)
        m = meta_of(e, h, 0);
        conn_secret(e, (const struct as_secret *)h, &m);
        break;
    case AS_K_STDIO:
        NEED(struct as_stdio)
        m = meta_of(e, h, ((const struct as_stdio *)h)->uid);
        if (e->o.want_stdio)
            emit_stdio(e, (const struct as_stdio *)h, &m);
        break;
    case AS_K_FORK:
        NEED(struct as_fork)
        proc_fork(e, (const struct as_fork *)h);
        break;
    case AS_K_EXEC:
        NEED(struct as_exec)
        proc_exec(e, (const struct as_exec *)h);
        break;
    case AS_K_EXEC_ARGS:
        NEED(struct as_exec_args)
        proc_exec_args(e, (const struct as_exec_args *)h);
        break;
    case AS_K_EXIT:
        NEED(struct as_exit)
        proc_exit(e, (const struct as_exit *)h);
        break;
    case AS_K_CLOCK:
        NEED(struct as_clock)
        e->clock_boot = h->ts;
        e->clock_wall = ((const struct as_clock *)h)->wall_ns;
        e->have_clock = 1;
        break;
    case AS_K_TICK:
        break;
    case AS_K_DROPS:
        NEED(struct as_drops)
        copy_record(e, AS_O_DROPS, h);
        break;
    case AS_K_NOTE:
        NEED(struct as_note)
        copy_record(e, AS_O_NOTE, h);
        break;
    default:
        e->st.unknown_records++;
    }
#undef NEED
}

void as_engine_feed(as_engine *e, const uint8_t *batch, size_t n) {
    size_t at = 0;
    e->st.batches++;
    e->outs_round++; /* the caller has cleared the outputs since the last call */
    while (n - at >= sizeof(struct as_hdr)) {
        const struct as_hdr *h = (const struct as_hdr *)(const void *)(batch + at);
        if (h->len < sizeof *h || (h->len & 7) || h->len > n - at) {
            e->st.damaged++;
            return;
        }
        e->seq++;
        if (h->ts > e->now)
            e->now = h->ts;
        if (e->now - e->last_tick >= TICK_NS) {
            as_meta m = {.ts = e->now, .seq = (uint32_t)e->seq};
            e->last_tick = e->now;
            conn_tick(e, &m);
            as_keyring_expire(e->keys, e->now);
            proc_sweep(e);
        }
        one(e, h);
        at += h->len;
    }
    if (at != n)
        e->st.damaged++;
    e->st.records = e->seq;
}

void as_engine_flush(as_engine *e) {
    as_meta m = {.ts = e->now, .seq = (uint32_t)e->seq};
    e->outs_round++;
    proc_flush(e);
    /* oldest first: the list has the newest at its head */
    conn *c = e->conns;
    while (c && c->next)
        c = c->next;
    while (c) {
        conn *before = c->prev;
        conn_end(c, &m);
        c = before;
    }
}

static void add(as_conn_account *to, const as_conn_account *a) {
    to->seen += a->seen;
    to->tls_handshake += a->tls_handshake;
    to->tls_opened += a->tls_opened;
    for (int i = 0; i < AS_TLS_REASONS; i++)
        to->tls_closed[i] += a->tls_closed[i];
    to->waiting += a->waiting;
    to->plain += a->plain;
    to->other += a->other;
    to->skipped += a->skipped;
    to->missing += a->missing;
    to->mirrored += a->mirrored;
    to->plaintext += a->plaintext;
    to->undecoded += a->undecoded;
    to->duplicate += a->duplicate;
}

void as_engine_stats_get(as_engine *e, as_engine_stats *out) {
    e->st.a = e->done;
    for (conn *c = e->conns; c; c = c->next) {
        as_conn_account a;
        conn_account(c, &a);
        add(&e->st.a, &a);
    }
    e->st.http = e->hstats;
    as_keyring_stats_get(e->keys, &e->st.keys);
    e->st.lost_outputs = e->outs.lost;
    e->st.budget_refused = e->budget.refused;
    *out = e->st;
}

size_t as_engine_skips(as_engine *e, uint64_t *cookies, size_t max) {
    size_t n = e->n_skips < max ? e->n_skips : max;
    memcpy(cookies, e->skips, n * sizeof *cookies);
    e->n_skips = 0;
    return n;
}

size_t as_engine_asks(as_engine *e, uint32_t *tgids, size_t max) {
    size_t n = e->n_asks < max ? e->n_asks : max;
    memcpy(tgids, e->asks, n * sizeof *tgids);
    e->n_asks = 0;
    return n;
}

size_t as_engine_wants(as_engine *e, uint32_t *tgids, size_t max) {
    size_t n = e->n_wants < max ? e->n_wants : max;
    memcpy(tgids, e->wants, n * sizeof *tgids);
    e->n_wants = 0;
    return n;
}

static int darker(const void *a, const void *b) {
    const as_dark *x = a, *y = b;
    if (x->total != y->total)
        return x->total < y->total ? 1 : -1;
    return x->who.tgid < y->who.tgid ? -1 : x->who.tgid > y->who.tgid;
}

size_t as_engine_dark(as_engine *e, as_dark *out, size_t max) {
    as_dark *all = calloc(e->procs.n + 1, sizeof *all);
    size_t n = 0;
    if (!all)
        return 0;
    for (size_t i = 0; i < e->procs.cap; i++) {
        const proc *p = e->procs.slots[i].val;
        uint64_t total = 0;
        if (!p)
            continue;
        for (int r = 1; r < AS_TLS_REASONS; r++)
            if (r != AS_TLS_REJECTED) /* refused early data: the server never read it either */
                total += p->dark[r];
        if (!total)
            continue;
        as_dark *d = &all[n++];
        d->who.tgid = p->tgid;
        d->who.start = p->start;
        memcpy(d->who.comm, p->comm, sizeof d->who.comm);
        if (p->exe)
            strncpy(d->exe, p->exe, sizeof d->exe - 1);
        memcpy(d->bytes, p->dark, sizeof d->bytes);
        d->total = total;
    }
    qsort(all, n, sizeof *all, darker);
    if (n > max)
        n = max;
    memcpy(out, all, n * sizeof *out);
    free(all);
    return n;
}

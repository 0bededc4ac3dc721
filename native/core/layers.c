/* SPDX-License-Identifier: MIT
 *
 * What a connection's bytes are: the first ones tell TLS, HTTP or neither; TLS is opened and its plaintext goes through the same
 * door as plain HTTP.
 */
#include "engine_int.h"

#include <stdlib.h>
#include <string.h>

static void plaintext(conn *c, int f, const uint8_t *p, size_t n, const as_meta *m);

/* ---- from TLS ---- */

static void tls_plain(void *u, int f, const uint8_t *p, size_t n, const as_meta *m) {
    conn *c = u;
    c->flow[f].plaintext += n;
    plaintext(c, f, p, n, m);
}

static void tls_gap(void *u, int f, uint64_t n, enum as_tls_reason reason, const as_meta *m) {
    conn *c = u;
    (void)n;
    (void)reason;
    if (c->http)
        as_hconn_gap(c->http, f, 0, m); /* how much plaintext it held is not known */
}

static void tls_handshake(void *u, const as_tls_info *info, const as_meta *m) {
    conn *c = u;
    if (info->client_flow >= 0)
        c->client = info->client_flow;
    if (c->e->o.want_handshakes)
        emit_handshake(c, info, m);
}

static void tls_eof(void *u, int f, const as_meta *m) {
    conn *c = u;
    if (c->http)
        as_hconn_eof(c->http, f, m);
}

static const as_tls_sink tls_sink = {tls_plain, tls_gap, tls_handshake, tls_eof};

/* ---- to HTTP ---- */

static int joined_late(const conn *c) {
    return !c->side[0].from_start && !c->side[1].from_start;
}

static as_hconn *need_http(conn *c, const as_meta *m) {
    if (!c->http) {
        as_engine *e = c->e;
        as_hopts o = {.budget = &e->budget, .keep_sse_body = e->o.raw_data};
        c->http = as_hconn_new(&o, &emit_http_sink, c, &e->hstats);
        for (int f = 0; c->http && joined_late(c) && f < 2; f++)
            as_hconn_gap(c->http, f, 0, m); /* what is seen first need not be a message's beginning */
    }
    return c->http;
}

static void plaintext(conn *c, int f, const uint8_t *p, size_t n, const as_meta *m) {
    flow *w = &c->flow[f];
    if (c->e->o.want_raw && !c->e->o.want_http)
        emit_raw(c, f, w->plain_off, p, n, m, 0);
    if (c->e->o.raw_data)
        raw_keep(c, f, p, n);
    w->plain_off += n;
    as_hconn *h = need_http(c, m);
    if (h)
        as_hconn_feed(h, f, p, n, m);
    else
        c->e->st.lost_outputs++;
}

/* ---- the first bytes ---- */

static void ask_about(conn *c) { /* a live capture may still find the stack of a process that begins TLS */
    as_engine *e = c->e;
    for (int s = 0; s < 2; s++) {
        proc *p = c->side[s].tgid ? proc_need(e, c->side[s].tgid) : NULL;
        if (p && !p->asked && e->n_asks < sizeof e->asks / sizeof *e->asks) {
            p->asked = 1;
            e->asks[e->n_asks++] = p->tgid;
        }
    }
}

static void begin_tls(conn *c) {
    c->kind = C_TLS;
    c->tls = as_tls_new(c->e->keys, &tls_sink, c, NULL);
    if (!c->tls) {
        c->e->st.lost_outputs++;
        c->kind = C_OTHER;
        return;
    }
    if (joined_late(c))
        as_tls_late(c->tls);
    for (int s = 0; s < 2; s++)
        if (c->side[s].tgid)
            as_tls_touch(c->tls, c->side[s].tgid, c->side[s].tid);
    ask_about(c);
}

static void feed_kind(conn *c, int f, const uint8_t *p, size_t n, const as_meta *m) {
    if (c->kind == C_TLS) {
        as_tls_feed(c->tls, f, p, n, m);
        if (!c->waiting && as_tls_waiting(c->tls))
            conn_wait(c);
    } else if (c->kind == C_HTTP) {
        c->flow[f].plaintext += n;
        plaintext(c, f, p, n, m);
    }
}

static void decide(conn *c, enum conn_kind kind) {
    c->kind = kind;
    if (kind == C_TLS)
        begin_tls(c);
    if (c->kind == C_OTHER)
        conn_skip(c);
    for (int f = 0; f < 2; f++) {
        flow *w = &c->flow[f];
        size_t n = w->n_sniff;
        w->n_sniff = 0;
        if (n)
            feed_kind(c, f, w->sniff, n, &w->sniff_meta);
        if (w->n_late)
            feed_kind(c, f, w->late, w->n_late, &w->sniff_meta);
    }
    layer_free(c);
}

void layer_free(conn *c) {
    for (int f = 0; f < 2; f++) {
        flow *w = &c->flow[f];
        free(w->late);
        w->late = NULL;
        w->n_late = w->c_late = 0;
    }
}

/* ---- TLS after a beginning in the clear ---- */

/*
 * STARTTLS (RFC 3207, 2595, 4511), PostgreSQL's SSLRequest, SOCKS (RFC 1928), the PROXY line: the client says hello when it was
 * told that it may, so its first record begins a chunk of its own. So many bytes, both directions together, are waited for.
 */
#define CLEAR_MAX 4096

static int wait_for_tls(conn *c, int f, size_t n) { /* n more bytes that are neither TLS nor HTTP; may TLS still begin? */
    if (joined_late(c) || c->flow[0].clear + c->flow[1].clear + n > CLEAR_MAX)
        return 0;
    c->flow[f].clear += n;
    c->flow[f].n_sniff = 0;
    return 1;
}

/* ---- joined inside a record ---- */

#define LATE_MAX 40000 /* two of the longest records, and what the first of them is behind */
#define LATE_RECORD (16384 + 256)

static int record_at(const uint8_t *p, size_t n) { /* may an encrypted record begin here? its length, 0 no */
    if (n < 5 || p[0] != 23 || p[1] != 3 || p[2] != 3)
        return 0;
    int len = p[3] << 8 | p[4];
    return len >= 17 && len <= LATE_RECORD ? 5 + len : 0;
}

/* Is there a record in p? 1: one that ends with the bytes or before another one's header; 0: not in so many bytes; -1: wait. */
static int find_record(const uint8_t *p, size_t n) {
    for (size_t i = 0; i + 5 <= n; i++) {
        const uint8_t *at = memchr(p + i, 23, n - i - 4);
        if (!at)
            break;
        i = (size_t)(at - p);
        size_t len = (size_t)record_at(at, n - i);
        if (len && (i + len == n || (i + len + 5 <= n && record_at(at + len, n - i - len))))
            return 1;
    }
    return n < LATE_MAX ? -1 : 0;
}

static void join_late(conn *c, int f, const uint8_t *p, size_t n, const as_meta *m) {
    flow *w = &c->flow[f];
    if (w->n_late + n > w->c_late) {
        size_t cap = w->c_late ? w->c_late : 4096;
        while (cap < w->n_late + n)
            cap *= 2;
        uint8_t *b = realloc(w->late, cap);
        if (!b) {
            c->e->st.lost_outputs++;
            decide(c, C_OTHER);
            return;
        }
        w->late = b;
        w->c_late = cap;
    }
    memcpy(w->late + w->n_late, p, n);
    w->n_late += n;
    w->sniff_meta = *m;
    int found = find_record(w->late, w->n_late);
    if (found >= 0)
        decide(c, found ? C_TLS : C_OTHER);
}

void layer_bytes(conn *c, int f, const uint8_t *p, size_t n, const as_meta *m) {
    flow *w = &c->flow[f];
    if (c->kind != C_UNKNOWN) {
        feed_kind(c, f, p, n, m);
        return;
    }
    if (w->n_late) {
        join_late(c, f, p, n, m);
        return;
    }
    const uint8_t *first = p;
    size_t have = n;
    if (w->n_sniff) {
        size_t room = sizeof w->sniff - w->n_sniff, take = n < room ? n : room;
        memcpy(w->sniff + w->n_sniff, p, take);
        first = w->sniff;
        have = w->n_sniff + take;
    }
    int tls = as_tls_sniff(first, have, joined_late(c));
    int clear = c->flow[0].clear || c->flow[1].clear;
    int http = conn_plain_allowed(c) && !clear ? as_http_sniff(first, have) : 0;
    enum conn_kind kind = C_UNKNOWN;
    if (tls > 0)
        kind = C_TLS;
    else if (http > 0)
        kind = C_HTTP;
    else if ((!tls && !http) || have >= sizeof w->sniff)
        kind = C_OTHER;
    if (kind == C_UNKNOWN) { /* too few bytes to tell: keep them */
        size_t take = n < sizeof w->sniff - w->n_sniff ? n : sizeof w->sniff - w->n_sniff;
        memcpy(w->sniff + w->n_sniff, p, take);
        w->n_sniff += take;
        w->sniff_meta = *m;
        return;
    }
    if (kind == C_OTHER && !tls && joined_late(c)) { /* it may be the middle of a record */
        uint8_t head[sizeof w->sniff];
        size_t k = w->n_sniff;
        memcpy(head, w->sniff, k);
        w->n_sniff = 0;
        if (k)
            join_late(c, f, head, k, &w->sniff_meta);
        if (c->kind == C_UNKNOWN)
            join_late(c, f, p, n, m);
        else
            feed_kind(c, f, p, n, m);
        return;
    }
    if (kind == C_OTHER && wait_for_tls(c, f, w->n_sniff + n))
        return;
    decide(c, kind);
    feed_kind(c, f, p, n, m);
}

void layer_gap(conn *c, int f, uint64_t n, const as_meta *m) {
    if (c->kind == C_TLS)
        as_tls_gap(c->tls, f, n, m);
    else if (c->kind == C_HTTP && c->http)
        as_hconn_gap(c->http, f, n, m);
    else if (c->kind == C_UNKNOWN)
        c->flow[f].n_sniff = c->flow[f].n_late = 0;
}

void layer_eof(conn *c, int f, const as_meta *m) {
    if (c->kind == C_TLS)
        as_tls_eof(c->tls, f, m);
    if (c->http)
        as_hconn_eof(c->http, f, m);
}

void layer_flush(conn *c, const as_meta *m) {
    if (c->tls)
        as_tls_flush(c->tls, m);
    if (c->http)
        as_hconn_flush(c->http, m);
}

/* SPDX-License-Identifier: MIT
 *
 * From the layers' callbacks to outputs: everything that lives only during a callback is copied into the outputs' arena.
 */
#include "engine_int.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_FRAMES ((size_t)64 << 20) /* bytes of SSE payload kept of one response */

as_out *emit_new(as_engine *e, as_out_kind kind, const as_meta *m) {
    as_out *o = as_outs_add(&e->outs, kind);
    if (!o)
        return NULL;
    o->seq = e->seq;
    o->ts = m->ts;
    o->meta = *m;
    int64_t wall = (int64_t)e->clock_wall + ((int64_t)m->ts - (int64_t)e->clock_boot);
    o->wall_ms = e->have_clock ? wall / 1000000 : 0;
    return o;
}

static void address(const conn *c, int s, char *out, size_t n) {
    char ip[INET6_ADDRSTRLEN] = "?";
    if (c->family == AF_INET && inet_ntop(AF_INET, c->addr[s], ip, sizeof ip))
        snprintf(out, n, "%s:%u", ip, c->port[s]);
    else if (c->family == AF_INET6 && inet_ntop(AF_INET6, c->addr[s], ip, sizeof ip))
        snprintf(out, n, "[%s]:%u", ip, c->port[s]);
    else
        snprintf(out, n, "?");
}

const as_peers *emit_peers(conn *c) {
    as_engine *e = c->e;
    as_peers p;
    memset(&p, 0, sizeof p);
    int cl = c->client >= 0 ? c->client : 0;
    if (c->side[cl].tgid)
        proc_ref(e, c->side[cl].tgid, &p.client);
    if (c->side[1 - cl].tgid)
        proc_ref(e, c->side[1 - cl].tgid, &p.server);
    int own = c->side[cl].tgid ? cl : 1 - cl;
    p.owner = c->side[cl].tgid ? p.client : p.server;
    p.conn = c->id;
    p.tls = c->kind == C_TLS;
    if (c->peers_round == e->outs_round && c->peers_out && !memcmp(&c->peers.client, &p.client, sizeof p.client) &&
        !memcmp(&c->peers.server, &p.server, sizeof p.server) && !memcmp(&c->peers.owner, &p.owner, sizeof p.owner))
        return c->peers_out; /* told before in these outputs */
    address(c, own, p.local, sizeof p.local);
    address(c, 1 - own, p.remote, sizeof p.remote);
    as_peers *q = as_arena_get(&e->outs.arena, sizeof *q);
    if (!q) {
        e->outs.lost++;
        return NULL;
    }
    *q = p;
    c->peers = p;
    c->peers_out = q;
    c->peers_round = e->outs_round;
    return q;
}

/* One event per tracked end, as each end would tell it. */
void emit_raw(conn *c, int f, uint64_t off, const uint8_t *p, size_t n, const as_meta *m, int unparsed) {
    as_engine *e = c->e;
    as_slice data = as_outs_copy(&e->outs, p, n);
    for (int k = 0; k < 2; k++) {
        int s = k ? 1 - f : f; /* the sender first */
        if (!c->side[s].present)
            continue;
        as_out *o = emit_new(e, AS_O_RAW, m);
        const as_peers *base = emit_peers(c);
        as_peers *q = o && base ? as_arena_get(&e->outs.arena, sizeof *q) : NULL;
        if (!q)
            return;
        *q = *base;
        proc_ref(e, c->side[s].tgid, &q->owner);
        o->peers = q;
        o->meta.tgid = c->side[s].tgid;
        o->meta.tid = c->side[s].tid;
        o->meta.uid = c->side[s].uid;
        o->u.raw.data = data;
        o->u.raw.offset = off;
        o->u.raw.write = s == f;
        o->u.raw.unparsed = unparsed;
    }
}

void emit_handshake(conn *c, const as_tls_info *info, const as_meta *m) {
    as_out *o = emit_new(c->e, AS_O_HANDSHAKE, m);
    if (o) {
        o->peers = emit_peers(c);
        o->u.handshake = *info;
    }
}

void emit_conn(conn *c, const as_meta *m) {
    as_out *o = emit_new(c->e, AS_O_CONN, m);
    if (!o)
        return;
    o->peers = emit_peers(c);
    conn_account(c, &o->u.conn.a);
    if (c->tls && as_tls_info_get(c->tls))
        o->u.conn.tls = *as_tls_info_get(c->tls);
    o->u.conn.protocol = c->kind == C_TLS ? 1 : c->kind == C_HTTP ? 2 : 0;
    o->u.conn.requests = c->requests;
    o->u.conn.responses = c->responses;
    o->u.conn.start = c->start;
}

void emit_stdio(as_engine *e, const struct as_stdio *r, const as_meta *m) {
    if (r->cap > r->h.len - sizeof *r) {
        e->st.damaged++;
        return;
    }
    as_out *o = emit_new(e, AS_O_STDIO, m);
    if (!o)
        return;
    o->u.rec.rec = as_outs_copy(&e->outs, r, sizeof *r + r->cap).p;
    proc_ref(e, r->h.tgid, &o->u.rec.who);
}

/* ---- HTTP ---- */

static as_slice host_of(const as_hmsg *req) {
    for (size_t i = 0; i < req->n_headers; i++)
        if (req->headers[i].name.n == 4 && !strncasecmp((const char *)req->headers[i].name.p, "host", 4))
            return req->headers[i].value;
    return (as_slice){NULL, 0};
}

static as_slice dup(as_engine *e, as_slice s) {
    return as_outs_copy(&e->outs, s.p, s.n);
}

static const as_header *dup_headers(as_engine *e, const as_header *h, size_t n) {
    if (!n)
        return NULL;
    as_header *d = as_arena_get(&e->outs.arena, n * sizeof *d);
    if (!d) {
        e->outs.lost++;
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        d[i].name = dup(e, h[i].name);
        d[i].value = dup(e, h[i].value);
    }
    return d;
}

/* ---- the wire bytes of messages, where asked for ---- */
#define MAX_RAW ((size_t)16 << 20)

static int grow(uint8_t **p, size_t *cap, size_t need);

void raw_keep(conn *c, int f, const uint8_t *p, size_t n) {
    flow *w = &c->flow[f];
    if (w->n_raw + n > MAX_RAW || grow(&w->raw, &w->c_raw, w->n_raw + n)) {
        w->n_raw = 0; /* too long: the message is told without them */
        w->raw_off = w->plain_off + n;
        return;
    }
    if (!w->n_raw)
        w->raw_off = w->plain_off;
    memcpy(w->raw + w->n_raw, p, n);
    w->n_raw += n;
}

static as_slice raw_take(conn *c, const as_hmsg *m) {
    flow *w = &c->flow[m->flow];
    as_slice s = {NULL, 0};
    if (m->off < w->raw_off || m->off - w->raw_off >= w->n_raw)
        return s;
    size_t at = m->off - w->raw_off, n = w->n_raw - at;
    if (m->wire < n)
        n = m->wire;
    s = as_outs_copy(&c->e->outs, w->raw + at, n);
    memmove(w->raw, w->raw + at + n, w->n_raw - at - n);
    w->n_raw -= at + n;
    w->raw_off += at + n;
    return s;
}

static void http_message(conn *c, const as_hmsg *m) {
    as_engine *e = c->e;
    if (!e->o.want_http && !e->o.want_frames)
        return;
    as_out *o = emit_new(e, AS_O_HTTP, &m->last);
    if (!o)
        return;
    o->peers = emit_peers(c);
    as_out_http *h = &o->u.http;
    h->m = *m;
    h->m.request = NULL;
    h->m.first_line = dup(e, m->first_line);
    h->m.method = dup(e, m->method);
    h->m.target = dup(e, m->target);
    h->m.version = dup(e, m->version);
    h->m.reason = dup(e, m->reason);
    h->m.coding = dup(e, m->coding);
    h->m.body = dup(e, m->body);
    if (e->o.raw_data)
        h->raw = raw_take(c, m);
    h->m.headers = dup_headers(e, m->headers, m->n_headers);
    if (!h->m.headers)
        h->m.n_headers = 0;
    h->m.trailers = dup_headers(e, m->trailers, m->n_trailers);
    if (!h->m.trailers)
        h->m.n_trailers = 0;
    const as_hmsg *req = m->is_request ? m : m->request;
    if (req) {
        h->req_method = dup(e, req->method);
        h->req_target = dup(e, req->target);
        h->req_host = dup(e, host_of(req));
        h->req_start = req->ts_start;
        h->req_end = req->ts_end;
    }
}

static void on_request(void *u, const as_hmsg *m) {
    conn *c = u;
    c->client = m->flow;
    c->requests++;
    http_message(c, m);
}

/* ---- SSE frames ---- */

static int grow(uint8_t **p, size_t *cap, size_t need) {
    if (need <= *cap)
        return 0;
    size_t want = *cap ? *cap * 2 : 4096;
    while (want < need)
        want *= 2;
    uint8_t *q = realloc(*p, want);
    if (!q)
        return -1;
    *p = q;
    *cap = want;
    return 0;
}

static void frames_reset(conn *c) { /* keeps the buffers for the next response */
    frames_buf *b = &c->fr;
    c->e->budget.used -= b->n_frames;
    for (size_t i = 0; i < b->n_others; i++)
        free((void *)(uintptr_t)b->others[i].p);
    b->n_frames = b->n_names = b->n_times = b->n_ends = b->n_others = b->others_bytes = 0;
    b->count = b->gaps = 0;
    b->active = b->limited = 0;
}

void frames_free(conn *c) {
    frames_reset(c);
    free(c->fr.frames);
    free(c->fr.names);
    free(c->fr.times);
    free(c->fr.ends);
    free(c->fr.others);
    memset(&c->fr, 0, sizeof c->fr);
    free(c->flow[0].raw);
    free(c->flow[1].raw);
}

/* An object, or an array that is none of the "[DONE]" kind. */
static int json_begin(as_slice s) {
    size_t i = 0;
    while (i < s.n && (s.p[i] == ' ' || s.p[i] == '\t' || s.p[i] == '\n'))
        i++;
    if (i < s.n && s.p[i] == '[' && i + 1 < s.n)
        return strchr("{[]\"-0123456789tfn \t\n", s.p[i + 1]) != NULL && s.p[i + 1];
    return i < s.n && s.p[i] == '{';
}

static size_t put_name(uint8_t *d, as_slice name) { /* at most 2 * 64 + 3 bytes: a JSON string */
    size_t n = 0;
    d[n++] = '"';
    for (size_t i = 0; i < name.n && i < 64; i++) {
        uint8_t ch = name.p[i];
        if (ch == '"' || ch == '\\')
            d[n++] = '\\';
        d[n++] = ch < 0x20 || ch >= 0x7f ? '?' : ch;
    }
    d[n++] = '"';
    return n;
}

static int keep_other(frames_buf *b, as_slice data) {
    if (b->n_others >= 65536 || b->others_bytes + data.n > MAX_FRAMES)
        return -1;
    if (b->n_others == b->c_others) {
        size_t cap = b->c_others ? b->c_others * 2 : 4;
        as_slice *q = realloc(b->others, cap * sizeof *q);
        if (!q)
            return -1;
        b->others = q;
        b->c_others = cap;
    }
    uint8_t *d = malloc(data.n ? data.n : 1);
    if (!d)
        return -1;
    if (data.n)
        memcpy(d, data.p, data.n);
    b->others[b->n_others++] = (as_slice){d, data.n};
    b->others_bytes += data.n;
    return 0;
}

static void keep_frame(conn *c, const as_hmsg *resp, const as_sse_ev *ev) {
    frames_buf *b = &c->fr;
    as_budget *bud = &c->e->budget;
    if (b->done_plus1 == resp->exchange + 1) /* behind the stream's own end: the call is told already */
        return;
    if (!b->active || b->exchange != resp->exchange) {
        frames_reset(c);
        b->active = 1;
        b->exchange = resp->exchange;
    }
    b->count++;
    b->gaps += !!ev->after_gap;
    if (!json_begin(ev->data)) {
        if (keep_other(b, ev->data))
            b->limited = 1;
        return;
    }
    size_t need = ev->data.n + 2;
    if (b->n_frames + need > MAX_FRAMES || bud->used + need > bud->max ||
        grow(&b->frames, &b->c_frames, b->n_frames + need + 1) || grow(&b->names, &b->c_names, b->n_names + 140) ||
        grow(&b->times, &b->c_times, b->n_times + 8) || grow(&b->ends, &b->c_ends, b->n_ends + 4)) {
        b->limited = 1;
        bud->refused += ev->data.n;
        return;
    }
    size_t before = b->n_frames;
    b->frames[b->n_frames++] = before ? ',' : '[';
    memcpy(b->frames + b->n_frames, ev->data.p, ev->data.n);
    b->n_frames += ev->data.n;
    b->names[b->n_names++] = before ? ',' : '[';
    b->n_names += put_name(b->names + b->n_names, ev->event);
    uint32_t end = (uint32_t)b->n_frames;
    memcpy(b->ends + b->n_ends, &end, 4);
    b->n_ends += 4;
    memcpy(b->times + b->n_times, &ev->ts, 8);
    b->n_times += 8;
    bud->used += b->n_frames - before;
}

static void give_frames(conn *c, const as_hmsg *resp) {
    as_engine *e = c->e;
    frames_buf *b = &c->fr;
    if (!b->active || b->exchange != resp->exchange)
        return;
    as_out *o = emit_new(e, AS_O_FRAMES, &resp->last);
    if (o) {
        as_out_frames *f = &o->u.frames;
        o->peers = emit_peers(c);
        f->exchange = resp->exchange;
        f->count = b->count;
        f->gaps = b->gaps;
        f->limited = b->limited;
        if (b->n_frames) {
            b->frames[b->n_frames] = ']'; /* keep_frame left room */
            b->names[b->n_names] = ']';
            f->frames = as_outs_copy(&e->outs, b->frames, b->n_frames + 1);
            f->names = as_outs_copy(&e->outs, b->names, b->n_names + 1);
            f->times = as_outs_copy(&e->outs, b->times, b->n_times);
            f->ends = as_outs_copy(&e->outs, b->ends, b->n_ends);
        }
        as_slice *others = b->n_others ? as_arena_get(&e->outs.arena, b->n_others * sizeof *others) : NULL;
        for (size_t i = 0; others && i < b->n_others; i++)
            others[i] = as_outs_copy(&e->outs, b->others[i].p, b->others[i].n);
        f->others = others;
        f->n_others = others ? b->n_others : 0;
    }
    frames_reset(c);
    b->done_plus1 = resp->exchange + 1;
}

static void on_response(void *u, const as_hmsg *m) {
    conn *c = u;
    if (m->flags & AS_HM_INTERIM)
        return; /* counted by the parser; they answer nothing */
    c->client = 1 - m->flow;
    c->responses++;
    if (m->is_sse && c->e->o.want_frames)
        give_frames(c, m);
    http_message(c, m);
}

static void on_sse(void *u, const as_hmsg *resp, const as_sse_ev *ev) {
    conn *c = u;
    as_engine *e = c->e;
    if (e->o.want_frames)
        keep_frame(c, resp, ev);
    if (!e->o.want_sse_each)
        return;
    as_meta m = resp->last;
    m.ts = ev->ts;
    as_out *o = emit_new(e, AS_O_SSE, &m);
    if (!o)
        return;
    o->peers = emit_peers(c);
    o->u.sse.ev = *ev;
    o->u.sse.ev.event = dup(e, ev->event);
    o->u.sse.ev.data = dup(e, ev->data);
    o->u.sse.ev.id = dup(e, ev->id);
    o->u.sse.exchange = resp->exchange;
    if (resp->request) {
        o->u.sse.req_method = dup(e, resp->request->method);
        o->u.sse.req_target = dup(e, resp->request->target);
        o->u.sse.req_host = dup(e, host_of(resp->request));
    }
}

static void on_raw(void *u, int f, uint64_t off, const uint8_t *p, size_t n, const as_meta *m) {
    conn *c = u;
    c->flow[f].undecoded += n;
    if (c->e->o.want_raw && c->e->o.want_http)
        emit_raw(c, f, off, p, n, m, 1);
}

const as_hsink emit_http_sink = {
    .request = on_request, .response = on_response, .response_head = NULL, .sse = on_sse, .raw = on_raw};

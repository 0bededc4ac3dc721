/* SPDX-License-Identifier: MIT
 *
 * One connection: its two directions, the queue of requests that wait for their answer, and the public API of http.h.
 *
 * Pairing is by order. Two things make order uncertain, and each has its rule. (1) The calls of two processes are recorded
 * nearly at once, so an answer can be told before its request: a response that finds no request is held back until there is
 * one, within bounds of bytes and recorded time; likewise what a client sends behind CONNECT or Upgrade, until the answer tells
 * what it is. (2) A hole can swallow messages: behind a hole in the responses, a client that never pipelined is waiting for
 * the answer to its newest request.
 */
#include "http_int.h"

static const as_meta no_meta;

as_hconn *as_hconn_new(const as_hopts *opts, const as_hsink *sink, void *user, as_hstats *shared_stats) {
    as_hconn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    if (opts)
        c->o = *opts;
    if (!c->o.max_body)
        c->o.max_body = 64u << 20;
    if (!c->o.max_head)
        c->o.max_head = 256u << 10;
    if (!c->o.max_headers)
        c->o.max_headers = 512;
    if (!c->o.max_inflate)
        c->o.max_inflate = 256u << 20;
    if (sink)
        c->sink = *sink;
    c->u = user;
    c->st = shared_stats ? shared_stats : &c->own_stats;
    for (int i = 0; i < 2; i++) {
        c->f[i].c = c;
        c->f[i].id = i;
    }
    return c;
}

/* ---- messages and who needs them ---- */

xmsg *as_conn_msg(as_hconn *c) {
    xmsg *x = c->free_list;
    if (!x)
        return calloc(1, sizeof *x);
    c->free_list = x->next;
    c->n_free--;
    return x;
}

static void free_msg(xmsg *x) {
    as_hbuf_free(&x->head);
    as_hbuf_free(&x->trail);
    as_hbuf_free(&x->body);
    free(x->hv);
    free(x);
}

void as_conn_drop(as_hconn *c, xmsg *x) {
    while (x && !x->parsing && !x->paired) {
        xmsg *req = x->req;
        as_body_release(c, x);
        if (c->n_free == 2) {
            free_msg(x);
        } else { /* its buffers serve the next message, as far as they are small */
            as_hbuf head = x->head, trail = x->trail, body = x->body;
            as_header *hv = x->hv;
            size_t cap = x->hv_cap;
            as_hbuf_clear(&head, HTTP_KEEP_BUF);
            as_hbuf_clear(&trail, 0);
            memset(x, 0, sizeof *x);
            x->head = head;
            x->trail = trail;
            x->body = body;
            if (cap > 64) {
                free(hv);
            } else {
                x->hv = hv;
                x->hv_cap = cap;
            }
            x->next = c->free_list;
            c->free_list = x;
            c->n_free++;
        }
        if (req)
            req->paired = 0;
        x = req;
    }
}

void as_conn_emit(as_hconn *c, xmsg *x) {
    if (x->emitted)
        return;
    x->emitted = 1;
    as_hmsg *m = &x->m;
    if (m->is_request)
        c->st->requests++;
    else if (m->flags & AS_HM_INTERIM)
        c->st->interim++;
    else
        c->st->responses++;
    void (*cb)(void *, const as_hmsg *) = m->is_request ? c->sink.request : c->sink.response;
    if (cb)
        cb(c->u, m);
}

void as_conn_raw(hflow *f, uint64_t off, const uint8_t *p, size_t n, const as_meta *m) {
    as_hconn *c = f->c;
    if (!n)
        return;
    c->st->raw_bytes += n;
    if (f->state == F_H2)
        c->st->http2_bytes += n;
    else if (f->state == F_TUNNEL)
        c->st->upgraded_bytes += n;
    if (c->sink.raw)
        c->sink.raw(c->u, f->id, off, p, n, m);
}

/* ---- pairing ---- */

static xmsg *pop(as_hconn *c) {
    xmsg *x = c->q_head;
    if (x) {
        c->q_head = x->next;
        if (!c->q_head)
            c->q_tail = NULL;
        x->next = NULL;
        c->q_len--;
        c->q_bytes -= x->head.n;
    }
    return x;
}

void as_conn_request(as_hconn *c, xmsg *x) {
    x->m.exchange = c->next_exchange++;
    if (c->orphans && x->m.ts_start && x->m.ts_start < c->orphan_ts) {
        c->orphans--; /* its answer was given already: it came first, and could not be held back for so long */
        return;
    }
    c->orphans = 0;
    if (c->unqueued || c->q_len == HTTP_QUEUE_MAX || c->q_bytes + x->head.n > HTTP_QUEUE_HEADS) {
        c->unqueued++;
        c->st->queue_overflow++;
        return;
    }
    if (c->q_len && !c->resp_lost)
        c->pipelined = 1;
    x->paired = 1;
    x->next = NULL;
    if (c->q_tail)
        c->q_tail->next = x;
    else
        c->q_head = x;
    c->q_tail = x;
    c->q_len++;
    c->q_bytes += x->head.n;
    c->no_hold = 0;
    if (x->is_connect || x->is_upgrade)
        c->await = x;
}

void as_conn_pair(as_hconn *c, xmsg *x) {
    as_hmsg *m = &x->m;
    int interim = m->status < 200 && m->status != 101;
    if (c->resp_lost && !c->pipelined)
        while (c->q_len > 1) { /* their answers were in the hole */
            xmsg *old = pop(c);
            if (c->await == old)
                c->await = NULL;
            old->paired = 0;
            as_conn_drop(c, old);
        }
    c->resp_lost = 0;
    if (interim)
        m->flags |= AS_HM_INTERIM;
    xmsg *req = interim ? c->q_head : pop(c);
    if (req) {
        m->request = &req->m;
        m->exchange = req->m.exchange;
        if (!interim)
            x->req = req; /* still `paired`: by us now */
        return;
    }
    m->flags |= AS_HM_NO_REQUEST;
    m->exchange = c->next_exchange - c->unqueued;
    if (interim)
        return;
    c->st->unpaired_responses++;
    if (c->unqueued) {
        c->unqueued--;
    } else {
        c->next_exchange++;
        c->orphans++;
        c->orphan_ts = m->ts_start;
    }
}

void as_conn_answered(as_hconn *c, xmsg *x) {
    as_hmsg *m = &x->m;
    if (m->flags & AS_HM_INTERIM)
        return;
    if (c->await && x->req == c->await)
        c->await = NULL;
    if (c->sink.response_head)
        c->sink.response_head(c->u, m);
    if (m->status == 101 || (x->req && x->req->is_connect && m->status >= 200 && m->status < 300)) {
        as_flow_tunnel(&c->f[0]);
        as_flow_tunnel(&c->f[1]);
    }
}

/* ---- holding back ---- */

int as_conn_must_hold(hflow *f) {
    as_hconn *c = f->c;
    const hflow *o = &c->f[!f->id];
    if (f->role == ROLE_REQ)
        return c->await && o->state != F_DONE && o->state != F_SCAN;
    return !c->q_len && !c->unqueued && !c->req_late && !c->no_hold && o->state != F_DONE;
}

static void stop_holding(hflow *f) {
    if (f->role == ROLE_REQ)
        f->c->await = NULL;
    else
        f->c->no_hold = 1;
}

void as_conn_hold(hflow *f, const uint8_t *p, size_t n) {
    if (!f->segs)
        f->segs = malloc(HTTP_HOLD_SEGS * sizeof *f->segs);
    if (!f->held.n)
        f->hold_ts = f->meta.ts;
    if (!f->segs || !as_hbuf_add(&f->held, p, n)) { /* no memory: they are lost to HTTP */
        f->c->st->hold_overflow++;
        as_conn_raw(f, f->base + (uint64_t)(p - f->d0), p, n, &f->meta);
        return;
    }
    if (f->n_segs == HTTP_HOLD_SEGS) { /* this piece loses its own time */
        f->segs[f->n_segs - 1].n += n;
    } else {
        f->segs[f->n_segs].n = n;
        f->segs[f->n_segs++].m = f->meta;
    }
    if (f->held.n > HTTP_HOLD_MAX) {
        f->c->st->hold_overflow++;
        stop_holding(f);
    }
}

static void feed_flow(hflow *f, uint64_t off, const uint8_t *p, size_t n, const as_meta *m) {
    f->d0 = p;
    f->base = off;
    f->meta = *m;
    as_flow_run(f, p, n);
}

static void release(hflow *f) {
    as_hbuf held = f->held;
    hold_seg *segs = f->segs;
    size_t n = f->n_segs;
    uint64_t off = f->off - held.n;
    const uint8_t *p = held.p;
    f->held = (as_hbuf){NULL, 0, 0};
    f->segs = NULL;
    f->n_segs = 0;
    if (f->state == F_HOLD)
        f->state = F_IDLE;
    for (size_t i = 0; i < n; i++) {
        feed_flow(f, off, p, segs[i].n, &segs[i].m);
        p += segs[i].n;
        off += segs[i].n;
    }
    as_hbuf_free(&held);
    free(segs);
}

int as_conn_release(hflow *f) {
    if (!f->held.n || (f->state == F_HOLD && as_conn_must_hold(f)))
        return 0;
    release(f);
    return 1;
}

static void pump(as_hconn *c) {
    while (as_conn_release(&c->f[0]) || as_conn_release(&c->f[1]))
        ;
}

static void force(hflow *f) /* nothing may stay held back */
{
    if (f->held.n) {
        stop_holding(f);
        pump(f->c);
    }
}

void as_conn_h2(as_hconn *c) {
    for (int i = 0; i < 2; i++) {
        hflow *f = &c->f[i];
        f->state = F_H2;
        as_conn_raw(f, f->hb_off, f->hb.p, f->hb.n, &f->hb_meta);
        as_hbuf_free(&f->hb);
    }
}

/* ---- the public verbs ---- */

void as_hconn_feed(as_hconn *c, int flow, const uint8_t *data, size_t n, const as_meta *m) {
    if (!n)
        return;
    if (!m)
        m = &no_meta;
    for (int i = 0; i < 2; i++) {
        hflow *f = &c->f[i];
        if (f->held.n && f->role != ROLE_REQ && m->ts > f->hold_ts && m->ts - f->hold_ts > HTTP_HOLD_NS) {
            c->st->hold_overflow++;
            force(f);
        }
    }
    hflow *f = &c->f[flow & 1];
    uint64_t off = f->off;
    f->off += n; /* first: what is held back counts from the end */
    feed_flow(f, off, data, n, m);
    pump(c);
}

void as_hconn_gap(as_hconn *c, int flow, uint64_t n, const as_meta *m) {
    hflow *f = &c->f[flow & 1];
    force(f);
    f->meta = m ? *m : no_meta;
    as_flow_gap(f, n);
    pump(c);
}

void as_hconn_eof(as_hconn *c, int flow, const as_meta *m) {
    hflow *f = &c->f[flow & 1];
    force(f);
    f->meta = m ? *m : no_meta;
    as_flow_close(f, 1);
    pump(c);
}

void as_hconn_flush(as_hconn *c, const as_meta *m) {
    int req = c->f[1].role == ROLE_REQ; /* the client's side first: its last request may be what the other one waits for */
    for (int i = 0; i < 2; i++) {
        hflow *f = &c->f[req ^ i];
        force(f);
        f->meta = m ? *m : no_meta;
        as_flow_close(f, 0);
        pump(c);
    }
}

void as_hconn_free(as_hconn *c) {
    if (!c)
        return;
    for (int i = 0; i < 2; i++) {
        hflow *f = &c->f[i];
        xmsg *x = f->x;
        if (x) {
            x->parsing = 0;
            as_conn_drop(c, x);
        }
        as_hbuf_free(&f->hb);
        as_hbuf_free(&f->held);
        free(f->segs);
    }
    for (xmsg *x; (x = pop(c)) != NULL;) {
        x->paired = 0;
        as_conn_drop(c, x);
    }
    for (xmsg *x; (x = c->free_list) != NULL;) {
        c->free_list = x->next;
        free_msg(x);
    }
    free(c);
}

/* SPDX-License-Identifier: MIT
 *
 * What happens to the bytes of a body once its framing is off: codings are undone, SSE events are given, the rest is kept within
 * max_body and the budget of all connections. No byte is looked at twice, and none is copied but into the kept body.
 */
#include "http_int.h"

#define BODY_HINT (1u << 20) /* a Content-Length is believed up to here when memory is taken */

static void keep_bytes(struct as_hconn *c, xmsg *x, const uint8_t *p, size_t n) {
    size_t room = c->o.max_body - x->body.n, k = n < room ? n : room;
    as_budget *b = c->o.budget;
    if (b) {
        size_t left = b->used < b->max ? b->max - b->used : 0;
        if (k > left) {
            b->refused += k - left;
            k = left;
        }
    }
    if (k) {
        if (!x->body.cap && x->m.content_length > 0 && !x->dec) {
            uint64_t hint = (uint64_t)x->m.content_length;
            hint = hint < BODY_HINT ? hint : BODY_HINT;
            (void)as_hbuf_reserve(&x->body, (size_t)hint > k ? (size_t)hint : k);
        }
        if (!as_hbuf_add(&x->body, p, k))
            k = 0;
        else if (b)
            b->used += k;
    }
    if (k < n) {
        x->m.flags |= AS_HM_BODY_LIMIT;
        if (!x->limited++)
            c->st->bodies_limited++;
    }
}

static void set_body(xmsg *x) {
    x->m.body = (as_slice){x->body.p, x->body.n};
}

typedef struct sse_ctx {
    struct as_hconn *c;
    xmsg *x;
    const as_meta *m;
    const uint8_t *piece; /* decoded bytes being given to SSE, not yet kept */
    uint64_t before;      /* body_wire before this piece */
} sse_ctx;

static void on_event(void *u, const as_sse_ev *ev) {
    sse_ctx *k = u;
    xmsg *x = k->x;
    x->m.n_sse++;
    k->c->st->sse_events++;
    if (k->c->sink.sse)
        k->c->sink.sse(k->c->u, &x->m, ev);
    if (!x->emitted && as_sse_is_terminator(ev)) {
        /* The call is over, whatever the transport does later. The rest of it is read for its framing only. */
        uint64_t all = x->m.body_wire;
        if (k->piece && !x->dec) /* what lies behind it in this piece is no part of the answer */
            x->m.body_wire = k->before + x->sse.taken;
        x->m.wire += x->m.body_wire - k->before;
        if (k->c->o.keep_sse_body && k->piece)
            keep_bytes(k->c, x, k->piece, x->sse.taken);
        x->m.flags |= AS_HM_TERMINATED;
        x->m.ts_end = k->m->ts;
        x->m.last = *k->m;
        set_body(x);
        as_conn_emit(k->c, x);
        x->m.body_wire = all;
    }
}

static void decoded(void *u, const uint8_t *p, size_t n) {
    sse_ctx *k = u;
    if (k->x->m.is_sse) {
        k->piece = p;
        as_sse_feed(&k->x->sse, p, n, k->m->ts, on_event, k);
        k->piece = NULL;
        if (k->c->o.keep_sse_body && !k->x->emitted) /* what comes behind the terminator is not kept */
            keep_bytes(k->c, k->x, p, n);
    } else {
        keep_bytes(k->c, k->x, p, n);
    }
}

static void counted(void *u, const uint8_t *p, size_t n) {
    sse_ctx *k = u;
    k->c->st->inflated_out += n;
    decoded(u, p, n);
}

static void broken(struct as_hconn *c, xmsg *x, int status) {
    x->dead = 1;
    if (status == AS_DEC_LIMIT) {
        x->m.flags |= AS_HM_BODY_LIMIT;
        if (!x->limited++)
            c->st->bodies_limited++;
    } else {
        x->m.flags |= AS_HM_DECODE_ERROR;
        c->st->decode_errors++;
    }
}

void as_body_begin(struct as_hconn *c, xmsg *x) {
    if (x->plan.n && !(x->dec = as_dec_new(&x->plan, c->o.max_inflate)))
        broken(c, x, AS_DEC_ERROR);
    if (x->m.is_sse)
        as_sse_init(&x->sse, c->o.budget, 0);
}

void as_body_add(struct as_hconn *c, xmsg *x, const uint8_t *p, size_t n, const as_meta *m) {
    sse_ctx k = {c, x, m, NULL, x->m.body_wire};
    if (!x->m.body_wire)
        x->m.ts_body = m->ts;
    x->m.body_wire += n;
    if (x->dead)
        return;
    if (!x->dec) {
        decoded(&k, p, n);
        return;
    }
    int rc = as_dec_feed(x->dec, p, n, counted, &k);
    if (rc != AS_DEC_OK)
        broken(c, x, rc);
}

void as_body_gap(struct as_hconn *c, xmsg *x, uint64_t n, const as_meta *m) {
    sse_ctx k = {c, x, m, NULL, x->m.body_wire};
    x->m.missing += n;
    x->m.flags |= AS_HM_BODY_MISSING;
    if (x->dec) /* no coding can be picked up in its middle */
        x->dead = 1;
    if (x->m.is_sse)
        as_sse_gap(&x->sse, m->ts, on_event, &k);
}

void as_body_end(struct as_hconn *c, xmsg *x, const as_meta *m) {
    sse_ctx k = {c, x, m, NULL, x->m.body_wire};
    if (x->dec && !x->dead && as_dec_end(x->dec) != AS_DEC_OK && !(x->m.flags & AS_HM_BODY_CUT))
        broken(c, x, AS_DEC_ERROR);
    if (x->m.is_sse) {
        as_sse_end(&x->sse, m->ts, on_event, &k);
        c->st->sse_oversize += x->sse.oversize;
        x->sse.oversize = 0;
    }
    set_body(x);
}

void as_body_release(struct as_hconn *c, xmsg *x) {
    if (c->o.budget)
        c->o.budget->used -= x->body.n;
    as_hbuf_clear(&x->body, HTTP_KEEP_BUF);
    as_dec_free(x->dec);
    x->dec = NULL;
    if (x->m.is_sse)
        as_sse_free(&x->sse);
}

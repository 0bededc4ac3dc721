/* SPDX-License-Identifier: MIT
 *
 * The parts of a direction that are made of lines: heads, trailers, and the search for the next head behind junk or a hole. Lines are
 * gathered in one buffer of the direction, which the finished message takes over. Nothing depends on where the pieces were cut.
 */
#include "http_int.h"

void as_flow_lines(hflow *f, uint64_t off, enum flow_state st) {
    f->hb.n = 0;
    f->hb_off = off;
    f->hb_meta = f->meta;
    f->ln_wire = 0;
    f->ls = f->n_lines = f->n_extra = 0;
    f->ln_drop = f->prev_drop = f->left_out = f->proving = 0;
    f->state = st;
}

static void junk(hflow *f, uint64_t off, const uint8_t *p, size_t n) {
    if (n) {
        f->c->st->skipped_bytes += n;
        as_conn_raw(f, off, p, n, &f->meta);
    }
}

void as_flow_junk(hflow *f) /* the gathered lines were no head */
{
    junk(f, f->hb_off, f->hb.p, f->hb.n);
    f->hb.n = 0;
}

static void lost_place(hflow *f) /* scan from here on, what is gathered in hb included */
{
    f->state = F_SCAN;
    f->bol = f->after_crlf = 1;
    if (f->role != ROLE_RESP)
        f->c->req_late = 1;
    if (f->role != ROLE_REQ)
        f->c->resp_lost = 1;
}

void as_flow_scan(hflow *f, uint64_t off) {
    as_flow_lines(f, off, F_SCAN);
    lost_place(f);
}

/* ---- the end of a message ---- */

void as_flow_finish(hflow *f, uint64_t off) {
    struct as_hconn *c = f->c;
    xmsg *x = f->x;
    f->x = NULL;
    x->m.wire = off - x->m.off - f->fed_gap;
    if (!x->emitted) {
        x->m.ts_end = f->meta.ts;
        x->m.last = f->meta;
    }
    as_body_end(c, x, &f->meta); /* may emit: a terminator without its blank line */
    as_conn_emit(c, x);
    x->parsing = 0;
    as_conn_drop(c, x);
    f->state = f->go_tunnel ? F_TUNNEL : F_IDLE;
}

void as_flow_finish_bad(hflow *f, uint64_t off, uint32_t flags) {
    f->x->m.flags |= flags;
    if (flags & AS_HM_FRAMING_ERROR)
        f->c->st->framing_errors++;
    as_flow_finish(f, off);
}

/* ---- heads ---- */

static void head_done(hflow *f, uint64_t off) {
    struct as_hconn *c = f->c;
    xmsg *x = as_conn_msg(c);
    if (!x) { /* no memory: as if these bytes had been lost */
        as_flow_junk(f);
        as_flow_scan(f, off);
        return;
    }
    if (f->proving) {
        c->st->resyncs++;
        if (f->x) /* a message that was open since a hole: it has ended somewhere in there */
            as_flow_finish_bad(f, f->hb_off, AS_HM_BODY_CUT);
    }
    as_hbuf_swap(&f->hb, &x->head);
    as_hbuf_clear(&f->hb, HTTP_KEEP_BUF);
    as_h1_parse_head(x);
    as_hmsg *m = &x->m;
    m->flow = f->id;
    m->off = f->hb_off;
    m->wire = f->ln_wire;
    m->content_length = -1;
    m->first = f->hb_meta;
    m->ts_start = f->hb_meta.ts;
    m->ts_head = f->meta.ts;
    if (f->left_out)
        m->flags |= AS_HM_HEAD_TRUNCATED;
    f->fed_gap = 0;
    f->role = m->is_request ? ROLE_REQ : ROLE_RESP;
    c->f[!f->id].role = m->is_request ? ROLE_RESP : ROLE_REQ;
    f->x = x;
    x->parsing = 1;
    if (!m->is_request)
        as_conn_pair(c, x);
    enum framing fr = as_h1_framing(x, x->req, &f->left);
    if (m->flags & AS_HM_FRAMING_ERROR)
        c->st->framing_errors++;
    as_body_begin(c, x);
    if (m->is_request)
        as_conn_request(c, x);
    else
        as_conn_answered(c, x);
    switch (fr) {
    case FR_NONE:
        as_flow_finish(f, off);
        break;
    case FR_LEN:
        f->state = F_LEN;
        break;
    case FR_CLOSE:
        f->state = F_EOF;
        break;
    case FR_CHUNKED:
        f->state = F_CSIZE;
        f->c_phase = f->c_digits = 0;
        f->c_len = 0;
        f->left = 0;
        break;
    case FR_BAD: /* where it ends cannot be known */
        as_flow_finish(f, off);
        as_flow_scan(f, off);
        break;
    }
}

/* A complete line stands in hb from `ls` on. For the scan: where does a start line begin in it? */
static int scan_hb(hflow *f, uint64_t off);

static void head_line(hflow *f, uint64_t off) {
    const as_hopts *o = &f->c->o;
    const uint8_t *p = f->hb.p + f->ls;
    size_t n = f->hb.n - f->ls, len = as_h1_trim_line(p, n);
    if (!f->n_lines) {
        as_hmsg m;
        int ok = !f->ln_drop && ((f->role != ROLE_REQ && as_h1_status_line(p, len, &m)) ||
                                 (f->role != ROLE_RESP && as_h1_request_line(p, len, &m)));
        if (!ok) {
            lost_place(f);
            (void)scan_hb(f, off);
            return;
        }
        f->n_lines = 1;
        f->ls = f->hb.n;
        return;
    }
    if (!f->ln_drop && !len) {
        if (f->proving && !as_h1_proof(f->hb.p, f->ls)) {
            as_flow_junk(f);
            f->hb_off = off;
            lost_place(f);
            return;
        }
        head_done(f, off);
        return;
    }
    if (f->proving && (f->ln_drop || f->hb.n > o->max_head || f->n_lines > o->max_headers || !as_h1_field_ok(p, n))) {
        /* No head after all. The lines before this one cannot begin one either: this line would have to be a field of it. */
        f->state = F_SCAN;
        f->bol = f->after_crlf = 1;
        junk(f, f->hb_off, f->hb.p, f->ls);
        f->hb_off += f->ls;
        memmove(f->hb.p, p, n);
        f->hb.n = n;
        f->ls = 0;
        (void)scan_hb(f, off);
        return;
    }
    int fold = !f->ln_drop && (*p == ' ' || *p == '\t');
    int keep = !f->ln_drop && !(fold && f->prev_drop) && f->hb.n <= o->max_head && (fold || f->n_lines <= o->max_headers);
    if (!keep && !f->ln_drop && !fold && f->n_extra < 16 && as_h1_framing_field(p, n)) {
        f->n_extra++; /* without it we would lose our place in the stream */
        keep = 1;
    }
    if (keep) {
        f->n_lines += !fold;
        f->prev_drop = 0;
    } else {
        f->hb.n = f->ls;
        f->prev_drop = 1;
        f->left_out = 1;
        f->c->st->header_limit++;
    }
    f->ls = f->hb.n;
    f->ln_drop = 0;
}

static void trailer_line(hflow *f, uint64_t off) {
    size_t n = f->hb.n - f->ls;
    xmsg *x = f->x;
    if (!f->ln_drop && !as_h1_trim_line(f->hb.p + f->ls, n)) {
        f->hb.n = f->ls;
        as_hbuf_swap(&f->hb, &x->trail);
        as_hbuf_clear(&f->hb, HTTP_KEEP_BUF);
        if (x->trail.n)
            as_h1_parse_trailers(x);
        as_flow_finish(f, off);
        return;
    }
    if (f->ln_drop || f->hb.n > f->c->o.max_head || f->n_lines >= f->c->o.max_headers) {
        f->hb.n = f->ls;
        f->c->st->header_limit++;
        x->m.flags |= AS_HM_HEAD_TRUNCATED;
    } else {
        f->n_lines++;
    }
    f->ls = f->hb.n;
    f->ln_drop = 0;
}

/* Gathers one line (or what there is of it) of a head or trailer section. */
const uint8_t *as_flow_lines_step(hflow *f, const uint8_t *p, const uint8_t *end) {
    const uint8_t *lf = memchr(p, '\n', (size_t)(end - p));
    const uint8_t *e = lf ? lf + 1 : end;
    size_t k = (size_t)(e - p), max = f->c->o.max_head;
    uint64_t room = 16 * (uint64_t)max - f->ln_wire; /* longer than that is no head */
    if (f->state == F_HEAD && k > room) {
        k = (size_t)room;
        e = p + k;
        lf = NULL;
    }
    if (!f->ln_drop) {
        size_t n = f->hb.n - f->ls + k;
        if ((n > HTTP_KEEP_LINE && f->ls + n > max) || !as_hbuf_add(&f->hb, p, k)) {
            if (!f->n_lines && f->state == F_HEAD) { /* a first line of that length is none */
                lost_place(f);
                return p;
            }
            f->ln_drop = 1;
            f->hb.n = f->ls;
        }
    }
    f->ln_wire += k;
    if (f->state == F_HEAD && k == room) {
        uint64_t off = as_flow_at(f, e);
        as_flow_junk(f);
        as_flow_scan(f, off);
        f->bol = 0;
        return e;
    }
    if (lf) {
        if (f->state == F_HEAD)
            head_line(f, as_flow_at(f, e));
        else
            trailer_line(f, as_flow_at(f, e));
    }
    return e;
}

/* ---- looking for the next message ---- */

static int scan_hb(hflow *f, uint64_t off) {
    enum role found;
    uint64_t size;
    size_t at = as_scan_line(f->hb.p, f->hb.n, f->bol, f->role, &found);
    int crlf = f->hb.n >= 2 && f->hb.p[f->hb.n - 2] == '\r';
    if (at < f->hb.n) {
        junk(f, f->hb_off, f->hb.p, at);
        memmove(f->hb.p, f->hb.p + at, f->hb.n - at);
        f->hb.n -= at;
        f->hb_off += at;
        size_t n = f->hb.n;
        as_flow_lines(f, f->hb_off, F_HEAD);
        f->hb.n = f->ls = n;
        f->ln_wire = n;
        f->n_lines = 1;
        f->proving = 1;
        return 1;
    }
    if (f->x && f->after_crlf && as_scan_chunk_size(f->hb.p, f->hb.n, &size)) {
        /* Inside a chunked body: the line of a chunk's size. If it was not one, its chunk will not end with a line end. */
        f->c->st->chunk_resyncs++;
        as_flow_lines(f, off, size ? F_CDATA : F_TRAIL);
        f->left = size;
        return 1;
    }
    as_flow_junk(f);
    f->hb_off = off;
    f->bol = 1;
    f->after_crlf = (uint8_t)crlf;
    return 0;
}

const uint8_t *as_flow_scan_step(hflow *f, const uint8_t *p, const uint8_t *end) {
    const uint8_t *from = p;
    while (p < end) {
        const uint8_t *lf = memchr(p, '\n', (size_t)(end - p));
        if (lf && !f->hb.n) { /* a whole line in this piece: copied only when it is worth it */
            enum role found;
            uint64_t size;
            size_t n = (size_t)(lf + 1 - p);
            if (as_scan_line(p, n, f->bol, f->role, &found) == n && !(f->x && f->after_crlf && as_scan_chunk_size(p, n, &size))) {
                f->bol = 1;
                f->after_crlf = n >= 2 && lf[-1] == '\r';
                p = lf + 1;
                continue;
            }
        }
        const uint8_t *e = lf ? lf + 1 : end;
        if (!f->hb.n) {
            junk(f, as_flow_at(f, from), from, (size_t)(p - from));
            f->hb_off = as_flow_at(f, p);
            f->hb_meta = f->meta;
        }
        from = e;
        if (!as_hbuf_add(&f->hb, p, (size_t)(e - p))) {
            as_flow_junk(f);
            junk(f, as_flow_at(f, p), p, (size_t)(e - p));
        }
        p = e;
        if (lf && f->hb.n) {
            if (scan_hb(f, as_flow_at(f, e)))
                return e;
        } else if (f->hb.n > 4 * HTTP_SCAN_LINE) {
            size_t cut = f->hb.n - HTTP_SCAN_LINE;
            junk(f, f->hb_off, f->hb.p, cut);
            memmove(f->hb.p, f->hb.p + cut, HTTP_SCAN_LINE);
            f->hb.n = HTTP_SCAN_LINE;
            f->hb_off += cut;
            f->bol = 0;
        }
    }
    junk(f, as_flow_at(f, from), from, (size_t)(p - from));
    return p;
}

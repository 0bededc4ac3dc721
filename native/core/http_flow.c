/* SPDX-License-Identifier: MIT
 *
 * The state machine of one direction: start, heads, bodies, chunks, trailers, holes, and the search for the next message behind
 * them. It runs over each piece once; bodies are handed on as they lie there, lines are gathered in one buffer. Nothing it does
 * depends on where the pieces were cut.
 */
#include "http_int.h"

static uint64_t here(const hflow *f, const uint8_t *p)
{
    return f->base + (uint64_t)(p - f->d0);
}

static void begin_lines(hflow *f, uint64_t off, enum flow_state st)
{
    f->hb.n = 0;
    f->hb_off = off;
    f->hb_meta = f->meta;
    f->ln_wire = 0;
    f->ls = f->n_lines = f->n_extra = 0;
    f->ln_drop = f->prev_drop = f->left_out = f->proving = 0;
    f->state = st;
}

static void junk(hflow *f, uint64_t off, const uint8_t *p, size_t n)
{
    if (n) {
        f->c->st->skipped_bytes += n;
        as_conn_raw(f, off, p, n, &f->meta);
    }
}

static void junk_head(hflow *f) /* the gathered lines were no head */
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

static void start_scan(hflow *f, uint64_t off)
{
    begin_lines(f, off, F_SCAN);
    lost_place(f);
}

/* ---- the end of a message ---- */

static void finish(hflow *f, uint64_t off)
{
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

static void finish_bad(hflow *f, uint64_t off, uint32_t flags)
{
    f->x->m.flags |= flags;
    if (flags & AS_HM_FRAMING_ERROR)
        f->c->st->framing_errors++;
    finish(f, off);
}

/* ---- heads ---- */

static void head_done(hflow *f, uint64_t off)
{
    struct as_hconn *c = f->c;
    xmsg *x = as_conn_msg(c);
    if (!x) { /* no memory: as if these bytes had been lost */
        junk_head(f);
        start_scan(f, off);
        return;
    }
    if (f->proving) {
        c->st->resyncs++;
        if (f->x) /* a message that was open since a hole: it has ended somewhere in there */
            finish_bad(f, f->hb_off, AS_HM_BODY_CUT);
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
        finish(f, off);
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
        finish(f, off);
        start_scan(f, off);
        break;
    }
}

/* A complete line stands in hb from `ls` on. For the scan: where does a start line begin in it? */
static int scan_hb(hflow *f, uint64_t off);

static void head_line(hflow *f, uint64_t off)
{
    const as_hopts *o = &f->c->o;
    const uint8_t *p = f->hb.p + f->ls;
    size_t n = f->hb.n - f->ls, len = as_h1_trim_line(p, n);
    if (!f->n_lines) {
        as_hmsg m;
        int ok = !f->ln_drop && ((f->role != ROLE_REQ && as_h1_status_line(p, len, &m)) ||
                                 (f->role != ROLE_RESP && as_h1_request_line(p, len, 0, &m)));
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
            junk_head(f);
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

static void trailer_line(hflow *f, uint64_t off)
{
    size_t n = f->hb.n - f->ls;
    xmsg *x = f->x;
    if (!f->ln_drop && !as_h1_trim_line(f->hb.p + f->ls, n)) {
        f->hb.n = f->ls;
        as_hbuf_swap(&f->hb, &x->trail);
        as_hbuf_clear(&f->hb, HTTP_KEEP_BUF);
        if (x->trail.n)
            as_h1_parse_trailers(x);
        finish(f, off);
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
static const uint8_t *lines_step(hflow *f, const uint8_t *p, const uint8_t *end)
{
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
        uint64_t off = here(f, e);
        junk_head(f);
        start_scan(f, off);
        f->bol = 0;
        return e;
    }
    if (lf) {
        if (f->state == F_HEAD)
            head_line(f, here(f, e));
        else
            trailer_line(f, here(f, e));
    }
    return e;
}

/* ---- looking for the next message ---- */

static int scan_hb(hflow *f, uint64_t off)
{
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
        begin_lines(f, f->hb_off, F_HEAD);
        f->hb.n = f->ls = n;
        f->ln_wire = n;
        f->n_lines = 1;
        f->proving = 1;
        return 1;
    }
    if (f->x && f->after_crlf && as_scan_chunk_size(f->hb.p, f->hb.n, &size)) {
        /* Inside a chunked body: the line of a chunk's size. If it was not one, its chunk will not end with a line end. */
        f->c->st->chunk_resyncs++;
        begin_lines(f, off, size ? F_CDATA : F_TRAIL);
        f->left = size;
        return 1;
    }
    junk_head(f);
    f->hb_off = off;
    f->bol = 1;
    f->after_crlf = (uint8_t)crlf;
    return 0;
}

static const uint8_t *scan_step(hflow *f, const uint8_t *p, const uint8_t *end)
{
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
            junk(f, here(f, from), from, (size_t)(p - from));
            f->hb_off = here(f, p);
            f->hb_meta = f->meta;
        }
        from = e;
        if (!as_hbuf_add(&f->hb, p, (size_t)(e - p))) {
            junk_head(f);
            junk(f, here(f, p), p, (size_t)(e - p));
        }
        p = e;
        if (lf && f->hb.n) {
            if (scan_hb(f, here(f, e)))
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
    junk(f, here(f, from), from, (size_t)(p - from));
    return p;
}

/* ---- bodies ---- */

static const uint8_t *body_step(hflow *f, const uint8_t *p, const uint8_t *end)
{
    size_t n = (size_t)(end - p);
    if (f->state != F_EOF && n > f->left)
        n = (size_t)f->left;
    f->x->m.wire = here(f, p) - f->x->m.off - f->fed_gap;
    as_body_add(f->c, f->x, p, n, &f->meta);
    p += n;
    if (f->state == F_EOF)
        return p;
    f->left -= n;
    if (!f->left) {
        if (f->state == F_LEN)
            finish(f, here(f, p));
        else
            f->state = F_CEND, f->c_phase = 0;
    }
    return p;
}

static const uint8_t *chunk_bad(hflow *f, const uint8_t *p)
{
    uint64_t off = here(f, p);
    finish_bad(f, off, AS_HM_FRAMING_ERROR | AS_HM_BODY_CUT);
    start_scan(f, off);
    return p;
}

static const uint8_t *chunk_size_step(hflow *f, const uint8_t *p, const uint8_t *end)
{
    enum { HEX, EXT, CR };
    while (p < end) {
        uint8_t c = *p, l = c | 0x20;
        if (f->c_phase == EXT) { /* ignored up to the line end */
            const uint8_t *lf = memchr(p, '\n', (size_t)(end - p));
            const uint8_t *e = lf ? lf : end;
            f->c_len += (uint32_t)(e - p < HTTP_CHUNK_LINE ? e - p : HTTP_CHUNK_LINE);
            if (f->c_len >= HTTP_CHUNK_LINE)
                return chunk_bad(f, p);
            if (!lf)
                return end;
            p = lf;
            c = '\n';
        } else if (f->c_phase == HEX) {
            int d = c >= '0' && c <= '9' ? c - '0' : l >= 'a' && l <= 'f' ? l - 'a' + 10 : -1;
            if (d >= 0) {
                if (f->c_digits == 16 || f->left >> 59) /* no body is that long */
                    return chunk_bad(f, p);
                f->c_digits++;
                f->left = f->left << 4 | (uint64_t)d;
                p++;
                continue;
            }
            if (!f->c_digits)
                return chunk_bad(f, p);
            if (c == '\r' || c == ';' || c == ' ' || c == '\t') {
                f->c_phase = c == '\r' ? CR : EXT;
                p++;
                continue;
            }
        }
        if (c != '\n')
            return chunk_bad(f, p);
        p++;
        if (f->left)
            f->state = F_CDATA;
        else
            begin_lines(f, here(f, p), F_TRAIL);
        return p;
    }
    return p;
}

static const uint8_t *chunk_end_step(hflow *f, const uint8_t *p)
{
    if (*p == '\r' && !f->c_phase) {
        f->c_phase = 1;
        return p + 1;
    }
    if (*p != '\n')
        return chunk_bad(f, p);
    f->state = F_CSIZE;
    f->c_phase = f->c_digits = 0;
    f->c_len = 0;
    f->left = 0;
    return p + 1;
}

/* ---- the beginning of a direction, and of a message ---- */

static void decide(hflow *f, int kind, uint64_t off)
{
    struct as_hconn *c = f->c;
    if (kind == START_H2 && !f->role) {
        as_conn_h2(c);
    } else if (kind == START_REQ || kind == START_RESP) {
        if (!f->role) {
            f->role = kind == START_REQ ? ROLE_REQ : ROLE_RESP;
            c->f[!f->id].role = kind == START_REQ ? ROLE_RESP : ROLE_REQ;
        }
        f->state = F_IDLE;
    } else {
        start_scan(f, off);
    }
}

static const uint8_t *start_step(hflow *f, const uint8_t *p, const uint8_t *end)
{
    while (!f->hb.n && p < end && (*p == '\r' || *p == '\n'))
        p++;
    if (p == end)
        return p;
    if (!f->hb.n) {
        int kind = as_scan_start(p, (size_t)(end - p));
        if (kind != START_MORE) {
            decide(f, kind, here(f, p));
            return p;
        }
        f->hb_off = here(f, p);
        f->hb_meta = f->meta;
    }
    uint8_t first[64];
    size_t k = sizeof first - f->hb.n, have = (size_t)(end - p);
    k = k < have ? k : have;
    if (!as_hbuf_add(&f->hb, p, k))
        return end;
    int kind = as_scan_start(f->hb.p, f->hb.n);
    if (kind == START_MORE)
        return p + k;
    size_t n = f->hb.n;
    memcpy(first, f->hb.p, n);
    f->hb.n = 0;
    const uint8_t *d0 = f->d0;
    uint64_t base = f->base;
    as_meta meta = f->meta;
    f->d0 = first;
    f->base = f->hb_off;
    f->meta = f->hb_meta;
    decide(f, kind, f->hb_off);
    as_flow_run(f, first, n);
    f->d0 = d0;
    f->base = base;
    f->meta = meta;
    return p + k;
}

static const uint8_t *idle_step(hflow *f, const uint8_t *p, const uint8_t *end)
{
    while (p < end && (*p == '\r' || *p == '\n')) /* empty lines between messages: some clients send one too many */
        p++;
    if (p == end)
        return p;
    if (as_conn_must_hold(f)) {
        f->state = F_HOLD;
        return p;
    }
    begin_lines(f, here(f, p), F_HEAD);
    return p;
}

void as_flow_run(hflow *f, const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n;
    while (p < end) {
        switch (f->state) {
        case F_START:
            p = start_step(f, p, end);
            break;
        case F_IDLE:
            p = idle_step(f, p, end);
            break;
        case F_HOLD:
            as_conn_hold(f, p, (size_t)(end - p));
            p = end;
            break;
        case F_HEAD:
        case F_TRAIL:
            p = lines_step(f, p, end);
            break;
        case F_LEN:
        case F_EOF:
        case F_CDATA:
            p = body_step(f, p, end);
            break;
        case F_CSIZE:
            p = chunk_size_step(f, p, end);
            break;
        case F_CEND:
            p = chunk_end_step(f, p);
            break;
        case F_SCAN:
            p = scan_step(f, p, end);
            break;
        case F_TUNNEL:
        case F_H2:
        case F_DONE:
            as_conn_raw(f, here(f, p), p, (size_t)(end - p), &f->meta);
            p = end;
            break;
        }
    }
}

/* ---- holes and ends ---- */

static void body_gap(hflow *f, uint64_t off, uint64_t lost, uint64_t n)
{
    f->x->m.wire = off - f->x->m.off - f->fed_gap;
    as_body_gap(f->c, f->x, lost, &f->meta);
    f->fed_gap += n;
}

void as_flow_gap(hflow *f, uint64_t n)
{
    uint64_t off = f->off;
    f->base = off; /* nothing is being fed: keep here() right */
    f->d0 = NULL;
    f->off += n;
    switch (f->state) {
    case F_START:
    case F_HEAD:
    case F_IDLE:
    case F_HOLD: /* emptied by the caller */
    case F_SCAN:
        junk_head(f);
        if (f->x) /* its end is still looked for */
            body_gap(f, off, n, n);
        start_scan(f, off + n);
        break;
    case F_EOF:
        body_gap(f, off, n, n);
        break;
    case F_LEN:
    case F_CDATA:
        if (n && n <= f->left) { /* the hole lies in the body: we know where we are behind it */
            body_gap(f, off, n, n);
            f->left -= n;
            if (!f->left && f->state == F_LEN)
                finish(f, off + n);
            else if (!f->left)
                f->state = F_CEND, f->c_phase = 0;
            break;
        }
        if (f->state == F_LEN) {
            body_gap(f, off, n ? f->left : 0, 0);
            finish_bad(f, off, AS_HM_BODY_CUT);
            start_scan(f, off + n);
            break;
        }
        /* fall through */
    case F_CSIZE:
    case F_CEND: /* the message stays open: its next chunk may be found */
        body_gap(f, off, n, n);
        start_scan(f, off + n);
        break;
    case F_TRAIL: /* its body is whole, its end was not seen */
        body_gap(f, off, n, 0);
        finish(f, off);
        start_scan(f, off + n);
        break;
    case F_TUNNEL:
    case F_H2:
    case F_DONE:
        break;
    }
}

void as_flow_close(hflow *f, int eof)
{
    f->base = f->off;
    f->d0 = NULL;
    if (f->state != F_TRAIL)
        junk_head(f);
    if (f->x)
        finish_bad(f, f->off, f->state == F_EOF && eof ? 0 : AS_HM_BODY_CUT);
    if (f->state != F_TUNNEL && f->state != F_H2)
        f->state = F_DONE;
    as_hbuf_free(&f->hb);
}

void as_flow_tunnel(hflow *f)
{
    if (f->x) {
        f->go_tunnel = 1;
    } else if (f->state != F_DONE) {
        junk_head(f);
        f->state = F_TUNNEL;
    }
}

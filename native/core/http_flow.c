/* SPDX-License-Identifier: MIT
 *
 * The state machine of one direction: start, bodies, chunks, holes and the end (lines: http_lines.c). It runs over each piece once;
 * bodies are handed on as they lie there. Nothing it does depends on where the pieces were cut.
 */
#include "http_int.h"

/* ---- bodies ---- */

static const uint8_t *body_step(hflow *f, const uint8_t *p, const uint8_t *end) {
    size_t n = (size_t)(end - p);
    if (f->state != F_EOF && n > f->left)
        n = (size_t)f->left;
    f->x->m.wire = as_flow_at(f, p) - f->x->m.off - f->fed_gap;
    as_body_add(f->c, f->x, p, n, &f->meta);
    p += n;
    if (f->state == F_EOF)
        return p;
    f->left -= n;
    if (!f->left) {
        if (f->state == F_LEN)
            as_flow_finish(f, as_flow_at(f, p));
        else
            f->state = F_CEND, f->c_phase = 0;
    }
    return p;
}

static const uint8_t *chunk_bad(hflow *f, const uint8_t *p) {
    uint64_t off = as_flow_at(f, p);
    as_flow_finish_bad(f, off, AS_HM_FRAMING_ERROR | AS_HM_BODY_CUT);
    as_flow_scan(f, off);
    return p;
}

static const uint8_t *chunk_size_step(hflow *f, const uint8_t *p, const uint8_t *end) {
    enum { HEX, EXT, CR };
    while (p < end) {
        uint8_t c = *p, l = c | 0x20;
        if (f->c_phase == EXT) { /* ignored up to the line end */
            const uint8_t *lf = memchr(p, '\n', (size_t)(end - p));
            const uint8_t *e = lf ? lf : end;
            size_t k = (size_t)(e - p), room = HTTP_CHUNK_LINE - f->c_len;
            if (k >= room)
                return chunk_bad(f, p + room);
            f->c_len += (uint32_t)k;
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
            as_flow_lines(f, as_flow_at(f, p), F_TRAIL);
        return p;
    }
    return p;
}

static const uint8_t *chunk_end_step(hflow *f, const uint8_t *p) {
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

static void decide(hflow *f, int kind, uint64_t off) {
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
        as_flow_scan(f, off);
    }
}

static const uint8_t *start_step(hflow *f, const uint8_t *p, const uint8_t *end) {
    while (!f->hb.n && p < end && (*p == '\r' || *p == '\n'))
        p++;
    if (p == end)
        return p;
    if (!f->hb.n) {
        int kind = as_scan_start(p, (size_t)(end - p));
        if (kind != START_MORE) {
            decide(f, kind, as_flow_at(f, p));
            return p;
        }
        f->hb_off = as_flow_at(f, p);
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

static const uint8_t *idle_step(hflow *f, const uint8_t *p, const uint8_t *end) {
    while (p < end && (*p == '\r' || *p == '\n')) /* empty lines between messages: some clients send one too many */
        p++;
    if (p == end)
        return p;
    if (as_conn_must_hold(f)) {
        f->state = F_HOLD;
        return p;
    }
    as_flow_lines(f, as_flow_at(f, p), F_HEAD);
    return p;
}

void as_flow_run(hflow *f, const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    hflow *other = &f->c->f[!f->id];
    while (p < end) {
        if (other->held.n) /* at this very place, so that it does not matter where the piece ends */
            (void)as_conn_release(other);
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
            p = as_flow_lines_step(f, p, end);
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
            p = as_flow_scan_step(f, p, end);
            break;
        case F_TUNNEL:
        case F_H2:
        case F_DONE:
            as_conn_raw(f, as_flow_at(f, p), p, (size_t)(end - p), &f->meta);
            p = end;
            break;
        }
    }
}

/* ---- holes and ends ---- */

static void body_gap(hflow *f, uint64_t off, uint64_t lost, uint64_t n) {
    f->x->m.wire = off - f->x->m.off - f->fed_gap;
    as_body_gap(f->c, f->x, lost, &f->meta);
    f->fed_gap += n;
}

void as_flow_gap(hflow *f, uint64_t n) {
    uint64_t off = f->off;
    f->base = off; /* nothing is being fed: keep as_flow_at() right */
    f->d0 = NULL;
    f->off += n;
    switch (f->state) {
    case F_START:
    case F_HEAD:
    case F_IDLE:
    case F_HOLD: /* emptied by the caller */
    case F_SCAN:
        as_flow_junk(f);
        if (f->x) /* its end is still looked for */
            body_gap(f, off, n, n);
        as_flow_scan(f, off + n);
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
                as_flow_finish(f, off + n);
            else if (!f->left)
                f->state = F_CEND, f->c_phase = 0;
            break;
        }
        if (f->state == F_LEN) {
            body_gap(f, off, n ? f->left : 0, 0);
            as_flow_finish_bad(f, off, AS_HM_BODY_CUT);
            as_flow_scan(f, off + n);
            break;
        }
        /* fall through */
    case F_CSIZE:
    case F_CEND: /* the message stays open: its next chunk may be found */
        body_gap(f, off, n, n);
        as_flow_scan(f, off + n);
        break;
    case F_TRAIL: /* its body is whole, its end was not seen */
        body_gap(f, off, n, 0);
        as_flow_finish(f, off);
        as_flow_scan(f, off + n);
        break;
    case F_TUNNEL:
    case F_H2:
    case F_DONE:
        break;
    }
}

void as_flow_close(hflow *f, int eof) {
    f->base = f->off;
    f->d0 = NULL;
    if (f->state != F_TRAIL)
        as_flow_junk(f);
    if (f->x)
        as_flow_finish_bad(f, f->off, f->state == F_EOF && eof ? 0 : AS_HM_BODY_CUT);
    if (f->state != F_TUNNEL && f->state != F_H2)
        f->state = F_DONE;
    as_hbuf_free(&f->hb);
}

void as_flow_tunnel(hflow *f) {
    if (f->x) {
        f->go_tunnel = 1;
    } else if (f->state != F_DONE) {
        as_flow_junk(f);
        f->state = F_TUNNEL;
    }
}

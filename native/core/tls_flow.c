/* SPDX-License-Identifier: MIT
 *
 * One flow of the record layer: cuts it into records, holds what cannot be opened yet (the beginning of a record; records
 * whose secret, or whose peer's hello, has not come) in order and with the meta of the call that brought it, holes included.
 * After a hole the next record's boundary is looked for, and proven by its tag.
 */
#include <stdlib.h>
#include <string.h>

#include "tls_int.h"

#define SEG_COST 64 /* what a held piece costs besides its bytes */
#define LOOK_BYTES ((size_t)1 << 20)
#define KEEP 32768  /* an emptied buffer larger than this is given back */

/* ---- accounts ---- */
static int before_data(const as_flow *f) {
    return f->phase < AS_P_APP && !f->lost;
}

void as_tell_gap(as_tls *t, as_flow *f, uint64_t n, enum as_tls_reason why, const as_meta *m) {
    if (before_data(f)) {
        f->pend += n; /* likely handshake only: told when that turns out to be wrong */
        return;
    }
    if (f->pend) {
        uint64_t p = f->pend;
        f->pend = 0;
        t->sink.gap(t->user, as_flow_no(t, f), p, AS_TLS_MISSING, m);
    }
    if (n)
        t->sink.gap(t->user, as_flow_no(t, f), n, why, m);
}

void as_shut(as_tls *t, as_flow *f, uint64_t n, enum as_tls_reason why, const as_meta *m) {
    f->st.closed[why] += n;
    if (why != AS_TLS_REJECTED)
        as_tell_gap(t, f, n, why, m);
}

void as_tell_eof(as_tls *t, as_flow *f, const as_meta *m) {
    if (f->told_eof)
        return;
    f->told_eof = 1;
    if (f->pend) {
        t->sink.gap(t->user, as_flow_no(t, f), f->pend, AS_TLS_MISSING, m);
        f->pend = 0;
    }
    if (t->sink.eof)
        t->sink.eof(t->user, as_flow_no(t, f), m);
}

/* ---- holding ---- */
size_t as_cost(const as_flow *f) {
    return f->qn + f->sn * SEG_COST;
}

int as_hold(as_flow *f, const uint8_t *p, uint64_t n, int gap, const as_meta *m) {
    as_seg *last = f->sn ? &f->seg[f->soff + f->sn - 1] : NULL;
    /* outside a wait the held bytes are one unfinished record: only the call that completes it matters */
    if (last && last->gap == gap && (!f->blocked || memcmp(&last->m, m, sizeof *m) == 0)) {
        last->m = *m;
    } else {
        if (f->soff + f->sn == f->scap) {
            if (f->soff > f->sn) {
                memmove(f->seg, f->seg + f->soff, f->sn * sizeof *f->seg);
                f->soff = 0;
            } else {
                size_t cap = f->scap ? 2 * f->scap : 4;
                as_seg *s = realloc(f->seg, cap * sizeof *s);
                if (!s)
                    return -1;
                f->seg = s;
                f->scap = cap;
            }
        }
        last = &f->seg[f->soff + f->sn++];
        *last = (as_seg){0, gap, *m};
    }
    if (!gap) {
        if (f->qoff + f->qn + n > f->qcap) {
            if (f->qoff) {
                memmove(f->q, f->q + f->qoff, f->qn);
                f->qoff = 0;
            }
            if (f->qn + n > f->qcap) {
                size_t cap = f->qcap ? f->qcap : 1024;
                while (cap < f->qn + n)
                    cap *= 2;
                uint8_t *q = realloc(f->q, cap);
                if (!q) {
                    if (!last->n)
                        f->sn--;
                    return -1;
                }
                f->q = q;
                f->qcap = cap;
            }
        }
        memcpy(f->q + f->qoff + f->qn, p, n);
        f->qn += n;
        f->st.waiting = f->qn;
    }
    last->n += n;
    return 0;
}

static void pop(as_flow *f, size_t n) { /* n held bytes were dealt with */
    f->qoff += n;
    f->qn -= n;
    f->st.waiting = f->qn;
    while (n) {
        as_seg *s = &f->seg[f->soff];
        uint64_t k = s->n < n ? s->n : n;
        s->n -= k;
        n -= k;
        if (!s->n) {
            f->soff++;
            f->sn--;
        }
    }
    if (!f->sn)
        f->soff = 0;
    if (!f->qn) {
        f->qoff = 0;
        if (f->qcap > KEEP) {
            free(f->q);
            f->q = NULL;
            f->qcap = 0;
        }
    }
}

/* Held bytes before the first hole, at least as far as offset `at` (further where a look ahead may be needed), and the meta
 * of the byte there. */
static size_t region(const as_flow *f, size_t at, as_meta *m) {
    size_t n = 0;
    for (size_t i = f->soff; i < f->soff + f->sn && !f->seg[i].gap; i++) {
        if (n <= at)
            *m = f->seg[i].m;
        if (n > at && (f->phase >= AS_P_APP || n > LOOK_BYTES))
            break;
        n += f->seg[i].n;
    }
    return n;
}

/* ---- cutting ---- */
static int boundary(const as_flow *f, const uint8_t *p, size_t n) { /* may a record begin here? */
    int clear = f->phase == AS_P_PLAIN || f->phase == AS_P_DARK, v13 = f->phase != AS_P_ENC12 && !clear;
    if (v13 ? p[0] != 23 : p[0] < 20 || p[0] > 23)
        return 0;
    if ((n > 1 && p[1] != 3) || (n > 2 && (clear ? p[2] > 3 : p[2] != 3)))
        return 0;
    if (n < 5)
        return 1;
    size_t len = as_be16(p + 3);
    if (v13)
        return len >= 17 && len <= 16384 + 256;
    if (f->phase == AS_P_ENC12)
        return p[0] != 20 && len > 16 && len <= AS_REC_MAX;
    return len <= AS_REC_MAX && (p[0] != 20 || len == 1) && (p[0] != 21 || len == 2) && len > 0;
}

void as_lose_sync(as_flow *f, uint64_t lost, enum as_tls_reason why) {
    uint64_t from = f->uncertain ? f->seq_hi : f->seq;
    f->seq_hi = from + lost / 22 + 1; /* the shortest record: header, type, tag */
    f->uncertain = 1;
    f->resync = 1;
    f->dead_reason = why;
    f->trials = 0;
    f->cap_hit = 0;
    memset(&f->mark, 0, sizeof f->mark);
    memset(&f->look, 0, sizeof f->look);
    f->look_done = 0;
}

static void join(as_tls *t, as_flow *f) {
    f->begun = 1;
    f->phase = t->info.version && t->info.version != 0x0304 ? AS_P_ENC12 : AS_P_APP;
    f->uncertain = f->resync = 1;
    f->seq_hi = AS_SEQ_ANY;
    f->dead_reason = AS_TLS_MISSING;
}

/* The first bytes of a flow that was joined late: a handshake, or the middle of something. 0: more are needed. */
static int begin_late(as_tls *t, as_flow *f, const uint8_t *p, size_t n) {
    int hello = as_tls_sniff(p, n, 0);
    if (hello < 0)
        return 0;
    f->begun = 1;
    if (!hello)
        join(t, f); /* perhaps inside a record: the rest of one whose beginning nobody has */
    return 1;
}

static void lost_handshake(as_tls *t, as_flow *f) { /* a hole before application data */
    as_hs_reset(&f->hs);
    if (f->phase == AS_P_PLAIN)
        t->hello_lost = 1;
    if (f->phase == AS_P_EARLY) {
        as_drop_key(t, f);
        f->phase = AS_P_HS;
    }
    if (f->phase == AS_P_HS && as_role(t, f) == 1)
        t->ee_lost = 1;
    t->changed = 1;
}

/* One step at p: bytes dealt with, 0 when more are needed, AS_R_BLOCK. */
long as_step(as_tls *t, as_flow *f, const uint8_t *p, size_t n, const as_meta *m) {
    if (f->skip) {
        size_t k = f->skip < n ? (size_t)f->skip : n;
        f->skip -= k;
        as_shut(t, f, k, AS_TLS_MISSING, m);
        return (long)k;
    }
    if (f->phase == AS_P_DEAD) {
        as_shut(t, f, n, f->dead_reason, m);
        return (long)n;
    }
    if (t->late && !f->begun && f->phase == AS_P_PLAIN && !begin_late(t, f, p, n))
        return AS_R_MORE;
    if (f->resync) {
        size_t i = 0;
        while (i < n && !boundary(f, p + i, n - i))
            i++;
        if (i) {
            as_shut(t, f, i, f->dead_reason, m);
            return (long)i;
        }
    } else if (p[0] < 20 || p[0] > 23 || (n > 1 && p[1] != 3) || (n > 2 && p[2] > 4) || (n > 4 && as_be16(p + 3) > AS_REC_MAX)) {
        if (f->phase == AS_P_PLAIN || f->phase == AS_P_DARK) {
            f->phase = AS_P_DEAD;
            f->dead_reason = AS_TLS_NOT_RECORD;
        } else {
            as_lose_sync(f, AS_REC_MAX, AS_TLS_NOT_RECORD);
        }
        as_shut(t, f, 1, AS_TLS_NOT_RECORD, m);
        return 1;
    }
    if (n < 5 || n < 5 + as_be16(p + 3))
        return 0;
    long r = as_record(t, f, p, 5 + as_be16(p + 3), n, m);
    if (r != AS_R_NOT)
        return r;
    if (!f->resync)
        as_lose_sync(f, AS_REC_MAX, AS_TLS_NOT_RECORD);
    as_shut(t, f, 1, f->dead_reason, m);
    return 1;
}

/* The hole at the head of what is held, behind `have` bytes of a record's beginning. */
static void hole(as_tls *t, as_flow *f, size_t have) {
    uint8_t head[5] = {0};
    if (have >= 5)
        memcpy(head, f->q + f->qoff, 5);
    else if (have)
        head[0] = f->q[f->qoff];
    if (have)
        pop(f, have);
    uint64_t n = f->seg[f->soff].n;
    as_meta meta = f->seg[f->soff].m, *m = &meta;
    f->soff++;
    f->sn--;
    if (have && f->phase == AS_P_PLAIN && head[0] != 23)
        f->st.handshake += have;
    else if (have)
        as_shut(t, f, have, AS_TLS_MISSING, m);
    as_tell_gap(t, f, n, AS_TLS_MISSING, m);
    if (f->phase == AS_P_DEAD)
        return;
    if (t->late && !f->begun)
        join(t, f);
    if (before_data(f))
        lost_handshake(t, f);
    if (f->skip) { /* inside a record whose rest is thrown away anyway */
        uint64_t k = n < f->skip ? n : f->skip;
        f->skip -= k;
        n -= k;
        if (n)
            as_lose_sync(f, n, AS_TLS_MISSING);
    } else if (have >= 5 && !f->resync && n <= 5u + as_be16(head + 3) - have) { /* inside one record: the boundary is known */
        f->skip = 5u + as_be16(head + 3) - have - n;
        if (!f->uncertain)
            f->seq_hi = f->seq;
        f->seq_hi++;
        if (f->phase == AS_P_APP || f->phase == AS_P_ENC12)
            f->seq++;
        else
            f->uncertain = 1; /* it may have been the last one under this key */
    } else {
        as_lose_sync(f, n + have, AS_TLS_MISSING);
    }
}

/* ---- running ---- */
void as_finish(as_tls *t, as_flow *f, const as_meta *m) { /* nothing more comes: an unfinished record stays one */
    size_t n = f->qn;
    if (!n)
        return;
    if (f->phase == AS_P_PLAIN && f->q[f->qoff] != 23)
        f->st.handshake += n;
    else
        as_shut(t, f, n, AS_TLS_MISSING, m);
    pop(f, n);
}

void as_run_held(as_tls *t, as_flow *f) {
    int moved = !f->blocked;
    while (f->sn) {
        as_meta m;
        const uint8_t *p = f->qn ? f->q + f->qoff : NULL;
        size_t at = f->skip ? 0 : f->qn < 5 ? SIZE_MAX : 4 + as_be16(p + 3), n = region(f, at, &m);
        long r = n ? as_step(t, f, p, n, &m) : 0;
        if (r > 0) {
            pop(f, (size_t)r);
            moved = 1;
        } else if (r == AS_R_BLOCK) {
            if (moved)
                f->block_ts = m.ts;
            f->blocked = 1;
            return;
        } else if (n < f->qn || f->seg[f->soff + f->sn - 1].gap) {
            hole(t, f, n);
        } else {
            break; /* an unfinished record at the end of what there is */
        }
    }
    f->blocked = 0;
    if (f->tcp_eof) {
        as_finish(t, f, &f->eof_meta);
        as_tell_eof(t, f, &f->eof_meta);
    }
}

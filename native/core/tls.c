/* SPDX-License-Identifier: MIT
 *
 * The contract of tls.h: bytes, holes, time and new secrets go to the two flows (tls_flow.c), straight from the caller's bytes
 * where a record lies whole in them; what one flow learns sets the other going; what waits is bounded in bytes and time.
 */
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "tls_int.h"

static void settle(as_tls *t) { /* what one flow learned may be what the other waits for */
    while (t->changed) {
        t->changed = 0;
        for (int i = 0; i < 2; i++)
            if (t->f[i].blocked)
                as_run_held(t, &t->f[i]);
    }
}

static void give_up(as_tls *t, as_flow *f, enum as_tls_reason why) {
    if (f->phase < AS_P_APP) { /* whatever comes next: the handshake is over for us */
        if (f->phase == AS_P_PLAIN)
            t->hello_lost = 1;
        if (as_role(t, f) != 0)
            t->ee_lost = 1;
        as_drop_key(t, f);
        as_hs_reset(&f->hs);
        if (t->info.version && t->info.version != 0x0304 && f->phase == AS_P_PLAIN)
            f->phase = t->suite ? AS_P_ENC12 : AS_P_DARK;
        else
            f->phase = AS_P_APP;
    }
    f->lost = 1;
    f->lost_reason = why;
    f->uncertain = 1;
    f->seq_hi = AS_SEQ_ANY;
    t->changed = 1;
    as_run_held(t, f);
    f->lost_reason = AS_TLS_NO_SECRET; /* what comes later does not wait at all */
}

static void bound_wait(as_tls *t, const as_meta *m) {
    as_flow *a = &t->f[0], *b = &t->f[1];
    for (int i = 0; i < 2; i++)
        if (t->f[i].blocked && m->ts > t->f[i].block_ts && m->ts - t->f[i].block_ts > t->o.max_wait_ns)
            give_up(t, &t->f[i], AS_TLS_NO_SECRET);
    while ((a->blocked || b->blocked) && as_cost(a) + as_cost(b) > t->o.max_wait_bytes)
        give_up(t, !b->blocked || (a->blocked && as_cost(a) > as_cost(b)) ? a : b, AS_TLS_LIMIT);
    settle(t);
}

/* ---- the contract ---- */
as_tls *as_tls_new(as_keyring *k, const as_tls_sink *sink, void *user, const as_tls_opts *opts) {
    as_tls *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->k = k;
    t->sink = *sink;
    t->user = user;
    if (opts)
        t->o = *opts;
    if (!t->o.max_wait_bytes)
        t->o.max_wait_bytes = (size_t)4 << 20;
    if (!t->o.max_wait_ns)
        t->o.max_wait_ns = 5000000000u;
    if (!t->o.max_trials)
        t->o.max_trials = 4096;
    t->info.client_flow = -1;
    t->early_ok = -1;
    return t;
}

void as_tls_free(as_tls *t) {
    if (!t)
        return;
    for (int i = 0; i < 2; i++) {
        as_flow *f = &t->f[i];
        as_cell_free(t->k, f->cell);
        as_aead_clear(&f->aead);
        as_hs_reset(&f->hs);
        free(f->q);
        free(f->seg);
    }
    for (size_t i = 0; i < t->nclaim; i++)
        as_keyring_release(t->k, t->claim[i]);
    OPENSSL_cleanse(t, sizeof *t);
    free(t);
}

int as_tls_sniff(const uint8_t *p, size_t n, int late) {
    static const uint8_t hello[2] = {0x16, 0x03};
    if (n && p[0] == 23) {
        if (!late || (n > 1 && p[1] != 3) || (n > 2 && p[2] != 3))
            return 0;
        if (n < 5)
            return -1;
        return as_be16(p + 3) >= 17 && as_be16(p + 3) <= 16384 + 256;
    }
    if (memcmp(p, hello, n < 2 ? n : 2) != 0 || (n > 2 && p[2] > 3))
        return 0;
    if (n > 4 && (as_be16(p + 3) < 4 || as_be16(p + 3) > 16384))
        return 0;
    if (n > 5 && p[5] != 1 && p[5] != 2)
        return 0;
    if (n > 8 && (p[6] > 1 || (p[6] == 0 && as_be16(p + 7) < 38)))
        return 0;
    return n > 8 ? 1 : -1;
}

void as_tls_touch(as_tls *t, uint32_t tgid, uint32_t tid) {
    size_t i = 0;
    int known = 0;
    if (!tgid || (t->ntouch && t->touch[0].tgid == tgid && t->touch[0].tid == tid))
        return;
    for (size_t j = 0; j < t->ntouch; j++)
        known |= t->touch[j].tgid == tgid;
    while (i < t->ntouch && (t->touch[i].tgid != tgid || t->touch[i].tid != tid))
        i++;
    if (i == t->ntouch) {
        if (t->ntouch < AS_MAX_TOUCH)
            t->ntouch++;
        else
            i--;
    }
    memmove(t->touch + 1, t->touch, i * sizeof *t->touch);
    t->touch[0] = (as_touch){tgid, tid};
    if (!known) { /* its older secrets are candidates now */
        t->gen++;
        t->changed = 1;
    }
}

void as_tls_feed(as_tls *t, int flow, const uint8_t *data, size_t n, const as_meta *m) {
    as_flow *f = &t->f[flow & 1];
    as_tls_touch(t, m->tgid, m->tid);
    f->st.seen += n;
    while (n && !f->blocked) {
        if (f->sn) { /* complete the held record, and no more: what follows need not be copied */
            size_t want = f->qn < 5 ? 5 : 5 + as_be16(f->q + f->qoff + 3), k = want > f->qn ? want - f->qn : 1;
            if (k > n)
                k = n;
            if (as_hold(f, data, k, 0, m)) {
                as_shut(t, f, n, AS_TLS_LIMIT, m);
                n = 0;
                as_lose_sync(f, k, AS_TLS_LIMIT);
                break;
            }
            data += k;
            n -= k;
            as_run_held(t, f);
            continue;
        }
        long r = as_step(t, f, data, n, m);
        if (r > 0) {
            data += r;
            n -= (size_t)r;
            continue;
        }
        if (r == AS_R_BLOCK) {
            f->blocked = 1;
            f->block_ts = m->ts;
        }
        break;
    }
    if (n && as_hold(f, data, n, 0, m)) {
        as_shut(t, f, n, AS_TLS_LIMIT, m); /* no memory */
        as_lose_sync(f, n, AS_TLS_LIMIT);
    }
    if (f->blocked && n)
        as_run_held(t, f);
    settle(t);
    if (as_tls_waiting(t))
        bound_wait(t, m);
}

void as_tls_gap(as_tls *t, int flow, uint64_t n, const as_meta *m) {
    as_flow *f = &t->f[flow & 1];
    if (!n)
        return;
    f->st.missing += n;
    if (as_hold(f, NULL, n, 1, m)) {
        as_tell_gap(t, f, n, AS_TLS_MISSING, m);
        as_lose_sync(f, n, AS_TLS_MISSING);
        return;
    }
    if (!f->blocked)
        as_run_held(t, f);
    settle(t);
    if (as_tls_waiting(t))
        bound_wait(t, m);
}

void as_tls_eof(as_tls *t, int flow, const as_meta *m) {
    as_flow *f = &t->f[flow & 1];
    if (f->tcp_eof)
        return;
    f->tcp_eof = 1;
    f->eof_meta = *m;
    if (!f->blocked)
        as_run_held(t, f);
    settle(t);
}

void as_tls_flush(as_tls *t, const as_meta *m) {
    settle(t);
    for (int i = 0; i < 2; i++)
        if (t->f[i].blocked)
            give_up(t, &t->f[i], AS_TLS_NO_SECRET);
    settle(t);
    for (int i = 0; i < 2; i++) {
        as_flow *f = &t->f[i];
        as_finish(t, f, m);
        if (f->pend) {
            t->sink.gap(t->user, i, f->pend, AS_TLS_MISSING, m);
            f->pend = 0;
        }
    }
    if (t->info.ts_finished)
        as_tell_handshake(t, m, 1);
}

void as_tls_late(as_tls *t) {
    t->late = 1;
}

int as_tls_waiting(const as_tls *t) {
    return t->f[0].blocked || t->f[1].blocked;
}

uint64_t as_tls_waits_since(const as_tls *t) {
    const as_flow *a = &t->f[0], *b = &t->f[1];
    uint64_t x = a->blocked ? a->block_ts : 0, y = b->blocked ? b->block_ts : 0;
    return !x || (y && y < x) ? y : x;
}

void as_tls_retry(as_tls *t, const as_meta *m) {
    for (int i = 0; i < 2; i++)
        if (t->f[i].blocked)
            as_run_held(t, &t->f[i]);
    settle(t);
    if (as_tls_waiting(t))
        bound_wait(t, m);
}

void as_tls_tick(as_tls *t, const as_meta *m) {
    if (as_tls_waiting(t))
        bound_wait(t, m);
}

void as_tls_stats_get(const as_tls *t, int flow, as_tls_flow_stats *out) {
    *out = t->f[flow & 1].st;
}
const as_tls_info *as_tls_info_get(const as_tls *t) {
    return &t->info;
}

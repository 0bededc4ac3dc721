/* SPDX-License-Identifier: MIT
 *
 * One whole TLS record in the state of its flow: which key has to open it, what is inside, what follows for the flow. Each
 * record's wire bytes end in exactly one counter: handshake, opened, or closed with a reason (RFC 8446 section 5, 4.2.10,
 * 4.6.3; RFC 5246 section 6).
 */
#include <openssl/crypto.h>
#include <string.h>

#include "tls_int.h"

#define LOOK_RECORDS 256

enum { T_CCS = 20, T_ALERT = 21, T_HANDSHAKE = 22, T_DATA = 23 };

static long handshake(as_flow *f, size_t total) {
    f->st.handshake += total;
    return (long)total;
}

static long shut(as_tls *t, as_flow *f, size_t total, enum as_tls_reason why, const as_meta *m) {
    f->st.records_closed++;
    as_shut(t, f, total, why, m);
    return (long)total;
}

/* The secret is not there: wait for it, or, when that was given up, close the record. */
static long wait_or_shut(as_tls *t, as_flow *f, size_t total, const as_meta *m) {
    if (!f->lost)
        return AS_R_BLOCK;
    if (f->resync) /* perhaps it was no record: what did not open it may open the next one */
        memset(&f->mark, 0, sizeof f->mark);
    return shut(t, f, total, f->lost_reason, m);
}

static long end_of_flow(as_tls *t, as_flow *f, size_t total, const as_meta *m) { /* close_notify */
    f->st.handshake += total;
    as_tell_eof(t, f, m);
    f->phase = AS_P_DEAD;
    f->dead_reason = AS_TLS_NOT_RECORD;
    return (long)total;
}

static void opened(as_tls *t, as_flow *f, size_t total, uint64_t first, const uint8_t *data, size_t n, const as_meta *m) {
    uint64_t seq = f->seq - 1;
    if (f->pend) {
        /* what was lost before the very first application record was handshake */
        if (seq != first || f->st.key_updates)
            t->sink.gap(t->user, as_flow_no(t, f), f->pend, AS_TLS_MISSING, m);
        f->pend = 0;
    }
    f->st.opened += total;
    f->st.records_opened++;
    f->st.plain += n;
    if (f->phase != AS_P_EARLY) /* the handshake still goes on */
        as_tell_handshake(t, m, 0);
    if (n)
        t->sink.plain(t->user, as_flow_no(t, f), data, n, m);
}

static void opens(as_flow *f) { /* a tag proved key, number and boundary */
    f->seq++;
    f->uncertain = f->resync = f->lost = 0;
    f->trials = 0;
    f->cap_hit = 0;
}

/* ---- TLS 1.3 ---- */

/* A key whose own first record is not the one at hand: does it open a later one of those that are here? Offset of that
 * record, or -1. Key and number 0 are set then. */
static long look_ahead(as_tls *t, as_flow *f, uint32_t labels, uint32_t from, const uint8_t *p, size_t avail) {
    uint32_t no = 0;
    uint64_t serial = as_keyring_serial(t->k);
    if (f->trials > t->o.max_trials / 2) /* the rest is for the secret that may still come */
        return -1;
    int fresh = f->look.gen != t->gen || f->look.labels != labels;
    if (fresh)
        f->look_done = 0;
    if (!fresh && f->look.serial < serial)
        fresh = 1; /* older records again, with the new secrets only */
    as_mark old = f->look, now = {serial, t->gen, labels};
    for (size_t at = 0; at + 5 <= avail && no < LOOK_RECORDS; no++) {
        size_t total = 5 + as_be16(p + at + 3);
        if (at + total > avail || p[at + 1] != 3)
            break;
        if (p[at] == T_DATA && no >= from && total >= 5 + 17 && (fresh || no >= f->look_done)) {
            as_mark k = no < f->look_done ? old : (as_mark){0, t->gen, labels};
            if (as_match(t, f, labels, &k, p + at, total, 0, 0))
                return (long)at;
        }
        at += total;
    }
    if (no > f->look_done)
        f->look_done = no;
    f->look = now;
    return -1;
}

/* Finds the flow's key. 0: it is there and f->seq is this record's number; else what as_record gives. */
static long acquire(as_tls *t, as_flow *f, const uint8_t *p, size_t total, size_t avail, const as_meta *m) {
    int loose = f->uncertain || f->resync;
    uint64_t lo = f->seq, hi = loose ? f->seq_hi : lo;
    long off;
    if (hi < lo)
        hi = lo;
    switch (f->phase) {
    case AS_P_EARLY:
        if (t->early_ok < 0 && !t->ee_lost)
            return AS_R_BLOCK;
        if (t->early_ok == 1 && as_match(t, f, as_labels(t, f, AS_P_EARLY), &f->mark, p, total, 0, 0))
            return 0;
        off = look_ahead(t, f, as_labels(t, f, AS_P_HS), 0, p, avail);
        if (off < 0)
            return AS_R_BLOCK;
        f->phase = AS_P_HS;
        for (size_t at = 0; at < (size_t)off;) {
            size_t n = 5 + as_be16(p + at + 3);
            if (p[at] == T_DATA)
                shut(t, f, n, t->early_ok == 0 ? AS_TLS_REJECTED : AS_TLS_NO_SECRET, m);
            else
                handshake(f, n);
            at += n;
        }
        return off;
    case AS_P_HS:
        if (as_match(t, f, as_labels(t, f, AS_P_HS), &f->mark, p, total, lo, hi))
            return 0;
        if (loose) {
            if (!as_match(t, f, as_labels(t, f, AS_P_APP), &f->look, p, total, 0, hi))
                return wait_or_shut(t, f, total, m);
            f->phase = AS_P_APP;
            as_hs_reset(&f->hs);
            t->ee_lost = 1;
            return 0;
        }
        /* the handshake secret was lost, the application's is here: number 0 behind Finished */
        off = look_ahead(t, f, as_labels(t, f, AS_P_APP), 1, p, avail);
        if (off <= 0)
            return wait_or_shut(t, f, total, m);
        f->phase = AS_P_APP;
        t->ee_lost = 1;
        return handshake(f, (size_t)off);
    default:
        if (as_match(t, f, as_labels(t, f, AS_P_APP), &f->mark, p, total, lo, hi) ||
            as_match_far(t, f, as_labels(t, f, AS_P_APP), p, total, lo, hi))
            return 0;
        return wait_or_shut(t, f, total, m);
    }
}

/* The key at hand does not open the record: was the change to another key in a hole? 0: yes, key and number are set. */
static long recover(as_tls *t, as_flow *f, const uint8_t *p, size_t total, const as_meta *m) {
    uint64_t hi = f->uncertain || f->resync ? f->seq_hi : 0;
    as_mark mark = {0};
    if (f->phase == AS_P_EARLY && as_match(t, f, as_labels(t, f, AS_P_HS), &mark, p, total, 0, hi)) {
        f->phase = AS_P_HS;
        return 0;
    }
    if (f->phase == AS_P_HS && as_match(t, f, as_labels(t, f, AS_P_APP), &mark, p, total, 0, hi)) {
        f->phase = AS_P_APP;
        t->ee_lost = 1;
        as_hs_reset(&f->hs);
        return 0;
    }
    if (f->phase == AS_P_APP) {
        as_cell *n = as_cell_new(t->k);
        uint64_t seq;
        uint32_t updates;
        int ok = n && as_range_next(t, f, f->aead.suite, f->cell, p, total, hi, n, &seq, &updates) &&
                 as_set_key(t, f, f->aead.suite, n) == 0;
        as_cell_free(t->k, n);
        if (ok) {
            f->seq = seq;
            f->st.key_updates += updates;
            return 0;
        }
    }
    if (f->resync)
        return AS_R_NOT;
    f->seq_hi = (f->uncertain ? f->seq_hi : f->seq) + 1;
    f->uncertain = 1;
    return shut(t, f, total, AS_TLS_BAD_TAG, m);
}

static long inside13(as_tls *t, as_flow *f, size_t total, const uint8_t *out, size_t n, const as_meta *m) {
    while (n && !out[n - 1]) /* padding */
        n--;
    int type = n ? out[--n] : 0;
    if (type == T_DATA) {
        opened(t, f, total, 0, out, n, m);
        return (long)total;
    }
    if (type == T_ALERT && n >= 2 && out[1] == 0)
        return end_of_flow(t, f, total, m);
    if (type == T_HANDSHAKE) {
        as_hs_feed(t, f, out, n, m);
        if (f->renewed) {
            f->renewed = 0;
            if (as_next_key(t, f))
                f->have = 0;
        }
    }
    return handshake(f, total);
}

static long plain_record(as_tls *t, as_flow *f, const uint8_t *p, size_t total, size_t avail, const as_meta *m);
static long record12(as_tls *t, as_flow *f, const uint8_t *p, size_t total, const as_meta *m);

static long record13(as_tls *t, as_flow *f, const uint8_t *p, size_t total, size_t avail, const as_meta *m) {
    long n, r;
    if (t->info.version == 0x0303 && !f->have) { /* joined late, and the other flow told the version */
        f->phase = AS_P_ENC12;
        return record12(t, f, p, total, m);
    }
    if (f->resync && p[0] != T_DATA)
        return AS_R_NOT;
    if (p[0] == T_CCS && total == 6) /* compatibility: no record number */
        return handshake(f, total);
    if (p[0] == T_ALERT && total == 7)
        return p[6] == 0 ? end_of_flow(t, f, total, m) : handshake(f, total);
    if (p[0] == T_HANDSHAKE && !f->have && f->phase != AS_P_APP && as_role(t, f) == 0) { /* the second ClientHello */
        f->phase = AS_P_PLAIN;
        return plain_record(t, f, p, total, avail, m);
    }
    if (p[0] != T_DATA || total < 5 + 17 || total > 5 + 16384 + 256)
        return AS_R_NOT;
    if (f->phase == AS_P_EARLY && t->info.hello_retry && t->early_offered)
        return shut(t, f, total, AS_TLS_REJECTED, m);
    if (!f->have) {
        if ((r = acquire(t, f, p, total, avail, m)) != 0)
            return r;
        if (!f->aead.suite->v13) {
            f->phase = AS_P_ENC12;
            return record12(t, f, p, total, m);
        }
    } else if ((f->uncertain || f->resync) && !as_range(t, f, f->cell, &f->aead, p, total, f->seq, f->seq_hi, &f->seq) &&
               (r = recover(t, f, p, total, m)) != 0) {
        return r;
    }
    uint8_t *out = as_buf_get(t->k);
    if (!out)
        return shut(t, f, total, AS_TLS_LIMIT, m);
    n = as_aead_open(&f->aead, f->seq, p, total, out);
    if (n < 0) {
        r = recover(t, f, p, total, m);
        if (r == 0)
            n = as_aead_open(&f->aead, f->seq, p, total, out);
        else {
            as_buf_put(t->k, out);
            return r;
        }
    }
    if (n >= 0) {
        opens(f);
        r = inside13(t, f, total, out, (size_t)n, m);
    } else {
        r = shut(t, f, total, AS_TLS_BAD_TAG, m);
    }
    as_buf_put(t->k, out);
    return r;
}

/* ---- TLS 1.2 ---- */
static long shut12(as_tls *t, as_flow *f, const uint8_t *p, size_t total, enum as_tls_reason why, const as_meta *m) {
    return p[0] == T_DATA ? shut(t, f, total, why, m) : handshake(f, total);
}

static long record12(as_tls *t, as_flow *f, const uint8_t *p, size_t total, const as_meta *m) {
    if (f->resync && p[0] == T_CCS)
        return AS_R_NOT;
    if (p[0] == T_CCS) { /* renegotiation: its keys come from a handshake that we do not follow */
        f->phase = AS_P_DARK;
        return handshake(f, total);
    }
    if (!f->have) {
        uint64_t hi = f->uncertain || f->resync ? f->seq_hi : f->seq;
        if (!as_match(t, f, as_labels(t, f, AS_P_ENC12), &f->mark, p, total, f->seq, hi) &&
            !as_match_far(t, f, as_labels(t, f, AS_P_ENC12), p, total, f->seq, hi)) {
            if (f->resync)
                memset(&f->mark, 0, sizeof f->mark);
            return f->lost ? shut12(t, f, p, total, f->lost_reason, m) : AS_R_BLOCK;
        }
    } else if ((f->uncertain || f->resync) && !as_range(t, f, f->cell, &f->aead, p, total, f->seq, f->seq_hi, &f->seq) &&
               f->resync) {
        return AS_R_NOT;
    }
    uint8_t *out = as_buf_get(t->k);
    if (!out)
        return shut12(t, f, p, total, AS_TLS_LIMIT, m);
    long r = (long)total, n = as_aead_open(&f->aead, f->seq, p, total, out);
    if (n < 0) {
        f->seq_hi = (f->uncertain ? f->seq_hi : f->seq) + 1;
        f->uncertain = 1;
        as_buf_put(t->k, out);
        return f->resync ? AS_R_NOT : shut12(t, f, p, total, AS_TLS_BAD_TAG, m);
    }
    if (f->aead.suite->aead != AS_CHACHA) {
        f->nonce12 = as_be64(p + 5);
        f->nonce12_seq = f->seq;
    }
    opens(f);
    if (p[0] == T_DATA) {
        opened(t, f, total, 1, out, (size_t)n, m);
    } else if (p[0] == T_ALERT && n >= 2 && out[1] == 0) {
        r = end_of_flow(t, f, total, m);
    } else {
        if (p[0] == T_HANDSHAKE && !f->fin)
            as_hs_feed(t, f, out, (size_t)n, m);
        handshake(f, total);
    }
    as_buf_put(t->k, out);
    return r;
}

/* ---- before any key ---- */
static int looks_like_message(const uint8_t *p, size_t total) { /* after a hole, in the clear */
    return total >= 9 && p[5] <= 24 && p[5] != 3 && p[5] != 9 && p[5] != 10 && p[6] < 2;
}

static long plain_record(as_tls *t, as_flow *f, const uint8_t *p, size_t total, size_t avail, const as_meta *m) {
    uint16_t v = t->info.version;
    int guess = !v && (t->hello_lost || f->lost || (!t->ch_seen && !t->sh_seen)); /* no hello to wait for */
    switch (p[0]) {
    case T_HANDSHAKE:
        if (f->resync && !looks_like_message(p, total))
            return AS_R_NOT;
        f->resync = 0;
        as_hs_feed(t, f, p + 5, total - 5, m);
        return handshake(f, total);
    case T_CCS:
        if (total != 6 || p[5] != 1)
            return AS_R_NOT;
        if (!v && !guess)
            return AS_R_BLOCK;
        f->resync = 0;
        if (v && v != 0x0304) {
            as_hs_reset(&f->hs);
            f->phase = t->suite ? AS_P_ENC12 : AS_P_DARK;
            f->uncertain = 0;
            if (as_role(t, f) == 1)
                t->info.resumed = !t->cert_seen && !t->hello_lost;
        }
        return handshake(f, total);
    case T_ALERT:
        if (f->resync && total != 7)
            return AS_R_NOT;
        f->resync = 0;
        return total == 7 && p[5] == 1 && p[6] == 0 ? end_of_flow(t, f, total, m) : handshake(f, total);
    default:
        break;
    }
    if (p[0] != T_DATA || total < 5 + 17)
        return AS_R_NOT;
    if (!v && !guess)
        return AS_R_BLOCK;
    if (t->info.hello_retry && t->early_offered && as_role(t, f) == 0)
        return shut(t, f, total, AS_TLS_REJECTED, m);
    as_hs_reset(&f->hs);
    if (v && !t->suite && !t->info.hello_retry) {
        f->phase = AS_P_DARK;
    } else if (v && v != 0x0304) {
        f->phase = AS_P_ENC12; /* its ChangeCipherSpec was lost */
        f->uncertain = 1;
    } else if (!v && (t->late || !t->hello_lost)) { /* joined late */
        f->phase = AS_P_APP;
        f->uncertain = 1;
        f->seq_hi = AS_SEQ_ANY;
    } else {
        f->phase = as_role(t, f) == 0 && t->early_offered ? AS_P_EARLY : AS_P_HS;
    }
    return as_record(t, f, p, total, avail, m);
}

long as_record(as_tls *t, as_flow *f, const uint8_t *p, size_t total, size_t avail, const as_meta *m) {
    switch (f->phase) {
    case AS_P_PLAIN:
        return plain_record(t, f, p, total, avail, m);
    case AS_P_EARLY:
    case AS_P_HS:
    case AS_P_APP:
        return record13(t, f, p, total, avail, m);
    case AS_P_ENC12:
        return record12(t, f, p, total, m);
    case AS_P_DARK:
        f->resync = 0;
        return p[0] == T_DATA ? shut(t, f, total, AS_TLS_UNSUPPORTED, m) : handshake(f, total);
    default:
        return AS_R_NOT;
    }
}

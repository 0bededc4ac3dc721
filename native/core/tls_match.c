/* SPDX-License-Identifier: MIT
 *
 * Which secret, and which record number, opens a record: found by trying, proven by the AEAD tag, so a wrong guess costs time
 * and never gives wrong plaintext. The candidates come from the keyring, likeliest first; every trial is counted, and their
 * number is capped for each key that is looked for. Candidates that failed on this record are not tried on it again.
 */
#include <openssl/crypto.h>
#include <string.h>

#include "tls_int.h"

#define FEW 64    /* record numbers tried where the likelihood is small */
#define NEAR ((uint64_t)1 << 12)    /* record numbers of a TLS 1.2 key that are looked at without more ado */
#define FAR ((uint64_t)1 << 20)     /* record numbers that are looked at for one secret found in memory */
#define FAR_ALL ((uint64_t)4 << 20) /* and for one flow */
#define FAR_KEY 16                  /* so much cheaper is the number of a TLS 1.2 record */
#define UPDATES 4 /* KeyUpdates that one hole may hide */

typedef struct trial {
    as_tls *t;
    as_flow *f;
    const uint8_t *rec;
    size_t total;
    uint64_t lo, hi;
    uint32_t labels;
    int far; /* only ChaCha20 secrets and TLS 1.2 keys found in memory, far numbers */
    /* what opened it */
    const as_suite *suite;
    as_cell *cell;      /* scratch: TLS 1.2, and keys after KeyUpdates that were lost */
    const as_cell *key; /* the one */
    uint32_t updates;
    uint64_t seq;
} trial;

uint32_t as_labels(const as_tls *t, const as_flow *f, enum as_phase phase) {
    int role = as_role(t, f);
    uint32_t c, s;
    if (phase == AS_P_ENC12)
        return AS_LB(AS_L_MASTER) | AS_LB(AS_L_KEY);
    c = phase == AS_P_EARLY ? AS_L_CE : phase == AS_P_HS ? AS_L_CH : AS_L_CA;
    s = phase == AS_P_HS ? AS_L_SH : AS_L_SA;
    if (phase == AS_P_EARLY)
        return AS_LB(AS_L_CE) | AS_LB(AS_L_ANY);
    /* joined late, the version is not known: TLS 1.2 looks the same */
    uint32_t key = phase == AS_P_APP && !t->suite && !t->info.version ? AS_LB(AS_L_KEY) : 0;
    return (role != 1 ? AS_LB(c) : 0) | (role != 0 ? AS_LB(s) : 0) | AS_LB(AS_L_ANY) | key;
}

static int spend(as_tls *t, as_flow *f) { /* 0: no trial left */
    if (f->trials >= t->o.max_trials) {
        if (!f->cap_hit)
            as_keyring_count(t->k, 0, 1);
        f->cap_hit = 1;
        return 0;
    }
    f->trials++;
    as_keyring_count(t->k, 1, 0);
    return 1;
}

/* Does the key open the record with a number in lo..hi? The nearest are tried upwards; AES-GCM of 1.3 tells the number
 * itself. `a` must be keyed with `cell`. */
int as_range(as_tls *t, as_flow *f, const as_cell *cell, as_aead *a, const uint8_t *rec, size_t total, uint64_t lo, uint64_t hi,
             uint64_t *seq) {
    uint8_t *out = as_buf_get(t->k);
    uint64_t s;
    int ok = 0;
    if (!out)
        return 0;
    if (spend(t, f) && as_aead_open(a, lo, rec, total, out) >= 0) {
        *seq = lo;
        ok = 1;
    } else if (lo >= hi) {
        ok = 0;
    } else if (a->suite->v13 && a->suite->aead != AS_CHACHA) {
        ok = spend(t, f) && as_gcm_seq(as_keyring_crypto(t->k), a->suite, cell, rec, total, out, &s) && s >= lo && s <= hi &&
             as_aead_open(a, s, rec, total, out) >= 0;
        if (ok)
            *seq = s;
    } else {
        if (!a->suite->v13 && a->suite->aead != AS_CHACHA && total >= 13) {
            /* explicit nonces are counters (RFC 5288 section 3 suggests the record number), or xored with it */
            uint64_t n = as_be64(rec + 5);
            uint64_t guess[3] = {f->nonce12_seq + (n - f->nonce12), f->nonce12_seq ^ n ^ f->nonce12, n};
            for (int i = 0; !ok && i < 3; i++)
                if (guess[i] > lo && guess[i] <= hi && spend(t, f) && as_aead_open(a, guess[i], rec, total, out) >= 0) {
                    *seq = guess[i];
                    ok = 1;
                }
        }
        for (s = lo + 1; !ok && s <= hi && spend(t, f); s++)
            if (as_aead_open(a, s, rec, total, out) >= 0) {
                *seq = s;
                ok = 1;
            }
    }
    OPENSSL_cleanse(out, total < AS_BUF_SIZE ? total : AS_BUF_SIZE);
    as_buf_put(t->k, out);
    return ok;
}

/* The same for the keys that follow `from` by KeyUpdates which were lost; `to` becomes the one that opens. */
int as_range_next(as_tls *t, as_flow *f, const as_suite *s, const as_cell *from, const uint8_t *rec, size_t total, uint64_t hi,
                  as_cell *to, uint64_t *seq, uint32_t *updates) {
    as_crypto *c = as_keyring_crypto(t->k);
    if (s->aead == AS_CHACHA && hi > FEW)
        hi = FEW;
    for (uint32_t gen = 1; gen <= UPDATES; gen++, from = to)
        if (as_derive_next13(c, s, from, to) || as_aead_set(c, &c->trial[s->aead], s, to))
            return 0;
        else if (as_range(t, f, to, &c->trial[s->aead], rec, total, 0, hi, seq)) {
            *updates = gen;
            return 1;
        }
    return 0;
}

/* A secret of unknown name opened the record: is it the one that is looked for? Under handshake keys there is no application
 * data; under the early key there is nothing else until EndOfEarlyData. */
static int fits(const trial *x, as_aead *a) {
    uint8_t *out = as_buf_get(x->t->k);
    int hs = (x->labels & (AS_LB(AS_L_CH) | AS_LB(AS_L_SH))) != 0, early = (x->labels & AS_LB(AS_L_CE)) != 0, ok = 1;
    long n = out ? as_aead_open(a, x->seq, x->rec, x->total, out) : -1;
    while (n > 0 && !out[n - 1])
        n--;
    int data = n > 0 && out[n - 1] == 23;
    if (hs)
        ok = n > 0 && !data;
    else if (early)
        ok = data || (n > 1 && out[n - 1] == 22 && out[0] == 5);
    if (out)
        as_buf_put(x->t->k, out);
    return ok;
}

/* A key of TLS 1.2 without its salt: both salt and record number come out of the record. */
static int try_key(trial *x, as_entry *e) {
    as_tls *t = x->t;
    as_crypto *c = as_keyring_crypto(t->k);
    const as_suite *s = t->suite ? t->suite : as_suite_find(e->cell->len == 16 ? 0xc02f : 0xc030);
    if (s->v13 || s->aead == AS_CHACHA || s->key_len != e->cell->len || !x->cell)
        return 0;
    if (x->far ? x->f->far >= FAR_ALL : !spend(t, x->f))
        return -1;
    uint8_t *tmp = as_buf_get(t->k);
    if (!tmp)
        return 0;
    uint64_t hi = x->far || x->hi < x->lo + NEAR ? x->hi : x->lo + NEAR;
    if (x->far)
        x->f->far += (hi - x->lo) / FAR_KEY;
    memcpy(x->cell->key, e->cell->secret, s->key_len);
    int ok = as_gcm12_seq(c, s, x->cell, x->rec, x->total, tmp, x->lo, hi, &x->seq) &&
             as_aead_set(c, &c->trial[s->aead], s, x->cell) == 0 &&
             as_aead_open(&c->trial[s->aead], x->seq, x->rec, x->total, tmp) >= 0;
    OPENSSL_cleanse(tmp, x->total < AS_BUF_SIZE ? x->total : AS_BUF_SIZE);
    as_buf_put(t->k, tmp);
    x->suite = s;
    x->key = x->cell;
    return ok;
}

/* A ChaCha20 secret and a record of any number: the numbers that cannot be are passed over. */
static int try_far(trial *x, const as_suite *s, as_entry *e) {
    as_tls *t = x->t;
    as_flow *f = x->f;
    as_crypto *c = as_keyring_crypto(t->k);
    as_aead *a = &c->trial[s->aead];
    uint8_t *out = as_buf_get(t->k);
    int ok = 0;
    if (!out)
        return 0;
    if (as_derive13(c, s, e->cell) == 0 && as_aead_set(c, a, s, e->cell) == 0)
        for (uint64_t at = x->lo; !ok && at <= x->hi && f->far < FAR_ALL;) {
            uint64_t seq = 0, most = at + (FAR_ALL - f->far) - 1, end = x->hi < most ? x->hi : most;
            int maybe = as_chacha_seq(c, s, e->cell, x->rec, x->total, at, end, &seq);
            if (!maybe) {
                f->far += end - at + 1;
                break;
            }
            f->far += seq - at + 1;
            ok = as_aead_open(a, seq, x->rec, x->total, out) >= 0;
            x->seq = seq;
            at = seq + 1;
        }
    OPENSSL_cleanse(out, x->total < AS_BUF_SIZE ? x->total : AS_BUF_SIZE);
    as_buf_put(t->k, out);
    x->suite = s;
    x->key = e->cell;
    return ok ? 1 : f->far >= FAR_ALL ? -1 : 0;
}

static int try_entry(void *u, as_entry *e) {
    trial *x = u;
    as_tls *t = x->t;
    as_crypto *c = as_keyring_crypto(t->k);
    static const uint16_t guess[] = {0x1301, 0x1302, 0x1303};
    /* tied to this connection by its random or its group: tried beyond the cap, and with every record number */
    int direct = t->have_cr && e->has_random;
    if (x->far && !e->chacha && e->label != AS_L_KEY)
        return 0;
    if (e->label == AS_L_KEY)
        return try_key(x, e);
    for (size_t i = 0; i < t->nclaim; i++)
        direct |= t->claim[i] == e->group;
    for (size_t i = 0; i < (t->suite ? 1 : sizeof guess / sizeof *guess); i++) {
        const as_suite *s = t->suite ? t->suite : as_suite_find(guess[i]);
        as_cell *cell = e->cell;
        if (s->v13 ? e->cell->len != s->hash_len : e->label != AS_L_MASTER)
            continue;
        if (e->memory && e->chacha != (s->aead == AS_CHACHA)) /* the memory told the cipher */
            continue;
        if (x->far)
            return try_far(x, s, e);
        if (e->chacha && x->hi > x->lo + FEW) /* as_match_far's */
            continue;
        if (x->f->trials >= t->o.max_trials && !direct) {
            (void)spend(t, x->f); /* notes the cap */
            return -1;
        }
        if (s->v13) {
            if (as_derive13(c, s, cell))
                continue;
        } else {
            cell = x->cell;
            if (!t->have_cr || !t->have_sr || !cell || as_derive12(c, s, e->cell, t->cr, t->sr, as_role(t, x->f) == 1, cell))
                continue;
        }
        if (as_aead_set(c, &c->trial[s->aead], s, cell))
            continue;
        uint64_t hi = x->hi, before = x->f->trials;
        if (direct)
            x->f->trials = 0;
        else if ((s->aead == AS_CHACHA || !s->v13) && hi > x->lo + FEW)
            hi = x->lo + FEW; /* its number has to be searched: do not spend everything on one stranger */
        x->suite = s;
        x->key = cell;
        if (as_range(t, x->f, cell, &c->trial[s->aead], x->rec, x->total, x->lo, hi, &x->seq)) {
            if (e->label != AS_L_ANY || fits(x, &c->trial[s->aead]))
                return 1;
            continue;
        }
        if (direct && x->hi > x->lo && AS_LB(e->label) & (AS_LB(AS_L_CA) | AS_LB(AS_L_SA)) &&
            as_range_next(t, x->f, s, cell, x->rec, x->total, hi, x->cell, &x->seq, &x->updates)) {
            x->key = x->cell;
            return 1;
        }
        if (direct)
            x->f->trials = before;
    }
    return 0;
}

int as_set_key(as_tls *t, as_flow *f, const as_suite *s, const as_cell *cell) {
    if (!f->cell && !(f->cell = as_cell_new(t->k)))
        return -1;
    if (f->cell != cell)
        memcpy(f->cell, cell, sizeof *cell);
    f->have = as_aead_set(as_keyring_crypto(t->k), &f->aead, s, f->cell) == 0;
    return f->have ? 0 : -1;
}

void as_drop_key(as_tls *t, as_flow *f) {
    as_cell_free(t->k, f->cell);
    f->cell = NULL;
    f->have = 0;
    f->seq = f->seq_hi = 0;
    f->trials = 0;
    f->cap_hit = 0;
    memset(&f->mark, 0, sizeof f->mark);
    memset(&f->look, 0, sizeof f->look);
    f->look_done = 0;
}

int as_next_key(as_tls *t, as_flow *f) {
    as_cell *n = as_cell_new(t->k);
    if (!n || as_derive_next13(as_keyring_crypto(t->k), f->aead.suite, f->cell, n)) {
        as_cell_free(t->k, n);
        return -1;
    }
    as_cell_free(t->k, f->cell);
    f->cell = n;
    f->seq = 0;
    return as_set_key(t, f, f->aead.suite, n);
}

static int match(as_tls *t, as_flow *f, uint32_t labels, as_mark *mark, const uint8_t *rec, size_t total, uint64_t lo,
                 uint64_t hi, int far) {
    uint64_t serial = as_keyring_serial(t->k);
    if (mark->gen != t->gen || mark->labels != labels)
        mark->serial = 0;
    if (mark->serial >= serial)
        return 0;
    as_query q = {labels, mark->serial, t->have_cr ? t->cr : NULL, t->claim, t->nclaim, t->touch, t->ntouch};
    trial x = {.t = t, .f = f, .rec = rec, .total = total, .lo = lo, .hi = hi, .labels = labels, .far = far};
    if (!(x.cell = as_cell_new(t->k)))
        return 0;
    as_entry *e = as_keyring_find(t->k, &q, try_entry, &x);
    mark->serial = serial;
    mark->gen = t->gen;
    mark->labels = labels;
    int ok = e && as_set_key(t, f, x.suite, x.key) == 0;
    as_cell_free(t->k, x.cell);
    if (!ok)
        return 0;
    f->seq = x.seq;
    f->st.key_updates += x.updates;
    f->trials = 0;
    f->cap_hit = 0;
    if (!t->suite)
        t->suite = x.suite;
    if (!t->info.version) {
        t->info.version = x.suite->v13 ? 0x0304 : 0x0303;
        t->info.cipher = x.suite->v13 ? x.suite->id : 0; /* TLS 1.2: the key does not tell the key exchange */
    }
    if (t->info.client_flow < 0 && e->label < AS_L_MASTER) {
        int server = e->label == AS_L_SH || e->label == AS_L_SA;
        t->info.client_flow = server ? !as_flow_no(t, f) : as_flow_no(t, f);
    }
    int known = 0;
    for (size_t i = 0; i < t->nclaim; i++)
        known |= t->claim[i] == e->group;
    if (known || t->nclaim == AS_MAX_CLAIMS) {
        as_group *g = as_keyring_claim(t->k, e, t->have_cr ? t->cr : NULL);
        if (g)
            as_keyring_release(t->k, g); /* claimed already */
    } else {
        as_group *g = as_keyring_claim(t->k, e, t->have_cr ? t->cr : NULL);
        if (g) {
            t->claim[t->nclaim++] = g;
            t->gen++;
        }
    }
    t->changed = 1;
    return 1;
}

/* Looks for a secret with one of `labels` that opens rec with a record number in lo..hi; takes it as the flow's key.
 * 1 found (f->seq is the record's number), 0 not. */
int as_match(as_tls *t, as_flow *f, uint32_t labels, as_mark *mark, const uint8_t *rec, size_t total, uint64_t lo, uint64_t hi) {
    return match(t, f, labels, mark, rec, total, lo, hi, 0);
}

int as_match_far(as_tls *t, as_flow *f, uint32_t labels, const uint8_t *rec, size_t total, uint64_t lo, uint64_t hi) {
    as_mark done = f->farther;
    int ok = 0;
    if (f->far >= FAR_ALL || hi <= lo + FEW)
        return 0;
    for (uint64_t reach = NEAR; !ok && reach <= FAR; reach <<= 4) { /* most are young: all secrets with small numbers first */
        f->farther = done;
        ok = match(t, f, labels, &f->farther, rec, total, lo, hi < lo + reach ? hi : lo + reach, 1);
    }
    return ok;
}

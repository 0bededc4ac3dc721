/* SPDX-License-Identifier: MIT
 *
 * Inside of the TLS record layer; included by tls*.c only. tls.h is the contract.
 *
 * Order of the files, each using only those before it:
 *   tls_crypto.c  cipher suites, key derivation, AEAD (libcrypto)
 *   tls_seq.c     record numbers of connections joined in mid-stream
 *   tls_keys.c    the keyring: secrets by process, thread, client random and group (structures: tls_keys.h)
 *   tls_find.c    the keyring: candidates for a connection
 *   tls_match.c   finding the secret and the record number that open a record, by trying
 *   tls_hs.c      handshake messages: hellos, EncryptedExtensions, Finished, KeyUpdate
 *   tls_rec.c     one whole record in the state of its flow
 *   tls_flow.c    one flow: cutting records, holding what waits, holes, accounts
 *   tls.c         the contract: both flows, time, bounds
 */
#ifndef AS_TLS_INT_H
#define AS_TLS_INT_H

#include <openssl/evp.h>
#include <stddef.h>

#include "tls.h"

#define AS_REC_MAX (16384 + 2048) /* longest payload (TLS 1.2; 1.3 allows 256 more than 16384) */
#define AS_BUF_SIZE (AS_REC_MAX + 64)
#define AS_SEQ_ANY ((uint64_t)1 << 40)

/* ---- tls_crypto.c ---- */
enum { AS_AES128 = 0, AS_AES256 = 1, AS_CHACHA = 2, AS_NAEAD = 3 };
enum { AS_SHA256 = 0, AS_SHA384 = 1 };

typedef struct as_suite {
    uint16_t id;
    uint8_t aead, hash, key_len, hash_len, v13;
} as_suite;

/* One secret and what follows from it; lives in locked memory. */
typedef struct as_cell {
    uint8_t secret[64];
    uint8_t key[32];
    uint8_t iv[12]; /* TLS 1.2 AES-GCM: 4 bytes */
    uint16_t suite; /* what key and iv were derived for; 0: not yet */
    uint8_t len;    /* of secret */
    uint8_t pad[17];
} as_cell;

typedef struct as_aead {
    EVP_CIPHER_CTX *ctx;
    const as_suite *suite;
    uint8_t iv[12];
} as_aead;

typedef struct as_crypto {
    EVP_CIPHER *aead[AS_NAEAD], *ecb[2], *chacha;
    EVP_MAC *hmac;
    EVP_MAC_CTX *mac[2];
    EVP_CIPHER_CTX *enc, *block, *stream;
    as_aead trial[AS_NAEAD];
} as_crypto;

int as_crypto_init(as_crypto *c); /* 0 or -1 */
void as_crypto_free(as_crypto *c);
const as_suite *as_suite_find(uint16_t id);
int as_derive13(as_crypto *c, const as_suite *s, as_cell *cell);
int as_derive_next13(as_crypto *c, const as_suite *s, const as_cell *from, as_cell *to);
int as_derive12(as_crypto *c, const as_suite *s, const as_cell *master, const uint8_t *cr, const uint8_t *sr, int server,
                as_cell *to);
int as_aead_set(as_crypto *c, as_aead *a, const as_suite *s, const as_cell *cell);
void as_aead_clear(as_aead *a);
/* rec: the whole record with its 5 header bytes. Gives the plaintext's length (1.3: with content type and padding) or -1. */
long as_aead_open(as_aead *a, uint64_t seq, const uint8_t *rec, size_t total, uint8_t *out);
/* TLS 1.3 AES-GCM: the record number out of the tag. 1 and *seq, or 0: not a record of this key. */
int as_gcm_seq(as_crypto *c, const as_suite *s, const as_cell *cell, const uint8_t *rec, size_t total, uint8_t *tmp,
               uint64_t *seq);

/* ---- tls_seq.c ---- */
/* The first number in lo..hi that may be the record's; 0: none. The former fills in the salt that it finds (cell->iv). */
int as_gcm12_seq(as_crypto *c, const as_suite *s, as_cell *cell, const uint8_t *rec, size_t total, uint8_t *tmp, uint64_t lo,
                 uint64_t hi, uint64_t *seq);
int as_chacha_seq(as_crypto *c, const as_suite *s, const as_cell *cell, const uint8_t *rec, size_t total, uint64_t lo,
                  uint64_t hi, uint64_t *seq);

/* ---- tls_keys.c ---- */
enum as_label { AS_L_CE, AS_L_CH, AS_L_SH, AS_L_CA, AS_L_SA, AS_L_MASTER, AS_L_ANY, AS_L_KEY, AS_NLABEL };
#define AS_LB(l) (1u << (l))

typedef struct as_node {
    struct as_node *prev, *next;
} as_node;
typedef struct as_hl {
    struct as_hl *next, **pprev;
} as_hl;
typedef struct as_group as_group;
typedef struct as_owner as_owner;

typedef struct as_entry {
    as_node age, byproc, bythread, ingroup;
    as_hl hsecret, hrandom;
    uint64_t serial, ts, stamp;
    uint32_t tgid, tid;
    uint8_t label, used, has_random;
    uint8_t memory, chacha; /* found in memory; as a ChaCha20 secret */
    uint8_t random[32];
    as_group *group;
    as_owner *proc, *thread;
    as_cell *cell;
} as_entry;

typedef struct as_touch {
    uint32_t tgid, tid;
} as_touch;

typedef struct as_query {
    uint32_t labels;       /* mask of AS_LB */
    uint64_t after;        /* only secrets added after this serial number */
    const uint8_t *random; /* client random of the connection or NULL */
    as_group *const *groups;
    size_t ngroups;
    const as_touch *touch; /* newest first */
    size_t ntouch;
} as_query;

as_crypto *as_keyring_crypto(as_keyring *k);
uint64_t as_keyring_serial(const as_keyring *k);
void as_keyring_count(as_keyring *k, uint64_t trials, uint64_t cap_hits);
/* Calls fn for candidates, the likeliest first, until it gives non-zero: 1 found, -1 stop. */
as_entry *as_keyring_find(as_keyring *k, const as_query *q, int (*fn)(void *u, as_entry *e), void *u);
as_group *as_keyring_claim(as_keyring *k, as_entry *e, const uint8_t *random);
void as_keyring_release(as_keyring *k, as_group *g);
as_cell *as_cell_new(as_keyring *k);
void as_cell_free(as_keyring *k, as_cell *c);
uint8_t *as_buf_get(as_keyring *k); /* AS_BUF_SIZE bytes; NULL: no memory */
void as_buf_put(as_keyring *k, uint8_t *b);

/* ---- the connection ---- */
enum as_phase { /* of one flow */
                AS_P_PLAIN, /* handshake in the clear */
                AS_P_EARLY, /* 1.3 client: early data may come */
                AS_P_HS,    /* 1.3: handshake keys */
                AS_P_APP,   /* 1.3: application keys */
                AS_P_ENC12, /* 1.2: behind ChangeCipherSpec */
                AS_P_DARK,  /* a suite or version that we do not open */
                AS_P_DEAD,  /* no records any more */
};

typedef struct as_seg { /* held bytes by the call that brought them, or a hole */
    uint64_t n;
    int gap;
    as_meta m;
} as_seg;

typedef struct as_hs { /* one handshake message being collected */
    uint8_t head[4];
    uint32_t nhead, len, got, cap;
    uint8_t *body;
} as_hs;

typedef struct as_mark { /* which candidates were tried already */
    uint64_t serial;
    uint32_t gen, labels;
} as_mark;

typedef struct as_flow {
    uint8_t *q;
    size_t qoff, qn, qcap;
    as_seg *seg;
    size_t soff, sn, scap;
    uint8_t phase, blocked, lost, resync, uncertain, have, fin, told_eof, tcp_eof, cap_hit, renewed;
    enum as_tls_reason dead_reason, lost_reason;
    as_aead aead;
    as_cell *cell;
    uint64_t seq, seq_hi; /* next record number; when uncertain, it lies in seq..seq_hi */
    uint64_t skip;        /* bytes of a record with a hole, still to be thrown away */
    uint64_t pend;        /* bytes lost before application data, not yet told */
    uint64_t trials, far; /* AEAD trials for this key; record numbers that were only looked at */
    uint8_t begun;        /* joined late: it was seen what the first bytes are */
    uint64_t nonce12, nonce12_seq; /* last explicit nonce and its record number */
    uint64_t block_ts;
    as_mark mark, look, farther;
    uint32_t look_done;
    as_hs hs;
    as_meta eof_meta;
    as_tls_flow_stats st;
} as_flow;

#define AS_MAX_TOUCH 8
#define AS_MAX_CLAIMS 4

struct as_tls {
    as_keyring *k;
    as_tls_sink sink;
    void *user;
    as_tls_opts o;
    as_tls_info info;
    as_flow f[2];
    as_touch touch[AS_MAX_TOUCH];
    size_t ntouch;
    as_group *claim[AS_MAX_CLAIMS];
    size_t nclaim;
    uint32_t gen;        /* grows when more candidates became direct ones */
    const as_suite *suite; /* NULL: not known, or not opened (then dark) */
    uint8_t cr[32], sr[32], have_cr, have_sr;
    uint8_t changed;     /* one flow learned what the other waits for */
    uint8_t late;        /* joined in mid-stream */
    uint8_t ch_seen, sh_seen, hello_lost, early_offered, told, cert_seen, ee_seen, ee_lost;
    int8_t early_ok;     /* server's answer to early data: -1 not known */
    size_t held;
};

static inline int as_flow_no(const as_tls *t, const as_flow *f) {
    return (int)(f - t->f);
}
/* 0 client, 1 server, -1 unknown */
static inline int as_role(const as_tls *t, const as_flow *f) {
    return t->info.client_flow < 0 ? -1 : as_flow_no(t, f) != t->info.client_flow;
}
static inline uint32_t as_be16(const uint8_t *p) {
    return (uint32_t)p[0] << 8 | p[1];
}
static inline uint64_t as_be64(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | p[i];
    return v;
}

/* tls_match.c */
int as_match(as_tls *t, as_flow *f, uint32_t labels, as_mark *mark, const uint8_t *rec, size_t total, uint64_t lo, uint64_t hi);
/* The same for ChaCha20 secrets and TLS 1.2 keys found in memory, with large record numbers; bounded for each flow. */
int as_match_far(as_tls *t, as_flow *f, uint32_t labels, const uint8_t *rec, size_t total, uint64_t lo, uint64_t hi);
int as_range(as_tls *t, as_flow *f, const as_cell *cell, as_aead *a, const uint8_t *rec, size_t total, uint64_t lo, uint64_t hi,
             uint64_t *seq);
int as_range_next(as_tls *t, as_flow *f, const as_suite *s, const as_cell *from, const uint8_t *rec, size_t total, uint64_t hi,
                  as_cell *to, uint64_t *seq, uint32_t *updates);
uint32_t as_labels(const as_tls *t, const as_flow *f, enum as_phase phase);
int as_set_key(as_tls *t, as_flow *f, const as_suite *s, const as_cell *cell);
void as_drop_key(as_tls *t, as_flow *f);
int as_next_key(as_tls *t, as_flow *f); /* KeyUpdate */

/* tls_hs.c */
void as_hs_feed(as_tls *t, as_flow *f, const uint8_t *p, size_t n, const as_meta *m);
void as_hs_reset(as_hs *h);
void as_tell_handshake(as_tls *t, const as_meta *m, int now);

/* tls_rec.c */
#define AS_R_BLOCK (-1) /* cannot go on before a secret or the other flow's hello is there */
#define AS_R_NOT (-2)   /* while looking for a boundary: this is none */
#define AS_R_MORE 0
/* p: a whole record of `total` bytes, `avail` >= total bytes in all. Gives bytes consumed or AS_R_*. */
long as_record(as_tls *t, as_flow *f, const uint8_t *p, size_t total, size_t avail, const as_meta *m);

/* tls_flow.c */
size_t as_cost(const as_flow *f); /* memory that is held */
int as_hold(as_flow *f, const uint8_t *p, uint64_t n, int gap, const as_meta *m);
/* One step at p, n > 0: bytes dealt with, AS_R_MORE, AS_R_BLOCK. */
long as_step(as_tls *t, as_flow *f, const uint8_t *p, size_t n, const as_meta *m);
void as_run_held(as_tls *t, as_flow *f);
void as_finish(as_tls *t, as_flow *f, const as_meta *m);
void as_lose_sync(as_flow *f, uint64_t lost, enum as_tls_reason why);
void as_tell_gap(as_tls *t, as_flow *f, uint64_t n, enum as_tls_reason why, const as_meta *m);
void as_shut(as_tls *t, as_flow *f, uint64_t n, enum as_tls_reason why, const as_meta *m); /* bytes stay closed */
void as_tell_eof(as_tls *t, as_flow *f, const as_meta *m);

#endif

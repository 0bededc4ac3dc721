/* SPDX-License-Identifier: MIT
 *
 * The TLS record layer of an observer. In: the ciphertext of both directions of one connection (in order, holes told), and a
 * keyring of secrets seen in processes. Out: plaintext, proven record by record by its AEAD tag, and an account of every byte.
 * TLS 1.3 (RFC 8446: AES-128/256-GCM, ChaCha20-Poly1305, KeyUpdate, resumption, HelloRetryRequest, early data is counted) and
 * TLS 1.2 with the same AEADs (RFC 5246, 5288, 7905). No I/O, no clock: time is as_meta.ts. Never fails on bad bytes.
 */
#ifndef AS_TLS_H
#define AS_TLS_H

#include "meta.h"

struct as_secret; /* bpf/agentsight.h */

/* ---- the secrets of all processes; bounded, locked in memory where possible, kept out of core dumps, zeroed when dropped ---- */
typedef struct as_keyring as_keyring;

typedef struct as_keyring_stats {
    uint64_t added, duplicates, matched, expired, evicted, trials, trial_cap_hits;
} as_keyring_stats;

as_keyring *as_keyring_new(size_t max_secrets, uint64_t ttl_ns); /* NULL: no memory, or libcrypto lacks the ciphers */
void as_keyring_free(as_keyring *k); /* after every as_tls made with it; one thread at a time */
void as_keyring_add(as_keyring *k, const struct as_secret *rec);
void as_keyring_expire(as_keyring *k, uint64_t now); /* forget secrets older than the ttl that no open connection holds */
void as_keyring_stats_get(const as_keyring *k, as_keyring_stats *out);
/* A tracked relative may hold a socket that its parent opened: secrets of `tgid` are looked for under `parent` as well. */
void as_keyring_relate(as_keyring *k, uint32_t tgid, uint32_t parent);

/* ---- one connection ---- */
typedef struct as_tls as_tls;

enum as_tls_reason { /* why application bytes stay closed */
                     AS_TLS_OK = 0,
                     AS_TLS_NO_SECRET = 1, /* no secret of its processes opens it (no probe on that stack, or joined late) */
                     AS_TLS_MISSING = 2, /* part of the record was never captured */
                     AS_TLS_UNSUPPORTED = 3, /* cipher suite or version that we do not open */
                     AS_TLS_BAD_TAG = 4, /* had the key, tag did not verify */
                     AS_TLS_NOT_RECORD = 5, /* no TLS record where one had to begin */
                     AS_TLS_LIMIT = 6, /* more bytes waited for a secret than allowed */
                     AS_TLS_REJECTED =
                         7, /* early data that the server refused: never delivered, the client sends it again (no gap is told) */
                     AS_TLS_REASONS = 8,
};

typedef struct as_tls_info {
    uint16_t version; /* 0x0304, 0x0303, 0 unknown */
    uint16_t cipher;
    int client_flow; /* flow that sent the ClientHello, -1 unknown */
    int resumed, hello_retry, early_data; /* early_data: the server accepted it */
    char sni[256];
    char alpn[32]; /* selected by the server; "" unknown or none */
    char alpn_offered[96]; /* what the client offered, comma separated, cut at the end */
    uint64_t ts_client_hello, ts_finished; /* ns; 0 unknown */
} as_tls_info;

typedef struct
    as_tls_flow_stats { /* bytes of the flow at the TCP level; seen == handshake + opened + sum(closed) + waiting, always */
    uint64_t seen; /* ciphertext bytes fed, record headers included */
    uint64_t handshake; /* of them: handshake, alerts, ChangeCipherSpec: no application data */
    uint64_t opened; /* application records opened, wire size */
    uint64_t plain; /* application bytes they gave */
    uint64_t closed[AS_TLS_REASONS]; /* application records not opened, wire size, by reason */
    uint64_t waiting; /* held now: waiting for a secret, or the beginning of a record; 0 after as_tls_flush */
    uint64_t missing; /* holes told by as_tls_gap (in addition to seen) */
    uint64_t records_opened, records_closed;
    uint32_t key_updates;
} as_tls_flow_stats;

/* Pointers are valid only during the call. A callback must not call functions of the same as_tls; it may feed another one
 * (TLS inside TLS). The meta given is that of the call which completed the record, however long the record waited. */
typedef struct as_tls_sink {
    void (*plain)(void *u, int flow, const uint8_t *data, size_t n, const as_meta *m);
    /* n ciphertext bytes stay closed or were missing; what follows in this flow does not join what came before */
    void (*gap)(void *u, int flow, uint64_t n, enum as_tls_reason reason, const as_meta *m);
    /* Once: both Finished were seen or application data opened, and the messages with the names came. Early data precedes it. */
    void (*handshake)(void *u, const as_tls_info *info, const as_meta *m);
    /* Once per flow: close_notify, or the TCP end (as_tls_eof) after everything that waited before it. */
    void (*eof)(void *u, int flow, const as_meta *m);
} as_tls_sink;

typedef struct as_tls_opts {
    size_t max_wait_bytes; /* per connection, ciphertext held while its secret is awaited (0: 4 MiB) */
    uint64_t max_wait_ns; /* and for how long (0: 5 s) */
    uint32_t max_trials; /* AEAD trials for each key that is looked for, and after each hole (0: 4096) */
} as_tls_opts;

as_tls *as_tls_new(as_keyring *k, const as_tls_sink *sink, void *user, const as_tls_opts *opts);
void as_tls_free(as_tls *t); /* zeroes its keys */

/* Joined in mid-stream: a flow may begin anywhere in a record. To be called before its first byte. */
void as_tls_late(as_tls *t);

/* Does TLS begin at p? 1 yes, 0 no, -1 more bytes needed. (A record header of a handshake with a ClientHello or ServerHello;
 * `late` also takes an application-data record header of plausible length.) */
int as_tls_sniff(const uint8_t *p, size_t n, int late);

void as_tls_feed(as_tls *t, int flow, const uint8_t *data, size_t n, const as_meta *m);
void as_tls_gap(as_tls *t, int flow, uint64_t n, const as_meta *m); /* n bytes of the stream were not captured */
void as_tls_eof(as_tls *t, int flow, const as_meta *m); /* TCP end of that direction */
void as_tls_flush(as_tls *t, const as_meta *m); /* the end: what waits is counted as closed */

int as_tls_waiting(const as_tls *t); /* holds records that wait for a secret */
uint64_t as_tls_waits_since(const as_tls *t); /* time at which that began, 0: it does not wait */
void as_tls_retry(as_tls *t, const as_meta *m); /* secrets of its processes arrived: try what waits */
void as_tls_tick(as_tls *t, const as_meta *m); /* time went on: give up what waited too long */
void as_tls_touch(as_tls *t, uint32_t tgid,
                  uint32_t tid); /* this process has touched the connection: its secrets are candidates */
void as_tls_stats_get(const as_tls *t, int flow, as_tls_flow_stats *out);
const as_tls_info *as_tls_info_get(const as_tls *t);

#endif

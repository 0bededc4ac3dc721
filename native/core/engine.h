/* SPDX-License-Identifier: MIT
 *
 * The engine: the record stream (bpf/agentsight.h) in, outputs (out.h) out. It keeps processes and connections, puts bytes in
 * order, tells holes, pairs the two ends of a loopback connection, and leads every byte through TLS and HTTP. Deterministic:
 * the same records give the same outputs, wherever batches were cut; time is the records' time.
 */
#ifndef AS_ENGINE_H
#define AS_ENGINE_H

#include "http.h"
#include "out.h"
#include "tls.h"

typedef struct as_engine as_engine;

typedef struct as_engine_opts {
    int want_raw, want_http, want_sse_each, want_frames, want_handshakes, want_stdio, want_process, want_conns;
    int raw_data;            /* keep the wire bytes of HTTP messages */
    int plain_http;          /* look at connections without TLS: 0 no, 1 any port, 2 the ports in plain_ports */
    const uint16_t *plain_ports;
    size_t n_plain_ports;
    size_t body_budget;      /* bytes, all buffered bodies together */
    size_t max_pending;      /* bytes held per flow while something before them is awaited (0: 1 MiB) */
    uint64_t reorder_ns;     /* how long (0: 50 ms) */
} as_engine_opts;

typedef struct as_engine_stats {
    as_conn_account a; /* ended and open connections */
    as_hstats http;
    as_keyring_stats keys;
    uint64_t connections, records, unknown_records, damaged, batches, lost_outputs, lost_execs;
    uint64_t budget_refused;
} as_engine_stats;

typedef struct as_dark { /* bytes of a process that stayed closed */
    as_procref who;
    char exe[256];
    uint64_t bytes[AS_TLS_REASONS];
    uint64_t total;
} as_dark;

as_engine *as_engine_new(const as_engine_opts *o);
void as_engine_free(as_engine *e);

/* Whole records only (a batch always holds whole records). A damaged length ends the batch and is counted. */
void as_engine_feed(as_engine *e, const uint8_t *batch, size_t n);
void as_engine_flush(as_engine *e); /* the stream has ended: everything open is given as it is */

as_outs *as_engine_outs(as_engine *e); /* to be read, then as_outs_clear */

void as_engine_stats_get(as_engine *e, as_engine_stats *out);
size_t as_engine_dark(as_engine *e, as_dark *out, size_t max); /* largest first */

/* Hints for a live capture; a replay ignores them. Both give and forget up to max entries. */
size_t as_engine_skips(as_engine *e, uint64_t *cookies, size_t max);  /* sockets whose bytes nobody can use */
size_t as_engine_asks(as_engine *e, uint32_t *tgids, size_t max);     /* processes that begin TLS */
size_t as_engine_wants(as_engine *e, uint32_t *tgids,
                       size_t max);    /* processes whose records wait for a secret that no probe gave */

#endif

/* SPDX-License-Identifier: MIT
 *
 * What the files of the engine share; nobody else includes it.
 */
#ifndef AS_ENGINE_INT_H
#define AS_ENGINE_INT_H

#include "agentsight.h"
#include "engine.h"
#include "hmap.h"

/* ---- processes ---- */
typedef struct proc {
    uint32_t tgid, ppid, uid;
    uint64_t start;
    char comm[16];
    char *exe;
    int dead, asked;
    uint64_t died;
    uint64_t dark[AS_TLS_REASONS];
} proc;

typedef struct exec_parts { /* an EXEC whose argument block is still coming */
    uint64_t ts, seq;
    size_t rec_len, args_cap, args_got;
    uint8_t *rec, *args;
} exec_parts;

/* ---- connections ---- */
typedef struct seg { /* bytes or a hole that came before what precedes them */
    struct seg *next;
    uint64_t off;
    size_t n;     /* bytes in data */
    uint64_t hole; /* hole behind them */
    int reason;
    uint64_t since;
    as_meta meta;
    uint8_t data[];
} seg;

typedef struct flow {
    uint64_t next;     /* offset that comes next */
    uint64_t first;    /* offset of the first byte that we know of */
    uint32_t base_seq; /* TCP sequence number of offset 0 */
    int based, begun, ended;
    seg *pending;
    size_t pending_bytes;
    uint64_t plain_off; /* plaintext bytes given so far */
    uint64_t seen, missing, skipped, dup, undecoded, plaintext;
    uint64_t clear;    /* bytes before TLS began, of a connection that begins otherwise */
    uint8_t sniff[64]; /* first bytes, while nobody knows what they are */
    size_t n_sniff;
    as_meta sniff_meta;
    uint8_t *late; /* bytes of a connection joined in mid-stream, while a record's boundary is looked for */
    size_t n_late, c_late;
    uint8_t *raw; /* plaintext from raw_off on, while messages are to carry their wire bytes */
    size_t n_raw, c_raw;
    uint64_t raw_off;
} flow;

typedef struct side {
    uint64_t cookie;
    int present, closed, from_start;
    uint32_t tgid, tid, uid;
    uint32_t tx_base, rx_base;
    uint64_t mirrored;
} side;

typedef struct frames_buf { /* the events of the SSE response that is open now */
    uint64_t exchange, count, gaps;
    int active, limited;
    uint8_t *frames, *names, *times, *ends;
    size_t n_frames, n_names, n_times, n_ends, c_frames, c_names, c_times, c_ends;
    as_slice *others;
    size_t n_others, c_others, others_bytes;
    uint64_t done_plus1; /* exchange whose frames were given already, + 1 */
} frames_buf;

enum conn_kind { C_UNKNOWN, C_TLS, C_HTTP, C_OTHER };

typedef struct conn {
    struct as_engine *e;
    struct conn *prev, *next;   /* all connections */
    struct conn *wprev, *wnext; /* those that wait: for a secret, or for bytes out of order */
    int waiting;
    uint64_t id, tuple;
    uint32_t netns;
    uint16_t family, port[2];
    uint8_t addr[2][16];
    side side[2];
    flow flow[2];
    enum conn_kind kind;
    int client; /* side of the client, -1 not known */
    uint64_t start, requests, responses;
    as_tls *tls;
    as_hconn *http;
    frames_buf fr;
    as_peers peers; /* as last told */
    const as_peers *peers_out; /* the copy in the outputs' arena, valid in outs_round */
    uint64_t peers_round;
    int skip_told;
    uint64_t want_told; /* when the memory of its processes was asked for */
} conn;

struct as_engine {
    as_engine_opts o;
    uint16_t *ports;
    as_outs outs;
    uint64_t outs_round; /* grows with every clear, tells if a pointer into the arena is still good */
    as_budget budget;
    as_keyring *keys;
    as_hstats hstats;
    as_hmap procs, ends, tuples, execs;
    conn *conns, *waiters;
    uint64_t seq, now, last_tick;
    uint64_t clock_boot, clock_wall;
    int have_clock;
    as_engine_stats st;
    as_conn_account done; /* connections that have ended */
    uint64_t skips[256];
    size_t n_skips;
    uint32_t asks[64];
    size_t n_asks;
    uint32_t wants[64];
    size_t n_wants;
};

/* proc.c */
proc *proc_get(as_engine *e, uint32_t tgid);
proc *proc_need(as_engine *e, uint32_t tgid);
void proc_ref(as_engine *e, uint32_t tgid, as_procref *out);
void proc_fork(as_engine *e, const struct as_fork *r);
void proc_exec(as_engine *e, const struct as_exec *r);
void proc_exec_args(as_engine *e, const struct as_exec_args *r);
void proc_exit(as_engine *e, const struct as_exit *r);
void proc_sweep(as_engine *e);
void proc_flush(as_engine *e);
void proc_free_all(as_engine *e);

/* conn.c */
void conn_record(as_engine *e, const struct as_conn *r);
void conn_data(as_engine *e, const struct as_data *r);
void conn_close(as_engine *e, const struct as_close *r);
void conn_tick(as_engine *e, const as_meta *m);
void conn_secret(as_engine *e, const struct as_secret *r, const as_meta *m);
void conn_end(conn *c, const as_meta *m); /* gives its account and frees it */
void conn_account(const conn *c, as_conn_account *a);
void conn_skip(conn *c);
void conn_wait(conn *c);
int conn_plain_allowed(const conn *c);

/* layers.c */
void layer_bytes(conn *c, int f, const uint8_t *p, size_t n, const as_meta *m);
void layer_gap(conn *c, int f, uint64_t n, const as_meta *m);
void layer_eof(conn *c, int f, const as_meta *m);
void layer_flush(conn *c, const as_meta *m);
void layer_free(conn *c);

/* emit.c */
extern const as_hsink emit_http_sink;
as_out *emit_new(as_engine *e, as_out_kind kind, const as_meta *m);
const as_peers *emit_peers(conn *c);
void emit_raw(conn *c, int f, uint64_t off, const uint8_t *p, size_t n, const as_meta *m, int unparsed);
void emit_handshake(conn *c, const as_tls_info *info, const as_meta *m);
void emit_conn(conn *c, const as_meta *m);
void emit_stdio(as_engine *e, const struct as_stdio *r, const as_meta *m);
void frames_free(conn *c);
void raw_keep(conn *c, int f, const uint8_t *p, size_t n);
as_meta meta_of(as_engine *e, const struct as_hdr *h, uint32_t uid);

#endif

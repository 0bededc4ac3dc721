/* SPDX-License-Identifier: MIT
 *
 * What the engine hands up: a list of outputs in the order of their causes, living in an arena until as_outs_clear. All slices
 * point into the arena; nothing points into the batch that was fed.
 */
#ifndef AS_OUT_H
#define AS_OUT_H

#include "http.h"
#include "meta.h"
#include "tls.h"

typedef enum as_out_kind {
    AS_O_RAW = 1,   /* plaintext of a connection */
    AS_O_HANDSHAKE, /* a TLS handshake has finished */
    AS_O_HTTP,      /* a finished HTTP message */
    AS_O_SSE,       /* one SSE event */
    AS_O_FRAMES,    /* all events of a finished SSE response */
    AS_O_CONN,      /* a connection's account at its end */
    AS_O_STDIO,
    AS_O_EXEC,
    AS_O_FORK,
    AS_O_EXIT,
    AS_O_NOTE,
    AS_O_DROPS,
} as_out_kind;

typedef struct as_procref {
    uint32_t tgid;  /* 0: not known */
    uint64_t start; /* ns since boot; 0: not known */
    char comm[16];
} as_procref;

typedef struct as_peers { /* who and where, of a connection's outputs */
    as_procref client, server;
    as_procref owner;     /* the process the output is told of */
    char local[56], remote[56];
    uint64_t conn; /* the connection's name: cookie of the end seen first */
    int tls;
} as_peers;

typedef struct as_out_http {
    as_hmsg m; /* every slice copied; m.request is NULL */
    as_slice req_method, req_target, req_host;
    uint64_t req_start, req_end;
    as_slice raw; /* the message as it was on the wire (after TLS), where asked for */
} as_out_http;

typedef struct as_out_frames {
    as_slice frames, names, times, ends;
    const as_slice *others;
    size_t n_others;
    uint64_t exchange, count, gaps;
    int limited;
} as_out_frames;

typedef struct as_out_sse {
    as_sse_ev ev;
    uint64_t exchange;
    as_slice req_method, req_target, req_host;
} as_out_sse;

typedef struct as_out_raw {
    as_slice data;
    uint64_t offset;
    int write;    /* 1: the owner sent it */
    int unparsed; /* no parser took it */
} as_out_raw;

typedef struct as_conn_account { /* bytes, both flows together */
    uint64_t seen, tls_handshake, tls_opened, tls_closed[AS_TLS_REASONS], waiting, plain, other, skipped, missing, mirrored,
        plaintext, undecoded, duplicate;
} as_conn_account;

typedef struct as_out_conn {
    as_conn_account a;
    as_tls_info tls;
    int protocol; /* 0 other, 1 tls, 2 http */
    uint64_t requests, responses, start;
} as_out_conn;

typedef struct as_out_rec { /* process and stdio: the kernel's own record, copied (args already joined) */
    const void *rec;
    as_slice args;  /* EXEC */
    as_procref who; /* FORK: the parent */
    uint64_t start; /* EXIT: process start */
} as_out_rec;

typedef struct as_out {
    struct as_out *next;
    as_out_kind kind;
    uint64_t seq, ts;
    int64_t wall_ms;
    as_meta meta;
    const as_peers *peers; /* connection outputs */
    union {
        as_out_raw raw;
        as_tls_info handshake;
        as_out_http http;
        as_out_sse sse;
        as_out_frames frames;
        as_out_conn conn;
        as_out_rec rec;
    } u;
} as_out;

typedef struct as_arena {
    struct as_block *blocks, *spare; /* in use; kept for later */
    size_t n_spare;
} as_arena;

void *as_arena_get(as_arena *a, size_t n); /* 16-aligned, not zeroed; NULL when memory is out */
void as_arena_clear(as_arena *a);          /* keeps a few blocks */
void as_arena_free(as_arena *a);

typedef struct as_outs {
    as_arena arena;
    as_out *head, **tail;
    size_t n;
    uint64_t lost; /* outputs that memory did not suffice for */
} as_outs;

void as_outs_init(as_outs *o);
void as_outs_clear(as_outs *o);
void as_outs_free(as_outs *o);
as_out *as_outs_add(as_outs *o, as_out_kind kind); /* zeroed; NULL (and counted) when memory is out */
as_slice as_outs_copy(as_outs *o, const void *p, size_t n);

#endif

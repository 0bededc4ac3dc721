/* SPDX-License-Identifier: MIT
 *
 * Plaintext in, messages out: HTTP/1.x of both directions of one connection (RFC 9112 framing, RFC 9110 codings), and the SSE
 * events inside responses (WHATWG). No I/O, no clock. Bad bytes never fail: they are handed to `raw` and counted. After a hole
 * each direction finds the next message it can prove: a start line with a valid head behind it, or the next chunk of the same
 * body. Pairing of request and response is by order; an answer that is told before its request waits for it (256 KiB, 1 s of
 * as_meta.ts). What is reported does not depend on how the bytes were cut into feeds, but for times and as_meta; and for a coded
 * body that is broken or ends by its own terminator, how much of it was there.
 */
#ifndef AS_HTTP_H
#define AS_HTTP_H

#include "meta.h"

typedef struct as_header {
    as_slice name; /* as sent */
    as_slice value; /* obs-fold joined, outer blanks trimmed */
} as_header;

#define AS_HM_HEAD_TRUNCATED 0x1   /* header limits exceeded: fields left out (counted) */
#define AS_HM_BODY_MISSING 0x2     /* a hole inside the body: bytes are missing where `missing` says how many */
#define AS_HM_BODY_CUT 0x4         /* ended before its framing said so */
#define AS_HM_BODY_LIMIT 0x8       /* body longer than the budget: what was kept is a prefix */
#define AS_HM_DECODE_ERROR 0x10    /* content coding broken: body holds what could be decoded */
#define AS_HM_FRAMING_ERROR 0x20   /* contradictory or invalid framing fields */
#define AS_HM_SMUGGLING 0x40       /* both Transfer-Encoding and Content-Length */
#define AS_HM_TERMINATED 0x80      /* an SSE stream ended by its own terminator ([DONE], message_stop, ...) */
#define AS_HM_NO_REQUEST 0x100     /* response whose request was not seen */
#define AS_HM_INTERIM 0x200        /* 1xx */
#define AS_HM_INCOMPLETE (AS_HM_BODY_MISSING | AS_HM_BODY_CUT | AS_HM_BODY_LIMIT | AS_HM_DECODE_ERROR | AS_HM_FRAMING_ERROR)

typedef struct as_hmsg {
    int is_request;
    int flow;            /* flow it travelled in */
    uint64_t exchange;   /* number of the exchange in its connection, from 0; request and response of one have the same */
    as_slice first_line; /* without line end */
    as_slice method, target, version, reason;
    int status; /* responses */
    const as_header *headers;
    size_t n_headers;
    const as_header *trailers;
    size_t n_trailers;
    as_slice body;          /* after content codings; in full up to the budget */
    uint64_t body_wire;     /* body bytes on the wire, framing taken off, before decoding */
    uint64_t wire;          /* bytes of the whole message on the wire, head and chunk framing included, holes not; of a
                               TERMINATED one: up to its terminator */
    uint64_t missing;       /* bytes lost in holes inside it */
    uint64_t off;           /* plaintext offset of its first byte in the flow */
    int64_t content_length; /* -1: none */
    int chunked;
    int is_sse;
    as_slice coding; /* Content-Encoding as sent (several fields: joined), empty if none */
    int decoded; /* `coding` was undone: else the body is as on the wire, which is plain where `coding` is empty */
    uint32_t flags; /* AS_HM_* */
    uint64_t ts_start, ts_head, ts_body, ts_end; /* first byte, head complete, first body byte, last byte (0: none) */
    as_meta first, last;                         /* calls that carried its first and last byte */
    const struct as_hmsg *request; /* responses: the request it answers (NULL: not seen); may itself be unfinished */
    uint64_t n_sse; /* SSE events in it so far */
} as_hmsg;

typedef struct as_sse_ev {
    as_slice event; /* "message" where the stream names none */
    as_slice data;
    as_slice id; /* last event id */
    int64_t retry; /* -1: none */
    uint64_t ts; /* when its last byte came */
    uint64_t index; /* number in the stream, from 0 */
    int truncated; /* flushed at the end of the stream without its blank line */
    int after_gap; /* bytes were lost before it */
} as_sse_ev;

typedef struct as_hsink { /* pointers are valid only during the call; any may be NULL */
    void (*request)(void *u, const as_hmsg *m); /* finished, whole or (see flags) not */
    void (*response)(void *u, const as_hmsg *m); /* finished; for SSE: at its own terminator or its end, whichever is first.
                                                    1xx are given too, with AS_HM_INTERIM */
    void (*response_head)(void *u, const as_hmsg *m); /* head complete, body to come */
    void (*sse)(void *u, const as_hmsg *resp, const as_sse_ev *ev); /* each event as it is complete */
    void (*raw)(void *u, int flow, uint64_t off, const uint8_t *p, size_t n, const as_meta *m); /* bytes no parser took: HTTP/2,
                                                    after an upgrade or CONNECT, garbage */
} as_hsink;

/* One budget for all buffered bodies of all connections. */
typedef struct as_budget {
    size_t used, max; /* bytes held in bodies now, and at most */
    uint64_t refused; /* body bytes not kept because of it */
} as_budget;

typedef struct as_hopts {
    as_budget *budget; /* shared; NULL: none */
    size_t max_body; /* per message, decoded (0: 64 MiB) */
    size_t max_head; /* bytes of one head (0: 256 KiB) */
    size_t max_headers; /* fields of one head (0: 512) */
    uint64_t max_inflate; /* output cap of a content coding per message (0: 256 MiB) */
    int keep_sse_body; /* also keep the decoded body of SSE responses (else body is empty for them) */
} as_hopts;

typedef struct as_hstats {
    uint64_t requests, responses, interim, sse_events, raw_bytes, resyncs, skipped_bytes, header_limit, framing_errors,
        decode_errors, inflated_out, bodies_limited, unpaired_responses, http2_bytes, upgraded_bytes,
        sse_oversize, /* SSE events cut to 16 MiB */
        queue_overflow, /* requests not queued because too many waited for their answer: those stay unpaired */
        chunk_resyncs, /* chunk boundaries found again behind a hole */
        hold_overflow; /* a direction waited for the other one beyond the bounds and was decoded without it */
} as_hstats;

typedef struct as_hconn as_hconn;
as_hconn *as_hconn_new(const as_hopts *opts, const as_hsink *sink, void *user, as_hstats *shared_stats);
void as_hconn_free(as_hconn *c);
/* A direction whose beginning was not seen starts with as_hconn_gap(c, flow, 0, m): then nothing waits for a request that never comes. */
void as_hconn_feed(as_hconn *c, int flow, const uint8_t *data, size_t n, const as_meta *m);
void as_hconn_gap(as_hconn *c, int flow, uint64_t n, const as_meta *m); /* n plaintext (or unknown: 0) bytes are missing here */
void as_hconn_eof(as_hconn *c, int flow, const as_meta *m);
void as_hconn_flush(as_hconn *c, const as_meta *m); /* the end: open messages are given as they are */

/* Could these first bytes be HTTP/1 (a method and a target with "/", "*", a scheme or CONNECT; or an HTTP/1.x status)? 1, 0, -1 more
 * bytes needed. HTTP/2's preface: 0. */
int as_http_sniff(const uint8_t *p, size_t n);

#endif

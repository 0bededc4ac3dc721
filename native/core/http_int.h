/* SPDX-License-Identifier: MIT
 *
 * The inside of the HTTP/1 layer, shared by http_head.c (start lines, fields, framing decision), http_body.c (codings, SSE, what is
 * kept), http_scan.c (what could a
 * message begin with), http_lines.c and http_flow.c (the state machine of one direction) and http_conn.c
 * (pairing, holding back, the public API). Nothing here is for users of http.h.
 */
#ifndef AS_HTTP_INT_H
#define AS_HTTP_INT_H

#include <strings.h>

#include "coding.h"
#include "http.h"
#include "http_buf.h"
#include "sse.h"

#define HTTP_QUEUE_MAX 1024          /* requests waiting for their answer, per connection */
#define HTTP_QUEUE_HEADS (4u << 20)  /* and bytes of their heads */
#define HTTP_HOLD_MAX (256u << 10)   /* bytes of a direction held back until the other one has caught up */
#define HTTP_HOLD_SEGS 64            /* and pieces (calls) they came in */
#define HTTP_HOLD_NS 1000000000ull   /* and how long, by the clock of the records */
#define HTTP_SCAN_LINE 16384         /* longest start line that is found behind junk */
#define HTTP_KEEP_LINE 1024          /* a field that matters for framing is kept beyond the limits, up to this length */
#define HTTP_KEEP_BUF 16384          /* memory a connection keeps for its next message, per buffer */
#define HTTP_CHUNK_LINE 16384        /* longest chunk-size line (extensions are ignored) */

typedef struct xmsg { /* a message and all that its public part points into */
    as_hmsg m;
    struct xmsg *next; /* queue of requests, or list of free ones */
    as_hbuf head, trail, body;
    as_header *hv; /* headers, then trailers */
    size_t hv_cap;
    as_dec *dec;
    as_sse sse;
    struct xmsg *req;       /* responses: the request, ours until we are freed */
    uint8_t parsing, paired; /* who still needs it: the parser of its flow; the queue or the response */
    uint8_t emitted;        /* request/response was called for it */
    uint8_t dead;           /* body bytes are no longer decodable (hole, broken coding, cap) */
    uint8_t is_head, is_connect, is_upgrade;
    uint8_t limited;        /* counted in bodies_limited */
    as_coding_list plan;    /* codings to undo */
    char ce[128];           /* Content-Encoding that came in several fields, joined */
} xmsg;

enum role { ROLE_NONE, ROLE_REQ, ROLE_RESP };

enum flow_state {
    F_START,  /* nothing known yet: HTTP/1, HTTP/2 or junk? */
    F_IDLE,   /* between messages */
    F_HOLD,   /* between messages, waiting for the other direction */
    F_HEAD,   /* inside a head */
    F_LEN,    /* body of known length */
    F_EOF,    /* body until close */
    F_CSIZE,  /* chunk-size line */
    F_CDATA,  /* chunk data */
    F_CEND,   /* line end behind chunk data */
    F_TRAIL,  /* trailer section */
    F_SCAN,   /* looking for the next message */
    F_TUNNEL, /* upgraded or CONNECT */
    F_H2,
    F_DONE,   /* closed */
};

enum framing { FR_NONE, FR_LEN, FR_CHUNKED, FR_CLOSE, FR_BAD };

typedef struct hold_seg {
    size_t n;
    as_meta m;
} hold_seg;

struct as_hconn;

typedef struct hflow {
    struct as_hconn *c;
    int id;
    enum role role;
    enum flow_state state;
    uint64_t off;        /* offset in the flow of the next byte to come */
    const uint8_t *d0;   /* the piece being fed, and the offset of its first byte */
    uint64_t base;
    as_meta meta;        /* of the piece being fed */
    xmsg *x;             /* the message whose body is read */
    uint64_t left;       /* bytes to come of a body or chunk */
    uint64_t fed_gap;    /* known bytes lost since the message began (they are no wire bytes) */
    /* lines: heads, trailers, and the unfinished line of a scan */
    as_hbuf hb;
    uint64_t hb_off;     /* offset of hb.p[0] */
    as_meta hb_meta;     /* call that carried it */
    uint64_t ln_wire;    /* bytes of the section so far, those left out included */
    size_t ls;           /* where in hb the current line begins */
    size_t n_lines;      /* lines kept, folds not counted */
    size_t n_extra;      /* kept beyond the limits */
    uint8_t ln_drop, prev_drop, left_out;
    uint8_t proving;     /* this head was found by scanning: every line must be right */
    uint8_t bol;         /* scan: the current line begins at a line start (or right behind a hole) */
    uint8_t after_crlf;  /* scan: the line before ended with CRLF, or a hole ended here */
    /* chunk-size line */
    uint8_t c_phase, c_digits;
    uint32_t c_len;
    uint8_t go_tunnel;   /* becomes a tunnel when the message in it ends */
    as_hbuf held;
    hold_seg *segs;
    size_t n_segs;
    uint64_t hold_ts;
} hflow;

struct as_hconn {
    as_hopts o;
    as_hsink sink;
    void *u;
    as_hstats *st;
    as_hstats own_stats; /* where the caller gave none */
    hflow f[2];
    xmsg *q_head, *q_tail, *free_list;
    size_t q_len, q_bytes, n_free;
    xmsg *await;            /* CONNECT or Upgrade request without its answer: what follows it may be no HTTP */
    uint64_t next_exchange; /* of the next request */
    uint64_t unqueued;      /* requests that found the queue full: so many answers stay unpaired */
    uint64_t orphan_ts;     /* first byte of the last answer given without its request */
    uint32_t orphans;
    uint8_t req_late;       /* requests may have been missed: an answer without one is possible */
    uint8_t no_hold;        /* do not wait for a request (again) */
    uint8_t resp_lost;      /* answers may have been missed */
    uint8_t pipelined;      /* this client sends requests before it has the answer */
};

static inline int as_h1_name_is(as_slice s, const char *name) /* inline: the length of a literal costs nothing then */
{
    return s.n == strlen(name) && !strncasecmp((const char *)s.p, name, s.n);
}

/* http_head.c */
int as_h1_tchar(uint8_t c);
int as_h1_request_line(const uint8_t *p, size_t n, as_hmsg *m);
int as_h1_status_line(const uint8_t *p, size_t n, as_hmsg *m);
int as_h1_field_ok(const uint8_t *p, size_t n); /* a line that a strict reader would take as a field (or fold) */
int as_h1_proof(const uint8_t *p, size_t n); /* start line and fields of a found head: a field at least, and Host in HTTP/1.1 */
int as_h1_framing_field(const uint8_t *p, size_t n);
size_t as_h1_trim_line(const uint8_t *p, size_t n); /* length without LF or CRLF */
void as_h1_parse_head(xmsg *x);                     /* x->head -> first line and fields of x->m */
void as_h1_parse_trailers(xmsg *x);
enum framing as_h1_framing(xmsg *x, const xmsg *req, uint64_t *len);

/* http_body.c */
void as_body_begin(struct as_hconn *c, xmsg *x);
void as_body_add(struct as_hconn *c, xmsg *x, const uint8_t *p, size_t n, const as_meta *m);
void as_body_gap(struct as_hconn *c, xmsg *x, uint64_t n, const as_meta *m);
void as_body_end(struct as_hconn *c, xmsg *x, const as_meta *m);
void as_body_release(struct as_hconn *c, xmsg *x);

/* http_scan.c */
size_t as_scan_line(const uint8_t *p, size_t n, int bol, enum role role, enum role *found); /* where a start line begins, or n */
int as_scan_chunk_size(const uint8_t *p, size_t n, uint64_t *size);
enum { START_MORE = -1, START_JUNK, START_REQ, START_RESP, START_H2 };
int as_scan_start(const uint8_t *p, size_t n);

/* http_lines.c; `off` is the offset in the flow behind what was taken */
static inline uint64_t as_flow_at(const hflow *f, const uint8_t *p) /* offset of a byte of the piece being fed */
{
    return f->base + (uint64_t)(p - f->d0);
}
void as_flow_lines(hflow *f, uint64_t off, enum flow_state st); /* begin a section of lines */
void as_flow_junk(hflow *f); /* the gathered lines were no message */
void as_flow_scan(hflow *f, uint64_t off);
void as_flow_finish(hflow *f, uint64_t off); /* the message ends here */
void as_flow_finish_bad(hflow *f, uint64_t off, uint32_t flags);
const uint8_t *as_flow_lines_step(hflow *f, const uint8_t *p, const uint8_t *end);
const uint8_t *as_flow_scan_step(hflow *f, const uint8_t *p, const uint8_t *end);

/* http_flow.c */
void as_flow_run(hflow *f, const uint8_t *p, size_t n);
void as_flow_gap(hflow *f, uint64_t n);
void as_flow_close(hflow *f, int eof);
void as_flow_tunnel(hflow *f);

/* http_conn.c */
xmsg *as_conn_msg(struct as_hconn *c);
void as_conn_drop(struct as_hconn *c, xmsg *x); /* frees what nobody needs any more */
void as_conn_request(struct as_hconn *c, xmsg *x);
void as_conn_pair(struct as_hconn *c, xmsg *x); /* find the request of a response */
void as_conn_answered(struct as_hconn *c, xmsg *x); /* its head is final */
void as_conn_emit(struct as_hconn *c, xmsg *x);
void as_conn_raw(hflow *f, uint64_t off, const uint8_t *p, size_t n, const as_meta *m);
int as_conn_must_hold(hflow *f);
void as_conn_hold(hflow *f, const uint8_t *p, size_t n);
int as_conn_release(hflow *f); /* what it holds back goes on, where it may: 1 when it did */
void as_conn_h2(struct as_hconn *c);

#endif

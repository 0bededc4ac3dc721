/* SPDX-License-Identifier: MIT
 *
 * Server-sent events, by the rules of the WHATWG HTML standard, section 9.2 ("Interpreting an event stream"). In: the decoded
 * body, in pieces cut anywhere. Out: events, each at the moment its blank line is there. An event that lies wholly inside one
 * piece is given as slices of that piece, without a copy. Bytes that are not UTF-8 stay as they are.
 */
#ifndef AS_SSE_H
#define AS_SSE_H

#include "http.h"
#include "http_buf.h"

#define AS_SSE_MAX_EVENT (16u << 20) /* bytes of data kept per event; the rest is cut off and counted */
#define AS_SSE_MAX_NAME 4096u        /* likewise for the event's name and its id */

typedef void (*as_sse_cb)(void *u, const as_sse_ev *ev); /* slices are valid only during the call */

typedef struct as_sse {
    as_budget *budget;
    size_t max_event;
    as_hbuf line, data, name, id; /* owned parts of what spans pieces; `id` persists over events */
    as_slice d, ev;               /* data and name of the event in progress: into `data`/`name`, or into the piece */
    size_t taken; /* bytes of the piece up to the end of the line in work: where in it an event ended */
    uint64_t index;
    uint64_t oversize; /* events that were cut to max_event */
    uint64_t held;     /* bytes of memory charged to the budget */
    int64_t retry;
    uint8_t bom;       /* bytes of a BOM matched so far; 3: decided */
    uint8_t skip_lf;   /* the last line ended with CR: one LF that follows belongs to it */
    uint8_t has_data, d_own, ev_own, over, line_over;
    uint8_t after_gap; /* bytes were lost since the last event */
    uint8_t resync;    /* the next line may be the rest of a lost one */
} as_sse;

/* `budget` may be NULL; max_event 0 means AS_SSE_MAX_EVENT. */
void as_sse_init(as_sse *s, as_budget *budget, size_t max_event);
void as_sse_free(as_sse *s);
void as_sse_feed(as_sse *s, const uint8_t *p, size_t n, uint64_t ts, as_sse_cb cb, void *u);
/* Bytes are missing here: the event in progress is given as truncated where it looks whole, and parsing goes on behind the hole. */
void as_sse_gap(as_sse *s, uint64_t ts, as_sse_cb cb, void *u);
/* The end of the stream. An event without its blank line is given as truncated where its data looks like a whole JSON text. */
void as_sse_end(as_sse *s, uint64_t ts, as_sse_cb cb, void *u);
/* Does a model API end its stream with this event? (The table is in sse.c.) */
int as_sse_is_terminator(const as_sse_ev *ev);

#endif

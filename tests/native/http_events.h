/* SPDX-License-Identifier: MIT
 *
 * The events of the HTTP layer as text, one per line, for tests, fuzzers and the Python driver. Times are left out: everything
 * that is printed must be the same however the bytes were cut. Raw bytes are joined until the next event of their flow.
 */
#ifndef HTTP_EVENTS_H
#define HTTP_EVENTS_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "http.h"

typedef struct text {
    char *p;
    size_t n, cap;
} text;

typedef struct events {
    text all;     /* in the order they came */
    text flow[2]; /* the same, by flow */
    text raw[2];
    uint64_t raw_off[2];
    int full;    /* long bodies in full, headers shown (for the Python driver) */
    int no_body; /* leave bodies out (fuzzing, where brotli may hold a part back) */
} events;

static void text_add(text *t, const char *p, size_t n) {
    if (t->n + n + 1 > t->cap) {
        t->cap = (t->n + n + 1) * 2;
        t->p = realloc(t->p, t->cap);
    }
    memcpy(t->p + t->n, p, n);
    t->n += n;
    t->p[t->n] = 0;
}

static void text_printf(text *t, const char *fmt, ...) {
    char buf[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    text_add(t, buf, (size_t)n < sizeof buf ? (size_t)n : sizeof buf - 1);
}

static void text_quote(text *t, const void *bytes, size_t n, int full) {
    const uint8_t *p = bytes;
    size_t show = full || n <= 100 ? n : 40;
    text_add(t, "\"", 1);
    for (size_t i = 0; i < show; i++) {
        char c = (char)p[i];
        if (c == '\r' || c == '\n' || c == '\t')
            text_printf(t, "\\%c", c == '\r' ? 'r' : c == '\n' ? 'n' : 't');
        else if (c == '"' || c == '\\')
            text_printf(t, "\\%c", c);
        else if (c < ' ' || c > '~')
            text_printf(t, "\\x%02x", p[i]);
        else
            text_add(t, &c, 1);
    }
    text_add(t, "\"", 1);
    if (show < n)
        text_printf(t, "...(%zu bytes, crc32 %08lx)", n, crc32(0, p, (uInt)n));
}

static const char *const side_name[2] = {"client", "server"}; /* flow 0 and flow 1 of the cases */

static void ev_raw_done(events *e, int flow) {
    if (!e->raw[flow].n)
        return;
    text t = {NULL, 0, 0};
    text_printf(&t, "%s raw @%llu ", side_name[flow], (unsigned long long)e->raw_off[flow]);
    text_quote(&t, e->raw[flow].p, e->raw[flow].n, e->full);
    text_add(&t, "\n", 1);
    text_add(&e->all, t.p, t.n);
    text_add(&e->flow[flow], t.p, t.n);
    free(t.p);
    e->raw[flow].n = 0;
}

static void ev_line(events *e, int flow, text *t) {
    ev_raw_done(e, flow);
    text_add(t, "\n", 1);
    text_add(&e->all, t->p, t->n);
    text_add(&e->flow[flow], t->p, t->n);
    free(t->p);
}

static void ev_flags(text *t, uint32_t flags) {
    static const char *const names[] = {"HEAD_TRUNCATED", "BODY_MISSING", "BODY_CUT",   "BODY_LIMIT", "DECODE_ERROR",
                                        "FRAMING_ERROR",  "SMUGGLING",    "TERMINATED", "NO_REQUEST", "INTERIM"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (flags & 1u << i)
            text_printf(t, " %s", names[i]);
}

static void ev_fields(text *t, const char *what, const as_header *h, size_t n) {
    for (size_t i = 0; i < n; i++) {
        text_printf(t, " %s=", what);
        text_quote(t, h[i].name.p, h[i].name.n, 1);
        text_add(t, ":", 1);
        text_quote(t, h[i].value.p, h[i].value.n, 1);
    }
}

static void ev_message(void *u, const as_hmsg *m) {
    events *e = u;
    text t = {NULL, 0, 0};
    text_printf(&t, "%s %s #%llu ", side_name[m->flow], m->is_request ? "request" : "response", (unsigned long long)m->exchange);
    text_quote(&t, m->first_line.p, m->first_line.n, e->full);
    if (e->full) {
        ev_fields(&t, "header", m->headers, m->n_headers);
        ev_fields(&t, "trailer", m->trailers, m->n_trailers);
    } else if (m->n_headers <= 4) {
        ev_fields(&t, "h", m->headers, m->n_headers);
    } else {
        text_printf(&t, " headers=%zu", m->n_headers);
    }
    if (m->n_trailers && !e->full)
        ev_fields(&t, "t", m->trailers, m->n_trailers);
    text_printf(&t, " body=");
    text_quote(&t, m->body.p, e->no_body ? 0 : m->body.n, e->full);
    text_printf(&t, " wire=%llu", (unsigned long long)m->wire);
    if (m->off)
        text_printf(&t, " off=%llu", (unsigned long long)m->off);
    if (m->missing)
        text_printf(&t, " missing=%llu", (unsigned long long)m->missing);
    if (m->decoded)
        text_printf(&t, " decoded");
    if (m->n_sse)
        text_printf(&t, " sse=%llu", (unsigned long long)m->n_sse);
    if (m->request) {
        text_printf(&t, " of=");
        text_quote(&t, m->request->first_line.p, m->request->first_line.n, 0);
    }
    ev_flags(&t, m->flags);
    ev_line(e, m->flow, &t);
}

static void ev_head(void *u, const as_hmsg *m) {
    text t = {NULL, 0, 0};
    text_printf(&t, "%s head #%llu %d", side_name[m->flow], (unsigned long long)m->exchange, m->status);
    ev_line(u, m->flow, &t);
}

static void ev_sse_text(text *t, const as_sse_ev *ev, int full) {
    text_quote(t, ev->event.p, ev->event.n, full);
    text_add(t, " ", 1);
    text_quote(t, ev->data.p, ev->data.n, full);
    if (ev->id.n) {
        text_printf(t, " id=");
        text_quote(t, ev->id.p, ev->id.n, full);
    }
    if (ev->retry >= 0)
        text_printf(t, " retry=%lld", (long long)ev->retry);
    if (ev->truncated)
        text_printf(t, " truncated");
    if (ev->after_gap)
        text_printf(t, " after_gap");
}

static void ev_sse(void *u, const as_hmsg *m, const as_sse_ev *ev) {
    events *e = u;
    text t = {NULL, 0, 0};
    text_printf(&t, "%s sse #%llu.%llu ", side_name[m->flow], (unsigned long long)m->exchange, (unsigned long long)ev->index);
    ev_sse_text(&t, ev, e->full);
    ev_line(e, m->flow, &t);
}

static void ev_raw(void *u, int flow, uint64_t off, const uint8_t *p, size_t n, const as_meta *m) {
    events *e = u;
    (void)m;
    if (e->raw[flow].n && e->raw_off[flow] + e->raw[flow].n != off)
        ev_raw_done(e, flow);
    if (!e->raw[flow].n)
        e->raw_off[flow] = off;
    text_add(&e->raw[flow], (const char *)p, n);
}

static const as_hsink ev_sink = {ev_message, ev_message, ev_head, ev_sse, ev_raw};

static void events_end(events *e) {
    ev_raw_done(e, 0);
    ev_raw_done(e, 1);
    text_add(&e->all, "", 0);
    text_add(&e->flow[0], "", 0);
    text_add(&e->flow[1], "", 0);
}

static void events_free(events *e) {
    free(e->all.p);
    for (int i = 0; i < 2; i++) {
        free(e->flow[i].p);
        free(e->raw[i].p);
    }
}

#endif

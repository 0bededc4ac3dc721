/* SPDX-License-Identifier: MIT
 *
 * A shared library for the Python tests: runs a script of operations through the HTTP layer, or a body through the SSE parser, and
 * returns the events as text (http_events.h, in full). Built by tests/native/drive.py.
 */
#include "http_events.h"
#include "sse.h"

char *as_drive_http(const uint8_t *p, size_t n, size_t cut, int keep_sse_body);
char *as_drive_sse(const uint8_t *p, size_t n, size_t cut);
void as_drive_free(char *text);

/* Script: operations of one byte (0, 1 feed of that flow; 2, 3 hole in it; 4, 5 its end), a length of 4 bytes, little-endian, and
 * for a feed so many bytes. Pieces are at most `cut` bytes. The result is freed with as_drive_free. */
char *as_drive_http(const uint8_t *p, size_t n, size_t cut, int keep_sse_body) {
    events e = {.full = 1};
    as_budget budget = {0, SIZE_MAX, 0};
    as_hopts o = {.budget = &budget, .keep_sse_body = keep_sse_body};
    as_meta m = {.ts = 1};
    as_hconn *c = as_hconn_new(&o, &ev_sink, &e, NULL);
    for (size_t i = 0; i + 5 <= n;) {
        int op = p[i], flow = op & 1;
        size_t k = (size_t)p[i + 1] | (size_t)p[i + 2] << 8 | (size_t)p[i + 3] << 16 | (size_t)p[i + 4] << 24;
        i += 5;
        if (op < 2) {
            for (size_t end = i + k; i < end;) {
                size_t step = end - i < cut ? end - i : cut;
                as_hconn_feed(c, flow, p + i, step, &m);
                i += step;
            }
        } else if (op < 4) {
            as_hconn_gap(c, flow, k, &m);
        } else {
            as_hconn_eof(c, flow, &m);
        }
    }
    as_hconn_flush(c, &m);
    events_end(&e);
    as_hconn_free(c);
    char *out = e.all.p;
    e.all.p = NULL;
    events_free(&e);
    return out;
}

static void on_event(void *u, const as_sse_ev *ev) {
    ev_sse_text(u, ev, 1);
    text_add(u, "\n", 1);
}

char *as_drive_sse(const uint8_t *p, size_t n, size_t cut) {
    text out = {NULL, 0, 0};
    as_sse s;
    as_sse_init(&s, NULL, 0);
    text_add(&out, "", 0);
    for (size_t i = 0; i < n; i += cut)
        as_sse_feed(&s, p + i, n - i < cut ? n - i : cut, 1, on_event, &out);
    as_sse_end(&s, 1, on_event, &out);
    as_sse_free(&s);
    return out.p;
}

void as_drive_free(char *text) {
    free(text);
}

/* SPDX-License-Identifier: MIT
 *
 * The C side of bench/http/bench.py: feeds pieces of one connection to the HTTP layer again and again, and tells the time.
 */
#include <stdlib.h>
#include <time.h>

#include "http.h"

typedef struct piece {
    const uint8_t *p;
    size_t n;
    int flow;
} piece;

typedef struct seen {
    uint64_t messages, events, body;
} seen;

static void message(void *u, const as_hmsg *m) {
    seen *s = u;
    s->messages++;
    s->body += m->body.n;
}

static void event(void *u, const as_hmsg *m, const as_sse_ev *ev) {
    seen *s = u;
    (void)m;
    s->events++;
    s->body += ev->data.n;
}

/* Feeds all pieces `rounds` times on one keep-alive connection. Nanoseconds; what was seen in `out`. */
uint64_t bench_http(const piece *pieces, size_t n, uint64_t rounds, seen *out);
uint64_t bench_http(const piece *pieces, size_t n, uint64_t rounds, seen *out) {
    static const as_hsink sink = {message, message, NULL, event, NULL};
    as_budget budget = {0, (size_t)1 << 30, 0};
    as_hopts o = {.budget = &budget};
    as_hconn *c = as_hconn_new(&o, &sink, out, NULL);
    as_meta m = {.ts = 1};
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (uint64_t r = 0; r < rounds; r++)
        for (size_t i = 0; i < n; i++)
            as_hconn_feed(c, pieces[i].flow, pieces[i].p, pieces[i].n, &m);
    clock_gettime(CLOCK_MONOTONIC, &b);
    as_hconn_free(c);
    return (uint64_t)(b.tv_sec - a.tv_sec) * 1000000000u + (uint64_t)b.tv_nsec - (uint64_t)a.tv_nsec;
}

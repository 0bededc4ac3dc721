/* SPDX-License-Identifier: MIT
 *
 * Invariant: whatever bytes, holes and ends come in whatever order, nothing crashes, every byte charged to the budget is given
 * back, no message claims more wire bytes than were fed, and each direction's events are the same when the pieces are cut into
 * others. Input: operations; each is a control byte, then what it needs:
 *   bit 0: direction. bits 1-2: 0, 1 feed (a length byte, then that many bytes), 2 a hole (a length byte), 3 the end (when bit 3-7
 *   are all set, else a feed as well).
 * A first byte chooses the limits.
 */
#include "http_events.h"

typedef struct fuzz {
    events e;
    uint64_t fed;
} fuzz;

static void check(void *u, const as_hmsg *m) {
    fuzz *f = u;
    if (m->wire > f->fed || m->body_wire > f->fed || m->first_line.n == 0)
        abort();
    if (m->request && m->request->exchange != m->exchange)
        abort();
    f->e.no_body = (m->flags & AS_HM_DECODE_ERROR) != 0;
    ev_message(&f->e, m);
}

static void head(void *u, const as_hmsg *m) {
    ev_head(&((fuzz *)u)->e, m);
}

static void sse(void *u, const as_hmsg *m, const as_sse_ev *ev) {
    ev_sse(&((fuzz *)u)->e, m, ev);
}

static void raw(void *u, int flow, uint64_t off, const uint8_t *p, size_t n, const as_meta *m) {
    ev_raw(&((fuzz *)u)->e, flow, off, p, n, m);
}

static void run(const uint8_t *p, size_t n, size_t cut, fuzz *f) {
    static const as_hsink sink = {check, check, head, sse, raw};
    as_budget budget = {0, p[0] & 1 ? 1u << 30 : 1u << 16, 0};
    as_hopts o = {.budget = &budget, .keep_sse_body = p[0] >> 1 & 1, .max_inflate = 1u << 20};
    if (p[0] & 4) {
        o.max_head = 128;
        o.max_headers = 4;
        o.max_body = 64;
    }
    as_hstats st = {0};
    as_hconn *c = as_hconn_new(&o, &sink, f, &st);
    as_meta m = {.ts = 1};
    for (size_t i = 1; i + 1 < n;) {
        int flow = p[i] & 1, op = p[i] >> 1 & 3;
        size_t k = p[i + 1];
        i += op == 3 && p[i] >> 3 == 31 ? 1 : 2;
        if (op == 2) {
            as_hconn_gap(c, flow, k, &m);
        } else if (op == 3 && p[i - 1] >> 3 == 31) {
            as_hconn_eof(c, flow, &m);
        } else {
            if (k > n - i)
                k = n - i;
            f->fed += k;
            for (size_t at = 0; at < k; at += cut) {
                size_t step = k - at < cut ? k - at : cut;
                uint8_t *copy = malloc(step ? step : 1); /* so that any read beyond the piece is seen */
                memcpy(copy, p + i + at, step);
                as_hconn_feed(c, flow, copy, step, &m);
                free(copy);
            }
            i += k;
        }
    }
    as_hconn_flush(c, &m);
    events_end(&f->e);
    as_hconn_free(c);
    if (budget.used)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) {
    if (n < 2)
        return 0;
    fuzz whole = {0}, cut = {0};
    run(p, n, SIZE_MAX / 2, &whole);
    run(p, n, 1 + p[1] % 7, &cut);
    for (int i = 0; i < 2 && p[0] & 1; i++) /* with the small budget, when it runs out depends on the order of the directions */
        if (strcmp(whole.e.flow[i].p, cut.e.flow[i].p) != 0) {
            fprintf(stderr, "--- whole\n%s--- cut\n%s", whole.e.flow[i].p, cut.e.flow[i].p);
            abort();
        }
    events_free(&whole.e);
    events_free(&cut.e);
    return 0;
}

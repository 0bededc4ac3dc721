/* SPDX-License-Identifier: MIT
 *
 * Runs the cases of tests/cases/http: whole (all events, in order), byte by byte, and cut at every single place: the same events in the
 * same order. Usage: test_http DIR [-v]. Blocks of a case:
 *
 *     == client | server         bytes of that direction
 *     == gap SIDE N              N bytes missing (0: not known how many)
 *     == eof SIDE | time NS      the direction ends | the clock of the records moves on
 *     == options NAME=N ...      max_head max_headers max_body max_inflate keep_sse_body budget
 */
#include "as_cases.h"
#include "http_events.h"

static int verbose;

enum { WHOLE, BYTES, SPLIT };

static int side_of(const char *s) {
    return strncmp(s, "server", 6) == 0;
}

/* Runs a case; in SPLIT mode bytes block number `at_block` is cut after `at` bytes. */
static void run_mode(const tcase *t, int mode, size_t at_block, size_t at, events *e) {
    as_budget budget = {0, SIZE_MAX, 0};
    as_hopts o = {.budget = &budget};
    as_hstats st = {0};
    uint64_t ts = 1;
    for (size_t i = 0; i < t->n_blocks; i++) {
        unsigned long long v;
        const char *a = t->b[i].arg;
        if (strcmp(t->b[i].kind, "options") != 0)
            continue;
        for (char name[32]; sscanf(a, " %31[^=]=%llu", name, &v) == 2; a += strcspn(a, " ")) {
            if (!strcmp(name, "max_head"))
                o.max_head = v;
            else if (!strcmp(name, "max_headers"))
                o.max_headers = v;
            else if (!strcmp(name, "max_body"))
                o.max_body = v;
            else if (!strcmp(name, "max_inflate"))
                o.max_inflate = v;
            else if (!strcmp(name, "keep_sse_body"))
                o.keep_sse_body = (int)v;
            else if (!strcmp(name, "budget"))
                budget.max = v;
            else
                abort();
            a += strspn(a, " ");
        }
    }
    as_hconn *c = as_hconn_new(&o, &ev_sink, e, &st);
    for (size_t i = 0; i < t->n_blocks; i++) {
        const block *b = &t->b[i];
        as_meta m = {.ts = ts, .tgid = 1};
        if (!strcmp(b->kind, "client") || !strcmp(b->kind, "server")) {
            int flow = side_of(b->kind);
            for (size_t k = 0; k < b->n;) {
                size_t n = mode == BYTES ? 1 : mode == SPLIT && i == at_block && k < at ? at - k : b->n - k;
                as_hconn_feed(c, flow, guarded(b->p + k, n), n, &m);
                k += n;
            }
        } else if (!strcmp(b->kind, "gap")) {
            as_hconn_gap(c, side_of(b->arg), strtoull(b->arg + 6, NULL, 10), &m);
        } else if (!strcmp(b->kind, "eof")) {
            as_hconn_eof(c, side_of(b->arg), &m);
        } else if (!strcmp(b->kind, "time")) {
            ts += strtoull(b->arg, NULL, 10);
        }
    }
    as_meta m = {.ts = ts};
    as_hconn_flush(c, &m);
    events_end(e);
    as_hconn_free(c);
    if (budget.used) {
        printf("budget: %zu bytes still charged\n", budget.used);
        abort();
    }
}

static int differs(const char *path, const tcase *t, const char *how, size_t i, size_t at, const char *want, const char *got) {
    if (!strcmp(want, got))
        return 0;
    printf("FAIL %s: %s (%s, block %zu, byte %zu)\n--- expected\n%s--- got\n%s\n", path, t->title, how, i, at, want, got);
    return 1;
}

static int run_case(const char *path, tcase *t) {
    events whole = {0};
    run_mode(t, WHOLE, 0, 0, &whole);
    int bad = differs(path, t, "whole", 0, 0, t->expect, whole.all.p);
    if (verbose)
        printf("%s: %s\n", path, t->title);
    for (size_t i = 0; i < t->n_blocks && !bad; i++) {
        for (size_t at = 1; at < t->b[i].n && !bad; at += t->b[i].n > 20000 ? 997 : 1) {
            events e = {0};
            run_mode(t, SPLIT, i, at, &e);
            bad = differs(path, t, "cut", i, at, whole.all.p, e.all.p);
            events_free(&e);
        }
    }
    events e = {0};
    run_mode(t, BYTES, 0, 0, &e);
    bad = bad || differs(path, t, "byte by byte", 0, 0, whole.all.p, e.all.p);
    events_free(&e);
    events_free(&whole);
    return bad;
}

#define CHECK(cond)                                                                                                              \
    do {                                                                                                                         \
        if (!(cond)) {                                                                                                           \
            printf("FAIL %s:%d: %s\n", __FILE__, __LINE__, #cond);                                                               \
            failures++;                                                                                                          \
        }                                                                                                                        \
    } while (0)

static int failures;

static void test_sniff(void) {
    static const struct {
        const char *p;
        int want;
    } t[] = {{"", -1},
             {"\r\n", -1},
             {"GET", -1},
             {"GET ", -1},
             {"GET /", 1},
             {"M-SEARCH * HTTP/1.1", 1},
             {"OPTIONS *", -1},
             {"SET * x", 0},
             {"GET http", 1},
             {"GET key", 0},
             {"EHLO host", 0},
             {"CONNECT a:1", 1},
             {"PRI * HTTP/2.0\r\n", 0},
             {"HTTP/1.1 20", -1},
             {"HTTP/1.1 200", 1},
             {"HTTP/1.1 OK", 0},
             {"HTTP/2 200", 0},
             {"HTTP/1", -1},
             {"\x16\x03\x01", 0},
             {"*1\r\n", 0},
             {"averyveryverylongwordthatisnomethod", 0}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        size_t n = strlen(t[i].p);
        if (as_http_sniff(guarded(t[i].p, n), n) != t[i].want) {
            printf("FAIL sniff \"%s\": wanted %d\n", t[i].p, t[i].want);
            failures++;
        }
    }
}

static void count_unpaired(void *u, const as_hmsg *m) {
    int *n = u;
    n[m->flags & AS_HM_NO_REQUEST ? 1 : 0]++;
    if (m->exchange != (uint64_t)(n[0] + n[1] - 1))
        abort();
}

/* The bounds on what waits: requests without an answer, and answers without a request. What exceeds them is counted, not lost. */
static void test_bounds(void) {
    static const char req[] = "GET / HTTP/1.1\r\nHost: a\r\n\r\n", resp[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    as_hstats st = {0};
    as_hsink sink = {.response = count_unpaired};
    int seen[2] = {0, 0};
    as_hconn *c = as_hconn_new(NULL, &sink, seen, &st);
    for (int i = 0; i < 1100; i++)
        as_hconn_feed(c, 0, (const uint8_t *)req, sizeof req - 1, NULL);
    CHECK(st.requests == 1100 && st.queue_overflow == 1100 - 1024);
    for (int i = 0; i < 1100; i++)
        as_hconn_feed(c, 1, (const uint8_t *)resp, sizeof resp - 1, NULL);
    CHECK(seen[0] == 1024 && seen[1] == 1100 - 1024 && st.unpaired_responses == 1100 - 1024);
    as_hconn_feed(c, 0, (const uint8_t *)req, sizeof req - 1, NULL); /* in step again */
    as_hconn_feed(c, 1, (const uint8_t *)resp, sizeof resp - 1, NULL);
    CHECK(seen[0] == 1025);
    as_hconn_free(c);

    memset(&st, 0, sizeof st);
    seen[0] = seen[1] = 0;
    c = as_hconn_new(NULL, &sink, seen, &st);
    for (int i = 0; i < 10000; i++)
        as_hconn_feed(c, 1, (const uint8_t *)resp, sizeof resp - 1, NULL);
    CHECK(st.hold_overflow == 1 && seen[1] == 10000);
    as_hconn_free(c);

    memset(&st, 0, sizeof st); /* every byte of a connection that is no HTTP is handed on and counted */
    c = as_hconn_new(NULL, NULL, NULL, &st);
    as_hconn_feed(c, 0, (const uint8_t *)"\x01junk\n", 6, NULL);
    as_hconn_feed(c, 0, (const uint8_t *)req, sizeof req - 1, NULL);
    as_hconn_flush(c, NULL);
    CHECK(st.raw_bytes == 6 && st.skipped_bytes == 6 && st.resyncs == 1 && st.requests == 1);
    as_hconn_feed(c, 0, (const uint8_t *)req, sizeof req - 1, NULL); /* behind the end: handed on */
    CHECK(st.raw_bytes == 6 + sizeof req - 1);
    as_hconn_free(c);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s DIR [-v]\n", argv[0]);
        return 2;
    }
    verbose = argc > 2;
    test_sniff();
    test_bounds();
    return cases_in_dir(argv[1], run_case) || failures;
}

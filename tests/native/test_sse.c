/* SPDX-License-Identifier: MIT
 *
 * Runs the cases of tests/cases/sse whole, byte by byte, and cut at every single place; each piece ends at an unreadable page.
 * Usage: test_sse DIR
 */
#include "as_cases.h"
#include "http_events.h"
#include "sse.h"

static void on_event(void *u, const as_sse_ev *ev) {
    text *t = u;
    ev_sse_text(t, ev, 0);
    text_add(t, "\n", 1);
}

static char *run_mode(const tcase *t, int bytes, size_t at_block, size_t at) {
    text out = {NULL, 0, 0};
    as_budget budget = {0, SIZE_MAX, 0};
    as_sse s;
    as_sse_init(&s, &budget, 100);
    text_add(&out, "", 0);
    for (size_t i = 0; i < t->n_blocks; i++) {
        const block *b = &t->b[i];
        if (!strcmp(b->kind, "gap"))
            as_sse_gap(&s, 1, on_event, &out);
        for (size_t k = 0; k < b->n;) {
            size_t n = bytes ? 1 : i == at_block && k < at ? at - k : b->n - k;
            as_sse_feed(&s, guarded(b->p + k, n), n, 1, on_event, &out);
            k += n;
        }
    }
    as_sse_end(&s, 1, on_event, &out);
    as_sse_free(&s);
    if (budget.used)
        abort();
    return out.p;
}

static int compare(const char *path, const tcase *t, size_t i, size_t at, char *got) {
    int bad = strcmp(got, t->expect) != 0;
    if (bad)
        printf("FAIL %s: %s (block %zu, byte %zu)\n--- expected\n%s--- got\n%s\n", path, t->title, i, at, t->expect, got);
    free(got);
    return bad;
}

static int run_case(const char *path, tcase *t) {
    int bad = compare(path, t, 0, 0, run_mode(t, 0, 0, 0)) || compare(path, t, 0, 1, run_mode(t, 1, 0, 0));
    for (size_t i = 0; i < t->n_blocks && !bad; i++)
        for (size_t at = 1; at < t->b[i].n && !bad; at++)
            bad = compare(path, t, i, at, run_mode(t, 0, i, at));
    return bad;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s DIR\n", argv[0]);
        return 2;
    }
    return cases_in_dir(argv[1], run_case);
}

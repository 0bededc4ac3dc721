/* SPDX-License-Identifier: MIT
 *
 * Invariant: any bytes in any pieces, with holes between, give the same events however they are cut, and all memory is given back.
 * Input: a first byte (bit 0: a small bound on events), then the stream; the byte 0xff stands for a hole.
 */
#include "http_events.h"
#include "sse.h"

static void on_event(void *u, const as_sse_ev *ev) {
    (void)as_sse_is_terminator(ev);
    ev_sse_text(u, ev, 1);
    text_add(u, "\n", 1);
}

static text run(const uint8_t *p, size_t n, size_t cut) {
    text out = {NULL, 0, 0};
    as_budget budget = {0, 1u << 30, 0};
    as_sse s;
    as_sse_init(&s, &budget, p[0] & 1 ? 16 : 0);
    for (size_t i = 1; i < n;) {
        if (p[i] == 0xff) {
            as_sse_gap(&s, 1, on_event, &out);
            i++;
            continue;
        }
        const uint8_t *hole = memchr(p + i, 0xff, n - i);
        size_t k = hole ? (size_t)(hole - (p + i)) : n - i;
        k = k < cut ? k : cut;
        uint8_t *copy = malloc(k);
        memcpy(copy, p + i, k);
        as_sse_feed(&s, copy, k, 1, on_event, &out);
        free(copy);
        i += k;
    }
    as_sse_end(&s, 1, on_event, &out);
    as_sse_free(&s);
    if (budget.used)
        abort();
    text_add(&out, "", 0);
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) {
    if (n < 2)
        return 0;
    text whole = run(p, n, n), bytes = run(p, n, 1), some = run(p, n, 2 + p[1] % 5);
    if (strcmp(whole.p, bytes.p) != 0 || strcmp(whole.p, some.p) != 0) {
        fprintf(stderr, "--- whole\n%s--- bytes\n%s--- some\n%s", whole.p, bytes.p, some.p);
        abort();
    }
    free(whole.p);
    free(bytes.p);
    free(some.p);
    return 0;
}

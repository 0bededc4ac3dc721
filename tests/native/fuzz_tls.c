/* SPDX-License-Identifier: MIT
 *
 * libFuzzer target of the TLS record layer. The input is a recorded connection (make_tls_cases.py writes a corpus) or anything
 * else in that form: items of kind, flow, ts, length, bytes; kind 1 is fed, 3 a secret, others are a hole, an eof, a retry, or
 * time. Nothing may crash, what comes out must fit what went in, and the account of bytes must close after every call.
 *
 *   clang -fsanitize=fuzzer,address,undefined -Inative/core -Ibpf tests/native/fuzz_tls.c native/core/tls*.c -lcrypto
 */
#include "tls_case.h"

static uint64_t out_plain[2], out_gap[2];
static uint8_t seen; /* keeps the reading of every plaintext byte from being optimised away */

static void plain(void *u, int flow, const uint8_t *p, size_t n, const as_meta *m) {
    (void)u;
    (void)m;
    for (size_t i = 0; i < n; i++)
        seen = (uint8_t)(seen ^ p[i]);
    out_plain[flow] += n;
}
static void gap(void *u, int flow, uint64_t n, enum as_tls_reason why, const as_meta *m) {
    (void)u;
    (void)m;
    if (why <= AS_TLS_OK || why >= AS_TLS_REASONS)
        abort();
    out_gap[flow] += n;
}

static void accounts(const as_tls *t, const uint64_t fed[2], int end) {
    for (int f = 0; f < 2; f++) {
        as_tls_flow_stats s;
        as_tls_stats_get(t, f, &s);
        uint64_t sum = s.handshake + s.opened + s.waiting;
        for (int r = 0; r < AS_TLS_REASONS; r++)
            sum += s.closed[r];
        if (sum != s.seen || s.seen != fed[f] || s.plain != out_plain[f] || s.plain > s.opened || (end && s.waiting))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const as_tls_sink sink = {plain, gap, NULL, NULL};
    as_tls_opts o = {.max_wait_bytes = 20000, .max_trials = 64};
    as_keyring *k = as_keyring_new(32, 1000000000u);
    as_tls *t = as_tls_new(k, &sink, NULL, &o);
    uint64_t fed[2] = {0, 0};
    as_meta m = {.ts = 1, .tgid = 100, .tid = 1};
    memset(out_plain, 0, sizeof out_plain);
    memset(out_gap, 0, sizeof out_gap);
    while (size >= 14) {
        tc_item i = {.kind = data[0], .flow = data[1] & 1, .p = data + 14};
        memcpy(&i.ts, data + 2, 8);
        memcpy(&i.n, data + 10, 4);
        int cut = data[1] & 2; /* byte by byte */
        data += 14;
        size -= 14;
        if (i.n > size)
            i.n = (uint32_t)size;
        data += i.n;
        size -= i.n;
        m.ts = i.ts;
        if (i.kind == IT_DATA) {
            uint8_t *copy = malloc(i.n + 1u);
            memcpy(copy, i.p, i.n);
            if (cut)
                for (uint32_t b = 0; b < i.n; b++)
                    as_tls_feed(t, i.flow, copy + b, 1, &m);
            else
                as_tls_feed(t, i.flow, copy, i.n, &m);
            free(copy);
            fed[i.flow] += i.n;
        } else if (i.kind == IT_KEY) {
            struct as_secret s;
            if (tc_secret(&i, &s, 100 + i.flow, 1, cut ? i.ts : 0x1000, cut != 0) == 0)
                as_keyring_add(k, &s);
            as_tls_retry(t, &m);
        } else if (i.kind % 8 == 5) {
            as_tls_gap(t, i.flow, i.ts % 100000, &m);
        } else if (i.kind % 8 == 6) {
            as_tls_eof(t, i.flow, &m);
        } else if (i.kind % 8 == 7) {
            as_keyring_expire(k, m.ts);
            as_tls_tick(t, &m);
        }
        accounts(t, fed, 0);
    }
    as_tls_flush(t, &m);
    accounts(t, fed, 1);
    if (as_tls_waiting(t))
        abort();
    as_tls_free(t);
    as_keyring_free(k);
    return 0;
}

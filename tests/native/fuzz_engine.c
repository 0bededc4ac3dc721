/* SPDX-License-Identifier: MIT
 *
 * libFuzzer target for the engine. Invariant: any stream of records, and any cut of it into batches, neither crashes nor hangs,
 * and every byte of every connection is in exactly one account. The input is a recipe: each step makes one record of a known
 * kind with few channels and small offsets, so that records meet; a step may also leave the record's fields as random as they are.
 */
#include "agentsight.h"
#include "engine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef struct in {
    const uint8_t *p;
    size_t n;
} in;

static unsigned byte(in *i) {
    if (!i->n)
        return 0;
    i->n--;
    return *i->p++;
}

static size_t take(in *i, uint8_t *to, size_t n) {
    if (n > i->n)
        n = i->n;
    memcpy(to, i->p, n);
    i->p += n;
    i->n -= n;
    return n;
}

static uint64_t now;

static size_t make(in *i, uint8_t *to) { /* one record of at most 1024 bytes */
    static const uint8_t kinds[] = {AS_K_CONN, AS_K_CLOSE, AS_K_DATA,      AS_K_DATA, AS_K_DATA, AS_K_STDIO, AS_K_SECRET,
                                    AS_K_FORK, AS_K_EXEC,  AS_K_EXEC_ARGS, AS_K_EXIT, AS_K_TICK, AS_K_CLOCK, AS_K_DROPS,
                                    AS_K_NOTE, 99};
    struct as_hdr *h = (void *)to;
    memset(to, 0, 1024);
    unsigned kind = kinds[byte(i) & 15], shape = byte(i);
    now += (uint64_t)byte(i) << (shape & 1 ? 20 : 4);
    size_t n = sizeof *h;
    uint64_t chan = 1 + (shape >> 1 & 3);
    if (kind == AS_K_DATA) {
        struct as_data *d = (void *)to;
        d->chan = chan;
        d->dir = shape >> 3 & 1;
        d->off = byte(i);
        d->cap = (uint32_t)take(i, d->data, byte(i));
        d->real = d->cap + (shape & 0x10 ? byte(i) : 0);
        d->hole = shape & 0x20 ? AS_HOLE_SKIPPED : AS_HOLE_FAULT;
        n = sizeof *d + d->cap;
    } else if (kind == AS_K_CONN) {
        struct as_conn *c = (void *)to;
        c->chan = chan;
        c->family = AF_INET;
        c->flags = (uint16_t)byte(i);
        c->sport = shape & 8 ? 80 : 5000;
        c->dport = shape & 8 ? 5000 : 80;
        c->tx_base = byte(i);
        c->rx_base = byte(i);
        n = sizeof *c;
    } else if (kind == AS_K_CLOSE) {
        struct as_close *c = (void *)to;
        c->chan = chan;
        c->seen[0] = byte(i);
        c->seen[1] = byte(i);
        c->skipped[shape >> 3 & 1] = byte(i);
        n = sizeof *c;
    } else {
        static const size_t sizes[AS_K_NOTE + 1] = {[AS_K_STDIO] = sizeof(struct as_stdio),
                                                    [AS_K_SECRET] = sizeof(struct as_secret),
                                                    [AS_K_FORK] = sizeof(struct as_fork),
                                                    [AS_K_EXEC] = sizeof(struct as_exec),
                                                    [AS_K_EXEC_ARGS] = sizeof(struct as_exec_args),
                                                    [AS_K_EXIT] = sizeof(struct as_exit),
                                                    [AS_K_CLOCK] = sizeof(struct as_clock),
                                                    [AS_K_DROPS] = sizeof(struct as_drops),
                                                    [AS_K_NOTE] = sizeof(struct as_note)};
        size_t fixed = kind <= AS_K_NOTE && sizes[kind] ? sizes[kind] : sizeof *h;
        n = sizeof *h + take(i, to + sizeof *h, fixed - sizeof *h + byte(i));
        if (n < fixed && shape & 0x40)
            n = fixed;
    }
    h->kind = (uint16_t)kind;
    h->flags = shape >> 6;
    h->ts = now;
    h->tgid = h->tid = 1 + (shape >> 1 & 3);
    h->len = (uint32_t)((n + 7) & ~(size_t)7);
    return h->len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    in i = {data, size};
    unsigned mode = byte(&i);
    as_engine_opts o = {.want_raw = mode & 1,
                        .want_http = mode >> 1 & 1,
                        .want_sse_each = 1,
                        .want_frames = mode >> 2 & 1,
                        .want_handshakes = 1,
                        .want_stdio = 1,
                        .want_process = 1,
                        .want_conns = 1,
                        .plain_http = mode >> 3 & 1,
                        .raw_data = mode >> 4 & 1,
                        .max_pending = 300,
                        .body_budget = 2000};
    as_engine *e = as_engine_new(&o);
    static _Alignas(8) uint8_t batch[1 << 16];
    size_t n = 0;
    now = 1;
    while (i.n) {
        n += make(&i, batch + n);
        if (n > sizeof batch - 2048 || !(byte(&i) & 3)) {
            uint8_t *exact = malloc(n);
            memcpy(exact, batch, n);
            as_engine_feed(e, exact, n);
            free(exact);
            as_outs_clear(as_engine_outs(e));
            n = 0;
        }
    }
    as_engine_feed(e, batch, n);
    as_outs_clear(as_engine_outs(e));
    as_engine_flush(e);
    as_outs_clear(as_engine_outs(e));
    as_engine_stats st;
    as_engine_stats_get(e, &st);
    uint64_t in_accounts =
        st.a.tls_handshake + st.a.tls_opened + st.a.waiting + st.a.plain + st.a.other + st.a.skipped + st.a.missing;
    for (int r = 0; r < AS_TLS_REASONS; r++)
        in_accounts += st.a.tls_closed[r];
    if (st.a.seen != in_accounts)
        abort();
    as_dark dark[4];
    as_engine_dark(e, dark, 4);
    as_engine_free(e);
    return 0;
}

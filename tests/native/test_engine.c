/* SPDX-License-Identifier: MIT
 *
 * The engine on synthetic record streams: order, holes, duplicates, the two ends of one connection, execs in parts, damaged
 * streams. Each stream is run as one batch, one record a batch, and in random pieces; the outputs must be the same.
 */
#include "agentsight.h"
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int checks, failures;
#define CHECK(x)                                                                                                                 \
    do {                                                                                                                         \
        checks++;                                                                                                                \
        if (!(x)) {                                                                                                              \
            failures++;                                                                                                          \
            printf("%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #x);                                                 \
        }                                                                                                                        \
    } while (0)

/* ---- a stream under construction ---- */
static uint8_t stream[1 << 20];
static size_t stream_n, ends_at[4096], n_recs;
static uint64_t clock_ns;

static void begin(void) {
    stream_n = n_recs = 0;
    clock_ns = 1000000000;
}

static void *rec(size_t n, int kind, uint32_t tgid) {
    size_t len = (n + 7) & ~(size_t)7;
    struct as_hdr *h = (void *)(stream + stream_n);
    memset(h, 0, len);
    h->len = (uint32_t)len;
    h->kind = (uint16_t)kind;
    h->ts = clock_ns += 1000;
    h->tgid = h->tid = tgid;
    stream_n += len;
    ends_at[n_recs++] = stream_n;
    return h;
}

static void conn_rec(uint64_t chan, uint32_t tgid, int sport, int dport, int flags, uint32_t tx, uint32_t rx) {
    struct as_conn *c = rec(sizeof *c, AS_K_CONN, tgid);
    c->chan = chan;
    c->netns = 1;
    c->family = AF_INET;
    c->flags = (uint16_t)flags;
    c->sport = (uint16_t)sport;
    c->dport = (uint16_t)dport;
    c->tx_base = tx;
    c->rx_base = rx;
    c->saddr[0] = c->daddr[0] = 127;
}

static void data_rec(uint64_t chan, uint32_t tgid, int dir, uint64_t off, const char *s, size_t n, size_t hole) {
    struct as_data *d = rec(sizeof *d + n, AS_K_DATA, tgid);
    d->chan = chan;
    d->off = off;
    d->cap = (uint32_t)n;
    d->real = (uint32_t)(n + hole);
    d->dir = (uint8_t)dir;
    d->hole = hole ? AS_HOLE_NO_BUFFER : 0;
    memcpy(d->data, s, n);
}

static void close_rec(uint64_t chan, uint64_t rx, uint64_t tx) {
    struct as_close *c = rec(sizeof *c, AS_K_CLOSE, 0);
    c->chan = chan;
    c->seen[AS_DIR_READ] = rx;
    c->seen[AS_DIR_WRITE] = tx;
}

static void tick(uint64_t ns) {
    clock_ns += ns;
    rec(sizeof(struct as_hdr), AS_K_TICK, 0);
}

/* ---- running it ---- */
static char text[1 << 20];
static size_t text_n;
static as_engine_stats stats;

static void say(const char *what, as_slice s) {
    text_n += (size_t)snprintf(text + text_n, sizeof text - text_n, " %s=%.*s", what, (int)s.n, s.n ? (const char *)s.p : "");
}

static void tell(as_outs *outs) {
    for (const as_out *o = outs->head; o; o = o->next) {
        text_n += (size_t)snprintf(text + text_n, sizeof text - text_n, "%d seq=%llu", o->kind, (unsigned long long)o->seq);
        if (o->kind == AS_O_HTTP) {
            say("line", o->u.http.m.first_line);
            say("body", o->u.http.m.body);
            say("raw", o->u.http.raw);
            text_n += (size_t)snprintf(text + text_n, sizeof text - text_n, " flags=%x client=%u server=%u", o->u.http.m.flags,
                                       o->peers->client.tgid, o->peers->server.tgid);
        } else if (o->kind == AS_O_FRAMES) {
            say("frames", o->u.frames.frames);
            say("names", o->u.frames.names);
            text_n += (size_t)snprintf(text + text_n, sizeof text - text_n, " others=%zu count=%llu", o->u.frames.n_others,
                                       (unsigned long long)o->u.frames.count);
        } else if (o->kind == AS_O_CONN) {
            const as_conn_account *a = &o->u.conn.a;
            text_n +=
                (size_t)snprintf(text + text_n, sizeof text - text_n, " seen=%llu plain=%llu other=%llu missing=%llu dup=%llu",
                                 (unsigned long long)a->seen, (unsigned long long)a->plain, (unsigned long long)a->other,
                                 (unsigned long long)a->missing, (unsigned long long)a->duplicate);
        } else if (o->kind == AS_O_EXEC) {
            text_n += (size_t)snprintf(text + text_n, sizeof text - text_n, " args=%zu", o->u.rec.args.n);
        } else if (o->kind == AS_O_RAW) {
            say("raw", o->u.raw.data);
        }
        text_n += (size_t)snprintf(text + text_n, sizeof text - text_n, "\n");
    }
    as_outs_clear(outs);
}

static void run(int how, int want_http, int raw_data) {
    as_engine_opts o = {.want_raw = 1,
                        .want_http = want_http,
                        .want_frames = 1,
                        .want_process = 1,
                        .want_conns = 1,
                        .plain_http = 1,
                        .want_stdio = 1,
                        .raw_data = raw_data};
    as_engine *e = as_engine_new(&o);
    size_t at = 0;
    text_n = 0;
    text[0] = 0;
    for (size_t i = 0; i < n_recs; i++) {
        if (how == 0 && i + 1 < n_recs)
            continue;
        if (how == 2 && i + 1 < n_recs && rand() % 3)
            continue;
        uint8_t *batch = malloc(ends_at[i] - at); /* exactly so long: an over-read is seen */
        memcpy(batch, stream + at, ends_at[i] - at);
        as_engine_feed(e, batch, ends_at[i] - at);
        free(batch);
        at = ends_at[i];
        tell(as_engine_outs(e));
    }
    as_engine_flush(e);
    tell(as_engine_outs(e));
    as_engine_stats_get(e, &stats);
    as_engine_free(e);
}

static void run_all(int want_http, int raw_data) {
    static char first[sizeof text];
    run(0, want_http, raw_data);
    memcpy(first, text, text_n + 1);
    for (int i = 0; i < 8; i++) {
        run(i ? 2 : 1, want_http, raw_data);
        CHECK(!strcmp(first, text));
    }
}

static int has(const char *s) {
    if (strstr(text, s))
        return 1;
    printf("missing \"%s\" in:\n%s", s, text);
    return 0;
}

static const char REQ[] = "POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
static const char RES[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
#define W AS_DIR_WRITE
#define R AS_DIR_READ

static void one_end(void) {
    begin();
    conn_rec(7, 100, 5000, 80, AS_CONN_FROM_START | AS_CONN_CLIENT, 1, 1);
    data_rec(7, 100, W, 0, REQ, sizeof REQ - 1, 0);
    data_rec(7, 100, R, 0, RES, sizeof RES - 1, 0);
    close_rec(7, sizeof RES - 1, sizeof REQ - 1);
    run_all(1, 1);
    CHECK(has("line=POST /v1/x HTTP/1.1 body=hello raw=POST"));
    CHECK(has("line=HTTP/1.1 200 OK body=ok raw=HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    CHECK(stats.a.seen == sizeof REQ + sizeof RES - 2 && stats.a.plain == stats.a.seen && !stats.a.missing);
    CHECK(stats.connections == 1 && !stats.damaged);
}

static void tls_begins_later(void) { /* PostgreSQL's way: asked for, allowed, then the client's hello */
    static const char ask[8] = "\0\0\0\x08\x04\xd2\x16\x2f";
    char hello[60] = "\x16\x03\x01\0\x37\x01\0\0\x33\x03\x03";
    begin();
    conn_rec(7, 100, 5000, 5432, AS_CONN_FROM_START | AS_CONN_CLIENT, 1, 1);
    data_rec(7, 100, W, 0, ask, 8, 0);
    data_rec(7, 100, R, 0, "S", 1, 0);
    data_rec(7, 100, W, 8, hello, 4, 0); /* however it is cut */
    data_rec(7, 100, W, 12, hello + 4, sizeof hello - 4, 0);
    close_rec(7, 1, 8 + sizeof hello);
    run_all(1, 0);
    CHECK(stats.a.seen == 9 + sizeof hello && stats.a.other == 9 && !stats.a.plain);

    static char much[3000];
    begin();
    conn_rec(7, 100, 5000, 5432, AS_CONN_FROM_START | AS_CONN_CLIENT, 1, 1);
    data_rec(7, 100, W, 0, much, sizeof much, 0);
    data_rec(7, 100, R, 0, much, sizeof much, 0);
    data_rec(7, 100, W, sizeof much, hello, sizeof hello, 0); /* too late */
    close_rec(7, sizeof much, sizeof much + sizeof hello);
    run_all(1, 0);
    CHECK(stats.a.seen == 2 * sizeof much + sizeof hello && stats.a.other == stats.a.seen);
}

static void out_of_order(void) {
    begin();
    conn_rec(7, 100, 5000, 80, AS_CONN_FROM_START | AS_CONN_CLIENT, 1, 1);
    data_rec(7, 100, W, 10, REQ + 10, sizeof REQ - 11, 0);
    data_rec(7, 100, W, 0, REQ, 10, 0);
    data_rec(7, 100, W, 0, REQ, 20, 0); /* told again */
    data_rec(7, 100, R, 0, RES, sizeof RES - 1, 0);
    close_rec(7, sizeof RES - 1, sizeof REQ - 1);
    run_all(1, 0);
    CHECK(has("line=POST /v1/x HTTP/1.1 body=hello"));
    CHECK(stats.a.duplicate == 20 && !stats.a.missing && stats.a.seen == sizeof REQ + sizeof RES - 2);
}

static void holes(void) {
    begin();
    conn_rec(7, 100, 5000, 80, AS_CONN_FROM_START | AS_CONN_CLIENT, 1, 1);
    data_rec(7, 100, W, 0, REQ, sizeof REQ - 1 - 3, 3); /* hel, then a hole of known length */
    data_rec(7, 100, W, sizeof REQ - 1, REQ, sizeof REQ - 1, 0);
    data_rec(7, 100, R, 0, RES, sizeof RES - 1, 0);
    data_rec(7, 100, R, sizeof RES - 1 + 4, RES, sizeof RES - 1, 0); /* four bytes were lost in the ring */
    tick(100000000);
    close_rec(7, 2 * (sizeof RES - 1) + 4 + 9, 2 * (sizeof REQ - 1)); /* and nine behind */
    run_all(1, 0);
    CHECK(has("body=he"));
    CHECK(has("body=hello"));
    CHECK(stats.a.missing == 3 + 4 + 9);
    CHECK(stats.a.seen == 2 * (sizeof REQ + sizeof RES - 2) + 4 + 9);
    CHECK(stats.http.requests == 2);
}

static void both_ends(int mirrored, uint32_t server_base_shift) {
    uint64_t b = server_base_shift; /* the server's end was first seen later: it counts from another byte */
    begin();
    conn_rec(7, 100, 5000, 80, AS_CONN_FROM_START | AS_CONN_CLIENT, 1000, 2000);
    data_rec(7, 100, W, 0, REQ, sizeof REQ - 1, 0);
    conn_rec(8, 200, 80, 5000, AS_CONN_SERVER | (b ? 0 : AS_CONN_FROM_START), 2000, 1000 + (uint32_t)b);
    if (!mirrored)
        data_rec(8, 200, R, 0, REQ + b, sizeof REQ - 1 - b, 0);
    data_rec(8, 200, W, 0, RES, sizeof RES - 1, 0);
    if (!mirrored)
        data_rec(7, 100, R, 0, RES, sizeof RES - 1, 0);
    close_rec(7, sizeof RES - 1, sizeof REQ - 1);
    close_rec(8, sizeof REQ - 1 - b, sizeof RES - 1);
    run_all(1, 0);
    CHECK(stats.connections == 1);
    CHECK(stats.http.requests == 1 && stats.http.responses == 1);
    CHECK(has("client=100 server=200"));
    CHECK(!stats.a.missing && stats.a.seen == sizeof REQ + sizeof RES - 2);
    CHECK(mirrored ? !stats.a.duplicate : stats.a.duplicate == sizeof REQ + sizeof RES - 2 - b);
}

static void earlier_end(void) { /* the end that is met second has seen more than the first */
    begin();
    conn_rec(7, 100, 5000, 80, AS_CONN_CLIENT, 1006, 2000);
    data_rec(7, 100, W, 0, REQ + 6, sizeof REQ - 1 - 6, 0);
    conn_rec(8, 200, 80, 5000, AS_CONN_SERVER, 2000, 1000);
    data_rec(8, 200, R, 0, REQ, sizeof REQ - 1, 0);
    data_rec(8, 200, R, sizeof REQ - 1, REQ, sizeof REQ - 1, 0);
    close_rec(7, 0, 2 * (sizeof REQ - 1) - 6);
    close_rec(8, 2 * (sizeof REQ - 1), 0);
    run_all(1, 0);
    CHECK(stats.connections == 1 && !stats.a.missing);
    CHECK(stats.a.duplicate == sizeof REQ - 1);
    CHECK(stats.a.seen == 2 * (sizeof REQ - 1) - 6);
}

static void frames(void) {
    static const char sse[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
                              "event: a\"b\ndata: {\"x\":1}\n\ndata: {\"y\":2}\n\ndata: [DONE]\n\ndata: {\"late\":1}\n\n";
    begin();
    conn_rec(7, 100, 5000, 80, AS_CONN_FROM_START | AS_CONN_CLIENT, 1, 1);
    data_rec(7, 100, W, 0, REQ, sizeof REQ - 1, 0);
    for (size_t i = 0; i < sizeof sse - 1; i++)
        data_rec(7, 100, R, i, sse + i, 1, 0);
    close_rec(7, sizeof sse - 1, sizeof REQ - 1);
    run_all(1, 0);
    CHECK(has("frames=[{\"x\":1},{\"y\":2}] names=[\"a\\\"b\",\"message\"] others=1 count=3"));
    CHECK(!strstr(text, "late"));
    CHECK(stats.http.responses == 1);
}

static void execs(void) {
    static const char *args = "sh\0-c\0true";
    begin();
    struct as_exec *x = rec(sizeof *x + 7 + 1 + 4, AS_K_EXEC, 300);
    uint64_t ts = x->h.ts;
    x->name_len = 7;
    x->cwd_len = 1;
    x->args_len = 10;
    x->args_cap = 4;
    memcpy(x->data, "/bin/sh/", 8);
    memcpy(x->data + 8, args, 4);
    tick(10);
    struct as_exec_args *a = rec(sizeof *a + 6, AS_K_EXEC_ARGS, 300);
    a->h.ts = ts;
    a->h.flags = AS_F_LAST_ARGS;
    a->off = 4;
    a->cap = 6;
    memcpy(a->data, args + 4, 6);
    rec(sizeof(struct as_exit), AS_K_EXIT, 300);
    run_all(1, 0);
    CHECK(has("args=10"));
    CHECK(!stats.lost_execs);
}

static void damaged(void) { /* no crash, no endless loop, and bytes stay accounted */
    for (int round = 0; round < 20000; round++) {
        both_ends(0, 0);
        int n = 1 + rand() % 6;
        while (n--)
            stream[(size_t)rand() % stream_n] = (uint8_t)rand();
        as_engine_opts o = {.want_raw = 1, .want_http = 1, .want_frames = 1, .want_process = 1, .want_conns = 1, .plain_http = 1};
        as_engine *e = as_engine_new(&o);
        as_engine_feed(e, stream, stream_n);
        as_outs_clear(as_engine_outs(e));
        as_engine_flush(e);
        as_outs_clear(as_engine_outs(e));
        as_engine_stats_get(e, &stats);
        as_engine_free(e);
        if (stats.a.seen != stats.a.plain + stats.a.other + stats.a.missing + stats.a.skipped + stats.a.tls_handshake +
                                stats.a.tls_opened + stats.a.waiting) {
            uint64_t closed = 0;
            for (int r = 0; r < AS_TLS_REASONS; r++)
                closed += stats.a.tls_closed[r];
            CHECK(closed > 0); /* the rest went to a TLS connection that never opened */
        }
        if (round > 200 && round % 50)
            round += 49;
    }
    checks++;
}

int main(void) {
    srand(1);
    one_end();
    tls_begins_later();
    out_of_order();
    holes();
    both_ends(0, 0);
    both_ends(1, 0);
    both_ends(0, 6);
    earlier_end();
    frames();
    execs();
    damaged();
    printf("test_engine: %d checks, %d failed\n", checks, failures);
    return failures != 0;
}

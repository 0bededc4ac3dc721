/* SPDX-License-Identifier: MIT
 *
 * The TLS record layer on recorded connections (make_tls_cases.py): whole, cut, split at every early point, interleaved in
 * other orders, with secrets late, missing, foreign or of a relative, and with holes. What comes out is compared with the
 * plaintext that went in; the account of bytes must close after every call. argv[1] or AGENTSIGHT_TLS_CASES: the directory.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include <dirent.h>
#include <stdarg.h>

#include "tls_case.h"
#include "tls_int.h"

static unsigned long checks, failures;
static char context[512];

static void check(int ok, const char *fmt, ...) {
    checks++;
    if (ok || ++failures > 40)
        return;
    va_list a;
    va_start(a, fmt);
    fprintf(stderr, "FAIL %s: ", context);
    vfprintf(stderr, fmt, a);
    fputc('\n', stderr);
    va_end(a);
}

static uint64_t rng = 88172645463325252u;
static uint64_t rnd(uint64_t below) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return below ? rng % below : 0;
}

/* ---- what came out ---- */
typedef struct got {
    uint8_t *plain[2];
    size_t n[2], cap[2];
    uint64_t gap[2], gaps[2];
    int eof[2], handshakes, after_eof;
    uint64_t last_ts[2];
    as_tls_info info;
} got;

static void on_plain(void *u, int flow, const uint8_t *p, size_t n, const as_meta *m) {
    got *g = u;
    if (g->n[flow] + n > g->cap[flow]) {
        g->cap[flow] = 2 * (g->n[flow] + n);
        g->plain[flow] = realloc(g->plain[flow], g->cap[flow]);
    }
    memcpy(g->plain[flow] + g->n[flow], p, n);
    g->n[flow] += n;
    g->after_eof += g->eof[flow];
    g->after_eof += m->ts < g->last_ts[flow]; /* time does not go back within a flow */
    g->last_ts[flow] = m->ts;
}
static void on_gap(void *u, int flow, uint64_t n, enum as_tls_reason why, const as_meta *m) {
    got *g = u;
    (void)m;
    check(why > AS_TLS_OK && why < AS_TLS_REASONS && n > 0, "gap of %d, %lu bytes", (int)why, (unsigned long)n);
    g->gap[flow] += n;
    g->gaps[flow]++;
}
static void on_handshake(void *u, const as_tls_info *info, const as_meta *m) {
    got *g = u;
    (void)m;
    g->handshakes++;
    g->info = *info;
}
static void on_eof(void *u, int flow, const as_meta *m) {
    got *g = u;
    (void)m;
    g->eof[flow]++;
}
static const as_tls_sink sink = {on_plain, on_gap, on_handshake, on_eof};

static void accounts(const as_tls *t, const char *when) {
    for (int f = 0; f < 2; f++) {
        as_tls_flow_stats s;
        as_tls_stats_get(t, f, &s);
        uint64_t sum = s.handshake + s.opened + s.waiting;
        for (int r = 0; r < AS_TLS_REASONS; r++)
            sum += s.closed[r];
        check(sum == s.seen, "account of flow %d %s: seen %lu, sum %lu", f, when, (unsigned long)s.seen, (unsigned long)sum);
    }
}

/* ---- one run ---- */
enum order { AS_RECORDED, CLIENT_FIRST, SERVER_FIRST, SHUFFLED };
enum when { KEYS_RECORDED, KEYS_FIRST, KEYS_LATE, KEYS_EACH_LATE, KEYS_NEVER };
enum who { OWN, RELATIVE, STRANGER, SERVER };

typedef struct plan {
    size_t cut;         /* bytes per call; 0: as recorded */
    size_t split[2];    /* additionally cut here */
    enum order order;
    enum when when;
    enum who who;
    int random, foreign, loose; /* loose: arg1 differs for each secret */
    int unnamed;                /* the probe does not tell which of the traffic secrets it is */
    const char *without;        /* label that is never given */
    size_t hole_at[2][8], hole_n[2][8];
    int holes[2];
    uint64_t max_wait_ns;
} plan;

typedef struct run {
    as_keyring *k;
    as_tls *t;
    got g;
    size_t at[2];
    uint64_t ts;
    const tc_case *c;
    const plan *p;
} run;

static void add_secret(run *r, const tc_item *i) {
    static uint64_t n;
    struct as_secret s;
    uint32_t tgid = r->p->who == RELATIVE ? 150 : r->p->who == STRANGER ? 999 : r->p->who == SERVER ? 200 : 100;
    if (tc_secret(i, &s, tgid, 1, r->p->loose ? ++n : 0x5000, r->p->random))
        return;
    if (r->p->without && s.label_len == strlen(r->p->without) && !memcmp(s.label, r->p->without, s.label_len))
        return;
    if (r->p->unnamed && s.secret_len && memcmp(s.label, "CLIENT_RANDOM", 13) != 0 &&
        !memmem(s.label, s.label_len, "EXPORTER", 8)) {
        s.label_len = 14;
        memcpy(s.label, "TRAFFIC_SECRET", 14);
    }
    s.h.ts = r->ts;
    as_keyring_add(r->k, &s);
    as_meta m = {.ts = r->ts};
    if (as_tls_waiting(r->t))
        as_tls_retry(r->t, &m);
    accounts(r->t, "after a secret");
}

static void add_foreign(run *r, int n) {
    static const char *const labels[] = {"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET",
                                         "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0", "CLIENT_RANDOM"};
    for (int i = 0; i < n; i++) {
        struct as_secret s = {.h = {.len = sizeof s, .kind = AS_K_SECRET, .ts = r->ts, .tgid = 100, .tid = (uint32_t)rnd(4)}};
        const char *l = labels[i % 5];
        s.arg1 = 0x9000 + (uint64_t)i / 5;
        s.label_len = (uint8_t)strlen(l);
        memcpy(s.label, l, s.label_len);
        s.secret_len = i % 5 == 4 || i % 2 ? 48 : 32;
        for (int b = 0; b < s.secret_len; b++)
            s.secret[b] = (uint8_t)rnd(256);
        as_keyring_add(r->k, &s);
    }
}

static void feed(run *r, int flow, const uint8_t *p, size_t n) {
    as_meta m = {.ts = r->ts += 1000, .tgid = flow ? 200 : 100, .tid = flow ? 2 : 1};
    for (int h = 0; h < r->p->holes[flow]; h++) { /* bytes of the stream that fall into a hole are not given */
        size_t a = r->p->hole_at[flow][h], e = a + r->p->hole_n[flow][h], at = r->at[flow];
        if (at + n <= a || at >= e)
            continue;
        if (at < a) {
            feed(r, flow, p, a - at);
            feed(r, flow, p + (a - at), n - (a - at));
            return;
        }
        size_t gone = e - at < n ? e - at : n;
        as_tls_gap(r->t, flow, gone, &m);
        accounts(r->t, "after a hole");
        r->at[flow] += gone;
        if (gone < n)
            feed(r, flow, p + gone, n - gone);
        return;
    }
    uint8_t *copy = malloc(n ? n : 1); /* its end is guarded by the sanitizer */
    memcpy(copy, p, n);
    as_tls_feed(r->t, flow, copy, n, &m);
    free(copy);
    r->at[flow] += n;
    accounts(r->t, "after feed");
}

static void feed_cut(run *r, int flow, const uint8_t *p, size_t n) {
    while (n) {
        size_t k = r->p->cut && r->p->cut < n ? r->p->cut : n, s = r->p->split[flow];
        if (s > r->at[flow] && s < r->at[flow] + k)
            k = s - r->at[flow];
        feed(r, flow, p, k);
        p += k;
        n -= k;
    }
}

static void play_flow(run *r, int flow, size_t limit) {
    while (r->at[flow] < r->c->nwire[flow] && limit) {
        size_t k = r->c->nwire[flow] - r->at[flow];
        k = k < limit ? k : limit;
        feed_cut(r, flow, r->c->wire[flow] + r->at[flow], k);
        limit -= k;
    }
}

static void keys(run *r) {
    for (size_t i = 0; i < r->c->nitem; i++)
        if (r->c->item[i].kind == IT_KEY)
            add_secret(r, &r->c->item[i]);
}

static void play(run *r, const tc_case *c, const plan *p) {
    as_tls_opts o = {.max_wait_bytes = 64u << 20, .max_wait_ns = p->max_wait_ns ? p->max_wait_ns : (uint64_t)1 << 60};
    memset(r, 0, sizeof *r);
    r->c = c;
    r->p = p;
    r->ts = 1000000;
    r->k = as_keyring_new(4096, 60000000000u);
    r->t = as_tls_new(r->k, &sink, &r->g, &o);
    if (p->who == RELATIVE)
        as_keyring_relate(r->k, 150, 100);
    if (p->when == KEYS_FIRST)
        keys(r);
    add_foreign(r, p->foreign);
    if (p->order == CLIENT_FIRST || p->order == SERVER_FIRST) {
        play_flow(r, p->order == SERVER_FIRST, SIZE_MAX);
        if (p->when == KEYS_RECORDED)
            keys(r);
        play_flow(r, p->order == CLIENT_FIRST, SIZE_MAX);
    } else if (p->order == SHUFFLED) {
        if (p->when == KEYS_RECORDED)
            keys(r);
        size_t late = 0;
        while (r->at[0] < c->nwire[0] || r->at[1] < c->nwire[1]) {
            play_flow(r, (int)rnd(2), 1 + rnd(3000));
            while (p->when == KEYS_EACH_LATE && late < c->nitem && c->item[late].kind != IT_KEY)
                late++;
            if (p->when == KEYS_EACH_LATE && late < c->nitem && rnd(2)) /* anywhere, also inside a record */
                add_secret(r, &c->item[late++]);
        }
        for (; p->when == KEYS_EACH_LATE && late < c->nitem; late++)
            if (c->item[late].kind == IT_KEY)
                add_secret(r, &c->item[late]);
    } else {
        size_t late = 0;
        for (size_t i = 0; i < c->nitem; i++) {
            const tc_item *it = &c->item[i];
            if (it->kind == IT_KEY && p->when == KEYS_RECORDED)
                add_secret(r, it);
            if (it->kind != IT_DATA)
                continue;
            feed_cut(r, it->flow, it->p, it->n);
            for (; p->when == KEYS_EACH_LATE && late < i; late++) { /* one secret behind each call */
                if (c->item[late].kind == IT_KEY) {
                    add_secret(r, &c->item[late++]);
                    break;
                }
            }
        }
        for (; p->when == KEYS_EACH_LATE && late < c->nitem; late++)
            if (c->item[late].kind == IT_KEY)
                add_secret(r, &c->item[late]);
    }
    if (p->when == KEYS_LATE)
        keys(r);
    as_meta m = {.ts = r->ts += 1000};
    for (int f = 0; f < 2; f++)
        as_tls_eof(r->t, f, &m);
    accounts(r->t, "after eof");
    as_tls_flush(r->t, &m);
    accounts(r->t, "after flush");
    for (int f = 0; f < 2; f++) {
        as_tls_flow_stats s;
        as_tls_stats_get(r->t, f, &s);
        check(s.waiting == 0 && !as_tls_waiting(r->t), "something waits after flush");
        check(s.plain == r->g.n[f], "plain counter");
        check(s.seen + s.missing == c->nwire[f], "seen and missing are all bytes");
        check(r->g.eof[f] == 1, "flow %d: %d eof", f, r->g.eof[f]);
    }
    check(r->g.after_eof == 0, "plaintext after eof, or time went back");
}

static void end(run *r) {
    as_tls_free(r->t);
    as_keyring_free(r->k);
    free(r->g.plain[0]);
    free(r->g.plain[1]);
}

static void must_be_whole(run *r, const char *what) {
    const tc_case *c = r->c;
    char v[128];
    int dark = tc_expect(c, "dark", v) != NULL, rejected = tc_expect(c, "rejected", v) != NULL;
    for (int f = 0; f < 2; f++) {
        as_tls_flow_stats s;
        as_tls_stats_get(r->t, f, &s);
        uint64_t closed = 0;
        for (int x = 0; x < AS_TLS_REASONS; x++)
            closed += s.closed[x];
        if (dark) {
            check(s.opened == 0 && s.closed[AS_TLS_UNSUPPORTED] == closed && closed > c->ntruth[f], "%s: flow %d not dark", what,
                  f);
            continue;
        }
        check(r->g.n[f] == c->ntruth[f] && (!c->ntruth[f] || !memcmp(r->g.plain[f], c->truth[f], c->ntruth[f])),
              "%s: flow %d gave %zu bytes, truth %zu", what, f, r->g.n[f], c->ntruth[f]);
        check(r->g.gaps[f] == 0, "%s: flow %d told %lu gaps", what, f, (unsigned long)r->g.gaps[f]);
        if (rejected && f == 0)
            check(s.closed[AS_TLS_REJECTED] == closed && closed > 400, "%s: refused early data not counted", what);
        else
            check(closed == 0, "%s: flow %d has closed bytes: no secret %lu missing %lu bad %lu not record %lu limit %lu", what,
                  f, (unsigned long)s.closed[1], (unsigned long)s.closed[2], (unsigned long)s.closed[4],
                  (unsigned long)s.closed[5], (unsigned long)s.closed[6]);
        if (tc_expect(c, "key_updates", v))
            check(s.key_updates >= 2, "%s: %u key updates in flow %d", what, s.key_updates, f);
    }
    const as_tls_info *i = as_tls_info_get(r->t);
    check(i->client_flow == 0, "client flow");
    if (tc_expect(c, "version", v))
        check(i->version == atoi(v), "version %x", i->version);
    if (tc_expect(c, "cipher", v))
        check(i->cipher == atoi(v), "cipher %x", i->cipher);
    if (tc_expect(c, "sni", v))
        check(!strcmp(i->sni, v), "sni %s", i->sni);
    if (tc_expect(c, "alpn", v))
        check(!strcmp(i->alpn, v), "%s: alpn %s, not %s", what, i->alpn, v);
    if (tc_expect(c, "resumed", v))
        check(i->resumed == atoi(v), "resumed %d", i->resumed);
    if (tc_expect(c, "hello_retry", v))
        check(i->hello_retry == atoi(v), "hello_retry %d", i->hello_retry);
    if (tc_expect(c, "early_data", v))
        check(i->early_data == atoi(v), "early_data %d", i->early_data);
    if (!dark) {
        check(r->g.handshakes == 1, "%s: handshake told %d times", what, r->g.handshakes);
        check(!strcmp(r->g.info.sni, i->sni) && !strcmp(r->g.info.alpn, i->alpn), "told too early");
        check(i->ts_client_hello && (r->p->order != AS_RECORDED || i->ts_finished > i->ts_client_hello), "%s: times", what);
    }
}

static void whole(const tc_case *c, plan p, const char *what) {
    run r;
    play(&r, c, &p);
    must_be_whole(&r, what);
    end(&r);
}

/* ---- holes: every record that no hole touched must come out ---- */
typedef struct rec {
    size_t at, n, plain;
} rec;

static size_t records(const tc_case *c, int flow, rec **out, size_t *first) { /* what each record gives, by feeding them singly */
    plan p = {.when = KEYS_FIRST};
    as_tls_opts o = {.max_wait_ns = (uint64_t)1 << 60, .max_wait_bytes = 64u << 20};
    run r = {.c = c, .p = &p, .ts = 1000000, .k = as_keyring_new(4096, 1)};
    size_t n = 0, cap = 0;
    r.t = as_tls_new(r.k, &sink, &r.g, &o);
    keys(&r);
    play_flow(&r, !flow, SIZE_MAX);
    *first = 0;
    for (size_t at = 0; at + 5 <= c->nwire[flow];) {
        size_t len = 5 + ((size_t)c->wire[flow][at + 3] << 8 | c->wire[flow][at + 4]), before = r.g.n[flow];
        if (at + len > c->nwire[flow])
            break;
        feed(&r, flow, c->wire[flow] + at, len);
        if (n == cap)
            *out = realloc(*out, (cap = cap ? 2 * cap : 64) * sizeof **out);
        (*out)[n++] = (rec){at, len, r.g.n[flow] - before};
        if (!*first && r.g.n[flow])
            *first = at;
        at += len;
    }
    end(&r);
    return n;
}

static void holes(const tc_case *c, int rounds, int anywhere) {
    for (int round = 0; round < rounds; round++) {
        int flow = (int)rnd(2);
        rec *recs = NULL;
        size_t first, n = records(c, flow, &recs, &first), want = 0;
        plan p = {.when = rnd(2) ? KEYS_FIRST : KEYS_LATE, .cut = rnd(3) ? 0 : 1 + rnd(4000), .order = (enum order)rnd(4)};
        if (p.order != AS_RECORDED)
            p.when = KEYS_FIRST;
        size_t lo = anywhere ? 0 : first, room = c->nwire[flow] - lo;
        p.holes[flow] = (int)(1 + rnd(3));
        for (int h = 0; h < p.holes[flow]; h++) {
            size_t at = lo + rnd(room), len = 1 + rnd(rnd(2) ? 30 : rnd(2) ? 2000 : 60000);
            if (rnd(4) == 0) { /* whole records */
                rec *x = &recs[rnd(n)];
                if (x->at >= lo)
                    at = x->at, len = x->n;
            }
            p.hole_at[flow][h] = at;
            p.hole_n[flow][h] = at + len > c->nwire[flow] ? c->nwire[flow] - at : len;
        }
        run r;
        play(&r, c, &p);
        uint8_t *truth = malloc(c->ntruth[flow] + 1);
        size_t in = 0;
        for (size_t i = 0; i < n; i++) {
            int hit = 0;
            for (int h = 0; h < p.holes[flow]; h++)
                hit |= p.hole_at[flow][h] < recs[i].at + recs[i].n && recs[i].at < p.hole_at[flow][h] + p.hole_n[flow][h];
            if (!hit) {
                memcpy(truth + want, c->truth[flow] + in, recs[i].plain);
                want += recs[i].plain;
            }
            in += recs[i].plain;
        }
        if (!anywhere) {
            check(in == c->ntruth[flow], "records give the truth");
            check(r.g.n[flow] == want && !memcmp(r.g.plain[flow] ? r.g.plain[flow] : truth, truth, want),
                  "holes: flow %d gave %zu bytes of %zu; first hole at %zu, %zu bytes", flow, r.g.n[flow], want,
                  p.hole_at[flow][0], p.hole_n[flow][0]);
            check(want == c->ntruth[flow] || r.g.gaps[flow] > 0, "a hole was not told");
            as_tls_flow_stats s;
            as_tls_stats_get(r.t, flow, &s);
            uint64_t closed = s.missing;
            for (int x = 0; x < AS_TLS_REASONS; x++)
                closed += s.closed[x];
            check(r.g.gap[flow] == closed, "gaps told %lu, closed and missing %lu", (unsigned long)r.g.gap[flow],
                  (unsigned long)closed);
        } else {
            check(r.g.n[flow] <= c->ntruth[flow], "more than the truth");
        }
        free(truth);
        free(recs);
        end(&r);
    }
}

static void stays_closed(const tc_case *c, plan p, enum as_tls_reason why, const char *what) {
    run r;
    play(&r, c, &p);
    for (int f = 0; f < 2; f++) {
        as_tls_flow_stats s;
        as_tls_stats_get(r.t, f, &s);
        check(s.opened == 0 && r.g.n[f] == 0, "%s: opened", what);
        check(c->ntruth[f] == 0 || s.closed[why] > c->ntruth[f], "%s: flow %d: %lu closed", what, f,
              (unsigned long)s.closed[why]);
    }
    end(&r);
}

/* Given up before the secrets came, or joined in the middle: from where they are known, everything opens. */
static void late_start(const tc_case *c, int middle, int random) {
    plan p = {.random = random};
    for (int flow = 0; flow < 2; flow++) {
        rec *recs = NULL;
        size_t first, n = records(c, flow, &recs, &first), i = 0, skipped = 0, want = 0;
        run r = {.c = c, .p = &p, .ts = 1000000, .k = as_keyring_new(4096, 60000000000u)};
        r.t = as_tls_new(r.k, &sink, &r.g, &(as_tls_opts){.max_wait_ns = 5000});
        while (i < n && recs[i].at < first)
            i++;
        i += 3; /* and some records of application data */
        for (size_t k = 0; k < n; k++)
            *(k < i ? &skipped : &want) += recs[k].plain;
        if (i < n) {
            if (!middle) {
                play_flow(&r, !flow, SIZE_MAX);
                play_flow(&r, flow, recs[i].at);
                as_meta m = {.ts = r.ts += 100000};
                as_tls_tick(r.t, &m);
                check(!as_tls_waiting(r.t), "waits for ever");
                as_tls_flow_stats s;
                as_tls_stats_get(r.t, flow, &s);
                check(s.waiting == 0 && s.closed[AS_TLS_NO_SECRET] > skipped && s.opened == 0, "not given up");
                accounts(r.t, "after the time was over");
            }
            as_tls_touch(r.t, 100, 1);
            keys(&r);
            r.at[flow] = recs[i].at;
            play_flow(&r, flow, SIZE_MAX);
            check(r.g.n[flow] == want &&
                      !memcmp(r.g.plain[flow] ? r.g.plain[flow] : c->truth[flow], c->truth[flow] + skipped, want),
                  "late start (%s%s): flow %d gave %zu of %zu", middle ? "middle" : "given up", random ? ", by random" : "", flow,
                  r.g.n[flow], want);
            check(middle || r.g.gaps[flow] > 0, "the closed part was not told");
        }
        end(&r);
        free(recs);
    }
}

/* ---- joined in mid-stream with what a memory search finds ---- */
static void found_in_memory(run *r, int wrong) {
    const tc_case *c = r->c;
    char v[128];
    int chacha = tc_expect(c, "cipher", v) && atoi(v) == 0x1303;
    uint64_t at = 0x7f0000;
    for (size_t i = 0; i < c->nitem; i++) {
        struct as_secret s;
        if (c->item[i].kind != IT_KEY || tc_secret(&c->item[i], &s, 100, 0, at += 64, 0))
            continue;
        s.stack = AS_STACK_MEMORY;
        if (!memcmp(s.label, "CLIENT_RANDOM", 13)) { /* of TLS 1.2 the keys are found: derive them as the program did */
            as_crypto crypto;
            const as_suite *suite = tc_expect(c, "cipher", v) ? as_suite_find((uint16_t)atoi(v)) : NULL;
            as_cell master = {.len = 48}, key;
            check(as_crypto_init(&crypto) == 0 && suite, "crypto");
            memcpy(master.secret, s.secret, 48);
            for (int server = 0; suite && server < 2; server++) {
                as_derive12(&crypto, suite, &master, c->wire[0] + 11, c->wire[1] + 11, server, &key);
                memset(s.secret, 0, sizeof s.secret);
                memcpy(s.secret, key.key, suite->key_len);
                s.secret_len = suite->key_len;
                s.label_len = 7;
                memcpy(s.label, "AES_KEY", 7);
                s.secret[0] ^= (uint8_t)wrong;
                as_keyring_add(r->k, &s);
            }
            as_crypto_free(&crypto);
            continue;
        }
        if (s.label_len < 23 || !memmem(s.label, s.label_len, "_TRAFFIC_SECRET_0", 17))
            continue;
        s.label_len = 14;
        memcpy(s.label, "TRAFFIC_SECRET", 14);
        s.flags = chacha ? AS_SEC_CHACHA : 0;
        s.secret[0] ^= (uint8_t)wrong;
        as_keyring_add(r->k, &s);
    }
}

/* Both flows from any byte on: every record that begins there or later comes out, nothing else does, the rest is counted. */
static void joined(const tc_case *c, int rounds) {
    rec *recs[2] = {NULL, NULL};
    size_t first[2], n[2];
    for (int f = 0; f < 2; f++)
        n[f] = records(c, f, &recs[f], &first[f]);
    for (int round = 0; round < rounds; round++) {
        plan p = {.cut = rnd(2) ? 0 : 1 + rnd(3000)};
        int late = (int)rnd(3), wrong = rnd(8) == 0;
        run r = {.c = c, .p = &p, .ts = 1000000, .k = as_keyring_new(4096, 60000000000u)};
        size_t want[2] = {0}, skip[2] = {0}, from[2];
        r.t = as_tls_new(r.k, &sink, &r.g, &(as_tls_opts){.max_wait_bytes = 64u << 20, .max_wait_ns = (uint64_t)1 << 60});
        as_tls_late(r.t);
        as_tls_touch(r.t, 100, 1);
        add_foreign(&r, 20);
        if (late == 0)
            found_in_memory(&r, wrong);
        for (int f = 0; f < 2; f++) {
            from[f] = first[f] + rnd(c->nwire[f] - first[f]);
            if (rnd(4) == 0) /* at a boundary, or just behind it */
                from[f] = recs[f][n[f] - 1 - rnd(n[f] / 2)].at + rnd(3);
            if (from[f] < first[f])
                from[f] = first[f];
            r.at[f] = from[f];
            for (size_t i = 0; i < n[f]; i++)
                *(recs[f][i].at < from[f] ? &skip[f] : &want[f]) += recs[f][i].plain;
        }
        size_t given = 0;
        while (r.at[0] < c->nwire[0] || r.at[1] < c->nwire[1]) {
            play_flow(&r, (int)rnd(2), 1 + rnd(8000));
            if (late == 1 && ++given == 3)
                found_in_memory(&r, wrong);
        }
        as_meta m = {.ts = r.ts += 1000};
        if (late) {
            found_in_memory(&r, wrong);
            as_tls_retry(r.t, &m);
        }
        as_tls_flush(r.t, &m);
        accounts(r.t, "after flush");
        for (int f = 0; f < 2; f++) {
            as_tls_flow_stats s;
            as_tls_stats_get(r.t, f, &s);
            check(s.seen == c->nwire[f] - from[f], "joined: seen");
            if (wrong)
                check(r.g.n[f] == 0, "joined: opened with wrong secrets");
            else
                check(r.g.n[f] == want[f] && !memcmp(r.g.plain[f] ? r.g.plain[f] : c->truth[f], c->truth[f] + skip[f], want[f]),
                      "joined at %zu of %zu (keys %d): flow %d gave %zu of %zu", from[f], c->nwire[f], late, f, r.g.n[f],
                      want[f]);
        }
        end(&r);
    }
    free(recs[0]);
    free(recs[1]);
}

static void one(const tc_case *c, const char *name) {
    char v[128];
    int dark = tc_expect(c, "dark", v) != NULL, small = c->nwire[0] + c->nwire[1] < 50000;
    int v13 = tc_expect(c, "version", v) && atoi(v) == 0x0304;
    int rejected = tc_expect(c, "rejected", v) != NULL, early = strstr(name, "_early.") != NULL;
    whole(c, (plan){0}, "as recorded");
    if (strstr(name, "long")) { /* there for its record numbers */
        joined(c, 12);
        return;
    }
    whole(c, (plan){.when = KEYS_FIRST}, "secrets first");
    whole(c, (plan){.when = KEYS_FIRST, .random = 1}, "by random");
    whole(c, (plan){.when = KEYS_FIRST, .random = 1, .who = STRANGER}, "by random, of another process");
    whole(c, (plan){.when = KEYS_LATE}, "secrets at the end");
    whole(c, (plan){.when = KEYS_LATE, .loose = 1, .foreign = 500}, "secrets at the end, no groups, 500 foreign");
    whole(c, (plan){.when = KEYS_EACH_LATE}, "each secret late");
    whole(c, (plan){.foreign = 500}, "500 foreign secrets");
    whole(c, (plan){.who = RELATIVE, .foreign = 100}, "a relative's secrets");
    whole(c, (plan){.who = SERVER}, "the server's secrets");
    whole(c, (plan){.unnamed = 1}, "secrets without a name");
    whole(c, (plan){.unnamed = 1, .loose = 1, .foreign = 50, .when = KEYS_LATE}, "secrets without a name, no groups, late");
    whole(c, (plan){.order = CLIENT_FIRST, .when = KEYS_FIRST}, "client first");
    whole(c, (plan){.order = SERVER_FIRST, .when = KEYS_FIRST}, "server first");
    whole(c, (plan){.order = SERVER_FIRST}, "server first, then secrets");
    for (int i = 0; i < 5; i++)
        whole(c, (plan){.order = SHUFFLED, .when = i % 2 ? KEYS_LATE : KEYS_FIRST}, "shuffled");
    for (int i = 0; i < (small ? 12 : 3); i++)
        whole(c, (plan){.order = SHUFFLED, .when = KEYS_EACH_LATE, .cut = 1 + rnd(small ? 4 : 400)},
              "shuffled, each secret late");
    for (size_t cut = small ? 1 : 37; cut < 20000; cut = cut * 5 + 2)
        for (int late = 0; late < 2; late++)
            whole(c, (plan){.cut = cut, .when = late ? KEYS_EACH_LATE : KEYS_RECORDED}, "cut");
    for (size_t s = 1; small && s < 3000; s += s < 400 ? 1 : 37)
        for (int f = 0; f < 2; f++)
            whole(c, (plan){.split = {f ? 0 : s, f ? s : 0}}, "split");
    if (dark)
        return;
    stays_closed(c, (plan){.when = KEYS_NEVER, .foreign = 50}, AS_TLS_NO_SECRET, "no secrets");
    stays_closed(c, (plan){.who = STRANGER}, AS_TLS_NO_SECRET, "a stranger's secrets");
    stays_closed(c, (plan){.when = KEYS_NEVER, .max_wait_ns = 1}, AS_TLS_NO_SECRET, "no time");
    if (v13 && !rejected && !early) {
        static const char *const labels[] = {"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET"};
        for (int i = 0; i < 4; i++) {
            run r;
            plan p = {.without = labels[i / 2], .when = i % 2 ? KEYS_FIRST : KEYS_RECORDED};
            play(&r, c, &p);
            for (int f = 0; f < 2; f++)
                check(r.g.n[f] == c->ntruth[f] && !memcmp(r.g.plain[f], c->truth[f], c->ntruth[f]) && !r.g.gaps[f],
                      "without %s: flow %d gave %zu of %zu", labels[i / 2], f, r.g.n[f], c->ntruth[f]);
            end(&r);
        }
    }
    if (!rejected && !early && !strstr(name, "update")) {
        late_start(c, 0, 0);
        late_start(c, 0, 1);
        if (v13)
            late_start(c, 1, 0);
    }
    if (!rejected && !early && !strstr(name, "update") && (v13 || !strstr(name, "CHACHA")))
        joined(c, small ? 100 : 20);
    if (!rejected && !early)
        holes(c, small ? 60 : c->nwire[0] > 500000 ? 8 : 30, 0);
    holes(c, small ? 60 : 8, 1);
}

/* ---- the keyring by itself, and many handshakes at once ---- */
static void many(const tc_case *c) {
    enum { N = 1000 };
    static run r[N];
    static const plan p = {0};
    strcpy(context, "many");
    as_keyring *k = as_keyring_new(8192, 1000000000u);
    as_meta m = {.ts = 1000, .tgid = 100, .tid = 1};
    for (int i = 0; i < N; i++) { /* all wait */
        r[i] = (run){.c = c, .p = &p, .k = k};
        r[i].t = as_tls_new(k, &sink, &r[i].g, NULL);
        for (size_t j = 0; j < c->nitem && j < 12; j++)
            if (c->item[j].kind == IT_DATA && i)
                as_tls_feed(r[i].t, c->item[j].flow, c->item[j].p, c->item[j].n, &m);
    }
    as_keyring_stats s;
    for (int i = 0; i < 4 * N; i++) { /* secrets of other connections: each is tried once by each that waits */
        struct as_secret x = {.h = {.ts = 1000, .tgid = 100, .tid = 1}, .arg1 = (uint64_t)i / 4, .secret_len = 32};
        static const char *const l[] = {"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET",
                                        "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"};
        x.label_len = (uint8_t)strlen(l[i % 4]);
        memcpy(x.label, l[i % 4], x.label_len);
        for (int b = 0; b < 32; b++)
            x.secret[b] = (uint8_t)rnd(256);
        as_keyring_add(k, &x);
        as_keyring_add(k, &x);
    }
    as_keyring_stats_get(k, &s);
    check(s.added == 4 * N && s.duplicates == 4 * N && s.evicted == 0, "added %lu", (unsigned long)s.added);
    for (size_t j = 0; j < c->nitem; j++)
        if (c->item[j].kind == IT_KEY) {
            struct as_secret x;
            tc_secret(&c->item[j], &x, 100, 1, 0x77, 0);
            as_keyring_add(k, &x);
        }
    uint64_t before = s.trials;
    for (size_t j = 0; j < c->nitem; j++)
        if (c->item[j].kind == IT_DATA)
            as_tls_feed(r[0].t, c->item[j].flow, c->item[j].p, c->item[j].n, &m);
    as_keyring_stats_get(k, &s);
    check(r[0].g.n[0] == c->ntruth[0] && r[0].g.n[1] == c->ntruth[1], "the one among many");
    check(s.trials - before <= 12, "%lu trials beside 4,000 older secrets", (unsigned long)(s.trials - before));
    as_keyring_expire(k, 3000000000u);
    as_keyring_stats_get(k, &s);
    check(s.expired == 4 * N, "expired %lu", (unsigned long)s.expired);
    for (int i = 0; i < N; i++) {
        accounts(r[i].t, "many");
        as_tls_free(r[i].t);
        free(r[i].g.plain[0]);
        free(r[i].g.plain[1]);
    }
    as_keyring_free(k);
    k = as_keyring_new(100, 1000);
    for (int i = 0; i < 1000; i++) {
        struct as_secret x = {.h = {.ts = (uint64_t)i, .tgid = (uint32_t)i, .tid = 1}, .secret_len = 32, .label_len = 23};
        memcpy(x.label, "CLIENT_TRAFFIC_SECRET_0", 23);
        memcpy(x.secret, &i, 4);
        as_keyring_add(k, &x);
        x.label_len = (uint8_t)(i % 60); /* no such label, or too long */
        as_keyring_add(k, &x);
    }
    as_keyring_stats_get(k, &s);
    check(s.added == 1000 && s.evicted == 900, "bounded: %lu added, %lu evicted", (unsigned long)s.added,
          (unsigned long)s.evicted);
    as_keyring_free(k);
}

/* Both ends of one connection decoded by themselves, both processes' secrets or only one's. */
static void both_ends(const tc_case *c) {
    strcpy(context, "both ends");
    plan p = {.when = KEYS_FIRST};
    as_keyring *k = as_keyring_new(64, 1000000000u);
    run r[2] = {{.c = c, .p = &p, .k = k, .ts = 5}, {.c = c, .p = &p, .k = k, .ts = 5}};
    for (int i = 0; i < 2; i++)
        r[i].t = as_tls_new(k, &sink, &r[i].g, NULL);
    keys(&r[0]);
    for (int i = 0; i < 2; i++) {
        play_flow(&r[i], 0, SIZE_MAX);
        play_flow(&r[i], 1, SIZE_MAX);
        check(r[i].g.n[0] == c->ntruth[0] && r[i].g.n[1] == c->ntruth[1], "end %d", i);
    }
    for (int i = 0; i < 2; i++) {
        as_tls_free(r[i].t);
        free(r[i].g.plain[0]);
        free(r[i].g.plain[1]);
    }
    as_keyring_free(k);
}

static void sniff(const tc_case *c) {
    strcpy(context, "sniff");
    for (size_t n = 0; n < 64; n++)
        for (int f = 0; f < 2; f++)
            check(as_tls_sniff(c->wire[f], n, 0) == (n > 8 ? 1 : -1), "hello of %zu bytes", n);
    check(as_tls_sniff((const uint8_t *)"GET / HTTP", 10, 1) == 0, "http");
    check(as_tls_sniff((const uint8_t *)"\x17\x03\x03\x01\x00zzz", 8, 1) == 1, "late");
    check(as_tls_sniff((const uint8_t *)"\x17\x03\x03\x01\x00zzz", 8, 0) == 0, "not late");
    check(as_tls_sniff((const uint8_t *)"\x17\x03\x03\xff\xffzzz", 8, 1) == 0, "too long");
}

static void garbage(void) {
    strcpy(context, "garbage");
    as_keyring *k = as_keyring_new(16, 1);
    got g = {0};
    as_tls *t = as_tls_new(k, &sink, &g, NULL);
    as_meta m = {.ts = 1};
    as_tls_feed(t, 0, (const uint8_t *)"hello, world\r\n", 14, &m);
    as_tls_flow_stats s;
    as_tls_stats_get(t, 0, &s);
    check(s.closed[AS_TLS_NOT_RECORD] == 14 && g.gap[0] == 14, "plain text is no record");
    as_tls_free(t);
    t = as_tls_new(k, &sink, &g, &(as_tls_opts){.max_wait_bytes = 10000});
    for (int i = 0; i < 100; i++) { /* joined late, no secret: bounded, then dark at once */
        uint8_t r[505] = {0x17, 3, 3, 1, 0xf4};
        as_tls_feed(t, 1, r, sizeof r, &m);
        as_tls_stats_get(t, 1, &s);
        check(s.waiting <= 10000 + 505, "held %lu", (unsigned long)s.waiting);
    }
    as_tls_flush(t, &m);
    as_tls_stats_get(t, 1, &s);
    check(s.closed[AS_TLS_LIMIT] > 9000 && s.closed[AS_TLS_NO_SECRET] + s.closed[AS_TLS_LIMIT] == 50500, "limit");
    check(s.records_closed == 100, "%lu records", (unsigned long)s.records_closed);
    as_tls_free(t);
    as_keyring_free(k);
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : getenv("AGENTSIGHT_TLS_CASES"), *only = argc > 2 ? argv[2] : NULL;
    DIR *d = dir ? opendir(dir) : NULL;
    int cases = 0;
    if (!d) {
        fprintf(stderr, "usage: test_tls DIRECTORY of make_tls_cases.py\n");
        return 2;
    }
    for (struct dirent *e; (e = readdir(d));) {
        char path[1024];
        tc_case c;
        size_t n = strlen(e->d_name);
        if (n < 5 || strcmp(e->d_name + n - 4, ".tls") != 0 || (only && !strstr(e->d_name, only)))
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        snprintf(context, sizeof context, "%s", e->d_name);
        if (tc_load(&c, path)) {
            check(0, "cannot be read");
            continue;
        }
        one(&c, e->d_name);
        if (strstr(e->d_name, "t13_aes128_alpn") || strstr(e->d_name, "t13_chacha_alpn")) {
            many(&c);
            both_ends(&c);
            sniff(&c);
        }
        tc_free(&c);
        cases++;
    }
    closedir(d);
    garbage();
    check(cases > 0, "no cases in %s", dir);
    printf("test_tls: %d connections, %lu checks, %lu failures\n", cases, checks, failures);
    return failures != 0;
}

/* SPDX-License-Identifier: MIT
 *
 * See memscan.h. The order of the filters is by cost: schedules by two xor identities that hold in any byte order, on
 * vectors; windows by counts over 8 bytes at once (zeros, repeats, high bits), then by a rolling count of distinct bytes; only then
 * HMAC (RFC 2104, four blocks of libcrypto's hash). A random window passes with all but 0.01 %.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MADV_DONTDUMP */
#endif
#define OPENSSL_SUPPRESS_DEPRECATED /* the block functions: EVP costs several times the hash of so short a text */
#include "memscan.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "memaes.h"

#define MAX_KEYS 1024
#define MAX_HITS 4096
#define MAX_MAYBE 16384
#define BLOOM_BITS ((uint64_t)1 << 26)

/* how random a window must look */
#define DISTINCT32 25
#define DISTINCT48 36
#define HIGH32 5 /* bytes with the high bit: text has none */
#define HIGH48 8

typedef struct aes_key {
    uint64_t addr;
    uint8_t len, used;
    uint8_t key[32];
} aes_key;

typedef struct maybe { /* a window whose ChaCha20 key may have been seen */
    uint64_t addr;
    uint8_t secret[32], key[32];
    uint8_t proven;
} maybe;

typedef struct vault { /* all that is secret */
    aes_key keys[MAX_KEYS];
    as_ms_hit hits[MAX_HITS];
    maybe maybes[MAX_MAYBE];
    uint16_t table[4 * MAX_MAYBE]; /* maybes by the first bytes of their keys, index + 1 */
} vault;

struct as_ms {
    vault *v;
    uint64_t *bloom;
    size_t nkeys, nhits, nmaybes;
    size_t open[2]; /* keys that no secret explains yet: AES-128, AES-256 */
    uint64_t noted; /* windows in the filter */
    enum as_ms_pass pass;
    as_ms_stats st;
};

void *as_ms_lock(size_t n) {
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    (void)mlock(p, n); /* where the limit allows it; without, only swapping could bring it to a disk */
    (void)madvise(p, n, MADV_DONTDUMP);
    return p;
}

void as_ms_unlock(void *p, size_t n) {
    if (!p)
        return;
    OPENSSL_cleanse(p, n);
    munmap(p, n);
}

as_ms *as_ms_new(void) {
    as_ms *s = calloc(1, sizeof *s);
    if (s && !(s->v = as_ms_lock(sizeof *s->v))) {
        free(s);
        s = NULL;
    }
    return s;
}

void as_ms_free(as_ms *s) {
    if (!s)
        return;
    as_ms_unlock(s->v, sizeof *s->v);
    if (s->bloom)
        munmap(s->bloom, BLOOM_BITS / 8);
    free(s);
}

void as_ms_begin(as_ms *s, enum as_ms_pass pass) {
    s->pass = pass;
    if (pass == AS_MS_PAIRS && !s->bloom) {
        void *p = mmap(NULL, BLOOM_BITS / 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        s->bloom = p == MAP_FAILED ? NULL : p; /* without it: no ChaCha20 */
        if (s->bloom)
            (void)madvise(s->bloom, BLOOM_BITS / 8, MADV_HUGEPAGE);
    }
}

int as_ms_needed(const as_ms *s, enum as_ms_pass pass) {
    switch (pass) {
    case AS_MS_CHACHA:
        return s->noted > 0;
    case AS_MS_PROVE:
        return s->nmaybes > 0;
    default:
        return 1;
    }
}

/* ---- what is found ---- */
static void add_hit(as_ms *s, uint64_t addr, enum as_ms_kind kind, enum as_ms_cipher cipher, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < s->nhits; i++) /* several copies of one secret are the rule */
        if (s->v->hits[i].len == n && !CRYPTO_memcmp(s->v->hits[i].bytes, p, n))
            return;
    if (s->nhits == MAX_HITS) {
        s->st.full |= 4;
        return;
    }
    as_ms_hit *h = &s->v->hits[s->nhits++];
    *h = (as_ms_hit){.addr = addr, .kind = (uint8_t)kind, .cipher = (uint8_t)cipher, .len = (uint8_t)n};
    memcpy(h->bytes, p, n);
    if (kind == AS_MS_SECRET)
        s->st.secrets++;
    else
        s->st.keys++;
}

static void add_schedule(void *u, uint64_t addr, const uint8_t *key, size_t n) {
    as_ms *s = u;
    for (size_t i = 0; i < s->nkeys; i++)
        if (s->v->keys[i].len == n && !CRYPTO_memcmp(s->v->keys[i].key, key, n))
            return;
    if (s->nkeys == MAX_KEYS) {
        s->st.full |= 1;
        return;
    }
    aes_key *k = &s->v->keys[s->nkeys++];
    k->addr = addr;
    k->len = (uint8_t)n;
    memcpy(k->key, key, n);
    s->open[n == 32]++;
    s->st.schedules++;
}

void as_ms_finish(as_ms *s) {
    for (size_t i = 0; i < s->nkeys; i++) {
        const aes_key *k = &s->v->keys[i];
        if (!k->used)
            add_hit(s, k->addr, AS_MS_KEY, k->len == 32 ? AS_MS_AES256 : AS_MS_AES128, k->key, k->len);
    }
}

const as_ms_hit *as_ms_hits(const as_ms *s, size_t *n) {
    *n = s->nhits;
    return s->v->hits;
}

void as_ms_stats_get(const as_ms *s, as_ms_stats *out) {
    *out = s->st;
}

/* ---- HKDF-Expand-Label(secret, "key", "", n) ---- */
#define INFO 14 /* length, "tls13 key", no context, HKDF's counter */

static size_t info(uint8_t *out, size_t n) {
    static const uint8_t rest[12] = {9, 't', 'l', 's', '1', '3', ' ', 'k', 'e', 'y', 0, 1};
    out[0] = 0;
    out[1] = (uint8_t)n;
    memcpy(out + 2, rest, sizeof rest);
    return INFO;
}

static void put_be32(uint8_t *p, uint32_t v) {
    v = __builtin_bswap32(v);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    memcpy(p, &v, 4);
}

static void put_be64(uint8_t *p, uint64_t v) {
    put_be32(p, (uint32_t)(v >> 32));
    put_be32(p + 4, (uint32_t)v);
}

static void derive256(const uint8_t *secret, size_t n, uint8_t out[32]) {
    SHA256_CTX c;
    uint8_t b[64];
    SHA256_Init(&c);
    memset(b, 0x36, sizeof b);
    for (int i = 0; i < 32; i++)
        b[i] ^= secret[i];
    SHA256_Transform(&c, b);
    memset(b, 0, sizeof b);
    b[info(b, n)] = 0x80;
    put_be64(b + 56, (64 + INFO) * 8);
    SHA256_Transform(&c, b);
    uint8_t inner[32];
    for (int i = 0; i < 8; i++)
        put_be32(inner + 4 * i, c.h[i]);
    SHA256_Init(&c);
    memset(b, 0x5c, sizeof b);
    for (int i = 0; i < 32; i++)
        b[i] ^= secret[i];
    SHA256_Transform(&c, b);
    memset(b + 32, 0, 32);
    memcpy(b, inner, 32);
    b[32] = 0x80;
    put_be64(b + 56, (64 + 32) * 8);
    SHA256_Transform(&c, b);
    for (int i = 0; i < 8; i++)
        put_be32(out + 4 * i, c.h[i]);
}

static void derive384(const uint8_t *secret, size_t n, uint8_t out[48]) {
    SHA512_CTX c;
    uint8_t b[128], inner[48];
    SHA384_Init(&c);
    memset(b, 0x36, sizeof b);
    for (int i = 0; i < 48; i++)
        b[i] ^= secret[i];
    SHA512_Transform(&c, b);
    memset(b, 0, sizeof b);
    b[info(b, n)] = 0x80;
    put_be64(b + 120, (128 + INFO) * 8);
    SHA512_Transform(&c, b);
    for (int i = 0; i < 6; i++)
        put_be64(inner + 8 * i, c.h[i]);
    SHA384_Init(&c);
    memset(b, 0x5c, sizeof b);
    for (int i = 0; i < 48; i++)
        b[i] ^= secret[i];
    SHA512_Transform(&c, b);
    memset(b, 0, sizeof b);
    memcpy(b, inner, 48);
    b[48] = 0x80;
    put_be64(b + 120, (128 + 48) * 8);
    SHA512_Transform(&c, b);
    for (int i = 0; i < 6; i++)
        put_be64(out + 8 * i, c.h[i]);
}

/* ---- the tests of one window ---- */
static void test_aes(as_ms *s, uint64_t addr, const uint8_t *p, size_t n) {
    uint8_t key[48];
    size_t len = n == 48 ? 32 : 16;
    s->st.tests++;
    if (n == 48)
        derive384(p, len, key);
    else
        derive256(p, len, key);
    for (size_t i = 0; i < s->nkeys; i++) {
        aes_key *k = &s->v->keys[i];
        if (k->len != len || memcmp(k->key, key, len) != 0)
            continue;
        if (!k->used) {
            k->used = 1;
            s->open[len == 32]--;
        }
        add_hit(s, addr, AS_MS_SECRET, len == 32 ? AS_MS_AES256 : AS_MS_AES128, p, n);
    }
}

static uint64_t mixed(const uint8_t *p) {
    uint64_t a, b;
    memcpy(&a, p, 8);
    memcpy(&b, p + 8, 8);
    a = (a ^ (b << 17 | b >> 47)) * 0xff51afd7ed558ccdu;
    return (a ^ a >> 32) * 0xc4ceb9fe1a85ec53u;
}

/* Four bits in one cache line: the table is larger than the caches. */
static uint64_t *line_of(const as_ms *s, uint64_t h) {
    return s->bloom + (h >> 36) % (BLOOM_BITS / 512) * 8;
}

static void note_key(as_ms *s, const uint8_t *p) {
    uint64_t h = mixed(p), *line = line_of(s, h);
    for (int i = 0; i < 4; i++, h >>= 9)
        line[h >> 6 & 7] |= (uint64_t)1 << (h & 63);
    s->noted++;
}

static int noted(const as_ms *s, const uint8_t *p) {
    uint64_t h = mixed(p), *line = line_of(s, h);
    for (int i = 0; i < 4; i++, h >>= 9)
        if (!(line[h >> 6 & 7] >> (h & 63) & 1))
            return 0;
    return 1;
}

static size_t slot_of(const uint8_t *key) {
    return (size_t)(mixed(key) % (4 * MAX_MAYBE));
}

static void test_chacha(as_ms *s, uint64_t addr, const uint8_t *p) {
    uint8_t key[32];
    s->st.tests++;
    derive256(p, 32, key);
    if (!noted(s, key))
        return;
    size_t at = slot_of(key);
    for (; s->v->table[at]; at = (at + 1) % (4 * MAX_MAYBE))
        if (!memcmp(s->v->maybes[s->v->table[at] - 1].key, key, 32))
            return;
    if (s->nmaybes == MAX_MAYBE) {
        s->st.full |= 2;
        return;
    }
    maybe *m = &s->v->maybes[s->nmaybes++];
    m->addr = addr;
    memcpy(m->secret, p, 32);
    memcpy(m->key, key, 32);
    s->v->table[at] = (uint16_t)s->nmaybes;
}

static void prove(as_ms *s, const uint8_t *p) {
    for (size_t at = slot_of(p); s->v->table[at]; at = (at + 1) % (4 * MAX_MAYBE)) {
        maybe *m = &s->v->maybes[s->v->table[at] - 1];
        if (!m->proven && !memcmp(m->key, p, 32)) {
            m->proven = 1;
            add_hit(s, m->addr, AS_MS_SECRET, AS_MS_CHACHA20, m->secret, 32);
        }
    }
}

/* ---- windows ---- */
#define ONES 0x0101010101010101u
#define LOWS 0x7f7f7f7f7f7f7f7fu

static inline unsigned count(uint64_t high_bits) { /* bytes whose high bit is set; the others' bits must be clear */
    return (unsigned)((high_bits >> 7) * ONES >> 56);
}

/* 0x80 in each byte of v that is zero */
static inline uint64_t zero_bytes(uint64_t v) {
    return ~(((v & LOWS) + LOWS) | v | LOWS);
}

typedef struct group { /* eight bytes at a multiple of eight of the block */
    uint8_t zeros, repeats, highs; /* zero; zero or the same as eight bytes before; with the high bit */
} group;

static inline group group_at(const uint8_t *p, uint64_t before) {
    uint64_t v;
    memcpy(&v, p, 8);
    uint64_t z = zero_bytes(v);
    return (group){(uint8_t)count(z), (uint8_t)count(z | zero_bytes(v ^ before)), (uint8_t)count(v & ~LOWS)};
}

typedef struct rolling { /* distinct bytes and high bits of the window that begins at `from` */
    const uint8_t *p;
    size_t from;
    unsigned len, distinct, high;
    uint8_t n[256];
} rolling;

static void roll_to(rolling *r, size_t at) {
    if (at - r->from >= r->len || r->len == 0 || at < r->from) {
        memset(r->n, 0, sizeof r->n);
        r->distinct = r->high = 0;
        for (unsigned i = 0; i < r->len; i++) {
            r->distinct += r->n[r->p[at + i]]++ == 0;
            r->high += r->p[at + i] >> 7;
        }
        r->from = at;
        return;
    }
    for (; r->from < at; r->from++) {
        uint8_t out = r->p[r->from], in = r->p[r->from + r->len];
        r->distinct -= --r->n[out] == 0;
        r->distinct += r->n[in]++ == 0;
        r->high += (in >> 7) - (unsigned)(out >> 7);
    }
}

/* The windows that begin in p[lo..hi], looked at one by one. */
static uint64_t look(as_ms *s, uint64_t addr, const uint8_t *p, size_t lo, size_t hi, size_t all, rolling *r32, rolling *r48) {
    uint64_t found = 0;
    for (size_t at = lo; at <= hi && at + 32 <= all; at++) {
        if (r32) {
            roll_to(r32, at);
            if (r32->distinct >= DISTINCT32 && r32->high >= HIGH32) {
                int aligned = ((addr + at) & 3) == 0;
                found++;
                s->st.windows++;
                if (s->pass == AS_MS_CHACHA)
                    test_chacha(s, addr + at, p + at);
                if (s->pass == AS_MS_PROVE && aligned)
                    prove(s, p + at);
                if (s->pass == AS_MS_PAIRS && s->bloom && aligned)
                    note_key(s, p + at);
                if (s->pass == AS_MS_PAIRS && s->open[0])
                    test_aes(s, addr + at, p + at, 32);
            }
        }
        if (r48 && at + 48 <= all) {
            roll_to(r48, at);
            if (r48->distinct >= DISTINCT48 && r48->high >= HIGH48)
                test_aes(s, addr + at, p + at, 48);
        }
    }
    return found;
}

static uint64_t windows(as_ms *s, uint64_t addr, const uint8_t *p, size_t n, size_t all) {
    rolling r32 = {.p = p, .len = 32, .from = SIZE_MAX}, r48 = {.p = p, .len = 48, .from = SIZE_MAX};
    uint64_t found = 0, before = 0;
    group g[8] = {{0}}; /* the one before, and seven from b on; one that would reach over the end counts as fit */
    size_t next = 0;
    static const group over = {0, 0, 8};
    for (int i = 1; i < 8; i++, next += 8) {
        g[i] = next + 8 <= all ? group_at(p + next, before) : over;
        if (next + 8 <= all)
            memcpy(&before, p + next, 8);
    }
    /* A window that begins in (b-8, b] holds the groups b, b+8, b+16 whole (of 48 bytes: two more), and touches no more than one
     * before and one behind them. A byte that is zero, but for one, or the same as another in the window, is not distinct. */
    for (size_t b = 0; b < n + 8; b += 8) {
        size_t lo = b ? b - 7 : 0, hi = b < n ? b : n - 1;
        unsigned same = g[1].zeros + g[2].repeats + g[3].repeats,
                 high = g[0].highs + g[1].highs + g[2].highs + g[3].highs + g[4].highs;
        int may32 = same <= 32 - DISTINCT32 + 1 && high >= HIGH32;
        int may48 = s->pass == AS_MS_PAIRS && s->open[1] && same + g[4].repeats + g[5].repeats <= 48 - DISTINCT48 + 1 &&
                    high + g[5].highs + g[6].highs >= HIGH48;
        if (may32 || may48)
            found += look(s, addr, p, lo, hi, all, may32 ? &r32 : NULL, may48 ? &r48 : NULL);
        memmove(g, g + 1, sizeof g - sizeof *g);
        g[7] = next + 8 <= all ? group_at(p + next, before) : over;
        if (next + 8 <= all)
            memcpy(&before, p + next, 8);
        next += 8;
    }
    return found;
}

uint64_t as_ms_feed(as_ms *s, uint64_t addr, const uint8_t *p, size_t n, size_t more) {
    if (!n)
        return 0;
    if (s->pass == AS_MS_SCHEDULES) {
        as_aes_schedules(addr, p, n, n + more, add_schedule, s);
        return 0;
    }
    return windows(s, addr, p, n, n + more);
}

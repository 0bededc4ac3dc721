/* SPDX-License-Identifier: MIT
 *
 * The memory search on bytes made here: schedules and secrets at every alignment, cut anywhere, beside noise, text, pointers and
 * near misses; then on a child process whose secrets are known. Keys are derived by EVP, not by the code under test.
 */
#include <openssl/core_names.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agentsight.h"
#include "memaes.h"
#include "memread.h"

static unsigned long checks, failures;
#define CHECK(x)                                                                                                                 \
    do {                                                                                                                         \
        checks++;                                                                                                                \
        if (!(x) && ++failures < 30)                                                                                             \
            fprintf(stderr, "FAIL line %d: %s\n", __LINE__, #x);                                                                 \
    } while (0)

static uint64_t rng = 88172645463325252u;
static uint64_t rnd(void) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng * 0x2545f4914f6cdd1du;
}
static void noise(uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(rnd() >> 56);
}

/* The schedule by the definition (FIPS 197 section 5.2), the S-box by its definition too. */
static uint8_t times(uint8_t a, uint8_t b) {
    uint8_t r = 0;
    for (; b; b >>= 1, a = (uint8_t)(a << 1 ^ (a & 0x80 ? 0x1b : 0)))
        r ^= b & 1 ? a : 0;
    return r;
}
static uint8_t sbox(uint8_t x) {
    static uint8_t known[256], is_known[256];
    uint8_t inv = 0, s = 0x63;
    if (is_known[x])
        return known[x];
    for (int y = 1; x && y < 256; y++)
        if (times(x, (uint8_t)y) == 1)
            inv = (uint8_t)y;
    for (int i = 0; i < 5; i++)
        s ^= (uint8_t)(inv << i | inv >> (8 - i));
    is_known[x] = 1;
    return known[x] = s;
}
static size_t expand(const uint8_t *key, size_t len, uint8_t *out, int swapped) {
    size_t nk = len / 4, n = nk == 4 ? 44 : 60;
    uint8_t rcon = 1;
    memcpy(out, key, len);
    for (size_t i = nk; i < n; i++) {
        uint8_t t[4], u[4];
        memcpy(t, out + 4 * (i - 1), 4);
        if (i % nk == 0) {
            for (int b = 0; b < 4; b++)
                u[b] = sbox(t[(b + 1) % 4]);
            u[0] ^= rcon;
            rcon = times(rcon, 2);
            memcpy(t, u, 4);
        } else if (nk == 8 && i % 8 == 4) {
            for (int b = 0; b < 4; b++)
                t[b] = sbox(t[b]);
        }
        for (int b = 0; b < 4; b++)
            out[4 * i + (size_t)b] = out[4 * (i - nk) + (size_t)b] ^ t[b];
    }
    for (size_t i = 0; swapped && i < n; i++) {
        uint8_t *w = out + 4 * i, x = w[0], y = w[1];
        w[0] = w[3], w[1] = w[2], w[2] = y, w[3] = x;
    }
    return 4 * n;
}

static void derive(const uint8_t *secret, size_t n, uint8_t *key, size_t len) {
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *c = EVP_KDF_CTX_new(kdf);
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    char hash[8];
    uint8_t info[13] = {0, (uint8_t)len, 9, 't', 'l', 's', '1', '3', ' ', 'k', 'e', 'y', 0};
    strcpy(hash, n == 48 ? "SHA384" : "SHA256");
    OSSL_PARAM p[] = {OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
                      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, hash, 0),
                      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret, n),
                      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, sizeof info), OSSL_PARAM_construct_end()};
    CHECK(EVP_KDF_derive(c, key, len, p) == 1);
    EVP_KDF_CTX_free(c);
    EVP_KDF_free(kdf);
}

static const size_t SECRET[] = {32, 48, 32}, KEY[] = {16, 32, 32};

/* All passes over n bytes at an address, in blocks of `block` bytes. */
static as_ms *scan(const uint8_t *p, size_t n, uint64_t addr, size_t block) {
    as_ms *s = as_ms_new();
    for (int pass = 0; pass < AS_MS_PASSES; pass++) {
        as_ms_begin(s, (enum as_ms_pass)pass);
        if (!as_ms_needed(s, (enum as_ms_pass)pass))
            continue;
        for (size_t at = 0; at < n; at += block) {
            size_t k = n - at < block ? n - at : block, more = n - at - k < AS_MS_OVERLAP ? n - at - k : AS_MS_OVERLAP;
            uint8_t *copy = malloc(k + more); /* its end is guarded by the sanitizer */
            memcpy(copy, p + at, k + more);
            as_ms_feed(s, addr + at, copy, k, more);
            free(copy);
        }
    }
    as_ms_finish(s);
    return s;
}

static int has(const as_ms *s, int kind, int cipher, const uint8_t *p, size_t n) {
    size_t k;
    const as_ms_hit *h = as_ms_hits(s, &k);
    for (size_t i = 0; i < k; i++)
        if (h[i].kind == kind && h[i].cipher == cipher && h[i].len == n && !memcmp(h[i].bytes, p, n))
            return 1;
    return 0;
}

/* A secret at `at`, its key's schedule or the key itself at `key_at`. */
static void plant(uint8_t *m, size_t at, size_t key_at, int cipher, int swapped, uint8_t secret[48]) {
    uint8_t key[32];
    noise(secret, SECRET[cipher]);
    memcpy(m + at, secret, SECRET[cipher]);
    derive(secret, SECRET[cipher], key, KEY[cipher]);
    if (cipher == AS_MS_CHACHA20)
        memcpy(m + key_at, key, 32);
    else
        expand(key, KEY[cipher], m + key_at, swapped);
}

static void pairs(void) {
    enum { N = 16384 };
    static uint8_t m[N];
    unsigned missed = 0, all = 0;
    for (int round = 0; round < 300; round++) {
        int cipher = round % 3, swapped = (int)(rnd() & 1), before = (int)(rnd() & 1);
        uint8_t secret[48];
        size_t at, key_at;
        memset(m, 0, N);
        if (round % 5 == 1)
            noise(m, N);
        else if (round % 5 == 2)
            for (size_t i = 0; i < N; i++)
                m[i] = (uint8_t)(32 + rnd() % 95);
        else if (round % 5 == 3)
            for (size_t i = 0; i + 8 <= N; i += 8) {
                uint64_t p = 0x7f1200000000u + (rnd() & 0xfffff0);
                memcpy(m + i, &p, 8);
            }
        at = rnd() % (N / 2 - 48);
        key_at = N / 2 + rnd() % (N / 2 - 240) / 4 * 4;
        if (before)
            at += N / 2, key_at -= N / 2;
        uint64_t addr = 0x7f0000000000u + (rnd() & 0xfff000);
        plant(m, at, key_at, cipher, swapped, secret);
        as_ms *s = scan(m, N, addr, (size_t[]){4096, 1000, N, 52}[rnd() % 4]);
        as_ms_stats st;
        as_ms_stats_get(s, &st);
        all++;
        missed += !has(s, AS_MS_SECRET, cipher, secret, SECRET[cipher]);
        CHECK(st.secrets <= 1); /* nothing else */
        CHECK(st.schedules == (cipher != AS_MS_CHACHA20));
        as_ms_free(s);
        /* a near miss: the secret or the key has one bit wrong */
        m[(rnd() & 1) ? at + rnd() % 32 : key_at + rnd() % (cipher == AS_MS_CHACHA20 ? 32 : 16)] ^= 1;
        s = scan(m, N, addr, 4096);
        as_ms_stats_get(s, &st);
        CHECK(st.secrets == 0);
        as_ms_free(s);
    }
    CHECK(missed <= 1); /* one secret in ten thousand does not look random */
    printf("%u of %u secrets found\n", all - missed, all);
}

static void count(void *u, uint64_t addr, const uint8_t *key, size_t len) {
    size_t *n = u;
    (void)addr;
    (void)key;
    n[len == 32]++;
}

static void schedules(void) {
    static uint8_t m[1 << 20];
    uint8_t key[32];
    for (int round = 0; round < 3000; round++) {
        size_t len = rnd() & 1 ? 32 : 16, at = rnd() % 300 / 4 * 4, all = 1024, n = 512, found[2] = {0, 0};
        int swapped = (int)(rnd() & 1);
        if (rnd() & 1)
            noise(m, all);
        else
            memset(m, 0, all);
        noise(key, len);
        size_t size = expand(key, len, m + at, swapped);
        as_aes_schedules(0x1000, m, n, all, count, found);
        CHECK(found[len == 32] == 1 && found[len != 32] == 0);
        found[0] = found[1] = 0;
        as_aes_schedules(0x1000, m, n, at + size, count, found); /* ends with the memory */
        CHECK(found[len == 32] == 1);
        found[0] = found[1] = 0;
        as_aes_schedules(0x1000, m, n, at + size - 1, count, found); /* cut */
        as_aes_schedules(0x1000, m, at, all, count, found); /* begins behind */
        CHECK(found[0] + found[1] == 0);
        m[at + rnd() % size] ^= (uint8_t)(1 << rnd() % 8);
        as_aes_schedules(0x1000, m, n, all, count, found);
        CHECK(found[0] + found[1] == 0);
    }
    size_t found[2] = {0, 0};
    noise(m, sizeof m);
    as_aes_schedules(0x1000, m, sizeof m, sizeof m, count, found);
    CHECK(found[0] + found[1] == 0);
    expand(memset(key, 0, 16), 16, m, 0); /* FIPS 197 appendix A.1 has another key; this one is known as well */
    CHECK(m[16] == 0x62 && m[17] == 0x63 && m[18] == 0x63 && m[19] == 0x63);
}

static void bounds(void) { /* more than is kept */
    size_t n = 6000 * 176;
    uint8_t *m = malloc(n), key[16];
    for (size_t i = 0; i < 6000; i++) {
        noise(key, 16);
        expand(key, 16, m + 176 * i, 0);
    }
    as_ms *s = scan(m, 2000 * 176, 0x10000, 1 << 20);
    as_ms_stats st;
    as_ms_stats_get(s, &st);
    CHECK(st.schedules == 1024 && st.full & 1 && st.secrets == 0);
    as_ms_free(s);
    free(m);
}

/* A process of its own, with secrets in anonymous memory, one over the end of a present page. */
static void process(void) {
    static uint8_t secret[3][48];
    int to[2], from[2];
    char c = 0;
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    uint8_t *shared = mmap(NULL, sizeof secret, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    if (pid == 0) {
        uint8_t *m = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        rng ^= 0x1234567;
        for (int i = 0; i < 3; i++)
            plant(m + (8 << 20), 4096 * 1000 * (size_t)i + 4070, 4096 * 500 + 4096 * (size_t)i + 8, i, i == 1, shared + 48 * i);
        if (write(from[1], "x", 1) != 1 || read(to[0], &c, 1) < 0)
            _exit(1);
        _exit(0);
    }
    CHECK(read(from[0], &c, 1) == 1);
    memcpy(secret, shared, sizeof secret);
    memset(shared, 0, sizeof secret);
    as_ms *s = as_ms_new();
    as_mem_stats st;
    as_mem_opts o = {.max_bytes = 1u << 30, .max_cpu_ns = 60000000000u, .chacha = 1};
    int r = as_mem_search(s, pid, &o, &st);
    CHECK(r == 0);
    if (r == 0) {
        CHECK(st.end == AS_MEM_DONE && st.s.secrets == 3 && st.present < (50u << 20) && st.mapped > (60u << 20));
        for (int i = 0; i < 3; i++)
            CHECK(has(s, AS_MS_SECRET, i, secret[i], SECRET[i]));
        struct as_secret rec[8];
        size_t n = as_mem_records(s, 7, 8, 0, rec, 8);
        CHECK(n == 3 && as_mem_records(s, 7, 8, 0, NULL, 0) == 3 && as_mem_records(s, 7, 8, 0, rec, 2) == 2);
        for (size_t i = 0; i < n; i++) {
            CHECK(rec[i].h.kind == AS_K_SECRET && rec[i].h.len == sizeof rec[i] && rec[i].h.tgid == 7 && rec[i].uid == 8);
            CHECK(rec[i].stack == AS_STACK_MEMORY && rec[i].label_len == 14 && !memcmp(rec[i].label, "TRAFFIC_SECRET", 14));
        }
    }
    as_ms_free(s);
    s = as_ms_new();
    o.max_bytes = 1 << 16;
    CHECK(as_mem_search(s, pid, &o, &st) == 0 && st.end == AS_MEM_BYTES && st.present == 1 << 16);
    as_ms_free(s);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    s = as_ms_new();
    CHECK(as_mem_search(s, pid, &o, &st) < 0);
    as_ms_free(s);
    munmap(shared, sizeof secret);
    for (int i = 0; i < 2; i++) {
        close(to[i]);
        close(from[i]);
    }
}

int main(void) {
    process(); /* first: the child has all memory that was used before */
    schedules();
    pairs();
    bounds();
    printf("test_memscan: %lu checks, %lu failures\n", checks, failures);
    return failures != 0;
}

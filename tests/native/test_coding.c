/* SPDX-License-Identifier: MIT
 *
 * Content codings against the libraries that encode them (brotli: bytes made by its reference encoder), whole, byte by byte and cut
 * at every place: what was flushed comes out at once, members and frames follow each other, lists are undone from right to left,
 * damage and caps stop where they should. tests/unit/test_http_core.py adds random bodies in all codings.
 */
#include <zlib.h>
#include <zstd.h>

#include "as_cases.h"
#include "coding.h"

static int failures;

#define CHECK(cond)                                                                                                              \
    do {                                                                                                                         \
        if (!(cond)) {                                                                                                           \
            printf("FAIL %s:%d: %s\n", __FILE__, __LINE__, #cond);                                                               \
            failures++;                                                                                                          \
        }                                                                                                                        \
    } while (0)

typedef struct bytes {
    uint8_t p[200000];
    size_t n;
} bytes;

static void take(void *u, const uint8_t *p, size_t n) {
    bytes *b = u;
    if (b->n + n <= sizeof b->p)
        memcpy(b->p + b->n, p, n);
    b->n += n;
}

static as_dec *open_dec(const char *list, uint64_t max) {
    as_coding_list l = {{0}, 0};
    as_slice v = {(const uint8_t *)list, strlen(list)};
    return as_coding_parse(&l, v) == 0 ? as_dec_new(&l, max) : NULL;
}

/* Decodes in pieces: the first `at` bytes, then the rest in pieces of `step`. */
static int decode(const char *list, const bytes *in, size_t at, size_t step, uint64_t max, bytes *out) {
    as_dec *d = open_dec(list, max);
    int rc = 0;
    out->n = 0;
    for (size_t k = 0; k < in->n;) {
        size_t n = k < at ? at - k : in->n - k < step ? in->n - k : step;
        rc = as_dec_feed(d, guarded(in->p + k, n), n, take, out);
        k += n;
    }
    if (!rc)
        rc = as_dec_end(d);
    as_dec_free(d);
    return rc;
}

static void expect(const char *list, const bytes *in, const void *want, size_t n, int rc, uint64_t max) {
    static bytes out;
    size_t stride = in->n > 2000 ? 211 : 1;
    for (size_t at = 0; at <= in->n; at += stride) {
        int got = decode(list, in, at, in->n + 1, max, &out);
        if (got != rc || out.n != n || memcmp(out.p, want, n) != 0) {
            printf("FAIL %s cut at %zu: status %d (wanted %d), %zu bytes (wanted %zu)\n", list, at, got, rc, out.n, n);
            failures++;
            return;
        }
    }
    int got = decode(list, in, 0, 1, max, &out);
    CHECK(got == rc && out.n == n && memcmp(out.p, want, n) == 0);
}

enum { GZIP = 31, ZLIB = 15, RAW = -15 };

static void deflated(bytes *out, const void *p, size_t n, int bits) { /* appends */
    z_stream z = {0};
    deflateInit2(&z, 6, Z_DEFLATED, bits, 8, Z_DEFAULT_STRATEGY);
    z.next_in = (Bytef *)(uintptr_t)p;
    z.avail_in = (uInt)n;
    z.next_out = out->p + out->n;
    z.avail_out = (uInt)(sizeof out->p - out->n);
    if (deflate(&z, Z_FINISH) != Z_STREAM_END)
        abort();
    out->n += z.total_out;
    deflateEnd(&z);
}

static void zstd(bytes *out, const void *p, size_t n) {
    size_t k = ZSTD_compress(out->p + out->n, sizeof out->p - out->n, p, n, 3);
    if (ZSTD_isError(k))
        abort();
    out->n += k;
}

static const char hello[] = "hello hello hello, world";
#define HN (sizeof hello - 1)
/* made by the reference encoder at quality 11 from the text above */
static const uint8_t hello_br[] = {0x1b, 0x17, 0x0,  0xf8, 0x8d, 0xd4, 0x4e, 0xf9, 0xc3, 0x50, 0x54, 0x65, 0x68, 0xd,
                                   0xc2, 0xc2, 0xf6, 0xa6, 0x26, 0x81, 0xa7, 0xe,  0x30, 0xa1, 0xd5, 0x20, 0x1};

static void test_each(void) {
    static bytes b, c;
    b.n = 0;
    deflated(&b, hello, HN, GZIP);
    expect("gzip", &b, hello, HN, AS_DEC_OK, 1000);
    expect("X-Gzip", &b, hello, HN, AS_DEC_OK, 1000);
    deflated(&b, hello, HN, GZIP); /* a second member */
    expect("gzip", &b, "hello hello hello, worldhello hello hello, world", 2 * HN, AS_DEC_OK, 1000);
    memset(b.p + b.n, 0, 9); /* padding */
    b.n += 9;
    expect("gzip", &b, "hello hello hello, worldhello hello hello, world", 2 * HN, AS_DEC_OK, 1000);
    b.n = 0;
    deflated(&b, hello, HN, ZLIB);
    expect("deflate", &b, hello, HN, AS_DEC_OK, 1000);
    b.n = 0;
    deflated(&b, hello, HN, RAW);
    expect("deflate", &b, hello, HN, AS_DEC_OK, 1000);
    b.n = 0;
    deflated(&b, "", 0, RAW);
    expect("deflate", &b, "", 0, AS_DEC_OK, 1000);
    b.n = 0;
    zstd(&b, hello, HN);
    zstd(&b, hello, HN);
    expect("zstd", &b, "hello hello hello, worldhello hello hello, world", 2 * HN, AS_DEC_OK, 1000);
    memcpy(b.p, hello_br, b.n = sizeof hello_br);
    expect("br", &b, hello, HN, AS_DEC_OK, 1000);
    c.n = 0; /* a list: br was applied first, then gzip */
    deflated(&c, b.p, b.n, GZIP);
    expect("br, identity , gzip", &c, hello, HN, AS_DEC_OK, 1000);
    b.n = 0;
    expect("gzip", &b, "", 0, AS_DEC_OK, 1000); /* no body at all is no error */
}

static void test_damage(void) {
    static bytes b;
    b.n = 0;
    deflated(&b, hello, HN, GZIP);
    b.n -= 8; /* the checksum is missing */
    expect("gzip", &b, hello, HN, AS_DEC_ERROR, 1000);
    b.n = 0;
    deflated(&b, hello, HN, GZIP);
    b.p[b.n - 8] ^= 1; /* the checksum is wrong */
    expect("gzip", &b, hello, HN, AS_DEC_ERROR, 1000);
    b.n = 0;
    zstd(&b, hello, HN);
    b.n--;
    expect("zstd", &b, "", 0, AS_DEC_ERROR, 1000);
    memcpy(b.p, hello, b.n = HN); /* not coded at all */
    expect("gzip", &b, "", 0, AS_DEC_ERROR, 1000);
    expect("zstd", &b, "", 0, AS_DEC_ERROR, 1000);
    memcpy(b.p, hello_br, b.n = sizeof hello_br - 1);
    static bytes out;
    CHECK(decode("br", &b, 0, 1, 1000, &out) == AS_DEC_ERROR);
}

static void test_caps(void) {
    static bytes b, big;
    memset(big.p, 'x', big.n = 100000);
    b.n = 0;
    deflated(&b, big.p, big.n, GZIP);
    expect("gzip", &b, big.p, big.n, AS_DEC_OK, 100000);
    expect("gzip", &b, big.p, 99999, AS_DEC_LIMIT, 99999);
    b.n = 0;
    zstd(&b, big.p, big.n);
    expect("zstd", &b, big.p, 12345, AS_DEC_LIMIT, 12345);
    /* a window above 8 MiB (RFC 9659) is refused before its memory is taken */
    static const uint8_t wide[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x70, 0x01, 0x00, 0x00};
    memcpy(b.p, wide, b.n = sizeof wide);
    expect("zstd", &b, "", 0, AS_DEC_ERROR, 1000);
}

/* An event that was flushed inside a compressed stream must come out with the bytes that hold it. */
static void test_flushed(void) {
    static bytes in, out;
    z_stream z = {0};
    deflateInit2(&z, 6, Z_DEFLATED, GZIP, 8, Z_DEFAULT_STRATEGY);
    as_dec *d = open_dec("gzip", 1000000);
    size_t want = 0;
    for (int i = 0; i < 50; i++) {
        char ev[64];
        int n = snprintf(ev, sizeof ev, "data: {\"n\":%d}\n\n", i);
        z.next_in = (Bytef *)ev;
        z.avail_in = (uInt)n;
        z.next_out = in.p;
        z.avail_out = sizeof in.p;
        deflate(&z, Z_SYNC_FLUSH);
        want += (size_t)n;
        CHECK(as_dec_feed(d, in.p, sizeof in.p - z.avail_out, take, &out) == AS_DEC_OK);
        CHECK(out.n == want);
    }
    deflateEnd(&z);
    as_dec_free(d);

    ZSTD_CStream *cs = ZSTD_createCStream();
    d = open_dec("zstd", 1000000);
    out.n = want = 0;
    for (int i = 0; i < 50; i++) {
        char ev[64];
        int n = snprintf(ev, sizeof ev, "data: {\"n\":%d}\n\n", i);
        ZSTD_inBuffer ib = {ev, (size_t)n, 0};
        ZSTD_outBuffer ob = {in.p, sizeof in.p, 0};
        ZSTD_compressStream2(cs, &ob, &ib, ZSTD_e_flush);
        want += (size_t)n;
        CHECK(as_dec_feed(d, in.p, ob.pos, take, &out) == AS_DEC_OK);
        CHECK(out.n == want);
    }
    ZSTD_freeCStream(cs);
    as_dec_free(d);
}

static void test_lists(void) {
    static const struct {
        const char *list;
        int rc;
        size_t n;
    } t[] = {{"", 0, 0},       {"identity", 0, 0}, {"gzip", 0, 1},   {" gzip ,,br\t", 0, 2},
             {"rot13", -1, 0}, {"gzip br", -1, 0}, {"gzipp", -1, 0}, {"gzip,gzip,gzip,gzip,gzip", -1, 4}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        as_coding_list l = {{0}, 0};
        CHECK(as_coding_parse(&l, (as_slice){(const uint8_t *)t[i].list, strlen(t[i].list)}) == t[i].rc);
        CHECK(l.n == t[i].n);
    }
}

int main(void) {
    test_each();
    test_damage();
    test_caps();
    test_flushed();
    test_lists();
    printf("test_coding: %d failed\n", failures);
    return failures != 0;
}

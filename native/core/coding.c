/* SPDX-License-Identifier: MIT
 *
 * Content and transfer codings; see coding.h. One stage per coding; each decodes into a small buffer on the stack and hands it to
 * the next stage, so no stage holds more than its library's window.
 */
#include "coding.h"

#include <brotli/decode.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>
#include <zstd.h>

#define OUT_STEP 16384
#define ZSTD_WINDOW_LOG 23 /* RFC 9659: 8 MiB */

typedef struct stage {
    uint8_t kind;
    uint8_t open; /* library state exists */
    uint8_t done; /* the coding's own end was reached */
    uint8_t any;  /* some input was seen */
    uint8_t between; /* gzip: between two members */
    uint8_t have1, b1; /* deflate: the first byte, kept until the second tells zlib from raw */
    uint64_t out;
    z_stream z;
    BrotliDecoderState *br;
    ZSTD_DStream *zs;
} stage;

struct as_dec {
    stage st[AS_CODING_MAX]; /* in the order they are undone */
    size_t n;
    uint64_t max_out;
    int status;
    as_dec_out cb;
    void *u;
};

static const struct {
    const char *name;
    uint8_t kind;
} names[] = {{"gzip", AS_CODING_GZIP}, {"x-gzip", AS_CODING_GZIP}, {"deflate", AS_CODING_DEFLATE},
             {"br", AS_CODING_BR},     {"zstd", AS_CODING_ZSTD},   {"identity", 0}};

int as_coding_parse(as_coding_list *l, as_slice v) {
    size_t i = 0;
    while (i < v.n) {
        while (i < v.n && (v.p[i] == ' ' || v.p[i] == '\t' || v.p[i] == ','))
            i++;
        size_t b = i;
        while (i < v.n && v.p[i] != ',')
            i++;
        size_t e = i;
        while (e > b && (v.p[e - 1] == ' ' || v.p[e - 1] == '\t'))
            e--;
        if (e == b)
            continue;
        size_t k = 0, count = sizeof names / sizeof *names;
        while (k < count && (strlen(names[k].name) != e - b || strncasecmp(names[k].name, (const char *)v.p + b, e - b) != 0))
            k++;
        if (k == count)
            return -1;
        if (names[k].kind) {
            if (l->n >= AS_CODING_MAX)
                return -1;
            l->kind[l->n++] = names[k].kind;
        }
    }
    return 0;
}

static int open_stage(stage *s) {
    switch (s->kind) {
    case AS_CODING_GZIP:
        s->open = inflateInit2(&s->z, 15 + 16) == Z_OK;
        break;
    case AS_CODING_DEFLATE:
        s->open = inflateInit2(&s->z, 15) == Z_OK;
        break;
    case AS_CODING_BR:
        s->br = BrotliDecoderCreateInstance(NULL, NULL, NULL);
        s->open = s->br != NULL;
        break;
    default:
        s->zs = ZSTD_createDStream();
        s->open = s->zs && !ZSTD_isError(ZSTD_DCtx_setParameter(s->zs, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG));
        if (!s->open && s->zs) {
            ZSTD_freeDStream(s->zs);
            s->zs = NULL;
        }
    }
    return s->open;
}

static void close_stage(stage *s) {
    if (!s->open)
        return;
    if (s->kind == AS_CODING_GZIP || s->kind == AS_CODING_DEFLATE)
        inflateEnd(&s->z);
    else if (s->kind == AS_CODING_BR)
        BrotliDecoderDestroyInstance(s->br);
    else
        ZSTD_freeDStream(s->zs);
    s->open = 0;
}

as_dec *as_dec_new(const as_coding_list *l, uint64_t max_out) {
    as_dec *d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->max_out = max_out;
    d->n = l->n;
    for (size_t i = 0; i < l->n; i++) {
        d->st[i].kind = l->kind[l->n - 1 - i];
        if (!open_stage(&d->st[i])) {
            as_dec_free(d);
            return NULL;
        }
    }
    return d;
}

void as_dec_free(as_dec *d) {
    if (!d)
        return;
    for (size_t i = 0; i < d->n; i++)
        close_stage(&d->st[i]);
    free(d);
}

static int push(as_dec *d, size_t i, const uint8_t *p, size_t n);

/* Decoded bytes of stage i go on to the next, up to the cap. */
static int emit(as_dec *d, size_t i, const uint8_t *p, size_t n) {
    stage *s = &d->st[i];
    uint64_t room = d->max_out - s->out;
    size_t k = n > room ? (size_t)room : n;
    int rc = AS_DEC_OK;
    s->out += k;
    if (k) {
        if (i + 1 < d->n)
            rc = push(d, i + 1, p, k);
        else
            d->cb(d->u, p, k);
    }
    return rc ? rc : k < n ? AS_DEC_LIMIT : AS_DEC_OK;
}

static int push_zlib(as_dec *d, size_t i, const uint8_t *p, size_t n) {
    stage *s = &d->st[i];
    uint8_t buf[OUT_STEP];
    int rc = AS_DEC_OK;
    s->z.next_in = (Bytef *)(uintptr_t)p;
    s->z.avail_in = (uInt)n;
    while (!s->done) {
        if (s->between) {
            if (!s->z.avail_in)
                break;
            if (*s->z.next_in != 0x1f) { /* padding or junk behind the last member, as gzip(1) takes it */
                s->done = 1;
                break;
            }
            if (inflateReset(&s->z) != Z_OK)
                return AS_DEC_ERROR;
            s->between = 0;
        }
        s->z.next_out = buf;
        s->z.avail_out = sizeof buf;
        int z = inflate(&s->z, Z_NO_FLUSH);
        size_t got = sizeof buf - s->z.avail_out;
        if (got && (rc = emit(d, i, buf, got)) != AS_DEC_OK)
            return rc;
        if (z == Z_STREAM_END) {
            if (s->kind == AS_CODING_GZIP)
                s->between = 1;
            else
                s->done = 1;
        } else if (z == Z_BUF_ERROR) {
            break; /* wants more input */
        } else if (z != Z_OK) {
            return AS_DEC_ERROR;
        } else if (!s->z.avail_in && s->z.avail_out) {
            break;
        }
    }
    return AS_DEC_OK;
}

/* The two bytes of a zlib header have a check; what fails it is raw deflate. */
static int push_deflate(as_dec *d, size_t i, const uint8_t *p, size_t n) {
    stage *s = &d->st[i];
    if (s->have1 == 2)
        return push_zlib(d, i, p, n);
    if (!s->have1) {
        s->b1 = *p++;
        s->have1 = 1;
        if (!--n)
            return AS_DEC_OK;
    }
    int wrapped = (s->b1 & 0x0f) == 8 && s->b1 >> 4 <= 7 && (s->b1 * 256 + *p) % 31 == 0;
    if (!wrapped && inflateReset2(&s->z, -15) != Z_OK)
        return AS_DEC_ERROR;
    s->have1 = 2;
    uint8_t first = s->b1;
    int rc = push_zlib(d, i, &first, 1);
    return rc ? rc : push_zlib(d, i, p, n);
}

static int push_br(as_dec *d, size_t i, const uint8_t *p, size_t n) {
    stage *s = &d->st[i];
    uint8_t buf[OUT_STEP];
    while (!s->done) {
        uint8_t *out = buf;
        size_t left = sizeof buf;
        BrotliDecoderResult r = BrotliDecoderDecompressStream(s->br, &n, &p, &left, &out, NULL);
        int rc = left < sizeof buf ? emit(d, i, buf, sizeof buf - left) : AS_DEC_OK;
        if (rc)
            return rc;
        if (r == BROTLI_DECODER_RESULT_ERROR)
            return AS_DEC_ERROR;
        if (r == BROTLI_DECODER_RESULT_SUCCESS)
            s->done = 1;
        else if (r == BROTLI_DECODER_RESULT_NEEDS_MORE_INPUT)
            break;
    }
    return AS_DEC_OK;
}

static int push_zstd(as_dec *d, size_t i, const uint8_t *p, size_t n) {
    stage *s = &d->st[i];
    uint8_t buf[OUT_STEP];
    ZSTD_inBuffer in = {p, n, 0};
    int full = 0;
    while (in.pos < in.size || full) {
        ZSTD_outBuffer o = {buf, sizeof buf, 0};
        size_t r = ZSTD_decompressStream(s->zs, &o, &in);
        int rc = o.pos ? emit(d, i, buf, o.pos) : AS_DEC_OK;
        if (rc)
            return rc;
        if (ZSTD_isError(r))
            return AS_DEC_ERROR;
        s->done = r == 0; /* at the end of a frame; another may follow */
        full = o.pos == sizeof buf && r != 0;
    }
    return AS_DEC_OK;
}

static int push(as_dec *d, size_t i, const uint8_t *p, size_t n) {
    stage *s = &d->st[i];
    s->any = 1;
    while (n) { /* zlib counts in 32 bits */
        size_t k = n > (1u << 30) ? 1u << 30 : n;
        int rc = s->kind == AS_CODING_GZIP      ? push_zlib(d, i, p, k)
                 : s->kind == AS_CODING_DEFLATE ? push_deflate(d, i, p, k)
                 : s->kind == AS_CODING_BR      ? push_br(d, i, p, k)
                                                : push_zstd(d, i, p, k);
        if (rc)
            return rc;
        p += k;
        n -= k;
    }
    return AS_DEC_OK;
}

int as_dec_feed(as_dec *d, const uint8_t *p, size_t n, as_dec_out out, void *u) {
    if (d->status || !n)
        return d->status;
    d->cb = out;
    d->u = u;
    if (!d->n)
        out(u, p, n);
    else
        d->status = push(d, 0, p, n);
    return d->status;
}

int as_dec_end(as_dec *d) {
    if (d->status)
        return d->status;
    for (size_t i = 0; i < d->n && !d->status; i++) {
        stage *s = &d->st[i];
        if (s->any && !s->done && !(s->kind == AS_CODING_GZIP && s->between))
            d->status = AS_DEC_ERROR;
    }
    return d->status;
}

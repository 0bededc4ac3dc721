/* SPDX-License-Identifier: MIT
 *
 * AES key schedules in memory (FIPS 197 section 5.2). Of the words of a schedule, w[i] = w[i-nk] ^ w[i-1] holds wherever i is no
 * multiple of nk (and, for AES-256, of 4): two such identities in a row are looked for on vectors, they hold whatever the
 * byte order. What passes is expanded and compared as a whole.
 */
#include "memaes.h"

#include <openssl/crypto.h>
#include <string.h>

static const uint8_t sbox[256] = {
    0x63, 0x7c, 0x77, 0x7b, 0xf2, 0x6b, 0x6f, 0xc5, 0x30, 0x01, 0x67, 0x2b, 0xfe, 0xd7, 0xab, 0x76, 0xca, 0x82, 0xc9, 0x7d,
    0xfa, 0x59, 0x47, 0xf0, 0xad, 0xd4, 0xa2, 0xaf, 0x9c, 0xa4, 0x72, 0xc0, 0xb7, 0xfd, 0x93, 0x26, 0x36, 0x3f, 0xf7, 0xcc,
    0x34, 0xa5, 0xe5, 0xf1, 0x71, 0xd8, 0x31, 0x15, 0x04, 0xc7, 0x23, 0xc3, 0x18, 0x96, 0x05, 0x9a, 0x07, 0x12, 0x80, 0xe2,
    0xeb, 0x27, 0xb2, 0x75, 0x09, 0x83, 0x2c, 0x1a, 0x1b, 0x6e, 0x5a, 0xa0, 0x52, 0x3b, 0xd6, 0xb3, 0x29, 0xe3, 0x2f, 0x84,
    0x53, 0xd1, 0x00, 0xed, 0x20, 0xfc, 0xb1, 0x5b, 0x6a, 0xcb, 0xbe, 0x39, 0x4a, 0x4c, 0x58, 0xcf, 0xd0, 0xef, 0xaa, 0xfb,
    0x43, 0x4d, 0x33, 0x85, 0x45, 0xf9, 0x02, 0x7f, 0x50, 0x3c, 0x9f, 0xa8, 0x51, 0xa3, 0x40, 0x8f, 0x92, 0x9d, 0x38, 0xf5,
    0xbc, 0xb6, 0xda, 0x21, 0x10, 0xff, 0xf3, 0xd2, 0xcd, 0x0c, 0x13, 0xec, 0x5f, 0x97, 0x44, 0x17, 0xc4, 0xa7, 0x7e, 0x3d,
    0x64, 0x5d, 0x19, 0x73, 0x60, 0x81, 0x4f, 0xdc, 0x22, 0x2a, 0x90, 0x88, 0x46, 0xee, 0xb8, 0x14, 0xde, 0x5e, 0x0b, 0xdb,
    0xe0, 0x32, 0x3a, 0x0a, 0x49, 0x06, 0x24, 0x5c, 0xc2, 0xd3, 0xac, 0x62, 0x91, 0x95, 0xe4, 0x79, 0xe7, 0xc8, 0x37, 0x6d,
    0x8d, 0xd5, 0x4e, 0xa9, 0x6c, 0x56, 0xf4, 0xea, 0x65, 0x7a, 0xae, 0x08, 0xba, 0x78, 0x25, 0x2e, 0x1c, 0xa6, 0xb4, 0xc6,
    0xe8, 0xdd, 0x74, 0x1f, 0x4b, 0xbd, 0x8b, 0x8a, 0x70, 0x3e, 0xb5, 0x66, 0x48, 0x03, 0xf6, 0x0e, 0x61, 0x35, 0x57, 0xb9,
    0x86, 0xc1, 0x1d, 0x9e, 0xe1, 0xf8, 0x98, 0x11, 0x69, 0xd9, 0x8e, 0x94, 0x9b, 0x1e, 0x87, 0xe9, 0xce, 0x55, 0x28, 0xdf,
    0x8c, 0xa1, 0x89, 0x0d, 0xbf, 0xe6, 0x42, 0x68, 0x41, 0x99, 0x2d, 0x0f, 0xb0, 0x54, 0xbb, 0x16};

static uint32_t host(const uint8_t *p, int swapped) { /* a word of the schedule as FIPS 197 writes it */
    uint32_t v = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    return swapped ? __builtin_bswap32(v) : v;
}

static uint32_t sub(uint32_t w) {
    return (uint32_t)sbox[w >> 24] << 24 | (uint32_t)sbox[w >> 16 & 255] << 16 | (uint32_t)sbox[w >> 8 & 255] << 8 |
           sbox[w & 255];
}

/* Is p the whole schedule of a key of nk words? */
static int schedule(const uint8_t *p, unsigned nk, int swapped) {
    uint32_t w[60], rcon = 1;
    unsigned n = nk == 4 ? 44 : 60, i = 0;
    for (; i < nk; i++)
        w[i] = host(p + 4 * i, swapped);
    for (; i < n; i++) {
        uint32_t t = w[i - 1];
        if (i % nk == 0) {
            t = sub(t << 8 | t >> 24) ^ rcon << 24;
            rcon = rcon << 1 ^ (rcon & 0x80 ? 0x11b : 0);
        } else if (nk == 8 && i % nk == 4) {
            t = sub(t);
        }
        w[i] = w[i - nk] ^ t;
        if (w[i] != host(p + 4 * i, swapped))
            break;
    }
    OPENSSL_cleanse(w, 4 * (size_t)i);
    return i == n;
}

static uint32_t word(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static void look(uint64_t addr, const uint8_t *p, size_t left, void (*found)(void *, uint64_t, const uint8_t *, size_t),
                 void *u) {
    uint8_t key[32];
    for (unsigned nk = 4; nk <= 8; nk += 4) {
        if (left < (nk == 4 ? 176 : 240) || !word(p + 4 * nk) || (word(p + 4) ^ word(p + 4 * nk)) != word(p + 4 * nk + 4))
            continue;
        for (int swapped = 0; swapped < 2; swapped++) {
            if (!schedule(p, nk, swapped))
                continue;
            for (unsigned i = 0; i < nk; i++) {
                uint32_t w = host(p + 4 * i, swapped);
                for (unsigned b = 0; b < 4; b++)
                    key[4 * i + b] = (uint8_t)(w >> (24 - 8 * b));
            }
            found(u, addr, key, 4 * nk);
            OPENSSL_cleanse(key, sizeof key);
        }
    }
}

typedef uint32_t vec __attribute__((vector_size(16)));
typedef uint64_t half __attribute__((vector_size(16)));

static inline vec load(const uint8_t *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Lanes in which a schedule may begin. In one, w[nk] is no zero; in empty memory it is. */
static inline vec begins(const uint8_t *q) {
    vec w1 = load(q + 4), w2 = load(q + 8), w4 = load(q + 16), w5 = load(q + 20), w8 = load(q + 32), w9 = load(q + 36);
    vec none128 = (w1 ^ w4 ^ w5) | (w2 ^ w5 ^ load(q + 24)), none256 = (w1 ^ w8 ^ w9) | (w2 ^ w9 ^ load(q + 40));
    return (vec)((none128 == 0) & (w4 != 0)) | (vec)((none256 == 0) & (w8 != 0));
}

void as_aes_schedules(uint64_t addr, const uint8_t *p, size_t n, size_t all,
                      void (*found)(void *u, uint64_t addr, const uint8_t *key, size_t len), void *u) {
    size_t at = (size_t)(-addr & 3);
    for (; at < n && at + 176 <= all; at += 32) {
        if (at + 76 <= all) { /* two vectors, and what they look ahead */
            vec hit = begins(p + at) | begins(p + at + 16);
            half h;
            memcpy(&h, &hit, sizeof h);
            if (!(h[0] | h[1]))
                continue;
        }
        for (size_t i = at; i < at + 32 && i < n && i + 176 <= all; i += 4)
            look(addr + i, p + i, all - i, found, u);
    }
}

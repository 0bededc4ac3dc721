/* SPDX-License-Identifier: MIT
 *
 * The number of a record whose connection was joined in mid-stream, for the ciphers that do not simply tell it (as_gcm_seq of
 * tls_crypto.c does for AES-GCM of TLS 1.3). Both searches cost some nanoseconds for each number; what they give is still to be
 * proven by as_aead_open. Sources: RFC 5288 section 3, RFC 5246 section 6.2.3.3, NIST SP 800-38D section 6.4; RFC 8439.
 */
#include <openssl/crypto.h>
#include <string.h>

#include "tls_int.h"

#define TAG 16
#define BITS 22   /* of the record number: this many numbers are searched */
#define BATCH 256 /* AES blocks decrypted at once */

static void put64(uint8_t *p, uint64_t v) {
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (56 - 8 * i));
}

static void xor16(uint8_t *to, const uint8_t *a, const uint8_t *b) {
    for (int i = 0; i < 16; i++)
        to[i] = a[i] ^ b[i];
}

/* The tag of text under nonce 0. text: what encrypts to the ciphertext at hand. */
static int seal(as_crypto *c, const uint8_t aad[13], const uint8_t *text, size_t n, uint8_t *scratch, uint8_t tag[TAG]) {
    static const uint8_t zero[12];
    int k;
    return EVP_EncryptInit_ex2(c->enc, NULL, NULL, zero, NULL) && EVP_EncryptUpdate(c->enc, NULL, &k, aad, 13) &&
           (!n || EVP_EncryptUpdate(c->enc, scratch, &k, text, (int)n)) && EVP_EncryptFinal_ex(c->enc, scratch, &k) > 0 &&
           EVP_CIPHER_CTX_ctrl(c->enc, EVP_CTRL_AEAD_GET_TAG, TAG, tag);
}

/* TLS 1.2 hashes the record number into the tag and sends half of the nonce in the clear. The hash is linear: what each bit of
 * the number adds to it is found once, then each number costs one xor and one AES block, D(K, tag ^ hash) = nonce || 1. */
int as_gcm12_seq(as_crypto *c, const as_suite *s, as_cell *cell, const uint8_t *rec, size_t total, uint8_t *tmp, uint64_t lo,
                 uint64_t hi, uint64_t *seq) {
    static const uint8_t zero[12];
    uint8_t aad[13] = {0}, base[TAG], up[BITS + 1][TAG], blk[32] = {0}, e[32], in[BATCH * 16], out[BATCH * 16 + 16];
    uint8_t text[AS_REC_MAX];
    int k, ok = 0;
    if (s->v13 || s->aead == AS_CHACHA || total < 5 + 8 + TAG || total > 5 + AS_REC_MAX || lo >> BITS)
        return 0;
    size_t n = total - 5 - 8 - TAG;
    const uint8_t *ct = rec + 13;
    memcpy(aad + 8, rec, 3);
    aad[11] = (uint8_t)(n >> 8);
    aad[12] = (uint8_t)n;
    blk[15] = 1;
    if (!EVP_EncryptInit_ex2(c->enc, c->aead[s->aead], cell->key, zero, NULL) ||
        (n && !EVP_EncryptUpdate(c->enc, text, &k, ct, (int)n)) || !seal(c, aad, text, n, tmp, base))
        goto end;
    for (int b = 0; b < BITS; b++) {
        put64(aad, (uint64_t)1 << b);
        if (!seal(c, aad, text, n, tmp, up[b]))
            goto end;
        xor16(up[b], up[b], base);
    }
    EVP_CIPHER *ecb = c->ecb[s->aead == AS_AES256];
    if (!EVP_EncryptInit_ex2(c->block, ecb, cell->key, NULL, NULL) || !EVP_CIPHER_CTX_set_padding(c->block, 0) ||
        !EVP_EncryptUpdate(c->block, e, &k, blk, 16))
        goto end;
    xor16(base, base, e); /* the hash alone */
    xor16(base, base, ct + n);
    for (int b = 0; b < BITS; b++)
        if (lo >> b & 1)
            xor16(base, base, up[b]);
    for (int b = 1; b < BITS; b++) /* what a carry into bit b changes */
        xor16(up[b], up[b], up[b - 1]);
    if (!EVP_DecryptInit_ex2(c->block, ecb, cell->key, NULL, NULL) || !EVP_CIPHER_CTX_set_padding(c->block, 0))
        goto end;
    if (hi >> BITS)
        hi = ((uint64_t)1 << BITS) - 1;
    for (uint64_t at = lo; !ok && at <= hi;) {
        int m = 0;
        for (; m < BATCH && at + (uint64_t)m <= hi; m++) {
            uint64_t next = at + (uint64_t)m + 1;
            memcpy(in + 16 * m, base, 16);
            if (!(next >> BITS))
                xor16(base, base, up[__builtin_ctzll(next)]);
        }
        if (!EVP_DecryptUpdate(c->block, out, &k, in, 16 * m) || k != 16 * m)
            goto end;
        for (int i = 0; i < m && !ok; i++)
            if (!memcmp(out + 16 * i + 4, rec + 5, 8) && !memcmp(out + 16 * i + 12, "\0\0\0\1", 4)) {
                *seq = at + (uint64_t)i;
                memset(cell->iv, 0, sizeof cell->iv);
                memcpy(cell->iv, out + 16 * i, 4);
                cell->suite = s->id;
                ok = 1;
            }
        at += (uint64_t)m;
    }
end:
    OPENSSL_cleanse(text, n);
    return ok;
}

/* ChaCha20-Poly1305 of TLS 1.3: the last byte of a record is its content type. One block of key stream tells whether it may be. */
int as_chacha_seq(as_crypto *c, const as_suite *s, const as_cell *cell, const uint8_t *rec, size_t total, uint64_t lo,
                  uint64_t hi, uint64_t *seq) {
    static const uint8_t zero[64];
    uint8_t iv[16], out[64 + 16];
    int k;
    if (!s->v13 || s->aead != AS_CHACHA || total < 5 + TAG + 1)
        return 0;
    size_t last = total - 5 - TAG - 1, need = last % 64 + 1;
    uint32_t block = (uint32_t)(1 + last / 64);
    for (int i = 0; i < 4; i++)
        iv[i] = (uint8_t)(block >> 8 * i);
    if (!EVP_EncryptInit_ex2(c->stream, c->chacha, cell->key, iv, NULL))
        return 0;
    for (uint64_t at = lo; at <= hi; at++) {
        memcpy(iv + 4, cell->iv, 12);
        for (int i = 0; i < 8; i++)
            iv[8 + i] ^= (uint8_t)(at >> (56 - 8 * i));
        if (!EVP_EncryptInit_ex2(c->stream, NULL, NULL, iv, NULL) || !EVP_EncryptUpdate(c->stream, out, &k, zero, (int)need))
            return 0;
        uint8_t type = out[need - 1] ^ rec[5 + last];
        if (type == 0 || (type >= 21 && type <= 23)) { /* padding, alert, handshake, data */
            *seq = at;
            return 1;
        }
    }
    return 0;
}

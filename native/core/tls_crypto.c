/* SPDX-License-Identifier: MIT
 *
 * Cipher suites, key derivation and AEAD of the TLS record layer, on libcrypto's EVP. Algorithms are fetched once; a record
 * costs one nonce and one pass. Sources: RFC 8446 section 5.2, 5.3, 7.1, 7.2; RFC 5246 section 5, 6.3; RFC 5288; RFC 7905.
 * Nothing here fails on bad bytes: a record that does not open gives -1.
 */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <string.h>

#include "tls_int.h"

#define TAG 16

/* clang-format off */
static const as_suite suites[] = {
    {0x1301, AS_AES128, AS_SHA256, 16, 32, 1}, {0x1302, AS_AES256, AS_SHA384, 32, 48, 1}, {0x1303, AS_CHACHA, AS_SHA256, 32, 32, 1},
    {0xc02b, AS_AES128, AS_SHA256, 16, 32, 0}, {0xc02c, AS_AES256, AS_SHA384, 32, 48, 0}, /* ECDHE-ECDSA */
    {0xc02f, AS_AES128, AS_SHA256, 16, 32, 0}, {0xc030, AS_AES256, AS_SHA384, 32, 48, 0}, /* ECDHE-RSA */
    {0x009c, AS_AES128, AS_SHA256, 16, 32, 0}, {0x009d, AS_AES256, AS_SHA384, 32, 48, 0}, /* RSA */
    {0x009e, AS_AES128, AS_SHA256, 16, 32, 0}, {0x009f, AS_AES256, AS_SHA384, 32, 48, 0}, /* DHE-RSA */
    {0xcca8, AS_CHACHA, AS_SHA256, 32, 32, 0}, {0xcca9, AS_CHACHA, AS_SHA256, 32, 32, 0}, {0xccaa, AS_CHACHA, AS_SHA256, 32, 32, 0},
};
/* clang-format on */

const as_suite *as_suite_find(uint16_t id) {
    for (size_t i = 0; i < sizeof suites / sizeof *suites; i++)
        if (suites[i].id == id)
            return &suites[i];
    return NULL;
}

int as_crypto_init(as_crypto *c) {
    static const char *const names[AS_NAEAD] = {"AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305"};
    static const char *const hash[2] = {"SHA256", "SHA384"};
    int ok = 1;
    memset(c, 0, sizeof *c);
    for (int i = 0; i < AS_NAEAD; i++) {
        c->aead[i] = EVP_CIPHER_fetch(NULL, names[i], NULL);
        c->trial[i].ctx = EVP_CIPHER_CTX_new();
        ok &= c->aead[i] && c->trial[i].ctx;
    }
    c->ecb[0] = EVP_CIPHER_fetch(NULL, "AES-128-ECB", NULL);
    c->ecb[1] = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
    c->chacha = EVP_CIPHER_fetch(NULL, "ChaCha20", NULL);
    c->enc = EVP_CIPHER_CTX_new();
    c->block = EVP_CIPHER_CTX_new();
    c->stream = EVP_CIPHER_CTX_new();
    c->hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    ok &= c->ecb[0] && c->ecb[1] && c->chacha && c->enc && c->block && c->stream && c->hmac;
    for (int i = 0; ok && i < 2; i++) {
        char name[8];
        strcpy(name, hash[i]);
        OSSL_PARAM p[2] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, name, 0), OSSL_PARAM_construct_end()};
        c->mac[i] = EVP_MAC_CTX_new(c->hmac);
        ok = c->mac[i] && EVP_MAC_CTX_set_params(c->mac[i], p);
    }
    if (!ok)
        as_crypto_free(c);
    return ok ? 0 : -1;
}

void as_crypto_free(as_crypto *c) {
    for (int i = 0; i < AS_NAEAD; i++) {
        EVP_CIPHER_free(c->aead[i]);
        as_aead_clear(&c->trial[i]);
    }
    for (int i = 0; i < 2; i++) {
        EVP_CIPHER_free(c->ecb[i]);
        EVP_MAC_CTX_free(c->mac[i]);
    }
    EVP_CIPHER_free(c->chacha);
    EVP_CIPHER_CTX_free(c->stream);
    EVP_CIPHER_CTX_free(c->enc);
    EVP_CIPHER_CTX_free(c->block);
    EVP_MAC_free(c->hmac);
    memset(c, 0, sizeof *c);
}

/* HMAC over up to two parts. out: hash_len bytes. */
static int hmac(as_crypto *c, int hash, const uint8_t *key, size_t klen, const uint8_t *a, size_t an, const uint8_t *b, size_t bn,
                uint8_t *out) {
    size_t n = 0;
    return EVP_MAC_init(c->mac[hash], key, klen, NULL) && EVP_MAC_update(c->mac[hash], a, an) &&
           (!bn || EVP_MAC_update(c->mac[hash], b, bn)) && EVP_MAC_final(c->mac[hash], out, &n, 48);
}

/* HKDF-Expand-Label with an empty context and n <= hash length: one HMAC block. */
static int expand_label(as_crypto *c, const as_suite *s, const uint8_t *secret, const char *label, uint8_t *out, size_t n) {
    uint8_t info[32], t[48];
    size_t l = strlen(label);
    info[0] = 0;
    info[1] = (uint8_t)n;
    info[2] = (uint8_t)(6 + l);
    memcpy(info + 3, "tls13 ", 6);
    memcpy(info + 9, label, l);
    info[9 + l] = 0; /* context */
    info[10 + l] = 1; /* HKDF block counter */
    if (!hmac(c, s->hash, secret, s->hash_len, info, 11 + l, NULL, 0, t))
        return -1;
    memcpy(out, t, n);
    OPENSSL_cleanse(t, sizeof t);
    return 0;
}

int as_derive13(as_crypto *c, const as_suite *s, as_cell *cell) {
    if (cell->suite == s->id)
        return 0;
    cell->suite = 0;
    if (cell->len != s->hash_len || expand_label(c, s, cell->secret, "key", cell->key, s->key_len) ||
        expand_label(c, s, cell->secret, "iv", cell->iv, 12))
        return -1;
    cell->suite = s->id;
    return 0;
}

int as_derive_next13(as_crypto *c, const as_suite *s, const as_cell *from, as_cell *to) {
    /* `to` may be `from` */
    if (from->len != s->hash_len || expand_label(c, s, from->secret, "traffic upd", to->secret, s->hash_len))
        return -1;
    to->len = s->hash_len;
    to->suite = 0;
    return as_derive13(c, s, to);
}

int as_derive12(as_crypto *c, const as_suite *s, const as_cell *master, const uint8_t *cr, const uint8_t *sr, int server,
                as_cell *to) {
    uint8_t seed[13 + 64], a[48], block[48 * 3];
    size_t iv = s->aead == AS_CHACHA ? 12 : 4, need = 2 * (s->key_len + iv), got = 0;
    int ok = master->len == 48;
    memcpy(seed, "key expansion", 13);
    memcpy(seed + 13, sr, 32);
    memcpy(seed + 45, cr, 32);
    ok = ok && hmac(c, s->hash, master->secret, 48, seed, sizeof seed, NULL, 0, a);
    for (; ok && got < need; got += s->hash_len) {
        ok = hmac(c, s->hash, master->secret, 48, a, s->hash_len, seed, sizeof seed, block + got);
        ok = ok && hmac(c, s->hash, master->secret, 48, a, s->hash_len, NULL, 0, a);
    }
    if (ok) {
        memcpy(to->key, block + (server ? s->key_len : 0), s->key_len);
        memcpy(to->iv, block + 2u * s->key_len + (server ? iv : 0), iv);
        to->suite = s->id;
        to->len = 0;
    }
    OPENSSL_cleanse(block, sizeof block);
    OPENSSL_cleanse(a, sizeof a);
    return ok ? 0 : -1;
}

int as_aead_set(as_crypto *c, as_aead *a, const as_suite *s, const as_cell *cell) {
    if (!a->ctx && !(a->ctx = EVP_CIPHER_CTX_new()))
        return -1;
    /* naming the cipher again would rebuild the context */
    EVP_CIPHER *ci = a->suite && a->suite->aead == s->aead ? NULL : c->aead[s->aead];
    a->suite = NULL;
    if (!EVP_DecryptInit_ex2(a->ctx, ci, cell->key, NULL, NULL))
        return -1;
    memcpy(a->iv, cell->iv, 12);
    a->suite = s;
    return 0;
}

void as_aead_clear(as_aead *a) {
    EVP_CIPHER_CTX_free(a->ctx); /* clears the key schedule */
    OPENSSL_cleanse(a, sizeof *a);
    a->ctx = NULL;
    a->suite = NULL;
}

static void nonce_xor(uint8_t nonce[12], const uint8_t iv[12], uint64_t seq) {
    memcpy(nonce, iv, 12);
    for (int i = 0; i < 8; i++)
        nonce[4 + i] ^= (uint8_t)(seq >> (56 - 8 * i));
}

long as_aead_open(as_aead *a, uint64_t seq, const uint8_t *rec, size_t total, uint8_t *out) {
    uint8_t nonce[12], aad12[13];
    const uint8_t *aad = rec, *ct = rec + 5;
    size_t naad = 5, explicit_len = !a->suite->v13 && a->suite->aead != AS_CHACHA ? 8 : 0;
    if (total < 5 + explicit_len + TAG)
        return -1;
    size_t n = total - 5 - explicit_len - TAG;
    int k = 0, end = 0;
    if (explicit_len) {
        memcpy(nonce, a->iv, 4);
        memcpy(nonce + 4, rec + 5, 8);
        ct += 8;
    } else {
        nonce_xor(nonce, a->iv, seq);
    }
    if (!a->suite->v13) {
        for (int i = 0; i < 8; i++)
            aad12[i] = (uint8_t)(seq >> (56 - 8 * i));
        memcpy(aad12 + 8, rec, 3);
        aad12[11] = (uint8_t)(n >> 8);
        aad12[12] = (uint8_t)n;
        aad = aad12;
        naad = sizeof aad12;
    }
    uint8_t tag[TAG]; /* the control call takes a pointer to non-const */
    memcpy(tag, ct + n, TAG);
    if (!EVP_DecryptInit_ex2(a->ctx, NULL, NULL, nonce, NULL) || !EVP_DecryptUpdate(a->ctx, NULL, &k, aad, (int)naad) ||
        (n && !EVP_DecryptUpdate(a->ctx, out, &k, ct, (int)n)) || !EVP_CIPHER_CTX_ctrl(a->ctx, EVP_CTRL_AEAD_SET_TAG, TAG, tag) ||
        EVP_DecryptFinal_ex(a->ctx, out + n, &end) <= 0)
        return -1;
    return (long)n;
}

/* The tag is GHASH(aad, ciphertext) xor E(K, nonce || 1). GHASH is had by sealing, under any nonce, the text that gives this
 * very ciphertext; what remains of the tag is one AES block, and D(K, block) is the nonce itself. */
int as_gcm_seq(as_crypto *c, const as_suite *s, const as_cell *cell, const uint8_t *rec, size_t total, uint8_t *tmp,
               uint64_t *seq) {
    static const uint8_t zero[12];
    uint8_t tag[TAG], blk[16] = {0}, e[32], j0[32];
    int k, ecb = s->aead == AS_AES256;
    if (!s->v13 || s->aead == AS_CHACHA || total < 5 + TAG + 1)
        return 0;
    size_t n = total - 5 - TAG;
    if (!EVP_EncryptInit_ex2(c->enc, c->aead[s->aead], cell->key, zero, NULL) ||
        !EVP_EncryptUpdate(c->enc, tmp, &k, rec + 5, (int)n) || !EVP_EncryptInit_ex2(c->enc, NULL, NULL, zero, NULL) ||
        !EVP_EncryptUpdate(c->enc, NULL, &k, rec, 5) || !EVP_EncryptUpdate(c->enc, tmp, &k, tmp, (int)n) ||
        EVP_EncryptFinal_ex(c->enc, tmp + n, &k) <= 0 || !EVP_CIPHER_CTX_ctrl(c->enc, EVP_CTRL_AEAD_GET_TAG, TAG, tag))
        return 0;
    blk[15] = 1;
    if (!EVP_EncryptInit_ex2(c->block, c->ecb[ecb], cell->key, NULL, NULL) || !EVP_CIPHER_CTX_set_padding(c->block, 0) ||
        !EVP_EncryptUpdate(c->block, e, &k, blk, 16))
        return 0;
    for (int i = 0; i < 16; i++)
        blk[i] = (uint8_t)(e[i] ^ tag[i] ^ rec[5 + n + (size_t)i]);
    if (!EVP_DecryptInit_ex2(c->block, c->ecb[ecb], cell->key, NULL, NULL) || !EVP_CIPHER_CTX_set_padding(c->block, 0) ||
        !EVP_DecryptUpdate(c->block, j0, &k, blk, 16) || k != 16)
        return 0;
    if (memcmp(j0 + 12, "\0\0\0\1", 4) != 0 || memcmp(j0, cell->iv, 4) != 0)
        return 0;
    *seq = as_be64(j0 + 4) ^ as_be64(cell->iv + 4);
    return 1;
}

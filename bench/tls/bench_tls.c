/* SPDX-License-Identifier: MIT
 *
 * What opening TLS records costs: records of one size, made by libssl in memory, go through the record layer as the capture
 * would bring them (16 KB pieces), and, in the same run, through the bare EVP calls that decrypt them. Prints MB/s of
 * plaintext, ns per record and the ratio of both; the best of several rounds each.
 *
 *   bench_tls [SECONDS_PER_CASE]
 */
#define _POSIX_C_SOURCE 200809L
#include <openssl/kdf.h>
#include <openssl/ssl.h>
#include <time.h>

#include "tls_case.h"

#define PIECE 16384

typedef struct wire {
    uint8_t *p;
    size_t n, cap;
} wire;

static char keylog[4096];
static void on_key(const SSL *s, const char *line) {
    (void)s;
    size_t n = strlen(keylog);
    snprintf(keylog + n, sizeof keylog - n, "%s\n", line);
}

static void drain(BIO *from, BIO *to, wire *w) {
    uint8_t b[65536];
    for (int n; (n = BIO_read(from, b, sizeof b)) > 0;) {
        if (w->n + (size_t)n > w->cap)
            w->p = realloc(w->p, w->cap = 2 * (w->n + (size_t)n));
        memcpy(w->p + w->n, b, (size_t)n);
        w->n += (size_t)n;
        if (to)
            BIO_write(to, b, n);
    }
}

static void die(const char *what) {
    fprintf(stderr, "bench_tls: %s\n", what);
    exit(1);
}

/* A connection whose server sends `count` records of `size` bytes. head[f]: both flows' handshake; data: the records. */
static void make(const char *suite, size_t size, size_t count, wire head[2], wire *data) {
    SSL_CTX *c = SSL_CTX_new(TLS_client_method()), *s = SSL_CTX_new(TLS_server_method());
    EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    X509 *crt = X509_new();
    keylog[0] = 0;
    X509_gmtime_adj(X509_getm_notBefore(crt), 0);
    X509_gmtime_adj(X509_getm_notAfter(crt), 3600);
    X509_set_pubkey(crt, key);
    X509_sign(crt, key, EVP_sha256());
    SSL_CTX_use_certificate(s, crt);
    SSL_CTX_use_PrivateKey(s, key);
    SSL_CTX_set_ciphersuites(c, suite);
    SSL_CTX_set_keylog_callback(c, on_key);
    SSL *ssl[2] = {SSL_new(c), SSL_new(s)};
    for (int i = 0; i < 2; i++)
        SSL_set_bio(ssl[i], BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_connect_state(ssl[0]);
    SSL_set_accept_state(ssl[1]);
    for (int i = 0; i < 6; i++) {
        SSL_do_handshake(ssl[i % 2]);
        drain(SSL_get_wbio(ssl[i % 2]), SSL_get_rbio(ssl[1 - i % 2]), &head[i % 2]);
    }
    if (!SSL_is_init_finished(ssl[0]) || !SSL_is_init_finished(ssl[1]))
        die("handshake failed");
    uint8_t *text = malloc(size);
    memset(text, 'x', size);
    for (size_t i = 0; i < count; i++)
        if (SSL_write(ssl[1], text, (int)size) != (int)size)
            die("write failed");
    drain(SSL_get_wbio(ssl[1]), NULL, data);
    free(text);
    SSL_free(ssl[0]);
    SSL_free(ssl[1]);
    SSL_CTX_free(c);
    SSL_CTX_free(s);
    X509_free(crt);
    EVP_PKEY_free(key);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t plain_bytes;
static void on_plain(void *u, int flow, const uint8_t *p, size_t n, const as_meta *m) {
    (void)u, (void)flow, (void)p, (void)m;
    plain_bytes += n;
}
static void on_gap(void *u, int flow, uint64_t n, enum as_tls_reason why, const as_meta *m) {
    (void)u, (void)flow, (void)n, (void)why, (void)m;
    die("a record was not opened");
}

static double ours(const wire head[2], const wire *data) { /* seconds for the records alone */
    static const as_tls_sink sink = {on_plain, on_gap, NULL, NULL};
    as_keyring *k = as_keyring_new(64, 1u << 30);
    as_tls *t = as_tls_new(k, &sink, NULL, NULL);
    as_meta m = {.ts = 1, .tgid = 1, .tid = 1};
    char copy[sizeof keylog];
    strcpy(copy, keylog);
    for (char *line = strtok(copy, "\n"); line; line = strtok(NULL, "\n")) {
        struct as_secret r;
        tc_item i = {.p = (const uint8_t *)line, .n = (uint32_t)strlen(line)};
        if (tc_secret(&i, &r, 1, 1, 7, 0) == 0)
            as_keyring_add(k, &r);
    }
    for (int f = 0; f < 2; f++)
        as_tls_feed(t, f, head[f].p, head[f].n, &m);
    double start = now();
    for (size_t at = 0; at < data->n; at += PIECE)
        as_tls_feed(t, 1, data->p + at, data->n - at < PIECE ? data->n - at : PIECE, &m);
    double took = now() - start;
    as_tls_free(t);
    as_keyring_free(k);
    return took;
}

static void expand(const uint8_t *secret, size_t n, const char *label, uint8_t *out, size_t len) {
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "TLS13-KDF", NULL);
    EVP_KDF_CTX *x = EVP_KDF_CTX_new(kdf);
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    OSSL_PARAM p[] = {OSSL_PARAM_construct_int("mode", &mode),
                      OSSL_PARAM_construct_utf8_string("digest", n == 48 ? "SHA384" : "SHA256", 0),
                      OSSL_PARAM_construct_octet_string("key", (void *)(uintptr_t)secret, n),
                      OSSL_PARAM_construct_octet_string("prefix", "tls13 ", 6),
                      OSSL_PARAM_construct_octet_string("label", (void *)(uintptr_t)label, strlen(label)),
                      OSSL_PARAM_construct_end()};
    if (EVP_KDF_derive(x, out, len, p) <= 0)
        die("TLS13-KDF");
    EVP_KDF_CTX_free(x);
    EVP_KDF_free(kdf);
}

static double bare(const char *cipher, const wire *data, uint64_t first) { /* nothing but the decryption of these records */
    uint8_t secret[64], key[32], iv[12], out[PIECE + 512];
    const char *line = strstr(keylog, "SERVER_TRAFFIC_SECRET_0");
    line += strcspn(line, " ") + 66;
    size_t n = tc_hex(line, strcspn(line, "\n"), secret, sizeof secret);
    EVP_CIPHER *c = EVP_CIPHER_fetch(NULL, cipher, NULL);
    EVP_CIPHER_CTX *x = EVP_CIPHER_CTX_new();
    expand(secret, n, "key", key, (size_t)EVP_CIPHER_get_key_length(c));
    expand(secret, n, "iv", iv, 12);
    EVP_DecryptInit_ex2(x, c, key, NULL, NULL);
    double start = now();
    uint64_t seq = first;
    for (size_t at = 0; at + 5 <= data->n; seq++) {
        uint8_t nonce[12];
        int len = data->p[at + 3] << 8 | data->p[at + 4], k;
        memcpy(nonce, iv, 12);
        for (int i = 0; i < 8; i++)
            nonce[4 + i] ^= (uint8_t)(seq >> (56 - 8 * i));
        if (!EVP_DecryptInit_ex2(x, NULL, NULL, nonce, NULL) || !EVP_DecryptUpdate(x, NULL, &k, data->p + at, 5) ||
            !EVP_DecryptUpdate(x, out, &k, data->p + at + 5, len - 16) ||
            !EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_AEAD_SET_TAG, 16, data->p + at + 5 + len - 16) ||
            EVP_DecryptFinal_ex(x, out + k, &k) <= 0)
            return -1;
        at += 5 + (size_t)len;
    }
    double took = now() - start;
    EVP_CIPHER_CTX_free(x);
    EVP_CIPHER_free(c);
    return took;
}

int main(int argc, char **argv) {
    static const char *const suites[][2] = {{"TLS_AES_128_GCM_SHA256", "AES-128-GCM"},
                                            {"TLS_AES_256_GCM_SHA384", "AES-256-GCM"},
                                            {"TLS_CHACHA20_POLY1305_SHA256", "ChaCha20-Poly1305"}};
    static const size_t sizes[] = {50, 200, 1400, 16384};
    double budget = argc > 1 ? atof(argv[1]) : 1;
    printf("%-18s %6s %12s %10s %12s %10s %6s\n", "cipher", "bytes", "MB/s", "ns/record", "bare MB/s", "ns/record", "ratio");
    for (int s = 0; s < 3; s++)
        for (int z = 0; z < 4; z++) {
            size_t count = 64000000 / (sizes[z] + 400);
            wire head[2] = {{0}}, data = {0};
            make(suites[s][0], sizes[z], count, head, &data);
            uint64_t first = 0; /* tickets take the first numbers */
            while (first < 8 && bare(suites[s][1], &data, first) < 0)
                first++;
            double a = 1e9, b = 1e9, start = now();
            do {
                plain_bytes = 0;
                double x = ours(head, &data), y = bare(suites[s][1], &data, first);
                if (plain_bytes != count * sizes[z] || y < 0)
                    die("not everything was opened");
                a = x < a ? x : a;
                b = y < b ? y : b;
            } while (now() - start < budget);
            double mb = (double)(count * sizes[z]) / 1e6, ns = 1e9 / (double)count;
            printf("%-18s %6zu %12.0f %10.0f %12.0f %10.0f %6.2f\n", suites[s][1], sizes[z], mb / a, a * ns, mb / b, b * ns,
                   b / a);
            for (int i = 0; i < 2; i++)
                free(head[i].p);
            free(data.p);
        }
    return 0;
}

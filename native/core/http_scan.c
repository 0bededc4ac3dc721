/* SPDX-License-Identifier: MIT
 *
 * What could a message begin with, and where? Pure functions on bytes, for a direction that begins in the middle, or behind a hole.
 * A start line found here is only a candidate: http_flow.c takes it when a whole valid head follows.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "http_int.h"

/* A request line can follow directly on the last byte of a body. Where the method begins is then clear only for known ones. */
static const char *const methods[] = {"GET",     "POST",    "PUT",   "DELETE", "PATCH",    "HEAD",
                                      "OPTIONS", "CONNECT", "TRACE", "QUERY",  "PROPFIND", "REPORT"};

static int upper(uint8_t c) {
    return (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
}

static size_t scan_request(const uint8_t *p, size_t n, size_t len, int bol, int crlf) {
    if (len < 14 || memcmp(p + len - 9, " HTTP/1.", 8) != 0 || (p[len - 1] | 1) != '1')
        return n;
    size_t t1 = len - 9, t0 = t1; /* the target is [t0, t1) */
    while (t0 && p[t0 - 1] > ' ' && p[t0 - 1] != 0x7f)
        t0--;
    if (t0 == t1 || t0 < 2 || p[t0 - 1] != ' ')
        return n;
    size_t m1 = t0 - 1, m0 = m1;
    while (m0 && upper(p[m0 - 1]))
        m0--;
    int connect = m1 - m0 >= 7 && !memcmp(p + m1 - 7, "CONNECT", 7);
    if (!connect && p[t0] != '/' && !(p[t0] == '*' && t1 == t0 + 1) && !(t1 - t0 > 7 && !memcmp(p + t0, "http", 4)))
        return n;
    if (bol && !m0 && m1 <= 32)
        return 0;
    if (!crlf)
        return n;
    size_t best = n;
    for (size_t k = 0; k < sizeof methods / sizeof *methods; k++) {
        size_t ml = strlen(methods[k]);
        if (m1 - m0 >= ml && !memcmp(p + m1 - ml, methods[k], ml) && m1 - ml < best)
            best = m1 - ml;
    }
    return best;
}

static size_t scan_response(const uint8_t *p, size_t n, size_t len, int bol, int crlf) {
    as_hmsg m;
    for (size_t i = 0; i + 12 <= len;) {
        const uint8_t *h = memmem(p + i, len - i, "HTTP/1.", 7);
        if (!h)
            break;
        i = (size_t)(h - p);
        if (((bol && !i) || crlf) && (len - i == 12 || (len - i > 12 && h[12] == ' ')) && as_h1_status_line(h, len - i, &m))
            return i;
        i += 7;
    }
    return n;
}

size_t as_scan_line(const uint8_t *p, size_t n, int bol, enum role role, enum role *found) {
    size_t skip = n > HTTP_SCAN_LINE ? n - HTTP_SCAN_LINE : 0; /* so that it does not matter how much of a long line we hold */
    p += skip;
    n -= skip;
    bol = bol && !skip;
    size_t len = as_h1_trim_line(p, n), at = n;
    int crlf = n - len == 2;
    *found = ROLE_REQ;
    if (role != ROLE_RESP)
        at = scan_request(p, n, len, bol, crlf);
    if (at == n && role != ROLE_REQ) {
        *found = ROLE_RESP;
        at = scan_response(p, n, len, bol, crlf);
    }
    return at + skip;
}

int as_scan_chunk_size(const uint8_t *p, size_t n, uint64_t *size) {
    size_t len = as_h1_trim_line(p, n);
    if (n - len != 2 || !len || len > 8)
        return 0;
    uint64_t v = 0;
    for (size_t i = 0; i < len; i++) {
        uint8_t c = p[i], l = c | 0x20;
        if (c >= '0' && c <= '9')
            v = v << 4 | (uint64_t)(c - '0');
        else if (l >= 'a' && l <= 'f')
            v = v << 4 | (uint64_t)(l - 'a' + 10);
        else
            return 0;
    }
    *size = v;
    return 1;
}

static int scan_frame(const uint8_t *p, size_t n) {
    /* length up to the default maximum; a known type whose stream id and length fit it (RFC 9113 sections 4 and 6) */
    if (p[0])
        return START_JUNK;
    if (n < 9)
        return START_MORE;
    uint32_t len = (uint32_t)p[1] << 8 | p[2], type = p[3], flags = p[4];
    uint32_t id = (uint32_t)(p[5] & 0x7f) << 24 | (uint32_t)p[6] << 16 | (uint32_t)p[7] << 8 | p[8];
    int ok = len <= 16384 && !(p[5] & 0x80);
    switch (type) {
    case 0: /* DATA */
        ok = ok && id && !(flags & ~0x09u);
        break;
    case 1: /* HEADERS */
        ok = ok && id && len && !(flags & ~0x2du);
        break;
    case 3: /* RST_STREAM */
        ok = ok && id && len == 4 && !flags;
        break;
    case 4: /* SETTINGS */
        ok = ok && !id && ((len % 6 == 0 && !flags) || (!len && flags == 1));
        break;
    case 6: /* PING */
        ok = ok && !id && len == 8 && !(flags & ~1u);
        break;
    case 8: /* WINDOW_UPDATE */
        ok = ok && len == 4 && !flags;
        break;
    default:
        ok = 0;
    }
    return ok ? START_H2 : START_JUNK;
}

/* A method and a target that no other line protocol sends: an absolute path, "*", an absolute URI, or CONNECT. */
static int sniff_request(const uint8_t *p, size_t n) {
    size_t i = 0;
    while (i < n && i <= 32 && as_h1_tchar(p[i]))
        i++;
    if (i > 32 || !i)
        return 0;
    if (i == n)
        return -1;
    if (p[i] != ' ')
        return 0;
    if (i == 7 && !memcmp(p, "CONNECT", 7))
        return n > 8 ? p[8] > ' ' : -1;
    p += i + 1;
    n -= i + 1;
    if (!n)
        return -1;
    if (*p == '/')
        return 1;
    if (*p == '*') {
        size_t k = n - 1 < 7 ? n - 1 : 7;
        return memcmp(p + 1, " HTTP/1", k) != 0 ? 0 : k == 7 ? 1 : -1;
    }
    for (size_t k = 0; k < 4; k++) {
        if (k == n)
            return -1;
        if ((p[k] | 0x20) != "http"[k])
            return 0;
    }
    return 1;
}

int as_http_sniff(const uint8_t *p, size_t n) {
    while (n && (*p == '\r' || *p == '\n')) {
        p++;
        n--;
    }
    if (!n)
        return -1;
    static const char v[] = "HTTP/1.d ddd";
    size_t k = 0;
    while (k < n && k < 12 && (v[k] == 'd' ? (p[k] >= '0' && p[k] <= '9') : p[k] == (uint8_t)v[k]))
        k++;
    if (k == 12)
        return 1;
    if (k == n)
        return -1;
    return sniff_request(p, n);
}

/* The first bytes of a direction. Decides within 33 bytes. */
int as_scan_start(const uint8_t *p, size_t n) {
    static const uint8_t preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    size_t k = n < 24 ? n : 24;
    if (!n || !memcmp(p, preface, k))
        return k == 24 ? START_H2 : START_MORE;
    if (!p[0])
        return scan_frame(p, n);
    k = n < 5 ? n : 5;
    if (!memcmp(p, "HTTP/", k))
        return k == 5 ? START_RESP : START_MORE;
    for (size_t i = 0; i < n && i <= 32; i++) {
        if (p[i] == ' ')
            return i ? START_REQ : START_JUNK;
        if (!as_h1_tchar(p[i]))
            return START_JUNK;
    }
    return n > 32 ? START_JUNK : START_MORE;
}

/* SPDX-License-Identifier: MIT
 *
 * Start lines, header fields, and what they say about the body (RFC 9112 sections 3 to 6). In: a head's lines as they came. Out:
 * slices into it. Lenient in what is seen, since the peers decide what they accept, and frank about it: what a strict reader
 * would refuse sets AS_HM_FRAMING_ERROR.
 */
#include <stdio.h>
#include <strings.h>

#include "http_int.h"

int as_h1_tchar(uint8_t c) {
    static const uint8_t t[256] = {
        ['!'] = 1, ['#'] = 1, ['$'] = 1, ['%'] = 1, ['&'] = 1, ['\''] = 1, ['*'] = 1, ['+'] = 1, ['-'] = 1, ['.'] = 1, ['^'] = 1,
        ['_'] = 1, ['`'] = 1, ['|'] = 1, ['~'] = 1, ['0'] = 1, ['1'] = 1,  ['2'] = 1, ['3'] = 1, ['4'] = 1, ['5'] = 1, ['6'] = 1,
        ['7'] = 1, ['8'] = 1, ['9'] = 1, ['A'] = 1, ['B'] = 1, ['C'] = 1,  ['D'] = 1, ['E'] = 1, ['F'] = 1, ['G'] = 1, ['H'] = 1,
        ['I'] = 1, ['J'] = 1, ['K'] = 1, ['L'] = 1, ['M'] = 1, ['N'] = 1,  ['O'] = 1, ['P'] = 1, ['Q'] = 1, ['R'] = 1, ['S'] = 1,
        ['T'] = 1, ['U'] = 1, ['V'] = 1, ['W'] = 1, ['X'] = 1, ['Y'] = 1,  ['Z'] = 1, ['a'] = 1, ['b'] = 1, ['c'] = 1, ['d'] = 1,
        ['e'] = 1, ['f'] = 1, ['g'] = 1, ['h'] = 1, ['i'] = 1, ['j'] = 1,  ['k'] = 1, ['l'] = 1, ['m'] = 1, ['n'] = 1, ['o'] = 1,
        ['p'] = 1, ['q'] = 1, ['r'] = 1, ['s'] = 1, ['t'] = 1, ['u'] = 1,  ['v'] = 1, ['w'] = 1, ['x'] = 1, ['y'] = 1, ['z'] = 1};
    return t[c];
}

static int is_digit(uint8_t c) {
    return c >= '0' && c <= '9';
}

static int is_blank(uint8_t c) {
    return c == ' ' || c == '\t';
}

size_t as_h1_trim_line(const uint8_t *p, size_t n) {
    if (n && p[n - 1] == '\n')
        n--;
    if (n && p[n - 1] == '\r')
        n--;
    return n;
}

static int is_version(const uint8_t *p, size_t n) {
    return n == 8 && !memcmp(p, "HTTP/1.", 7) && is_digit(p[7]);
}

/* `p`, `n` without line end. A path or URI may hold spaces, as some clients send and some servers take. */
int as_h1_request_line(const uint8_t *p, size_t n, as_hmsg *m) {
    size_t sp = 0, e = n;
    while (sp < n && as_h1_tchar(p[sp]))
        sp++;
    if (!sp || sp >= n || p[sp] != ' ')
        return 0;
    while (e && is_blank(p[e - 1]))
        e--;
    if (e < sp + 11 || !is_version(p + e - 8, 8) || p[e - 9] != ' ')
        return 0;
    size_t b = sp + 1, t = e - 9;
    while (b < t && p[b] == ' ')
        b++;
    while (t > b && p[t - 1] == ' ')
        t--;
    if (b >= t)
        return 0;
    int spaces = p[b] == '/' || (t - b > 7 && !strncasecmp((const char *)p + b, "http", 4));
    for (size_t i = b; i < t; i++)
        if (p[i] < ' ' || p[i] == 0x7f || (!spaces && p[i] == ' '))
            return 0;
    m->is_request = 1;
    m->first_line = (as_slice){p, n};
    m->method = (as_slice){p, sp};
    m->target = (as_slice){p + b, t - b};
    m->version = (as_slice){p + e - 8, 8};
    return 1;
}

int as_h1_status_line(const uint8_t *p, size_t n, as_hmsg *m) {
    if (n < 12 || !is_version(p, 8) || p[8] != ' ' || p[9] < '1' || p[9] > '9' || !is_digit(p[10]) || !is_digit(p[11]) ||
        (n > 12 && p[12] != ' ') || memchr(p, '\r', n) || memchr(p, 0, n))
        return 0;
    m->is_request = 0;
    m->first_line = (as_slice){p, n};
    m->version = (as_slice){p, 8};
    m->status = (p[9] - '0') * 100 + (p[10] - '0') * 10 + (p[11] - '0');
    m->reason = n > 13 ? (as_slice){p + 13, n - 13} : (as_slice){p + n, 0};
    return 1;
}

int as_h1_field_ok(const uint8_t *p, size_t n) {
    n = as_h1_trim_line(p, n);
    if (!n || memchr(p, 0, n) || memchr(p, '\r', n))
        return 0;
    if (is_blank(*p))
        return 1;
    size_t i = 0;
    while (i < n && as_h1_tchar(p[i]))
        i++;
    return i && i < n && p[i] == ':';
}

int as_h1_proof(const uint8_t *p, size_t n) {
    const uint8_t *lf = memchr(p, '\n', n), *end = p + n;
    as_hmsg m;
    if (!lf || ++lf == end)
        return 0;
    if (as_h1_status_line(p, as_h1_trim_line(p, (size_t)(lf - p)), &m) || lf[-2] == '0' || (lf[-2] == '\r' && lf[-3] == '0'))
        return 1;
    for (; lf && end - lf > 5; lf = memchr(lf, '\n', (size_t)(end - lf)), lf = lf ? lf + 1 : lf)
        if (!strncasecmp((const char *)lf, "host:", 5))
            return 1;
    return 0;
}

int as_h1_framing_field(const uint8_t *p, size_t n) {
    static const char *const names[] = {"content-length", "transfer-encoding", "content-encoding", "content-type", "upgrade"};
    size_t i = 0;
    while (i < n && p[i] != ':')
        i++;
    while (i && is_blank(p[i - 1]))
        i--;
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        if (as_h1_name_is((as_slice){p, i}, names[k]))
            return 1;
    return 0;
}

static as_header *next_header(xmsg *x, size_t at) {
    if (at == x->hv_cap) {
        size_t cap = x->hv_cap ? x->hv_cap * 2 : 32;
        as_header *hv = realloc(x->hv, cap * sizeof *hv);
        if (!hv)
            return NULL;
        x->hv = hv;
        x->hv_cap = cap;
    }
    return &x->hv[at];
}

/* Fields of p[i..n) into x->hv from index `at` on; folds are joined in place. Returns how many. */
static size_t parse_fields(xmsg *x, uint8_t *p, size_t i, size_t n, size_t at) {
    size_t first = at;
    as_header *last = NULL;
    int any = 0; /* a proper field was seen: before it, lines that begin with a blank are dropped (RFC 9112 section 2.2) */
    while (i < n) {
        uint8_t *lf = memchr(p + i, '\n', n - i);
        size_t e = lf ? (size_t)(lf - p) : n, b = i;
        i = e + 1;
        if (e > b && p[e - 1] == '\r')
            e--;
        if (e == b)
            continue;
        if (memchr(p + b, '\r', e - b) || memchr(p + b, 0, e - b))
            x->m.flags |= AS_HM_FRAMING_ERROR;
        if (is_blank(p[b])) {
            while (b < e && is_blank(p[b]))
                b++;
            while (e > b && is_blank(p[e - 1]))
                e--;
            if (last && e > b) { /* the joined value lies before this line, so it can be moved down to it */
                uint8_t *to = (uint8_t *)(uintptr_t)last->value.p + last->value.n;
                if (last->value.n) {
                    *to++ = ' ';
                    last->value.n++;
                }
                memmove(to, p + b, e - b);
                last->value.n += e - b;
            } else if (!last && any) {
                x->m.flags |= AS_HM_FRAMING_ERROR;
            }
            continue;
        }
        any = 1;
        last = NULL;
        uint8_t *colon = memchr(p + b, ':', e - b);
        size_t name = colon ? (size_t)(colon - (p + b)) : 0, raw = name;
        while (name && is_blank(p[b + name - 1]))
            name--;
        if (!name) { /* no colon, or no name */
            x->m.flags |= AS_HM_FRAMING_ERROR;
            continue;
        }
        if (name != raw && x->m.is_request)
            x->m.flags |= AS_HM_FRAMING_ERROR; /* a server must refuse it, a client strips it */
        for (size_t k = 0; k < name; k++)
            if (!as_h1_tchar(p[b + k])) {
                x->m.flags |= AS_HM_FRAMING_ERROR;
                break;
            }
        size_t v = b + raw + 1;
        while (v < e && is_blank(p[v]))
            v++;
        while (e > v && is_blank(p[e - 1]))
            e--;
        as_header *h = next_header(x, at);
        if (!h) {
            x->m.flags |= AS_HM_HEAD_TRUNCATED;
            break;
        }
        *h = (as_header){{p + b, name}, {p + v, e - v}};
        last = h;
        at++;
    }
    return at - first;
}

void as_h1_parse_head(xmsg *x) {
    uint8_t *p = x->head.p, *lf = memchr(p, '\n', x->head.n);
    size_t e = lf ? (size_t)(lf - p) : x->head.n;
    size_t n = as_h1_trim_line(p, lf ? e + 1 : e);
    if (!as_h1_status_line(p, n, &x->m))
        (void)as_h1_request_line(p, n, &x->m); /* one of them is right: the line was tested when it came */
    x->m.n_headers = parse_fields(x, p, e + 1, x->head.n, 0);
    x->m.headers = x->hv;
    x->m.trailers = NULL;
}

void as_h1_parse_trailers(xmsg *x) {
    x->m.n_trailers = parse_fields(x, x->trail.p, 0, x->trail.n, x->m.n_headers);
    x->m.headers = x->hv; /* it may have moved */
    x->m.trailers = x->hv + x->m.n_headers;
}

/* Content-Length: digits, or a list of the same number; 0 when it is anything else or two fields differ. */
static int content_length(as_slice v, int64_t *len) {
    size_t i = 0;
    int any = 0;
    for (;;) {
        while (i < v.n && is_blank(v.p[i]))
            i++;
        uint64_t k = 0;
        size_t b = i;
        for (; i < v.n && is_digit(v.p[i]); i++) {
            if (k > ((uint64_t)INT64_MAX - 9) / 10)
                return 0;
            k = k * 10 + (uint64_t)(v.p[i] - '0');
        }
        if (i == b || (*len >= 0 && (uint64_t)*len != k))
            return 0;
        *len = (int64_t)k;
        any = 1;
        while (i < v.n && is_blank(v.p[i]))
            i++;
        if (i == v.n)
            return any;
        if (v.p[i++] != ',')
            return 0;
    }
}

/* Transfer-Encoding: adds the codings before a final "chunked" to `l`. */
static void transfer_coding(as_slice v, as_coding_list *l, int *seen, int *chunked, int *bad) {
    for (size_t i = 0; i < v.n;) {
        size_t b = i;
        while (i < v.n && v.p[i] != ',')
            i++;
        as_slice t = {v.p + b, i - b};
        i++;
        while (t.n && is_blank(*t.p)) {
            t.p++;
            t.n--;
        }
        const uint8_t *semi = t.n ? memchr(t.p, ';', t.n) : NULL;
        if (semi)
            t.n = (size_t)(semi - t.p);
        while (t.n && is_blank(t.p[t.n - 1]))
            t.n--;
        if (!t.n || as_h1_name_is(t, "identity"))
            continue;
        *seen = 1;
        if (*chunked) /* chunked must be the last, and once */
            *bad = 1;
        if (as_h1_name_is(t, "chunked")) {
            *chunked = 1;
        } else {
            *chunked = 0;
            if (as_coding_parse(l, t) != 0)
                l->n = AS_CODING_MAX + 1; /* unknown: nothing can be undone */
        }
    }
}

static int contains_token(as_slice v, const char *tok) {
    size_t k = strlen(tok);
    for (size_t i = 0; i + k <= v.n; i++)
        if (!strncasecmp((const char *)v.p + i, tok, k) && (!i || !as_h1_tchar(v.p[i - 1])) &&
            (i + k == v.n || !as_h1_tchar(v.p[i + k])))
            return 1;
    return 0;
}

static void add_coding(xmsg *x, as_slice v) {
    as_hmsg *m = &x->m;
    if (!m->coding.n) {
        m->coding = v;
        return;
    }
    char *to = x->ce; /* several fields are one list */
    size_t k = m->coding.n < sizeof x->ce ? m->coding.n : sizeof x->ce;
    memmove(to, m->coding.p, k);
    k += (size_t)snprintf(to + k, sizeof x->ce - k, ", %.*s", (int)(v.n < sizeof x->ce ? v.n : sizeof x->ce), (const char *)v.p);
    m->coding = (as_slice){(const uint8_t *)to, k < sizeof x->ce ? k : sizeof x->ce - 1};
}

/* RFC 9112 section 6.3, in its order. Sets content_length, chunked, is_sse, coding, flags; opens the decoder. */
enum framing as_h1_framing(xmsg *x, const xmsg *req, uint64_t *len) {
    as_hmsg *m = &x->m;
    as_coding_list te = {{0}, 0};
    int te_seen = 0, chunked = 0, te_bad = 0, cl_seen = 0, cl_bad = 0, upgrade = 0, conn_upgrade = 0;
    int64_t cl = -1;
    for (size_t i = 0; i < m->n_headers; i++) {
        as_slice name = m->headers[i].name, v = m->headers[i].value;
        if (name.n < 7 || name.n > 17) /* none of those below */
            continue;
        if (as_h1_name_is(name, "content-length")) {
            cl_seen = 1;
            cl_bad |= !content_length(v, &cl);
        } else if (as_h1_name_is(name, "transfer-encoding")) {
            transfer_coding(v, &te, &te_seen, &chunked, &te_bad);
        } else if (as_h1_name_is(name, "content-encoding")) {
            if (v.n)
                add_coding(x, v);
        } else if (as_h1_name_is(name, "content-type")) {
            as_slice t = v;
            const uint8_t *semi = t.n ? memchr(t.p, ';', t.n) : NULL;
            if (semi)
                t.n = (size_t)(semi - t.p);
            while (t.n && is_blank(t.p[t.n - 1]))
                t.n--;
            m->is_sse = !m->is_request && as_h1_name_is(t, "text/event-stream");
        } else if (as_h1_name_is(name, "connection")) {
            conn_upgrade |= contains_token(v, "upgrade");
        } else if (as_h1_name_is(name, "upgrade")) {
            upgrade = 1;
        }
    }
    m->content_length = cl_bad ? -1 : cl;
    m->chunked = chunked;
    if (m->is_request) {
        x->is_head = as_h1_name_is(m->method, "HEAD");
        x->is_connect = m->method.n == 7 && !memcmp(m->method.p, "CONNECT", 7);
        x->is_upgrade = upgrade && conn_upgrade;
    }
    if (te_seen && cl_seen)
        m->flags |= AS_HM_SMUGGLING;
    if (te_bad || (te_seen && m->version.p[7] == '0') || (cl_bad && !te_seen))
        m->flags |= AS_HM_FRAMING_ERROR;
    if (!m->is_request) {
        if (m->status < 200 || m->status == 204 || m->status == 304 || (req && req->is_head))
            return FR_NONE;
        if (req && req->is_connect && m->status < 300)
            return FR_NONE;
    }
    as_coding_list l = {{0}, 0}; /* content codings first: they were applied first */
    int known = as_coding_parse(&l, m->coding) == 0;
    if (!known)
        l.n = 0;
    m->decoded = known && l.n > 0;
    if (te.n > AS_CODING_MAX || l.n + te.n > AS_CODING_MAX) {
        l.n = 0;
        m->decoded = 0;
    } else {
        for (size_t i = 0; i < te.n; i++)
            l.kind[l.n++] = te.kind[i];
    }
    enum framing fr;
    if (te_seen)
        fr = chunked ? FR_CHUNKED : m->is_request ? FR_BAD : FR_CLOSE;
    else if (cl_bad)
        fr = m->is_request ? FR_BAD : FR_CLOSE;
    else if (cl_seen)
        fr = cl > 0 ? FR_LEN : FR_NONE;
    else
        fr = m->is_request ? FR_NONE : FR_CLOSE;
    *len = fr == FR_LEN ? (uint64_t)cl : 0;
    if (fr == FR_BAD)
        m->flags |= AS_HM_FRAMING_ERROR;
    x->plan = l;
    return fr;
}

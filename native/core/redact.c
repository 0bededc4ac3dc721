/* SPDX-License-Identifier: MIT
 *
 * Two stages. The first looks at three bytes at every second place, case folded, in a table of bits: every literal that a secret
 * must contain (an anchor of at least four bytes) has two windows next to each other, of which one is at an even place. No
 * place depends on the one before, so the processor looks at many at once. The second stage looks at what was found: is the
 * whole anchor there, and does what stands around it look like the secret?
 */
#include "redact.h"

#include <string.h>

#define BITS 17
#define BIT(h) ((h) >> 5)
#define SLOTS 1024
#define MAX_WINDOWS 1024
#define MAX_ANCHORS 64

typedef struct {
    const char *s; /* folded: letters lower case */
    uint8_t n;
    uint8_t kind; /* AS_R_* */
} anchor;

typedef struct {
    uint32_t win;
    uint8_t anchor, back; /* offset of the window in the anchor */
    uint16_t next;        /* in its slot; 0 ends */
} window;

static uint32_t bitmap[(1u << BITS) / 32];
static anchor anchors[MAX_ANCHORS];
static window windows[MAX_WINDOWS];
static uint16_t slots[SLOTS];
static unsigned n_anchors, n_windows = 1;
static uint8_t class_of[256];

#define C_ALNUM 1
#define C_KEY 2   /* letters, digits, - and _ */
#define C_SPACE 4 /* what \s takes of ASCII */
#define C_TOKEN 8 /* RFC 6750 b64token */

static inline int is(uint8_t c, int what) {
    return class_of[c] & what;
}

static inline uint32_t fold3(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, 4); /* the fourth byte is shifted out, whichever end it is at */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (w | 0x20202020u) & 0xffffffu;
#else
    return (__builtin_bswap32(w) | 0x20202020u) & 0xffffffu;
#endif
}

static inline uint32_t fold3_last(const uint8_t *p) {
    return (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16) | 0x202020u;
}

static inline uint32_t hash(uint32_t w) {
    return (w * 0x9E3779B1u) >> (32 - BITS);
}
static inline uint32_t slot(uint32_t w) {
    return (w * 0x85EBCA6Bu) >> 22;
}

/* ---- tables ---- */

static void add_window(unsigned a, const uint8_t *s, unsigned back) {
    uint32_t w = fold3_last(s), h = hash(w), t = slot(w);
    for (unsigned i = slots[t]; i; i = windows[i].next)
        if (windows[i].win == w && windows[i].anchor == a && windows[i].back == back)
            return;
    if (n_windows == MAX_WINDOWS)
        __builtin_trap(); /* the tables are constant: a test would show it */
    bitmap[BIT(h)] |= 1u << (h & 31);
    windows[n_windows] = (window){w, (uint8_t)a, (uint8_t)back, slots[t]};
    slots[t] = (uint16_t)n_windows++;
}

static unsigned add_anchor(const char *s, int kind) {
    if (n_anchors == MAX_ANCHORS)
        __builtin_trap();
    anchors[n_anchors] = (anchor){s, (uint8_t)strlen(s), (uint8_t)kind};
    return n_anchors++;
}

/* an anchor of at least four bytes; `at`: which two windows, chosen for being rare */
static void literal(const char *s, int kind, unsigned at) {
    unsigned a = add_anchor(s, kind);
    add_window(a, (const uint8_t *)s + at, at);
    add_window(a, (const uint8_t *)s + at + 1, at + 1);
}

/* an anchor of three bytes, and what may follow it */
static void followed(const char *s, int kind, int class, const char *others) {
    unsigned a = add_anchor(s, kind);
    uint8_t t[3] = {(uint8_t)s[1], (uint8_t)s[2], 0};
    add_window(a, (const uint8_t *)s, 0);
    for (int c = 1; c < 256; c++) {
        t[2] = (uint8_t)c;
        if (is(t[2], class) || (others && strchr(others, c)))
            add_window(a, t, 1);
    }
}

static const char AFTER_NAME[] = "=:\"'\\ \t\r\n\f\v";

void as_redact_init(void) {
    if (n_anchors)
        return;
    for (int c = 0; c < 256; c++) {
        int alnum = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        class_of[c] = (uint8_t)((alnum ? C_ALNUM | C_KEY | C_TOKEN : 0) | (c == '-' || c == '_' ? C_KEY : 0) |
                                ((c >= 9 && c <= 13) || c == ' ' ? C_SPACE : 0) | (c && strchr("-._~+/=", c) ? C_TOKEN : 0));
    }
    followed("sk-", AS_R_OPENAI, C_KEY, NULL);
    literal("k_live_", AS_R_STRIPE, 0);
    literal("k_test_", AS_R_STRIPE, 0);
    literal("ghp_", AS_R_GITHUB, 0);
    literal("gho_", AS_R_GITHUB, 0);
    literal("ghu_", AS_R_GITHUB, 0);
    literal("ghs_", AS_R_GITHUB, 0);
    literal("ghr_", AS_R_GITHUB, 0);
    literal("github_pat_", AS_R_GITHUB, 5);
    literal("akia", AS_R_AWS, 0);
    literal("asia", AS_R_AWS, 0);
    literal("aiza", AS_R_GOOGLE, 0);
    literal("ya29.", AS_R_GOOGLE, 0);
    followed("xox", AS_R_SLACK, 0, "abeoprs");
    literal("glpat-", AS_R_GITLAB, 0);
    followed("hf_", AS_R_HUGGINGFACE, C_ALNUM, NULL);
    literal("npm_", AS_R_NPM, 0);
    followed("eyj", AS_R_JWT, C_KEY, NULL);
    literal("bearer", AS_R_BEARER, 0);
    literal("-----begin ", AS_R_PEM, 3);
    unsigned url = add_anchor("://", AS_R_URL);
    add_window(url, (const uint8_t *)"://", 0);
    for (int c = 1; c < 256; c++) /* a scheme ends before it: the window begins one byte earlier */
        if (is((uint8_t)c, C_ALNUM) || strchr("+.-", c))
            add_window(url, (const uint8_t[3]){(uint8_t)c, ':', '/'}, 255);
    literal("authorization", AS_R_NAMED, 6);
    literal("cookie", AS_R_NAMED, 2);
    literal("token", AS_R_NAMED, 0);
    literal("secret", AS_R_NAMED, 0);
    literal("password", AS_R_NAMED, 2);
    literal("passwd", AS_R_NAMED, 2);
    literal("passphrase", AS_R_NAMED, 2);
    literal("credential", AS_R_NAMED, 3);
    literal("signature", AS_R_NAMED, 1);
    followed("key", AS_R_NAMED, 0, AFTER_NAME);
    followed("sig", AS_R_NAMED, 0, AFTER_NAME);
    followed("pwd", AS_R_NAMED, 0, AFTER_NAME);
    literal("auth=", AS_R_NAMED, 1);
}

/* ---- second stage: `p` to `end` is what stands behind the anchor ---- */

static size_t run(const uint8_t *p, const uint8_t *end, int class, size_t max) {
    size_t n = 0;
    while (p + n < end && n < max && is(p[n], class))
        n++;
    return n;
}

static uint32_t sk(const uint8_t *p, const uint8_t *end) {
    static const char *const known[] = {"proj-", "svcacct-", "admin-", "None-", "or-v1-"};
    size_t n = run(p, end, C_KEY, 24);
    if (n < 12)
        return 0;
    if (!memcmp(p, "ant-", 4))
        return 1u << AS_R_ANTHROPIC;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (n >= strlen(known[i]) && !memcmp(p, known[i], strlen(known[i])))
            return 1u << AS_R_OPENAI;
    return run(p, end, C_ALNUM, 16) == 16 ? 1u << AS_R_OPENAI : 0;
}

/* a dot must end the first part; long runs without one (pictures in base64) are passed once only, see `skip` */
static uint32_t jwt(const uint8_t *p, const uint8_t *end, const uint8_t **skip) {
    if (p < *skip)
        return 0;
    size_t n = run(p, end, C_KEY, (size_t)-1);
    if (p + n >= end || p[n] != '.') {
        *skip = p + n;
        return 0;
    }
    return n >= 8 && run(p + n + 1, end, C_KEY, 8) == 8 ? 1u << AS_R_JWT : 0;
}

static uint32_t bearer(const uint8_t *p, const uint8_t *end) {
    const uint8_t *q = p;
    int plus = 0; /* a blank of a form, and a character of tokens as well */
    for (; q < end && (*q == ' ' || *q == '\t' || *q == '+'); q++)
        plus |= *q == '+';
    if (end - q > 3 && q[0] == '%' && q[1] == '2' && q[2] == '0')
        q += 3;
    return q > p && (plus || run(q, end, C_TOKEN, 16) == 16) ? 1u << AS_R_BEARER : 0;
}

static uint32_t url(const uint8_t *p, const uint8_t *end) {
    int colon = 0;
    for (size_t n = 0; p < end && n < 1024; p++, n++) {
        uint8_t c = *p;
        if (c == '@' && colon)
            return 1u << AS_R_URL;
        if (c == ':') {
            static const char done[] = "[REDACTED:url-password]@"; /* found before */
            if (!colon && (size_t)(end - p) > sizeof done - 1 && !memcmp(p + 1, done, sizeof done - 1))
                return 0;
            colon = 1;
        } else if (is(c, C_SPACE) || c == '/' || c == '?' || c == '#' || c == '"' || c == '\'' || c == '\\' || c == '<' ||
                   c == '>' || c == '@')
            return 0;
    }
    return 0;
}

/* ---- names with values ---- */

static int ends_with(const uint8_t *start, const uint8_t *p, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(p - start) < n)
        return 0;
    for (size_t i = 0; i < n; i++)
        if ((p[i - n] | 0x20) != (uint8_t)word[i])
            return 0;
    return 1;
}

/* a key is a secret if it is said to be one of those */
static int qualified(const uint8_t *start, const uint8_t *name) {
    static const char *const words[] = {"api",        "access", "secret",  "private", "auth",   "subscription", "signing",
                                        "encryption", "client", "account", "storage", "master", "functions",    "service"};
    if (name > start && (name[-1] == '-' || name[-1] == '_'))
        name--;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (ends_with(start, name, words[i]))
            return 1;
    return 0;
}

/* What may stand behind a name, up to the value: the sign, quotes and blanks. One case per rule of secrets.py. */
static uint32_t named(const uint8_t *start, const uint8_t *name, const uint8_t *p, const uint8_t *end) {
    const uint32_t yes = 1u << AS_R_NAMED;
    if (p[-1] == '=') /* auth= */
        p--;
    else if (p < end && (*p | 0x20) == 's' && p - name == 10) /* credentials */
        p++;
    if (p < end && is(*p, C_KEY))
        return 0;
    int sign = 0, quote_before = 0, quote_after = 0, blank_after = 0;
    const uint8_t *q = p;
    for (; q < end && q - p < 64; q++) { /* the longest rule: 15 backslashes, a quote, 8 blanks, the sign, and those again */
        int quote = *q == '"' || *q == '\'';
        if (!sign && (*q == ':' || *q == '='))
            sign = *q;
        else if (quote || *q == '\\')
            *(sign ? &quote_after : &quote_before) |= quote ? 3 : 1;
        else if (is(*q, C_SPACE))
            blank_after |= sign;
        else if (!sign || *q != '>')
            break;
    }
    static const char done[] = "[REDACTED";
    if ((size_t)(end - q) >= sizeof done - 1 && !memcmp(q, done, sizeof done - 1))
        return 0;
    const uint8_t *b = name; /* the name from its beginning */
    while (b > start && name - b < 80 && is(b[-1], C_KEY))
        b--;
    if (name - b == 80)
        return yes;
    uint8_t before = b > start ? b[-1] : '\n';
    const uint8_t *first = before == '\\' ? b + 1 : b; /* behind an escape such as \n */
    int option = *first == '-' || *b == '-';
    int key = p - name == 3 && (*name | 0x20) == 'k',
        query_only = p - name == 4 || p - name == 9 || (p - name == 3 && (*name | 0x20) == 's');
    int equals = p < end && *p == '=';
    if (equals && p + 1 < end && strchr("?&;\n%\\", before) && before)
        return yes;
    if (query_only || (key && !qualified(start, name)))
        return 0;
    if (sign && quote_after & 2)
        return yes;
    if (sign == ':' && !quote_before) {
        if (strchr("\n\"'`\\=", before) || option)
            return yes;
        return before == ' ' && b - start >= 2 && (b[-2] == 'H' || b[-2] == 'r') ? yes : 0;
    }
    if (option)
        return sign == ':' ? 0 : yes;
    int upper = p[-1] >= 'A' && p[-1] <= 'Z';
    return equals && !blank_after && !(quote_after) && upper ? yes : 0;
}

static uint32_t check(unsigned a, const uint8_t *start, const uint8_t *at, const uint8_t *end, const uint8_t **skip) {
    const anchor *x = &anchors[a];
    if ((size_t)(end - at) < x->n)
        return 0;
    for (unsigned i = 0; i < x->n; i++) {
        uint8_t c = at[i];
        if ((c >= 'A' && c <= 'Z' ? c | 0x20 : c) != (uint8_t)x->s[i])
            return 0;
    }
    const uint8_t *p = at + x->n;
    switch (x->kind) {
    case AS_R_OPENAI:
        return at[0] == 's' && at[1] == 'k' ? sk(p, end) : 0;
    case AS_R_JWT:
        return at[0] == 'e' && at[2] == 'J' ? jwt(p, end, skip) : 0;
    case AS_R_BEARER:
        return bearer(p, end);
    case AS_R_URL:
        return url(p, end);
    case AS_R_NAMED:
        return named(start, at, p, end);
    case AS_R_AWS:
        return at[0] == 'A' && run(p, end, C_ALNUM, 16) == 16 ? 1u << AS_R_AWS : 0;
    case AS_R_SLACK: /* xox and a letter, then - */
        return end - p > 1 && p[1] == '-' ? 1u << AS_R_SLACK : 0;
    case AS_R_PEM:
        return at[5] == 'B' ? 1u << AS_R_PEM : 0;
    default: /* ten characters of a key at least */
        return run(p, end, C_KEY, 10) == 10 ? 1u << x->kind : 0;
    }
}

typedef struct {
    const uint8_t *start, *end, *skip;
    uint32_t mask;
    size_t *at, max, n; /* where to put the places of names; max 0: nobody asks */
} scan;

static void look(scan *s, uint32_t w, const uint8_t *at) {
    for (unsigned i = slots[slot(w)]; i; i = windows[i].next) {
        const window *x = &windows[i];
        if (x->win != w)
            continue;
        const uint8_t *begin = x->back == 255 ? at + 1 : at - x->back;
        int kind = anchors[x->anchor].kind;
        uint32_t kinds = 1u << kind;
        if (kind == AS_R_OPENAI)
            kinds |= 1u << AS_R_ANTHROPIC;
        if (begin < s->start || ((s->mask & kinds) == kinds && !(s->max && kind == AS_R_NAMED)))
            continue;
        uint32_t found = check(x->anchor, s->start, begin, s->end, &s->skip);
        s->mask |= found;
        if (found >> AS_R_NAMED & 1 && s->max) {
            if (s->n < s->max)
                s->at[s->n] = (size_t)(begin - s->start);
            s->n++;
        }
    }
}

#define HIT(w) (bitmap[BIT(hash(w))] >> (hash(w) & 31))

static void go(scan *s) {
    const uint8_t *p = s->start;
    size_t n = (size_t)(s->end - p), i = 0;
    for (; i + 20 <= n; i += 16) {
        const uint8_t *q = p + i;
        uint32_t any = HIT(fold3(q)) | HIT(fold3(q + 2)) | HIT(fold3(q + 4)) | HIT(fold3(q + 6)) | HIT(fold3(q + 8)) |
                       HIT(fold3(q + 10)) | HIT(fold3(q + 12)) | HIT(fold3(q + 14));
        if (__builtin_expect(any & 1, 0))
            for (int k = 0; k < 16; k += 2)
                if (HIT(fold3(q + k)) & 1)
                    look(s, fold3(q + k), q + k);
    }
    for (; i + 3 <= n; i += 2) {
        uint32_t w = fold3_last(p + i);
        if (HIT(w) & 1)
            look(s, w, p + i);
    }
}

uint32_t as_redact_scan(const uint8_t *p, size_t n) {
    scan s = {.start = p, .end = p + n, .skip = p};
    go(&s);
    return s.mask;
}

size_t as_redact_names(const uint8_t *p, size_t n, size_t *at, size_t max) {
    scan s = {.start = p, .end = p + n, .skip = p, .at = at, .max = max};
    go(&s);
    return s.n;
}

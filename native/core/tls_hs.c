/* SPDX-License-Identifier: MIT
 *
 * Handshake messages of one flow, in the clear or opened: collected over record boundaries, of any split; only those that
 * tell us something are kept whole (RFC 8446 section 4, RFC 5246 section 7.4). What is malformed is passed over in silence:
 * the record layer counts its bytes either way.
 */
#include <stdlib.h>
#include <string.h>

#include "tls_int.h"

#define HS_MAX 65536 /* longer hellos are read as far as this */

enum { M_CLIENT_HELLO = 1, M_SERVER_HELLO = 2, M_END_EARLY = 5, M_ENC_EXT = 8, M_CERT = 11, M_FINISHED = 20, M_KEY_UPDATE = 24 };
enum { X_SNI = 0, X_ALPN = 16, X_PSK = 41, X_EARLY = 42, X_VERSIONS = 43 };

typedef struct cur {
    const uint8_t *p;
    size_t n;
} cur;

static cur take(cur *c, size_t n) {
    cur r = {c->p, n <= c->n ? n : c->n};
    c->p += r.n;
    c->n -= r.n;
    return r;
}
static uint32_t num(cur *c, int width) {
    uint32_t v = 0;
    for (int i = 0; i < width; i++) {
        cur b = take(c, 1);
        v = v << 8 | (b.n ? *b.p : 0);
    }
    return v;
}
static cur vec(cur *c, int width) {
    uint32_t n = num(c, width);
    return take(c, n);
}
static int next_ext(cur *c, uint32_t *type, cur *body) {
    if (c->n < 4)
        return 0;
    *type = num(c, 2);
    *body = vec(c, 2);
    return 1;
}

/* Printable ASCII only: names go into events and onto terminals. */
static void put_text(char *out, size_t cap, size_t *at, cur s) {
    for (size_t i = 0; i < s.n && *at + 1 < cap; i++)
        out[(*at)++] = s.p[i] > 32 && s.p[i] < 127 ? (char)s.p[i] : '?';
    out[*at] = 0;
}

static void read_alpn(as_tls *t, cur x) {
    size_t at = 0;
    cur list = vec(&x, 2);
    put_text(t->info.alpn, sizeof t->info.alpn, &at, vec(&list, 1));
}

/* One flow may have been fed far ahead of the other: the messages that carry the names are waited for. */
void as_tell_handshake(as_tls *t, const as_meta *m, int now) {
    if (t->told)
        return;
    if (!t->info.ts_finished)
        t->info.ts_finished = m->ts;
    if (!now && t->sh_seen && !t->hello_lost && (!t->ch_seen || (t->info.version == 0x0304 && !t->ee_seen && !t->ee_lost)))
        return;
    t->told = 1;
    if (t->sink.handshake)
        t->sink.handshake(t->user, &t->info, m);
}

static void client_hello(as_tls *t, as_flow *f, cur c, const as_meta *m) {
    int me = as_flow_no(t, f);
    uint32_t type;
    cur x;
    if (c.n < 38 || (t->info.client_flow >= 0 && t->info.client_flow != me))
        return;
    t->info.client_flow = me;
    take(&c, 2);
    cur random = take(&c, 32);
    if (!t->ch_seen) {
        memcpy(t->cr, random.p, 32);
        t->have_cr = 1;
        t->gen++;
        t->info.ts_client_hello = m->ts;
    }
    int first = !t->ch_seen;
    t->ch_seen = 1;
    t->changed = 1;
    t->early_offered = 0; /* not in a second hello */
    vec(&c, 1);
    vec(&c, 2);
    vec(&c, 1);
    cur exts = vec(&c, 2);
    while (next_ext(&exts, &type, &x)) {
        if (type == X_SNI) {
            cur list = vec(&x, 2);
            size_t at = 0;
            if (num(&list, 1) == 0)
                put_text(t->info.sni, sizeof t->info.sni, &at, vec(&list, 2));
        } else if (type == X_ALPN) {
            size_t at = 0;
            for (cur list = vec(&x, 2); list.n;) {
                if (at)
                    put_text(t->info.alpn_offered, sizeof t->info.alpn_offered, &at, (cur){(const uint8_t *)",", 1});
                put_text(t->info.alpn_offered, sizeof t->info.alpn_offered, &at, vec(&list, 1));
            }
        } else if (type == X_EARLY) {
            t->early_offered = 1;
        }
    }
    if (first && t->info.ts_finished)
        as_tell_handshake(t, m, 0);
}

static void server_hello(as_tls *t, as_flow *f, cur c) {
    static const uint8_t retry[32] = {0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c,
                                      0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb,
                                      0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c};
    int me = as_flow_no(t, f), psk = 0;
    uint32_t type;
    cur x;
    if (c.n < 38 || t->sh_seen || (t->info.client_flow >= 0 && t->info.client_flow == me))
        return;
    t->info.client_flow = !me;
    uint32_t version = num(&c, 2);
    cur random = take(&c, 32);
    vec(&c, 1);
    uint32_t cipher = num(&c, 2);
    take(&c, 1);
    cur exts = vec(&c, 2);
    while (next_ext(&exts, &type, &x)) {
        if (type == X_VERSIONS)
            version = num(&x, 2);
        else if (type == X_PSK)
            psk = 1;
        else if (type == X_ALPN)
            read_alpn(t, x);
    }
    t->info.version = (uint16_t)version;
    t->info.cipher = (uint16_t)cipher;
    t->suite = as_suite_find((uint16_t)cipher);
    if (t->suite && version != (t->suite->v13 ? 0x0304 : 0x0303))
        t->suite = NULL;
    t->changed = 1;
    if (memcmp(random.p, retry, 32) == 0) {
        t->info.hello_retry = 1;
        t->early_ok = 0;
        return;
    }
    t->sh_seen = 1;
    memcpy(t->sr, random.p, 32);
    t->have_sr = 1;
    t->gen++;
    if (version == 0x0304) {
        t->info.resumed = psk;
        f->phase = t->suite ? AS_P_HS : AS_P_DARK;
    }
}

static void message(as_tls *t, as_flow *f, uint8_t type, cur c, const as_meta *m) {
    uint32_t xt;
    cur x;
    switch (type) {
    case M_CLIENT_HELLO:
        if (f->phase == AS_P_PLAIN)
            client_hello(t, f, c, m);
        break;
    case M_SERVER_HELLO:
        if (f->phase == AS_P_PLAIN)
            server_hello(t, f, c);
        break;
    case M_CERT:
        if (as_role(t, f) == 1)
            t->cert_seen = 1;
        break;
    case M_ENC_EXT:
        if (f->phase != AS_P_HS)
            break;
        if (t->early_ok < 0)
            t->early_ok = 0;
        for (cur exts = vec(&c, 2); next_ext(&exts, &xt, &x);) {
            if (xt == X_ALPN)
                read_alpn(t, x);
            else if (xt == X_EARLY)
                t->early_ok = 1;
        }
        t->info.early_data = t->early_ok == 1 && (t->early_offered || !t->ch_seen);
        t->changed = 1;
        t->ee_seen = 1;
        if (t->info.ts_finished)
            as_tell_handshake(t, m, 0);
        break;
    case M_END_EARLY:
        if (f->phase == AS_P_EARLY) {
            as_drop_key(t, f);
            f->phase = AS_P_HS;
        }
        break;
    case M_FINISHED:
        if (f->phase != AS_P_HS && f->phase != AS_P_ENC12)
            break;
        f->fin = 1;
        if (f->phase == AS_P_HS) {
            as_drop_key(t, f);
            f->phase = AS_P_APP;
        }
        if (t->f[0].fin && t->f[1].fin)
            as_tell_handshake(t, m, 0);
        t->changed = 1;
        break;
    case M_KEY_UPDATE:
        if (f->phase == AS_P_APP && f->have && !f->renewed) {
            f->renewed = 1; /* the record layer changes the key behind this record */
            f->st.key_updates++;
        }
        break;
    default: /* tickets, certificate requests, verifications: nothing to keep */
        break;
    }
}

static int wanted(uint8_t type) {
    return type == M_CLIENT_HELLO || type == M_SERVER_HELLO || type == M_ENC_EXT;
}

void as_hs_reset(as_hs *h) {
    free(h->body);
    memset(h, 0, sizeof *h);
}

void as_hs_feed(as_tls *t, as_flow *f, const uint8_t *p, size_t n, const as_meta *m) {
    as_hs *h = &f->hs;
    while (n || (h->nhead == 4 && h->got == h->len)) {
        if (h->nhead < 4) {
            h->head[h->nhead++] = *p++;
            n--;
            if (h->nhead == 4)
                h->len = (uint32_t)h->head[1] << 16 | as_be16(h->head + 2);
            continue;
        }
        size_t k = h->len - h->got < n ? h->len - h->got : n;
        uint8_t type = h->head[0];
        if (h->got == 0 && k == h->len) { /* whole in this record */
            cur c = {p, k};
            memset(h, 0, sizeof *h);
            p += k;
            n -= k;
            message(t, f, type, c, m);
            continue;
        }
        if (wanted(type) && h->got < HS_MAX) {
            uint32_t keep = h->got + (uint32_t)k < HS_MAX ? h->got + (uint32_t)k : HS_MAX;
            if (keep > h->cap) {
                uint32_t cap = h->len < HS_MAX ? h->len : HS_MAX;
                if (cap > 2 * keep)
                    cap = 2 * keep; /* memory follows the bytes that came, not the length that was claimed */
                uint8_t *b = realloc(h->body, cap);
                if (!b)
                    return;
                h->body = b;
                h->cap = cap;
            }
            memcpy(h->body + h->got, p, keep - h->got);
        }
        h->got += (uint32_t)k;
        p += k;
        n -= k;
        if (h->got == h->len) {
            as_hs done = *h;
            memset(h, 0, sizeof *h);
            cur c = {done.body, !done.body ? 0 : done.len < HS_MAX ? done.len : HS_MAX};
            message(t, f, type, c, m);
            free(done.body);
        }
    }
}

/* SPDX-License-Identifier: MIT
 *
 * A recorded TLS connection as make_tls_cases.py writes it, for the TLS tests, the fuzzer and the benchmark.
 */
#ifndef TLS_CASE_H
#define TLS_CASE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agentsight.h"
#include "tls.h"

enum { IT_DATA = 1, IT_PLAIN = 2, IT_KEY = 3, IT_EXPECT = 4 };

typedef struct tc_item {
    uint8_t kind, flow;
    uint64_t ts;
    uint32_t n;
    const uint8_t *p;
} tc_item;

typedef struct tc_case {
    uint8_t *file, *wire[2], *truth[2];
    size_t size, nitem, nwire[2], ntruth[2];
    tc_item *item;
} tc_case;

static inline int tc_parse(tc_case *c) {
    for (size_t at = 0; at + 14 <= c->size;) {
        tc_item i = {.kind = c->file[at], .flow = c->file[at + 1] & 1, .p = c->file + at + 14};
        memcpy(&i.ts, c->file + at + 2, 8);
        memcpy(&i.n, c->file + at + 10, 4);
        if (i.n > c->size - at - 14)
            return -1;
        at += 14 + i.n;
        c->item = realloc(c->item, (c->nitem + 1) * sizeof *c->item);
        c->item[c->nitem++] = i;
        if (i.kind != IT_DATA && i.kind != IT_PLAIN)
            continue;
        uint8_t **b = i.kind == IT_DATA ? &c->wire[i.flow] : &c->truth[i.flow];
        size_t *n = i.kind == IT_DATA ? &c->nwire[i.flow] : &c->ntruth[i.flow];
        *b = realloc(*b, *n + i.n + 1);
        memcpy(*b + *n, i.p, i.n);
        *n += i.n;
    }
    return 0;
}

static inline int tc_load(tc_case *c, const char *path) {
    memset(c, 0, sizeof *c);
    FILE *f = fopen(path, "rb");
    if (!f)
        return -1;
    fseek(f, 0, SEEK_END);
    c->size = (size_t)ftell(f);
    rewind(f);
    c->file = malloc(c->size + 1);
    int bad = fread(c->file, 1, c->size, f) != c->size;
    fclose(f);
    return bad ? -1 : tc_parse(c);
}

static inline void tc_free(tc_case *c) {
    for (int i = 0; i < 2; i++) {
        free(c->wire[i]);
        free(c->truth[i]);
    }
    free(c->item);
    free(c->file);
}

/* The expected value `name`, or NULL. */
static inline const char *tc_expect(const tc_case *c, const char *name, char out[128]) {
    size_t l = strlen(name);
    for (size_t i = 0; i < c->nitem; i++)
        if (c->item[i].kind == IT_EXPECT && c->item[i].n > l && !memcmp(c->item[i].p, name, l) && c->item[i].p[l] == '=') {
            size_t n = c->item[i].n - l - 1;
            memcpy(out, c->item[i].p + l + 1, n < 127 ? n : 127);
            out[n < 127 ? n : 127] = 0;
            return out;
        }
    return NULL;
}

static inline size_t tc_hex(const char *s, size_t n, uint8_t *out, size_t cap) {
    size_t k = 0;
    for (; k < cap && 2 * k + 1 < n; k++) {
        unsigned v = 0;
        char b[3] = {s[2 * k], s[2 * k + 1], 0};
        if (sscanf(b, "%2x", &v) != 1)
            break;
        out[k] = (uint8_t)v;
    }
    return k;
}

/* A key-log line "LABEL RANDOM SECRET" as a probe's record. */
static inline int tc_secret(const tc_item *i, struct as_secret *r, uint32_t tgid, uint32_t tid, uint64_t arg1, int random) {
    char line[512], label[64], rnd[65], secret[160];
    size_t n = i->n < sizeof line - 1 ? i->n : sizeof line - 1;
    memcpy(line, i->p, n);
    line[n] = 0;
    memset(r, 0, sizeof *r);
    if (sscanf(line, "%63s %64s %159s", label, rnd, secret) != 3 || strlen(label) > AS_LABEL_MAX)
        return -1;
    r->h.len = sizeof *r;
    r->h.kind = AS_K_SECRET;
    r->h.ts = i->ts;
    r->h.tgid = tgid;
    r->h.tid = tid;
    r->arg1 = arg1;
    r->label_len = (uint8_t)strlen(label);
    memcpy(r->label, label, r->label_len);
    r->secret_len = (uint8_t)tc_hex(secret, strlen(secret), r->secret, sizeof r->secret);
    if (random && tc_hex(rnd, strlen(rnd), r->random, 32) == 32)
        r->flags = AS_SEC_HAS_RANDOM;
    return 0;
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * The string cross-reference of elfscan.h: where the labels lie (one pass over what is read-only), where code loads one of their
 * addresses (one pass over what is executable; xref_x86.c, xref_a64.c), what is called behind each such place, and which of the
 * functions so found is whose.
 */
#include "xref_int.h"

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOTES_MAX 256 /* different addresses called behind loads of labels */

typedef struct vote {
    uint64_t va;
    uint32_t labels;
} vote;

static int label_hit(void *ctx, uint32_t id, uint64_t off) {
    xref *x = ctx;
    if (x->n_targets == XREF_TARGETS_MAX) {
        x->full = 1;
        return 1;
    }
    x->targets[x->n_targets++] = (xref_target){off - x->seg->off + x->seg->va, id};
    return 0;
}

static int by_address(const void *a, const void *b) {
    uint64_t x = ((const xref_target *)a)->va, y = ((const xref_target *)b)->va;
    return (x > y) - (x < y);
}

/* Strings lie in segments of their own; old linkers put them beside the code, which is looked at where there is nothing else. */
static int find_labels(xref *x) {
    for (uint32_t executable = 0; executable <= PF_X && !x->n_targets; executable += PF_X) {
        for (uint32_t i = 0; i < x->e->n_seg; i++) {
            x->seg = &x->e->seg[i];
            if ((x->seg->flags & (PF_W | PF_X)) != executable)
                continue;
            int rc = as_elf_find(x->e, x->seg->off, x->seg->filesz, x->pats, x->n_pats, label_hit, x);
            if (rc != AS_ELF_OK)
                return rc;
        }
    }
    qsort(x->targets, x->n_targets, sizeof x->targets[0], by_address);
    return AS_ELF_OK;
}

const xref_target *xref_target_at(const xref *x, uint64_t va) {
    uint32_t lo = 0, hi = x->n_targets;
    if (!hi || va < x->targets[0].va || va > x->targets[hi - 1].va)
        return NULL;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (x->targets[mid].va < va)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < x->n_targets && x->targets[lo].va == va ? &x->targets[lo] : NULL;
}

void xref_add_site(xref *x, uint64_t after, uint32_t pat, int reg) {
    if (x->n_sites < XREF_SITES_MAX)
        x->sites[x->n_sites++] = (xref_site){after, pat, (int8_t)reg};
    else
        x->full = 1;
}

static int find_sites(xref *x) {
    for (uint32_t i = 0; i < x->e->n_seg; i++) {
        const as_elf_seg *s = &x->e->seg[i];
        if (!(s->flags & PF_X))
            continue;
        int rc = x->e->machine == AS_ELF_X86_64 ? xref_x86_sites(x, s) : xref_a64_sites(x, s);
        if (rc != AS_ELF_OK)
            return rc;
    }
    return AS_ELF_OK;
}

/* ---- decision ---- */
static int enough(const as_want *w, uint32_t labels) {
    return (labels & (labels - 1)) != 0 && (labels & w->anchors) != 0;
}

static int fits(const as_want *w, uint32_t labels, int strictly) {
    return enough(w, labels) && (!strictly || ((labels & w->require) == w->require && !(labels & w->never)));
}

static int is_taken(const as_found *out, uint32_t n, uint64_t va) {
    for (uint32_t i = 0; i < n; i++)
        if (out[i].how != AS_HOW_NONE && out[i].va == va)
            return 1;
    return 0;
}

/* Whether a stack that was found has labels of this want: then they say nothing more. */
static int are_explained(const as_want *wants, uint32_t n, const as_found *out, const as_want *w) {
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < wants[i].n_labels && out[i].how != AS_HOW_NONE; k++)
            for (uint32_t j = 0; j < w->n_labels; j++)
                if (!strcmp(wants[i].labels[k], w->labels[j]))
                    return 1;
    return 0;
}

/* The functions that are called behind loads of a want's labels; how many. */
static uint32_t count_votes(xref *x, const as_want *w, uint32_t index, vote *votes, uint32_t *loads) {
    uint32_t n = 0;
    *loads = 0;
    for (uint32_t i = 0; i < x->n_sites; i++) {
        const xref_site *s = &x->sites[i];
        int label = x->label[index][s->pat];
        if (label < 0 || (w->label_reg >= 0 && s->reg != w->label_reg))
            continue;
        ++*loads;
        uint64_t va = x->e->machine == AS_ELF_X86_64 ? xref_x86_next_call(x->e, s->after) : xref_a64_next_call(x->e, s->after);
        if (!va)
            continue;
        uint32_t k = 0;
        while (k < n && votes[k].va != va)
            k++;
        if (k == VOTES_MAX)
            continue;
        if (k == n)
            votes[n++] = (vote){va, 0};
        votes[k].labels |= UINT32_C(1) << label;
    }
    return n;
}

static void decide(xref *x, const as_want *wants, uint32_t n_wants, uint32_t index, int strictly, as_found *all) {
    vote votes[VOTES_MAX];
    uint32_t loads, good = 0, no_start = 0, others = 0;
    as_found *out = &all[index];
    const as_want *w = &wants[index];
    uint32_t n = count_votes(x, w, index, votes, &loads);
    const vote *best = NULL;
    for (uint32_t k = 0; k < n; k++) {
        if (!fits(w, votes[k].labels, strictly))
            continue;
        if (is_taken(all, n_wants, votes[k].va)) {
            others++;
            continue;
        }
        if (!as_elf_is_function(x->e, votes[k].va)) {
            no_start++;
            continue;
        }
        if (best)
            snprintf(out->reason, sizeof out->reason, "two functions take its key-log labels (0x%llx, 0x%llx)",
                     (unsigned long long)best->va, (unsigned long long)votes[k].va);
        best = &votes[k];
        good++;
    }
    if (good == 1) {
        out->how = AS_HOW_XREF;
        out->va = best->va;
        out->off = as_elf_offset(x->e, best->va, PF_X);
        out->agree = best->labels;
    } else if (good == 0 && !strictly) {
        others += (uint32_t)are_explained(wants, n_wants, all, w);
        out->likely = others == 0;
        snprintf(out->reason, sizeof out->reason, "no symbol, and %s",
                 others     ? "its key-log labels are another stack's"
                 : no_start ? "its key-log labels lead to no function's start"
                 : loads    ? "no function is called with two of its key-log labels"
                 : x->full  ? "its key-log labels lie in too many places"
                            : "no code loads its key-log labels as an argument");
    }
}

static uint32_t bits(uint32_t v) {
    uint32_t n = 0;
    for (; v; v &= v - 1)
        n++;
    return n;
}

static int search(xref *x, const as_want *wants, uint32_t n, as_found *out) {
    int rc = find_labels(x);
    if (rc != AS_ELF_OK)
        return rc;
    uint32_t likely = 0;
    for (uint32_t k = 0; k < x->n_targets; k++)
        for (uint32_t i = 0; i < n; i++)
            if (x->label[i][x->targets[k].pat] >= 0)
                out[i].evidence |= UINT32_C(1) << x->label[i][x->targets[k].pat];
    for (uint32_t i = 0; i < n; i++) {
        if (out[i].how != AS_HOW_NONE || !wants[i].n_labels)
            continue;
        out[i].likely = enough(&wants[i], out[i].evidence);
        if (!out[i].likely) {
            snprintf(out[i].reason, sizeof out[i].reason, "no symbol, and %u of its key-log labels", bits(out[i].evidence));
            continue;
        }
        likely++;
        x->regs |= wants[i].label_reg >= 0 ? UINT32_C(1) << wants[i].label_reg : UINT16_MAX;
    }
    if (!likely)
        return AS_ELF_OK;
    rc = find_sites(x);
    /* first what looks like each stack as it is known, then what is left: a compiler may have changed its looks */
    for (int strictly = 1; strictly >= 0 && rc == AS_ELF_OK; strictly--)
        for (uint32_t i = 0; i < n; i++)
            if (out[i].how == AS_HOW_NONE && out[i].likely && !out[i].reason[0])
                decide(x, wants, n, i, strictly, out);
    return rc;
}

/* The pattern of a label, made where it is new; with its NUL, so that a label inside a longer string is none. */
static uint32_t pattern_of(xref *x, const char *label) {
    uint32_t n = (uint32_t)strlen(label) + 1;
    for (uint32_t i = 0; i < x->n_pats; i++)
        if (x->pats[i].n == n && !memcmp(x->pats[i].s, label, n))
            return i;
    x->pats[x->n_pats] = (as_pat){(const uint8_t *)label, n};
    return x->n_pats++;
}

int as_xref(as_elf *e, const as_want *wants, uint32_t n, as_found *out) {
    xref *x = calloc(1, sizeof *x);
    if (!x)
        return AS_ELF_NOMEM;
    x->e = e;
    memset(x->label, -1, sizeof x->label);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < wants[i].n_labels && out[i].how == AS_HOW_NONE; k++)
            x->label[i][pattern_of(x, wants[i].labels[k])] = (int8_t)k;
    int rc = AS_ELF_OK;
    if (x->n_pats)
        rc = search(x, wants, n, out);
    free(x);
    return rc;
}

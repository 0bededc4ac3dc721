/* SPDX-License-Identifier: MIT
 *
 * The string cross-reference of elfscan.h: where the labels lie (one pass over what is not writable), where code holds one of their
 * addresses (one pass over what is executable: every position is compared, as a rip-relative and, in programs with fixed
 * addresses, as an absolute 32-bit word), and what is called behind each such place.
 */
#include "elfscan.h"
#include "x86insn.h"

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TARGETS_MAX 256  /* places where labels lie */
#define SITES_MAX 4096   /* places in the code that hold such an address */
#define VOTES_MAX 256    /* different addresses called behind them */
#define RANGES_MAX 6     /* address ranges compared in the fast loop */
#define RANGE_GAP 0x40000
#define STEPS_MAX 24     /* instructions from a load to its call */
#define FOLLOW_MAX 2     /* unconditional jumps followed on that way */
#define CODE_BEFORE 3    /* bytes before the 32-bit word that are looked at: REX, opcode, ModRM */
#define CODE_WINDOW 160  /* bytes read behind a site */

typedef struct target {
    uint64_t va;
    uint32_t pat; /* index into xref.pats */
} target;

typedef struct site {
    uint64_t after; /* address behind the loading instruction */
    uint32_t pat;
    int8_t reg; /* register loaded */
} site;

typedef struct vote {
    uint64_t va;
    uint32_t labels;
} vote;

typedef struct range {
    uint32_t lo, span; /* addresses modulo 2^32 */
} range;

typedef struct xref {
    as_elf *e;
    as_pat pats[AS_PATS_MAX]; /* each label once, also when several wants have it */
    int8_t label[AS_WANTS_MAX][AS_PATS_MAX]; /* which label of a want a pattern is; -1: none */
    uint32_t n_pats;
    const as_elf_seg *seg; /* that is being searched */
    uint32_t n_targets, n_sites, n_ranges;
    int full; /* more targets or sites than we keep */
    target targets[TARGETS_MAX];
    range ranges[RANGES_MAX];
    site sites[SITES_MAX];
} xref;

static int label_hit(void *ctx, uint32_t id, uint64_t off) {
    xref *x = ctx;
    if (x->n_targets == TARGETS_MAX) {
        x->full = 1;
        return 1;
    }
    x->targets[x->n_targets++] = (target){off - x->seg->off + x->seg->va, id};
    return 0;
}

static int by_address(const void *a, const void *b) {
    uint64_t x = ((const target *)a)->va, y = ((const target *)b)->va;
    return (x > y) - (x < y);
}

static int find_labels(xref *x) {
    for (uint32_t i = 0; i < x->e->n_seg; i++) {
        x->seg = &x->e->seg[i];
        if (x->seg->flags & PF_W)
            continue;
        int rc = as_elf_find(x->e, x->seg->off, x->seg->filesz, x->pats, x->n_pats, label_hit, x);
        if (rc != AS_ELF_OK)
            return rc;
    }
    qsort(x->targets, x->n_targets, sizeof x->targets[0], by_address);
    return AS_ELF_OK;
}

/* Few ranges that hold every target: neighbours are joined, and the last range takes the rest whatever the gap. */
static void make_ranges(xref *x) {
    for (uint32_t i = 0; i < x->n_targets; i++) {
        uint64_t va = x->targets[i].va;
        range *last = x->n_ranges ? &x->ranges[x->n_ranges - 1] : NULL;
        uint64_t gap = i ? va - x->targets[i - 1].va : 0;
        if (last && (gap < RANGE_GAP || (x->n_ranges == RANGES_MAX && last->span + gap < UINT32_MAX)))
            last->span += (uint32_t)gap;
        else if (x->n_ranges < RANGES_MAX)
            x->ranges[x->n_ranges++] = (range){(uint32_t)va, 0};
        else
            x->full = 1;
    }
}

static const target *target_at(const xref *x, uint64_t va) {
    uint32_t lo = 0, hi = x->n_targets;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (x->targets[mid].va < va)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < x->n_targets && x->targets[lo].va == va ? &x->targets[lo] : NULL;
}

static void add_site(xref *x, uint64_t after, uint32_t pat, int reg) {
    if (x->n_sites < SITES_MAX)
        x->sites[x->n_sites++] = (site){after, pat, (int8_t)reg};
    else
        x->full = 1;
}

/* p: a 32-bit word of the code at address va, with CODE_BEFORE bytes before it. Is it the operand of a load of a label? */
static void check_word(xref *x, const uint8_t *p, uint64_t va) {
    uint32_t w;
    memcpy(&w, p, 4);
    const target *t;
    /* lea reg, [rip + disp32]: REX.W 8d ModRM(mod 0, rm 5) */
    if (p[-2] == 0x8d && (p[-1] & 0xc7) == 0x05 && (p[-3] & 0xf8) == 0x48) {
        t = target_at(x, va + 4 + (uint64_t)(int64_t)(int32_t)w);
        if (t)
            add_site(x, va + 4, t->pat, ((p[-1] >> 3) & 7) | (p[-3] & 4 ? 8 : 0));
    }
    if (x->e->type != ET_EXEC)
        return;
    /* mov r32, imm32: b8+r; mov r64, imm32: REX.W c7 /0 */
    int reg = -1;
    if ((p[-1] & 0xf8) == 0xb8)
        reg = (p[-1] & 7) | (p[-2] == 0x41 ? 8 : 0);
    else if ((p[-1] & 0xf8) == 0xc0 && p[-2] == 0xc7 && (p[-3] & 0xfe) == 0x48)
        reg = (p[-1] & 7) | (p[-3] & 1 ? 8 : 0);
    t = reg >= 0 ? target_at(x, w) : NULL;
    if (t)
        add_site(x, va + 4, t->pat, reg);
}

typedef uint32_t v4 __attribute__((vector_size(16)));
typedef uint64_t v2 __attribute__((vector_size(16)));

/* whether the word at any of the 64 positions from p (address va) on lies in a range; reads 67 bytes */
static inline int block_may_hit(const xref *x, const uint8_t *p, uint32_t va, int absolute) {
    v4 hit = {0};
    for (uint32_t r = 0; r < x->n_ranges; r++) {
        uint32_t lo = x->ranges[r].lo, span = x->ranges[r].span, d = va + 4 - lo;
        const v4 spans = {span, span, span, span}, los = {lo, lo, lo, lo};
        for (uint32_t k = 0; k < 64; k += 16) {
            for (uint32_t i = 0; i < 4; i++) {
                v4 w, at = {d + k + i, d + k + i + 4, d + k + i + 8, d + k + i + 12};
                memcpy(&w, p + k + i, sizeof w);
                hit |= (v4)(w + at <= spans);
                if (absolute)
                    hit |= (v4)(w - los <= spans);
            }
        }
    }
    v2 any = (v2)hit;
    return (any[0] | any[1]) != 0;
}

static int find_sites(xref *x, const as_elf_seg *s) {
    as_elf *e = x->e;
    uint8_t *buf = e->window + AS_ELF_PAD - CODE_BEFORE;
    int absolute = e->type == ET_EXEC;
    /* windows start at the word; the bytes before it are read again, those behind it too */
    for (uint64_t done = CODE_BEFORE; done + 4 <= s->filesz;) {
        uint64_t left = s->filesz - done;
        size_t step = left - 3 < AS_ELF_WINDOW - 64 ? (size_t)(left - 3) : AS_ELF_WINDOW - 64, n = step + CODE_BEFORE + 3;
        int rc = as_elf_read(e, buf, n, s->off + done - CODE_BEFORE);
        if (rc != AS_ELF_OK)
            return rc;
        memset(buf + n, 0, AS_ELF_PAD);
        const uint8_t *words = buf + CODE_BEFORE;
        for (size_t p = 0; p < step; p += 64) {
            if (!block_may_hit(x, words + p, (uint32_t)(s->va + done + p), absolute))
                continue;
            for (size_t q = p; q < p + 64 && q < step; q++)
                check_word(x, words + q, s->va + done + q);
        }
        done += step;
    }
    return AS_ELF_OK;
}

/* The address that is called next behind a site, by call or by a jump to the start of another function; 0: none. */
static uint64_t next_call(as_elf *e, uint64_t va) {
    uint8_t code[CODE_WINDOW];
    uint32_t steps = 0;
    for (uint32_t follow = 0; follow <= FOLLOW_MAX; follow++) {
        uint64_t off = as_elf_offset(e, va, PF_X);
        if (off == UINT64_MAX)
            return 0;
        size_t n = e->size - off < sizeof code ? (size_t)(e->size - off) : sizeof code;
        if (as_elf_read(e, code, n, off) != AS_ELF_OK)
            return 0;
        as_x86 insn = {0};
        for (size_t i = 0;; i += insn.len) {
            if (steps++ == STEPS_MAX || !as_x86_decode(code + i, n - i, &insn) || insn.kind == AS_X86_END)
                return 0;
            if (insn.kind == AS_X86_OTHER)
                continue;
            uint64_t to = va + i + insn.len + (uint64_t)(int64_t)insn.rel;
            if (insn.kind == AS_X86_CALL || as_elf_is_function(e, to))
                return to;
            va = to;
            break;
        }
    }
    return 0;
}

static int enough(const as_want *w, uint32_t labels) {
    return (labels & (labels - 1)) != 0 && (labels & w->anchors) != 0;
}

static void decide(xref *x, const as_want *w, uint32_t index, as_found *out) {
    vote votes[VOTES_MAX];
    uint32_t n = 0, loads = 0, good = 0, no_start = 0;
    for (uint32_t i = 0; i < x->n_sites; i++) {
        const site *s = &x->sites[i];
        int label = x->label[index][s->pat];
        if (label < 0 || (w->label_reg >= 0 && s->reg != w->label_reg))
            continue;
        loads++;
        uint64_t va = next_call(x->e, s->after);
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
    const vote *best = NULL;
    for (uint32_t k = 0; k < n; k++) {
        if (!enough(w, votes[k].labels))
            continue;
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
    } else if (good == 0) {
        snprintf(out->reason, sizeof out->reason, "no symbol, and %s",
                 no_start  ? "its key-log labels lead to no function's start"
                 : loads   ? "no function is called with two of its key-log labels"
                 : x->full ? "its key-log labels lie in too many places"
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
        if (out[i].how != AS_HOW_NONE)
            continue;
        if (enough(&wants[i], out[i].evidence))
            likely++;
        else
            snprintf(out[i].reason, sizeof out[i].reason, "no symbol, and %u of its key-log labels", bits(out[i].evidence));
    }
    if (!likely)
        return AS_ELF_OK;
    if (x->e->machine != AS_ELF_X86_64) {
        for (uint32_t i = 0; i < n; i++)
            if (out[i].how == AS_HOW_NONE && !out[i].reason[0])
                snprintf(out[i].reason, sizeof out[i].reason, "no symbol, and key-log labels are traced in x86-64 code only");
        return AS_ELF_OK;
    }
    make_ranges(x);
    for (uint32_t i = 0; i < x->e->n_seg; i++) {
        if (!(x->e->seg[i].flags & PF_X))
            continue;
        rc = find_sites(x, &x->e->seg[i]);
        if (rc != AS_ELF_OK)
            return rc;
    }
    for (uint32_t i = 0; i < n; i++)
        if (out[i].how == AS_HOW_NONE && !out[i].reason[0])
            decide(x, &wants[i], i, &out[i]);
    return AS_ELF_OK;
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
    for (uint32_t i = 0; i < n && rc == AS_ELF_OK; i++)
        if (out[i].how == AS_HOW_NONE && !out[i].reason[0])
            snprintf(out[i].reason, sizeof out[i].reason, "no symbol of that name");
    free(x);
    return rc;
}

/* SPDX-License-Identifier: MIT
 *
 * The error-site rung of elfscan.h, for C code of BoringSSL's family, which reports an error as ERR_put_error(library, 0, reason,
 * file, line): the path of a source file lies in the program even when it is stripped, code loads it as the fourth argument, and
 * beside that the reason as the third. A reason that only one function gives names that function. Line numbers are not looked at:
 * they differ from version to version.
 *
 * From such a place to the function's start: by .eh_frame_hdr; compilers put error paths into a cold part with a frame of its own, then
 * whatever function jumps there is meant; without that table it is the nearest target of a direct call before the place. In
 * each case something must call the start, and instructions decoded from there on must meet the place.
 */
#include "vec16.h"
#include "x86insn.h"
#include "xref_int.h"

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REG_FILE 1             /* rcx: the fourth argument */
#define PATH_BEFORE 200        /* bytes of a path before the part that is known */
#define FUNCTION_MAX 4096      /* bytes from a function's start to its error sites */
#define NEAR (UINT64_C(1) << 20) /* callers are looked for this far around first: one is in the same source file */
#define PLACES_MAX 16
#define STEPS_MAX 16 /* instructions from the load of the path to the call */
#define FOLLOW_MAX 2 /* jumps followed on that way */
#define BEHIND 20    /* bytes before the load in which the reason may be set */

/* ---- where the path lies ---- */
static int path_hit(void *ctx, uint32_t id, uint64_t off) {
    xref *x = ctx;
    uint8_t before[PATH_BEFORE];
    uint64_t va = off - x->seg->off + x->seg->va, room = off - x->seg->off;
    uint32_t n = room < sizeof before ? (uint32_t)room : sizeof before, k = 0;
    if (n && as_elf_read(x->e, before, n, off - n) != AS_ELF_OK)
        n = 0;
    /* The string begins behind a NUL, but what lies before need not be a C string: each place in the run of text is a candidate. */
    while (k < n && before[n - 1 - k] >= 0x20 && before[n - 1 - k] < 0x7f)
        k++;
    for (uint32_t i = 0; i <= k; i++) {
        if (x->n_targets == XREF_TARGETS_MAX) {
            x->full = 1;
            return 1;
        }
        x->targets[x->n_targets++] = (xref_target){va - i, id};
    }
    return 0;
}

static int by_address(const void *a, const void *b) {
    uint64_t x = ((const xref_target *)a)->va, y = ((const xref_target *)b)->va;
    return (x > y) - (x < y);
}

static int find_path(xref *x, const char *file) {
    as_pat pat = {(const uint8_t *)file, (uint32_t)strlen(file) + 1};
    for (uint32_t executable = 0; executable <= PF_X && !x->n_targets; executable += PF_X) {
        for (uint32_t i = 0; i < x->e->n_seg; i++) {
            x->seg = &x->e->seg[i];
            if ((x->seg->flags & (PF_W | PF_X)) != executable)
                continue;
            /* not again through code of programs that have their strings apart, which is nearly all there are */
            if (executable && x->e->n_seg > 2)
                continue;
            int rc = as_elf_find(x->e, x->seg->off, x->seg->filesz, &pat, 1, path_hit, x);
            if (rc != AS_ELF_OK)
                return rc;
        }
    }
    qsort(x->targets, x->n_targets, sizeof x->targets[0], by_address);
    return AS_ELF_OK;
}

/* ---- the reason given at a place ---- */
static size_t code_at(as_elf *e, uint64_t va, uint8_t *buf, size_t size) {
    uint64_t off = as_elf_offset(e, va, PF_X);
    if (off == UINT64_MAX)
        return 0;
    size_t n = e->size - off < size ? (size_t)(e->size - off) : size;
    return as_elf_read(e, buf, n, off) == AS_ELF_OK ? n : 0;
}

/* mov edx, imm32, or push imm8 and pop rdx: the value; -1: neither */
static int64_t loads_edx(const uint8_t *p, size_t n) {
    uint32_t v;
    if (n >= 5 && p[0] == 0xba) {
        memcpy(&v, p + 1, 4);
        return v;
    }
    return n >= 3 && p[0] == 0x6a && p[2] == 0x5a && p[1] < 0x80 ? p[1] : -1;
}

/* The third argument of the call that follows the load which ends at `after`; -1: not known. */
static int64_t reason_at(as_elf *e, uint64_t after) {
    uint8_t code[STEPS_MAX * 15];
    uint64_t va = after;
    int64_t found = -1;
    uint32_t steps = 0;
    int called = 0;
    for (uint32_t follow = 0; follow <= FOLLOW_MAX && !called; follow++) {
        size_t n = code_at(e, va, code, sizeof code);
        as_x86 insn = {0};
        for (size_t i = 0;; i += insn.len) {
            if (steps++ == STEPS_MAX || !as_x86_decode(code + i, n - i, &insn) || insn.kind == AS_X86_END)
                return -1;
            int64_t v = loads_edx(code + i, n - i);
            found = v >= 0 ? v : found;
            called = insn.kind == AS_X86_CALL;
            if (called || insn.kind == AS_X86_JMP) {
                va += i + insn.len + (uint64_t)(int64_t)insn.rel;
                break;
            }
        }
    }
    if (!called || found >= 0)
        return called ? found : -1;
    /* set before the path was: the nearest such bytes */
    size_t n = code_at(e, after - 7 - BEHIND, code, BEHIND);
    for (size_t i = n; i-- > 0 && found < 0;)
        found = loads_edx(code + i, n - i);
    return found;
}

/* ---- who calls, who jumps ---- */
typedef struct refs {
    uint64_t lo, hi; /* targets in question */
    int jumps;       /* jumps (also conditional ones) in place of calls */
    uint32_t n;
    uint64_t from[PLACES_MAX], to[PLACES_MAX];
} refs;

static void check_ref(refs *r, const uint8_t *p, uint64_t va) {
    int32_t rel;
    memcpy(&rel, p + 1, 4);
    uint64_t to = va + 5 + (uint64_t)(int64_t)rel;
    if (to < r->lo || to > r->hi || (va >= r->lo && va <= r->hi && r->jumps))
        return;
    for (uint32_t i = 0; i < r->n; i++)
        if (r->to[i] == to && !r->jumps)
            return;
    if (r->n < PLACES_MAX) {
        r->from[r->n] = va;
        r->to[r->n++] = to;
    }
}

/* Code from lo to hi, of every executable segment. Calls: e8 rel32. Jumps: e9 rel32, 0f 8x rel32. */
static int find_refs(as_elf *e, uint64_t lo, uint64_t hi, refs *r) {
    uint8_t *buf = e->window + AS_ELF_PAD;
    for (uint32_t i = 0; i < e->n_seg; i++) {
        const as_elf_seg *s = &e->seg[i];
        uint64_t end = s->va + s->filesz < hi ? s->va + s->filesz : hi;
        if (!(s->flags & PF_X))
            continue;
        for (uint64_t va = s->va > lo ? s->va : lo; va + 5 <= end;) {
            size_t n = end - va < AS_ELF_WINDOW ? (size_t)(end - va) : AS_ELF_WINDOW;
            int rc = as_elf_read(e, buf, n, s->off + (va - s->va));
            if (rc != AS_ELF_OK)
                return rc;
            memset(buf + n, 0, AS_ELF_PAD);
            for (size_t p = 0; p + 5 <= n; p += 16) {
                const v16 b = load16(buf + p);
                v16 hit = (v16)(b == all16(r->jumps ? 0xe9 : 0xe8));
                if (r->jumps)
                    hit |= (v16)((b & all16(0xf0)) == all16(0x80));
                for (uint32_t m = mask16(hit); m; m &= m - 1) {
                    size_t q = p + (size_t)__builtin_ctz(m);
                    if (q + 5 <= n && (buf[q] == 0xe8 || buf[q] == 0xe9 || (va + q > s->va && q && buf[q - 1] == 0x0f)))
                        check_ref(r, buf + q, va + q);
                }
            }
            va += n == AS_ELF_WINDOW ? n - 8 : n;
        }
    }
    return AS_ELF_OK;
}

/* Whether instructions from `start` on meet `va`. */
static int leads_to(as_elf *e, uint64_t start, uint64_t va) {
    uint8_t code[FUNCTION_MAX + 16];
    if (va < start || va - start > FUNCTION_MAX)
        return 0;
    size_t want = (size_t)(va - start), n = code_at(e, start, code, want + 16), i = 0;
    as_x86 insn;
    while (i < want && as_x86_decode(code + i, n - i, &insn))
        i += insn.len;
    return i == want;
}

static int is_called(as_elf *e, uint64_t start) {
    refs r = {.lo = start, .hi = start};
    int rc = find_refs(e, start > NEAR ? start - NEAR : 0, start + NEAR, &r);
    if (rc == AS_ELF_OK && !r.n)
        rc = find_refs(e, 0, UINT64_MAX, &r);
    return rc == AS_ELF_OK && r.n;
}

/* The start of the one other function that jumps into [start, va]; 0: none, or several. */
static uint64_t hot_part(as_elf *e, uint64_t start, uint64_t va) {
    refs r = {.lo = start, .hi = va, .jumps = 1};
    uint64_t owner = 0;
    if (find_refs(e, 0, UINT64_MAX, &r) != AS_ELF_OK)
        return 0;
    for (uint32_t i = 0; i < r.n; i++) {
        uint64_t f = as_elf_function_at(e, r.from[i]);
        /* what only looks like a jump lies in no instruction of its function */
        if (!f || f == start || !(leads_to(e, f, r.from[i]) || leads_to(e, f, r.from[i] - 1)))
            continue;
        if (owner && owner != f)
            return 0;
        owner = f;
    }
    return owner;
}

/* The start of the function that the code at va belongs to; 0: not known for sure. */
static uint64_t function_of(as_elf *e, uint64_t va) {
    uint64_t start = as_elf_function_at(e, va);
    if (start) {
        if (!leads_to(e, start, va))
            return 0;
        if (is_called(e, start))
            return start;
        start = hot_part(e, start, va);
        return start && is_called(e, start) ? start : 0;
    }
    for (uint64_t room = 128; room <= FUNCTION_MAX && !start; room *= 2) {
        refs r = {.lo = va > room ? va - room : 0, .hi = va};
        if (find_refs(e, va > NEAR ? va - NEAR : 0, va + NEAR, &r) != AS_ELF_OK || r.n == PLACES_MAX)
            return 0;
        for (uint32_t i = 0; i < r.n; i++)
            if (r.to[i] > start && as_elf_is_function(e, r.to[i]) && leads_to(e, r.to[i], va))
                start = r.to[i];
    }
    return start;
}

/* Sites that load the path into one of these registers, and of them those that give the error: functions in *va, how many are not
 * known for sure or of another function in *unsure. */
static int find_function(xref *x, uint32_t regs, uint32_t error, uint64_t *va, uint32_t *unsure) {
    int rc = AS_ELF_OK;
    x->regs = regs;
    x->n_sites = 0;
    for (uint32_t i = 0; i < x->e->n_seg && rc == AS_ELF_OK; i++)
        if (x->e->seg[i].flags & PF_X)
            rc = xref_x86_sites(x, &x->e->seg[i]);
    for (uint32_t i = 0, named = 0; i < x->n_sites && rc == AS_ELF_OK; i++) {
        if (!(regs >> x->sites[i].reg & 1) || reason_at(x->e, x->sites[i].after) != error)
            continue;
        uint64_t start = ++named <= PLACES_MAX ? function_of(x->e, x->sites[i].after) : 0;
        if (!start || (*va && *va != start))
            ++*unsure;
        *va = *va ? *va : start;
    }
    return rc;
}

static int search(xref *x, const as_want *w, as_found *out) {
    int rc = find_path(x, w->file);
    if (rc != AS_ELF_OK)
        return rc;
    if (!x->n_targets) {
        snprintf(out->reason, sizeof out->reason, "no symbol, and its source file is not named in it");
        return AS_ELF_OK;
    }
    out->likely = 1;
    if (x->e->machine != AS_ELF_X86_64) {
        snprintf(out->reason, sizeof out->reason, "no symbol, and its error sites are looked for on x86-64 only");
        return AS_ELF_OK;
    }
    uint32_t unsure = 0;
    rc = find_function(x, UINT32_C(1) << REG_FILE, w->error, &out->va, &unsure);
    if (rc == AS_ELF_OK && !out->va && !unsure && !x->full) /* code that was not optimised loads it into another one first */
        rc = find_function(x, UINT16_MAX, w->error, &out->va, &unsure);
    if (rc == AS_ELF_OK && out->va && !unsure && !x->full) {
        out->how = AS_HOW_XREF;
        out->off = as_elf_offset(x->e, out->va, PF_X);
        return rc;
    }
    snprintf(out->reason, sizeof out->reason, "no symbol, and %s",
             x->full      ? "its source file is named in too many places"
             : unsure     ? "its error leads to no function for sure, or to several"
             : x->n_sites ? "no code gives the error that only it gives"
                          : "no code names its source file in an error");
    out->va = 0;
    return rc;
}

int as_errsite(as_elf *e, const as_want *wants, uint32_t n, as_found *out) {
    int rc = AS_ELF_OK;
    for (uint32_t i = 0; i < n && rc == AS_ELF_OK; i++) {
        if (out[i].how != AS_HOW_NONE || !wants[i].file)
            continue;
        xref *x = calloc(1, sizeof *x);
        if (!x)
            return AS_ELF_NOMEM;
        x->e = e;
        rc = search(x, &wants[i], &out[i]);
        free(x);
    }
    return rc;
}

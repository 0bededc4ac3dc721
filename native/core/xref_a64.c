/* SPDX-License-Identifier: MIT
 * See xref_int.h. arm64: `adrp xD, page` and, within a few instructions, `add xN, xD, #offset`; also `adr xN, address`. Source: Arm
 * Architecture Reference Manual, C4.1 (encodings).
 */
#include "xref_int.h"

#include <elf.h>
#include <string.h>

#define ADD_MAX 24 /* instructions between the two halves of a load */

/* x0 to x5 are the integer arguments in order (AAPCS64 6.8.2), as rdi, rsi, rdx, rcx, r8, r9 are: as_want.label_reg's numbers */
static const int8_t ARGUMENT[6] = {7, 6, 2, 1, 8, 9};

static uint32_t word_at(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}

static int64_t sign_extend(uint64_t v, uint32_t bits) {
    return (int64_t)(v << (64 - bits)) >> (64 - bits);
}

/* what adr and adrp add to the address */
static int64_t adr_offset(uint32_t insn) {
    return sign_extend((uint64_t)(insn >> 5 & 0x7ffff) << 2 | (insn >> 29 & 3), 21);
}

static int near_a_target(const xref *x, uint64_t page) {
    uint32_t lo = 0, hi = x->n_targets;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (x->targets[mid].va < page)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < x->n_targets && x->targets[lo].va - page < 4096;
}

static void take(xref *x, uint64_t after, uint64_t va, uint32_t reg) {
    const xref_target *t = reg < 6 ? xref_target_at(x, va) : NULL;
    if (t)
        xref_add_site(x, after, t->pat, ARGUMENT[reg]);
}

/* p: an adrp of `page`, n bytes of code from there on. The loads that it is the first half of, until its register is another's. */
static void find_adds(xref *x, const uint8_t *p, size_t n, uint64_t va, uint64_t page) {
    uint32_t d = word_at(p) & 31;
    for (size_t i = 4; i + 4 <= n && i <= ADD_MAX * 4; i += 4) {
        uint32_t insn = word_at(p + i);
        if ((insn & 0x9f00001f) == (0x90000000 | d)) /* adrp of the same register */
            return;
        if ((insn & 0xffc003e0) != (0x91000000 | d << 5)) /* add xN, xD, #imm12 */
            continue;
        take(x, va + i + 4, page + (insn >> 10 & 0xfff), insn & 31);
        if ((insn & 31) == d)
            return;
    }
}

int xref_a64_sites(xref *x, const as_elf_seg *s) {
    const size_t overlap = ADD_MAX * 4;
    as_elf *e = x->e;
    uint64_t skip = -s->va & 3; /* instructions are aligned */
    for (uint64_t done = skip; done + 4 <= s->filesz;) {
        uint64_t left = s->filesz - done;
        size_t n = left < AS_ELF_WINDOW ? (size_t)left & ~(size_t)3 : AS_ELF_WINDOW;
        size_t step = n == left || left - n < 4 ? n : n - overlap;
        int rc = as_elf_read(e, e->window, n, s->off + done);
        if (rc != AS_ELF_OK)
            return rc;
        for (size_t p = 0; p < step; p += 4) {
            uint32_t insn = word_at(e->window + p);
            if ((insn & 0x1f000000) != 0x10000000)
                continue;
            uint64_t va = s->va + done + p;
            if (insn >> 31) {
                uint64_t page = (va & ~UINT64_C(0xfff)) + ((uint64_t)adr_offset(insn) << 12);
                if (near_a_target(x, page))
                    find_adds(x, e->window + p, n - p, va, page);
            } else {
                take(x, va + 4, va + (uint64_t)adr_offset(insn), insn & 31);
            }
        }
        done += step;
    }
    return AS_ELF_OK;
}

/* return, br, blr and their authenticated forms; udf, brk */
static int ends_path(uint32_t insn) {
    return (insn & 0xfe000000) == 0xd6000000 || (insn & 0xffff0000) == 0 || (insn & 0xffe0001f) == 0xd4200000;
}

uint64_t xref_a64_next_call(as_elf *e, uint64_t va) {
    uint8_t code[XREF_STEPS_MAX * 4];
    uint32_t steps = 0;
    for (uint32_t follow = 0; follow <= XREF_FOLLOW_MAX; follow++) {
        uint64_t off = as_elf_offset(e, va, PF_X);
        if (off == UINT64_MAX)
            return 0;
        size_t n = e->size - off < sizeof code ? (size_t)(e->size - off) : sizeof code;
        if (as_elf_read(e, code, n, off) != AS_ELF_OK)
            return 0;
        for (size_t i = 0;; i += 4) {
            if (steps++ == XREF_STEPS_MAX || i + 4 > n)
                return 0;
            uint32_t insn = word_at(code + i);
            if (ends_path(insn))
                return 0;
            if ((insn & 0x7c000000) != 0x14000000) /* b and bl */
                continue;
            uint64_t to = va + i + (uint64_t)(sign_extend(insn & 0x3ffffff, 26) * 4);
            if (insn >> 31 || as_elf_is_function(e, to))
                return to;
            va = to;
            break;
        }
    }
    return 0;
}

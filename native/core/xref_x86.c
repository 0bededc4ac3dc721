/* SPDX-License-Identifier: MIT
 * See xref_int.h. x86-64: `lea reg, [rip + disp32]`, and in programs with fixed addresses `mov reg, imm32`. Each byte of the code is
 * compared with the last opcode bytes of these; only behind those is the 32-bit word looked at.
 */
#include "vec16.h"
#include "x86insn.h"
#include "xref_int.h"

#include <elf.h>
#include <string.h>

#define BEFORE 3        /* bytes before the 32-bit word that are looked at: REX, opcode, ModRM */
#define CODE_WINDOW 160 /* bytes read behind a site */

/* p: a 32-bit word of the code at address va, with BEFORE bytes before it. Is it the operand of a load of a label? */
static void check_word(xref *x, const uint8_t *p, uint64_t va) {
    uint32_t w;
    memcpy(&w, p, 4);
    const xref_target *t;
    /* lea reg, [rip + disp32]: REX.W 8d ModRM(mod 0, rm 5) */
    if (p[-2] == 0x8d && (p[-1] & 0xc7) == 0x05 && (p[-3] & 0xf8) == 0x48) {
        t = xref_target_at(x, va + 4 + (uint64_t)(int64_t)(int32_t)w);
        if (t)
            xref_add_site(x, va + 4, t->pat, ((p[-1] >> 3) & 7) | (p[-3] & 4 ? 8 : 0));
    }
    if (x->e->type != ET_EXEC)
        return;
    /* mov r32, imm32: b8+r; mov r64, imm32: REX.W c7 /0 */
    int reg = -1;
    if ((p[-1] & 0xf8) == 0xb8)
        reg = (p[-1] & 7) | (p[-2] == 0x41 ? 8 : 0);
    else if ((p[-1] & 0xf8) == 0xc0 && p[-2] == 0xc7 && (p[-3] & 0xfe) == 0x48)
        reg = (p[-1] & 7) | (p[-3] & 1 ? 8 : 0);
    t = reg >= 0 ? xref_target_at(x, w) : NULL;
    if (t)
        xref_add_site(x, va + 4, t->pat, reg);
}

/* The registers in question as compared: of the low three bits of their numbers, one value, or all (`same` 0). */
typedef struct wanted_regs {
    uint8_t reg, same;
} wanted_regs;

static wanted_regs wanted(uint32_t regs) {
    uint32_t low = (regs | regs >> 8) & 0xff;
    for (uint8_t r = 0; r < 8; r++)
        if (low == UINT32_C(1) << r)
            return (wanted_regs){r, 7};
    return (wanted_regs){0, 0};
}

/* which of the 16 words from p on stand behind an opcode that loads a wanted register; reads p[-2] to p[14] */
static inline uint32_t candidates(const uint8_t *p, wanted_regs w, int absolute) {
    const v16 last = load16(p - 1), before = load16(p - 2);
    v16 hit = (v16)(before == all16(0x8d)) &
              (v16)((last & all16(0xc7 | (uint8_t)(w.same << 3))) == all16((uint8_t)(0x05 | w.reg << 3)));
    if (absolute) {
        hit |= (v16)((last & all16(0xf8 | w.same)) == all16(0xb8 | w.reg));
        hit |= (v16)(before == all16(0xc7)) & (v16)((last & all16(0xf8 | w.same)) == all16(0xc0 | w.reg));
    }
    return mask16(hit);
}

int xref_x86_sites(xref *x, const as_elf_seg *s) {
    as_elf *e = x->e;
    uint8_t *buf = e->window + AS_ELF_PAD - BEFORE;
    const wanted_regs w = wanted(x->regs);
    const int absolute = e->type == ET_EXEC;
    /* windows start at the word; the bytes before it are read again, those behind it too */
    for (uint64_t done = BEFORE; done + 4 <= s->filesz;) {
        uint64_t left = s->filesz - done;
        size_t step = left - 3 < AS_ELF_WINDOW - 64 ? (size_t)(left - 3) : AS_ELF_WINDOW - 64, n = step + BEFORE + 3;
        int rc = as_elf_read(e, buf, n, s->off + done - BEFORE);
        if (rc != AS_ELF_OK)
            return rc;
        memset(buf + n, 0, AS_ELF_PAD);
        const uint8_t *words = buf + BEFORE;
        for (size_t p = 0; p < step; p += 16) {
            for (uint32_t m = candidates(words + p, w, absolute); m; m &= m - 1) {
                size_t q = p + (size_t)__builtin_ctz(m);
                if (q < step)
                    check_word(x, words + q, s->va + done + q);
            }
        }
        done += step;
    }
    return AS_ELF_OK;
}

uint64_t xref_x86_next_call(as_elf *e, uint64_t va) {
    uint8_t code[CODE_WINDOW];
    uint32_t steps = 0;
    for (uint32_t follow = 0; follow <= XREF_FOLLOW_MAX; follow++) {
        uint64_t off = as_elf_offset(e, va, PF_X);
        if (off == UINT64_MAX)
            return 0;
        size_t n = e->size - off < sizeof code ? (size_t)(e->size - off) : sizeof code;
        if (as_elf_read(e, code, n, off) != AS_ELF_OK)
            return 0;
        as_x86 insn = {0};
        for (size_t i = 0;; i += insn.len) {
            if (steps++ == XREF_STEPS_MAX || !as_x86_decode(code + i, n - i, &insn) || insn.kind == AS_X86_END)
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

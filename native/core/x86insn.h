/* SPDX-License-Identifier: MIT
 *
 * How long an x86-64 instruction is, and whether it calls, jumps or ends a path: what is needed to walk from one instruction to the
 * next call. Operands are not decoded. Source: Intel SDM volume 2, chapter 2 and appendix A.
 */
#ifndef AS_X86INSN_H
#define AS_X86INSN_H

#include <stddef.h>
#include <stdint.h>

enum as_x86_kind {
    AS_X86_OTHER = 0, /* goes on behind itself (conditional jumps too) */
    AS_X86_CALL = 1,  /* call rel32 */
    AS_X86_JMP = 2,   /* jmp rel8 or rel32 */
    AS_X86_END = 3,   /* return, trap, indirect call or jump */
};

typedef struct as_x86 {
    uint8_t len;
    uint8_t kind; /* enum as_x86_kind */
    int32_t rel;  /* CALL, JMP: target relative to the end of the instruction */
} as_x86;

/* 1 and *out, or 0 where n bytes hold no whole instruction that is known. */
int as_x86_decode(const uint8_t *p, size_t n, as_x86 *out);

#endif

/* SPDX-License-Identifier: MIT
 * See x86insn.h.
 */
#include "x86insn.h"

#include <string.h>

enum { M = 1, I1 = 2, I2 = 4, IZ = 8, BAD = 16 }; /* ModRM follows; immediate of 1, 2, 4 (2 with prefix 66) bytes; invalid */

/* one-byte opcodes; prefixes and escapes are dealt with before */
static uint8_t one_byte(uint8_t op) {
    if (op < 0x40) {
        static const uint8_t arithmetic[8] = {M, M, M, M, I1, IZ, BAD, BAD};
        return arithmetic[op & 7];
    }
    if ((op >= 0x70 && op < 0x80) || (op >= 0xb0 && op < 0xb8) || (op >= 0xe0 && op < 0xe8))
        return I1;
    if (op >= 0xb8 && op < 0xc0)
        return IZ;
    if ((op >= 0x84 && op < 0x90) || (op >= 0xd0 && op < 0xd4) || (op >= 0xd8 && op < 0xe0))
        return M;
    switch (op) {
    case 0x60:
    case 0x61:
    case 0x82:
    case 0x9a:
    case 0xce:
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xea:
        return BAD;
    case 0x63:
    case 0xf6:
    case 0xf7:
    case 0xfe:
    case 0xff:
        return M;
    case 0x68:
    case 0xa9:
    case 0xe8:
    case 0xe9:
        return IZ;
    case 0x69:
    case 0x81:
    case 0xc7:
        return M | IZ;
    case 0x6a:
    case 0xa8:
    case 0xcd:
    case 0xeb:
        return I1;
    case 0x6b:
    case 0x80:
    case 0x83:
    case 0xc0:
    case 0xc1:
    case 0xc6:
        return M | I1;
    case 0xc2:
    case 0xca:
        return I2;
    case 0xc8:
        return I2 | I1;
    default:
        return 0;
    }
}

/* opcodes behind 0f, and map 1 of VEX and EVEX */
static uint8_t two_byte(uint8_t op) {
    if (op >= 0x80 && op < 0x90)
        return IZ;
    if ((op >= 0x30 && op < 0x38) || (op >= 0xc8 && op < 0xd0) || (op >= 0xa0 && op < 0xa3) || (op >= 0xa8 && op < 0xab))
        return 0;
    switch (op) {
    case 0x05:
    case 0x06:
    case 0x07:
    case 0x08:
    case 0x09:
    case 0x0b:
    case 0x0e:
    case 0x77:
        return 0;
    case 0x04:
    case 0x0a:
    case 0x0c:
    case 0x0f:
    case 0x36:
    case 0x39:
    case 0x3b:
        return BAD;
    case 0x70:
    case 0x71:
    case 0x72:
    case 0x73:
    case 0xa4:
    case 0xac:
    case 0xba:
    case 0xc2:
    case 0xc4:
    case 0xc5:
    case 0xc6:
        return M | I1;
    default:
        return M;
    }
}

/* bytes of ModRM, SIB and displacement; 0: cut */
static size_t modrm_len(const uint8_t *p, size_t n) {
    if (!n)
        return 0;
    size_t len = 1;
    uint8_t mod = p[0] >> 6, rm = p[0] & 7;
    if (mod == 3)
        return len;
    if (rm == 4) {
        if (n < 2)
            return 0;
        len++;
        if (mod == 0 && (p[1] & 7) == 5)
            len += 4;
    } else if (mod == 0 && rm == 5) {
        len += 4;
    }
    if (mod == 1)
        len += 1;
    else if (mod == 2)
        len += 4;
    return len <= n ? len : 0;
}

static uint8_t kind_of(uint8_t op, uint8_t reg) {
    switch (op) {
    case 0xe8:
        return AS_X86_CALL;
    case 0xe9:
    case 0xeb:
        return AS_X86_JMP;
    case 0xc2:
    case 0xc3:
    case 0xca:
    case 0xcb:
    case 0xcc:
    case 0xcf:
    case 0xf4:
        return AS_X86_END;
    case 0xff:
        return reg >= 2 && reg <= 5 ? AS_X86_END : AS_X86_OTHER;
    default:
        return AS_X86_OTHER;
    }
}

int as_x86_decode(const uint8_t *p, size_t n, as_x86 *out) {
    size_t i = 0, imm;
    int wide = 0, small = 0, short_address = 0, map = 0;
    n = n < 15 ? n : 15; /* no instruction is longer */
    for (; i < n; i++) {
        if (p[i] == 0x66)
            small = 1;
        else if (p[i] == 0x67)
            short_address = 1;
        else if (p[i] != 0xf0 && p[i] != 0xf2 && p[i] != 0xf3 && p[i] != 0x64 && p[i] != 0x65 && (p[i] & 0xe7) != 0x26)
            break;
    }
    if (i < n && (p[i] & 0xf0) == 0x40)
        wide = p[i++] & 8;
    if (i >= n)
        return 0;
    uint8_t op = p[i++], form;
    if (op == 0xc5 || op == 0xc4 || op == 0x62) { /* VEX of two and three bytes, EVEX */
        size_t payload = op == 0xc5 ? 1 : op == 0xc4 ? 2 : 3;
        if (i + payload >= n)
            return 0;
        map = op == 0xc5 ? 1 : p[i] & (op == 0xc4 ? 0x1f : 0x07);
        op = p[i + payload];
        i += payload + 1;
        form = map == 1 ? two_byte(op) : map == 2 ? M : map == 3 ? M | I1 : map == 5 || map == 6 ? M : BAD;
    } else if (op == 0x0f) {
        if (i >= n)
            return 0;
        op = p[i++];
        map = 1;
        form = two_byte(op);
        if (op == 0x38 || op == 0x3a) {
            if (i++ >= n)
                return 0;
            map = 2;
            form = op == 0x38 ? M : M | I1;
        }
    } else {
        form = one_byte(op);
    }
    if (form & BAD)
        return 0;
    uint8_t reg = i < n ? (p[i] >> 3) & 7 : 0;
    if (form & M) {
        size_t m = modrm_len(p + i, n - i);
        if (!m)
            return 0;
        i += m;
    }
    imm = (form & I1 ? 1 : 0) + (form & I2 ? 2 : 0);
    if (form & IZ) {
        int branch = map == 0 && (op == 0xe8 || op == 0xe9);
        imm += map == 1 || branch ? 4 : (wide && op >= 0xb8 && op < 0xc0) ? 8 : (small && !wide) ? 2 : 4;
    }
    if (map == 0 && (op == 0xf6 || op == 0xf7) && reg < 2) /* test */
        imm = op == 0xf6 ? 1 : (small && !wide) ? 2 : 4;
    if (map == 0 && op >= 0xa0 && op < 0xa4)
        imm = short_address ? 4 : 8;
    if (imm > n - i)
        return 0;
    *out = (as_x86){(uint8_t)(i + imm), AS_X86_OTHER, 0};
    if (map == 0)
        out->kind = kind_of(op, reg);
    else if (map == 1 && op == 0x0b) /* ud2 */
        out->kind = AS_X86_END;
    if (imm == 4 && (out->kind == AS_X86_CALL || out->kind == AS_X86_JMP))
        memcpy(&out->rel, p + i, 4);
    else if (out->kind == AS_X86_JMP)
        out->rel = (int8_t)p[i];
    return 1;
}

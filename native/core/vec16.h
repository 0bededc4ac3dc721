/* SPDX-License-Identifier: MIT
 *
 * Sixteen bytes at once, for the finders: GNU vectors, so that every machine has them.
 */
#ifndef AS_VEC16_H
#define AS_VEC16_H

#include <stdint.h>
#include <string.h>

typedef uint8_t v16 __attribute__((vector_size(16)));

static inline v16 load16(const uint8_t *p) {
    v16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline v16 all16(uint8_t b) {
    return (v16){b, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b};
}

/* bit i: byte i is not zero (each must be 0 or 255) */
static inline uint32_t mask16(v16 v) {
#ifdef __SSE2__
    typedef char c16 __attribute__((vector_size(16)));
    return (uint32_t)__builtin_ia32_pmovmskb128((c16)v);
#else
    typedef uint64_t v2 __attribute__((vector_size(16)));
    const v2 any = (v2)v;
    uint32_t m = 0;
    for (uint32_t i = 0; (any[0] | any[1]) && i < 16; i++)
        m |= (uint32_t)(v[i] & 1) << i;
    return m;
#endif
}

#endif

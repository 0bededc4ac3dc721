/* SPDX-License-Identifier: MIT
 * See elffile.h: sections by name, and pointers that relocations fill in.
 */
#include "elffile.h"

#include <elf.h>
#include <string.h>

#define NAME_MAX_LEN 64
#define RELA_AT_ONCE 4096

static int header(as_elf *e, uint32_t i, Elf64_Shdr *s) {
    return i < e->n_sections && as_elf_read(e, s, sizeof *s, e->shoff + (uint64_t)i * sizeof *s) == AS_ELF_OK;
}

as_elf_sec as_elf_section(as_elf *e, const char *name) {
    Elf64_Shdr names, s;
    char text[NAME_MAX_LEN];
    size_t n = strlen(name) + 1;
    if (n > sizeof text || !header(e, e->names, &names))
        return (as_elf_sec){0};
    for (uint32_t i = 1; header(e, i, &s); i++) {
        if (s.sh_type == SHT_NOBITS || s.sh_offset > e->size || s.sh_size > e->size - s.sh_offset || s.sh_name > names.sh_size ||
            names.sh_offset > e->size || n > names.sh_size - s.sh_name)
            continue;
        if (as_elf_read(e, text, n, names.sh_offset + s.sh_name) == AS_ELF_OK && !memcmp(text, name, n))
            return (as_elf_sec){s.sh_offset, s.sh_addr, s.sh_size};
    }
    return (as_elf_sec){0};
}

/* Calls back for each relocation without a symbol until it says so; uses the window. */
typedef int (*relative_fn)(void *ctx, const Elf64_Rela *r);

static void each_relative(as_elf *e, relative_fn fn, void *ctx) {
    const uint32_t type = e->machine == AS_ELF_X86_64 ? R_X86_64_RELATIVE : R_AARCH64_RELATIVE;
    Elf64_Shdr s;
    for (uint32_t i = 1; header(e, i, &s); i++) {
        if (s.sh_type != SHT_RELA || s.sh_entsize != sizeof(Elf64_Rela) || s.sh_offset > e->size ||
            s.sh_size > e->size - s.sh_offset)
            continue;
        for (uint64_t k = 0, total = s.sh_size / sizeof(Elf64_Rela); k < total; k += RELA_AT_ONCE) {
            size_t n = total - k < RELA_AT_ONCE ? (size_t)(total - k) : RELA_AT_ONCE;
            if (as_elf_read(e, e->window, n * sizeof(Elf64_Rela), s.sh_offset + k * sizeof(Elf64_Rela)) != AS_ELF_OK)
                return;
            for (size_t j = 0; j < n; j++) {
                Elf64_Rela r;
                memcpy(&r, e->window + j * sizeof r, sizeof r);
                if (ELF64_R_TYPE(r.r_info) == type && fn(ctx, &r))
                    return;
            }
        }
    }
}

typedef struct wanted_relative {
    uint64_t key, found;
} wanted_relative;

static int place_is(void *ctx, const Elf64_Rela *r) {
    wanted_relative *w = ctx;
    if (r->r_offset != w->key)
        return 0;
    w->found = (uint64_t)r->r_addend;
    return 1;
}

static int value_is(void *ctx, const Elf64_Rela *r) {
    wanted_relative *w = ctx;
    if ((uint64_t)r->r_addend == w->key && (!w->found || r->r_offset < w->found))
        w->found = r->r_offset;
    return 0;
}

uint64_t as_elf_pointer(as_elf *e, uint64_t va) {
    wanted_relative w = {va, 0};
    uint64_t off = as_elf_offset(e, va, 0), word = 0;
    each_relative(e, place_is, &w);
    if (w.found)
        return w.found;
    return off != UINT64_MAX && as_elf_read(e, &word, sizeof word, off) == AS_ELF_OK ? word : 0;
}

uint64_t as_elf_pointed_from(as_elf *e, uint64_t value) {
    wanted_relative w = {value, 0};
    each_relative(e, value_is, &w);
    return w.found;
}

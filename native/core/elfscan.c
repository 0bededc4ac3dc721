/* SPDX-License-Identifier: MIT
 * See elfscan.h. The symbol rungs; Go's table is gopclntab.c, error sites are errsite.c, the cross-reference is xref.c.
 */
#include "elfscan.h"

#include <elf.h>
#include <stdio.h>
#include <string.h>

/* One symbol table for all wants. A name that stands for two functions is no answer: the next rung decides. */
static int by_symbol(as_elf *e, const as_elf *image, uint32_t table, int how, const as_want *wants, uint32_t n, as_found *out) {
    as_pat names[AS_PATS_MAX];
    as_elf_sym found[AS_PATS_MAX];
    uint32_t total = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < wants[i].n_names; k++)
            names[total++] = (as_pat){(const uint8_t *)wants[i].names[k], (uint32_t)strlen(wants[i].names[k]) + 1};
    if (!total)
        return AS_ELF_OK;
    int rc = as_elf_symbols(e, image, table, names, total, found);
    if (rc != AS_ELF_OK)
        return rc;
    for (uint32_t i = 0, at = 0; i < n; at += wants[i++].n_names) {
        for (uint32_t k = 0; k < wants[i].n_names && out[i].how == AS_HOW_NONE; k++) {
            const as_elf_sym *s = &found[at + k];
            if (s->n == 1) {
                out[i].how = how;
                out[i].va = s->va;
                out[i].off = s->off;
            }
        }
    }
    return AS_ELF_OK;
}

static int wants_are_valid(const as_want *wants, uint32_t n) {
    uint32_t names = 0, labels = 0;
    for (uint32_t i = 0; i < n; i++) {
        names += wants[i].n_names;
        labels += wants[i].n_labels;
        if (wants[i].n_names > AS_PATS_MAX || wants[i].n_labels > 32)
            return 0;
        for (uint32_t k = 0; k < wants[i].n_names; k++) {
            size_t len = strlen(wants[i].names[k]);
            if (len < 2 || len >= AS_PAT_MAX)
                return 0;
        }
        size_t file = wants[i].file ? strlen(wants[i].file) : 8;
        if (file < 8 || file >= AS_PAT_MAX)
            return 0;
        for (uint32_t k = 0; k < wants[i].n_labels; k++) {
            size_t len = strlen(wants[i].labels[k]);
            if (len < 8 || len >= AS_PAT_MAX)
                return 0;
        }
    }
    return n && n <= AS_WANTS_MAX && names <= AS_PATS_MAX && labels <= AS_PATS_MAX;
}

static int all_found(const as_found *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (out[i].how == AS_HOW_NONE)
            return 0;
    return 1;
}

/* What is wrong with the debug file is nothing that is wrong with the program: it is not used then. */
static void by_debug_file(const as_elf *e, int fd, const as_want *wants, uint32_t n, as_found *out) {
    as_elf d;
    if (as_elf_open(&d, fd) == AS_ELF_OK && e->build_id_len && d.build_id_len == e->build_id_len && d.machine == e->machine &&
        !memcmp(d.build_id, e->build_id, e->build_id_len))
        by_symbol(&d, e, SHT_SYMTAB, AS_HOW_DEBUG, wants, n, out);
    as_elf_close(&d);
}

int as_elf_scan(as_elf *e, int fd, const as_want *wants, uint32_t n, as_found *out) {
    return as_elf_scan_debug(e, fd, -1, wants, n, out);
}

int as_elf_scan_debug(as_elf *e, int fd, int debug_fd, const as_want *wants, uint32_t n, as_found *out) {
    static const struct {
        uint32_t table;
        int how;
    } rungs[] = {{SHT_DYNSYM, AS_HOW_DYNSYM}, {SHT_SYMTAB, AS_HOW_SYMTAB}};
    int rc = as_elf_open(e, fd);
    if (rc != AS_ELF_OK)
        return rc;
    if (!wants_are_valid(wants, n))
        return AS_ELF_NOMEM;
    memset(out, 0, n * sizeof *out);
    for (size_t r = 0; r < sizeof rungs / sizeof rungs[0]; r++) {
        rc = by_symbol(e, e, rungs[r].table, rungs[r].how, wants, n, out);
        if (rc != AS_ELF_OK || all_found(out, n))
            return rc;
    }
    if (debug_fd >= 0)
        by_debug_file(e, debug_fd, wants, n, out);
    rc = as_gopclntab(e, wants, n, out);
    if (rc == AS_ELF_OK)
        rc = as_errsite(e, wants, n, out);
    if (rc == AS_ELF_OK)
        rc = as_xref(e, wants, n, out);
    for (uint32_t i = 0; i < n && rc == AS_ELF_OK; i++)
        if (out[i].how == AS_HOW_NONE && !out[i].reason[0])
            snprintf(out[i].reason, sizeof out[i].reason, "no symbol of that name");
    return rc;
}

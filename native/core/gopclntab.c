/* SPDX-License-Identifier: MIT
 *
 * Go's table of functions (elfscan.h): every Go program carries names and places of all its functions for its own tracebacks, and no
 * strip removes it. Go 1.18 to 1.26 (debug/gosym and cmd/link/internal/ld/pcln.go): a header, the names, and per function a row (its
 * entry, where its description is) whose description holds the name's offset. Entries count from the start of the Go code, which
 * the header tells (to 1.25), or the linker's module data; in position-independent programs both are filled in by relocations.
 *
 * No such start is believed: functions there, ours among them, must begin with Go's check of the stack.
 */
#include "elfscan.h"

#include <elf.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define MAGIC_118 0xfffffff0u
#define MAGIC_120 0xfffffff1u
#define FUNCS_MAX (1u << 23)
#define NAMES_MAX 8 /* places where one wanted name may lie */
#define TABLES_MAX 8
#define ROWS_AT_ONCE 2048
#define IN_MODULE (22 * 8) /* `text` in runtime.moduledata: behind the header's address, six slices, findfunctab, minpc, maxpc */
#define PROBES 64 /* functions whose beginnings are looked at, to believe in a start of the code */

typedef struct header {
    uint32_t magic;
    uint16_t zero;
    uint8_t quantum, pointer;
    uint64_t n_funcs, n_files, text, names, cu, files, pcs, funcs;
} header;

typedef struct table {
    as_elf *e;
    uint64_t off, va, size; /* size: at most so much, where it was found by its magic */
    header h;
    uint32_t n_names;
    uint64_t name[NAMES_MAX]; /* offsets in the names */
    uint32_t want[NAMES_MAX];
} table;

static int is_table(table *t) {
    header *h = &t->h;
    if (t->size < sizeof *h || as_elf_read(t->e, h, sizeof *h, t->off) != AS_ELF_OK)
        return 0;
    return (h->magic == MAGIC_118 || h->magic == MAGIC_120) && !h->zero && h->pointer == 8 &&
           h->quantum == (t->e->machine == AS_ELF_X86_64 ? 1 : 4) && h->n_funcs && h->n_funcs < FUNCS_MAX && h->names < h->cu &&
           h->cu < h->files && h->files <= h->pcs && h->pcs < h->funcs && h->funcs < t->size &&
           (h->n_funcs * 2 + 1) * 4 <= t->size - h->funcs;
}

/* ---- where the table is ---- */
typedef struct found_tables {
    as_elf *e;
    const as_elf_seg *seg;
    uint32_t n;
    table t[TABLES_MAX];
} found_tables;

static int magic_hit(void *ctx, uint32_t id, uint64_t off) {
    (void)id;
    found_tables *f = ctx;
    uint64_t at = off - f->seg->off;
    if (at % 8 == 0)
        f->t[f->n++] = (table){.e = f->e, .off = off, .va = f->seg->va + at, .size = f->seg->filesz - at};
    return f->n == TABLES_MAX;
}

static int find_tables(as_elf *e, found_tables *f) {
    static const char *const sections[] = {".gopclntab", ".data.rel.ro.gopclntab"};
    static const as_pat magics[2][2] = {
        {{(const uint8_t *)"\xf1\xff\xff\xff\0\0\1\x08", 8}, {(const uint8_t *)"\xf0\xff\xff\xff\0\0\1\x08", 8}},
        {{(const uint8_t *)"\xf1\xff\xff\xff\0\0\4\x08", 8}, {(const uint8_t *)"\xf0\xff\xff\xff\0\0\4\x08", 8}}};
    f->e = e;
    f->n = 0;
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        as_elf_sec s = as_elf_section(e, sections[i]);
        if (s.size)
            f->t[f->n++] = (table){.e = e, .off = s.off, .va = s.va, .size = s.size};
    }
    /* a file with sections but without Go's own is none of Go's */
    if (f->n || (e->n_sections && !as_elf_section(e, ".go.buildinfo").size && !as_elf_section(e, ".note.go.buildid").size))
        return AS_ELF_OK;
    for (uint32_t i = 0; i < e->n_seg && f->n < TABLES_MAX; i++) {
        f->seg = &e->seg[i];
        int rc = as_elf_find(e, f->seg->off, f->seg->filesz, magics[e->machine != AS_ELF_X86_64], 2, magic_hit, f);
        if (rc != AS_ELF_OK)
            return rc;
    }
    return AS_ELF_OK;
}

/* ---- which function has the name ---- */
static int name_hit(void *ctx, uint32_t id, uint64_t off) {
    table *t = ctx;
    t->want[t->n_names] = id;
    t->name[t->n_names++] = off - t->off - t->h.names;
    return t->n_names == NAMES_MAX;
}

typedef struct entry {
    uint32_t want, name; /* indices */
    uint32_t at; /* from the start of the code */
} entry;

/* The functions of the names that were found, in order of the table; how many, or -1: the table contradicts itself. */
static int find_entries(table *t, entry *out, uint32_t max) {
    uint32_t rows[ROWS_AT_ONCE][2];
    uint8_t *window = t->e->window; /* the descriptions, read ahead: they come in the order of the rows */
    uint64_t begin = 0, end = 0, funcs = t->off + t->h.funcs, room = t->size - t->h.funcs;
    uint32_t n = 0;
    for (uint64_t i = 0; i < t->h.n_funcs; i += ROWS_AT_ONCE) {
        size_t k = t->h.n_funcs - i < ROWS_AT_ONCE ? (size_t)(t->h.n_funcs - i) : ROWS_AT_ONCE;
        if (as_elf_read(t->e, rows, k * 8, funcs + i * 8) != AS_ELF_OK)
            return -1;
        for (size_t j = 0; j < k; j++) {
            uint32_t description[2]; /* entry, offset of the name */
            uint64_t at = rows[j][1];
            if (room < sizeof description || at > room - sizeof description)
                return -1;
            if (at < begin || at + sizeof description > end) {
                size_t size = room - at < AS_ELF_WINDOW / 8 ? (size_t)(room - at) : AS_ELF_WINDOW / 8;
                if (as_elf_read(t->e, window, size, funcs + at) != AS_ELF_OK)
                    return -1;
                begin = at;
                end = at + size;
            }
            memcpy(description, window + (at - begin), sizeof description);
            for (uint32_t m = 0; m < t->n_names; m++) {
                if (description[1] != t->name[m] || description[0] != rows[j][0])
                    continue;
                if (n == max)
                    return -1;
                out[n++] = (entry){t->want[m], m, rows[j][0]};
            }
        }
    }
    return (int)n;
}

/* ---- where the code begins ---- */
/* Whether a Go function with a check of its stack begins at va: `cmp rsp, [r14 + 16]`, for larger frames behind
 * `lea r12, [rsp - n]` (cmd/internal/obj/x86/obj6.go); arm64: `ldr x16, [x28, #16]` (obj7.go). */
static int checks_stack(as_elf *e, uint64_t va) {
    uint8_t c[12];
    uint64_t off = as_elf_offset(e, va, PF_X);
    if (off == UINT64_MAX || as_elf_read(e, c, sizeof c, off) != AS_ELF_OK)
        return 0;
    if (e->machine == AS_ELF_AARCH64)
        return !memcmp(c, "\x90\x0b\x40\xf9", 4);
    static const char compare[] = "\x4d\x3b\x66\x10";
    return !memcmp(c, "\x49\x3b\x66\x10", 4) || (!memcmp(c, "\x4c\x8d\x64\x24", 4) && !memcmp(c + 5, compare, 4)) ||
           (!memcmp(c, "\x4c\x8d\xa4\x24", 4) && !memcmp(c + 8, compare, 4));
}

static int begins_at(const table *t, uint64_t text, const entry *found, uint32_t n) {
    uint32_t good = 0, step = t->h.n_funcs > PROBES ? (uint32_t)(t->h.n_funcs / PROBES) : 1, seen = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!checks_stack(t->e, text + found[i].at))
            return 0;
    for (uint64_t i = 0; i < t->h.n_funcs; i += step, seen++) {
        uint32_t at;
        if (as_elf_read(t->e, &at, sizeof at, t->off + t->h.funcs + i * 8) == AS_ELF_OK)
            good += (uint32_t)checks_stack(t->e, text + at);
    }
    return good * 3 >= seen; /* leaf functions and those in assembly have none: about half */
}

/* ---- programs with fixed addresses: runtime.moduledata is what begins with the table's address ---- */
typedef struct module_hits {
    uint32_t n;
    uint64_t off[NAMES_MAX];
} module_hits;

static int module_hit(void *ctx, uint32_t id, uint64_t off) {
    (void)id;
    module_hits *m = ctx;
    m->off[m->n++] = off;
    return m->n == NAMES_MAX;
}

static uint64_t start_by_module(const table *t, const entry *found, uint32_t n) {
    module_hits m = {0};
    const as_pat address = {(const uint8_t *)&t->va, sizeof t->va};
    for (uint32_t i = 0; i < t->e->n_seg && m.n < NAMES_MAX; i++)
        if (!(t->e->seg[i].flags & PF_X))
            as_elf_find(t->e, t->e->seg[i].off, t->e->seg[i].filesz, &address, 1, module_hit, &m);
    for (uint32_t i = 0; i < m.n; i++) {
        uint64_t text;
        if (as_elf_read(t->e, &text, sizeof text, m.off[i] + IN_MODULE) == AS_ELF_OK && begins_at(t, text, found, n))
            return text;
    }
    return 0;
}

/* The address that entries count from; 0: unknown. */
static uint64_t code_start(const table *t, const entry *found, uint32_t n) {
    uint64_t module = as_elf_pointed_from(t->e, t->va);
    const uint64_t starts[] = {t->h.text, as_elf_pointer(t->e, t->va + offsetof(header, text)),
                               module ? as_elf_pointer(t->e, module + IN_MODULE) : 0, as_elf_section(t->e, ".text").va};
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (starts[i] && begins_at(t, starts[i], found, n))
            return starts[i];
    /* without section headers: Go's linker puts its code at the segment's start, behind the headers where they share it */
    for (uint32_t i = 0; i < t->e->n_seg; i++)
        for (uint64_t behind = 0; behind <= 0x1000 && (t->e->seg[i].flags & PF_X); behind += 0x1000)
            if (begins_at(t, t->e->seg[i].va + behind, found, n))
                return t->e->seg[i].va + behind;
    return start_by_module(t, found, n);
}

static void set_reason(const as_want *wants, uint32_t n, as_found *out, const char *reason) {
    for (uint32_t i = 0; i < n; i++)
        if (wants[i].go && out[i].how == AS_HOW_NONE)
            snprintf(out[i].reason, sizeof out[i].reason, "%s", reason);
}

/* One table; wants that it names are found, or likely and told why not. */
static int search_table(table *t, const as_want *wants, uint32_t n, as_found *out) {
    as_pat names[AS_PATS_MAX];
    uint32_t owner[AS_PATS_MAX], total = 0;
    entry found[NAMES_MAX];
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < wants[i].n_names && wants[i].go && out[i].how == AS_HOW_NONE; k++) {
            owner[total] = i;
            names[total++] = (as_pat){(const uint8_t *)wants[i].names[k], (uint32_t)strlen(wants[i].names[k]) + 1};
        }
    }
    set_reason(wants, n, out, "its functions are not in this Go program");
    int rc = as_elf_find(t->e, t->off + t->h.names, t->h.cu - t->h.names, names, total, name_hit, t);
    int n_found = rc == AS_ELF_OK && t->n_names ? find_entries(t, found, NAMES_MAX) : 0;
    if (rc != AS_ELF_OK || !n_found)
        return rc;
    uint64_t text = n_found > 0 ? code_start(t, found, (uint32_t)n_found) : 0;
    for (int k = 0; k < (n_found > 0 ? n_found : 0); k++) {
        as_found *o = &out[owner[found[k].want]];
        uint64_t va = text + found[k].at;
        if (o->how != AS_HOW_NONE && o->va != va) {
            *o = (as_found){.likely = 1, .reason = "Go's function table names it twice"};
            break;
        }
        if (text) {
            o->how = AS_HOW_GOPCLNTAB;
            o->va = va;
            o->off = as_elf_offset(t->e, va, PF_X);
            o->reason[0] = 0;
        } else {
            o->likely = 1;
            snprintf(o->reason, sizeof o->reason, "Go's function table names it, where its code begins is unclear");
        }
    }
    if (n_found < 0)
        set_reason(wants, n, out, "Go's function table contradicts itself");
    return AS_ELF_OK;
}

int as_gopclntab(as_elf *e, const as_want *wants, uint32_t n, as_found *out) {
    found_tables f;
    uint32_t open = 0;
    for (uint32_t i = 0; i < n; i++)
        open += wants[i].go && wants[i].n_names && out[i].how == AS_HOW_NONE;
    int rc = open ? find_tables(e, &f) : AS_ELF_OK;
    if (!open || rc != AS_ELF_OK)
        return rc;
    set_reason(wants, n, out, "no Go program");
    for (uint32_t i = 0; i < f.n && rc == AS_ELF_OK; i++)
        if (is_table(&f.t[i]))
            rc = search_table(&f.t[i], wants, n, out);
        else
            set_reason(wants, n, out, "a table of Go's functions of a kind that is not known");
    return rc;
}

/* SPDX-License-Identifier: MIT
 *
 * Reading somebody else's ELF file: an open descriptor in, segments, build id, symbols and function starts out. 64-bit
 * little-endian x86-64 and arm64, executables and shared objects (System V gABI, chapters 4 and 5).
 *
 * The file is hostile until shown otherwise: every offset, size and count is checked, all reads are bounded pread(2) (a map of
 * a file that somebody truncates is a SIGBUS), and one file may cost at most AS_ELF_BUDGET bytes of reading.
 */
#ifndef AS_ELFFILE_H
#define AS_ELFFILE_H

#include <stddef.h>
#include <stdint.h>

#define AS_ELF_MAX_SEG 128
#define AS_ELF_MAX_SECTION 65536
#define AS_ELF_BUDGET (UINT64_C(4) << 30)
#define AS_ELF_WINDOW (1u << 20) /* bytes read at once: stays in the second-level cache */
#define AS_ELF_PAD 128           /* bytes behind a window that may be read by vector loads */

#define AS_ELF_X86_64 62
#define AS_ELF_AARCH64 183

enum as_elf_status {
    AS_ELF_OK = 0,
    AS_ELF_IO = 1,          /* read failed: errno in as_elf.err */
    AS_ELF_NOT_ELF = 2,     /* some other file: a script, text, an archive */
    AS_ELF_UNSUPPORTED = 3, /* ELF of another class, byte order, machine or type */
    AS_ELF_DAMAGED = 4,     /* headers that contradict the file */
    AS_ELF_BUDGET_SPENT = 5,
    AS_ELF_NOMEM = 6,
};

typedef struct as_elf_seg {
    uint64_t off, va, filesz;
    uint32_t flags; /* PF_X 1, PF_W 2, PF_R 4 */
} as_elf_seg;

typedef struct as_elf {
    int fd, err;
    uint64_t size;    /* of the file */
    uint64_t budget;  /* bytes that may still be read */
    uint16_t machine; /* AS_ELF_X86_64 or AS_ELF_AARCH64 */
    uint16_t type;    /* ET_EXEC 2, ET_DYN 3 */
    uint32_t n_seg;   /* PT_LOAD only, filesz cut to the file's end */
    as_elf_seg seg[AS_ELF_MAX_SEG];
    uint64_t shoff;
    uint32_t n_sections, names; /* names: index of the section with the sections' names */
    uint64_t eh_off, eh_va, eh_size; /* .eh_frame_hdr; size 0: none */
    uint8_t build_id[64];
    uint32_t build_id_len; /* 0: none */
    uint8_t *window;       /* AS_ELF_WINDOW + 2 * AS_ELF_PAD bytes */
} as_elf;

/* A byte string to be found. Longest: AS_PAT_MAX. */
#define AS_PAT_MAX 63
#define AS_PATS_MAX 64
typedef struct as_pat {
    const uint8_t *s;
    uint32_t n;
} as_pat;

/* Where pattern `id` was found. A non-zero result ends the search. */
typedef int (*as_pat_hit)(void *ctx, uint32_t id, uint64_t off);

/* A section by name. `size` 0: there is none. */
typedef struct as_elf_sec {
    uint64_t off, va, size;
} as_elf_sec;

/* A symbol's defined function. `n`: how many different addresses the name has in the table (0: not there). */
typedef struct as_elf_sym {
    uint64_t va, off;
    uint32_t n;
} as_elf_sym;

/* Reads the headers. The descriptor stays the caller's. as_elf_close is to be called after any result. */
int as_elf_open(as_elf *e, int fd);
void as_elf_close(as_elf *e);

/* Exactly n bytes at file offset off. */
int as_elf_read(as_elf *e, void *buf, size_t n, uint64_t off);

/* File offset of a virtual address, or UINT64_MAX where no byte of the file is loaded there; want_flags: PF_* that the
 * segment must have. This is what perf and uprobes call the offset: va - p_vaddr + p_offset. */
uint64_t as_elf_offset(const as_elf *e, uint64_t va, uint32_t want_flags);

/* The first section of a name, if its bytes are in the file. */
as_elf_sec as_elf_section(as_elf *e, const char *name);

/* The 64-bit word at a virtual address as it will be once the program is loaded at its own addresses: relocations without a symbol
 * (R_X86_64_RELATIVE, R_AARCH64_RELATIVE in sections of type RELA) are applied. 0 where there is no such place. */
uint64_t as_elf_pointer(as_elf *e, uint64_t va);

/* Where a pointer to `value` is put by such a relocation: the lowest such address, 0: nowhere. */
uint64_t as_elf_pointed_from(as_elf *e, uint64_t value);

/* Finds each of n patterns (1..AS_PATS_MAX of 2..AS_PAT_MAX bytes) in a range of the file. */
int as_elf_find(as_elf *e, uint64_t off, uint64_t size, const as_pat *pats, uint32_t n, as_pat_hit hit, void *ctx);

/* Looks up n names in the dynamic (table 11, SHT_DYNSYM) or static (2, SHT_SYMTAB) symbol table; out[i] for names[i]. `image`: the file
 * whose code it is: e, or the one that e holds the symbols of. */
int as_elf_symbols(as_elf *e, const as_elf *image, uint32_t table, const as_pat *names, uint32_t n, as_elf_sym *out);

/* 1: a function begins at va, by .eh_frame_hdr or, where that says nothing of this place, by its alignment or its first bytes;
 * 0: none does. */
int as_elf_is_function(as_elf *e, uint64_t va);

/* The start of the function whose code is at va, by .eh_frame_hdr; 0 where that says nothing of this place. */
uint64_t as_elf_function_at(as_elf *e, uint64_t va);

const char *as_elf_strstatus(int status);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Finding the function of a TLS stack that is handed the secrets: an ELF file and a description of the function in, the place for
 * a probe out. In this order: dynamic symbol, static symbol, symbol in a separate debug file, Go's function table, string cross-reference of key-log labels.
 *
 * The cross-reference: the labels ("CLIENT_RANDOM", ...) lie in the file as C strings; code that loads the address of one into
 * the register of the label argument, and then calls, calls the function we look for. The address on which loads of at least two
 * labels agree, one of `anchors` among them, is taken if it is the only such address and a function begins there. Other loads of
 * labels (into a variable that is passed later) do not count, since what is called next has nothing to do with them.
 * Several stacks have the same labels, and may lie in one file: each gets the function that takes all labels of its `require` and
 * none of its `never`; where a compiler changed that, then what no other stack has taken.
 *
 * Go (gopclntab.c): the table of functions that every Go program needs at run time has their names and places, stripped or not.
 *
 * Error sites (errsite.c): for functions that take no labels, the errors that they alone report.
 *
 * No result is ever a guess: what is not found is told with a reason, and `evidence` says whether the stack seems to be in the
 * file at all.
 */
#ifndef AS_ELFSCAN_H
#define AS_ELFSCAN_H

#include "elffile.h"

#define AS_WANTS_MAX 16
#define AS_REASON_MAX 160

enum as_how { AS_HOW_NONE = 0, AS_HOW_DYNSYM = 1, AS_HOW_SYMTAB = 2, AS_HOW_XREF = 3, AS_HOW_GOPCLNTAB = 4, AS_HOW_DEBUG = 5 };

/* A function that is looked for. Names and labels of all wants together: at most AS_PATS_MAX each. */
typedef struct as_want {
    const char *const *names; /* symbols, the first that is there is taken */
    uint32_t n_names;
    const char *const *labels; /* 8 to AS_PAT_MAX - 1 characters, at most 32 of them; none: no cross-reference */
    uint32_t n_labels;
    uint32_t anchors; /* bit i: labels[i] is only ever loaded directly; one of these must agree */
    uint32_t require; /* bit i: labels[i] must agree, in this stack as it is known */
    uint32_t never;   /* bit i: labels[i] must not */
    int8_t label_reg; /* register of the label argument, x86-64 encoding (6: rsi; arm64: x1); -1: any */
    uint8_t go;       /* not 0: the names are Go's, as in its function table */
    const char *file; /* end of its source file's path, 8 to AS_PAT_MAX - 1 characters; NULL: no search by error sites */
    uint32_t error;   /* the error reason that only this function of that file gives */
} as_want;

typedef struct as_found {
    int how;           /* enum as_how */
    uint64_t va;       /* virtual address as in the file */
    uint64_t off;      /* offset in the file, for uprobes */
    uint32_t evidence; /* bit i: labels[i] is in the file (looked for only where no symbol is) */
    uint32_t agree;    /* bit i: a load of labels[i] led to va (AS_HOW_XREF) */
    int likely;        /* how == AS_HOW_NONE: the stack seems to be in the file all the same */
    char reason[AS_REASON_MAX]; /* how == AS_HOW_NONE: why, one line */
} as_found;

/* Looks for n functions (1..AS_WANTS_MAX) in one go. An enum as_elf_status; results are written for AS_ELF_OK only. `e` keeps the
 * headers (build id) until as_elf_close. Touches nothing but its arguments and the file: no lock is needed. */
int as_elf_scan(as_elf *e, int fd, const as_want *wants, uint32_t n, as_found *out);

/* The same, with the file (a separate debug file) that the symbols were moved to: asked behind the file's own symbols. It must have
 * the same build id, else it is not used. debug_fd -1: none. */
int as_elf_scan_debug(as_elf *e, int fd, int debug_fd, const as_want *wants, uint32_t n, as_found *out);

/* The last rungs alone, for wants whose out[].how is AS_HOW_NONE. */
int as_gopclntab(as_elf *e, const as_want *wants, uint32_t n, as_found *out);
int as_errsite(as_elf *e, const as_want *wants, uint32_t n, as_found *out);
int as_xref(as_elf *e, const as_want *wants, uint32_t n, as_found *out);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Between the parts of the string cross-reference: xref.c (labels, votes, decision), xref_x86.c and xref_a64.c (where code of a
 * machine loads a label, and what it calls next).
 */
#ifndef AS_XREF_INT_H
#define AS_XREF_INT_H

#include "elfscan.h"

#define XREF_TARGETS_MAX 256 /* places where labels lie */
#define XREF_SITES_MAX 4096  /* places in the code that load such an address */
#define XREF_STEPS_MAX 24    /* instructions from a load to its call */
#define XREF_FOLLOW_MAX 2    /* unconditional jumps followed on that way */

typedef struct xref_target {
    uint64_t va;
    uint32_t pat; /* index into xref.pats */
} xref_target;

typedef struct xref_site {
    uint64_t after; /* address behind the loading instruction */
    uint32_t pat;
    int8_t reg; /* register loaded, as as_want.label_reg numbers it */
} xref_site;

typedef struct xref {
    as_elf *e;
    as_pat pats[AS_PATS_MAX];                /* each label once, also when several wants have it */
    int8_t label[AS_WANTS_MAX][AS_PATS_MAX]; /* which label of a want a pattern is; -1: none */
    uint32_t n_pats;
    uint32_t regs;         /* bit r: some want takes labels in register r */
    const as_elf_seg *seg; /* that is being searched */
    uint32_t n_targets, n_sites;
    int full; /* more targets or sites than we keep */
    xref_target targets[XREF_TARGETS_MAX]; /* by address */
    xref_site sites[XREF_SITES_MAX];
} xref;

/* What of the label lies at an address, or NULL. */
const xref_target *xref_target_at(const xref *x, uint64_t va);
void xref_add_site(xref *x, uint64_t after, uint32_t pat, int reg);

/* Adds the sites of one executable segment. An enum as_elf_status. */
int xref_x86_sites(xref *x, const as_elf_seg *s);
int xref_a64_sites(xref *x, const as_elf_seg *s);

/* The address that is called next from va on, by a call or by a jump to the start of another function; 0: none. */
uint64_t xref_x86_next_call(as_elf *e, uint64_t va);
uint64_t xref_a64_next_call(as_elf *e, uint64_t va);

#endif

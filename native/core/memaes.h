/* SPDX-License-Identifier: MIT
 *
 * Finds AES key schedules in bytes; part of memscan.c.
 */
#ifndef AS_MEMAES_H
#define AS_MEMAES_H

#include <stddef.h>
#include <stdint.h>

/* Calls found for each whole encryption schedule of AES-128 or AES-256 that begins in p[0..n), at a multiple of 4 of `addr`,
 * and ends within p[0..all). key: 16 or 32 bytes as FIPS 197 orders them. Bounded by n; nothing is kept. */
void as_aes_schedules(uint64_t addr, const uint8_t *p, size_t n, size_t all,
                      void (*found)(void *u, uint64_t addr, const uint8_t *key, size_t len), void *u);

#endif

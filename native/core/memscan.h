/* SPDX-License-Identifier: MIT
 *
 * TLS secrets in memory. In: bytes of a process, block by block, several passes (memread.c reads them; tests give their own).
 * Out: traffic secrets that prove themselves, and AES keys whose secret was not found. No I/O, no clock.
 *
 *   pass AS_MS_SCHEDULES  AES-128 and -256 encryption key schedules: words that follow the recurrence of FIPS 197 section 5.2,
 *                         in the byte order of AES instructions or as big-endian words (OpenSSL's and Go's portable code)
 *   pass AS_MS_PAIRS      windows of 32 and 48 bytes, any alignment, that look random and whose TLS 1.3 key (RFC 8446 section
 *                         7.3) is one of those schedules: the pair proves both; windows that may be ChaCha20 keys are noted
 *   pass AS_MS_CHACHA     windows of 32 bytes whose ChaCha20 key was noted
 *   pass AS_MS_PROVE      those keys themselves are looked at again: is it there?
 *
 * What is found lies in locked memory that core dumps leave out, and is zeroed by as_ms_free. Nothing else of the memory is
 * kept but a filter of hashes. Keys of decryption schedules and of CPUs without AES instructions (vpaes, bit-sliced) are not
 * recognised; their secrets are neither, except by other means.
 */
#ifndef AS_MEMSCAN_H
#define AS_MEMSCAN_H

#include <stddef.h>
#include <stdint.h>

enum as_ms_pass { AS_MS_SCHEDULES, AS_MS_PAIRS, AS_MS_CHACHA, AS_MS_PROVE, AS_MS_PASSES };
enum as_ms_kind {
    AS_MS_SECRET = 1, /* TLS 1.3 traffic secret */
    AS_MS_KEY = 2,    /* AES key of a schedule that no secret explains: TLS 1.2, or not TLS at all */
};
enum as_ms_cipher { AS_MS_AES128, AS_MS_AES256, AS_MS_CHACHA20 };

#define AS_MS_OVERLAP 256 /* bytes behind a block that should be given with it where memory goes on: the longest thing sought */

typedef struct as_ms_hit {
    uint64_t addr;
    uint8_t kind, cipher, len;
    uint8_t bytes[48];
} as_ms_hit;

typedef struct as_ms_stats {
    uint64_t windows;   /* that looked random */
    uint64_t tests;     /* keys derived from them */
    uint32_t schedules; /* different keys */
    uint32_t secrets, keys;
    uint32_t full; /* bit 0: more schedules than kept, 1: more ChaCha20 candidates, 2: more secrets */
} as_ms_stats;

typedef struct as_ms as_ms;

as_ms *as_ms_new(void); /* NULL: no memory */
void as_ms_free(as_ms *s);

void as_ms_begin(as_ms *s, enum as_ms_pass pass);
int as_ms_needed(const as_ms *s, enum as_ms_pass pass); /* is there anything to be found in it? */
/* Looks at what begins in p[0..n) and may reach to p + n + more. Gives the number of windows that looked random (0 in the first
 * pass): a block that has none needs no further pass. At worst two derivations for each byte, some 1.5 us together. */
uint64_t as_ms_feed(as_ms *s, uint64_t addr, const uint8_t *p, size_t n, size_t more);
/* The hits so far; keys are among them once `finish` is called, behind the last pass. */
void as_ms_finish(as_ms *s);
const as_ms_hit *as_ms_hits(const as_ms *s, size_t *n);
void as_ms_stats_get(const as_ms *s, as_ms_stats *out);

/* Locked memory, kept out of core dumps. NULL: none. */
void *as_ms_lock(size_t n);
void as_ms_unlock(void *p, size_t n); /* zeroes it */

#endif

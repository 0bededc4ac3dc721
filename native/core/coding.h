/* SPDX-License-Identifier: MIT
 *
 * Undoes HTTP codings (RFC 9110 section 8.4.1) as the bytes arrive: gzip and x-gzip (RFC 1952, several members), deflate (RFC
 * 1950, and the raw RFC 1951 that some send), br (RFC 7932), zstd (RFC 8878, window up to 8 MiB as RFC 9659 allows). What was
 * flushed by the sender comes out at once. Output is capped, at every stage of a list. A broken stream gives what came before
 * the damage (brotli may hold back a part of it, depending on how its input was cut) and AS_DEC_ERROR.
 */
#ifndef AS_CODING_H
#define AS_CODING_H

#include "meta.h"

enum as_coding { AS_CODING_GZIP = 1, AS_CODING_DEFLATE, AS_CODING_BR, AS_CODING_ZSTD };
enum as_dec_status { AS_DEC_OK = 0, AS_DEC_ERROR = -1, AS_DEC_LIMIT = -2 };

#define AS_CODING_MAX 4 /* codings in one list; more is nobody's honest use */

typedef struct as_coding_list {
    uint8_t kind[AS_CODING_MAX]; /* in the order they were applied */
    size_t n;
} as_coding_list;

/* Add the codings of a field value to `l`; "identity" adds nothing. 0, or -1 when one is unknown or there are too many. */
int as_coding_parse(as_coding_list *l, as_slice value);

typedef struct as_dec as_dec;
typedef void (*as_dec_out)(void *u, const uint8_t *p, size_t n);

as_dec *as_dec_new(const as_coding_list *l, uint64_t max_out); /* NULL: no memory */
void as_dec_free(as_dec *d);
/* Bytes in, decoded bytes to `out` during the call. After a status other than AS_DEC_OK all further input is ignored. */
int as_dec_feed(as_dec *d, const uint8_t *p, size_t n, as_dec_out out, void *u);
/* The input has ended: AS_DEC_ERROR when a coding's own end was not reached. No input at all is no error. */
int as_dec_end(as_dec *d);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The capture file: a header, then batches of records exactly as they came, each with its length and checksum.
 *
 *   header  "ASCAP\r\n\x1a", u32 format version, u32 AS_ABI_VERSION, u32 ELF machine, u32 0x01020304 in the writer's byte order,
 *           u64 boot time and u64 wall time of its making (ns), u32 bytes of JSON, u32 CRC-32C of the JSON; the JSON
 *   batch   u32 magic, u32 bytes, u32 CRC-32C of them, u32 records; the bytes
 *
 * All numbers in the writer's byte order; a reader of the other order refuses the file. A file that ends inside a batch, or
 * whose batch does not match its checksum, ends with the batch before: the rest is told as torn.
 */
#ifndef AS_CAPFILE_H
#define AS_CAPFILE_H

#include <stddef.h>
#include <stdint.h>

#define AS_CAP_VERSION 1
#define AS_CAP_META_MAX (16u << 20)
#define AS_CAP_BATCH_MAX (64u << 20)

uint32_t as_crc32c(uint32_t crc, const void *data, size_t n); /* start with 0 */

/* Writes the header to an empty file. 0, or -errno. */
int as_cap_write_header(int fd, const void *meta, size_t n, uint64_t boot_ns, uint64_t wall_ns);
int as_cap_write_batch(int fd, const void *data, size_t n, uint32_t records); /* 0, or -errno; a short write is completed */

typedef struct as_cap_reader {
    int fd;
    uint64_t boot_ns, wall_ns;
    uint32_t abi, machine;
    char *meta; /* JSON, NUL-terminated; the reader's */
    size_t meta_len;
    uint64_t torn; /* bytes at the end that are no whole batch; known when next() gave 0 */
} as_cap_reader;

enum as_cap_error {
    AS_CAP_NOT_OURS = -10001,
    AS_CAP_OTHER_VERSION = -10002,
    AS_CAP_OTHER_ORDER = -10003,
    AS_CAP_DAMAGED = -10004
};

/* Takes the descriptor over when it succeeds. 0, -errno, or as_cap_error. */
int as_cap_open(as_cap_reader *r, int fd);
/* The next batch, malloc'ed into *data. 1, 0 at the end, -errno. */
int as_cap_next(as_cap_reader *r, uint8_t **data, size_t *n, uint32_t *records);
void as_cap_close(as_cap_reader *r);

#endif

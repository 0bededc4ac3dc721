/* SPDX-License-Identifier: MIT
 *
 * The capture file: what is written is read, cut at every length, damaged at every byte; the checksum's known answers.
 */
#define _GNU_SOURCE
#include "agentsight.h"
#include "capfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int checks, failures;
#define CHECK(x)                                                                                                                 \
    do {                                                                                                                         \
        checks++;                                                                                                                \
        if (!(x)) {                                                                                                              \
            failures++;                                                                                                          \
            printf("%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #x);                                                 \
        }                                                                                                                        \
    } while (0)

static const char META[] = "{\"a\": 1}";
static const size_t LENGTHS[] = {24, 8, 1000, 0, 4096};
#define BATCHES (sizeof LENGTHS / sizeof LENGTHS[0])

static uint8_t byte_at(size_t batch, size_t i) {
    return (uint8_t)(batch * 37 + i * 11);
}

static int make(const uint8_t *bytes, size_t n) { /* a file in memory, at its beginning */
    int fd = memfd_create("capture", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(write(fd, bytes, n) == (ssize_t)n);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    return fd;
}

static size_t written(uint8_t *to, size_t max, size_t ends[BATCHES + 1]) {
    static uint8_t buf[4096];
    int fd = memfd_create("capture", MFD_CLOEXEC);
    CHECK(as_cap_write_header(fd, META, sizeof META - 1, 123, 456) == 0);
    ends[0] = (size_t)lseek(fd, 0, SEEK_CUR);
    for (size_t b = 0; b < BATCHES; b++) {
        for (size_t i = 0; i < LENGTHS[b]; i++)
            buf[i] = byte_at(b, i);
        CHECK(as_cap_write_batch(fd, buf, LENGTHS[b], (uint32_t)b) == 0);
        ends[b + 1] = (size_t)lseek(fd, 0, SEEK_CUR);
    }
    CHECK(ends[BATCHES] <= max);
    CHECK(pread(fd, to, max, 0) == (ssize_t)ends[BATCHES]);
    close(fd);
    return ends[BATCHES];
}

/* Reads a file; each batch must be the one that was written. How many came, and whether an end was torn off. */
static size_t read_back(int fd, uint64_t *torn) {
    as_cap_reader r;
    size_t n = 0, len;
    uint8_t *data;
    uint32_t records;
    int e;
    CHECK(as_cap_open(&r, fd) == 0);
    CHECK(r.boot_ns == 123 && r.wall_ns == 456 && r.abi == AS_ABI_VERSION && strcmp(r.meta, META) == 0);
    while ((e = as_cap_next(&r, &data, &len, &records)) == 1) {
        int same = n < BATCHES && len == LENGTHS[n] && records == n;
        for (size_t i = 0; same && i < len; i++)
            same = data[i] == byte_at(n, i);
        CHECK(same);
        free(data);
        n++;
    }
    CHECK(e == 0);
    *torn = r.torn;
    CHECK(as_cap_next(&r, &data, &len, &records) == 0); /* the end stays the end */
    as_cap_close(&r);
    return n;
}

static uint8_t file[16384];
static size_t ends[BATCHES + 1];

static void test_whole(void) {
    uint64_t torn;
    size_t n = written(file, sizeof file, ends);
    CHECK(read_back(make(file, n), &torn) == BATCHES);
    CHECK(torn == 0);
}

static void test_cut_at_every_length(void) {
    size_t n = written(file, sizeof file, ends);
    for (size_t cut = 0; cut <= n; cut++) {
        int fd = make(file, cut);
        if (cut < ends[0]) {
            as_cap_reader r;
            int e = as_cap_open(&r, fd);
            CHECK(e == AS_CAP_NOT_OURS || e == AS_CAP_DAMAGED);
            close(fd);
            continue;
        }
        size_t whole = 0;
        uint64_t torn;
        while (whole < BATCHES && ends[whole + 1] <= cut)
            whole++;
        CHECK(read_back(fd, &torn) == whole);
        CHECK(torn == cut - ends[whole]);
    }
}

static void test_damaged_at_every_byte(void) {
    size_t n = written(file, sizeof file, ends);
    for (size_t at = 0; at < n; at++) {
        file[at] ^= 0x40;
        int fd = make(file, n);
        as_cap_reader r;
        int e = as_cap_open(&r, fd);
        if (e) {
            CHECK(at < ends[0]);
            CHECK(e == AS_CAP_NOT_OURS || e == AS_CAP_OTHER_VERSION || e == AS_CAP_OTHER_ORDER || e == AS_CAP_DAMAGED);
            close(fd);
        } else {
            uint8_t *data;
            size_t len, count = 0, whole = 0;
            uint32_t records;
            while (as_cap_next(&r, &data, &len, &records) == 1) {
                free(data);
                count++;
            }
            while (whole < BATCHES && ends[whole + 1] <= at)
                whole++;
            size_t in_batch = at >= ends[whole] ? at - ends[whole] : 0;
            if (at >= ends[0] && (in_batch < 12 || in_batch >= 16)) /* all but the number of records, which is only told */
                CHECK(count == whole && r.torn == n - ends[whole]);
            as_cap_close(&r);
        }
        file[at] ^= 0x40;
    }
}

static void test_bounds(void) {
    int fd = memfd_create("capture", MFD_CLOEXEC);
    CHECK(as_cap_write_header(fd, META, AS_CAP_META_MAX + 1, 0, 0) == -EFBIG);
    CHECK(as_cap_write_batch(fd, META, AS_CAP_BATCH_MAX + 1, 0) == -EFBIG);
    CHECK(lseek(fd, 0, SEEK_CUR) == 0);
    close(fd);
    CHECK(as_cap_write_batch(-1, META, 4, 0) == -EBADF);
    fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        CHECK(as_cap_write_batch(fd, META, 4, 0) == -ENOSPC);
        close(fd);
    }
}

static void test_crc(void) { /* RFC 3720, appendix B.4 */
    uint8_t b[32];
    CHECK(as_crc32c(0, "123456789", 9) == 0xe3069283u);
    memset(b, 0, sizeof b);
    CHECK(as_crc32c(0, b, 32) == 0x8a9136aau);
    memset(b, 0xff, sizeof b);
    CHECK(as_crc32c(0, b, 32) == 0x62a8ab43u);
    for (int i = 0; i < 32; i++)
        b[i] = (uint8_t)i;
    CHECK(as_crc32c(0, b, 32) == 0x46dd794eu);
    for (size_t cut = 0; cut <= 32; cut++)
        CHECK(as_crc32c(as_crc32c(0, b, cut), b + cut, 32 - cut) == 0x46dd794eu);
}

int main(void) {
    test_crc();
    test_whole();
    test_cut_at_every_length();
    test_damaged_at_every_byte();
    test_bounds();
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}

/* SPDX-License-Identifier: MIT
 *
 * See capfile.h. The checksum is CRC-32C, for which CPUs have an instruction: it must not cost more than the copy.
 */
#include "capfile.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agentsight.h"

#define MAGIC "ASCAP\r\n\x1a"
#define BATCH_MAGIC 0x48435442u /* "BTCH" */
#define ORDER 0x01020304u

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#else
#define MACHINE EM_NONE
#endif

struct head {
    char magic[8];
    uint32_t version, abi, machine, order;
    uint64_t boot_ns, wall_ns;
    uint32_t meta_len, meta_crc;
};

struct batch_head {
    uint32_t magic, len, crc, records;
};

/* ---- CRC-32C (Castagnoli, RFC 3720 appendix B.4) ---- */
static uint32_t crc_soft(uint32_t crc, const uint8_t *p, size_t n) {
    static uint32_t table[256];
    static int ready;
    if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++)
                c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
            __atomic_store_n(&table[i], c, __ATOMIC_RELAXED);
        }
        __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    }
    while (n--)
        crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_hard(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t c = crc, v;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&v, p, 8);
        c = __builtin_ia32_crc32di(c, v);
    }
    while (n--)
        c = __builtin_ia32_crc32qi((uint32_t)c, *p++);
    return (uint32_t)c;
}
#define HAVE_HARD __builtin_cpu_supports("sse4.2")
#else
#define crc_hard crc_soft
#define HAVE_HARD 0
#endif

uint32_t as_crc32c(uint32_t crc, const void *data, size_t n) {
    crc = ~crc;
    crc = HAVE_HARD ? crc_hard(crc, data, n) : crc_soft(crc, data, n);
    return ~crc;
}

/* ---- writing ---- */
static int write_all(int fd, const void *head, size_t head_len, const void *data, size_t n) {
    struct iovec v[2] = {{(void *)head, head_len}, {(void *)data, n}};
    while (v[0].iov_len || v[1].iov_len) {
        ssize_t w = writev(fd, v, 2);
        if (w < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        for (int i = 0; i < 2; i++) {
            size_t done = (size_t)w < v[i].iov_len ? (size_t)w : v[i].iov_len;
            v[i].iov_base = (char *)v[i].iov_base + done;
            v[i].iov_len -= done;
            w -= (ssize_t)done;
        }
    }
    return 0;
}

int as_cap_write_header(int fd, const void *meta, size_t n, uint64_t boot_ns, uint64_t wall_ns) {
    struct head h;
    if (n > AS_CAP_META_MAX)
        return -EFBIG;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, MAGIC, sizeof h.magic);
    h.version = AS_CAP_VERSION;
    h.abi = AS_ABI_VERSION;
    h.machine = MACHINE;
    h.order = ORDER;
    h.boot_ns = boot_ns;
    h.wall_ns = wall_ns;
    h.meta_len = (uint32_t)n;
    h.meta_crc = as_crc32c(0, meta, n);
    return write_all(fd, &h, sizeof h, meta, n);
}

int as_cap_write_batch(int fd, const void *data, size_t n, uint32_t records) {
    if (n > AS_CAP_BATCH_MAX)
        return -EFBIG;
    struct batch_head b = {BATCH_MAGIC, (uint32_t)n, as_crc32c(0, data, n), records};
    return write_all(fd, &b, sizeof b, data, n);
}

/* ---- reading ---- */
static ssize_t read_all(int fd, void *to, size_t n) { /* as much as there is, up to n; -errno */
    size_t got = 0;
    while (got < n) {
        ssize_t r = read(fd, (char *)to + got, n - got);
        if (r < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (!r)
            break;
        got += (size_t)r;
    }
    return (ssize_t)got;
}

int as_cap_open(as_cap_reader *r, int fd) {
    struct head h;
    memset(r, 0, sizeof *r);
    r->fd = -1;
    ssize_t n = read_all(fd, &h, sizeof h);
    if (n < 0)
        return (int)n;
    if (n < (ssize_t)sizeof h || memcmp(h.magic, MAGIC, sizeof h.magic) != 0)
        return AS_CAP_NOT_OURS;
    if (h.order != ORDER)
        return AS_CAP_OTHER_ORDER;
    if (h.version != AS_CAP_VERSION || h.abi != AS_ABI_VERSION)
        return AS_CAP_OTHER_VERSION;
    if (h.meta_len > AS_CAP_META_MAX)
        return AS_CAP_DAMAGED;
    char *meta = malloc((size_t)h.meta_len + 1);
    if (!meta)
        return -ENOMEM;
    n = read_all(fd, meta, h.meta_len);
    if (n != (ssize_t)h.meta_len || as_crc32c(0, meta, h.meta_len) != h.meta_crc) {
        free(meta);
        return n < 0 ? (int)n : AS_CAP_DAMAGED;
    }
    meta[h.meta_len] = 0;
    r->fd = fd;
    r->boot_ns = h.boot_ns;
    r->wall_ns = h.wall_ns;
    r->abi = h.abi;
    r->machine = h.machine;
    r->meta = meta;
    r->meta_len = h.meta_len;
    return 0;
}

/* What is left of the file from `had` bytes before the present position on. */
static int torn(as_cap_reader *r, size_t had) {
    struct stat st;
    off_t at = lseek(r->fd, 0, SEEK_CUR);
    r->torn = had;
    if (at >= 0 && fstat(r->fd, &st) == 0 && st.st_size > at)
        r->torn += (uint64_t)(st.st_size - at);
    return 0;
}

int as_cap_next(as_cap_reader *r, uint8_t **data, size_t *len, uint32_t *records) {
    struct batch_head b;
    *data = NULL;
    if (r->torn)
        return 0;
    ssize_t n = read_all(r->fd, &b, sizeof b);
    if (n <= 0)
        return (int)n;
    if (n < (ssize_t)sizeof b || b.magic != BATCH_MAGIC || b.len > AS_CAP_BATCH_MAX)
        return torn(r, (size_t)n);
    struct stat st; /* no memory for bytes that are not there */
    off_t at = lseek(r->fd, 0, SEEK_CUR);
    if (at >= 0 && fstat(r->fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size - at < (off_t)b.len)
        return torn(r, sizeof b);
    uint8_t *p = malloc(b.len ? b.len : 1);
    if (!p)
        return -ENOMEM;
    n = read_all(r->fd, p, b.len);
    if (n != (ssize_t)b.len || as_crc32c(0, p, b.len) != b.crc) {
        free(p);
        return n < 0 ? (int)n : torn(r, sizeof b + (size_t)n);
    }
    *data = p;
    *len = b.len;
    *records = b.records;
    return 1;
}

void as_cap_close(as_cap_reader *r) {
    if (r->fd >= 0)
        close(r->fd);
    free(r->meta);
    r->fd = -1;
    r->meta = NULL;
}

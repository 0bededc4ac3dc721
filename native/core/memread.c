/* SPDX-License-Identifier: MIT
 *
 * See memread.h. One list of runs of present pages is made at the start; each pass reads them again, those passes that look
 * for windows only the pieces in which the one before saw any.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* process_vm_readv */
#endif
#include "memread.h"

#include "agentsight.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define WINDOW ((size_t)256 << 10)
#define SLICE ((size_t)4 << 10) /* between two looks at the clock */
#define MAX_RUNS ((size_t)1 << 20)
#define PM_PRESENT (1ull << 63)
#define PM_SWAP (1ull << 62)
#define PM_FILE (1ull << 61) /* the page of a file, or of shared memory */

typedef struct run { /* present pages that follow each other */
    uint64_t addr, n;
} run;

typedef struct search {
    as_ms *s;
    int pid;
    const as_mem_opts *o;
    as_mem_stats *st;
    uint8_t *buf;
    run *runs;
    size_t nruns, cap;
    uint8_t *quiet; /* one bit for each window of the list: nothing there looks random */
    uint64_t began;
} search;

static uint64_t now(clockid_t c) {
    struct timespec t;
    clock_gettime(c, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int over(search *x) { /* is there reason to end? */
    if (x->o->stop && *x->o->stop)
        x->st->end = AS_MEM_STOPPED;
    else if (now(CLOCK_THREAD_CPUTIME_ID) - x->began > x->o->max_cpu_ns)
        x->st->end = AS_MEM_TIME;
    else
        return 0;
    return 1;
}

/* ---- what to read ---- */
static int add_run(search *x, uint64_t addr, uint64_t n) {
    if (x->st->present + n > x->o->max_bytes) {
        n = x->o->max_bytes - x->st->present;
        x->st->end = AS_MEM_BYTES;
    }
    if (!n)
        return -1;
    x->st->present += n;
    if (x->nruns && x->runs[x->nruns - 1].addr + x->runs[x->nruns - 1].n == addr) {
        x->runs[x->nruns - 1].n += n;
    } else {
        if (x->nruns == x->cap) {
            size_t cap = x->cap ? 2 * x->cap : 256;
            run *r = cap > MAX_RUNS ? NULL : realloc(x->runs, cap * sizeof *r);
            if (!r) {
                x->st->end = AS_MEM_BYTES;
                return -1;
            }
            x->runs = r;
            x->cap = cap;
        }
        x->runs[x->nruns++] = (run){addr, n};
    }
    return x->st->end == AS_MEM_BYTES ? -1 : 0;
}

/* ---- PAGEMAP_SCAN of kernel 6.7 (linux/fs.h): passes over what is empty, however large it is ---- */
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any, give;
};
struct scan_region {
    uint64_t start, end, is;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define IS_FILE 4u
#define IS_PRESENT 8u
#define IS_SWAPPED 16u
#define IS_ZERO 32u

/* As `pages`; 1 where the kernel has no such call. */
static int scan_pages(search *x, int pagemap, uint64_t lo, uint64_t hi, int own) {
    struct scan_region r[256];
    while (lo < hi) {
        struct scan_arg a = {.size = sizeof a, .start = lo, .end = hi, .vec = (uintptr_t)r, .vec_len = sizeof r / sizeof *r};
        a.inverted = a.mask = IS_ZERO | (own ? IS_FILE : 0); /* those that are neither */
        a.any = a.give = IS_PRESENT | IS_SWAPPED;
        int n = ioctl(pagemap, SCAN_IOCTL, &a);
        if (n < 0)
            return errno == ENOTTY || errno == EINVAL ? 1 : 0; /* else: the mapping went away */
        for (int i = 0; i < n; i++)
            if (r[i].is & IS_SWAPPED)
                x->st->swapped += r[i].end - r[i].start;
            else if (add_run(x, r[i].start, r[i].end - r[i].start))
                return -1;
        if (a.walk_end <= lo)
            return 0;
        lo = a.walk_end;
        if (over(x))
            return -1;
    }
    return 0;
}

static int pages(search *x, int pagemap, uint64_t lo, uint64_t hi, int own) { /* own: not the pages of the file behind it */
    static const size_t chunk = 4096;
    int r = scan_pages(x, pagemap, lo, hi, own);
    if (r <= 0)
        return r;
    uint64_t size = (uint64_t)sysconf(_SC_PAGESIZE), entry[4096];
    for (uint64_t at = lo; at < hi;) {
        uint64_t want = (hi - at) / size;
        ssize_t got = pread(pagemap, entry, (want < chunk ? want : chunk) * 8, (off_t)(at / size * 8));
        if (got < 8)
            return 0; /* the mapping went away */
        for (size_t i = 0; i < (size_t)got / 8; i++, at += size) {
            if (entry[i] & PM_SWAP)
                x->st->swapped += size;
            if (entry[i] & PM_PRESENT && !(own && entry[i] & PM_FILE) && add_run(x, at, size))
                return -1;
        }
        if (over(x))
            return -1;
    }
    return 0;
}

static int list(search *x) {
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/pagemap", x->pid);
    int pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return -errno;
    snprintf(path, sizeof path, "/proc/%d/maps", x->pid);
    FILE *maps = fopen(path, "re");
    if (!maps) {
        int e = errno;
        close(pagemap);
        return -e;
    }
    int begin = 1, more = 1;
    while (more && fgets(line, sizeof line, maps)) {
        uint64_t lo, hi, ino;
        char perm[5], name[16] = "";
        int first = begin;
        begin = strchr(line, '\n') != NULL; /* the rest of a long line is none */
        if (!first || sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*s %" SCNu64 " %15s", &lo, &hi, perm, &ino, name) < 4)
            continue;
        int device = strncmp(name, "/dev/", 5) == 0 && strncmp(name, "/dev/zero", 9) != 0 && strncmp(name, "/dev/shm/", 9) != 0;
        if (perm[0] != 'r' || perm[1] != 'w' || device)
            continue;
        x->st->mapped += hi - lo;
        more = pages(x, pagemap, lo, hi, ino && perm[3] == 'p') == 0;
    }
    fclose(maps);
    close(pagemap);
    return 0;
}

/* ---- reading it ---- */
/* Bytes read from addr on; a page that went away ends it. */
static size_t fetch(search *x, uint64_t addr, size_t n) {
    struct iovec to = {x->buf, n}, from = {(void *)(uintptr_t)addr, n};
    ssize_t got = process_vm_readv(x->pid, &to, 1, &from, 1, 0);
    if (got <= 0)
        return 0;
    x->st->read += (uint64_t)got;
    return (size_t)got;
}

static void scan(search *x, enum as_ms_pass pass, size_t window, uint64_t addr, size_t n, size_t more) {
    size_t got = fetch(x, addr, n + more);
    uint64_t found = 0;
    if (!got) {
        if (pass == AS_MS_SCHEDULES)
            x->st->gone += n;
        return;
    }
    if (got < n && pass == AS_MS_SCHEDULES)
        x->st->gone += n - got;
    for (size_t at = 0; at < n && at < got;) {
        size_t k = n - at < SLICE ? n - at : SLICE;
        if (k > got - at)
            k = got - at;
        size_t tail = got - at - k < AS_MS_OVERLAP ? got - at - k : AS_MS_OVERLAP;
        found += as_ms_feed(x->s, addr + at, x->buf + at, k, tail);
        at += k;
        if (over(x))
            break;
    }
    if (pass == AS_MS_PAIRS && !found)
        x->quiet[window / 8] |= (uint8_t)(1u << window % 8);
}

static void run_pass(search *x, enum as_ms_pass pass) {
    uint64_t t = now(CLOCK_THREAD_CPUTIME_ID);
    size_t window = 0;
    as_ms_begin(x->s, pass);
    for (size_t i = 0; i < x->nruns && x->st->end != AS_MEM_TIME && x->st->end != AS_MEM_STOPPED; i++)
        for (uint64_t at = 0; at < x->runs[i].n; at += WINDOW, window++) {
            size_t n = x->runs[i].n - at < WINDOW ? (size_t)(x->runs[i].n - at) : WINDOW;
            size_t more = x->runs[i].n - at - n < AS_MS_OVERLAP ? (size_t)(x->runs[i].n - at - n) : AS_MS_OVERLAP;
            if (pass > AS_MS_PAIRS && x->quiet[window / 8] >> window % 8 & 1)
                continue;
            scan(x, pass, window, x->runs[i].addr + at, n, more);
            if (x->st->end == AS_MEM_TIME || x->st->end == AS_MEM_STOPPED)
                break;
        }
    x->st->cpu_ns[pass] = now(CLOCK_THREAD_CPUTIME_ID) - t;
}

int as_mem_search(as_ms *s, int pid, const as_mem_opts *o, as_mem_stats *out) {
    uint64_t wall = now(CLOCK_MONOTONIC);
    search x = {.s = s, .pid = pid, .o = o, .st = out, .began = now(CLOCK_THREAD_CPUTIME_ID)};
    memset(out, 0, sizeof *out);
    int r = list(&x);
    size_t windows = 0;
    for (size_t i = 0; i < x.nruns; i++)
        windows += (size_t)((x.runs[i].n + WINDOW - 1) / WINDOW);
    x.buf = as_ms_lock(WINDOW + AS_MS_OVERLAP);
    x.quiet = calloc(windows / 8 + 1, 1);
    if (r == 0 && (!x.buf || !x.quiet))
        r = -ENOMEM;
    if (r == 0 && x.nruns && !fetch(&x, x.runs[0].addr, 1) && (errno == EPERM || errno == ESRCH))
        r = -errno;
    for (int pass = 0; r == 0 && pass < (o->chacha ? AS_MS_PASSES : AS_MS_CHACHA); pass++)
        if (as_ms_needed(s, (enum as_ms_pass)pass))
            run_pass(&x, (enum as_ms_pass)pass);
    as_ms_finish(s);
    as_ms_stats_get(s, &out->s);
    as_ms_unlock(x.buf, WINDOW + AS_MS_OVERLAP);
    free(x.quiet);
    free(x.runs);
    out->wall_ns = now(CLOCK_MONOTONIC) - wall;
    return r;
}

size_t as_mem_records(const as_ms *s, uint32_t tgid, uint32_t uid, int keys, struct as_secret *out, size_t max) {
    static const char *const labels[] = {"", "TRAFFIC_SECRET", "AES_KEY"};
    size_t n, made = 0;
    const as_ms_hit *h = as_ms_hits(s, &n);
    for (size_t i = 0; i < n; i++) {
        if (h[i].kind == AS_MS_KEY && !keys)
            continue;
        if (out && made == max)
            break;
        if (out) {
            struct as_secret *r = &out[made];
            memset(r, 0, sizeof *r);
            r->h.len = sizeof *r;
            r->h.kind = AS_K_SECRET;
            r->h.tgid = tgid;
            r->uid = uid;
            r->arg1 = h[i].addr;
            r->stack = AS_STACK_MEMORY;
            r->flags = h[i].cipher == AS_MS_CHACHA20 ? AS_SEC_CHACHA : 0;
            r->label_len = (uint8_t)strlen(labels[h[i].kind]);
            memcpy(r->label, labels[h[i].kind], r->label_len);
            r->secret_len = h[i].len;
            memcpy(r->secret, h[i].bytes, h[i].len);
        }
        made++;
    }
    return made;
}

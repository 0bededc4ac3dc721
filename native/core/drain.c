/* SPDX-License-Identifier: MIT
 *
 * See drain.h. The ring's layout is that of kernel/bpf/ringbuf.c: a page with the consumer's position, a page with the
 * producers', then the data, mapped twice in a row so that a record never wraps. Each record has an 8-byte head of its own.
 */
#include "drain.h"

#include <errno.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BATCH_MAX (4u << 20)
#define BATCH_MID (512u << 10)
#define BATCH_MIN (64u << 10)
#define KEEP_FREE 8            /* blocks of each size kept for reuse */
#define BUSY_BYTES (256 << 10) /* so much at once: look again without waiting */
#define SECOND 1000000000ULL
#define DROPS_EVERY (SECOND / 4)
#define TICK_AFTER (SECOND / 10)
#define ALIGN8(n) (((n) + 7) & ~(size_t)7)

struct as_drain {
    as_drain_opts o;
    uint64_t *consumer;
    const uint64_t *producer;
    const uint8_t *data;
    size_t page;
    int epoll, wake;
    pthread_t thread;
    int started, stopping, may_raise;

    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t filled;
    as_batch *first, *last;
    as_batch *spare[3];
    unsigned n_spare[3];
    int closed;
    unsigned refs; /* the drain's own, and one for each batch that was given out */
    as_drain_counters count;
    struct as_drop_counter told[AS_D_MAX];
    uint64_t last_record; /* boot time of the last thing put into the stream */
};

static uint64_t now_ns(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

uint64_t as_boot_ns(void) {
    return now_ns(CLOCK_BOOTTIME);
}
uint64_t as_wall_ns(void) {
    return now_ns(CLOCK_REALTIME);
}

/* ---- batches ---- */
static const size_t sizes[3] = {BATCH_MIN, BATCH_MID, BATCH_MAX};

static as_batch *batch_new(as_drain *d, size_t want, int may_exceed) { /* lock held */
    as_batch *b = NULL;
    unsigned k = want <= BATCH_MIN ? 0 : want <= BATCH_MID ? 1 : 2;
    size_t cap = want > BATCH_MAX ? ALIGN8(want) : sizes[k];
    if (!may_exceed && d->count.arena_used + cap > d->o.arena_bytes)
        return NULL;
    if (cap == sizes[k] && d->spare[k]) {
        b = d->spare[k];
        d->spare[k] = b->next;
        d->n_spare[k]--;
    } else {
        b = malloc(sizeof *b);
        if (!b)
            return NULL;
        b->data = malloc(cap);
        if (!b->data) {
            free(b);
            return NULL;
        }
        b->cap = cap;
    }
    b->len = 0;
    b->records = 0;
    b->has_secret = 0;
    b->user = 0;
    b->next = NULL;
    b->owner = d;
    d->count.arena_used += b->cap;
    if (d->count.arena_used > d->count.arena_peak)
        d->count.arena_peak = d->count.arena_used;
    return b;
}

static void batch_done(as_drain *d, as_batch *b) { /* lock held */
    d->count.arena_used -= b->cap;
    if (b->has_secret)
        explicit_bzero(b->data, b->len);
    for (unsigned k = 0; k < 3; k++)
        if (b->cap == sizes[k] && d->n_spare[k] < KEEP_FREE) {
            b->next = d->spare[k];
            d->spare[k] = b;
            d->n_spare[k]++;
            return;
        }
    free(b->data);
    free(b);
}

static void push(as_drain *d, as_batch *b) { /* lock held */
    b->next = NULL;
    if (d->last)
        d->last->next = b;
    else
        d->first = b;
    d->last = b;
    d->count.batches++;
    pthread_cond_signal(&d->filled);
}

static int put_locked(as_drain *d, struct as_hdr *rec, size_t rec_len, const void *rest, size_t rest_len) {
    size_t len = ALIGN8(rec_len + rest_len);
    as_batch *b = d->last;
    if (!b || !b->user || b->cap - b->len < len) {
        b = batch_new(d, len, 1);
        if (!b)
            return -ENOMEM;
        b->user = 1;
        push(d, b);
    }
    rec->len = (uint32_t)len;
    if (!rec->ts)
        rec->ts = as_boot_ns();
    uint8_t *to = b->data + b->len;
    memcpy(to, rec, rec_len);
    if (rest_len)
        memcpy(to + rec_len, rest, rest_len);
    memset(to + rec_len + rest_len, 0, len - rec_len - rest_len);
    b->len += len;
    b->records++;
    b->has_secret |= rec->kind == AS_K_SECRET; /* found in memory */
    d->last_record = rec->ts;
    return 0;
}

int as_drain_put(as_drain *d, struct as_hdr *rec, const void *rest, size_t rest_len) {
    size_t rec_len = rec->len; /* of the fixed part */
    pthread_mutex_lock(&d->lock);
    int r = d->closed ? -EPIPE : put_locked(d, rec, rec_len, rest, rest_len);
    pthread_mutex_unlock(&d->lock);
    return r;
}

static void put_clock(as_drain *d) { /* lock held */
    struct as_clock c = {.h = {.kind = AS_K_CLOCK}};
    c.wall_ns = as_wall_ns();
    c.h.ts = as_boot_ns();
    put_locked(d, &c.h, sizeof c, NULL, 0);
}

static void put_drops(as_drain *d, int always) {
    struct as_drops r = {.h = {.kind = AS_K_DROPS}};
    if (!d->o.drops || d->o.drops(d->o.drops_ctx, r.c))
        return;
    pthread_mutex_lock(&d->lock);
    if (always || memcmp(r.c, d->told, sizeof r.c) != 0) {
        memcpy(d->told, r.c, sizeof r.c);
        put_locked(d, &r.h, sizeof r, NULL, 0);
    }
    pthread_mutex_unlock(&d->lock);
}

/* ---- the ring ---- */

/* How much of a record is real: programs reserve by size classes. What lies behind is old memory and is not copied. */
static size_t real_length(const struct as_hdr *h, size_t len) {
    size_t n = len;
    switch (h->kind) {
    case AS_K_DATA:
        n = sizeof(struct as_data) + (size_t)((const struct as_data *)h)->cap;
        break;
    case AS_K_STDIO:
        n = sizeof(struct as_stdio) + (size_t)((const struct as_stdio *)h)->cap;
        break;
    case AS_K_EXEC: {
        const struct as_exec *e = (const struct as_exec *)h;
        n = sizeof *e + (size_t)e->name_len + e->cwd_len + e->args_cap;
        break;
    }
    case AS_K_EXEC_ARGS:
        n = sizeof(struct as_exec_args) + (size_t)((const struct as_exec_args *)h)->cap;
        break;
    }
    return n < len ? n : len;
}

/* Copies what the ring holds into `b`, as far as there is room. The bytes freed in the ring. */
static size_t copy_ring(as_drain *d, as_batch *b, uint64_t *records, uint64_t *bytes) {
    uint64_t mask = d->o.ring_bytes - 1;
    uint64_t at = __atomic_load_n(d->consumer, __ATOMIC_RELAXED), begin = at, told = at;
    uint64_t end = __atomic_load_n(d->producer, __ATOMIC_ACQUIRE);
    while (at < end) {
        const uint8_t *p = d->data + (at & mask);
        uint32_t head = __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE);
        if (head & BPF_RINGBUF_BUSY_BIT)
            break; /* being written */
        uint32_t len = head & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
        if (!(head & BPF_RINGBUF_DISCARD_BIT) && len >= sizeof(struct as_hdr)) {
            const struct as_hdr *h = (const struct as_hdr *)(p + BPF_RINGBUF_HDR_SZ);
            size_t real = real_length(h, len), padded = ALIGN8(real);
            if (b->cap - b->len < padded)
                break;
            uint8_t *to = b->data + b->len;
            memcpy(to, h, real);
            memset(to + real, 0, padded - real);
            ((struct as_hdr *)to)->len = (uint32_t)padded;
            b->has_secret |= h->kind == AS_K_SECRET;
            b->len += padded;
            b->records++;
            ++*records;
            *bytes += real;
        }
        at += ALIGN8((uint64_t)len + BPF_RINGBUF_HDR_SZ);
        if (at - told >= 65536) { /* room for the producers, but not a write to their cache line for each record */
            __atomic_store_n(d->consumer, at, __ATOMIC_RELEASE);
            told = at;
        }
    }
    __atomic_store_n(d->consumer, at, __ATOMIC_RELEASE);
    return at - begin;
}

static void raise_priority(as_drain *d) {
    if (setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), -20) == 0)
        d->count.priority_raised = 1;
    else
        d->may_raise = 0;
}

/* One look at the ring. The bytes freed there; *full: data had to stay since the arena is full (not at the last). */
static size_t drain_once(as_drain *d, int last, int *full) {
    uint64_t waiting = __atomic_load_n(d->producer, __ATOMIC_ACQUIRE) - __atomic_load_n(d->consumer, __ATOMIC_RELAXED);
    uint64_t records = 0, bytes = 0;
    *full = 0;
    if (!waiting)
        return 0;
    if (d->may_raise && !d->count.priority_raised && waiting > d->o.ring_bytes / 8)
        raise_priority(d);
    pthread_mutex_lock(&d->lock);
    if (waiting > d->count.ring_peak)
        d->count.ring_peak = waiting;
    as_batch *b = batch_new(d, waiting < BATCH_MAX ? waiting : BATCH_MAX, last);
    if (!b) {
        d->count.arena_full++;
        *full = 1;
    }
    pthread_mutex_unlock(&d->lock);
    if (!b)
        return 0;
    size_t freed = copy_ring(d, b, &records, &bytes);
    pthread_mutex_lock(&d->lock);
    d->count.records += records;
    d->count.bytes += bytes;
    if (b->len) {
        push(d, b);
        d->last_record = as_boot_ns();
    } else {
        batch_done(d, b);
    }
    pthread_mutex_unlock(&d->lock);
    return freed;
}

static void *work(void *arg) {
    as_drain *d = arg;
    uint64_t clock_at = as_boot_ns() + SECOND, drops_at = as_boot_ns() + DROPS_EVERY;
    int idle = 0;
    while (!__atomic_load_n(&d->stopping, __ATOMIC_ACQUIRE)) {
        int full;
        size_t n = drain_once(d, 0, &full);
        uint64_t now = as_boot_ns();
        if (now >= drops_at) {
            put_drops(d, 0);
            drops_at = now + DROPS_EVERY;
        }
        pthread_mutex_lock(&d->lock);
        if (now >= clock_at) {
            put_clock(d);
            clock_at = now + SECOND;
        }
        if (now > d->last_record && now - d->last_record >= TICK_AFTER && !d->first) {
            struct as_hdr tick = {.kind = AS_K_TICK};
            put_locked(d, &tick, sizeof tick, NULL, 0);
        }
        pthread_mutex_unlock(&d->lock);
        if (n >= BUSY_BYTES)
            continue;
        idle = n ? 0 : idle < 100 ? idle + 1 : idle;
        /* edge triggered: only a wake-up by a program ends the wait early, not data that is there */
        struct epoll_event e;
        epoll_wait(d->epoll, &e, 1, full || !idle ? 2 : idle < 100 ? 10 : 20);
    }
    /* What is left, whatever the arena says: it is one ring at most, and the reader may be waiting for us. */
    int full;
    while (drain_once(d, 1, &full) > 0) {}
    put_drops(d, 1);
    pthread_mutex_lock(&d->lock);
    put_clock(d);
    d->closed = 1;
    pthread_cond_broadcast(&d->filled);
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* ---- life ---- */
static void unmap(as_drain *d) {
    if (d->consumer)
        munmap(d->consumer, d->page);
    if (d->producer)
        munmap((void *)d->producer, d->page + 2 * d->o.ring_bytes);
    d->consumer = NULL;
    d->producer = NULL;
}

as_drain *as_drain_new(const as_drain_opts *o, int *error) {
    as_drain *d = calloc(1, sizeof *d);
    if (!d) {
        *error = ENOMEM;
        return NULL;
    }
    d->o = *o;
    d->page = (size_t)sysconf(_SC_PAGESIZE);
    d->epoll = d->wake = -1;
    d->refs = 1;
    pthread_condattr_t ca;
    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_init(&ca);
    pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
    pthread_cond_init(&d->filled, &ca);
    pthread_condattr_destroy(&ca);

    void *p = mmap(NULL, d->page, PROT_READ | PROT_WRITE, MAP_SHARED, o->ring_fd, 0);
    if (p == MAP_FAILED)
        goto fail;
    d->consumer = p;
    p = mmap(NULL, d->page + 2 * o->ring_bytes, PROT_READ, MAP_SHARED, o->ring_fd, (off_t)d->page);
    if (p == MAP_FAILED)
        goto fail;
    d->producer = p;
    d->data = (const uint8_t *)p + d->page;

    d->epoll = epoll_create1(EPOLL_CLOEXEC);
    d->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event ring = {.events = EPOLLIN | EPOLLET}, wake = {.events = EPOLLIN};
    if (d->epoll < 0 || d->wake < 0 || epoll_ctl(d->epoll, EPOLL_CTL_ADD, o->ring_fd, &ring) ||
        epoll_ctl(d->epoll, EPOLL_CTL_ADD, d->wake, &wake))
        goto fail;
    put_clock(d);
    return d;
fail:
    *error = errno;
    as_drain_free(d);
    return NULL;
}

int as_drain_start(as_drain *d, int may_raise_priority) {
    d->may_raise = may_raise_priority;
    int r = pthread_create(&d->thread, NULL, work, d);
    if (r)
        return -r;
    d->started = 1;
    return 0;
}

void as_drain_stop(as_drain *d) {
    if (d->started) {
        uint64_t one = 1;
        __atomic_store_n(&d->stopping, 1, __ATOMIC_RELEASE);
        if (write(d->wake, &one, sizeof one) < 0) {
            /* the thread looks by itself every few milliseconds */
        }
        pthread_join(d->thread, NULL);
        d->started = 0;
    }
    pthread_mutex_lock(&d->lock);
    d->closed = 1;
    pthread_cond_broadcast(&d->filled);
    pthread_mutex_unlock(&d->lock);
    unmap(d);
}

static void destroy(as_drain *d) {
    unmap(d);
    for (as_batch *b = d->first, *next; b; b = next) {
        next = b->next;
        if (b->has_secret)
            explicit_bzero(b->data, b->len);
        free(b->data);
        free(b);
    }
    for (int k = 0; k < 3; k++)
        for (as_batch *b = d->spare[k], *next; b; b = next) {
            next = b->next;
            free(b->data);
            free(b);
        }
    if (d->epoll >= 0)
        close(d->epoll);
    if (d->wake >= 0)
        close(d->wake);
    pthread_cond_destroy(&d->filled);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

void as_drain_free(as_drain *d) {
    if (!d)
        return;
    pthread_mutex_lock(&d->lock);
    unsigned left = --d->refs;
    pthread_mutex_unlock(&d->lock);
    if (!left)
        destroy(d);
}

/* ---- reading ---- */
as_batch *as_drain_read(as_drain *d, int timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&d->lock);
    while (!d->first && !d->closed && timeout_ms > 0)
        if (pthread_cond_timedwait(&d->filled, &d->lock, &until) == ETIMEDOUT)
            break;
    as_batch *b = d->first;
    if (b) {
        d->first = b->next;
        if (!d->first)
            d->last = NULL;
        b->next = NULL;
        d->refs++;
    }
    pthread_mutex_unlock(&d->lock);
    return b;
}

int as_drain_closed(as_drain *d) {
    pthread_mutex_lock(&d->lock);
    int r = d->closed && !d->first;
    pthread_mutex_unlock(&d->lock);
    return r;
}

void as_batch_release(as_batch *b) {
    as_drain *d = b->owner;
    pthread_mutex_lock(&d->lock);
    batch_done(d, b);
    unsigned left = --d->refs;
    pthread_mutex_unlock(&d->lock);
    if (!left)
        destroy(d);
}

void as_drain_count(as_drain *d, as_drain_counters *out) {
    pthread_mutex_lock(&d->lock);
    *out = d->count;
    pthread_mutex_unlock(&d->lock);
}

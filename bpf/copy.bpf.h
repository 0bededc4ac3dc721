/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Copies the bytes of one call from user memory into records, segment by segment, at most AS_COPY_CHUNK bytes a record.
 *
 * One step is a global function: the verifier looks at it once, and the loop around it, with its cursor on the caller's stack,
 * costs a handful of instructions per step on every kernel from 5.15 on. Records have size classes, because
 * bpf_ringbuf_reserve() wants a constant; the reader cuts what is beyond `cap`.
 */
#ifndef AS_COPY_BPF_H
#define AS_COPY_BPF_H

#include "common.bpf.h"

#define AS_COPY_CHUNK 65536
#define AS_COPY_SEGS 1024
#define AS_COPY_STEPS 2400 /* 1024 segments and 80 MiB */
#define AS_REC_HEAD 64     /* room for struct as_data and struct as_stdio */

struct copy {
    u64 iov;  /* the next segment to load */
    u64 base; /* of the segment at hand */
    u64 left; /* of it */
    u64 remain; /* of the call */
    u64 off;    /* in the stream */
    u64 chan;   /* socket cookie; stdio: inode */
    u64 ts;
    u64 id; /* pid_tgid */
    u64 copied, faulted, dropped;
    u32 segs; /* not loaded yet */
    u32 uid;
    u32 dev;
    u32 real; /* stdio: what the first record tells */
    s32 fd;
    u16 nr;
    u8 dir;
    u8 obj; /* stdio: AS_OBJ_*; 0: a TCP socket */
    u8 cls;
    u8 trunc; /* stdio: more than cfg.stdio_max */
    u8 pad[2];
};

#define AS_CLASS(n, size)                                                                                                        \
    if ((n) <= (size)) {                                                                                                         \
        *cap = (size);                                                                                                           \
        return bpf_ringbuf_reserve(&ring, AS_REC_HEAD + (size), 0);                                                              \
    }

static __always_inline void *reserve_payload(u32 n, u32 *cap) {
    if (n <= 1024) {
        AS_CLASS(n, 64)
        AS_CLASS(n, 128)
        AS_CLASS(n, 256)
        AS_CLASS(n, 512)
        AS_CLASS(n, 1024)
    }
    AS_CLASS(n, 2048)
    AS_CLASS(n, 4096)
    AS_CLASS(n, 8192)
    AS_CLASS(n, 17408) /* a whole TLS record */
    AS_CLASS(n, 34816)
    *cap = AS_COPY_CHUNK;
    return bpf_ringbuf_reserve(&ring, AS_REC_HEAD + AS_COPY_CHUNK, 0);
}

static __always_inline u8 classify(const u8 *p, u32 n) {
    u32 a;
    if (n < 4)
        return n && p[0] == 5 ? AS_CLS_CONNECT : AS_CLS_OTHER;
    a = (u32)p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24;
    if ((a & 0xffff) == 0x0316 && p[2] <= 4)
        return AS_CLS_TLS;
    switch (a) {
    case 'G' | 'E' << 8 | 'T' << 16 | ' ' << 24:
    case 'P' | 'O' << 8 | 'S' << 16 | 'T' << 24:
    case 'P' | 'U' << 8 | 'T' << 16 | ' ' << 24:
    case 'H' | 'E' << 8 | 'A' << 16 | 'D' << 24:
    case 'D' | 'E' << 8 | 'L' << 16 | 'E' << 24:
    case 'O' | 'P' << 8 | 'T' << 16 | 'I' << 24:
    case 'P' | 'A' << 8 | 'T' << 16 | 'C' << 24:
    case 'T' | 'R' << 8 | 'A' << 16 | 'C' << 24:
    case 'P' | 'R' << 8 | 'I' << 16 | ' ' << 24:
    case 'H' | 'T' << 8 | 'T' << 16 | 'P' << 24:
        return AS_CLS_HTTP;
    case 'C' | 'O' << 8 | 'N' << 16 | 'N' << 24:
    case 'P' | 'R' << 8 | 'O' << 16 | 'X' << 24:
        return AS_CLS_CONNECT;
    }
    return p[0] == 5 || (p[0] == 4 && p[1] == 1) ? AS_CLS_CONNECT : AS_CLS_OTHER;
}

/* One step of a copy: loads the next segment, or copies one chunk. Not 0: the copy is over (c->remain may be left). */
__attribute__((noinline)) int as_copy_step(struct copy *c) {
    if (!c)
        return 1;
    if (!c->left) {
        struct as_iovec v;
        if (!c->segs)
            return 1;
        if (bpf_probe_read_user(&v, sizeof v, (void *)c->iov)) {
            count(AS_ST_FAULT, 1);
            return 1;
        }
        c->iov += sizeof v;
        c->segs--;
        c->base = v.base;
        c->left = v.len;
    }
    u64 left = c->left;
    if (left > c->remain)
        left = c->remain;
    u32 n = left > AS_COPY_CHUNK ? AS_COPY_CHUNK : left;
    if (!n)
        return 0; /* an empty segment */
    u32 cap = 0;
    u64 waiting = ring_waiting();
    void *r = waiting < cfg.ring_limit ? reserve_payload(n, &cap) : NULL;
    if (!r) {
        count_drop(c->obj ? AS_D_STDIO : AS_D_DATA, 1, c->remain);
        c->dropped += c->remain;
        c->remain = 0;
        return 1;
    }
    u32 size = AS_REC_HEAD + cap;
    u32 got = n;
    u8 *data;
    barrier_var(n);
    if (n > cap) /* for the verifier */
        n = cap;
    data = c->obj ? r + sizeof(struct as_stdio) : r + sizeof(struct as_data);
    if (bpf_probe_read_user(data, n, (void *)c->base)) {
        count(AS_ST_FAULT, 1);
        c->faulted += got;
        got = 0;
    } else {
        c->copied += got;
        if (!c->off && !c->obj)
            c->cls = classify(data, got);
    }
    if (c->obj) {
        struct as_stdio *s = r;
        fill_hdr(&s->h, size, AS_K_STDIO, (got ? 0 : AS_F_FAULT) | (c->trunc ? AS_F_TRUNCATED : 0), c->ts, c->id);
        s->ino = c->chan;
        s->dev = c->dev;
        s->fd = c->fd;
        s->off = c->off;
        s->cap = got;
        s->real = c->real;
        s->dir = c->dir;
        s->obj = c->obj;
        s->nr = c->nr;
        s->uid = c->uid;
        c->real = 0;
    } else {
        struct as_data *d = r;
        fill_hdr(&d->h, size, AS_K_DATA, got ? 0 : AS_F_FAULT, c->ts, c->id);
        d->chan = c->chan;
        d->off = c->off;
        d->cap = got;
        d->real = n;
        d->dir = c->dir;
        d->hole = got ? AS_HOLE_NONE : AS_HOLE_FAULT;
        d->nr = c->nr;
        d->uid = c->uid;
    }
    bpf_ringbuf_submit(r, wake_flags(waiting, size));
    c->base += n;
    c->left -= n;
    c->remain -= n;
    c->off += n;
    return !c->remain;
}

/* Copies c->remain bytes; what is left there afterwards had no segment (a hole at c->off). Global too: with the loop inside the
 * caller's many states older verifiers give up. */
__attribute__((noinline)) int as_copy_all(struct copy *c) {
    if (!c)
        return 0;
    for (int i = 0; i < AS_COPY_STEPS; i++)
        if (as_copy_step(c))
            break;
    return 0;
}

#endif

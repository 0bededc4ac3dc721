/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * One transfer of bytes over a TCP socket, from the call that has done it to records: where in the stream it lies (TCP's own
 * positions say, never summed results), whether it is to be copied at all, and from which buffers.
 */
#ifndef AS_TRANSFER_BPF_H
#define AS_TRANSFER_BPF_H

#include "call.bpf.h"
#include "copy.bpf.h"
#include "sock.bpf.h"

#define MSG_PEEK 0x2
#define MSG_TRUNC 0x20

/* sendmmsg and recvmmsg come by once per message with the same registers: which message is a thread at? */
struct mmsg_pos {
    u64 vec;
    u32 vlen, next;
    u32 last; /* bytes of the message before */
    u32 pad;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, u64);
    __type(value, struct mmsg_pos);
} mmsg SEC(".maps");

static __always_inline bool read_msg(u64 ptr, u64 *iov, u32 *segs) {
    struct as_iovec v; /* the vector's address and its length */
    if (bpf_probe_read_user(&v, sizeof v, (void *)(ptr + __builtin_offsetof(struct as_msghdr, iov)))) {
        count(AS_ST_FAULT, 1);
        return false;
    }
    *iov = v.base;
    *segs = v.len > AS_COPY_SEGS ? AS_COPY_SEGS : v.len;
    return true;
}

/* The message of a sendmmsg or recvmmsg that has just been done with `n` bytes; 0 where it cannot be told. */
static __attribute__((noinline)) u64 mmsg_message(u64 id, u64 vec, u32 vlen, u32 n) {
    struct mmsg_pos fresh = {.vec = vec, .vlen = vlen}, *p;
    u32 len = 0, at;
    if (vlen > AS_COPY_SEGS) /* UIO_MAXIOV: the kernel cuts there too */
        vlen = fresh.vlen = AS_COPY_SEGS;
    p = bpf_map_lookup_elem(&mmsg, &id);
    if (!p || p->vec != vec || p->vlen != vlen || p->next >= vlen) {
        bpf_map_update_elem(&mmsg, &id, &fresh, BPF_ANY);
        p = bpf_map_lookup_elem(&mmsg, &id);
        if (!p)
            return 0;
    }
    at = p->next;
    if (at) { /* the kernel has written the length of the message before into its entry; else this is a new call */
        bpf_probe_read_user(&len, sizeof len,
                            (void *)(vec + (u64)(at - 1) * sizeof(struct as_mmsghdr) + sizeof(struct as_msghdr)));
        if (len != p->last)
            at = 0;
    }
    p->next = at + 1;
    p->last = n;
    return vec + (u64)at * sizeof(struct as_mmsghdr);
}

/* Tells that `n` bytes from `off` on are not copied. what: direction | enum as_hole << 8 | system call << 16. */
static __attribute__((noinline)) int tell_hole(struct sock_state *st, u64 off, u64 n, u32 what) {
    struct as_data *d;
    if (!st)
        return 0;
    d = bpf_ringbuf_reserve(&ring, sizeof *d, 0);
    if (!d) {
        count_drop(AS_D_DATA, 1, 0);
        return 0;
    }
    fill_hdr(&d->h, sizeof *d, AS_K_DATA, 0, bpf_ktime_get_boot_ns(), bpf_get_current_pid_tgid());
    d->chan = st->chan;
    d->off = off;
    d->cap = 0;
    d->real = n > 0xffffffff ? 0xffffffff : n;
    d->dir = what & 1;
    d->hole = what >> 8 & 0xff;
    d->nr = what >> 16;
    d->uid = (u32)bpf_get_current_uid_gid();
    bpf_ringbuf_submit(d, BPF_RB_NO_WAKEUP);
    return 0;
}
#define AS_WHAT(dir, hole, nr) ((dir) | (u32)(hole) << 8 | (u32)(nr) << 16)

static __always_inline bool skipped(struct sock_state *st) {
    u32 gen = shared.ctl_gen;
    if (st->ctl_gen != gen) {
        u8 *v = bpf_map_lookup_elem(&ctl, &st->chan);
        u8 skip = v ? *v : AS_CTL_COPY;
        if (skip != st->skip) {
            struct flow *f = cfg.mirror ? bpf_map_lookup_elem(&flows, &st->own_key) : NULL;
            if (f)
                f->dark = skip ? f->dark | AS_DARK_SKIP : f->dark & ~AS_DARK_SKIP;
        }
        st->skip = skip;
        st->ctl_gen = gen;
    }
    return st->skip == AS_CTL_SKIP;
}

/* Copies one message of at most `left` bytes (a global function: the verifier looks at it once). Gives its length, -1: none. */
__attribute__((noinline)) s64 as_copy_message(struct copy *c, u64 at, u64 left) {
    u32 len = 0;
    if (!c || bpf_probe_read_user(&len, sizeof len, (void *)(at + sizeof(struct as_msghdr))) || !read_msg(at, &c->iov, &c->segs))
        return -1;
    c->left = 0;
    c->remain = len < left ? len : left;
    left = c->remain;
    for (int i = 0; i < AS_COPY_STEPS; i++)
        if (as_copy_step(c))
            break;
    return left;
}

/* Copies what sendmmsg or recvmmsg has carried, told at once when all is done: message after message. Global as well. */
__attribute__((noinline)) int as_copy_messages(struct copy *c, u64 vec, u64 n) {
    if (!c)
        return 0;
    for (int i = 0; i < 64 && n; i++) {
        s64 done = as_copy_message(c, vec + (u64)i * sizeof(struct as_mmsghdr), n);
        if (done < 0)
            break;
        n -= done;
        if (c->remain) /* what follows would not be contiguous: the rest is a hole */
            break;
    }
    c->remain += n;
    return 0;
}

/* Is this transfer what the thread's system call asked for? 0 and `call`, or why not (enum as_hole). */
static __always_inline u32 match_call(struct sock *sk, struct sock_state *st, struct call *call, struct task_struct *task,
                                      u32 dir) {
    struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
    struct file *file;
    if (is_compat(task, REG_NR(regs))) {
        count(AS_ST_COMPAT, 1);
        return AS_HOLE_COMPAT;
    }
    if (!read_call(call, regs) || call->dir != dir || call->file_pos)
        goto none;
    file = file_of(task, call->fd);
    if (!file)
        goto none;
    if ((u64)file != st->file) { /* a file leads to one socket for as long as the socket lives */
        struct socket *sock = BPF_CORE_READ(file, private_data);
        if (!sock || BPF_CORE_READ(sock, sk) != sk)
            goto none;
        st->file = (u64)file;
    }
    return 0;
none:
    call->kind = C_NONE;
    count(AS_ST_NO_CALL, 1);
    return AS_HOLE_NO_BUFFER;
}

/* What TCP says of the socket: where direction `dir` stands, and whether something like kernel TLS is put on it. */
struct tcp_view {
    u32 pos;
    bool ulp;
};

static __always_inline bool view_tcp(struct sock *sk, u32 dir, struct tcp_view *v) {
    if (cfg.sys_exit) {
        v->pos = tcp_pos(sk, dir);
        v->ulp = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_ulp_ops) != NULL;
        return true;
    }
    struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
    if (!tp)
        return false;
    v->pos = dir == AS_DIR_WRITE ? tp->write_seq : tp->copied_seq;
    v->ulp = tp->inet_conn.icsk_ulp_ops != NULL;
    return true;
}

static __attribute__((noinline)) int copy_transfer(struct sock_state *st, struct call *call, u64 start, u32 n, u32 why) {
    struct copy c = {};
    u32 dir, base;
    if (!st || !call)
        return 0;
    dir = call->dir & 1;
    base = st->base[dir];
    c.id = bpf_get_current_pid_tgid();
    c.ts = bpf_ktime_get_boot_ns();
    c.uid = (u32)bpf_get_current_uid_gid();
    c.chan = st->chan;
    c.dir = dir;
    c.nr = call->kind == C_NONE ? 0xffff : call->nr;
    c.off = start;
    c.remain = n;
    if (!why) {
        why = AS_HOLE_BOUND;
        if (call->kind == C_BUF) {
            c.base = call->ptr;
            c.left = call->len;
            why = AS_HOLE_NO_BUFFER;
        } else if (call->kind == C_IOV) {
            c.iov = call->ptr;
            c.segs = call->len > AS_COPY_SEGS ? AS_COPY_SEGS : call->len;
        } else {
            u64 at = call->ptr;
            if (call->kind == C_MMSG && !cfg.sys_exit)
                at = mmsg_message(c.id, call->ptr, call->len, n);
            if (!read_msg(at, &c.iov, &c.segs))
                why = AS_HOLE_FAULT;
        }
        if (call->kind == C_MMSG && cfg.sys_exit) {
            c.remain = 0;
            as_copy_messages(&c, call->ptr, n);
        } else if (!as_copy_step(&c)) { /* most calls are done with one step */
            as_copy_all(&c);
        }
    }
    if (c.cls)
        st->cls[dir] = c.cls;
    st->copied[dir] += c.copied;
    count(AS_ST_COPIED, c.copied);
    if (c.dropped) {
        st->dropped[dir] += c.dropped;
        if (dir == AS_DIR_WRITE)
            flow_dark(st, AS_DARK_LOST, base + (u32)st->next[dir]);
    }
    if (c.remain || c.faulted) {
        st->holes[dir] += c.remain + c.faulted;
        if (c.remain)
            tell_hole(st, c.off, c.remain, AS_WHAT(dir, why, c.nr));
        if (dir == AS_DIR_WRITE)
            flow_dark(st, AS_DARK_HOLE, 0);
    }
    return 0;
}

/* `n` bytes have crossed `sk` in direction `dir`. What most often ends early comes first: most reads are left to the peer's
 * copy, and for those the system call is not even looked at. */
static __always_inline int transfer(struct sock *sk, struct sock_state *st, struct call *call, u32 n, u32 dir, u32 flags) {
    u64 off = st->next[dir], start = off;
    u32 base = st->base[dir], why = 0;
    u16 ktls = 0;
    struct tcp_view v;
    if (!view_tcp(sk, dir, &v))
        return 0;
    s32 moved = v.pos - (base + (u32)off);
    if (v.ulp)
        ktls = ktls_flags(sk);
    if (!st->told || ktls & ~st->flags) {
        st->flags |= ktls;
        tell_conn(sk, st);
        if (ktls & AS_CONN_KTLS_TX)
            flow_dark(st, AS_DARK_HOLE, 0);
    }
    if (ktls & (dir == AS_DIR_WRITE ? AS_CONN_KTLS_TX : AS_CONN_KTLS_RX)) {
        /* TCP counts records of ciphertext, the caller bytes of plaintext: only the results can be summed */
        st->base[dir] = base + moved - n;
    } else if (moved != (s32)n) {
        if (moved == (s32)n + 1 && dir == AS_DIR_READ && BPF_CORE_READ(sk, sk_shutdown) & RCV_SHUTDOWN) {
            /* the FIN was read along with the last bytes */
        } else if (moved > (s32)n) {
            u64 jump = (u32)moved - n;
            st->holes[dir] += jump;
            start += jump;
            tell_hole(st, off, jump, AS_WHAT(dir, AS_HOLE_JUMP, 0xffff));
            if (dir == AS_DIR_WRITE)
                flow_dark(st, AS_DARK_HOLE, 0);
        } else { /* another thread's call on this socket was told first, with a position that had these bytes in it */
            count(AS_ST_RACE, 1);
            if ((s64)(start + moved - n) < 0)
                return 0;
            start += (s64)moved - n;
        }
    }
    if (start + n > off)
        st->next[dir] = start + n;

    if (skipped(st)) {
        st->skipped[dir] += n;
        st->gap[dir] += n;
        return 0;
    }
    if (dir == AS_DIR_READ && !(ktls & AS_CONN_KTLS_RX) && copied_by_peer(st, base + (u32)start)) {
        st->mirrored[dir] += n;
        count(AS_ST_MIRROR, 1);
        return 0;
    }
    if (st->gap[dir]) {
        tell_hole(st, start - st->gap[dir], st->gap[dir], AS_WHAT(dir, AS_HOLE_SKIPPED, 0xffff));
        st->gap[dir] = 0;
    }
    if (!cfg.sys_exit)
        why = match_call(sk, st, call, (void *)bpf_get_current_task_btf(), dir);
    if (flags & MSG_TRUNC)
        why = AS_HOLE_TRUNC;
    call->dir = dir;
    return copy_transfer(st, call, start, n, why);
}

#endif

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * TCP sockets of targets: their bytes when a call returns, their begin and their end.
 *
 * Two ways in, one is loaded: sock_send_length and sock_recv_length (since about 6.3; what is not tracked pays a map look-up
 * per socket call), or sys_exit. Offsets come from TCP's own positions, never from summed results. The bytes are copied only
 * where the thread's system call really is this transfer: number, direction, and its fd leads to this socket.
 */
#include "call.bpf.h"
#include "copy.bpf.h"
#include "sock.bpf.h"

#define MSG_PEEK 0x2
#define MSG_TRUNC 0x20
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2

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
    struct as_msghdr m;
    if (bpf_probe_read_user(&m, sizeof m, (void *)ptr)) {
        count(AS_ST_FAULT, 1);
        return false;
    }
    *iov = (u64)m.iov;
    *segs = m.iovlen > AS_COPY_SEGS ? AS_COPY_SEGS : m.iovlen;
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
        bpf_probe_read_user(&len, sizeof len, (void *)(vec + (u64)(at - 1) * sizeof(struct as_mmsghdr) + sizeof(struct as_msghdr)));
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

/* State for a socket that is met in the middle of its life: this call has moved `n` bytes in direction `dir`. NULL: not TCP. */
static __attribute__((noinline)) struct sock_state *meet(struct sock *sk, u64 id, u32 n, u32 dir, u64 cookie) {
    struct sock_state init = {}, *st;
    u16 family = BPF_CORE_READ(sk, __sk_common.skc_family), proto = 0;
    u32 tx, rx, tx_start, rx_start;
    u64 retrans = 0;
    bpf_core_read(&proto, sizeof proto, &sk->sk_protocol);
    if (proto != IPPROTO_TCP || (family != AF_INET && family != AF_INET6)) {
        count(AS_ST_NOT_TCP, 1);
        return NULL;
    }
    init.chan = cookie;
    tx = TCP_FIELD(sk, write_seq) - (dir == AS_DIR_WRITE ? n : 0);
    rx = TCP_FIELD(sk, copied_seq) - (dir == AS_DIR_READ ? n : 0);
    /* Where the connection began: TCP counts its bytes both ways. A FIN takes one number and is in neither count. */
    rx_start = TCP_FIELD(sk, rcv_nxt) - (u32)TCP_FIELD(sk, bytes_received);
    if (BPF_CORE_READ(sk, sk_shutdown) & RCV_SHUTDOWN) {
        if (rx - 2 == rx_start) /* data and FIN in one read */
            rx--;
        rx_start--;
    }
    if (bpf_core_field_exists(struct tcp_sock, bytes_retrans))
        retrans = TCP_FIELD(sk, bytes_retrans);
    tx_start = TCP_FIELD(sk, snd_nxt) - (u32)(TCP_FIELD(sk, bytes_sent) - retrans);
    init.base[AS_DIR_WRITE] = tx;
    init.base[AS_DIR_READ] = rx;
    init.based = 1;
    init.flags = tx == tx_start && rx == rx_start ? AS_CONN_FROM_START : 0;
    if (BPF_CORE_READ(sk, sk_max_ack_backlog)) /* left over from the listening socket that it was cloned from */
        init.flags |= AS_CONN_SERVER;
    init.flags |= ktls_flags(sk);
    init.tgid = id >> 32;
    init.tid = (u32)id;
    init.uid = (u32)bpf_get_current_uid_gid();
    st = state_of(sk);
    if (!st)
        return state_new(sk, &init);
    /* connect() was seen, but not how it ended */
    st->base[AS_DIR_WRITE] = tx;
    st->base[AS_DIR_READ] = rx;
    st->flags |= init.flags & ~AS_CONN_SERVER;
    st->based = 1;
    return st;
}

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
    struct as_mmsghdr m;
    if (!c || bpf_probe_read_user(&m, sizeof m, (void *)at))
        return -1;
    c->iov = (u64)m.hdr.iov;
    c->segs = m.hdr.iovlen > AS_COPY_SEGS ? AS_COPY_SEGS : m.hdr.iovlen;
    c->left = 0;
    c->remain = m.len < left ? m.len : left;
    left = c->remain;
    copy_all(c);
    return left;
}

/* Copies what sendmmsg or recvmmsg has carried, told at once when all is done: message after message. */
static __always_inline void copy_messages(struct copy *c, u64 vec, u64 n) {
    for (int i = 0; i < 64 && n; i++) {
        s64 done = as_copy_message(c, vec + (u64)i * sizeof(struct as_mmsghdr), n);
        if (done < 0)
            break;
        n -= done;
        if (c->remain) /* what follows would not be contiguous: the rest is a hole */
            break;
    }
    c->remain += n;
}

/* Is this transfer what the thread's system call asked for? 0 and `call`, or why not (enum as_hole). */
static __always_inline u32 match_call(struct sock *sk, struct sock_state *st, struct call *call, struct task_struct *task, u32 dir) {
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
            copy_messages(&c, call->ptr, n);
        } else if (!as_copy_step(&c)) { /* most calls are done with one step */
            copy_all(&c);
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

static __always_inline int sock_length(struct sock *sk, int ret, int flags, u32 dir) {
    u64 id = bpf_get_current_pid_tgid();
    struct sock_state *st;
    struct call call = {};
    if (ret <= 0 || !(tracked(id >> 32) & AS_T_IO))
        return 0;
    count(AS_ST_HITS, 1);
    if (dir == AS_DIR_READ && flags & MSG_PEEK) {
        count(AS_ST_PEEK, 1);
        return 0;
    }
    st = state_of(sk);
    if (!st || !st->based) {
        st = meet(sk, id, ret, dir, bpf_get_socket_cookie(sk));
        if (!st)
            return 0;
    }
    return transfer(sk, st, &call, ret, dir, dir == AS_DIR_READ ? flags : 0);
}

SEC("tp_btf/sock_send_length")
int as_sock_send(u64 *ctx) { return sock_length((struct sock *)ctx[0], (int)ctx[1], (int)ctx[2], AS_DIR_WRITE); }

SEC("tp_btf/sock_recv_length")
int as_sock_recv(u64 *ctx) { return sock_length((struct sock *)ctx[0], (int)ctx[1], (int)ctx[2], AS_DIR_READ); }

/* sendmmsg and recvmmsg return how many messages were done: the bytes are in their entries. */
static __attribute__((noinline)) u64 mmsg_bytes(u64 vec, u64 n) {
    u64 sum = 0;
    for (u32 i = 0; i < 64 && i < n; i++) {
        u32 len = 0;
        bpf_probe_read_user(&len, sizeof len, (void *)(vec + i * sizeof(struct as_mmsghdr) + sizeof(struct as_msghdr)));
        sum += len;
    }
    return sum;
}

SEC("tp_btf/sys_exit")
int as_sys_exit_io(u64 *ctx) {
    struct pt_regs *regs = (struct pt_regs *)ctx[0];
    s64 ret = ctx[1];
    struct call call;
    if (ret <= 0 || !read_call(&call, regs) || call.file_pos)
        return 0;
    u64 id = bpf_get_current_pid_tgid();
    if (!(tracked(id >> 32) & AS_T_IO))
        return 0;
    struct task_struct *task = (void *)bpf_get_current_task_btf();
    if (is_compat(task, call.nr))
        return 0; /* the number means another call */
    struct file *file = file_of(task, call.fd);
    struct inode *inode = file ? BPF_CORE_READ(file, f_inode) : NULL;
    if (!inode || (BPF_CORE_READ(inode, i_mode) & 0170000) != 0140000)
        return 0;
    struct socket *sock = BPF_CORE_READ(file, private_data);
    struct sock *sk = sock ? BPF_CORE_READ(sock, sk) : NULL;
    if (!sk)
        return 0;
    count(AS_ST_HITS, 1);
    if (call.dir == AS_DIR_READ && call.flags & MSG_PEEK) {
        count(AS_ST_PEEK, 1);
        return 0;
    }
    u32 n = ret;
    if (call.kind == C_MMSG)
        n = mmsg_bytes(call.ptr, ret);
    struct sock_state *st = state_of(sk);
    if (!st || !st->based) {
        u64 cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
        if (!cookie) /* older than us and never named: a name of our own, apart from all cookies */
            cookie = 1ULL << 63 | mix64(0, (u64)sk) >> 1;
        st = meet(sk, id, n, call.dir, cookie);
        if (!st)
            return 0;
    }
    return transfer(sk, st, &call, n, call.dir & 1, call.dir == AS_DIR_READ ? call.flags : 0);
}

SEC("tp_btf/inet_sock_set_state")
int as_set_state(u64 *ctx) {
    struct sock *sk = (struct sock *)ctx[0];
    int old = ctx[1], new = ctx[2];
    struct sock_state *st;
    if (new == TCP_SYN_SENT) { /* connect(), in the caller's context */
        u64 id = bpf_get_current_pid_tgid();
        u16 proto = 0;
        if (!(tracked(id >> 32) & AS_T_IO))
            return 0;
        bpf_core_read(&proto, sizeof proto, &sk->sk_protocol);
        if (proto != IPPROTO_TCP)
            return 0;
        struct sock_state init = {
            .chan = bpf_get_socket_cookie(sk),
            .flags = AS_CONN_CLIENT,
            .tgid = id >> 32,
            .tid = (u32)id,
            .uid = (u32)bpf_get_current_uid_gid(),
        };
        state_new(sk, &init);
        return 0;
    }
    if (new != TCP_ESTABLISHED)
        return 0;
    if (cfg.sys_exit) /* so that every new connection has its name when a call on it is seen */
        bpf_get_socket_cookie(sk);
    if (old != TCP_SYN_SENT)
        return 0;
    st = state_of(sk);
    if (!st || st->based)
        return 0;
    st->base[AS_DIR_WRITE] = TCP_FIELD(sk, write_seq);
    st->base[AS_DIR_READ] = TCP_FIELD(sk, copied_seq);
    st->flags |= AS_CONN_FROM_START;
    st->based = 1;
    return tell_conn(sk, st);
}

SEC("tp_btf/tcp_destroy_sock")
int as_destroy(u64 *ctx) {
    struct sock *sk = (struct sock *)ctx[0];
    struct sock_state *st = state_of(sk);
    struct as_close *c;
    if (!st)
        return 0;
    if (st->told) {
        if (cfg.mirror)
            bpf_map_delete_elem(&flows, &st->own_key);
        c = bpf_ringbuf_reserve(&ring, sizeof *c, 0);
        if (c) {
            fill_hdr(&c->h, sizeof *c, AS_K_CLOSE, 0, bpf_ktime_get_boot_ns(), (u64)st->tgid << 32 | st->tid);
            c->chan = st->chan;
            for (int i = 0; i < 2; i++) {
                c->seen[i] = st->next[i];
                c->copied[i] = st->copied[i];
                c->mirrored[i] = st->mirrored[i];
                c->skipped[i] = st->skipped[i];
                c->holes[i] = st->holes[i];
                c->dropped[i] = st->dropped[i];
                c->cls[i] = st->cls[i];
            }
            c->err = BPF_CORE_READ(sk, sk_err);
            c->flags = st->flags;
            bpf_ringbuf_submit(c, BPF_RB_NO_WAKEUP);
        } else {
            count_drop(AS_D_CONN, 1, sizeof *c);
        }
    }
    if (cfg.sys_exit) {
        u64 key = (u64)sk;
        bpf_map_delete_elem(&sk_by_ptr, &key);
    }
    return 0;
}

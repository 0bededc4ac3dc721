/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * TCP sockets of targets: their bytes when a call returns, their begin and their end.
 *
 * Two ways in, one is loaded: sock_send_length and sock_recv_length (since about 6.3; what is not tracked pays a map look-up
 * per socket call), or sys_exit. Offsets come from TCP's own positions, never from summed results. The bytes are copied only
 * where the thread's system call really is this transfer: number, direction, and its fd leads to this socket.
 */
#include "transfer.bpf.h"

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2

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
int as_sock_send(u64 *ctx) {
    return sock_length((struct sock *)ctx[0], (int)ctx[1], (int)ctx[2], AS_DIR_WRITE);
}

SEC("tp_btf/sock_recv_length")
int as_sock_recv(u64 *ctx) {
    return sock_length((struct sock *)ctx[0], (int)ctx[1], (int)ctx[2], AS_DIR_READ);
}

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
    struct call call = {};
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

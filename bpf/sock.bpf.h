/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What is remembered of a TCP socket of a target, from its connect or first call until tcp_destroy_sock; and the flows that
 * the mirror rule looks at.
 *
 * At sock_send_length and sock_recv_length the state is socket storage. At sys_exit the socket is a pointer that the verifier
 * does not trust, so there the state is in a map keyed by it (tcp_destroy_sock deletes the entry before it can be reused).
 */
#ifndef AS_SOCK_BPF_H
#define AS_SOCK_BPF_H

#include "common.bpf.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define RCV_SHUTDOWN 1
#define TLS_HW_OR_SW 1 /* tls_context.tx_conf: 0 is TLS_BASE, no kernel TLS in that direction */

struct sock_state {
    u64 chan;
    u64 next[2]; /* offset behind what has crossed, by direction */
    u64 copied[2], mirrored[2], skipped[2], holes[2], dropped[2];
    u64 gap[2];   /* skipped bytes that no record tells yet */
    u64 own_key;  /* of this end in `flows` */
    u64 peer_key; /* of the other end */
    u64 file;     /* the struct file that was seen to lead to this socket */
    u32 base[2];  /* sequence number of offset 0 */
    u32 tgid, tid, uid;
    u32 ctl_gen;
    u16 flags;   /* AS_CONN_* */
    u8 based;    /* base[] is set */
    u8 skip;     /* AS_CTL_* */
    u8 cls[2];   /* enum as_class */
    u8 unmet;    /* reads in a row for which no peer was found */
    u8 told;     /* CONN was given */
};

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct sock_state);
} sk_states SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, u64);
    __type(value, struct sock_state);
} sk_by_ptr SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, u64);
    __type(value, u8);
} ctl SEC(".maps");

/* One end of a connection as a sender. Key: hash of (netns, family, addresses, ports), 64 bits. */
struct flow {
    u64 chan;
    u32 first;   /* sequence number from which its bytes are copied */
    u32 lost_to; /* with AS_DARK_LOST: the ring refused bytes up to this sequence number */
    u8 dark;     /* AS_DARK_* */
    u8 pad[7];
};
#define AS_DARK_HOLE 1 /* bytes could not be copied: may happen again */
#define AS_DARK_SKIP 2 /* user space asked */
#define AS_DARK_LOST 4

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 32768);
    __type(key, u64);
    __type(value, struct flow);
} flows SEC(".maps");

static __always_inline struct sock_state *state_of(struct sock *sk) {
    if (cfg.sys_exit) {
        u64 key = (u64)sk;
        return bpf_map_lookup_elem(&sk_by_ptr, &key);
    }
    return bpf_sk_storage_get(&sk_states, sk, 0, 0);
}

static __always_inline struct sock_state *state_new(struct sock *sk, struct sock_state *init) {
    struct sock_state *st;
    if (cfg.sys_exit) {
        u64 key = (u64)sk;
        if (bpf_map_update_elem(&sk_by_ptr, &key, init, BPF_NOEXIST))
            count(AS_ST_NO_STATE, 1);
        return bpf_map_lookup_elem(&sk_by_ptr, &key);
    }
    st = bpf_sk_storage_get(&sk_states, sk, init, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (!st)
        count(AS_ST_NO_STATE, 1);
    return st;
}

static __always_inline u64 mix64(u64 h, u64 v) {
    h = (h ^ v) * 0x9e3779b97f4a7c15ULL;
    return h ^ (h >> 32);
}

/* IPv4 inside IPv6 is IPv4 here: the other end of a dual-stack socket says so. */
static __always_inline void read_addresses(struct sock *sk, struct as_conn *c) {
    u32 six[4];
    u16 dport;
    c->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
    c->family = BPF_CORE_READ(sk, __sk_common.skc_family);
    c->sport = BPF_CORE_READ(sk, __sk_common.skc_num);
    dport = BPF_CORE_READ(sk, __sk_common.skc_dport);
    c->dport = __builtin_bswap16(dport);
    __builtin_memset(c->saddr, 0, 16);
    __builtin_memset(c->daddr, 0, 16);
    if (c->family == AF_INET6) {
        bpf_core_read(six, 16, &sk->__sk_common.skc_v6_daddr);
        if (six[0] || six[1] || six[2] != __builtin_bswap32(0xffff)) {
            __builtin_memcpy(c->daddr, six, 16);
            bpf_core_read(c->saddr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
            return;
        }
        c->family = AF_INET;
    }
    bpf_core_read(c->daddr, 4, &sk->__sk_common.skc_daddr);
    bpf_core_read(c->saddr, 4, &sk->__sk_common.skc_rcv_saddr);
}

static __always_inline u64 flow_key(const struct as_conn *c, bool reversed) {
    u64 a[2], b[2], h;
    __builtin_memcpy(a, reversed ? c->daddr : c->saddr, 16);
    __builtin_memcpy(b, reversed ? c->saddr : c->daddr, 16);
    h = mix64((u64)c->netns << 16 | c->family, a[0]);
    h = mix64(h, a[1]);
    h = mix64(h, b[0]);
    h = mix64(h, b[1]);
    return mix64(h, reversed ? (u64)c->dport << 16 | c->sport : (u64)c->sport << 16 | c->dport);
}

#define TCP_FIELD(sk, field)                                                                                                     \
    ({                                                                                                                           \
        typeof(((struct tcp_sock *)0)->field) v_ = 0;                                                                            \
        bpf_core_read(&v_, sizeof v_, &((struct tcp_sock *)(sk))->field);                                                        \
        v_;                                                                                                                      \
    })

static __always_inline u32 tcp_pos(struct sock *sk, int dir) {
    return dir == AS_DIR_WRITE ? TCP_FIELD(sk, write_seq) : TCP_FIELD(sk, copied_seq);
}

/* AS_CONN_KTLS_*: is it kernel TLS from here on? */
static __always_inline u16 ktls_flags(struct sock *sk) {
    const struct tcp_ulp_ops *ops = NULL;
    struct inet_connection_sock *icsk = (void *)sk;
    struct tls_context *ctx = NULL;
    char name[4] = {};
    u16 f = 0;
    bpf_core_read(&ops, sizeof ops, &icsk->icsk_ulp_ops);
    if (!ops)
        return 0;
    bpf_core_read(name, sizeof name, &ops->name);
    if (name[0] != 't' || name[1] != 'l' || name[2] != 's' || name[3])
        return 0;
    if (!bpf_core_field_exists(ctx->tx_conf))
        return AS_CONN_KTLS_TX | AS_CONN_KTLS_RX;
    bpf_core_read(&ctx, sizeof ctx, &icsk->icsk_ulp_data);
    if (!ctx)
        return 0;
    if (BPF_CORE_READ_BITFIELD_PROBED(ctx, tx_conf))
        f |= AS_CONN_KTLS_TX;
    if (BPF_CORE_READ_BITFIELD_PROBED(ctx, rx_conf))
        f |= AS_CONN_KTLS_RX;
    return f;
}

/* Tells what is known of a connection, and enters its sending end for the mirror rule. */
static __attribute__((noinline)) int tell_conn(struct sock *sk, struct sock_state *st) {
    struct as_conn *c = bpf_ringbuf_reserve(&ring, sizeof *c, 0);
    if (!c) {
        count_drop(AS_D_CONN, 1, sizeof *c);
        return 0;
    }
    fill_hdr(&c->h, sizeof *c, AS_K_CONN, 0, bpf_ktime_get_boot_ns(), (u64)st->tgid << 32 | st->tid);
    c->chan = st->chan;
    read_addresses(sk, c);
    c->tx_base = st->base[AS_DIR_WRITE];
    c->rx_base = st->base[AS_DIR_READ];
    c->uid = st->uid;
    if (!st->told) {
        st->told = 1;
        if (cfg.mirror) {
            struct flow f = {.chan = st->chan, .first = st->base[AS_DIR_WRITE]};
            st->own_key = flow_key(c, false);
            st->peer_key = flow_key(c, true);
            bpf_map_update_elem(&flows, &st->own_key, &f, BPF_ANY);
            if (bpf_map_lookup_elem(&flows, &st->peer_key))
                st->flags |= AS_CONN_MIRRORED;
        }
    }
    c->flags = st->flags;
    bpf_ringbuf_submit(c, BPF_RB_NO_WAKEUP);
    return 0;
}

static __always_inline void flow_dark(struct sock_state *st, u8 how, u32 upto) {
    struct flow *f = cfg.mirror ? bpf_map_lookup_elem(&flows, &st->own_key) : NULL;
    if (f) {
        f->lost_to = upto;
        f->dark |= how;
    }
}

/* Are the bytes from sequence number `seq` on copied by their sender? */
static __always_inline bool copied_by_peer(struct sock_state *st, u32 seq) {
    if (!cfg.mirror)
        return false;
    if (st->unmet >= 16 && ++st->unmet & 15) /* a remote peer: look only now and then */
        return false;
    struct flow *f = bpf_map_lookup_elem(&flows, &st->peer_key);
    if (!f) {
        if (st->unmet < 16)
            st->unmet++;
        else
            st->unmet = 16;
        return false;
    }
    st->unmet = 0;
    if ((s32)(seq - f->first) < 0)
        return false;
    if (f->dark & (AS_DARK_HOLE | AS_DARK_SKIP))
        return false;
    if (f->dark & AS_DARK_LOST && (s32)(seq - f->lost_to) < 0)
        return false;
    return true;
}

#endif

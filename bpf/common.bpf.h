/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What all programs share: configuration, the ring and its reserve, loss counters, statistics, the target filter.
 */
#ifndef AS_COMMON_BPF_H
#define AS_COMMON_BPF_H

#include "vmlinux_min.h"

#include "agentsight.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

const volatile struct as_config cfg = {};
volatile struct as_shared shared = {};

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 16 << 20);
} ring SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, AS_D_MAX);
    __type(key, u32);
    __type(value, struct as_drop_counter);
} drops SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, AS_ST_MAX);
    __type(key, u32);
    __type(value, u64);
} stats SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 32768);
    __type(key, u32);
    __type(value, struct as_target);
} targets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u32);
    __type(value, u8);
} excluded SEC(".maps");

static __always_inline void count_drop(u32 what, u64 records, u64 bytes) {
    struct as_drop_counter *c = bpf_map_lookup_elem(&drops, &what);
    if (c) {
        c->records += records;
        c->bytes += bytes;
    }
}

static __always_inline void count(u32 what, u64 n) {
    u64 *c = bpf_map_lookup_elem(&stats, &what);
    if (c)
        *c += n;
}

/* How much waits in the ring. Payload never fills its last part (cfg.ring_limit), so that fork, exec, exit, close and secrets
 * still fit. */
static __always_inline u64 ring_waiting(void) {
    return bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);
}

/* Flags for submit, when `size` more bytes wait than `waiting`: the reader looks at the ring by its own timer, and is woken when
 * more than that timer can be trusted with has gathered. */
static __always_inline u64 wake_flags(u64 waiting, u32 size) {
    return (waiting ^ (waiting + size)) >> cfg.wake_shift ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

static __always_inline void fill_hdr(struct as_hdr *h, u32 len, u16 kind, u16 flags, u64 ts, u64 pid_tgid) {
    h->len = len;
    h->kind = kind;
    h->flags = flags;
    h->ts = ts;
    h->tgid = pid_tgid >> 32;
    h->tid = (u32)pid_tgid;
}

#define AS_PF_KTHREAD 0x00200000

static __always_inline bool passes_filters(void) {
    if (cfg.uid_on && (u32)bpf_get_current_uid_gid() != cfg.uid)
        return false;
    if (cfg.cgroup_on && bpf_get_current_ancestor_cgroup_id(cfg.cgroup_level) != cfg.cgroup)
        return false;
    return true;
}

/* AS_T_* of the current process, 0: not ours. The uid and cgroup filters narrow whichever way it is a target. */
static __always_inline u32 tracked(u32 tgid) {
    if (cfg.track_all) {
        struct task_struct *task = (void *)bpf_get_current_task_btf();
        if (bpf_map_lookup_elem(&excluded, &tgid) || task->flags & AS_PF_KTHREAD || !passes_filters())
            return 0;
        return cfg.track_all;
    }
    struct as_target *t = bpf_map_lookup_elem(&targets, &tgid);
    if (!t || !passes_filters())
        return 0;
    return t->flags;
}

#endif

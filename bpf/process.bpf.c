/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Fork, exec and exit: told for targets, and what keeps the map of targets true without user space.
 */
#include "common.bpf.h"
#include "names.bpf.h"

#define AS_PATH_STEPS 128 /* components of a working directory and mounts crossed */
#define AS_EXEC_SMALL 1536
#define AS_SIGNAL_GROUP_EXIT 0x4

/* Which exits have been told: the last two threads can both see the count of live threads at 0. */
struct exit_key {
    u64 start;
    u32 tgid;
    u32 pad;
};
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, struct exit_key);
    __type(value, u8);
} exits SEC(".maps");

/* signal->maxrss right behind exec, in pages: what the process used before it became this program (the shell's or the starting
 * interpreter's memory), which getrusage(2) counts as its own. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, u32);
    __type(value, u64);
} rss_at_exec SEC(".maps");

static __always_inline s64 rss_part(struct mm_struct *mm, int i) {
    s64 n = 0;
    if (bpf_core_field_exists(struct mm_struct___percpu, rss_stat)) {
        u64 at =
            (u64)mm + bpf_core_field_offset(struct mm_struct___percpu, rss_stat) + i * bpf_core_type_size(struct percpu_counter);
        bpf_probe_read_kernel(&n, sizeof n, (void *)at + bpf_core_field_offset(struct percpu_counter, count));
    }
    return n > 0 ? n : 0;
}

/* Peak resident set in pages. The kernel has it in signal->maxrss by now, mixed with what was before the last exec; where that
 * was more, and the memory is still there (kernels that tell the exit before it is given up), the program's own is read. */
static __always_inline u64 peak_rss(struct task_struct *task, struct signal_struct *signal, u32 tgid) {
    u64 peak = signal->maxrss, *before = bpf_map_lookup_elem(&rss_at_exec, &tgid), now;
    struct mm_struct *mm = task->mm;
    if (!before || peak > *before || !mm)
        return peak;
    u64 high = BPF_CORE_READ(mm, hiwater_rss);
    now = rss_part(mm, 0) + rss_part(mm, 1) + rss_part(mm, 3); /* files, anonymous, shared memory */
    now = now > high ? now : high;
    return now ? now : peak;
}

static __always_inline u32 ns_pid_of(struct task_struct *task) {
    struct pid *pid = BPF_CORE_READ(task, thread_pid);
    struct upid last;
    if (!pid)
        return 0;
    u32 level = BPF_CORE_READ(pid, level);
    u32 nr = 0;
    if (level > 32)
        return 0;
    /* numbers[] grows with the depth of namespaces; the size of one entry is the kernel's */
    u64 at = (u64)pid + bpf_core_field_offset(pid->numbers) + (u64)level * bpf_core_type_size(struct upid);
    bpf_probe_read_kernel(&nr, sizeof nr, (void *)(at + bpf_core_field_offset(last.nr)));
    return nr;
}

SEC("tp_btf/sched_process_fork")
int as_fork(u64 *ctx) {
    struct task_struct *parent = (struct task_struct *)ctx[0], *child = (struct task_struct *)ctx[1];
    u32 ptgid = parent->tgid, tgid = child->tgid;
    struct as_target *t;
    struct as_fork *f;
    u32 flags;
    if (child->pid != (int)tgid) /* a thread */
        return 0;
    flags = tracked(ptgid);
    if (!flags)
        return 0;
    if (!cfg.track_all && flags & AS_T_FOLLOW) {
        t = bpf_map_lookup_elem(&targets, &ptgid);
        if (t) {
            struct as_target v = *t;
            if (bpf_map_update_elem(&targets, &tgid, &v, BPF_ANY))
                count_drop(AS_D_PROCESS, 1, 0);
        }
    }
    if (!(flags & AS_T_PROCESS))
        return 0;
    f = bpf_ringbuf_reserve(&ring, sizeof *f, 0);
    if (!f) {
        count_drop(AS_D_PROCESS, 1, sizeof *f);
        return 0;
    }
    fill_hdr(&f->h, sizeof *f, AS_K_FORK, 0, bpf_ktime_get_boot_ns(), (u64)ptgid << 32 | (u32)parent->pid);
    f->child = tgid;
    f->uid = (u32)bpf_get_current_uid_gid();
    f->start = child->start_boottime;
    bpf_probe_read_kernel(f->comm, sizeof f->comm, child->comm);
    bpf_ringbuf_submit(f, BPF_RB_NO_WAKEUP);
    return 0;
}

/* A path is written backwards, so that it ends at b[AS_PATH_MAX]; names of 255 bytes may be put at any place. */
struct path_room {
    u8 b[AS_PATH_MAX + 256];
};
struct path_walk {
    u64 dentry, mnt, root_dentry, root_mnt;
    u32 at; /* where the path begins so far */
    u32 pad;
};

/* One component or mount up (a global function: the verifier looks at it once). Not 0: the path is complete. */
__attribute__((noinline)) int as_path_step(struct path_walk *w, struct path_room *to) {
    if (!w || !to || (w->dentry == w->root_dentry && w->mnt == w->root_mnt))
        return 1;
    struct dentry *dentry = (void *)w->dentry, *parent = BPF_CORE_READ(dentry, d_parent);
    struct vfsmount *mnt = (void *)w->mnt;
    if (dentry == BPF_CORE_READ(mnt, mnt_root) || dentry == parent) {
        struct mount *m = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
        struct mount *up = BPF_CORE_READ(m, mnt_parent);
        if (!up || up == m)
            return 1;
        w->dentry = (u64)BPF_CORE_READ(m, mnt_mountpoint);
        w->mnt = (u64)up + bpf_core_field_offset(struct mount, mnt);
        return 0;
    }
    u32 len = BPF_CORE_READ(dentry, d_name.len), at = w->at;
    const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
    if (len > 255 || at > AS_PATH_MAX || len + 1 > at)
        return 1;
    at -= len;
    u32 put = at;
    barrier_var(put);
    put &= AS_PATH_MAX - 1;
    barrier_var(len);
    len &= 255;
    bpf_probe_read_kernel(to->b + put, len, name);
    put = --at;
    barrier_var(put);
    put &= AS_PATH_MAX - 1;
    to->b[put] = '/';
    w->at = at;
    w->dentry = (u64)parent;
    return 0;
}

/* The task's directory as the process sees it, from its own root; gives its length. */
static __always_inline u32 write_cwd(struct path_room *to, struct task_struct *task) {
    struct fs_struct *fs = BPF_CORE_READ(task, fs);
    struct path_walk w = {.at = AS_PATH_MAX};
    if (!fs)
        return 0;
    w.dentry = (u64)BPF_CORE_READ(fs, pwd.dentry);
    w.mnt = (u64)BPF_CORE_READ(fs, pwd.mnt);
    w.root_dentry = (u64)BPF_CORE_READ(fs, root.dentry);
    w.root_mnt = (u64)BPF_CORE_READ(fs, root.mnt);
    for (int i = 0; i < AS_PATH_STEPS; i++)
        if (as_path_step(&w, to))
            break;
    if (w.at >= AS_PATH_MAX) { /* the root itself */
        to->b[AS_PATH_MAX - 1] = '/';
        return 1;
    }
    return AS_PATH_MAX - w.at;
}

/* An exec record with room for `room` bytes of name, directory and arguments (the last `args_room` of them at least for
 * arguments). 1: it did not fit, nothing was told. */
struct exec_info {
    u64 ts, id, arg_start;
    u32 args_len;
    u32 told; /* argument bytes in the record */
};

static __always_inline int tell_exec(struct task_struct *task, struct linux_binprm *bprm, struct exec_info *x, const u32 name_max,
                                     const u32 args_max, const bool must) {
    /* layout: as_exec, name_max (name), AS_PATH_MAX + 256 (directory, built backwards), args_max: moved together in place */
    const u32 size = sizeof(struct as_exec) + name_max + AS_PATH_MAX + 256 + args_max;
    struct as_exec *e = bpf_ringbuf_reserve(&ring, sizeof(struct as_exec) + name_max + AS_PATH_MAX + 256 + args_max, 0);
    u32 at, n;
    u16 flags = 0;
    if (!e) {
        count_drop(AS_D_PROCESS, 1, size);
        return -1;
    }
    u8 *data = e->data;
    long len = bpf_probe_read_kernel_str(data, name_max, BPF_CORE_READ(bprm, filename));
    if (!must && len >= (long)name_max) {
        bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
        return 1;
    }
    e->name_len = len > 0 ? len - 1 : 0;
    u8 *room = data + name_max;
    n = write_cwd((struct path_room *)room, task);
    e->cwd_len = n;
    at = e->name_len;
    barrier_var(at);
    if (at > name_max)
        at = name_max;
    barrier_var(n);
    if (n > AS_PATH_MAX)
        n = AS_PATH_MAX;
    bpf_probe_read_kernel(data + at, n, room + AS_PATH_MAX - n); /* forwards to where it belongs; both lie in this record */
    at += n;
    u32 args = x->args_len;
    if (args > AS_ARGS_MAX) {
        args = AS_ARGS_MAX;
        flags |= AS_F_TRUNCATED;
    }
    n = args > args_max ? args_max : args;
    barrier_var(at);
    if (at > name_max + AS_PATH_MAX)
        at = name_max + AS_PATH_MAX;
    barrier_var(n);
    if (n > args_max)
        n = args_max;
    if (n && bpf_probe_read_user(data + at, n, (void *)x->arg_start)) {
        flags |= AS_F_FAULT;
        count(AS_ST_FAULT, 1);
        n = 0;
        args = 0;
    }
    x->told = n;
    if (n >= args)
        flags |= AS_F_LAST_ARGS;
    fill_hdr(&e->h, size, AS_K_EXEC, flags, x->ts, x->id);
    u64 ids = bpf_get_current_uid_gid();
    e->ppid = BPF_CORE_READ(task, real_parent, tgid);
    e->uid = (u32)ids;
    e->gid = ids >> 32;
    e->args_len = x->args_len;
    e->start = BPF_CORE_READ(task, group_leader, start_boottime);
    e->cgroup = bpf_get_current_cgroup_id();
    e->netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
    e->args_cap = n;
    e->ns_pid = ns_pid_of(task);
    bpf_probe_read_kernel(e->comm, sizeof e->comm, task->comm);
    bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP); /* user space may have to attach to the new program */
    return 0;
}

SEC("tp_btf/sched_process_exec")
int as_exec(u64 *ctx) {
    struct task_struct *task = (struct task_struct *)ctx[0];
    struct linux_binprm *bprm = (struct linux_binprm *)ctx[2];
    u64 id = bpf_get_current_pid_tgid();
    u32 tgid = id >> 32, flags;
    struct exec_info x = {.id = id};
    flags = tracked(tgid);
    if (shared.names && !cfg.track_all && passes_filters() && !bpf_map_lookup_elem(&excluded, &tgid)) {
        struct as_target t = {};
        if (find_name(task, bprm, &t)) {
            t.flags |= flags;
            if (!flags || !t.root)
                t.root = tgid;
            if (bpf_map_update_elem(&targets, &tgid, &t, BPF_ANY))
                count_drop(AS_D_PROCESS, 1, 0);
            flags = t.flags;
        }
    }
    if (!(flags & AS_T_PROCESS))
        return 0;
    u64 rss = BPF_CORE_READ(task, signal, maxrss);
    bpf_map_update_elem(&rss_at_exec, &tgid, &rss, BPF_ANY);
    x.ts = bpf_ktime_get_boot_ns();
    x.arg_start = BPF_CORE_READ(task, mm, arg_start);
    x.args_len = BPF_CORE_READ(task, mm, arg_end) - x.arg_start;
    int r = 1;
    if (x.args_len <= AS_EXEC_SMALL)
        r = tell_exec(task, bprm, &x, 512, AS_EXEC_SMALL, false);
    if (r > 0)
        r = tell_exec(task, bprm, &x, AS_PATH_MAX, AS_ARGS_CHUNK, true);
    if (r < 0)
        return 0;
    u32 total = x.args_len > AS_ARGS_MAX ? AS_ARGS_MAX : x.args_len;
    for (int i = 0; i < AS_ARGS_MAX / AS_ARGS_CHUNK; i++) {
        u32 off = x.told;
        if (off >= total)
            break;
        struct as_exec_args *a = bpf_ringbuf_reserve(&ring, sizeof *a + AS_ARGS_CHUNK, 0);
        if (!a) {
            count_drop(AS_D_PROCESS, 1, AS_ARGS_CHUNK);
            break;
        }
        u32 n = total - off;
        barrier_var(n);
        if (n > AS_ARGS_CHUNK)
            n = AS_ARGS_CHUNK;
        u16 f = off + n >= total ? AS_F_LAST_ARGS : 0;
        a->off = off;
        a->cap = n;
        if (bpf_probe_read_user(a->data, n, (void *)(x.arg_start + off))) {
            a->cap = 0;
            f |= AS_F_FAULT | AS_F_LAST_ARGS;
            total = 0;
        }
        fill_hdr(&a->h, sizeof *a + AS_ARGS_CHUNK, AS_K_EXEC_ARGS, f, x.ts, id);
        bpf_ringbuf_submit(a, BPF_RB_NO_WAKEUP);
        x.told = off + n;
    }
    return 0;
}

SEC("tp_btf/sched_process_exit")
int as_exit(u64 *ctx) {
    struct task_struct *task = (struct task_struct *)ctx[0], *leader = task->group_leader;
    u32 tgid = task->tgid, flags;
    struct signal_struct *signal = task->signal;
    struct exit_key key = {.tgid = tgid};
    u8 one = 1;
    struct as_exit *x;
    if (signal->live.counter)
        return 0;
    flags = tracked(tgid);
    if (!flags)
        return 0;
    key.start = leader->start_boottime;
    if (bpf_map_update_elem(&exits, &key, &one, BPF_NOEXIST))
        return 0;
    if (!cfg.track_all)
        bpf_map_delete_elem(&targets, &tgid);
    if (!(flags & AS_T_PROCESS))
        return 0;
    x = bpf_ringbuf_reserve(&ring, sizeof *x, 0);
    if (!x) {
        count_drop(AS_D_PROCESS, 1, sizeof *x);
        return 0;
    }
    fill_hdr(&x->h, sizeof *x, AS_K_EXIT, 0, bpf_ktime_get_boot_ns(), bpf_get_current_pid_tgid());
    x->ppid = leader->real_parent->tgid;
    x->uid = (u32)bpf_get_current_uid_gid();
    /* what wait(2) will say */
    x->status = signal->flags & AS_SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
    x->maxrss_kb = peak_rss(task, signal, tgid) * cfg.page_kb;
    x->start = key.start;
    bpf_probe_read_kernel(x->comm, sizeof x->comm, leader->comm);
    bpf_ringbuf_submit(x, BPF_RB_NO_WAKEUP);
    return 0;
}

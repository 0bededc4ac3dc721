/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What targets read and write on pipes, terminals, unix sockets, and (fds 0, 1, 2 only) regular files: at sys_exit, bounded per
 * call, the real length always told. Loaded only when asked for.
 */
#include "call.bpf.h"
#include "copy.bpf.h"

#define AF_UNIX 1
#define S_IFMT 0170000
#define S_IFIFO 0010000
#define S_IFCHR 0020000
#define S_IFREG 0100000
#define S_IFSOCK 0140000
#define STDIO_MSG_PEEK 0x2

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, struct as_excl);
    __type(value, u8);
} stdio_excl SEC(".maps");

struct stdio_key {
    u64 ino;
    u32 dev;
    u32 dir;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, struct stdio_key);
    __type(value, u64);
} stdio_off SEC(".maps");

/* Terminals by major number: virtual consoles and serial lines, /dev/tty and /dev/console, pseudo terminals. */
static __always_inline bool is_tty(u32 rdev) {
    u32 major = rdev >> 20;
    return major == 4 || major == 5 || (major >= 136 && major <= 143) || major == 204;
}

static __always_inline u8 object_of(struct file *file, struct inode *inode, u32 fd) {
    u16 mode = BPF_CORE_READ(inode, i_mode);
    struct socket *sock;
    switch (mode & S_IFMT) {
    case S_IFIFO:
        return AS_OBJ_PIPE;
    case S_IFCHR:
        return is_tty(BPF_CORE_READ(inode, i_rdev)) ? AS_OBJ_TTY : 0;
    case S_IFSOCK:
        sock = BPF_CORE_READ(file, private_data);
        return sock && BPF_CORE_READ(sock, sk, __sk_common.skc_family) == AF_UNIX ? AS_OBJ_UNIX : 0;
    case S_IFREG:
        return fd <= 2 ? AS_OBJ_FILE : 0;
    }
    return 0;
}

SEC("tp_btf/sys_exit")
int as_sys_exit_stdio(u64 *ctx) {
    struct pt_regs *regs = (struct pt_regs *)ctx[0];
    s64 ret = ctx[1];
    struct call call = {};
    struct copy c = {};
    u64 id, *total, zero = 0;
    if (ret <= 0 || !read_call(&call, regs) || call.kind == C_MMSG)
        return 0;
    if (!cfg.stdio_all_fds && call.fd > 2)
        return 0;
    id = bpf_get_current_pid_tgid();
    if (!(tracked(id >> 32) & AS_T_STDIO))
        return 0;
    struct task_struct *task = (void *)bpf_get_current_task_btf();
    if (is_compat(task, call.nr)) {
        count(AS_ST_COMPAT, 1);
        return 0;
    }
    if (call.dir == AS_DIR_READ && call.flags & STDIO_MSG_PEEK)
        return 0;
    struct file *file = file_of(task, call.fd);
    struct inode *inode = file ? BPF_CORE_READ(file, f_inode) : NULL;
    if (!inode)
        return 0;
    c.obj = object_of(file, inode, call.fd);
    if (!c.obj)
        return 0;
    struct as_excl key = {.ino = BPF_CORE_READ(inode, i_ino), .dev = BPF_CORE_READ(inode, i_sb, s_dev)};
    if (bpf_map_lookup_elem(&stdio_excl, &key))
        return 0;
    count(AS_ST_STDIO, 1);
    c.chan = key.ino;
    c.dev = key.dev;
    c.fd = call.fd;
    c.ts = bpf_ktime_get_boot_ns();
    c.id = id;
    c.uid = (u32)bpf_get_current_uid_gid();
    c.nr = call.nr;
    c.dir = call.dir;
    c.real = ret > 0xffffffff ? 0xffffffff : ret;
    c.remain = ret;
    if (c.remain > cfg.stdio_max) {
        c.remain = cfg.stdio_max;
        c.trunc = 1;
    }
    struct stdio_key at = {.ino = key.ino, .dev = key.dev, .dir = call.dir};
    total = bpf_map_lookup_elem(&stdio_off, &at);
    if (!total) {
        bpf_map_update_elem(&stdio_off, &at, &zero, BPF_NOEXIST);
        total = bpf_map_lookup_elem(&stdio_off, &at);
    }
    if (total)
        c.off = __sync_fetch_and_add(total, (u64)ret);
    if (call.kind == C_BUF) {
        c.base = call.ptr;
        c.left = call.len;
    } else if (call.kind == C_IOV) {
        c.iov = call.ptr;
        c.segs = call.len > AS_COPY_SEGS ? AS_COPY_SEGS : call.len;
    } else {
        struct as_iovec v; /* the vector's address and its length */
        if (bpf_probe_read_user(&v, sizeof v, (void *)(call.ptr + __builtin_offsetof(struct as_msghdr, iov)))) {
            count(AS_ST_FAULT, 1);
            return 0;
        }
        c.iov = v.base;
        c.segs = v.len > AS_COPY_SEGS ? AS_COPY_SEGS : v.len;
    }
    as_copy_all(&c);
    return 0;
}

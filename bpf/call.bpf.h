/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Reads the system call that the current thread is in from its registers: which transfer it asks for, and from where to where.
 */
#ifndef AS_CALL_BPF_H
#define AS_CALL_BPF_H

#include "common.bpf.h"

enum { C_NONE, C_BUF, C_IOV, C_MSG, C_MMSG };

struct call {
    u64 ptr, len; /* C_BUF: buffer, bytes; C_IOV: iovec, segments; C_MSG: msghdr, -; C_MMSG: mmsghdr, messages */
    u32 fd;
    u32 flags; /* MSG_* that the caller gave */
    u16 nr;
    u8 kind;
    u8 dir;
    u8 file_pos; /* pread and pwrite: never on a socket */
};

#if defined(__TARGET_ARCH_x86)
enum {
    NR_read = 0,
    NR_write = 1,
    NR_pread64 = 17,
    NR_pwrite64 = 18,
    NR_readv = 19,
    NR_writev = 20,
    NR_sendto = 44,
    NR_recvfrom = 45,
    NR_sendmsg = 46,
    NR_recvmsg = 47,
    NR_preadv = 295,
    NR_pwritev = 296,
    NR_recvmmsg = 299,
    NR_sendmmsg = 307,
    NR_preadv2 = 327,
    NR_pwritev2 = 328,
};
#define REG_NR(r) ((u32)(r)->orig_ax)
#define REG1(r) ((r)->di)
#define REG2(r) ((r)->si)
#define REG3(r) ((r)->dx)
#define REG4(r) ((r)->r10)
#define AS_TS_COMPAT 0x2
#define AS_X32_BIT 0x40000000
static __always_inline bool is_compat(struct task_struct *task, u32 nr) {
    return task->thread_info.status & AS_TS_COMPAT || nr & AS_X32_BIT;
}
#elif defined(__TARGET_ARCH_arm64)
enum {
    NR_read = 63,
    NR_write = 64,
    NR_pread64 = 67,
    NR_pwrite64 = 68,
    NR_readv = 65,
    NR_writev = 66,
    NR_sendto = 206,
    NR_recvfrom = 207,
    NR_sendmsg = 211,
    NR_recvmsg = 212,
    NR_preadv = 69,
    NR_pwritev = 70,
    NR_recvmmsg = 243,
    NR_sendmmsg = 269,
    NR_preadv2 = 286,
    NR_pwritev2 = 287,
};
#define REG_NR(r) ((u32)(r)->syscallno)
#define REG1(r) ((r)->orig_x0) /* at exit x0 holds the result */
#define REG2(r) ((r)->regs[1])
#define REG3(r) ((r)->regs[2])
#define REG4(r) ((r)->regs[3])
#define AS_TIF_32BIT (1UL << 22)
static __always_inline bool is_compat(struct task_struct *task, u32 nr) {
    return task->thread_info.flags & AS_TIF_32BIT;
}
#endif

/* Kind, direction and flags of the call with this number, whose third and fourth argument are given. A global function: what it
 * found out is nothing that the verifier should carry on as one state for each number. 0: no call that carries bytes from or to
 * a buffer of the caller. */
__attribute__((noinline)) int as_sort_call(struct call *c, u32 nr, u64 arg3, u64 arg4) {
    if (!c)
        return 0;
    c->nr = nr;
    c->flags = 0;
    c->file_pos = 0;
    c->dir = AS_DIR_READ;
    switch (nr) {
    case NR_write:
        c->dir = AS_DIR_WRITE; /* fallthrough */
    case NR_read:
        c->kind = C_BUF;
        break;
    case NR_sendto:
        c->dir = AS_DIR_WRITE; /* fallthrough */
    case NR_recvfrom:
        c->kind = C_BUF;
        c->flags = arg4;
        break;
    case NR_pwrite64:
        c->dir = AS_DIR_WRITE; /* fallthrough */
    case NR_pread64:
        c->kind = C_BUF;
        c->file_pos = 1;
        break;
    case NR_pwritev2:
    case NR_pwritev:
        c->dir = AS_DIR_WRITE; /* fallthrough */
    case NR_preadv2:
    case NR_preadv:
        c->kind = C_IOV;
        c->file_pos = 1; /* with position -1 the newer two do work on sockets: told as a hole */
        break;
    case NR_writev:
        c->dir = AS_DIR_WRITE; /* fallthrough */
    case NR_readv:
        c->kind = C_IOV;
        break;
    case NR_sendmsg:
        c->dir = AS_DIR_WRITE; /* fallthrough */
    case NR_recvmsg:
        c->kind = C_MSG;
        c->flags = arg3;
        break;
    case NR_sendmmsg:
        c->dir = AS_DIR_WRITE; /* fallthrough */
    case NR_recvmmsg:
        c->kind = C_MMSG;
        c->flags = arg4;
        break;
    default:
        c->kind = C_NONE;
        return 0;
    }
    return 1;
}

static __always_inline bool read_call(struct call *c, struct pt_regs *regs) {
    c->fd = REG1(regs);
    c->ptr = REG2(regs);
    c->len = REG3(regs);
    return as_sort_call(c, REG_NR(regs), REG3(regs), REG4(regs));
}

static __always_inline struct file *file_of(struct task_struct *task, u32 fd) {
    struct files_struct *files = task->files;
    struct file *file = NULL;
    if (!files)
        return NULL;
    struct fdtable *fdt = files->fdt;
    if (!fdt || fd >= fdt->max_fds)
        return NULL;
    bpf_probe_read_kernel(&file, sizeof file, (struct file **)fdt->fd + fd);
    return file;
}

#endif

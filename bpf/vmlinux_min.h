/* SPDX-License-Identifier: MIT
 *
 * The few kernel structures that the programs read, kept by hand: only the members used, in any order. Offsets come from the
 * running kernel's BTF (CO-RE); a member that a kernel may lack is asked for with bpf_core_field_exists() first.
 */
#ifndef AS_VMLINUX_MIN_H
#define AS_VMLINUX_MIN_H

#include <linux/types.h>

#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
#define true 1
#define false 0

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
    unsigned long bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
    u64 regs[31];
    u64 orig_x0;
    s32 syscallno;
};
#endif

typedef struct {
    u32 val;
} kuid_t;
typedef struct {
    u32 val;
} kgid_t;
typedef struct {
    int counter;
} atomic_t;
typedef struct {
    s64 counter;
} atomic64_t;

struct in6_addr {
    union {
        u32 u6_addr32[4];
    } in6_u;
};
struct ns_common {
    u32 inum;
};
struct net {
    struct ns_common ns;
};
typedef struct {
    struct net *net;
} possible_net_t;
struct sock_common {
    u32 skc_daddr, skc_rcv_saddr;
    u16 skc_dport, skc_num;
    u16 skc_family;
    volatile u8 skc_state;
    possible_net_t skc_net;
    struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
    atomic64_t skc_cookie;
};
struct socket;
struct sock {
    struct sock_common __sk_common;
    u16 sk_protocol;
    u16 sk_type;
    u8 sk_shutdown;
    int sk_err;
    kuid_t sk_uid;
    u32 sk_max_ack_backlog;
    struct socket *sk_socket;
};
struct tcp_ulp_ops {
    char name[16];
};
struct inet_connection_sock {
    const struct tcp_ulp_ops *icsk_ulp_ops;
    void *icsk_ulp_data;
};
struct tls_context {
    u8 tx_conf : 3;
    u8 rx_conf : 3;
};
struct tcp_sock {
    struct inet_connection_sock inet_conn;
    u32 copied_seq, write_seq, rcv_nxt, snd_nxt;
    u64 bytes_received, bytes_sent, bytes_retrans;
};
struct socket {
    struct sock *sk;
};

struct super_block {
    u32 s_dev;
};
struct inode {
    u16 i_mode;
    unsigned long i_ino;
    u32 i_rdev;
    struct super_block *i_sb;
};
struct qstr {
    u32 len;
    const unsigned char *name;
};
struct dentry {
    struct dentry *d_parent;
    struct qstr d_name;
};
struct vfsmount {
    struct dentry *mnt_root;
};
struct mount {
    struct mount *mnt_parent;
    struct dentry *mnt_mountpoint;
    struct vfsmount mnt;
};
struct path {
    struct vfsmount *mnt;
    struct dentry *dentry;
};
struct file {
    void *private_data;
    struct inode *f_inode;
};
struct fdtable {
    unsigned int max_fds;
    struct file **fd;
};
struct files_struct {
    struct fdtable *fdt;
};
struct fs_struct {
    struct path root, pwd;
};
struct mm_struct {
    unsigned long arg_start, arg_end;
    unsigned long hiwater_rss;
};
struct percpu_counter {
    s64 count;
};
struct mm_struct___percpu { /* since 6.2; before that mm_struct has a struct mm_rss_stat */
    struct percpu_counter rss_stat[4];
};
struct cred {
    kuid_t uid;
    kgid_t gid;
};
struct upid {
    int nr;
};
struct pid {
    unsigned int level;
    struct upid numbers[1];
};
struct nsproxy {
    struct net *net_ns;
};
struct signal_struct {
    atomic_t live;
    unsigned int flags;
    int group_exit_code;
    unsigned long maxrss;
};
struct thread_info {
    unsigned long flags;
    u32 status;
};
struct task_struct {
    struct thread_info thread_info;
    unsigned int flags;
    struct mm_struct *mm;
    int exit_code;
    int pid, tgid;
    struct task_struct *real_parent, *group_leader;
    struct pid *thread_pid;
    u64 start_boottime;
    const struct cred *cred;
    char comm[16];
    struct fs_struct *fs;
    struct files_struct *files;
    struct nsproxy *nsproxy;
    struct signal_struct *signal;
};
struct linux_binprm {
    const char *filename;
};

#pragma clang attribute pop

/* user memory: fixed layouts, 64-bit callers only */
struct as_iovec {
    u64 base, len;
};
struct as_msghdr {
    u64 name;
    u32 namelen, pad;
    struct as_iovec *iov;
    u64 iovlen;
    u64 control, controllen;
    u32 flags, pad2;
};
struct as_mmsghdr {
    struct as_msghdr hdr;
    u32 len, pad;
};

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>

#endif

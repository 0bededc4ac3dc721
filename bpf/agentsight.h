/* SPDX-License-Identifier: MIT
 *
 * The only contract between the kernel programs and user space, and the format of the stream of records that everything
 * behind the ring reads: the ring buffer, the Batch and the capture file hold these very bytes. Little or big endian as the
 * machine that captured (the capture file's header says which).
 *
 * A stream is a sequence of records. Each begins with struct as_hdr at an offset that is a multiple of 8; `len` is the whole
 * record's length with header and padding, itself a multiple of 8. A reader skips kinds that it does not know by `len`.
 * Kinds below AS_K_USER come from the kernel, those above are put into the same stream by user space, so that a replayed
 * file has everything the live run had.
 *
 * Times are nanoseconds of CLOCK_BOOTTIME (bpf_ktime_get_boot_ns). Process start times too (task->start_boottime).
 */
#ifndef AGENTSIGHT_H
#define AGENTSIGHT_H

#ifndef __BPF__
#include <linux/types.h>
#endif

#define AS_ABI_VERSION 1

enum as_kind {
    AS_K_CONN = 1,      /* struct as_conn: a TCP socket of a target was seen for the first time, or what is known of it grew */
    AS_K_CLOSE = 2,     /* struct as_close: that socket is gone (tcp_destroy_sock): final byte counts */
    AS_K_DATA = 3,      /* struct as_data: bytes of a TCP socket, or a hole of known length */
    AS_K_STDIO = 4,     /* struct as_stdio: bytes of a pipe, tty, unix socket or file behind fd 0, 1, 2 (or any) */
    AS_K_SECRET = 5,    /* struct as_secret: one TLS secret, from the probe on a stack's key-log function */
    AS_K_FORK = 6,      /* struct as_fork: a tracked process made a new process */
    AS_K_EXEC = 7,      /* struct as_exec: a process became another program (or, AS_F_SNAPSHOT, was there already) */
    AS_K_EXEC_ARGS = 8, /* struct as_exec_args: more of the argument block of the exec with the same tgid and ts */
    AS_K_EXIT = 9,      /* struct as_exit: the last thread of a process ended */
    AS_K_USER = 64,
    AS_K_CLOCK = 65,    /* struct as_clock: wall time for a boot time; taken at start and every second or so */
    AS_K_TICK = 66,     /* struct as_hdr alone: nothing came for a while, time went on */
    AS_K_DROPS = 67,    /* struct as_drops: the loss counters, written when one of them grew, and at the end */
    AS_K_NOTE = 68,     /* struct as_note: JSON text: attachments, options, warnings, what stays dark and why */
};

/* as_hdr.flags */
#define AS_F_SNAPSHOT 0x1   /* EXEC: read from /proc by user space, the process is older than the capture */
#define AS_F_TRUNCATED 0x2  /* EXEC: argument block longer than AS_ARGS_MAX; STDIO: cap < real */
#define AS_F_FAULT 0x4      /* some user memory could not be read (page not present): bytes are missing */
#define AS_F_LAST_ARGS 0x8  /* EXEC, EXEC_ARGS: no further EXEC_ARGS follows */

struct as_hdr {
    __u32 len;
    __u16 kind;
    __u16 flags;
    __u64 ts;
    __u32 tgid; /* process that the record is about (for DATA: whose call carried the bytes; 0 where unknown) */
    __u32 tid;
};

/* ---- TCP sockets ---- */
#define AS_DIR_READ 0  /* received by the owner of the channel */
#define AS_DIR_WRITE 1 /* sent by it */

/* why bytes of the stream are not in the record */
enum as_hole {
    AS_HOLE_NONE = 0,
    AS_HOLE_NO_BUFFER = 1, /* splice, sendfile, io_uring, another call's registers: no user buffer to copy */
    AS_HOLE_FAULT = 2,     /* user page not readable */
    AS_HOLE_BOUND = 3,     /* more iovec segments or bytes than one call may copy */
    AS_HOLE_TRUNC = 4,     /* MSG_TRUNC: consumed, never delivered */
    AS_HOLE_RING = 5,      /* no room in the ring (also counted in as_drops); told by the next record's offset only */
    AS_HOLE_COMPAT = 6,    /* 32-bit call */
    AS_HOLE_SKIPPED = 7,   /* user space asked to stop copying (control map) */
    AS_HOLE_MIRROR = 8,    /* the other end is tracked too and copied these bytes as their sender */
    AS_HOLE_JUMP = 9,      /* sequence numbers moved without a call we saw (splice out of the socket, another thread) */
};

struct as_data {
    struct as_hdr h;
    __u64 chan;  /* socket cookie */
    __u64 off;   /* offset of the first byte in this direction; 0 is the first byte after the SYN, or the first seen */
    __u32 cap;   /* bytes in data[] */
    __u32 real;  /* bytes of the stream this record stands for (>= cap): real - cap bytes behind cap are a hole */
    __u8 dir;    /* AS_DIR_* */
    __u8 hole;   /* enum as_hole: why real > cap */
    __u16 nr;    /* system call number that carried it (0xffff: none known) */
    __u32 uid;
    __u8 data[];
};

#define AS_CONN_FROM_START 0x1 /* seen from its first byte on, in both directions: offset 0 is the byte after the SYN */
#define AS_CONN_CLIENT 0x2     /* connect() was called on it */
#define AS_CONN_SERVER 0x4     /* it came out of accept() */
#define AS_CONN_KTLS_TX 0x8    /* kernel TLS: what is written is plaintext from here on */
#define AS_CONN_KTLS_RX 0x10
#define AS_CONN_MIRRORED 0x20  /* the peer's end is tracked: received bytes are not copied at this end */

struct as_conn {
    struct as_hdr h;
    __u64 chan;
    __u32 netns;   /* inode of the network namespace */
    __u16 family;  /* AF_INET or AF_INET6 */
    __u16 flags;   /* AS_CONN_* */
    __u16 sport;   /* host byte order; the socket's own (local) port */
    __u16 dport;   /* the peer's */
    __u32 tx_base; /* TCP sequence number of the byte at offset 0, sending */
    __u32 rx_base; /* the same, receiving (rx_base here == tx_base there where both count from the start) */
    __u32 uid;
    __u8 saddr[16]; /* IPv4 in the first four bytes, network order */
    __u8 daddr[16];
};

struct as_close {
    struct as_hdr h;
    __u64 chan;
    __u64 seen[2];     /* bytes that crossed, by AS_DIR_*: = offset of the end */
    __u64 copied[2];   /* copied into the ring */
    __u64 mirrored[2]; /* left to the sender's copy */
    __u64 skipped[2];  /* left out because user space asked */
    __u64 holes[2];    /* all other holes of known length */
    __u64 dropped[2];  /* refused by the full ring */
    __u32 err;         /* sk_err */
    __u8 cls[2];       /* enum as_class of the first bytes, by AS_DIR_* */
    __u16 flags;       /* AS_CONN_*, as known at the end */
};

/* what the first bytes of a direction look like; AS_CLS_NONE where they were not copied */
enum as_class {
    AS_CLS_NONE = 0,
    AS_CLS_TLS = 1,     /* a TLS record: handshake, 3.x */
    AS_CLS_HTTP = 2,    /* a method of HTTP, or HTTP/ */
    AS_CLS_CONNECT = 3, /* a request to a proxy: CONNECT, SOCKS 4 or 5, PROXY */
    AS_CLS_OTHER = 4,
};

/* ---- stdio ---- */
#define AS_OBJ_PIPE 1
#define AS_OBJ_TTY 2
#define AS_OBJ_UNIX 3
#define AS_OBJ_FILE 4
#define AS_OBJ_OTHER 5

struct as_stdio {
    struct as_hdr h;
    __u64 ino;  /* inode number of the kernel object */
    __u32 dev;  /* its device (kernel encoding: major << 20 | minor) */
    __s32 fd;
    __u64 off;  /* running byte count in this object and direction since first seen, before this call */
    __u32 cap;  /* bytes in data[] */
    __u32 real; /* result of the system call for the first record of a call; 0 for further records of the same call */
    __u8 dir;
    __u8 obj;   /* AS_OBJ_* */
    __u16 nr;
    __u32 uid;
    __u8 data[];
};

/* ---- TLS secrets ---- */
#define AS_LABEL_MAX 48
#define AS_SECRET_MAX 64
#define AS_SEC_HAS_RANDOM 0x1
#define AS_SEC_CHACHA 0x2 /* found in memory, beside the ChaCha20 key that follows from it */

/* Label TRAFFIC_SECRET: a TLS 1.3 traffic secret, of any phase, direction and generation. Label AES_KEY: the AES key of one
 * direction of a connection, most likely TLS 1.2; nothing else is known of it. */
#define AS_STACK_MEMORY 255 /* as_secret.stack: found in the process's memory by user space; arg1 is its address there */

struct as_secret {
    struct as_hdr h;
    __u64 arg1; /* first argument of the probed function: groups the secrets of one connection */
    __u8 stack; /* low 8 bits of the cookie */
    __u8 label_len;
    __u8 secret_len;
    __u8 flags; /* AS_SEC_* */
    __u32 uid;
    __u8 random[32]; /* client random, where the function has it */
    __u8 label[AS_LABEL_MAX];
    __u8 secret[AS_SECRET_MAX];
};

/* The uprobe cookie says where the arguments are: one nibble per argument. Registers by number, at function entry. */
enum as_reg {
    AS_R_DI = 0,
    AS_R_SI = 1,
    AS_R_DX = 2,
    AS_R_CX = 3,
    AS_R_R8 = 4,
    AS_R_R9 = 5,
    AS_R_AX = 6,
    AS_R_BX = 7,
    AS_R_R10 = 8,
    AS_R_R11 = 9, /* x86-64 names; on arm64 0..9 are x0..x9 */
    AS_R_NONE = 15,
};
#define AS_COOKIE_STACK(c) ((c) & 0xff)
#define AS_COOKIE_LABEL(c) (((c) >> 8) & 0xf)       /* pointer to the label */
#define AS_COOKIE_LABEL_LEN(c) (((c) >> 12) & 0xf)  /* its length; AS_R_NONE: NUL-terminated */
#define AS_COOKIE_SECRET(c) (((c) >> 16) & 0xf)     /* pointer to the secret */
#define AS_COOKIE_SECRET_LEN(c) (((c) >> 20) & 0xf) /* its length */
#define AS_COOKIE_ARG1(c) (((c) >> 24) & 0xf)       /* what groups a connection's secrets */
#define AS_COOKIE_RANDOM(c) (((c) >> 28) & 0xf)     /* pointer to the 32-byte client random; AS_R_NONE: not there */
#define AS_COOKIE_KIND(c) (((c) >> 32) & 0xf)       /* AS_PROBE_* */
#define AS_PROBE_KEYLOG 0 /* a key-log function: it is told label and secret */
#define AS_PROBE_EXPAND 1 /* HKDF-Expand: "label" is its info; where that asks for a record key, the secret is TRAFFIC_SECRET */

/* ---- processes ---- */
#define AS_COMM_LEN 16
#define AS_ARGS_MAX (128 * 1024)
#define AS_ARGS_CHUNK 16384 /* argument bytes per record */
#define AS_PATH_MAX 4096

struct as_fork {
    struct as_hdr h; /* tgid, tid: the parent's */
    __u32 child;     /* tgid of the new process */
    __u32 uid;
    __u64 start; /* start_boottime of the child, ns */
    __u8 comm[AS_COMM_LEN];
};

/* data[]: filename (name_len bytes), working directory (cwd_len), then args_cap bytes of the argument block (NUL between
 * arguments). args_len is the whole block's length; further parts follow as AS_K_EXEC_ARGS unless AS_F_LAST_ARGS. */
struct as_exec {
    struct as_hdr h;
    __u32 ppid;
    __u32 uid;
    __u32 gid;
    __u32 args_len;
    __u64 start;  /* start_boottime of the process, ns */
    __u64 cgroup; /* cgroup v2 id */
    __u32 netns;
    __u16 name_len;
    __u16 cwd_len;
    __u32 args_cap;
    __u32 ns_pid; /* pid inside its innermost pid namespace */
    __u8 comm[AS_COMM_LEN];
    __u8 data[];
};

struct as_exec_args {
    struct as_hdr h; /* tgid and ts of the AS_K_EXEC that it continues */
    __u32 off;       /* offset in the argument block */
    __u32 cap;
    __u8 data[];
};

struct as_exit {
    struct as_hdr h;
    __u32 ppid;
    __u32 uid;
    __u32 status;    /* as wait(2) has it: code << 8 | signal | core << 7 */
    __u32 maxrss_kb; /* peak resident set, KiB; may be what the process used before its last exec, if that was more */
    __u64 start;     /* start_boottime, ns */
    __u8 comm[AS_COMM_LEN];
};

/* ---- put into the stream by user space ---- */
struct as_clock {
    struct as_hdr h;
    __u64 wall_ns; /* CLOCK_REALTIME at h.ts */
};

/* index of the per-CPU loss counters */
enum as_drop {
    AS_D_DATA = 0,
    AS_D_STDIO = 1,
    AS_D_SECRET = 2,
    AS_D_PROCESS = 3,
    AS_D_CONN = 4,
    AS_D_ARENA = 5,
    AS_D_MAX = 8,
};
struct as_drop_counter {
    __u64 records;
    __u64 bytes;
};
struct as_drops {
    struct as_hdr h;
    struct as_drop_counter c[AS_D_MAX];
};

struct as_note {
    struct as_hdr h;
    __u32 n; /* bytes of JSON in text[] */
    __u32 pad;
    __u8 text[];
};

/* ---- maps that user space writes ---- */
struct as_target { /* value of map `targets`, key: __u32 tgid */
    __u32 flags;   /* AS_T_* */
    __u32 root;    /* tgid of the tree's root */
};
#define AS_T_IO 0x1      /* copy its TCP sockets, take its secrets */
#define AS_T_STDIO 0x2   /* copy its stdio */
#define AS_T_PROCESS 0x4 /* report its process events */
#define AS_T_FOLLOW 0x8  /* children become targets with the same flags */

#define AS_NAME_MAX 64 /* key of map `names`: zero-padded basename; value: struct as_target to give at exec */

/* map `ctl`, key: __u64 socket cookie, value: __u8; read again for a socket when as_shared.ctl_gen has changed */
#define AS_CTL_COPY 0
#define AS_CTL_SKIP 1 /* count its bytes, do not copy them */

struct as_excl { /* key of map `stdio_excl`: a pipe or terminal that is ours */
    __u64 ino;
    __u32 dev; /* kernel encoding */
    __u32 pad;
};

/* read-only data of the programs, written before they are loaded */
struct as_config {
    __u8 sys_exit;      /* TCP at sys_exit (1) or at sock_send_length/sock_recv_length (0) */
    __u8 track_all;     /* not 0: every process but those in `excluded`, with these AS_T_*; 0: those in `targets` */
    __u8 mirror;        /* the mirror rule: loopback bytes are copied at their sender only */
    __u8 stdio_all_fds; /* not only 0, 1, 2 */
    __u8 uid_on;        /* only this uid */
    __u8 cgroup_on;     /* only this cgroup (v2 id) and those below it */
    __u8 pad;
    __u8 wake_shift;    /* the reader is woken each 1 << wake_shift bytes; it has a timer besides */
    __u32 uid;
    __u32 cgroup_level; /* depth of that cgroup, the root is 0 */
    __u64 cgroup;
    __u64 ring_limit; /* payload is refused when more bytes than this wait in the ring */
    __u32 stdio_max;  /* bytes copied per call */
    __u32 page_kb;
};

/* memory that programs and user space share */
struct as_shared {
    __u32 ctl_gen; /* counts the changes of `ctl` */
    __u32 names;   /* not 0: `names` has entries */
};

/* index of the per-CPU array `stats` */
enum as_stat {
    AS_ST_HITS = 0,    /* calls of targets with data on a socket */
    AS_ST_COPIED = 1,  /* bytes copied */
    AS_ST_PEEK = 2,    /* reads with MSG_PEEK, ignored */
    AS_ST_NOT_TCP = 3, /* calls on other sockets */
    AS_ST_FAULT = 4,   /* reads of user memory that failed */
    AS_ST_COMPAT = 5,  /* 32-bit calls */
    AS_ST_MIRROR = 6,  /* calls left to the sender's copy */
    AS_ST_NO_CALL = 7, /* transfers that are not the thread's own call: splice, sendfile, io_uring */
    AS_ST_RACE = 8,    /* two calls on one socket and direction at once */
    AS_ST_NO_STATE = 9,/* sockets without room for their state */
    AS_ST_STDIO = 10,  /* calls copied as stdio */
    AS_ST_MAX = 16,
};

#endif

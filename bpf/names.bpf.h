/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Does a program that was just started answer to one of the names in `names`? Its names are: the basenames of the file that was
 * executed, of argv[0], and, where argv[0] is an interpreter, of the first argument that is no option (the script).
 */
#ifndef AS_NAMES_BPF_H
#define AS_NAMES_BPF_H

#include "common.bpf.h"

struct as_name {
    char s[AS_NAME_MAX];
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, struct as_name);
    __type(value, struct as_target);
} names SEC(".maps");

#define AS_NAME_ARGS 8 /* arguments looked at for a script's name */

/* Scratch, in the ring and then discarded: programs can be preempted, so there is no per-CPU place for it. */
struct name_work {
    u32 base;         /* where in text[] the last component begins */
    u32 len;          /* of text[], with the NUL */
    char text[AS_PATH_MAX];
    char tail[AS_NAME_MAX]; /* the last bytes of text[], from text[len - 64] */
};

/* Looks up the basename of w->text. */
static __attribute__((noinline)) struct as_target *lookup_basename(struct name_work *w) {
    struct as_name key = {};
    u32 len = w->len, from;
    if (len <= 1 || len > AS_PATH_MAX)
        return NULL;
    from = len > AS_NAME_MAX ? len - AS_NAME_MAX : 0;
    w->base = 0;
    bpf_probe_read_kernel(w->tail, AS_NAME_MAX, w->text + from);
    for (u32 i = 0; i < AS_NAME_MAX; i++)
        if (w->tail[i] == '/' && i + from + 1 < len)
            w->base = i + 1;
    bpf_probe_read_kernel_str(&key, sizeof key, w->text + from + w->base);
    return bpf_map_lookup_elem(&names, &key);
}

static __always_inline bool is_interpreter(struct name_work *w) {
    u32 len = w->len, from = len > AS_NAME_MAX && len <= AS_PATH_MAX ? len - AS_NAME_MAX : 0;
    char p[4] = {};
    bpf_probe_read_kernel(p, 4, w->text + from + w->base);
    u32 a = (u8)p[0] | (u32)(u8)p[1] << 8 | (u32)(u8)p[2] << 16 | (u32)(u8)p[3] << 24;
    switch (a) {
    case 'p' | 'y' << 8 | 't' << 16 | 'h' << 24:
    case 'n' | 'o' << 8 | 'd' << 16 | 'e' << 24:
    case 'd' | 'e' << 8 | 'n' << 16 | 'o' << 24:
    case 'r' | 'u' << 8 | 'b' << 16 | 'y' << 24:
    case 'p' | 'e' << 8 | 'r' << 16 | 'l' << 24:
    case 'b' | 'a' << 8 | 's' << 16 | 'h' << 24:
    case 'd' | 'a' << 8 | 's' << 16 | 'h' << 24:
    case 'b' | 'u' << 8 | 'n' << 16:
    case 'z' | 's' << 8 | 'h' << 16:
        return true;
    }
    return (a & 0xffffff) == ('s' | 'h' << 8);
}

static __attribute__((noinline)) bool find_name(struct task_struct *task, struct linux_binprm *bprm, struct as_target *out) {
    struct name_work *w = bpf_ringbuf_reserve(&ring, sizeof *w, 0);
    struct as_target *t;
    struct as_name key = {};
    bool found = false;
    if (!w) {
        count_drop(AS_D_PROCESS, 1, 0);
        return false;
    }
    u64 at = BPF_CORE_READ(task, mm, arg_start), end = BPF_CORE_READ(task, mm, arg_end);
    w->len = bpf_probe_read_kernel_str(w->text, sizeof w->text, BPF_CORE_READ(bprm, filename));
    t = lookup_basename(w);
    if (t)
        goto found;
    bpf_probe_read_kernel_str(&key, 16, task->comm); /* at exec the basename of the file, cut; of a script, of the script */
    t = bpf_map_lookup_elem(&names, &key);
    if (t)
        goto found;
    long n = bpf_probe_read_user_str(w->text, sizeof w->text, (void *)at);
    if (n <= 0)
        goto out;
    w->len = n;
    t = lookup_basename(w);
    if (t)
        goto found;
    if (!is_interpreter(w))
        goto out;
    for (int i = 0; i < AS_NAME_ARGS; i++) {
        at += n;
        if (at >= end)
            break;
        n = bpf_probe_read_user_str(w->text, sizeof w->text, (void *)at);
        if (n <= 1)
            break;
        if (w->text[0] == '-') {
            if (w->text[1] == 'c' || w->text[1] == 'm' || w->text[1] == 'e') /* the program is in the arguments */
                break;
            continue;
        }
        w->len = n;
        t = lookup_basename(w);
        if (t)
            goto found;
        break;
    }
    goto out;
found:
    *out = *t;
    found = true;
out:
    bpf_ringbuf_discard(w, BPF_RB_NO_WAKEUP);
    return found;
}

#endif

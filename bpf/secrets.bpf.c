/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * TLS secrets: a probe at the entry of the one function that each TLS stack hands them to. Where the arguments are is said by
 * the probe's cookie (AS_COOKIE_*), so one program serves every stack. A stack without such a function derives its keys from each
 * traffic secret with HKDF-Expand-Label(secret, "key", "", n) (RFC 8446 7.3): there the info that names the derivation stands in
 * the label's place, all other derivations are passed over, and what is expanded is the secret.
 *
 * Two copies: for a multi link (6.6 on) one that may sleep, so that a label on a page that is not there yet is brought in; for
 * single probes one that may not.
 */
#include "common.bpf.h"

/* The registers that arguments can be in, by enum as_reg. Copied, since a context may not be read at a computed place. */
struct args {
    u64 r[16];
};

static __always_inline void read_args(struct args *a, void *ctx) {
    __builtin_memset(a, 0, sizeof *a);
#if defined(__TARGET_ARCH_x86)
    struct x86_regs { /* the uapi layout: what a uprobe's context is */
        u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
    } *r = ctx;
    a->r[AS_R_DI] = r->di;
    a->r[AS_R_SI] = r->si;
    a->r[AS_R_DX] = r->dx;
    a->r[AS_R_CX] = r->cx;
    a->r[AS_R_R8] = r->r8;
    a->r[AS_R_R9] = r->r9;
    a->r[AS_R_AX] = r->ax;
    a->r[AS_R_BX] = r->bx;
    a->r[AS_R_R10] = r->r10;
    a->r[AS_R_R11] = r->r11;
#elif defined(__TARGET_ARCH_arm64)
    u64 *r = ctx;
    for (int i = 0; i < 10; i++)
        a->r[i] = r[i];
#endif
}

static __always_inline long read_user(void *to, u32 n, u64 from, bool may_sleep) {
    if (!bpf_probe_read_user(to, n, (void *)from))
        return 0;
    return may_sleep ? bpf_copy_from_user(to, n, (void *)from) : -14;
}

/* Whether a HkdfLabel (RFC 8446 7.1) derives a record key: of 16 or 32 bytes, by the label "key" and nothing else. */
static __always_inline bool is_record_key(u64 info, bool may_sleep) {
    union { /* laid so that eight bytes of the label are one aligned word: memcmp of nine would be a call */
        u8 b[24];
        u64 w[3];
    } u = {};
    u64 want;
    __builtin_memcpy(&want, "tls13 ke", 8);
    if (read_user(u.b + 5, 12, info, may_sleep))
        return false;
    return u.b[5] == 0 && (u.b[6] == 16 || u.b[6] == 32) && u.b[7] == 9 && u.w[1] == want && u.b[16] == 'y';
}

static __always_inline int secret(struct pt_regs *ctx, bool may_sleep) {
    u64 id = bpf_get_current_pid_tgid();
    u64 cookie, len, from;
    struct as_secret *s;
    struct args a;
    bool expand;
    u16 flags = 0;
    if (!(tracked(id >> 32) & AS_T_IO))
        return 0;
    cookie = bpf_get_attach_cookie(ctx);
    if (AS_COOKIE_KIND(cookie) > AS_PROBE_EXPAND)
        return 0;
    expand = AS_COOKIE_KIND(cookie) == AS_PROBE_EXPAND;
    read_args(&a, ctx);
    len = a.r[AS_COOKIE_SECRET_LEN(cookie)];
    if (len < 16 || len > AS_SECRET_MAX)
        return 0;
    if (expand && ((len != 32 && len != 48) || !is_record_key(a.r[AS_COOKIE_LABEL(cookie)], may_sleep)))
        return 0;
    s = bpf_ringbuf_reserve(&ring, sizeof *s, 0);
    if (!s) {
        count_drop(AS_D_SECRET, 1, sizeof *s);
        return 0;
    }
    __builtin_memset(s->random, 0, sizeof s->random + sizeof s->label + sizeof s->secret);
    s->arg1 = a.r[AS_COOKIE_ARG1(cookie)];
    s->stack = AS_COOKIE_STACK(cookie);
    s->uid = (u32)bpf_get_current_uid_gid();
    s->flags = 0;
    s->label_len = 0;

    barrier_var(len);
    len &= 127; /* clang compares, then uses another copy: bound it once more for the verifier */
    if (len > AS_SECRET_MAX)
        len = AS_SECRET_MAX;
    s->secret_len = len;
    if (read_user(s->secret, len, a.r[AS_COOKIE_SECRET(cookie)], may_sleep))
        goto fault;

    from = a.r[AS_COOKIE_LABEL(cookie)];
    if (expand) {
        __builtin_memcpy(s->label, "TRAFFIC_SECRET", 14);
        s->label_len = 14;
    } else if (AS_COOKIE_LABEL_LEN(cookie) == AS_R_NONE) {
        long n = bpf_probe_read_user_str(s->label, sizeof s->label, (void *)from);
        if (n < 0 && may_sleep && !bpf_copy_from_user(s->label, 1, (void *)from)) /* the page is there now */
            n = bpf_probe_read_user_str(s->label, sizeof s->label, (void *)from);
        if (n > 0)
            s->label_len = n - 1;
        else
            flags |= AS_F_FAULT;
    } else {
        u64 n = a.r[AS_COOKIE_LABEL_LEN(cookie)];
        if (n > AS_LABEL_MAX)
            n = AS_LABEL_MAX;
        barrier_var(n);
        n &= 63;
        if (n > AS_LABEL_MAX)
            n = AS_LABEL_MAX;
        if (n && !read_user(s->label, n, from, may_sleep))
            s->label_len = n;
        else
            flags |= AS_F_FAULT;
    }
    if (AS_COOKIE_RANDOM(cookie) != AS_R_NONE) {
        if (!read_user(s->random, sizeof s->random, a.r[AS_COOKIE_RANDOM(cookie)], may_sleep))
            s->flags |= AS_SEC_HAS_RANDOM;
    }
    fill_hdr(&s->h, sizeof *s, AS_K_SECRET, flags, bpf_ktime_get_boot_ns(), id);
    bpf_ringbuf_submit(s, BPF_RB_NO_WAKEUP);
    return 0;
fault:
    count(AS_ST_FAULT, 1);
    count_drop(AS_D_SECRET, 1, len);
    bpf_ringbuf_discard(s, BPF_RB_NO_WAKEUP);
    return 0;
}

SEC("uprobe.multi.s")
int as_secret_multi(struct pt_regs *ctx) {
    return secret(ctx, true);
}

SEC("uprobe")
int as_secret_single(struct pt_regs *ctx) {
    return secret(ctx, false);
}

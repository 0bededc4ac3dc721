/* SPDX-License-Identifier: MIT
 *
 * The processes of the stream: who is who, and exec records whose argument block comes in parts.
 */
#include "engine_int.h"

#include <stdlib.h>
#include <string.h>

#define FORGET_NS (30 * 1000 * 1000 * 1000ULL) /* a dead process is kept so long: its sockets' last records still come */
#define MAX_EXECS 256                          /* execs whose arguments are still coming */

proc *proc_get(as_engine *e, uint32_t tgid) {
    return as_hmap_get(&e->procs, tgid);
}

proc *proc_need(as_engine *e, uint32_t tgid) {
    proc *p = proc_get(e, tgid);
    if (p || !tgid)
        return p;
    p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->tgid = tgid;
    if (as_hmap_put(&e->procs, tgid, p)) {
        free(p);
        return NULL;
    }
    return p;
}

void proc_ref(as_engine *e, uint32_t tgid, as_procref *out) {
    const proc *p = proc_get(e, tgid);
    memset(out, 0, sizeof *out);
    out->tgid = tgid;
    if (p) {
        out->start = p->start;
        memcpy(out->comm, p->comm, sizeof out->comm);
    }
}

static void renew(proc *p, uint64_t start) { /* the number was given to another process */
    uint32_t tgid = p->tgid;
    free(p->exe);
    memset(p, 0, sizeof *p);
    p->tgid = tgid;
    p->start = start;
}

void proc_fork(as_engine *e, const struct as_fork *r) {
    as_meta m = meta_of(e, &r->h, r->uid);
    const proc *parent = proc_get(e, r->h.tgid);
    char *exe = parent && parent->exe ? strdup(parent->exe) : NULL;
    proc *p = proc_need(e, r->child);
    if (p) {
        renew(p, r->start);
        p->ppid = r->h.tgid;
        p->uid = r->uid;
        p->exe = exe;
        memcpy(p->comm, r->comm, sizeof p->comm);
        as_keyring_relate(e->keys, r->child, r->h.tgid);
    } else {
        free(exe);
    }
    as_out *o = e->o.want_process ? emit_new(e, AS_O_FORK, &m) : NULL;
    if (o) {
        o->u.rec.rec = as_outs_copy(&e->outs, r, sizeof *r).p;
        proc_ref(e, r->h.tgid, &o->u.rec.who);
    }
}

static void exec_done(as_engine *e, const struct as_exec *r, const uint8_t *args, size_t n, uint64_t seq) {
    as_meta m = meta_of(e, &r->h, r->uid);
    as_out *o = e->o.want_process ? emit_new(e, AS_O_EXEC, &m) : NULL;
    if (o) {
        o->seq = seq;
        o->u.rec.rec = as_outs_copy(&e->outs, r, sizeof *r + r->name_len + r->cwd_len).p;
        o->u.rec.args = as_outs_copy(&e->outs, args, n);
    }
}

static void parts_free(as_engine *e, uint32_t tgid) {
    exec_parts *x = as_hmap_del(&e->execs, tgid);
    if (x) {
        free(x->rec);
        free(x->args);
        free(x);
    }
}

static void parts_done(as_engine *e, uint32_t tgid, exec_parts *x) {
    exec_done(e, (const struct as_exec *)(const void *)x->rec, x->args, x->args_got, x->seq);
    parts_free(e, tgid);
}

void proc_exec(as_engine *e, const struct as_exec *r) {
    size_t fixed = sizeof *r + (size_t)r->name_len + r->cwd_len;
    if (fixed > r->h.len || r->args_cap > r->h.len - fixed) {
        e->st.damaged++;
        return;
    }
    proc *p = proc_need(e, r->h.tgid);
    if (p) {
        if (p->start != r->start)
            renew(p, r->start);
        p->dead = 0;
        p->asked = 0;
        p->ppid = r->ppid;
        p->uid = r->uid;
        memcpy(p->comm, r->comm, sizeof p->comm);
        char *exe = malloc((size_t)r->name_len + 1);
        if (exe) {
            memcpy(exe, r->data, r->name_len);
            exe[r->name_len] = 0;
            free(p->exe);
            p->exe = exe;
        }
        if (r->ppid)
            as_keyring_relate(e->keys, r->h.tgid, r->ppid);
    }
    const uint8_t *args = r->data + r->name_len + r->cwd_len;
    parts_free(e, r->h.tgid); /* an older one whose end never came */
    if (r->h.flags & AS_F_LAST_ARGS || r->args_cap >= r->args_len) {
        exec_done(e, r, args, r->args_cap, e->seq);
        return;
    }
    exec_parts *x = e->execs.n < MAX_EXECS ? calloc(1, sizeof *x) : NULL;
    if (x) {
        x->ts = r->h.ts;
        x->seq = e->seq;
        x->rec_len = fixed;
        x->args_cap = r->args_len < AS_ARGS_MAX ? r->args_len : AS_ARGS_MAX;
        x->rec = malloc(fixed);
        x->args = malloc(x->args_cap);
    }
    if (!x || !x->rec || !x->args || as_hmap_put(&e->execs, r->h.tgid, x)) {
        if (x) {
            free(x->rec);
            free(x->args);
            free(x);
        }
        e->st.lost_execs++;
        exec_done(e, r, args, r->args_cap, e->seq);
        return;
    }
    memcpy(x->rec, r, fixed);
    x->args_got = r->args_cap < x->args_cap ? r->args_cap : x->args_cap;
    memcpy(x->args, args, x->args_got);
}

void proc_exec_args(as_engine *e, const struct as_exec_args *r) {
    exec_parts *x = as_hmap_get(&e->execs, r->h.tgid);
    if (!x || x->ts != r->h.ts || r->cap > r->h.len - sizeof *r || r->off != x->args_got || r->cap > x->args_cap - x->args_got) {
        e->st.lost_execs++; /* its beginning was lost, or a part between */
        if (x && x->ts == r->h.ts)
            parts_done(e, r->h.tgid, x);
        return;
    }
    memcpy(x->args + x->args_got, r->data, r->cap);
    x->args_got += r->cap;
    if (r->h.flags & AS_F_LAST_ARGS || x->args_got == x->args_cap)
        parts_done(e, r->h.tgid, x);
}

void proc_exit(as_engine *e, const struct as_exit *r) {
    as_meta m = meta_of(e, &r->h, r->uid);
    proc *p = proc_get(e, r->h.tgid);
    exec_parts *x = as_hmap_get(&e->execs, r->h.tgid);
    if (x)
        parts_done(e, r->h.tgid, x);
    if (p) {
        p->dead = 1;
        p->died = r->h.ts;
    }
    as_out *o = e->o.want_process ? emit_new(e, AS_O_EXIT, &m) : NULL;
    if (o)
        o->u.rec.rec = as_outs_copy(&e->outs, r, sizeof *r).p;
}

static void proc_free(proc *p) {
    free(p->exe);
    free(p);
}

void proc_sweep(as_engine *e) {
    /* a look at a few slots each time: the table is walked over and over, at no moment as a whole */
    static const size_t step = 64;
    for (size_t k = 0; k < step && e->procs.cap; k++) {
        size_t i = (e->last_tick / 1000 + k * 7919) & (e->procs.cap - 1);
        proc *p = e->procs.slots[i].val;
        uint64_t dark = 0;
        if (!p || !p->dead || e->now - p->died < FORGET_NS)
            continue;
        for (int r = 1; r < AS_TLS_REASONS; r++)
            dark += p->dark[r];
        if (dark && e->procs.n < 65536) /* still to be named in the summary */
            continue;
        as_hmap_del(&e->procs, p->tgid);
        proc_free(p);
    }
}

void proc_flush(as_engine *e) {
    for (size_t i = 0; i < e->execs.cap; i++) { /* parts_done deletes: begin again after each */
        exec_parts *x = e->execs.slots[i].val;
        if (x) {
            parts_done(e, (uint32_t)e->execs.slots[i].key, x);
            i = (size_t)-1;
        }
    }
}

void proc_free_all(as_engine *e) {
    while (e->execs.n)
        for (size_t i = 0; i < e->execs.cap; i++)
            if (e->execs.slots[i].val) {
                parts_free(e, (uint32_t)e->execs.slots[i].key);
                break;
            }
    for (size_t i = 0; i < e->procs.cap; i++)
        if (e->procs.slots[i].val)
            proc_free(e->procs.slots[i].val);
}

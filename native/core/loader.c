/* SPDX-License-Identifier: MIT
 *
 * libbpf does the work. What is decided here: which programs to load on this kernel, and what to say when one cannot be.
 */
#include "loader.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_LINKS 16

typedef struct secret_link {
    struct bpf_link **links; /* one multi link, or one for each offset */
    size_t n;
} secret_link;

struct as_loader {
    struct bpf_object *obj;
    struct bpf_link *links[MAX_LINKS];
    size_t n_links;
    secret_link *secrets;
    size_t n_secrets;
    int multi; /* the kernel has uprobe_multi links */
    int maps[AS_MAP_COUNT];
    int drops_fd, stats_fd, ring_fd;
    size_t ring_bytes;
    int sys_exit, io;
    volatile struct as_shared *shared;
    pthread_mutex_t lock; /* of secrets */
};

static const char *const map_names[AS_MAP_COUNT] = {"targets", "names", "excluded", "ctl", "stdio_excl"};

/* ---- libbpf's messages: shown when asked for; the first complaint of a failed step becomes part of our line ---- */
static int log_level;
static _Thread_local char complaint[256];

static int on_print(enum libbpf_print_level level, const char *fmt, va_list ap) {
    if (level == LIBBPF_WARN && !complaint[0]) {
        va_list again;
        va_copy(again, ap);
        vsnprintf(complaint, sizeof complaint, fmt, again);
        va_end(again);
        complaint[strcspn(complaint, "\n")] = 0;
    }
    if (log_level >= 2 || (log_level == 1 && level <= LIBBPF_INFO))
        return vfprintf(stderr, fmt, ap);
    return 0;
}

static void say(char *err, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err, AS_ERR_LEN, fmt, ap);
    va_end(ap);
}

static void say_refused(char *err, const char *what, int e) {
    const char *why = complaint[0] ? complaint : "no reason given";
    if (e < 0)
        e = -e;
    if (e == EPERM)
        say(err, "%s: not allowed: run as root, or with CAP_BPF and CAP_PERFMON (kernel lockdown also forbids it)", what);
    else
        say(err, "%s: %s (%s); run again with -v -v for the kernel's own words", what, strerror(e), why);
}

/* ---- what this kernel has ---- */
static int has_tracepoint(const struct btf *btf, const char *name) {
    char text[96];
    snprintf(text, sizeof text, "btf_trace_%s", name);
    return btf__find_by_name_kind(btf, text, BTF_KIND_TYPEDEF) > 0;
}

/* Where a variable lies in .rodata or .bss: the object's BTF says. */
static void *variable(struct bpf_object *obj, const char *section, const char *name, size_t size) {
    const struct btf *btf = bpf_object__btf(obj);
    int id = btf ? btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC) : -1;
    struct bpf_map *map;
    if (id < 0)
        return NULL;
    const struct btf_type *sec = btf__type_by_id(btf, id);
    const struct btf_var_secinfo *v = btf_var_secinfos(sec);
    for (int i = 0; i < btf_vlen(sec); i++, v++) {
        const struct btf_type *t = btf__type_by_id(btf, v->type);
        if (strcmp(btf__name_by_offset(btf, t->name_off), name) != 0 || v->size != size)
            continue;
        bpf_object__for_each_map(map, obj) {
            const char *m = bpf_map__name(map);
            size_t n = strlen(m), k = strlen(section), total = 0;
            if (n < k || strcmp(m + n - k, section) != 0)
                continue;
            unsigned char *at = bpf_map__initial_value(map, &total);
            return at && v->offset + size <= total ? at + v->offset : NULL;
        }
    }
    return NULL;
}

static int want(struct bpf_object *obj, const char *name, int yes) {
    struct bpf_program *p = bpf_object__find_program_by_name(obj, name);
    return p ? bpf_program__set_autoload(p, yes) : -ENOENT;
}

static int choose(as_loader *l, const as_loader_opts *o, char *err) {
    struct btf *btf = btf__load_vmlinux_btf();
    if (!btf) {
        say(err, "this kernel has no BTF (/sys/kernel/btf/vmlinux): use one built with CONFIG_DEBUG_INFO_BTF=y");
        return -1;
    }
    int sock = has_tracepoint(btf, "sock_send_length") && has_tracepoint(btf, "sock_recv_length");
    l->multi = !o->single_probes && btf__find_by_name_kind(btf, "bpf_uprobe_multi_link", BTF_KIND_STRUCT) > 0; /* 6.6 */
    btf__free(btf);
    if (o->io_hook == AS_HOOK_SOCK && !sock) {
        say(err, "this kernel has no sock_send_length tracepoint (6.3 or newer has): leave the I/O hook to be chosen");
        return -1;
    }
    l->sys_exit = o->io_hook == AS_HOOK_SYS_EXIT || !sock;
    int bad = 0;
    bad |= want(l->obj, "as_sock_send", o->want_io && !l->sys_exit);
    bad |= want(l->obj, "as_sock_recv", o->want_io && !l->sys_exit);
    bad |= want(l->obj, "as_sys_exit_io", o->want_io && l->sys_exit);
    bad |= want(l->obj, "as_set_state", o->want_io);
    bad |= want(l->obj, "as_destroy", o->want_io);
    bad |= want(l->obj, "as_secret_multi", o->want_io && l->multi);
    bad |= want(l->obj, "as_secret_single", o->want_io && !l->multi);
    bad |= want(l->obj, "as_sys_exit_stdio", o->want_stdio);
    bad |= want(l->obj, "as_fork", o->want_process);
    bad |= want(l->obj, "as_exec", o->want_process);
    bad |= want(l->obj, "as_exit", o->want_process);
    struct bpf_map *by_ptr = bpf_object__find_map_by_name(l->obj, "sk_by_ptr");
    struct bpf_map *flows = bpf_object__find_map_by_name(l->obj, "flows");
    struct bpf_map *ring = bpf_object__find_map_by_name(l->obj, "ring");
    if (bad || !by_ptr || !flows || !ring) {
        say(err, "the BPF object does not belong to this program: install the package again");
        return -1;
    }
    if (!l->sys_exit || !o->want_io) /* unused, but the programs name them */
        bpf_map__set_max_entries(by_ptr, 1);
    if (!o->cfg.mirror || !o->want_io)
        bpf_map__set_max_entries(flows, 1);
    bpf_map__set_max_entries(ring, o->ring_bytes);
    return 0;
}

static unsigned shift_of(size_t n) {
    unsigned s = 0;
    while (n > 1) {
        n >>= 1;
        s++;
    }
    return s;
}

as_loader *as_loader_new(const as_loader_opts *o, char *err) {
    if (o->ring_bytes < 65536 || o->ring_bytes & (o->ring_bytes - 1)) {
        say(err, "the ring's size must be a power of two of at least 65536 bytes");
        return NULL;
    }
    as_loader *l = calloc(1, sizeof *l);
    if (!l) {
        say(err, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&l->lock, NULL);
    l->ring_bytes = o->ring_bytes;
    l->io = o->want_io;
    log_level = o->log_level;
    libbpf_set_print(on_print);
    complaint[0] = 0;

    LIBBPF_OPTS(bpf_object_open_opts, opts, .object_name = "agentsight");
    l->obj = bpf_object__open_mem(o->obj, o->obj_len, &opts);
    if (!l->obj) {
        say_refused(err, "cannot read the BPF object", errno);
        goto fail;
    }
    if (choose(l, o, err))
        goto fail;
    struct as_config *cfg = variable(l->obj, ".rodata", "cfg", sizeof *cfg);
    if (!cfg) {
        say(err, "the BPF object does not belong to this program: install the package again");
        goto fail;
    }
    *cfg = o->cfg;
    cfg->sys_exit = l->sys_exit;
    cfg->ring_limit = o->ring_bytes - o->ring_bytes / 8;
    cfg->wake_shift = shift_of(o->ring_bytes) - 4;
    cfg->page_kb = sysconf(_SC_PAGESIZE) / 1024;

    int r = bpf_object__load(l->obj);
    if (r) {
        say_refused(err, "the kernel refused a program", r);
        goto fail;
    }
    l->shared = variable(l->obj, ".bss", "shared", sizeof *l->shared);
    for (int i = 0; i < AS_MAP_COUNT; i++)
        l->maps[i] = bpf_object__find_map_fd_by_name(l->obj, map_names[i]);
    l->drops_fd = bpf_object__find_map_fd_by_name(l->obj, "drops");
    l->stats_fd = bpf_object__find_map_fd_by_name(l->obj, "stats");
    l->ring_fd = bpf_object__find_map_fd_by_name(l->obj, "ring");
    if (!l->shared || l->drops_fd < 0 || l->stats_fd < 0 || l->ring_fd < 0) {
        say(err, "the BPF object lacks a map: install the package again");
        goto fail;
    }
    return l;
fail:
    as_loader_free(l);
    return NULL;
}

int as_loader_attach(as_loader *l, char *err) {
    struct bpf_program *p;
    complaint[0] = 0;
    bpf_object__for_each_program(p, l->obj) {
        char what[128];
        if (!bpf_program__autoload(p) || bpf_program__type(p) != BPF_PROG_TYPE_TRACING)
            continue;
        if (l->n_links == MAX_LINKS) {
            say(err, "too many programs");
            return -1;
        }
        struct bpf_link *link = bpf_program__attach(p);
        if (!link) {
            snprintf(what, sizeof what, "cannot attach %s", bpf_program__section_name(p));
            say_refused(err, what, errno);
            as_loader_detach(l);
            return -1;
        }
        l->links[l->n_links++] = link;
    }
    return 0;
}

static void secret_free(secret_link *s) {
    for (size_t i = 0; i < s->n; i++)
        bpf_link__destroy(s->links[i]);
    free(s->links);
    s->links = NULL;
    s->n = 0;
}

void as_loader_detach(as_loader *l) {
    pthread_mutex_lock(&l->lock);
    for (size_t i = 0; i < l->n_secrets; i++)
        secret_free(&l->secrets[i]);
    free(l->secrets);
    l->secrets = NULL;
    l->n_secrets = 0;
    pthread_mutex_unlock(&l->lock);
    while (l->n_links)
        bpf_link__destroy(l->links[--l->n_links]);
}

void as_loader_free(as_loader *l) {
    if (!l)
        return;
    as_loader_detach(l);
    bpf_object__close(l->obj);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

int as_loader_ring_fd(const as_loader *l) {
    return l->ring_fd;
}
size_t as_loader_ring_bytes(const as_loader *l) {
    return l->ring_bytes;
}
int as_loader_uses_sys_exit(const as_loader *l) {
    return l->sys_exit;
}

int as_loader_map_fd(const as_loader *l, as_map_id map) {
    return l->maps[map];
}

int as_loader_put(as_loader *l, as_map_id map, const void *key, const void *value) {
    if (bpf_map_update_elem(l->maps[map], key, value, BPF_ANY))
        return -errno;
    if (map == AS_MAP_NAMES)
        __atomic_store_n(&l->shared->names, 1, __ATOMIC_RELEASE);
    return 0;
}

int as_loader_del(as_loader *l, as_map_id map, const void *key) {
    return bpf_map_delete_elem(l->maps[map], key) ? -errno : 0;
}

void as_loader_ctl_changed(as_loader *l) {
    __atomic_add_fetch(&l->shared->ctl_gen, 1, __ATOMIC_RELEASE);
}

/* Sums entry `index` of a per-CPU array whose values are `words` 64-bit counters. */
static int sum(int fd, uint32_t index, uint64_t *out, size_t words) {
    int cpus = libbpf_num_possible_cpus();
    if (cpus <= 0)
        return -EINVAL;
    uint64_t *v = calloc((size_t)cpus * words, sizeof *v);
    if (!v)
        return -ENOMEM;
    int r = bpf_map_lookup_elem(fd, &index, v) ? -errno : 0;
    memset(out, 0, words * sizeof *out);
    for (size_t i = 0; !r && i < (size_t)cpus * words; i++)
        out[i % words] += v[i];
    free(v);
    return r;
}

int as_loader_drops(const as_loader *l, struct as_drop_counter out[AS_D_MAX]) {
    int r = 0;
    for (uint32_t i = 0; i < AS_D_MAX && !r; i++) {
        uint64_t v[2];
        r = sum(l->drops_fd, i, v, 2);
        out[i].records = v[0];
        out[i].bytes = v[1];
    }
    return r;
}

int as_loader_stats(const as_loader *l, uint64_t out[AS_ST_MAX]) {
    int r = 0;
    for (uint32_t i = 0; i < AS_ST_MAX && !r; i++)
        r = sum(l->stats_fd, i, &out[i], 1);
    return r;
}

/* ---- secrets ---- */
static struct bpf_link *attach_multi(as_loader *l, const char *path, const uint64_t *offsets, const uint64_t *cookies, size_t n) {
    struct bpf_program *p = bpf_object__find_program_by_name(l->obj, "as_secret_multi");
    LIBBPF_OPTS(bpf_uprobe_multi_opts, o, .offsets = (const unsigned long *)offsets, .cookies = (const __u64 *)cookies, .cnt = n);
    return bpf_program__attach_uprobe_multi(p, -1, path, NULL, &o);
}

int as_loader_attach_secret(as_loader *l, const char *path, const uint64_t *offsets, const uint64_t *cookies, size_t n,
                            char *err) {
    secret_link s = {0};
    int r = -ENOMEM, saved;
    char what[300];
    complaint[0] = 0;
    if (!n || !l->io) {
        say(err, "probes need the capture of sockets (want_io) and at least one offset");
        return -EINVAL;
    }
    pthread_mutex_lock(&l->lock);
    s.links = calloc(n, sizeof *s.links);
    secret_link *more = realloc(l->secrets, (l->n_secrets + 1) * sizeof *more);
    if (more)
        l->secrets = more;
    if (!s.links || !more) {
        say(err, "out of memory");
        goto out;
    }
    if (l->multi) {
        s.links[0] = attach_multi(l, path, offsets, cookies, n);
        saved = errno;
        s.n = s.links[0] ? 1 : 0;
    } else {
        struct bpf_program *p = bpf_object__find_program_by_name(l->obj, "as_secret_single");
        for (saved = 0; s.n < n; s.n++) {
            LIBBPF_OPTS(bpf_uprobe_opts, o, .bpf_cookie = cookies[s.n]);
            s.links[s.n] = bpf_program__attach_uprobe_opts(p, -1, path, offsets[s.n], &o);
            if (!s.links[s.n]) {
                saved = errno;
                break;
            }
        }
    }
    if (s.n != (l->multi ? 1 : n)) {
        snprintf(what, sizeof what, "cannot attach to %s", path);
        say_refused(err, what, saved);
        r = -saved;
        goto out;
    }
    r = l->n_secrets++;
    l->secrets[r] = s;
    pthread_mutex_unlock(&l->lock);
    return r;
out:
    secret_free(&s);
    pthread_mutex_unlock(&l->lock);
    return r < 0 ? r : -EINVAL;
}

int as_loader_detach_secret(as_loader *l, int handle) {
    int r = -ENOENT;
    pthread_mutex_lock(&l->lock);
    if (handle >= 0 && (size_t)handle < l->n_secrets && l->secrets[handle].n) {
        secret_free(&l->secrets[handle]);
        r = 0;
    }
    pthread_mutex_unlock(&l->lock);
    return r;
}

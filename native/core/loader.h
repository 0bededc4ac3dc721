/* SPDX-License-Identifier: MIT
 *
 * Loads the BPF object from memory, attaches its programs and hands out its maps. No Python. Every failure leaves one line of
 * text in `err`, saying what to do where that is known. Everything is held by file descriptors: when the process ends, however,
 * the kernel takes all programs and probes away.
 */
#ifndef AS_LOADER_H
#define AS_LOADER_H

#include <stddef.h>
#include <stdint.h>

#include "agentsight.h"

#define AS_ERR_LEN 512

typedef enum as_io_hook { AS_HOOK_AUTO = 0, AS_HOOK_SOCK = 1, AS_HOOK_SYS_EXIT = 2 } as_io_hook;

typedef struct as_loader_opts {
    const void *obj;
    size_t obj_len;
    int want_io, want_stdio, want_process;
    as_io_hook io_hook;
    size_t ring_bytes; /* a power of two, at least 64 KiB */
    int single_probes; /* no uprobe_multi links, even where the kernel has them */
    int log_level;     /* 0: libbpf's own messages are not shown */
    struct as_config cfg; /* sys_exit, ring_limit, wake_shift and page_kb are filled in */
} as_loader_opts;

typedef struct as_loader as_loader;

as_loader *as_loader_new(const as_loader_opts *o, char *err); /* opened and loaded */
int as_loader_attach(as_loader *l, char *err);
void as_loader_detach(as_loader *l); /* all programs and probes; the ring can still be read */
void as_loader_free(as_loader *l);

int as_loader_ring_fd(const as_loader *l);
size_t as_loader_ring_bytes(const as_loader *l);
int as_loader_uses_sys_exit(const as_loader *l);

typedef enum as_map_id { AS_MAP_TARGETS, AS_MAP_NAMES, AS_MAP_EXCLUDED, AS_MAP_CTL, AS_MAP_STDIO_EXCL, AS_MAP_COUNT } as_map_id;
int as_loader_put(as_loader *l, as_map_id map, const void *key, const void *value); /* 0, -errno */
int as_loader_del(as_loader *l, as_map_id map, const void *key);                    /* 0, -errno (-ENOENT) */
int as_loader_map_fd(const as_loader *l, as_map_id map); /* stays the loader's; -1: not loaded */
void as_loader_ctl_changed(as_loader *l); /* makes sockets look at `ctl` again */

int as_loader_drops(const as_loader *l, struct as_drop_counter out[AS_D_MAX]); /* sums over all CPUs; 0, -errno */
int as_loader_stats(const as_loader *l, uint64_t out[AS_ST_MAX]);

/* Probes at `n` file offsets of one file, each with its cookie. A handle >= 0 for as_loader_detach_secret, or -errno. */
int as_loader_attach_secret(as_loader *l, const char *path, const uint64_t *offsets, const uint64_t *cookies, size_t n,
                            char *err);
int as_loader_detach_secret(as_loader *l, int handle);

#endif

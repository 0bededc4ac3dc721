/* SPDX-License-Identifier: MIT
 *
 * The loop of the exec gate: events of a fanotify group in, FAN_ALLOW out. See execgate.c for what it promises.
 */
#ifndef AS_GATE_HOLD_H
#define AS_GATE_HOLD_H

#include <stdint.h>
#include <sys/types.h>

#include "execgate.h"

enum { AS_GATE_BEAT_MS = 250 };

struct as_gate {
    struct as_gate_shared *shared;
    int group;       /* fanotify: non-blocking, class "content" */
    int sock;        /* to the parent, execgate.h */
    int targets;     /* BPF map of tracked processes; -1: everybody is tracked */
    int parent_fd;   /* pidfd */
    int parent_stat; /* /proc/PARENT/stat, open */
    pid_t parent;
    uint64_t deadline_ns;
};

int as_gate_open_stat(pid_t pid); /* /proc/PID/stat, or -1 */
int as_gate_tell(int sock, const struct as_gate_msg *m, int fd); /* fd to pass, or -1. 0; -1: the socket is full or closed */
void as_gate_lock_memory(struct as_gate_shared *shared); /* and take the highest priority, each as far as we may */
void as_gate_run(const struct as_gate *g, pid_t watchdog); /* until there is a reason to end, which it leaves in g->shared */

#endif

/* SPDX-License-Identifier: MIT
 *
 * What the exec gate and the process that started it tell each other: fixed messages over a SOCK_SEQPACKET pair, and one page
 * of shared memory, both in the machine's byte order. agentsight/capture/gate.py is the other side and repeats these layouts.
 */
#ifndef AS_EXECGATE_H
#define AS_EXECGATE_H

#include <stdint.h>

enum as_gate_kind {
    AS_GATE_READY = 1,  /* gate: running (error 0), or the errno of what it could not do */
    AS_GATE_MARK = 2,   /* to the gate, with a descriptor: watch the execs of everything on that file's file system */
    AS_GATE_MARKED = 3, /* gate: the answer, with its id; error is an errno */
    AS_GATE_ASK = 4,    /* gate, with a descriptor: process pid waits in execve of this file, which nobody has looked at yet */
    AS_GATE_DONE = 5, /* to the gate: the file asked about by id was looked at; it is not asked about again until it changes */
    AS_GATE_QUIT = 6, /* to the gate: unmark, let everybody run, end */
};

struct as_gate_msg {
    uint32_t kind; /* enum as_gate_kind */
    uint32_t id;
    uint32_t pid;
    int32_t error;
};

enum as_gate_end { /* why the gate ended; 0 while it runs, and where it was killed together with its watchdog */
                   AS_GATE_END_ASKED = 1,
                   AS_GATE_END_PARENT = 2, /* the process that started it is gone */
                   AS_GATE_END_SILENT = 3, /* no answer for five deadlines */
                   AS_GATE_END_STOPPED = 4, /* somebody stopped the gate or its watchdog (SIGSTOP): it was killed */
                   AS_GATE_END_HUNG = 5, /* it did not move for a second: it was killed */
                   AS_GATE_END_KILLED = 6, /* by somebody else */
                   AS_GATE_END_ERROR = 7, /* reading the events failed */
};

/* The shared page. Written by the gate, but `end` (gate and watchdog); to be read at any time. Counts since the start; ns. */
struct as_gate_shared {
    uint64_t beats; /* grows while the gate's loop goes round */
    uint64_t end; /* enum as_gate_end */
    uint64_t gate_pid, watchdog_pid;
    uint64_t locked; /* 1: its memory is locked */
    uint64_t events; /* execs (and opens of interpreters) that came to the gate */
    uint64_t others; /* of processes that are not tracked: let through */
    uint64_t scripts; /* no ELF file: let through, their interpreter comes next */
    uint64_t asked;
    uint64_t joined; /* waited for an answer that another exec had asked for */
    uint64_t answered; /* execs let through by an answer */
    uint64_t late; /* let through by the deadline, or while a late answer was still missing */
    uint64_t busy; /* let through since too many waited, or the question could not be sent */
    uint64_t paused; /* let through since the process that answers was stopped */
    uint64_t known; /* files that are ignored from now on */
    uint64_t held_ns; /* sum over answered and late */
    uint64_t held_max_ns;
};

#endif

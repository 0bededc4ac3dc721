/* SPDX-License-Identifier: MIT
 *
 * The exec gate: holds a tracked process inside execve until its new binary has been looked at. fanotify's FAN_OPEN_EXEC_PERM
 * (Linux 5.0) does the holding: no signal is sent, and nothing that the process can see changes but the time.
 *
 *     execgate SOCKET SHARED TARGETS DEADLINE_MS PARENT     descriptors, descriptor or -1, milliseconds, pid
 *
 * A mark concerns every exec on a file system, so whoever listens can freeze the host. Therefore this is a program of its own
 * that does nothing else, and
 *   - it only ever answers FAN_ALLOW, at the latest after the deadline; after a missed one nobody is held until the answer
 *     is there, and without any answer for SILENT deadlines it ends;
 *   - who is not in the map `targets` (TARGETS -1: everybody is tracked) is let through here, without asking;
 *   - files that were looked at are ignored in the kernel until they change;
 *   - its memory is locked, it has sessions of its own (no terminal stops it), it never blocks on what it watches: the file's
 *     first bytes are read only when they are in memory;
 *   - when it ends, by whatever, the kernel closes the group and lets everybody run. It ends when its parent does;
 *   - it is two processes: this one is the watchdog and the parent of the gate. It kills the gate when somebody stops it (known
 *     at once) or when it hangs (known within about a second); it holds no descriptor of the group itself. The gate ends
 *     when the watchdog dies or is stopped. Where both are stopped in the same moment the parent kills them; freezing
 *     all three (their cgroup) is beyond it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hold.h"

enum { STILL = 5 }; /* looks of the watchdog without a beat: hung */

static void watch(struct as_gate_shared *shared, pid_t child) {
    uint64_t last = 0;
    int still = 0;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    for (;;) {
        struct timespec t = {0, AS_GATE_BEAT_MS * 1000000L};
        siginfo_t si = {0};
        sigtimedwait(&set, NULL, &t);
        uint64_t end = 0, beats = __atomic_load_n(&shared->beats, __ATOMIC_RELAXED);
        if (waitid(P_PID, (id_t)child, &si, WEXITED | WSTOPPED | WNOHANG) || (si.si_pid && si.si_code != CLD_STOPPED))
            break;
        if (si.si_pid)
            end = AS_GATE_END_STOPPED;
        still = beats == last ? still + 1 : 0;
        last = beats;
        if (!end && still >= STILL)
            end = AS_GATE_END_HUNG;
        if (end) {
            kill(child, SIGKILL);
            __atomic_store_n(&shared->end, end, __ATOMIC_RELAXED);
            break; /* not waited for: a debugger may keep it */
        }
    }
    uint64_t none = 0;
    __atomic_compare_exchange_n(&shared->end, &none, AS_GATE_END_KILLED, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static void guard(const struct as_gate *g, pid_t watchdog) {
    prctl(PR_SET_NAME, "as-execgate");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != watchdog) /* it died before that */
        return;
    setsid(); /* a signal to the group of the one does not reach the other */
    as_gate_lock_memory(g->shared);
    as_gate_run(g, watchdog);
}

static int fail(int sock, int error) {
    struct as_gate_msg m = {.kind = AS_GATE_READY, .error = error};
    as_gate_tell(sock, &m, -1);
    return 1;
}

/* Nothing is taken over from the parent that could stop us. 0, or an errno. */
static int settle(void) {
    struct rlimit files = {4096, 4096};
    setsid();
    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    if (setrlimit(RLIMIT_NOFILE, &files)) { /* as far as the hard limit goes */
        getrlimit(RLIMIT_NOFILE, &files);
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    return chdir("/") ? errno : 0; /* no file system is kept busy by us */
}

int main(int argc, char **argv) {
    struct as_gate g;
    sigset_t mask;
    if (argc != 6)
        return 2;
    g.sock = atoi(argv[1]);
    g.shared = mmap(NULL, sizeof(*g.shared), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[2]), 0);
    g.targets = atoi(argv[3]);
    g.deadline_ns = (uint64_t)atoll(argv[4]) * 1000000u;
    g.parent = (pid_t)atoi(argv[5]);
    if (g.shared == MAP_FAILED)
        return fail(g.sock, errno);
    g.parent_fd = (int)syscall(SYS_pidfd_open, g.parent, 0);
    if (g.parent_fd < 0)
        return fail(g.sock, errno);
    g.parent_stat = as_gate_open_stat(g.parent);
    if (g.parent_stat < 0)
        return fail(g.sock, errno);
    if (getppid() != g.parent)
        return fail(g.sock, ESRCH);
    int error = settle();
    if (error)
        return fail(g.sock, error);
    g.group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS,
                            O_RDONLY | O_LARGEFILE | O_CLOEXEC | O_NOATIME);
    if (g.group < 0)
        return fail(g.sock, errno);
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_SETMASK, &mask, NULL); /* for sigtimedwait */
    pid_t self = getpid(), child = fork();
    if (child < 0)
        return fail(g.sock, errno);
    if (child == 0) {
        sigemptyset(&mask);
        sigprocmask(SIG_SETMASK, &mask, NULL);
        g.shared->watchdog_pid = (uint64_t)self;
        g.shared->gate_pid = (uint64_t)getpid();
        guard(&g, self);
        return 0;
    }
    close(g.group);
    close(g.sock);
    prctl(PR_SET_NAME, "as-execgate-dog");
    as_gate_lock_memory(g.shared);
    watch(g.shared, child);
    return 0;
}

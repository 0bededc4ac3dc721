/* SPDX-License-Identifier: MIT
 *
 * Who waits, for what, how long. One gate in a process: its state is static, and nothing is allocated.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "agentsight.h"
#include "hold.h"

#ifndef FAN_MARK_EVICTABLE /* Linux 5.19: the mark does not keep the inode in memory */
#define FAN_MARK_EVICTABLE 0x200
#endif

enum {
    MAX_WAITING = 256,
    MAX_KNOWN = 8192, /* ignored files, where their marks keep them in memory */
    SILENT = 5, /* deadlines */
};

struct waiting {
    int fd;       /* of the event; -1: free */
    uint32_t id;  /* of the question; several execs may wait for one answer */
    int let_go;   /* answered by the deadline; the slot stays until the real answer comes, so that its file becomes known */
    int asked;    /* this one carried the question */
    uint64_t dev, ino, size;
    struct timespec ctime;
    uint64_t since;
};

static struct as_gate g;
static struct waiting waits[MAX_WAITING];
static uint32_t next_id;
static uint64_t missed_since; /* an answer is overdue: begin of that wait; 0: none is */
static unsigned kept_inodes;
static int no_evictable, watchdog_stat = -1;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int as_gate_open_stat(pid_t of) {
    char path[32] = "/proc/", digits[12];
    size_t at = 6, n = 0;
    for (unsigned v = (unsigned)of; v || !n; v /= 10)
        digits[n++] = (char)('0' + v % 10);
    while (n)
        path[at++] = digits[--n];
    memcpy(path + at, "/stat", 6);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* What stands behind the name in /proc/PID/stat: " S 1 ...". The name may hold any character. */
static const char *behind_name(int stat_fd, char *text, size_t room) {
    ssize_t n = pread(stat_fd, text, room - 1, 0);
    text[n > 0 ? n : 0] = 0;
    const char *end = strrchr(text, ')');
    return end && end[1] == ' ' && end[2] && end[3] ? end + 1 : NULL; /* NULL: gone */
}

static int is_stopped(int stat_fd) {
    char text[512];
    const char *rest = behind_name(stat_fd, text, sizeof(text));
    return rest && (rest[1] == 'T' || rest[1] == 't');
}

static pid_t parent_of(pid_t pid) {
    char text[512];
    int fd = as_gate_open_stat(pid);
    if (fd < 0)
        return 0;
    const char *rest = behind_name(fd, text, sizeof(text));
    close(fd);
    return rest ? (pid_t)atoi(rest + 2) : 0;
}

static int is_tracked(pid_t pid) {
    if (pid <= 0 || pid == g.parent)
        return 0;
    if (g.targets < 0) /* all but the programs that our parent runs for itself: it may hold its own lock while it starts them */
        return parent_of(pid) != g.parent;
    uint32_t key = (uint32_t)pid;
    struct as_target value = {0, 0};
    union bpf_attr a;
    memset(&a, 0, sizeof(a));
    a.map_fd = (uint32_t)g.targets;
    a.key = (uint64_t)(uintptr_t)&key;
    a.value = (uint64_t)(uintptr_t)&value;
    if (syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &a, sizeof(a)))
        return 0;
    return (value.flags & AS_T_IO) != 0;
}

/* 1 an ELF file, 0 none, -1 not known without waiting for a disk */
static int is_elf(int fd) {
    unsigned char head[4];
    struct iovec v = {head, sizeof(head)};
    ssize_t n = preadv2(fd, &v, 1, 0, RWF_NOWAIT);
    if (n < 0)
        return -1;
    return n == 4 && memcmp(head, "\177ELF", 4) == 0;
}

static void allow(int fd) {
    struct fanotify_response r = {.fd = fd, .response = FAN_ALLOW};
    ssize_t n;
    do
        n = write(g.group, &r, sizeof(r));
    while (n < 0 && errno == EINTR);
}

static void ignore(int fd) {
    unsigned flags = FAN_MARK_ADD | FAN_MARK_IGNORED_MASK;
    if (!no_evictable) {
        if (fanotify_mark(g.group, flags | FAN_MARK_EVICTABLE, FAN_OPEN_EXEC_PERM, fd, NULL) == 0) {
            g.shared->known++;
            return;
        }
        no_evictable = errno == EINVAL;
    }
    if (no_evictable) {
        if (kept_inodes >= MAX_KNOWN) { /* what is still in use is asked about once more */
            fanotify_mark(g.group, FAN_MARK_FLUSH, 0, AT_FDCWD, NULL);
            kept_inodes = 0;
        }
        if (fanotify_mark(g.group, flags, FAN_OPEN_EXEC_PERM, fd, NULL) == 0) {
            g.shared->known++;
            kept_inodes++;
        }
    }
}

int as_gate_tell(int sock, const struct as_gate_msg *m, int fd) {
    struct iovec v = {(void *)m, sizeof(*m)};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } c;
    struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1};
    if (fd >= 0) {
        memset(&c, 0, sizeof(c));
        h.msg_control = c.space;
        h.msg_controllen = sizeof(c.space);
        struct cmsghdr *head = CMSG_FIRSTHDR(&h);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(*m) ? 0 : -1;
}

static void held(const struct waiting *w) {
    uint64_t t = now_ns() - w->since;
    g.shared->held_ns += t;
    if (t > g.shared->held_max_ns)
        g.shared->held_max_ns = t;
}

static void let_go(struct waiting *w) {
    allow(w->fd);
    w->let_go = 1;
    if (!w->asked) {
        close(w->fd);
        w->fd = -1;
    }
}

/* Takes the event's descriptor: it is closed, or kept in a slot. */
static void on_exec(int fd, pid_t pid) {
    struct waiting *slot = NULL, *same = NULL;
    struct stat st;
    uint64_t *why = NULL;
    g.shared->events++;
    if (!is_tracked(pid)) {
        why = &g.shared->others;
    } else if (is_elf(fd) == 0) {
        ignore(fd);
        why = &g.shared->scripts;
    } else if (fstat(fd, &st)) {
        why = &g.shared->busy;
    } else if (is_stopped(g.parent_stat)) {
        why = &g.shared->paused;
    } else {
        for (struct waiting *w = waits; w < waits + MAX_WAITING; w++) {
            if (w->fd < 0)
                slot = slot ? slot : w;
            else if (w->dev == st.st_dev && w->ino == st.st_ino && w->asked)
                same = w;
        }
        if (same && same->let_go)
            why = &g.shared->late;
        else if (!slot)
            why = &g.shared->busy;
    }
    if (!why) {
        *slot = (struct waiting){.fd = fd,
                                 .id = same ? same->id : ++next_id,
                                 .asked = !same,
                                 .dev = st.st_dev,
                                 .ino = st.st_ino,
                                 .size = (uint64_t)st.st_size,
                                 .ctime = st.st_ctim,
                                 .since = now_ns()};
        if (same) {
            slot->since = same->since; /* and so its deadline */
            g.shared->joined++;
            return;
        }
        struct as_gate_msg m = {.kind = AS_GATE_ASK, .id = slot->id, .pid = (uint32_t)pid};
        if (as_gate_tell(g.sock, &m, fd) == 0) {
            g.shared->asked++;
            if (missed_since) {
                g.shared->late++;
                let_go(slot);
            }
            return;
        }
        slot->fd = -1;
        why = &g.shared->busy;
    }
    ++*why;
    allow(fd);
    close(fd);
}

static void on_done(uint32_t id) {
    missed_since = 0;
    for (struct waiting *w = waits; w < waits + MAX_WAITING; w++) {
        struct stat st;
        if (w->fd < 0 || w->id != id)
            continue;
        if (w->asked && fstat(w->fd, &st) == 0 && (uint64_t)st.st_size == w->size && st.st_ctim.tv_sec == w->ctime.tv_sec &&
            st.st_ctim.tv_nsec == w->ctime.tv_nsec)
            ignore(w->fd);
        if (!w->let_go) {
            allow(w->fd);
            g.shared->answered++;
            held(w);
        }
        close(w->fd);
        w->fd = -1;
    }
}

static void on_mark(uint32_t id, int fd) {
    int error = EBADF;
    if (fd >= 0) {
        error = fanotify_mark(g.group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN_EXEC_PERM, fd, NULL) ? errno : 0;
        close(fd);
    }
    struct as_gate_msg m = {.kind = AS_GATE_MARKED, .id = id, .error = error};
    as_gate_tell(g.sock, &m, -1);
}

/* 0, or why to end */
static int on_message(void) {
    struct as_gate_msg m;
    struct iovec v = {&m, sizeof(m)};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } c;
    struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c.space, .msg_controllen = sizeof(c.space)};
    ssize_t n = recvmsg(g.sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : AS_GATE_END_PARENT;
    if (n == 0)
        return AS_GATE_END_PARENT;
    int fd = -1;
    struct cmsghdr *head = CMSG_FIRSTHDR(&h);
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&fd, CMSG_DATA(head), sizeof(int));
    if (n == (ssize_t)sizeof(m) && m.kind == AS_GATE_MARK) {
        on_mark(m.id, fd);
        return 0;
    }
    if (fd >= 0)
        close(fd);
    if (n == (ssize_t)sizeof(m) && m.kind == AS_GATE_DONE)
        on_done(m.id);
    return n == (ssize_t)sizeof(m) && m.kind == AS_GATE_QUIT ? AS_GATE_END_ASKED : 0;
}

/* Lets go whoever has waited long enough. 0, or why to end. */
static int look_at_deadlines(uint64_t now) {
    int any = 0;
    for (struct waiting *w = waits; w < waits + MAX_WAITING; w++)
        any |= w->fd >= 0 && !w->let_go;
    int paused = any && is_stopped(g.parent_stat); /* no answer will come, and that is nobody's fault */
    for (struct waiting *w = waits; any && w < waits + MAX_WAITING; w++) {
        if (w->fd < 0 || w->let_go || (!paused && now - w->since < g.deadline_ns))
            continue;
        if (paused) {
            g.shared->paused++;
        } else {
            g.shared->late++;
            missed_since = missed_since ? missed_since : w->since;
        }
        held(w);
        let_go(w);
    }
    if (!missed_since || now - missed_since < SILENT * g.deadline_ns)
        return 0;
    if (!is_stopped(g.parent_stat))
        return AS_GATE_END_SILENT;
    missed_since = now;
    return 0;
}

static int wait_ms(uint64_t now) {
    uint64_t best = (uint64_t)AS_GATE_BEAT_MS * 1000000u;
    for (struct waiting *w = waits; w < waits + MAX_WAITING; w++) {
        if (w->fd < 0 || w->let_go)
            continue;
        uint64_t end = w->since + g.deadline_ns, left = end > now ? end - now : 0;
        best = left < best ? left : best;
    }
    return (int)((best + 999999u) / 1000000u);
}

/* 0, or why to end */
static int on_events(void) {
    struct fanotify_event_metadata buf[16]; /* few, so that their descriptors never run out: the kernel would deny the exec */
    ssize_t n = read(g.group, buf, sizeof(buf));
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : AS_GATE_END_ERROR;
    for (struct fanotify_event_metadata *e = buf; FAN_EVENT_OK(e, n); e = FAN_EVENT_NEXT(e, n)) {
        if (e->vers != FANOTIFY_METADATA_VERSION)
            return AS_GATE_END_ERROR;
        if (e->fd >= 0)
            on_exec(e->fd, e->pid);
    }
    return 0;
}

void as_gate_lock_memory(struct as_gate_shared *shared) {
    shared->locked = mlockall(MCL_CURRENT | MCL_FUTURE) == 0;
    setpriority(PRIO_PROCESS, 0, -20); /* without the right to it: as it is */
}

void as_gate_run(const struct as_gate *options, pid_t watchdog) {
    g = *options;
    watchdog_stat = as_gate_open_stat(watchdog);
    for (struct waiting *w = waits; w < waits + MAX_WAITING; w++)
        w->fd = -1;
    struct as_gate_msg m = {.kind = AS_GATE_READY, .pid = (uint32_t)getpid()};
    as_gate_tell(g.sock, &m, -1);
    int end = 0;
    uint64_t looked = 0;
    while (!end) {
        struct pollfd p[3] = {
            {.fd = g.group, .events = POLLIN}, {.fd = g.sock, .events = POLLIN}, {.fd = g.parent_fd, .events = POLLIN}};
        int ready = poll(p, 3, wait_ms(now_ns()));
        __atomic_add_fetch(&g.shared->beats, 1, __ATOMIC_RELAXED);
        if (ready < 0 && errno != EINTR)
            end = AS_GATE_END_ERROR;
        if (ready > 0 && p[0].revents)
            end = on_events();
        if (!end && ready > 0 && p[1].revents)
            end = on_message();
        if (!end && ready > 0 && p[2].revents)
            end = AS_GATE_END_PARENT;
        if (!end)
            end = look_at_deadlines(now_ns());
        if (!end && now_ns() - looked >= AS_GATE_BEAT_MS * 1000000ull) {
            looked = now_ns();
            if (is_stopped(watchdog_stat))
                end = AS_GATE_END_STOPPED;
        }
    }
    __atomic_store_n(&g.shared->end, (uint64_t)end, __ATOMIC_RELAXED);
    fanotify_mark(g.group, FAN_MARK_FLUSH | FAN_MARK_FILESYSTEM, 0, AT_FDCWD, NULL);
    close(g.group); /* the last descriptor: whoever still waits runs */
    if (end == AS_GATE_END_STOPPED)
        kill(watchdog, SIGKILL); /* it would stand there for ever */
}

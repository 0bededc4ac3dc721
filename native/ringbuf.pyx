# cython: language_level=3, boundscheck=False, wraparound=False
"""The kernel side for Python: load, attach, drain; and the capture file. See ringbuf.pyi; the work is core/*.c."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport ENOENT
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strlen

import json
import os
import time

from agentsight.errors import CaptureError, CaptureFileError

DROPS = ("data", "stdio", "secret", "process", "connection", "arena")
STATS = ("hits", "copied_bytes", "peeks", "not_tcp", "faults", "compat", "mirrored_calls", "no_call", "races", "no_state",
         "stdio_calls")
HOOKS = {"auto": AS_HOOK_AUTO, "sock": AS_HOOK_SOCK, "sys_exit": AS_HOOK_SYS_EXIT}
cdef unsigned int ALL_FLAGS = AS_T_IO | AS_T_STDIO | AS_T_PROCESS


cdef class Batch:
    cdef as_batch *b     # of a live capture, or
    cdef uint8_t *own    # read from a file
    cdef uint8_t *data
    cdef Py_ssize_t n
    cdef readonly unsigned int records

    def __cinit__(self):
        self.b = NULL
        self.own = NULL

    def __dealloc__(self):
        if self.b is not NULL:
            as_batch_release(self.b)
        free(self.own)

    def __len__(self):
        return self.n

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.n, 1, flags)

    def __repr__(self):
        return f"<Batch of {self.records} records, {self.n} bytes>"


cdef Batch _live(as_batch *b):
    cdef Batch r = Batch.__new__(Batch)
    r.b = b
    r.data = b.data
    r.n = <Py_ssize_t>b.len
    r.records = b.records
    return r


cdef int _drops(void *ctx, as_drop_counter *out) noexcept nogil:
    return as_loader_drops(<as_loader *>ctx, out)


cdef class Capture:
    cdef as_loader *loader
    cdef as_drain *d
    cdef bint attached, started, stopped
    cdef bint names_on
    cdef object final  # counters at the stop

    def __cinit__(self):
        self.loader = NULL
        self.d = NULL

    def __init__(self, *, bytes obj, bint want_io=True, bint want_stdio=False, bint want_process=True, track_all=False,
                 bint mirror=True, str io_hook="auto", bint stdio_all_fds=False, unsigned int stdio_max=8192, uid=None,
                 cgroup=None, unsigned int cgroup_level=0, size_t ring_bytes=16 << 20, size_t arena_bytes=256 << 20,
                 exclude_tgids=(), stdio_exclude=(), bint single_probes=False, int log_level=0):
        cdef as_loader_opts o
        cdef as_drain_opts q
        cdef char[512] err  # AS_ERR_LEN
        cdef int e = 0
        if self.loader is not NULL:
            raise RuntimeError("a Capture is made once")
        if io_hook not in HOOKS:
            raise ValueError(f"io_hook must be one of {', '.join(HOOKS)}")
        memset(&o, 0, sizeof(o))
        o.obj = <const char *>obj
        o.obj_len = len(obj)
        o.want_io = want_io
        o.want_stdio = want_stdio
        o.want_process = want_process
        o.io_hook = <as_io_hook><int>HOOKS[io_hook]
        o.ring_bytes = ring_bytes
        o.single_probes = single_probes
        o.log_level = log_level
        o.cfg.track_all = ALL_FLAGS if track_all is True else int(track_all) & ALL_FLAGS
        o.cfg.mirror = mirror
        o.cfg.stdio_all_fds = stdio_all_fds
        o.cfg.stdio_max = stdio_max
        if uid is not None:
            o.cfg.uid_on = 1
            o.cfg.uid = uid
        if cgroup is not None:
            o.cfg.cgroup_on = 1
            o.cfg.cgroup = cgroup
            o.cfg.cgroup_level = cgroup_level
        err[0] = 0
        with nogil:
            self.loader = as_loader_new(&o, err)
        if self.loader is NULL:
            raise CaptureError(_text(err))
        memset(&q, 0, sizeof(q))
        q.ring_fd = as_loader_ring_fd(self.loader)
        q.ring_bytes = ring_bytes
        q.arena_bytes = arena_bytes
        q.drops = _drops
        q.drops_ctx = self.loader
        self.d = as_drain_new(&q, &e)
        if self.d is NULL:
            raise CaptureError(f"cannot map the ring buffer: {os.strerror(e)}")
        self.exclude(os.getpid())
        for tgid in exclude_tgids:
            self.exclude(tgid)
        for dev, ino in stdio_exclude:
            self.exclude_stdio(dev, ino)

    def __dealloc__(self):
        if self.d is not NULL:
            as_drain_stop(self.d)
            as_drain_free(self.d)
        as_loader_free(self.loader)

    # ---- targets ----
    cdef int _put(self, as_map_id map, const void *key, const void *value, str what) except -1:
        self._alive()
        cdef int r = as_loader_put(self.loader, map, key, value)
        if r:
            raise CaptureError(f"cannot add {what}: {os.strerror(-r)}")
        return 0

    cdef int _del(self, as_map_id map, const void *key, str what) except -1:
        self._alive()
        cdef int r = as_loader_del(self.loader, map, key)
        if r and r != -ENOENT:
            raise CaptureError(f"cannot remove {what}: {os.strerror(-r)}")
        return 0

    cdef int _alive(self) except -1:
        if self.loader is NULL or self.stopped:
            raise CaptureError("the capture has been stopped")
        return 0

    def add_target(self, unsigned int tgid, unsigned int flags, unsigned int root=0):
        cdef uint32_t key = tgid
        cdef as_target t
        t.flags = flags
        t.root = root or tgid
        self._put(AS_MAP_TARGETS, &key, &t, f"target {tgid}")

    def remove_target(self, unsigned int tgid):
        cdef uint32_t key = tgid
        self._del(AS_MAP_TARGETS, &key, f"target {tgid}")

    def add_name(self, str name, unsigned int flags):
        cdef char[64] key  # AS_NAME_MAX
        cdef as_target t
        cdef bytes raw = os.fsencode(name)[: AS_NAME_MAX - 1]
        memset(key, 0, sizeof(key))
        memcpy(key, <const char *>raw, len(raw))
        t.flags = flags
        t.root = 0
        self._put(AS_MAP_NAMES, key, &t, f"the name {name}")

    def exclude(self, unsigned int tgid):
        cdef uint32_t key = tgid
        cdef uint8_t one = 1
        self._put(AS_MAP_EXCLUDED, &key, &one, f"the exclusion of {tgid}")

    def exclude_stdio(self, unsigned long long dev, unsigned long long ino):
        cdef as_excl key
        cdef uint8_t one = 1
        key.ino = ino
        key.dev = <uint32_t>(os.major(dev) << 20 | os.minor(dev))
        key.pad = 0
        self._put(AS_MAP_STDIO_EXCL, &key, &one, "the exclusion of a channel")

    def skip_channel(self, unsigned long long cookie):
        cdef uint64_t key = cookie
        cdef uint8_t skip = AS_CTL_SKIP
        self._put(AS_MAP_CTL, &key, &skip, "a channel to skip")
        as_loader_ctl_changed(self.loader)

    def resume_channel(self, unsigned long long cookie):
        cdef uint64_t key = cookie
        self._del(AS_MAP_CTL, &key, "a channel to skip")
        as_loader_ctl_changed(self.loader)

    # ---- probes ----
    def attach_secret(self, str path, offsets):
        self._alive()
        cdef list pairs = list(offsets)
        cdef size_t n = len(pairs), i
        cdef bytes raw = os.fsencode(path)
        cdef const char *p = raw
        cdef char[512] err
        cdef int r
        cdef uint64_t *a = <uint64_t *>malloc((2 * n + 1) * sizeof(uint64_t))
        if a is NULL:
            raise MemoryError
        err[0] = 0
        try:
            for i in range(n):
                a[i] = pairs[i][0]
                a[n + i] = pairs[i][1]
            with nogil:
                r = as_loader_attach_secret(self.loader, p, a, a + n, n, err)
        finally:
            free(a)
        if r < 0:
            raise CaptureError(_text(err) or os.strerror(-r))
        return r

    def detach(self, int handle):
        self._alive()
        cdef int r
        with nogil:
            r = as_loader_detach_secret(self.loader, handle)
        if r:
            raise CaptureError(f"there is no probe {handle}")

    # ---- records of our own ----
    def note(self, bytes payload):
        cdef as_note r
        memset(&r, 0, sizeof(r))
        r.h.kind = AS_K_NOTE
        r.h.len = sizeof(r)
        r.n = <uint32_t>len(payload)
        self._insert(&r.h, payload)

    def insert_secrets(self, records):
        cdef const unsigned char[::1] view = records
        cdef size_t n = view.shape[0], at = 0
        cdef as_hdr h
        cdef int r = 0
        if self.d is NULL:
            raise CaptureError("the capture has been stopped")
        if n % sizeof(as_secret):
            raise ValueError("these are no whole records")
        while at < n and r == 0:
            memcpy(&h, &view[at], sizeof(h))
            if h.kind != AS_K_SECRET or h.len != sizeof(as_secret):
                raise ValueError("a record is no secret")
            h.len = sizeof(h)
            with nogil:  # the secret itself is copied nowhere but into the stream
                r = as_drain_put(self.d, &h, &view[at + sizeof(h)], sizeof(as_secret) - sizeof(h))
            at += sizeof(as_secret)
        if r:
            raise CaptureError(f"cannot add a record: {os.strerror(-r)}")
        return n // sizeof(as_secret)

    cdef int _insert(self, as_hdr *h, bytes rest) except -1:
        if self.d is NULL:
            raise CaptureError("the capture has been stopped")
        cdef const char *p = rest
        cdef size_t n = len(rest)
        cdef int r
        with nogil:
            r = as_drain_put(self.d, h, p, n)
        if r:
            raise CaptureError(f"cannot add a record: {os.strerror(-r)}")
        return 0

    def snapshot_process(self, unsigned int tgid, *, unsigned int ppid, unsigned int uid, unsigned int gid,
                         unsigned long long start_ns, str comm, str exe, str cwd, bytes args, unsigned int ns_pid=0,
                         unsigned long long cgroup=0, unsigned int netns=0):
        cdef as_exec e
        cdef as_exec_args a
        cdef bytes name = os.fsencode(exe)[: AS_PATH_MAX - 1]
        cdef bytes where = os.fsencode(cwd)[: AS_PATH_MAX - 1]
        cdef bytes c = os.fsencode(comm)[: AS_COMM_LEN - 1]
        cdef bytes told = args[:AS_ARGS_MAX]
        cdef Py_ssize_t off
        memset(&e, 0, sizeof(e))
        e.h.kind = AS_K_EXEC
        e.h.len = sizeof(e)
        e.h.flags = AS_F_SNAPSHOT
        e.h.ts = as_boot_ns()
        e.h.tgid = e.h.tid = tgid
        e.ppid = ppid
        e.uid = uid
        e.gid = gid
        e.args_len = <uint32_t>len(args)
        e.start = start_ns
        e.cgroup = cgroup
        e.netns = netns
        e.name_len = <uint16_t>len(name)
        e.cwd_len = <uint16_t>len(where)
        e.ns_pid = ns_pid or tgid
        memcpy(e.comm, <const char *>c, len(c))
        cdef bytes part = told[:AS_ARGS_CHUNK]
        e.args_cap = <uint32_t>len(part)
        if len(args) > AS_ARGS_MAX:
            e.h.flags |= AS_F_TRUNCATED
        if len(told) <= AS_ARGS_CHUNK:
            e.h.flags |= AS_F_LAST_ARGS
        cdef uint64_t ts = e.h.ts
        self._insert(&e.h, name + where + part)
        off = AS_ARGS_CHUNK
        while off < len(told):
            part = told[off : off + AS_ARGS_CHUNK]
            memset(&a, 0, sizeof(a))
            a.h.kind = AS_K_EXEC_ARGS
            a.h.len = sizeof(a)
            a.h.ts = ts
            a.h.tgid = a.h.tid = tgid
            a.off = <uint32_t>off
            a.cap = <uint32_t>len(part)
            off += AS_ARGS_CHUNK
            if off >= len(told):
                a.h.flags = AS_F_LAST_ARGS
            self._insert(&a.h, part)

    # ---- running ----
    def start(self, bint priority=True):
        cdef char[512] err
        cdef int r
        self._alive()
        if self.started:
            raise CaptureError("the capture has been started before")
        err[0] = 0
        with nogil:
            r = as_loader_attach(self.loader, err)
        if r:
            raise CaptureError(_text(err))
        r = as_drain_start(self.d, priority)
        if r:
            raise CaptureError(f"cannot start the reading thread: {os.strerror(-r)}")
        self.started = True

    def read(self, double timeout=0.0):
        cdef as_batch *b
        cdef int ms = _ms(timeout)
        if self.d is NULL:
            return None
        with nogil:
            b = as_drain_read(self.d, ms)
        return None if b is NULL else _live(b)

    @property
    def closed(self):
        return self.d is NULL or as_drain_closed(self.d) != 0

    @property
    def io_hook(self):
        return "sys_exit" if as_loader_uses_sys_exit(self.loader) else "sock"

    @property
    def targets_fd(self):
        self._alive()
        return as_loader_map_fd(self.loader, AS_MAP_TARGETS)

    def write_to(self, CaptureWriter writer, double timeout=0.1):
        """See ringbuf.pyi."""
        cdef double end = time.monotonic() + timeout
        cdef as_batch *b
        cdef int r = 0, fd = writer._fd(), ms
        cdef list execs = []
        while True:
            ms = _ms(end - time.monotonic())
            with nogil:
                b = as_drain_read(self.d, ms)
                if b is not NULL:
                    r = as_cap_write_batch(fd, b.data, b.len, b.records)
            if b is NULL:
                return execs
            writer.bytes += b.len
            _find_execs(b, execs)
            as_batch_release(b)
            if r:
                raise writer._error(r)
            if time.monotonic() >= end:  # also where there is always more: the caller has other things to look after
                return execs

    def stop(self):
        if self.stopped or self.loader is NULL:
            return
        with nogil:
            as_loader_detach(self.loader)
            as_drain_stop(self.d)
        self.final = self.counters()
        self.stopped = True

    def counters(self):
        cdef as_drop_counter[8] drops  # AS_D_MAX
        cdef uint64_t[16] stats  # AS_ST_MAX
        cdef as_drain_counters c
        if self.loader is NULL:
            return {}
        if as_loader_drops(self.loader, drops) or as_loader_stats(self.loader, stats):
            raise CaptureError("cannot read the kernel's counters")
        as_drain_count(self.d, &c)
        return {
            "drops": {name: {"records": drops[i].records, "bytes": drops[i].bytes} for i, name in enumerate(DROPS)},
            "kernel": {name: stats[i] for i, name in enumerate(STATS)},
            "io_hook": self.io_hook,
            "records": c.records,
            "bytes": c.bytes,
            "batches": c.batches,
            "ring_bytes": as_loader_ring_bytes(self.loader),
            "ring_peak": c.ring_peak,
            "arena_used": c.arena_used,
            "arena_peak": c.arena_peak,
            "arena_full": c.arena_full,
            "priority_raised": bool(c.priority_raised),
        }


cdef int _ms(double seconds):
    if seconds <= 0:
        return 0
    return 3600000 if seconds > 3600 else <int>(seconds * 1000)


cdef str _text(const char *err):
    return (<bytes>err[:strlen(err)]).decode("utf-8", "replace")


cdef int _find_execs(as_batch *b, list out) except -1:
    cdef size_t at = 0
    cdef const as_hdr *h
    while at + sizeof(as_hdr) <= b.len:
        h = <const as_hdr *>(b.data + at)
        if h.len < sizeof(as_hdr):
            break
        if h.kind == AS_K_EXEC and not h.flags & AS_F_SNAPSHOT:
            out.append(h.tgid)
        at += h.len
    return 0


cdef class CaptureWriter:
    cdef int fd
    cdef object path
    cdef readonly unsigned long long bytes

    def __cinit__(self):
        self.fd = -1

    def __init__(self, path, dict meta, *, uid=None, gid=None):
        cdef bytes text = json.dumps(meta, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
        cdef const char *p = text
        cdef size_t n = len(text)
        cdef int r
        self.path = os.fspath(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(self.path, flags, 0o600)
        except OSError as e:
            raise CaptureFileError(f"cannot write {self.path}: {(e.strerror or str(e)).lower()}") from None
        self.fd = fd
        import stat
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CaptureFileError(f"{self.path} is no regular file: choose another name")
        os.set_blocking(fd, True)
        os.ftruncate(fd, 0)
        os.fchmod(fd, 0o600)
        if uid is not None or gid is not None:
            os.fchown(fd, -1 if uid is None else uid, -1 if gid is None else gid)
        r = as_cap_write_header(self.fd, p, n, as_boot_ns(), as_wall_ns())
        if r:
            raise self._error(r)

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    cdef int _fd(self) except -1:
        if self.fd < 0:
            raise CaptureFileError(f"{self.path} has been closed")
        return self.fd

    cdef object _error(self, int r):
        return CaptureFileError(f"cannot write {self.path}: {os.strerror(-r).lower()}")

    def write(self, batch):
        cdef const unsigned char[::1] view = batch
        cdef size_t n = view.shape[0]
        cdef unsigned int records = (<Batch>batch).records if isinstance(batch, Batch) else 0
        cdef int r, fd = self._fd()
        if n == 0:
            return
        with nogil:
            r = as_cap_write_batch(fd, &view[0], n, records)
        if r:
            raise self._error(r)
        self.bytes += n

    def close(self):
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


cdef class CaptureReader:
    cdef as_cap_reader r
    cdef object path
    cdef readonly dict meta

    def __cinit__(self):
        memset(&self.r, 0, sizeof(self.r))
        self.r.fd = -1

    def __init__(self, path):
        self.path = os.fspath(path)
        cdef int fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        cdef int e = as_cap_open(&self.r, fd)
        if e:
            os.close(fd)
            if e == AS_CAP_NOT_OURS:
                raise CaptureFileError(f"{self.path} is no capture file: give a file that --capture wrote")
            if e == AS_CAP_OTHER_VERSION:
                raise CaptureFileError(f"{self.path} was written by another version of agentsight: replay it with that one")
            if e == AS_CAP_OTHER_ORDER:
                raise CaptureFileError(f"{self.path} was written on a machine of the other byte order")
            if e == AS_CAP_DAMAGED:
                raise CaptureFileError(f"{self.path} is damaged in its header")
            raise CaptureFileError(f"cannot read {self.path}: {os.strerror(-e).lower()}")
        try:
            self.meta = json.loads(self.r.meta[: self.r.meta_len].decode("utf-8", "surrogatepass"))
        except ValueError:
            raise CaptureFileError(f"{self.path} is damaged in its header") from None

    def __dealloc__(self):
        as_cap_close(&self.r)

    @property
    def torn(self):
        return self.r.torn

    @property
    def wall_ns(self):
        return self.r.wall_ns

    @property
    def boot_ns(self):
        return self.r.boot_ns

    def __iter__(self):
        return self

    def __next__(self):
        cdef Batch b = Batch.__new__(Batch)
        cdef uint8_t *data = NULL
        cdef size_t n = 0
        cdef uint32_t records = 0
        cdef int e
        with nogil:
            e = as_cap_next(&self.r, &data, &n, &records)
        if e < 0:
            raise CaptureFileError(f"cannot read {self.path}: {os.strerror(-e).lower()}")
        if not e:
            raise StopIteration
        b.own = b.data = data
        b.n = <Py_ssize_t>n
        b.records = records
        return b

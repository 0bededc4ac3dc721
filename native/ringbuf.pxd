# Declarations of the C side (core/loader.h, core/drain.h, core/capfile.h); no code.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "agentsight.h" nogil:
    enum:
        AS_K_EXEC
        AS_K_EXEC_ARGS
        AS_K_NOTE
        AS_F_SNAPSHOT
        AS_F_TRUNCATED
        AS_F_LAST_ARGS
        AS_D_MAX
        AS_ST_MAX
        AS_ARGS_MAX
        AS_ARGS_CHUNK
        AS_PATH_MAX
        AS_NAME_MAX
        AS_COMM_LEN
        AS_CTL_COPY
        AS_CTL_SKIP
        AS_T_IO
        AS_T_STDIO
        AS_T_PROCESS
        AS_T_FOLLOW
        AS_ABI_VERSION
        AS_K_SECRET
    struct as_hdr:
        uint32_t len
        uint16_t kind
        uint16_t flags
        uint64_t ts
        uint32_t tgid
        uint32_t tid
    struct as_exec:
        as_hdr h
        uint32_t ppid
        uint32_t uid
        uint32_t gid
        uint32_t args_len
        uint64_t start
        uint64_t cgroup
        uint32_t netns
        uint16_t name_len
        uint16_t cwd_len
        uint32_t args_cap
        uint32_t ns_pid
        uint8_t comm[16]
    struct as_exec_args:
        as_hdr h
        uint32_t off
        uint32_t cap
    struct as_secret:
        as_hdr h
    struct as_note:
        as_hdr h
        uint32_t n
        uint32_t pad
    struct as_drop_counter:
        uint64_t records
        uint64_t bytes
    struct as_target:
        uint32_t flags
        uint32_t root
    struct as_excl:
        uint64_t ino
        uint32_t dev
        uint32_t pad
    struct as_config:
        uint8_t track_all
        uint8_t mirror
        uint8_t stdio_all_fds
        uint8_t uid_on
        uint8_t cgroup_on
        uint32_t uid
        uint32_t cgroup_level
        uint64_t cgroup
        uint32_t stdio_max

cdef extern from "loader.h" nogil:
    enum:
        AS_ERR_LEN
    ctypedef enum as_io_hook:
        AS_HOOK_AUTO
        AS_HOOK_SOCK
        AS_HOOK_SYS_EXIT
    ctypedef enum as_map_id:
        AS_MAP_TARGETS
        AS_MAP_NAMES
        AS_MAP_EXCLUDED
        AS_MAP_CTL
        AS_MAP_STDIO_EXCL
    ctypedef struct as_loader_opts:
        const void *obj
        size_t obj_len
        int want_io
        int want_stdio
        int want_process
        as_io_hook io_hook
        size_t ring_bytes
        int single_probes
        int log_level
        as_config cfg
    ctypedef struct as_loader:
        pass
    as_loader *as_loader_new(const as_loader_opts *o, char *err)
    int as_loader_attach(as_loader *l, char *err)
    void as_loader_detach(as_loader *l)
    void as_loader_free(as_loader *l)
    int as_loader_ring_fd(const as_loader *l)
    size_t as_loader_ring_bytes(const as_loader *l)
    int as_loader_uses_sys_exit(const as_loader *l)
    int as_loader_put(as_loader *l, as_map_id map, const void *key, const void *value)
    int as_loader_del(as_loader *l, as_map_id map, const void *key)
    int as_loader_map_fd(const as_loader *l, as_map_id map)
    void as_loader_ctl_changed(as_loader *l)
    int as_loader_drops(const as_loader *l, as_drop_counter *out)
    int as_loader_stats(const as_loader *l, uint64_t *out)
    int as_loader_attach_secret(as_loader *l, const char *path, const uint64_t *offsets, const uint64_t *cookies, size_t n,
                                char *err)
    int as_loader_detach_secret(as_loader *l, int handle)

cdef extern from "drain.h" nogil:
    ctypedef struct as_drain:
        pass
    ctypedef struct as_batch:
        uint8_t *data
        size_t len
        uint32_t records
    ctypedef struct as_drain_opts:
        int ring_fd
        size_t ring_bytes
        size_t arena_bytes
        int (*drops)(void *ctx, as_drop_counter *out)
        void *drops_ctx
    ctypedef struct as_drain_counters:
        uint64_t records
        uint64_t bytes
        uint64_t ring_peak
        uint64_t arena_used
        uint64_t arena_peak
        uint64_t arena_full
        uint64_t batches
        int priority_raised
    as_drain *as_drain_new(const as_drain_opts *o, int *error)
    int as_drain_start(as_drain *d, int may_raise_priority)
    void as_drain_stop(as_drain *d)
    void as_drain_free(as_drain *d)
    as_batch *as_drain_read(as_drain *d, int timeout_ms)
    int as_drain_closed(as_drain *d)
    void as_batch_release(as_batch *b)
    int as_drain_put(as_drain *d, as_hdr *rec, const void *rest, size_t rest_len)
    void as_drain_count(as_drain *d, as_drain_counters *out)
    uint64_t as_boot_ns()
    uint64_t as_wall_ns()

cdef extern from "capfile.h" nogil:
    enum:
        AS_CAP_NOT_OURS
        AS_CAP_OTHER_VERSION
        AS_CAP_OTHER_ORDER
        AS_CAP_DAMAGED
    ctypedef struct as_cap_reader:
        int fd
        uint64_t boot_ns
        uint64_t wall_ns
        uint32_t machine
        char *meta
        size_t meta_len
        uint64_t torn
    int as_cap_write_header(int fd, const void *meta, size_t n, uint64_t boot_ns, uint64_t wall_ns)
    int as_cap_write_batch(int fd, const void *data, size_t n, uint32_t records)
    int as_cap_open(as_cap_reader *r, int fd)
    int as_cap_next(as_cap_reader *r, uint8_t **data, size_t *n, uint32_t *records)
    void as_cap_close(as_cap_reader *r)

# Declarations of the C engine (core/engine.h, core/out.h); no code.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *s, size_t n)

cdef extern from "agentsight.h" nogil:
    enum:
        AS_F_SNAPSHOT
        AS_F_TRUNCATED
        AS_F_FAULT
        AS_D_MAX
    struct as_hdr:
        uint32_t len
        uint16_t kind
        uint16_t flags
        uint64_t ts
        uint32_t tgid
        uint32_t tid
    struct as_stdio:
        as_hdr h
        uint64_t ino
        uint32_t dev
        int fd
        uint64_t off
        uint32_t cap
        uint32_t real
        uint8_t dir
        uint8_t obj
        uint32_t uid
        uint8_t data[]
    struct as_fork:
        as_hdr h
        uint32_t child
        uint32_t uid
        uint64_t start
        char comm[16]
    struct as_exec:
        as_hdr h
        uint32_t ppid
        uint32_t uid
        uint32_t gid
        uint32_t args_len
        uint64_t start
        uint64_t cgroup
        uint16_t name_len
        uint16_t cwd_len
        uint32_t ns_pid
        char comm[16]
        uint8_t data[]
    struct as_exit:
        as_hdr h
        uint32_t ppid
        uint32_t uid
        uint32_t status
        uint32_t maxrss_kb
        uint64_t start
        char comm[16]
    struct as_drop_counter:
        uint64_t records
        uint64_t bytes
    struct as_drops:
        as_hdr h
        as_drop_counter c[8]
    struct as_note:
        as_hdr h
        uint32_t n
        uint8_t text[]

cdef extern from "out.h" nogil:
    ctypedef struct as_slice:
        const uint8_t *p
        size_t n
    ctypedef struct as_meta:
        uint64_t ts
        uint32_t tgid
        uint32_t tid
        uint32_t uid
        uint32_t seq
    ctypedef struct as_header:
        as_slice name
        as_slice value
    ctypedef struct as_hmsg:
        int is_request
        uint64_t exchange
        as_slice first_line
        as_slice method
        as_slice target
        as_slice version
        as_slice reason
        int status
        const as_header *headers
        size_t n_headers
        as_slice body
        uint64_t wire
        uint64_t missing
        int64_t content_length
        uint64_t body_wire
        int chunked
        int is_sse
        as_slice coding
        int decoded
        uint32_t flags
        uint64_t ts_start
        uint64_t ts_head
        uint64_t ts_body
        uint64_t ts_end
        as_meta last
        uint64_t n_sse
    ctypedef struct as_sse_ev:
        as_slice event
        as_slice data
        as_slice id
        uint64_t ts
        uint64_t index
        int truncated
    ctypedef struct as_tls_info:
        uint16_t version
        uint16_t cipher
        int client_flow
        char sni[256]
        char alpn[32]
        uint64_t ts_client_hello
        uint64_t ts_finished
    ctypedef enum as_out_kind:
        AS_O_RAW
        AS_O_HANDSHAKE
        AS_O_HTTP
        AS_O_SSE
        AS_O_FRAMES
        AS_O_CONN
        AS_O_STDIO
        AS_O_EXEC
        AS_O_FORK
        AS_O_EXIT
        AS_O_NOTE
        AS_O_DROPS
    ctypedef struct as_procref:
        uint32_t tgid
        uint64_t start
        char comm[16]
    ctypedef struct as_peers:
        as_procref client
        as_procref server
        as_procref owner
        char local[56]
        char remote[56]
        uint64_t conn
        int tls
    ctypedef struct as_out_http:
        as_hmsg m
        as_slice req_method
        as_slice req_target
        as_slice req_host
        uint64_t req_start
        uint64_t req_end
        as_slice raw
    ctypedef struct as_out_frames:
        as_slice frames
        as_slice names
        as_slice times
        as_slice ends
        const as_slice *others
        size_t n_others
        uint64_t exchange
        uint64_t count
        uint64_t gaps
        int limited
    ctypedef struct as_out_sse:
        as_sse_ev ev
        uint64_t exchange
        as_slice req_method
        as_slice req_target
        as_slice req_host
    ctypedef struct as_out_raw:
        as_slice data
        uint64_t offset
        int write
        int unparsed
    ctypedef struct as_conn_account:
        uint64_t seen
        uint64_t tls_handshake
        uint64_t tls_opened
        uint64_t tls_closed[7]
        uint64_t waiting
        uint64_t plain
        uint64_t other
        uint64_t skipped
        uint64_t missing
        uint64_t mirrored
        uint64_t plaintext
        uint64_t undecoded
        uint64_t duplicate
    ctypedef struct as_out_conn:
        as_conn_account a
        as_tls_info tls
        int protocol
        uint64_t requests
        uint64_t responses
        uint64_t start
    ctypedef struct as_out_rec:
        const void *rec
        as_slice args
        as_procref who
    ctypedef union as_out_u:
        as_out_raw raw
        as_tls_info handshake
        as_out_http http
        as_out_sse sse
        as_out_frames frames
        as_out_conn conn
        as_out_rec rec
    ctypedef struct as_out:
        as_out *next
        as_out_kind kind
        uint64_t seq
        uint64_t ts
        int64_t wall_ms
        as_meta meta
        const as_peers *peers
        as_out_u u
    ctypedef struct as_outs:
        as_out *head
        size_t n
    void as_outs_clear(as_outs *o)

cdef extern from "engine.h" nogil:
    ctypedef struct as_engine:
        pass
    ctypedef struct as_engine_opts:
        int want_raw
        int want_http
        int want_sse_each
        int want_frames
        int want_handshakes
        int want_stdio
        int want_process
        int want_conns
        int raw_data
        int plain_http
        const uint16_t *plain_ports
        size_t n_plain_ports
        size_t body_budget
        size_t max_pending
        uint64_t reorder_ns
    ctypedef struct as_hstats:
        uint64_t requests
        uint64_t responses
        uint64_t interim
        uint64_t sse_events
        uint64_t raw_bytes
        uint64_t resyncs
        uint64_t skipped_bytes
        uint64_t header_limit
        uint64_t framing_errors
        uint64_t decode_errors
        uint64_t inflated_out
        uint64_t bodies_limited
        uint64_t unpaired_responses
        uint64_t http2_bytes
        uint64_t upgraded_bytes
    ctypedef struct as_keyring_stats:
        uint64_t added
        uint64_t duplicates
        uint64_t matched
        uint64_t expired
        uint64_t evicted
        uint64_t trials
        uint64_t trial_cap_hits
    ctypedef struct as_engine_stats:
        as_conn_account a
        as_hstats http
        as_keyring_stats keys
        uint64_t connections
        uint64_t records
        uint64_t unknown_records
        uint64_t damaged
        uint64_t batches
        uint64_t lost_outputs
        uint64_t lost_execs
        uint64_t budget_refused
    ctypedef struct as_dark:
        as_procref who
        char exe[256]
        uint64_t bytes[7]
        uint64_t total
    as_engine *as_engine_new(const as_engine_opts *o)
    void as_engine_free(as_engine *e)
    void as_engine_feed(as_engine *e, const uint8_t *batch, size_t n)
    void as_engine_flush(as_engine *e)
    as_outs *as_engine_outs(as_engine *e)
    void as_engine_stats_get(as_engine *e, as_engine_stats *out)
    size_t as_engine_dark(as_engine *e, as_dark *out, size_t max)
    size_t as_engine_skips(as_engine *e, uint64_t *cookies, size_t max)
    size_t as_engine_asks(as_engine *e, uint32_t *tgids, size_t max)
    size_t as_engine_wants(as_engine *e, uint32_t *tgids, size_t max)

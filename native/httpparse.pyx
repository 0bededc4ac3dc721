# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""From the C engine's outputs to event structs. See httpparse.pyi; the decoding itself is core/*.c."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeLatin1, PyUnicode_DecodeUTF8
from libc.string cimport memset

from binascii import b2a_base64

from agentsight.events import (
    ConnectionEvent,
    Drops,
    HttpEvent,
    Note,
    ProcessEvent,
    ProcessRef,
    SseEvent,
    SseFrames,
    SslEvent,
    StdioEvent,
)

REASONS = ("", "no-secret", "missing", "unsupported", "bad-tag", "not-a-record", "waited-too-long", "early-data-refused")
DROPS = ("data", "stdio", "secret", "process", "connection", "arena")
FLAGS = (
    (0x1, "head-truncated"), (0x2, "body-missing"), (0x4, "body-cut"), (0x8, "body-limit"), (0x10, "decode-error"),
    (0x20, "framing-error"), (0x40, "both-lengths"), (0x80, "terminated"), (0x100, "no-request"),
)
cdef unsigned int INCOMPLETE = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20
VERSIONS = {0x0304: "TLSv1.3", 0x0303: "TLSv1.2", 0x0302: "TLSv1.1", 0x0301: "TLSv1.0"}
CIPHERS = {
    0x1301: "TLS_AES_128_GCM_SHA256", 0x1302: "TLS_AES_256_GCM_SHA384", 0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0xC02B: "ECDHE-ECDSA-AES128-GCM-SHA256", 0xC02C: "ECDHE-ECDSA-AES256-GCM-SHA384", 0xC02F: "ECDHE-RSA-AES128-GCM-SHA256",
    0xC030: "ECDHE-RSA-AES256-GCM-SHA384", 0xCCA8: "ECDHE-RSA-CHACHA20-POLY1305", 0xCCA9: "ECDHE-ECDSA-CHACHA20-POLY1305",
    0x009C: "AES128-GCM-SHA256", 0x009D: "AES256-GCM-SHA384", 0x009E: "DHE-RSA-AES128-GCM-SHA256",
    0x009F: "DHE-RSA-AES256-GCM-SHA384", 0xCCAA: "DHE-RSA-CHACHA20-POLY1305",
}
ROLES = ("stdin", "stdout", "stderr")
OBJECTS = ("", "pipe", "tty", "socket", "file", "other")


cdef extern from *:
    """
    /* A text that is not ASCII keeps its UTF-8 once somebody asks for it (PyUnicode_AsUTF8AndSize); JSON, redaction and the sinks
       all ask. We have it at hand: making it again from wider characters takes ten times as long as copying it. */
    #if PY_VERSION_HEX < 0x030D0000
    #define AS_UTF8_MALLOC PyObject_Malloc
    #else
    #define AS_UTF8_MALLOC PyMem_Malloc
    #endif
    static void as_keep_utf8(PyObject *s, const unsigned char *p, size_t n) {
    #if PY_VERSION_HEX < 0x030F0000 && !defined(Py_LIMITED_API) && !defined(Py_GIL_DISABLED)
        PyCompactUnicodeObject *c = (PyCompactUnicodeObject *)s;
        if (!PyUnicode_IS_COMPACT(s) || PyUnicode_IS_ASCII(s) || c->utf8)
            return;
        char *d = AS_UTF8_MALLOC(n + 1);
        if (!d)
            return;
        memcpy(d, p, n);
        d[n] = 0;
        c->utf8_length = (Py_ssize_t)n;
        c->utf8 = d;
    #else
        (void)s, (void)p, (void)n;
    #endif
    }
    """
    void as_keep_utf8(object s, const uint8_t *p, size_t n)


cdef object _text(as_slice s):
    """UTF-8 text, or None where it is none."""
    if s.n == 0:
        return ""
    try:
        text = PyUnicode_DecodeUTF8(<const char *>s.p, s.n, NULL)
    except UnicodeDecodeError:
        return None
    if s.n >= 1024:
        as_keep_utf8(text, s.p, s.n)
    return text


cdef inline object _loose(as_slice s):
    """Text of a head: UTF-8, else every byte a character (RFC 9110 section 5.5)."""
    if s.n == 0:
        return ""
    try:
        return PyUnicode_DecodeUTF8(<const char *>s.p, s.n, NULL)
    except UnicodeDecodeError:
        return PyUnicode_DecodeLatin1(<const char *>s.p, s.n, NULL)


cdef inline object _replaced(const char *p, size_t n):
    return PyUnicode_DecodeUTF8(p, n, "replace") if n else ""


cdef inline object _opt(as_slice s):
    return _loose(s) if s.n else None


cdef inline bytes _bytes(as_slice s):
    return PyBytes_FromStringAndSize(<const char *>s.p, s.n)


cdef object _base64(as_slice s):
    return b2a_base64(_bytes(s), newline=False).decode("ascii")


cdef inline object _comm(const char *p):
    return _replaced(p, strnlen(p, 16))


cdef object _ref(const as_procref *r):
    if r.tgid == 0:
        return None
    return ProcessRef(r.tgid, r.start // 10000000, _comm(r.comm))


cdef object _cipher(uint16_t c):
    if c == 0:
        return None
    return CIPHERS.get(c) or "0x%04x" % c


cdef object _version(uint16_t v):
    return VERSIONS.get(v)


cdef object _name(const char *p, size_t n):
    n = strnlen(p, n)
    return _replaced(p, n) if n else None


cdef class Decoder:
    cdef as_engine *e
    cdef bint _done
    cdef bint _http
    cdef size_t _max_shown

    def __cinit__(self, *, bint raw=False, bint http=True, bint sse_each=False, bint frames=True, bint handshakes=False,
                  bint stdio=True, bint process=True, bint connections=True, plain_http=None, bint raw_data=False,
                  size_t max_shown=0, size_t body_budget=256 << 20):
        cdef as_engine_opts o
        cdef uint16_t *ports = NULL
        cdef size_t i
        memset(&o, 0, sizeof(o))
        o.want_raw, o.want_http, o.want_sse_each, o.want_frames = raw, http, sse_each, frames
        o.want_handshakes, o.want_stdio, o.want_process, o.want_conns = handshakes, stdio, process, connections
        o.raw_data = raw_data
        o.body_budget = body_budget
        if plain_http is not None:
            wanted = list(plain_http)
            o.plain_http = 2 if wanted else 1
            if wanted:
                ports = <uint16_t *>PyMem_Malloc(len(wanted) * sizeof(uint16_t))
                if ports == NULL:
                    raise MemoryError
                for i in range(len(wanted)):
                    ports[i] = wanted[i]
                o.plain_ports = ports
                o.n_plain_ports = len(wanted)
        self.e = as_engine_new(&o)
        PyMem_Free(ports)
        if self.e == NULL:
            raise MemoryError
        self._http = http or frames
        self._max_shown = max_shown

    def __dealloc__(self):
        as_engine_free(self.e)

    def feed(self, batch):
        cdef const uint8_t[::1] view
        cdef size_t n = len(batch)
        if self._done:
            raise ValueError("feed after flush")
        if n == 0:
            return []
        view = batch
        with nogil:
            as_engine_feed(self.e, &view[0], n)
        return self._take()

    def flush(self):
        if not self._done:
            self._done = True
            with nogil:
                as_engine_flush(self.e)
        return self._take()

    cdef list _take(self):
        cdef as_outs *outs = as_engine_outs(self.e)
        cdef as_out *o = outs.head
        cdef list events = []
        try:
            while o != NULL:
                events.append(self._event(o))
                o = o.next
        finally:
            as_outs_clear(outs)
        return events

    cdef object _event(self, as_out *o):
        if o.kind == AS_O_RAW:
            return self._raw(o)
        if o.kind == AS_O_HTTP:
            return self._message(o)
        if o.kind == AS_O_FRAMES:
            return self._frames(o)
        if o.kind == AS_O_SSE:
            return self._sse(o)
        if o.kind == AS_O_STDIO:
            return self._stdio(o)
        if o.kind == AS_O_EXEC:
            return self._exec(o)
        if o.kind == AS_O_FORK:
            return self._fork(o)
        if o.kind == AS_O_EXIT:
            return self._exit(o)
        if o.kind == AS_O_CONN:
            return self._conn(o)
        if o.kind == AS_O_HANDSHAKE:
            return self._handshake(o)
        if o.kind == AS_O_NOTE:
            return self._note(o)
        return self._drops(o)

    cdef object _raw(self, as_out *o):
        cdef as_slice d = o.u.raw.data
        cdef bint cut = self._max_shown != 0 and d.n > self._max_shown
        cdef size_t total = d.n
        cdef const as_peers *p = o.peers
        if cut:
            d.n = self._max_shown
            while d.n > 0 and d.n > self._max_shown - 3 and (d.p[d.n] & 0xC0) == 0x80:
                d.n -= 1  # not within a character
        text = _text(d)
        return SslEvent(o.seq, o.wall_ms, o.ts, p.owner.tgid, _comm(p.owner.comm),
                        "WRITE/SEND" if o.u.raw.write else "READ/RECV", total, text, cut, None, False, o.meta.tid, o.meta.uid,
                        str(p.conn), o.u.raw.offset, _base64(d) if text is None else None)

    cdef object _handshake(self, as_out *o):
        cdef as_tls_info *t = &o.u.handshake
        cdef const as_peers *p = o.peers
        latency = None
        if t.ts_client_hello and t.ts_finished >= t.ts_client_hello:
            latency = (t.ts_finished - t.ts_client_hello) / 1e6
        return SslEvent(o.seq, o.wall_ms, o.ts, p.owner.tgid, _comm(p.owner.comm), "HANDSHAKE", 0, None, False, latency, True,
                        o.meta.tid, o.meta.uid, str(p.conn), 0, None, _version(t.version), _cipher(t.cipher),
                        _name(t.sni, sizeof(t.sni)), _name(t.alpn, sizeof(t.alpn)))

    cdef object _message(self, as_out *o):
        cdef as_out_http *h = &o.u.http
        cdef as_hmsg *m = &h.m
        cdef const as_peers *p = o.peers
        cdef size_t i
        cdef dict headers = {}
        for i in range(m.n_headers):
            name = _loose(m.headers[i].name).lower()
            value = _loose(m.headers[i].value)
            if name in headers:
                headers[name] += ("\n" if name == "set-cookie" else ", ") + value
            else:
                headers[name] = value
        body = _text(m.body) if m.body.n else None
        if m.flags:
            flags = [word for bit, word in FLAGS if m.flags & bit]
        else:
            flags = []
        raw = _text(h.raw) if h.raw.n else None
        return HttpEvent(
            o.seq, o.wall_ms, o.ts, p.owner.tgid, _comm(p.owner.comm), m.last.tid,
            "request" if m.is_request else "response", _loose(m.first_line), _opt(h.req_method), _opt(h.req_target),
            _loose(m.version), None if m.is_request else m.status, None if m.is_request else _loose(m.reason), headers, body,
            m.wire, m.body_wire > 0, bool(m.chunked), m.content_length if m.content_length >= 0 else None,
            str(p.conn), m.exchange, "ssl" if p.tls else "tcp", not (m.flags & INCOMPLETE),
            m.body.n, _base64(m.body) if body is None and m.body.n else None, raw, bool(m.decoded) and m.coding.n > 0,
            _opt(m.coding), bool(m.is_sse), m.n_sse, flags, m.missing, _opt(h.req_host), m.ts_start, m.ts_head, m.ts_body,
            0 if m.is_request else h.req_start, 0 if m.is_request else h.req_end, _name(p.local, 56), _name(p.remote, 56),
            _ref(&p.client), _ref(&p.server))

    cdef object _frames(self, as_out *o):
        cdef as_out_frames *f = &o.u.frames
        cdef const as_peers *p = o.peers
        cdef size_t i
        cdef list others = []
        for i in range(f.n_others):
            others.append(_replaced(<const char *>f.others[i].p, f.others[i].n))
        return SseFrames(o.seq, o.wall_ms, o.ts, p.owner.tgid, _comm(p.owner.comm), str(p.conn), f.exchange,
                         _bytes(f.frames) if f.frames.n else b"[]", _bytes(f.names) if f.names.n else b"[]", _bytes(f.times),
                         others, f.count, f.gaps, _bytes(f.ends), bool(f.limited))

    cdef object _sse(self, as_out *o):
        cdef as_out_sse *s = &o.u.sse
        cdef const as_peers *p = o.peers
        return SseEvent(o.seq, o.wall_ms, o.ts, p.owner.tgid, _comm(p.owner.comm),
                        _replaced(<const char *>s.ev.event.p, s.ev.event.n), _replaced(<const char *>s.ev.data.p, s.ev.data.n),
                        _replaced(<const char *>s.ev.id.p, s.ev.id.n), s.ev.index, str(p.conn), s.exchange,
                        _opt(s.req_method), _opt(s.req_target), _opt(s.req_host), o.meta.tid, bool(s.ev.truncated))

    cdef object _stdio(self, as_out *o):
        cdef const as_stdio *r = <const as_stdio *>o.u.rec.rec
        cdef as_slice d
        if r == NULL:
            raise MemoryError
        d.p = r.data
        d.n = r.cap
        text = _text(d)
        if r.obj == 2:
            target = "tty:%d:%d" % (r.dev >> 20, r.dev & 0xFFFFF)
        else:
            target = "%s:[%d]" % (OBJECTS[r.obj] if r.obj < 6 else "other", r.ino)
        # further records of one call say 0: their own bytes are their length
        lost = r.real - r.cap if r.real > r.cap and r.h.flags & (AS_F_TRUNCATED | AS_F_FAULT) else 0
        return StdioEvent(o.seq, o.wall_ms, o.ts, r.h.tgid, _comm(o.u.rec.who.comm), "WRITE" if r.dir else "READ", r.h.tid, r.uid,
                          r.fd, ROLES[r.fd] if 0 <= r.fd < 3 else "fd", target, r.real or r.cap, text, bool(lost), r.off,
                          _base64(d) if text is None else None, lost)

    cdef object _exec(self, as_out *o):
        cdef const as_exec *r = <const as_exec *>o.u.rec.rec
        cdef as_slice a = o.u.rec.args
        cdef const char *data
        if r == NULL:
            raise MemoryError
        data = <const char *>r.data
        args = [x.decode("utf-8", "replace") for x in _bytes(a).rstrip(b"\0").split(b"\0")] if a.n else []
        return ProcessEvent(o.seq, o.wall_ms, o.ts, r.h.tgid, _comm(r.comm), "EXEC", r.ppid, r.uid, r.start // 10000000,
                            _replaced(data, r.name_len), args, " ".join(args),
                            a.n < r.args_len or bool(r.h.flags & (AS_F_TRUNCATED | AS_F_FAULT)),
                            _replaced(data + r.name_len, r.cwd_len) or None, r.gid, str(r.cgroup) if r.cgroup else None,
                            r.ns_pid if r.ns_pid and r.ns_pid != r.h.tgid else None, bool(r.h.flags & AS_F_SNAPSHOT))

    cdef object _fork(self, as_out *o):
        cdef const as_fork *r = <const as_fork *>o.u.rec.rec
        if r == NULL:
            raise MemoryError
        comm = _comm(o.u.rec.who.comm) or _comm(r.comm)
        return ProcessEvent(o.seq, o.wall_ms, o.ts, r.h.tgid, comm, "FORK", 0, r.uid, o.u.rec.who.start // 10000000,
                            child_pid=r.child)

    cdef object _exit(self, as_out *o):
        cdef const as_exit *r = <const as_exit *>o.u.rec.rec
        cdef int sig
        if r == NULL:
            raise MemoryError
        sig = r.status & 0x7F
        return ProcessEvent(o.seq, o.wall_ms, o.ts, r.h.tgid, _comm(r.comm), "EXIT", r.ppid, r.uid, r.start // 10000000,
                            exit_code=None if sig else (r.status >> 8) & 0xFF, signal=sig or None,
                            core_dumped=bool(r.status & 0x80),
                            duration_ms=(r.h.ts - r.start) / 1e6 if r.start and r.h.ts > r.start else None,
                            vm_hwm_kb=r.maxrss_kb or None)

    cdef object _conn(self, as_out *o):
        cdef as_out_conn *c = &o.u.conn
        cdef as_conn_account *a = &c.a
        cdef const as_peers *p = o.peers
        reasons = _closed(a)
        return ConnectionEvent(
            o.seq, o.wall_ms, o.ts, p.owner.tgid, _comm(p.owner.comm), str(p.conn), _name(p.local, 56) or "?",
            _name(p.remote, 56) or "?", ("other", "tls", "http")[c.protocol], a.seen, a.tls_opened,
            sum(reasons.values()) + a.waiting, a.skipped, a.missing, a.plaintext, a.plaintext - a.undecoded, reasons,
            a.tls_handshake, a.plain + a.other, a.mirrored, c.requests, c.responses, _version(c.tls.version),
            _cipher(c.tls.cipher), _name(c.tls.sni, 256), _name(c.tls.alpn, 32), _ref(&p.client), _ref(&p.server), c.start)

    cdef object _note(self, as_out *o):
        cdef const as_note *r = <const as_note *>o.u.rec.rec
        cdef size_t n
        if r == NULL:
            raise MemoryError
        n = r.h.len - sizeof(as_note)
        if r.n < n:
            n = r.n
        return Note(o.seq, o.wall_ms, o.ts, 0, "", PyBytes_FromStringAndSize(<const char *>r.text, n))

    cdef object _drops(self, as_out *o):
        cdef const as_drops *r = <const as_drops *>o.u.rec.rec
        cdef int i
        records, sizes = {}, {}
        if r == NULL:
            raise MemoryError
        for i in range(len(DROPS)):
            if r.c[i].records:
                records[DROPS[i]] = r.c[i].records
                sizes[DROPS[i]] = r.c[i].bytes
        return Drops(o.seq, o.wall_ms, o.ts, 0, "", records, sizes)

    def account(self):
        cdef as_engine_stats s
        cdef as_conn_account *a = &s.a
        as_engine_stats_get(self.e, &s)
        reasons = _closed(a)
        return {
            "connections": s.connections, "seen": a.seen, "tls_handshake": a.tls_handshake, "tls_opened": a.tls_opened,
            "tls_not_opened": sum(reasons.values()) + a.waiting, "plain": a.plain, "other": a.other, "skipped": a.skipped,
            "missing": a.missing, "mirrored": a.mirrored, "plaintext": a.plaintext, "decoded": a.plaintext - a.undecoded,
            "duplicate": a.duplicate, "reasons": reasons,
            "http": {
                "requests": s.http.requests, "responses": s.http.responses, "interim": s.http.interim,
                "sse_events": s.http.sse_events, "raw_bytes": s.http.raw_bytes, "resyncs": s.http.resyncs,
                "skipped_bytes": s.http.skipped_bytes, "header_limit": s.http.header_limit,
                "framing_errors": s.http.framing_errors, "decode_errors": s.http.decode_errors,
                "inflated_out": s.http.inflated_out, "bodies_limited": s.http.bodies_limited,
                "unpaired_responses": s.http.unpaired_responses, "http2_bytes": s.http.http2_bytes,
                "upgraded_bytes": s.http.upgraded_bytes, "budget_refused": s.budget_refused,
            },
            "keyring": {
                "added": s.keys.added, "duplicates": s.keys.duplicates, "matched": s.keys.matched, "expired": s.keys.expired,
                "evicted": s.keys.evicted, "trials": s.keys.trials, "trial_cap_hits": s.keys.trial_cap_hits,
            },
            "records": s.records, "unknown_records": s.unknown_records, "damaged": s.damaged,
            "lost_outputs": s.lost_outputs, "lost_execs": s.lost_execs,
        }

    def dark(self):
        cdef as_dark d[64]
        cdef size_t n, i
        cdef int r
        n = as_engine_dark(self.e, d, 64)
        out = []
        for i in range(n):
            worst = 1
            for r in range(2, 7):
                if d[i].bytes[r] > d[i].bytes[worst]:
                    worst = r
            out.append({
                "pid": d[i].who.tgid, "start_ticks": d[i].who.start // 10000000, "comm": _comm(d[i].who.comm),
                "exe": _name(d[i].exe, 256), "bytes": d[i].total, "reason": REASONS[worst],
            })
        return out

    def needs_process(self):
        cdef uint32_t pids[64]
        cdef size_t n = as_engine_asks(self.e, pids, 64), i
        return [pids[i] for i in range(n)]

    def needs_memory(self):
        cdef uint32_t pids[64]
        cdef size_t n = as_engine_wants(self.e, pids, 64), i
        return [pids[i] for i in range(n)]

    def skips(self):
        cdef uint64_t cookies[256]
        cdef size_t n = as_engine_skips(self.e, cookies, 256), i
        return [cookies[i] for i in range(n)]


cdef dict _closed(const as_conn_account *a):
    cdef int r
    out = {}
    for r in range(1, len(REASONS)):
        if a.tls_closed[r]:
            out[REASONS[r]] = a.tls_closed[r]
    return out

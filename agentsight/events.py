"""Every event, one frozen struct each; nothing else defines events.

The native decoder builds these structs, analyzers take and give them, sinks write them. On the wire and on disk an event is one
JSON object: ``{"timestamp": <ms since the epoch>, "source": "...", "pid": n, "comm": "...", "data": {...}}`` (see `to_json`).
``data`` holds the struct's fields. Fields without a default are always there; the others only when they say something.

Times: ``timestamp`` is milliseconds since the epoch; every ``*_ns`` is nanoseconds since boot (CLOCK_BOOTTIME), the clock in
which events can be compared. 64-bit ids are strings. Bytes that are no UTF-8 are ``null`` beside a ``*_base64`` field.
``seq`` is the number of the captured record that completed the event; events of one capture are ordered by it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

SCHEMA_VERSION = 1


class ProcessRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process: `pid` and start time in clock ticks since boot (field 22 of /proc/PID/stat) together name it for ever."""

    pid: int
    start_ticks: int
    comm: str


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What all events have. `pid` and `comm` are the process group leader's; pid 0 means no process is known."""

    source: ClassVar[str] = ""
    internal: ClassVar[bool] = False  # handed between stages, never given to a sink

    seq: int
    timestamp: int
    timestamp_ns: int
    pid: int
    comm: str


class SslEvent(Event, frozen=True, omit_defaults=True, gc=False):
    """Plaintext of one opened TLS record (or of a plain connection), or a finished handshake."""

    source: ClassVar[str] = "ssl"

    function: str  # READ/RECV, WRITE/SEND or HANDSHAKE, as seen from the process `pid`
    len: int  # plaintext bytes
    data: str | None
    truncated: bool  # shown shortened by --max-bytes; what was captured is never cut
    latency_ms: float | None  # of handshakes: ClientHello to Finished
    is_handshake: bool
    tid: int  # thread of the last call that carried the record
    uid: int
    conn: str
    offset: int  # plaintext offset of the first byte in its direction
    data_base64: str | None = None
    version: str | None = None  # handshakes: TLSv1.3, ...
    cipher: str | None = None
    sni: str | None = None
    alpn: str | None = None
    withheld: bool = False  # bytes that are no text: not shown, since nothing in them can be redacted


class HttpEvent(Event, frozen=True, omit_defaults=True):
    """One whole HTTP message (RFC 9110), after transfer and content codings."""

    source: ClassVar[str] = "http_parser"

    tid: int
    message_type: str  # request or response
    first_line: str
    method: str | None  # of responses: the method and path of the request that it answers, where known
    path: str | None
    protocol: str
    status_code: int | None
    status_text: str | None
    headers: dict[str, str]  # lower-case names; repeated fields joined with ", " (set-cookie with newline)
    body: str | None
    total_size: int  # bytes of the message on the wire
    has_body: bool
    is_chunked: bool
    content_length: int | None
    conn: str
    exchange_id: int  # request and response of one exchange have the same
    original_source: str  # ssl or tcp
    complete: bool  # nothing of the message is missing
    body_size: int = 0  # decoded bytes
    body_base64: str | None = None
    raw_data: str | None = None
    decompressed: bool = False
    original_content_encoding: str | None = None
    is_sse: bool = False
    sse_count: int = 0
    flags: list[str] = []  # what is unusual or incomplete, in words of the field (body-missing, decode-error, ...)
    bytes_missing: int = 0
    host: str | None = None
    start_ns: int = 0  # first byte of this message
    head_ns: int = 0  # head complete
    body_ns: int = 0  # first body byte
    request_start_ns: int = 0  # responses: first and last byte of the request
    request_end_ns: int = 0
    local: str | None = None  # address:port of the process `pid`
    remote: str | None = None
    client: ProcessRef | None = None
    server: ProcessRef | None = None


class SseEvent(Event, frozen=True, omit_defaults=True, gc=False):
    """One server-sent event (WHATWG HTML, section 9.2), as it arrived."""

    source: ClassVar[str] = "sse_processor"

    event: str
    data: str
    id: str
    index: int
    conn: str
    exchange_id: int
    method: str | None
    path: str | None
    host: str | None
    tid: int
    truncated: bool = False


class SseFrames(Event, frozen=True, gc=False):
    """All events of one finished SSE response, for the analyzers: never shown. Comes just before its response's HttpEvent.

    `frames` is a JSON array of those data payloads that look like JSON (begin with { or [), in order; `names` a JSON array of
    their event names, `times` their arrival as native-endian uint64 ns since boot. `others` are the remaining payloads.
    """

    source: ClassVar[str] = "sse_frames"
    internal: ClassVar[bool] = True

    conn: str
    exchange_id: int
    frames: bytes
    names: bytes
    times: bytes
    others: list[str]
    count: int
    gaps: int  # events before which bytes were lost
    ends: bytes = b""  # native-endian uint32: offset in `frames` behind each payload, to cut it where it is no valid JSON
    body_limited: bool = False  # the stream was longer than the budget: later events are not in `frames`


class SseStream(Event, frozen=True, omit_defaults=True):
    """One finished SSE response, merged."""

    source: ClassVar[str] = "sse_processor"

    conn: str
    exchange_id: int
    message_id: str | None
    start_time: int  # ns since boot of the first event
    end_time: int
    duration_ns: int
    host: str | None
    method: str | None
    path: str | None
    status_code: int | None
    json_content: str  # arguments of tool calls, concatenated
    text_content: str
    total_size: int  # bytes of data payloads
    event_count: int
    has_message_start: bool
    complete: bool
    tid: int = 0
    thinking_content: str = ""


class StdioEvent(Event, frozen=True, omit_defaults=True, gc=False):
    """Bytes that a process read from or wrote to a pipe, terminal, socket pair or file."""

    source: ClassVar[str] = "stdio"

    direction: str  # READ or WRITE
    tid: int
    uid: int
    fd: int
    fd_role: str  # stdin, stdout, stderr or fd
    fd_target: str  # pipe:[inode], tty:..., socket:[inode], file:[inode]
    len: int  # result of the system call
    data: str | None
    truncated: bool
    offset: int
    data_base64: str | None = None
    bytes_lost: int = 0
    withheld: bool = False  # as in SslEvent


class ProcessEvent(Event, frozen=True, omit_defaults=True):
    """EXEC, FORK or EXIT of a process."""

    source: ClassVar[str] = "process"

    event: str
    ppid: int
    uid: int
    start_ticks: int
    filename: str | None = None  # EXEC
    args: list[str] = []
    full_command: str | None = None
    args_truncated: bool = False  # longer than 128 KiB, or partly unreadable
    cwd: str | None = None
    gid: int | None = None
    cgroup_id: str | None = None
    ns_pid: int | None = None
    snapshot: bool = False  # was already running when the capture began
    child_pid: int | None = None  # FORK
    exit_code: int | None = None  # EXIT
    signal: int | None = None
    core_dumped: bool = False
    duration_ms: float | None = None
    vm_hwm_kb: int | None = None


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one call, normalised: input_tokens includes cached ones, output_tokens includes reasoning."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    raw: dict[str, Any] | None = None  # as the provider sent it


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the model asked for. `arguments` is the parsed JSON, or None with `arguments_text` where it does not parse."""

    id: str | None
    name: str | None
    arguments: Any
    arguments_text: str | None = None


class LlmCall(Event, frozen=True, omit_defaults=True):
    """One call of a model: request and answer together."""

    source: ClassVar[str] = "llm_call"

    provider: str
    api: str
    model: str | None  # asked for
    response_model: str | None
    host: str | None
    path: str
    stream: bool
    status_code: int | None
    error: dict[str, Any] | None
    messages: list[Any]  # the prompt, as sent
    parts: list[dict[str, Any]]  # the answer, in order: {"type": "text"|"thinking"|"tool_call"|..., ...}
    tool_calls: list[ToolCall]
    stop_reason: str | None
    usage: Usage | None
    ttfb_ms: float | None  # last request byte to first response byte
    ttft_ms: float | None  # to the first event that carries answer content
    duration_ms: float  # first request byte to last answer byte
    complete: bool
    conn: str
    exchange_id: int
    start_ns: int
    end_ns: int
    system: Any = None
    tools: list[Any] = []
    text: str = ""
    response_id: str | None = None
    request_id: str | None = None
    params: dict[str, Any] = {}  # max_tokens, temperature, ...
    incomplete: list[str] = []  # why not complete
    client: ProcessRef | None = None
    server: ProcessRef | None = None
    evidence: list[int] = []  # seq of the events it was made of


class ConnectionEvent(Event, frozen=True, omit_defaults=True):
    """A TCP connection of a target has ended (or the capture has): where it went and what became of each of its bytes.

    All byte counts are both directions together, at the TCP level: seen = tls_opened + tls_not_opened + tls_handshake + other
    + skipped + missing.
    """

    source: ClassVar[str] = "connection"

    conn: str
    local: str
    remote: str
    protocol: str  # tls, http, other
    seen: int
    tls_opened: int
    tls_not_opened: int
    skipped: int
    missing: int
    plaintext: int  # application bytes: out of TLS, or of plain HTTP
    decoded: int  # of them: taken by a parser
    reasons: dict[str, int] = {}  # tls_not_opened by reason
    tls_handshake: int = 0
    other: int = 0  # not TLS
    mirrored: int = 0  # received bytes that were captured once, at their sender's end; not part of seen
    requests: int = 0
    responses: int = 0
    version: str | None = None
    cipher: str | None = None
    sni: str | None = None
    alpn: str | None = None
    client: ProcessRef | None = None
    server: ProcessRef | None = None
    start_ns: int = 0


class Note(Event, frozen=True):
    """What user space put into the record stream: attachments, options, warnings. Internal."""

    source: ClassVar[str] = "note"
    internal: ClassVar[bool] = True

    payload: bytes  # JSON


class Drops(Event, frozen=True):
    """Loss counters of the kernel side, totals since the start. Internal."""

    source: ClassVar[str] = "drops"
    internal: ClassVar[bool] = True

    records: dict[str, int]
    bytes: dict[str, int]


class DiagnosticEvent(Event, frozen=True, omit_defaults=True):
    """Something the user should know: a loss, a probe that failed, a process that stays dark."""

    source: ClassVar[str] = "diagnostic"

    kind: str
    message: str
    details: dict[str, Any] = {}


class SummaryEvent(Event, frozen=True, omit_defaults=True):
    """The log's last line: totals and completeness of the whole capture."""

    source: ClassVar[str] = "summary"

    counts: dict[str, int]  # events by source
    bytes: dict[str, int]  # seen, tls_opened, tls_not_opened, not_decoded, skipped, missing, mirrored, ...
    dark: list[dict[str, Any]] = []  # processes with bytes that could not be opened: pid, comm, bytes, reason
    drops: dict[str, int] = {}
    complete: bool = True
    duration_s: float = 0.0


class SchemaEvent(Event, frozen=True, omit_defaults=True):
    """The log's first line."""

    source: ClassVar[str] = "schema"

    schema_version: int
    version: str


_encoder = msgspec.json.Encoder()
_encode = _encoder.encode
_encode_into = _encoder.encode_into


def to_json(event: Event) -> bytes:
    """One event as a JSON object in the envelope of the field, without a newline."""
    return b'{"timestamp":%d,"source":"%b","pid":%d,"comm":%b,"data":%b}' % (
        event.timestamp,
        event.source.encode(),
        event.pid,
        _encode(event.comm),
        _encode(event),
    )


def append_json_line(event: Event, buffer: bytearray) -> None:
    """The same with a newline, appended to `buffer`: no copy of what may be megabytes."""
    buffer += b'{"timestamp":%d,"source":"%b","pid":%d,"comm":%b,"data":' % (
        event.timestamp,
        event.source.encode(),
        event.pid,
        _encode(event.comm),
    )
    _encode_into(event, buffer, -1)
    buffer += b"}\n"

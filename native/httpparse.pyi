"""Stream decoding: batches of captured records in, lists of events out. All parsing is C without the GIL."""

from collections.abc import Iterable
from typing import Any, TypedDict

from typing_extensions import Buffer

from agentsight.events import Event

class Account(TypedDict):
    """Bytes of all connections so far, both directions, TCP level. See ConnectionEvent for the words."""

    connections: int
    seen: int
    tls_handshake: int
    tls_opened: int
    tls_not_opened: int
    plain: int
    other: int
    skipped: int
    missing: int
    mirrored: int
    duplicate: int
    plaintext: int
    decoded: int
    reasons: dict[str, int]
    http: dict[str, int]
    keyring: dict[str, int]
    records: int
    unknown_records: int
    damaged: int
    lost_outputs: int
    lost_execs: int

class Decoder:
    """Decodes the record stream of one capture. Same records in, same events out, however they were cut into batches.

    What is wanted decides what is built: `raw` SslEvent per opened record; `http` HttpEvent per message, and then `raw` gives only
    bytes that no parser took; `sse_each` SseEvent as each arrives; `frames` SseFrames per finished SSE response; `handshakes`;
    `stdio`; `process` ProcessEvent; `connections` ConnectionEvent. `plain_http`: ports whose TCP connections are looked at for
    unencrypted HTTP (None: none; empty: any port). `raw_data` adds raw bytes to HttpEvent. `max_shown` cuts the data of raw
    events (0: never). `body_budget` bounds all buffered bodies together, in bytes.
    """

    def __init__(
        self,
        *,
        raw: bool = False,
        http: bool = True,
        sse_each: bool = False,
        frames: bool = True,
        handshakes: bool = False,
        stdio: bool = True,
        process: bool = True,
        connections: bool = True,
        plain_http: Iterable[int] | None = None,
        raw_data: bool = False,
        max_shown: int = 0,
        body_budget: int = 256 << 20,
    ) -> None: ...
    def feed(self, batch: Buffer) -> list[Event]: ...
    def flush(self) -> list[Event]:
        """The stream has ended: everything unfinished is given as partial. feed must not be called again."""
    def account(self) -> Account: ...
    def dark(self) -> list[dict[str, Any]]:
        """Processes with TLS bytes that stayed closed: pid, start_ticks, comm, exe, bytes, reason; largest first, bounded to 64."""
    def needs_process(self) -> list[int]:
        """Pids that opened TLS connections and were not asked about yet (live capture: look whether their stack has a probe)."""
    def needs_memory(self) -> list[int]:
        """Pids with TLS records that wait for a secret which no probe gave (live capture: search their memory for it)."""
    def skips(self) -> list[int]:
        """Socket cookies whose bytes nobody can use (neither TLS nor wanted HTTP): a live capture may stop copying them."""

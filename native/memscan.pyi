"""Finding TLS secrets in the memory of a running process, for connections that no probe has seen begin.

The C behind it is native/core/memscan.c, memaes.c and memread.c. Needs the right to ptrace the process (CAP_SYS_PTRACE); the
process is not stopped and nothing is paged in.
"""

from types import TracebackType
from typing import Literal, Self, TypedDict, final

from typing_extensions import Buffer

class SearchStats(TypedDict):
    """Bytes: `mapped` writable mappings, `present` of them, `swapped` left alone, `read` in all passes, `gone` while reading.
    `windows` looked random, `tests` keys derived; `schedules` different AES keys; found: `secrets` (TLS 1.3), `keys` (AES keys
    without a secret). `full`: bits for lists that overflowed. `cpu_seconds` by pass: schedules, pairs, ChaCha20, its proof."""

    mapped: int
    present: int
    swapped: int
    read: int
    gone: int
    windows: int
    tests: int
    schedules: int
    secrets: int
    keys: int
    full: int
    cpu_seconds: list[float]
    seconds: float

@final
class Stop:
    """Ends searches early: `set` may be called from any thread."""

    def set(self) -> None: ...

@final
class Secrets(Buffer):
    """Finished AS_K_SECRET records in locked memory that core dumps leave out; zeroed by `close`, at the latest with the object.

    Meant for Capture.insert alone. `count` records, `len` bytes. `close` raises BufferError while a view of it is open.
    """

    count: int
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None: ...

@final
class SearchResult:
    """What a search gave. `end` says why it ended: all was looked at, or one of the bounds was reached, or it was stopped."""

    pid: int
    records: Secrets
    stats: SearchStats
    end: Literal["done", "bytes", "time", "stopped"]

def search(
    pid: int,
    *,
    max_bytes: int = 1 << 30,
    max_seconds: float = 5.0,
    chacha: bool = True,
    keys: bool = True,
    uid: int = 0,
    stop: Stop | None = None,
) -> SearchResult:
    """Search the present writable memory of `pid` without the GIL, in the calling thread.

    max_bytes of present memory and max_seconds of CPU bound it; what was found by then is given. chacha: also secrets of
    ChaCha20 connections (about as much work again). keys: also AES keys whose secret was not found (TLS 1.2), which may be other
    keys of the process. uid: written into the records. OSError where the process is gone or must not be read.
    """

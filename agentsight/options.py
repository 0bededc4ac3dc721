"""What a run does: one frozen struct, filled by the command line or by the runners' keywords, read by capture and pipeline.

Also the short options of the field's single-source tools (``ssl -- -p 1 -h``), which commands and runners take alike.
"""

from __future__ import annotations

import getopt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from agentsight.errors import UsageError

FORMATS = ("auto", "json", "text")
STDIO_MAX_BYTES = 8192
MAX_LOG_MB = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything that a run can be asked. The defaults are those of ``trace``."""

    # sources
    ssl: bool = True
    process: bool = True
    stdio: bool = False

    # targets; none given means every process
    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    uid: int | None = None
    children: bool = True
    binary_path: str | None = None  # look for TLS in this file alone

    # ssl
    http: bool = True  # whole messages in place of raw events
    sse_merge: bool = True  # one event per finished stream
    llm: bool = True  # llm_call events
    raw_data: bool = False  # raw bytes inside HTTP events
    handshakes: bool = False
    max_bytes: int = 0  # shown per raw event; 0: all
    without_tls: tuple[str, ...] = ()  # TLS stacks whose secrets are not taken
    tls_via: str = "auto"  # where secrets come from: probes, memory, or both
    plain_http: tuple[int, ...] | None = None  # ports looked at for HTTP without TLS; empty: any; None: none
    ssl_uid: int | None = None

    # process
    min_duration_ms: int = 0
    mode: int = 1  # 0: process events of every process, 1: of the targets

    # stdio
    stdio_all_fds: bool = False
    stdio_max_bytes: int = STDIO_MAX_BYTES
    stdio_uid: int | None = None
    stdio_comms: tuple[str, ...] = ()

    # output
    log_file: Path | None = None
    rotate_logs: bool = False
    max_log_mb: int = MAX_LOG_MB
    quiet: bool = False
    capture: Path | None = None
    format: str = "auto"
    redact: bool = True

    # how
    io_hook: str = "auto"
    verbose: int = 0

    def __post_init__(self) -> None:
        if not (self.ssl or self.process or self.stdio):
            raise UsageError("nothing to watch: every source is switched off")
        if self.format not in FORMATS:
            raise UsageError(f"format {self.format!r} is not known: use one of {', '.join(FORMATS)}")
        if self.mode not in (0, 1):
            raise UsageError(f"mode {self.mode} is not known: use 0 (every process) or 1 (the targets)")
        for name in ("max_bytes", "min_duration_ms"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name.replace('_', '-')} cannot be negative")
        if self.stdio_max_bytes < 1 or self.max_log_mb < 1:
            raise UsageError("sizes must be at least 1")
        if any(pid < 1 for pid in self.pids):
            raise UsageError("a process id is a positive number")
        for name in self.comms + self.stdio_comms:
            if not name or "/" in name or len(name.encode()) > 63:
                raise UsageError(f"{name!r} is no program name: give the base name, at most 63 bytes (--binary-path takes paths)")

    @property
    def has_target(self) -> bool:
        """Whether the watched processes were limited in any way."""
        return bool(self.pids or self.comms or self.binary_path) or self.uid is not None

    @property
    def search_memory(self) -> bool:
        """Whether secrets may be looked for in memory: not those of a stack that was switched off."""
        return self.ssl and (self.tls_via == "memory" or (self.tls_via == "auto" and not self.without_tls))

    @property
    def consumed(self) -> bool:
        """Whether anything reads decoded events. If not, the capture is written straight from C."""
        return not (self.quiet and self.log_file is None and self.capture is not None)

    def decoder(self) -> dict[str, Any]:
        """Keywords of the native Decoder. Process events are always built: names of processes come from them."""
        http = self.ssl and self.http
        return {
            "raw": self.ssl,
            "http": http,
            "sse_each": http and not self.sse_merge,
            "frames": http and (self.sse_merge or self.llm),
            "handshakes": self.ssl and self.handshakes,
            "stdio": self.stdio,
            "process": True,
            "connections": self.ssl,
            "plain_http": self.plain_http if self.ssl else None,
            "raw_data": http and self.raw_data,
            "max_shown": self.max_bytes,
        }

    def with_changes(self, changes: dict[str, Any]) -> Options:
        """A copy with some fields changed; an unknown name is a UsageError, sequences may be any iterable or a single value."""
        known = {f.name for f in fields(self)}
        clean: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                raise UsageError(f"there is no option {name!r}")
            if name in ("pids", "comms", "stdio_comms"):
                value = _as_tuple(value)
            elif name in ("log_file", "capture") and value is not None:
                value = Path(value)
            clean[name] = value
        return replace(self, **clean)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, int)):
        return (value,)
    return tuple(value)


def split_names(values: Iterable[str]) -> tuple[str, ...]:
    """``("a,b", "c")`` as ``("a", "b", "c")``: names may be repeated or joined with commas."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


_SHORT = {"ssl": "p:u:c:hv", "process": "c:p:d:m:v", "stdio": "p:u:c:v"}


def parse_short(kind: str, args: Sequence[str]) -> dict[str, Any]:
    """Changes to Options that the short options behind ``--`` ask for. `kind` is ssl, process or stdio."""
    try:
        found, rest = getopt.getopt(list(args), _SHORT[kind])
    except getopt.GetoptError as e:
        raise UsageError(f"behind --: {e.msg} (known there: {', '.join('-' + c for c in _SHORT[kind] if c != ':')})") from None
    if rest:
        raise UsageError(f"behind --: {rest[0]!r} is no option")
    changes: dict[str, Any] = {}
    pids: list[int] = []
    comms: list[str] = []
    for option, text in found:
        match option:
            case "-p":
                pids.append(_number(option, text))
            case "-c":
                comms.extend(split_names([text]))
            case "-u":
                changes["uid"] = _number(option, text)
            case "-h":
                changes["handshakes"] = True
            case "-d":
                changes["min_duration_ms"] = _number(option, text)
            case "-m":
                changes["mode"] = _number(option, text)
            case _:
                changes["verbose"] = int(changes.get("verbose", 0)) + 1
    if pids:
        changes["pids"] = tuple(pids)
    if comms:
        changes["comms"] = tuple(comms)
    return changes


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"behind --: {option} takes a number, not {text!r}")
    return int(text)

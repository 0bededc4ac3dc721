"""Redaction, the last stage before every sink: no secret that is recognised leaves in any text of any event.

Names of headers, fields, variables and options tell some secrets, their shapes tell others (agentsight.analyzers.secrets). What
is no text (compressed, binary) cannot be looked through and is withheld: its length stays, its bytes go. An event without
anything to redact is given on as the same object; redacting twice changes nothing more.

A secret that is cut over two raw events of one channel: the rest of a header's value is redacted in the second one, and so is
a secret that is recognised only with what came before it on the same line. What the first event showed of it is shown.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from agentsight._native import redact as native
from agentsight.analyzers.base import Analyzer
from agentsight.analyzers.exchange import Key
from agentsight.analyzers.secrets import HEADER, is_secret, redact, spans
from agentsight.events import Event, HttpEvent, LlmCall, ProcessEvent, SslEvent, StdioEvent
from agentsight.providers.base import SentList

MAX_DEPTH = 200
MAX_CHANNELS = 4096
TAIL = 256  # characters of an unfinished line that are kept
HEAD = 4096  # and how much of what follows is looked at together with them
TOO_DEEP = "[WITHHELD:nested too deep]"
_kinds = native.kinds_within


class _Open:
    """How a channel's last raw event ended."""

    __slots__ = ("header", "offset", "tail")

    def __init__(self, offset: int, tail: str, header: bool) -> None:
        self.offset = offset  # where the next one begins if nothing is missing
        self.tail = tail  # the unfinished line
        self.header = header  # it is a header whose value is secret


class Redactor(Analyzer):
    """Replaces secrets by ``[REDACTED:kind]`` in every event."""

    def __init__(self) -> None:
        self._open: dict[tuple[object, ...], _Open] = {}
        self._harmless: dict[Key, None] = {}  # exchanges whose request body has nothing in it

    def feed_many(self, events: list[Event]) -> list[Event]:
        """See Analyzer."""
        out: list[Event] | None = None
        for n, e in enumerate(events):
            clean = self._one(e)
            if out is None:
                if clean is e:
                    continue
                out = events[:n]
            out.append(clean)
        return events if out is None else out

    def _one(self, e: Event) -> Event:
        if type(e) is SslEvent or type(e) is StdioEvent:
            e = self._raw(e)
        elif type(e) is HttpEvent:
            e = _withheld(e)
        if e.internal:  # never reaches a sink
            return e
        if type(e) is HttpEvent and e.body:
            return self._http(e, e.body)
        if type(e) is LlmCall and (e.conn, e.exchange_id) in self._harmless:  # its prompt is part of that very text
            del self._harmless[e.conn, e.exchange_id]
            kinds = _kinds(e, is_secret, False)
        else:
            kinds = _kinds(e, is_secret)
        if kinds:
            clean: Event = _clean(e, kinds, 0)
            return clean
        return e

    def _http(self, e: HttpEvent, body: str) -> HttpEvent:
        """Body and head apart: nearly every request has a credential in its head, few have one in their long body."""
        head = replace(e, body=None)
        kinds = _kinds(head, is_secret)
        clean: HttpEvent = _clean(head, kinds, 0) if kinds else e
        kinds = _kinds(body, is_secret)
        if kinds:
            return replace(clean, body=_clean(body, kinds, 0))
        if e.message_type == "request":
            self._harmless[e.conn, e.exchange_id] = None
            if len(self._harmless) > MAX_CHANNELS:
                del self._harmless[next(iter(self._harmless))]
        return e if clean is e else replace(clean, body=body)

    def _raw(self, e: SslEvent | StdioEvent) -> SslEvent | StdioEvent:
        if e.data_base64 is not None:
            e = replace(e, data=None, data_base64=None, withheld=True)
        key: tuple[object, ...] = (e.conn, e.function) if type(e) is SslEvent else (e.pid, e.fd_target, e.direction)  # type: ignore[union-attr]
        before = self._open.pop(key, None) if self._open else None
        data = e.data
        if not data or (before is not None and before.offset != e.offset):
            before = None
        if not data:
            return e
        clean = _continued(data, before) if before is not None else data
        if not e.truncated and data[-1] != "\n":
            self._remember(key, e.offset + e.len, data, before)
        return e if clean is data else replace(e, data=clean)

    def _remember(self, key: tuple[object, ...], end: int, data: str, before: _Open | None) -> None:
        line = data[data.rfind("\n", max(0, len(data) - HEAD)) + 1 :]
        header = False
        if len(line) == len(data) and before is not None:  # still the same line
            line = before.tail + line
            header = before.header
        if len(line) <= HEAD:
            m = None if header else HEADER.match(line)
            header = header or (m is not None and is_secret(m["name"]))
        self._open[key] = _Open(end, line[-TAIL:], header)
        if len(self._open) > MAX_CHANNELS:
            del self._open[next(iter(self._open))]


def _continued(data: str, before: _Open) -> str:
    """What of `data` belongs to a secret that began before it is replaced."""
    if before.header:
        ends = [i for i in (data.find("\r"), data.find("\n")) if i >= 0]
        end = min(ends, default=len(data))
        return "[REDACTED:header]" + data[end:] if end else data
    n = len(before.tail)
    for joined in (before.tail + data[:HEAD], before.tail + data):
        kinds = native.kinds(joined)
        found = spans(joined, kinds) if kinds else []
        # of what begins on a later line the look at `data` alone will take care
        over = sorted(s for s in found if s[1] > n and "\n" not in joined[n : s[0]])
        if not over:
            return data
        if over[-1][1] < len(joined) or len(data) <= HEAD:
            break
    out: list[str] = []
    done = n
    for begin, end, kind in over:
        if end > done:
            out += (joined[done : max(begin, done)], f"[REDACTED:{kind}]")
            done = end
    return "".join(out) + data[done - n :]


def _withheld(e: HttpEvent) -> HttpEvent:
    """Without the bytes that are no text."""
    if e.body_base64 is not None:
        e = replace(e, body_base64=None, flags=[*e.flags, "body-withheld"])
    if e.raw_data is not None and (e.decompressed or e.body is None) and e.has_body and e.original_content_encoding:
        e = replace(e, raw_data=None, flags=[*e.flags, "raw-withheld"])
    return e


def _clean(x: Any, kinds: int, depth: int) -> Any:
    """A copy of a value without secrets; the same object where there are none."""
    if isinstance(x, str):
        kinds &= native.kinds(x)  # most texts of an event with a secret are not the one that has it
        return redact(x, kinds) if kinds else x
    if x is None or isinstance(x, (int, float)):
        return x
    if depth > MAX_DEPTH:
        return TOO_DEEP
    if isinstance(x, dict):
        return _clean_dict(x, kinds, depth + 1)
    if isinstance(x, SentList):
        sent = [_clean(v, kinds, depth + 1) for v in x.encoded()]
        return SentList(sent) if any(a is not b for a, b in zip(sent, x.encoded(), strict=True)) else x
    if isinstance(x, (list, tuple)):
        items = [_clean(v, kinds, depth + 1) for v in x]
        if all(a is b for a, b in zip(items, x, strict=True)):
            return x
        return items if isinstance(x, list) else tuple(items)
    if isinstance(x, msgspec.Raw):
        return _clean_raw(x, kinds, depth)
    if isinstance(x, msgspec.Struct):
        changes = {}
        for name in x.__struct_fields__:
            old = getattr(x, name)
            new = _clean(old, kinds, depth + 1)
            if new is not old:
                changes[name] = new
        if isinstance(x, ProcessEvent):
            args = _clean_args(changes.get("args", x.args))
            if args is not x.args:
                changes["args"] = args
        return replace(x, **changes) if changes else x
    return x


def _clean_dict(x: dict[Any, Any], kinds: int, depth: int) -> dict[Any, Any]:
    out = {}
    changed = False
    for key, old in x.items():
        if isinstance(key, str) and isinstance(old, str) and old and is_secret(key) and not old.startswith("[REDACTED"):
            found = redact(old, native.kinds(old))
            new: Any = found if found.startswith("[REDACTED") and found.endswith("]") else "[REDACTED:credential]"
        else:
            new = _clean(old, kinds, depth)
        clean_key = _clean(key, kinds, depth)
        changed = changed or new is not old or clean_key is not key
        out[clean_key] = new
    return out if changed else x


def _clean_raw(x: msgspec.Raw, kinds: int, depth: int) -> Any:
    """Encoded JSON: redacted as the text it is, which leaves it JSON; if ever it does not, the value inside is redacted."""
    text = bytes(x).decode("utf-8", "replace")
    clean = redact(text, kinds)
    if clean is text:
        return x
    raw = clean.encode()
    try:
        msgspec.json.decode(raw, type=msgspec.Raw)
    except msgspec.DecodeError:
        return _clean(msgspec.json.decode(x), native.ALL, depth)
    return msgspec.Raw(raw)


def _clean_args(args: list[str]) -> list[str]:
    """Arguments behind an option that takes a secret: --token VALUE."""
    out = args
    for i in range(1, len(args)):
        option, value = args[i - 1], args[i]
        if option.startswith("-") and is_secret(option) and "=" not in option and value and value[0] not in "-[":
            if out is args:
                out = list(args)
            out[i] = "[REDACTED:credential]"
    return out

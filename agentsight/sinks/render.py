"""Events as text for people: one line each (a model call a few), and the summary's lines.

What a captured program wrote may contain anything: control characters never reach the terminal, they are shown as dots.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agentsight.events import (
    ConnectionEvent,
    DiagnosticEvent,
    Event,
    HttpEvent,
    LlmCall,
    ProcessEvent,
    SseEvent,
    SseStream,
    SslEvent,
    StdioEvent,
    SummaryEvent,
)

WIDTH = 160  # characters of captured text shown on a line
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "·")
_BLOCK_CONTROLS = {c: t for c, t in _CONTROLS.items() if c not in (0x09, 0x0A)}


def one_line(text: str, width: int = WIDTH) -> str:
    """`text` on one line, without control characters, cut at `width` with a mark."""
    cut = text[: width + 1].replace("\r\n", "⏎").replace("\n", "⏎").translate(_CONTROLS)
    return cut if len(cut) <= width else cut[: width - 1] + "…"


def block(text: str, indent: str, max_lines: int = 40) -> list[str]:
    """`text` as indented lines, without control characters, at most `max_lines`."""
    rows = text.translate(_BLOCK_CONTROLS).split("\n")
    shown = [indent + row for row in rows[:max_lines]]
    if len(rows) > max_lines:
        shown.append(f"{indent}… {len(rows) - max_lines} more lines")
    return shown


def size(n: float) -> str:
    """A number of bytes for people: 512 B, 1.2 KB, 3.4 MB."""
    if n < 1000:
        return f"{int(n)} B"
    for unit in ("KB", "MB", "GB"):
        n /= 1000
        if n < 999.95:
            return f"{n:.1f} {unit}"
    return f"{n / 1000:.1f} TB"


def milliseconds(ms: float | None) -> str:
    """A duration for people."""
    if ms is None:
        return "?"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def compact(value: Any) -> str:
    """A value as JSON text, strings as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def prompt_text(message: Any) -> tuple[str, str]:
    """Role and text of one message of a prompt, whatever the provider's way to write it."""
    if not isinstance(message, dict):
        return "?", compact(message)
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part_text(p) for p in content)
    elif content is None:
        content = ""
    calls = message.get("tool_calls")
    text = compact(content)
    if calls:
        text += f"\n[tool calls] {compact(calls)}"
    return str(message.get("role", "?")), text


def _part_text(part: Any) -> str:
    if not isinstance(part, dict):
        return compact(part)
    for key in ("text", "thinking", "content"):
        if isinstance(part.get(key), str):
            prefix = "" if part.get("type") in ("text", "input_text", "output_text", None) else f"[{part.get('type')}] "
            return prefix + str(part[key])
    return f"[{part.get('type', 'part')}] {compact({k: v for k, v in part.items() if k != 'type'})}"


def tokens(call: LlmCall) -> str:
    """Token usage of a call in words, empty where none was told."""
    u = call.usage
    if u is None:
        return ""
    parts = []
    if u.input_tokens is not None:
        cached = f" ({u.cache_read_tokens} cached)" if u.cache_read_tokens else ""
        parts.append(f"{u.input_tokens} in{cached}")
    if u.output_tokens is not None:
        thought = f" ({u.reasoning_tokens} reasoning)" if u.reasoning_tokens else ""
        parts.append(f"{u.output_tokens} out{thought}")
    return ", ".join(parts)


def _ssl(e: SslEvent) -> str:
    if e.is_handshake:
        words = [e.version, e.cipher, e.sni and f"sni={e.sni}", e.alpn and f"alpn={e.alpn}"]
        return f"HANDSHAKE {milliseconds(e.latency_ms)} {' '.join(w for w in words if w)}"
    return f"{e.function} {e.len} B  {_data(e.data, e.len)}"


def _data(data: str | None, n: int) -> str:
    return one_line(data) if data is not None else f"<{n} bytes, not text>"


def _http(e: HttpEvent) -> str:
    arrow = "→" if e.message_type == "request" else "←"
    about = f"  ({e.method} {one_line(e.path or '', 80)})" if e.message_type == "response" and e.method else ""
    host = f"  {e.host}" if e.host else ""
    sse = f"  {e.sse_count} SSE events" if e.is_sse else ""
    state = "" if e.complete else f"  INCOMPLETE {','.join(e.flags)}"
    return f"{arrow} {one_line(e.first_line)}{about}{host}  {size(e.body_size)}{sse}{state}"


def _stream(e: SseStream) -> str:
    return f"{e.event_count} events in {milliseconds(e.duration_ns / 1e6)}  {one_line(e.text_content or e.json_content)}"


def _process(e: ProcessEvent) -> str:
    if e.event == "EXEC":
        words = e.full_command or " ".join(e.args) or e.filename or ""
        return f"{'RUNNING' if e.snapshot else 'EXEC'} {one_line(words)}"
    if e.event == "FORK":
        return f"FORK {e.child_pid}"
    end = f"signal {e.signal}" if e.signal else f"code {e.exit_code}"
    return f"EXIT {end} after {milliseconds(e.duration_ms)}"


def _stdio(e: StdioEvent) -> str:
    cut = " (cut)" if e.truncated else ""
    return f"{e.direction} {e.fd_role} fd {e.fd} {e.fd_target} {e.len} B{cut}  {_data(e.data, e.len)}"


def _connection(e: ConnectionEvent) -> str:
    closed = f", {size(e.tls_not_opened)} not opened ({', '.join(e.reasons)})" if e.tls_not_opened else ""
    missing = f", {size(e.missing)} missing" if e.missing else ""
    what = e.version or e.protocol
    return f"{e.local} ↔ {e.remote} {what} {e.sni or ''} {size(e.seen)} seen{closed}{missing}"


def _llm(e: LlmCall) -> str:
    lines = [call_line(e)]
    if e.messages:
        role, text = prompt_text(e.messages[-1])
        lines.append(f"    {role}: {one_line(text)}")
    if e.text:
        lines.append(f"    answer: {one_line(e.text)}")
    for tool in e.tool_calls:
        arguments = tool.arguments if tool.arguments_text is None else tool.arguments_text
        lines.append(f"    tool {one_line(tool.name or '?', 60)}: {one_line(compact(arguments))}")
    if e.error:
        lines.append(f"    error: {one_line(compact(e.error))}")
    return "\n".join(lines)


def call_line(e: LlmCall) -> str:
    """One line about a model call: who, what, how long, how much."""
    model = e.response_model or e.model or "?"
    first = f" (first token {milliseconds(e.ttft_ms)})" if e.ttft_ms is not None else ""
    words = [
        f"{e.provider} {one_line(model, 60)}",
        f"{e.status_code if e.status_code is not None else 'no answer'}{' streamed' if e.stream else ''}",
        f"{milliseconds(e.duration_ms)}{first}",
        tokens(e),
        e.stop_reason and f"stop: {e.stop_reason}",
        "" if e.complete else f"INCOMPLETE {', '.join(e.incomplete)}",
    ]
    return " · ".join(w for w in words if w)


_LINES: dict[type[Event], tuple[str, Callable[[Any], str]]] = {
    SslEvent: ("ssl", _ssl),
    HttpEvent: ("http", _http),
    SseEvent: ("sse", lambda e: f"#{e.index} {one_line(e.event, 40)}  {one_line(e.data)}"),
    SseStream: ("sse", _stream),
    ProcessEvent: ("process", _process),
    StdioEvent: ("stdio", _stdio),
    ConnectionEvent: ("conn", _connection),
    LlmCall: ("llm", _llm),
    DiagnosticEvent: ("!", lambda e: f"{e.kind}: {one_line(e.message, 400)}"),
}


def text_line(e: Event) -> str:
    """One event as text; empty for what a reader of text does not need (schema line, summary)."""
    known = _LINES.get(type(e))
    if known is None:
        return ""
    label, render = known
    clock = time.strftime("%H:%M:%S", time.localtime(e.timestamp / 1000))
    return f"{clock}.{e.timestamp % 1000:03d} {label:<8}{e.pid:>8} {one_line(e.comm, 16):<16} {render(e)}"


def text(events: Iterable[Event]) -> bytes:
    """Events as UTF-8 text, a newline behind each."""
    return "".join(f"{line}\n" for line in map(text_line, events) if line).encode("utf-8", "replace")


def summary_lines(s: SummaryEvent) -> list[str]:
    """The summary for stderr: what was seen, what could not be opened and whose it was, what was lost."""
    counted = ", ".join(f"{n} {name}" for name, n in s.counts.items()) or "no events"
    lines = [f"agentsight: {s.duration_s:.1f} s: {counted}"]
    b = s.bytes
    tls = b.get("tls_opened", 0) + b.get("tls_not_opened", 0)
    if b.get("seen"):
        parts = [f"{size(b['seen'])} on {b.get('connections', 0)} TCP connections"]
        if tls:
            parts.append(f"TLS opened {size(b.get('tls_opened', 0))} of {size(tls)}")
        for key, words in (
            ("tls_not_opened", "NOT opened"),
            ("not_decoded", "opened but not decoded"),
            ("skipped", "skipped"),
            ("missing", "MISSING"),
        ):
            if b.get(key):
                parts.append(f"{size(b[key])} {words}")
        lines.append("agentsight: " + "; ".join(parts))
    for dark in s.dark:
        who = f"{dark.get('pid')} {one_line(str(dark.get('comm', '')), 16)}"
        lines.append(f"agentsight: not opened: {size(float(dark.get('bytes', 0)))} of process {who}: {dark.get('reason')}")
    if s.drops:
        lines.append("agentsight: records lost: " + ", ".join(f"{n} {k}" for k, n in s.drops.items()))
    if tls and s.complete:
        lines.append("agentsight: complete: every TLS byte seen was opened and decoded, nothing was lost")
    return lines


def indent(lines: Sequence[str], by: str = "  ") -> list[str]:
    """The lines, each moved to the right."""
    return [by + line for line in lines]

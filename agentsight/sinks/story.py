"""The readable record of a run: process tree, model calls with request, answer and tokens. A sink that remembers, within bounds.

`text` is what ``record`` prints when the program has ended. The bounds are on what is remembered, and what was left out is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentsight.events import Event, LlmCall, ProcessEvent, SummaryEvent
from agentsight.sinks.render import block, call_line, compact, milliseconds, one_line, prompt_text

MAX_PROCESSES = 2000
MAX_TEXT = 20_000  # characters kept of each prompt message and answer
SHOWN_PROCESSES = 60
SHOWN_CALLS = 20
SHOWN_MESSAGES = 6


@dataclass(slots=True)
class _Process:
    pid: int
    ppid: int
    command: str
    begun_ns: int
    snapshot: bool
    end: str = ""
    children: list[_Process] = field(default_factory=list)


class Story:
    """Collects what a reader of the record wants to see."""

    def __init__(self) -> None:
        self.closed = False
        self.summary: SummaryEvent | None = None
        self._processes: dict[int, _Process] = {}
        self._all: list[_Process] = []
        self._calls: list[list[str]] = []  # rendered at once: a prompt may be megabytes
        self._more_processes = 0
        self._more_calls = 0

    def write(self, events: Sequence[Event]) -> None:
        """Remember what matters."""
        for e in events:
            if type(e) is ProcessEvent:
                self._process(e)
            elif type(e) is LlmCall:
                if len(self._calls) < SHOWN_CALLS:
                    self._calls.append(_call(len(self._calls) + 1, e))
                else:
                    self._more_calls += 1
            elif type(e) is SummaryEvent:
                self.summary = e

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _process(self, e: ProcessEvent) -> None:
        if e.event == "FORK" and e.child_pid:
            self._add(_Process(e.child_pid, e.pid, f"({one_line(e.comm, 16)})", e.timestamp_ns, False))
        elif e.event == "EXEC":
            command = one_line(e.full_command or " ".join(e.args) or e.filename or e.comm, 200)
            known = self._processes.get(e.pid)
            if known is None:
                self._add(_Process(e.pid, e.ppid, command, e.timestamp_ns, e.snapshot))
            else:
                known.command = command
        elif e.event == "EXIT":
            known = self._processes.pop(e.pid, None)
            if known is not None:
                how = f"signal {e.signal}" if e.signal else f"exit {e.exit_code}"
                # a command that we held back before its exec is older than what it did
                lived = e.duration_ms if known.snapshot else (e.timestamp_ns - known.begun_ns) / 1e6
                known.end = f"{how}, {milliseconds(lived)}"

    def _add(self, process: _Process) -> None:
        if len(self._all) >= MAX_PROCESSES:
            self._more_processes += 1
            return
        parent = self._processes.get(process.ppid)
        if parent is not None:
            parent.children.append(process)
        self._processes[process.pid] = process
        self._all.append(process)

    def text(self) -> list[str]:
        """The record as lines."""
        lines = ["", "Processes"]
        lines += self._tree() or ["  none"]
        n = len(self._calls) + self._more_calls
        lines += ["", f"Model calls: {n}"]
        for call in self._calls:
            lines += call
        if self._more_calls:
            lines.append(f"  … {self._more_calls} more calls (all are in a --log-file)")
        lines.append("")
        return lines

    def _tree(self) -> list[str]:
        held = {id(c) for p in self._all for c in p.children}
        rows: list[str] = []
        # a tree as deep as a program likes to make it: walked with a list, not with recursion
        todo = [(p, "  ", "  ") for p in reversed(self._all) if id(p) not in held]
        while todo and len(rows) < SHOWN_PROCESSES:
            p, lead, below = todo.pop()
            state = p.end or ("was running before" if p.snapshot else "still running")
            rows.append(f"{lead}{p.pid} {p.command}  [{state}]")
            for i, child in enumerate(reversed(p.children)):
                last = i == 0
                todo.append((child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))
        hidden = len(self._all) + self._more_processes - len(rows)
        if hidden:
            rows.append(f"  … {hidden} more processes")
        return rows


def _call(number: int, call: LlmCall) -> list[str]:
    who = f"{call.client.comm} ({call.client.pid})" if call.client else f"{call.comm} ({call.pid})"
    lines = ["", f"  {number}. {call_line(call)}", f"     {who} → {one_line(call.host or '?', 80)}{one_line(call.path, 80)}"]
    if call.system:
        _, text = prompt_text({"content": call.system})
        lines.append(f"     system: {one_line(text, 200)}")
    new = _new_messages(call.messages)
    if len(new) < len(call.messages):
        lines.append(f"     … {len(call.messages) - len(new)} earlier messages")
    for message in new:
        role, text = prompt_text(message)
        lines += _labelled(role, text, 12)
    if call.text:
        lines += _labelled("answer", call.text, 40)
    for tool in call.tool_calls:
        arguments = tool.arguments if tool.arguments_text is None else tool.arguments_text
        lines.append(f"     tool call {one_line(tool.name or '?', 60)}: {one_line(compact(arguments), 400)}")
    if call.error:
        lines.append(f"     error: {one_line(compact(call.error), 400)}")
    return lines


def _new_messages(messages: list[Any]) -> list[Any]:
    """What the prompt adds to the call before: what stands behind the model's last answer, at most a few."""
    answers = [i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") in ("assistant", "model")]
    return messages[answers[-1] + 1 if answers and answers[-1] + 1 < len(messages) else 0 :][-SHOWN_MESSAGES:]


def _labelled(label: str, text: str, max_lines: int) -> list[str]:
    rows = block(text[:MAX_TEXT].strip("\n"), "       ", max_lines)
    if len(rows) == 1:
        return [f"     {one_line(label, 20)}: {rows[0].strip()}"]
    return [f"     {one_line(label, 20)}:", *rows]

"""The result of a check: one line, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"


@dataclass(frozen=True, slots=True)
class Line:
    """`status`: ok; warn (something is poorer); fail (nothing works until `fix` is done, the exit status says so); skip (not
    checked, `text` says why). `fix`: the exact command or setting."""

    group: str
    name: str
    status: str
    text: str
    fix: str = ""


def passed(lines: list[Line]) -> bool:
    """Whether everything required is there."""
    return all(line.status != FAIL for line in lines)

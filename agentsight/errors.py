"""Every error that agentsight raises on purpose. The text is one line that says what is wrong and what to do."""

from __future__ import annotations


class AgentsightError(Exception):
    """Base of all errors meant for the user; the command line prints it as ``Error: ...`` and exits with `exit_code`."""

    exit_code = 1


class UsageError(AgentsightError):
    """An option or argument that cannot be: exit status 2."""

    exit_code = 2


class CaptureError(AgentsightError):
    """The kernel side cannot be loaded, attached or read (no BTF, no rights, a program refused)."""


class TargetError(AgentsightError):
    """What was to be watched is not there: no such process, no such program."""


class CaptureFileError(AgentsightError):
    """A file that is no capture file, or of a version that this program does not read."""

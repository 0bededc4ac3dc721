"""The analyzers: one file each. Each can be used alone, as `runner.add_analyzer(LlmCalls())`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentsight.analyzers.base import Analyzer
from agentsight.analyzers.http import HTTPParser
from agentsight.analyzers.llm_calls import LlmCalls
from agentsight.analyzers.sse_merge import SSEProcessor

if TYPE_CHECKING:
    from agentsight.analyzers.file_logger import FileLogger
    from agentsight.analyzers.process_duration import LongLived
    from agentsight.analyzers.redact import Redactor

__all__ = ["Analyzer", "FileLogger", "HTTPParser", "LlmCalls", "LongLived", "Redactor", "SSEProcessor"]

_LATER = {  # what reaches further: loaded when it is asked for
    "FileLogger": "agentsight.analyzers.file_logger",
    "LongLived": "agentsight.analyzers.process_duration",
    "Redactor": "agentsight.analyzers.redact",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)

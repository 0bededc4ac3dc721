"""agentsight shows from outside what an AI agent does on Linux: model calls, processes, output.

The public names are imported on first use, so that `import agentsight` costs nothing and needs no compiled part.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentsight.analyzers.http import HTTPParser
    from agentsight.analyzers.sse_merge import SSEProcessor
    from agentsight.errors import AgentsightError
    from agentsight.runners import AgentRunner, ProcessRunner, ReplayRunner, SslRunner, StdioRunner
    from agentsight.sinks.jsonl import FileLogger

    __version__: str

_PUBLIC = {  # name: module that has it
    "AgentRunner": "agentsight.runners",
    "AgentsightError": "agentsight.errors",
    "FileLogger": "agentsight.sinks.jsonl",
    "HTTPParser": "agentsight.analyzers.http",
    "ProcessRunner": "agentsight.runners",
    "ReplayRunner": "agentsight.runners",
    "SSEProcessor": "agentsight.analyzers.sse_merge",
    "SslRunner": "agentsight.runners",
    "StdioRunner": "agentsight.runners",
}

__all__ = [
    "AgentRunner",
    "AgentsightError",
    "FileLogger",
    "HTTPParser",
    "ProcessRunner",
    "ReplayRunner",
    "SSEProcessor",
    "SslRunner",
    "StdioRunner",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("agentsight")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

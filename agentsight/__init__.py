"""agentsight shows from outside what an AI agent does on Linux: model calls, processes, output.

The public names are imported on first use, so that `import agentsight` costs nothing and needs no compiled part.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentsight.errors import AgentsightError
    from agentsight.runners import AgentRunner, ProcessRunner, ReplayRunner, SslRunner, StdioRunner

try:
    __version__ = version("agentsight")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_PUBLIC = {  # name: module that has it
    "AgentRunner": "agentsight.runners",
    "AgentsightError": "agentsight.errors",
    "ProcessRunner": "agentsight.runners",
    "ReplayRunner": "agentsight.runners",
    "SslRunner": "agentsight.runners",
    "StdioRunner": "agentsight.runners",
}

__all__ = ["AgentRunner", "AgentsightError", "ProcessRunner", "ReplayRunner", "SslRunner", "StdioRunner", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

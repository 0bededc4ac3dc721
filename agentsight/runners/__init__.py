"""The public streaming API: capture or replay from Python, event by event.

    from agentsight import SslRunner
    for event in SslRunner(comms=["python3"], http=True, sse_merge=True):
        print(event)

Every runner is an iterator and an async iterator of events (redacted unless ``redact=False``), and takes analyzers of one's own.
"""

from agentsight.runners.base import ProcessRunner, ReplayRunner, Runner, SslRunner, StdioRunner
from agentsight.runners.combined import AgentRunner

__all__ = ["AgentRunner", "ProcessRunner", "ReplayRunner", "Runner", "SslRunner", "StdioRunner"]

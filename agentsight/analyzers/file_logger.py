"""The log file as an analyzer: see agentsight.sinks.jsonl, which it is."""

from __future__ import annotations

from agentsight.sinks.jsonl import FileLogger

__all__ = ["FileLogger"]

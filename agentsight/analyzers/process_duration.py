"""Only processes that live long enough: their EXEC waits until they did, by the time of events. See agentsight.stages."""

from __future__ import annotations

from agentsight.stages import LongLived

__all__ = ["LongLived"]

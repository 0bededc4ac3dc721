"""The wire formats that become `llm_call` events: one file each, and one line in PROVIDERS."""

from __future__ import annotations

from typing import Any

import msgspec

from agentsight.events import SseFrames
from agentsight.providers.anthropic import Anthropic
from agentsight.providers.base import Answer, Prompt, Provider, parse, payloads
from agentsight.providers.openai_chat import OpenAIChat

__all__ = ["PROVIDERS", "Answer", "Prompt", "Provider", "of_body", "of_path", "of_stream"]

PROVIDERS: tuple[Provider, ...] = (Anthropic(), OpenAIChat())


def of_path(path: str) -> Provider | None:
    """The format spoken at a request target, told by the end of its path; the query and any prefix do not count."""
    plain = path.partition("?")[0].rstrip("/")
    for provider in PROVIDERS:
        if plain.endswith(provider.tails):
            return provider
    return None


def of_stream(frames: SseFrames) -> Provider | None:
    """The format of a stream whose request is not known, told by its event names and its first payload."""
    try:
        names = frozenset(msgspec.json.decode(frames.names, type=list[str]))
    except msgspec.DecodeError:
        names = frozenset()
    found = payloads(frames)
    return _of(names, parse(found[0]) if found else None)


def of_body(body: str) -> Provider | None:
    """The format of a plain answer whose request is not known."""
    return _of(frozenset(), parse(body))


def _of(names: frozenset[str], first: Any) -> Provider | None:
    first = first if isinstance(first, dict) else {}
    for provider in PROVIDERS:
        if provider.knows(names, first):
            return provider
    return None

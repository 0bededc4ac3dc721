"""The TLS stacks whose secrets we can take: one file each, one line in `STACKS`.

Third parties add theirs through the entry point group ``agentsight.tls`` (a `TlsStack` each), loaded only when named.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentsight.errors import UsageError
from agentsight.tls.boringssl import BORINGSSL
from agentsight.tls.gnutls import GNUTLS
from agentsight.tls.go import GO
from agentsight.tls.openssl import OPENSSL
from agentsight.tls.rustls import RUSTLS
from agentsight.tls.stack import Arguments, KeylogFunction, Reg, TlsStack

__all__ = ["STACKS", "Arguments", "KeylogFunction", "Reg", "TlsStack", "name_of", "select"]

STACKS: tuple[TlsStack, ...] = (OPENSSL, BORINGSSL, GNUTLS, GO, RUSTLS)
GROUP = "agentsight.tls"


def select(*, without: Iterable[str] = (), extra: Iterable[str] = ()) -> tuple[TlsStack, ...]:
    """The built-in stacks without some, and with named ones of other packages.

    UsageError for a name that is not there, and for an extra stack whose name or id is taken.
    """
    off = set(without)
    unknown = off - {stack.name for stack in STACKS}
    if unknown:
        raise UsageError(f"there is no TLS stack {min(unknown)!r} (known: {', '.join(stack.name for stack in STACKS)})")
    chosen = list(STACKS)
    for name in extra:
        stack = _load(name)
        if any(stack.id == other.id or stack.name == other.name for other in chosen):
            raise UsageError(f"TLS stack {name!r}: its name or its id {stack.id} is taken")
        chosen.append(stack)
    return tuple(stack for stack in chosen if stack.name not in off)


def _load(name: str) -> TlsStack:
    from importlib.metadata import entry_points  # slow to import, rarely wanted

    for point in entry_points(group=GROUP, name=name):
        stack = point.load()
        if not isinstance(stack, TlsStack):
            raise UsageError(f"TLS stack {name!r}: {point.value} is no TlsStack")
        return stack
    raise UsageError(f"there is no TLS stack {name!r} in the entry points {GROUP}")


def name_of(stack_id: int) -> str:
    """The name of a built-in stack by its id in a secret record; ``tls-ID`` for one that is not known."""
    for stack in STACKS:
        if stack.id == stack_id:
            return stack.name
    return f"tls-{stack_id}"

"""Which texts and events may hold a secret: a fast look before the regular expressions of agentsight.analyzers.secrets.

The answer is a set of bits, one per rule in their order. A bit that is not set is certain; one that is set may be wrong.
"""

from collections.abc import Callable
from typing import Any

KINDS: int  # number of rules
NAMED: int  # the bit of the last one: a name like api_key with a value
ALL: int  # every bit

def kinds(text: str | bytes) -> int:
    """Bits of the rules that may match in `text`."""

def scan(text: str | bytes) -> bool:
    """Whether any rule may match."""

def kinds_within(x: Any, secret: Callable[[str], bool], sent: bool = True) -> int:
    """Bits for everything inside a value: text, lists, dicts, structs, encoded JSON.

    Where a dict has a text under a key for which `secret` is true, the bit NAMED is set. `secret` must always say the same for
    a key: what it said is remembered. Without `sent`, lists of encoded JSON (subclasses of list) are passed over.
    """

def names(text: bytes) -> list[int] | None:
    """Where names with values are in `text`, ascending; None where there are more than 1024."""

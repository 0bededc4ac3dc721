"""What a secret looks like: one rule per kind, in the order of the bits of agentsight._native.redact.

A rule is a regular expression over text that may be anything: a header block, JSON, JSON inside a JSON string (a quote is then
written with backslashes, a line break as the two characters \\n), a command line. `redact` replaces what is found by
``[REDACTED:kind]``; what was replaced is not found again. No expression looks back or ahead without a bound, none tries a
stretch of text more than a fixed number of times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from agentsight._native import redact as native

_START = (
    r"(?:(?<![A-Za-z0-9_-]{0})|(?<=\\[nrtbf]{0})|(?<=\\u[0-9a-fA-F]{{4}}{0})|(?<=[0-9\[;]m{0}))"  # also behind \n and colours
)


Span = tuple[int, int, str]  # from, to, kind
Pick = Callable[[re.Match[str]], Span | None]


def _all(kind: str) -> Pick:
    """The whole match is the secret."""
    return lambda m: (*m.span(), kind)


def _value(kind: str) -> Pick:
    """The group `v` is."""
    return lambda m: (*m.span("v"), kind)


_SECRET = re.compile(
    r"(?:authorization|cookie|token|secret|password|passwd|passphrase|pwd|credentials?"
    r"|(?:api|access|secret|private|auth|subscription|signing|encryption|client|account|storage|master|functions|service)[-_]?key)$"
)
_NO_SECRET = re.compile(r"(?:page|next|continuation|sync|eos|bos|pad|unk|sep|cls|mask|stop|special|cancellation|per)[-_]?token$")
_QUERY = frozenset(("key", "sig", "signature", "auth"))


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a header, field, variable or option of this name holds a secret."""
    low = name.lower()
    return _SECRET.search(low) is not None and _NO_SECRET.search(low) is None


def _named(kind: str) -> Pick:
    """The group `v` is, where the group `name` is a secret's name."""
    return lambda m: (*m.span("v"), kind) if is_secret(m["name"]) else None


def _query(m: re.Match[str]) -> Span | None:
    return (*m.span("v"), "credential") if m["name"].lower() in _QUERY or is_secret(m["name"]) else None


_NEW = r"(?!\[REDACTED)"
_FIXED = r"(?![$<{%*])" + _NEW  # no variable, no placeholder
_NAME = r"(?P<name>[A-Za-z][A-Za-z0-9_-]{1,63})"
_ALONE = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))"
_EDGE = r"(?<![A-Za-z0-9_-])"
Rule = tuple[re.Pattern[str], Pick]

# a line of a header block, or of a file that looks like one; an argument such as -H "Name: value"
HEADER = re.compile(
    r"(?:^|[\"'`]|\\[nrt]|-H ?|--header[ =])" + _NAME + r"[ \t]{0,8}:[ \t]{0,8}" + _NEW + r"(?P<v>[^\s\"'\\][^\r\n\"'\\]*)",
    re.M | re.A,
)
_PEM = (
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?:(?!-----)(?:[A-Za-z0-9+/= \t\r\n:,.-]|\\[nrt/\\]))*"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----)?"
)
_NAMED: tuple[Rule, ...] = (
    (HEADER, _named("header")),
    # JSON: the value ends at the next quote of its own level
    (
        re.compile(r'(?<!\\)"' + _NAME + r'"\s{0,8}:\s{0,8}"' + _NEW + r'(?P<v>(?:[^"\\]|\\.)+)', re.A | re.S),
        _named("credential"),
    ),
    # and inside a JSON string: quotes of its level have as many backslashes as the first, those of deeper ones have more
    (
        re.compile(
            r'(?P<b>\\{1,15})"'
            + _NAME
            + r'(?P=b)"\s{0,8}:\s{0,8}(?P=b)"'
            + _NEW
            + r'(?P<v>(?:[^"\\]|(?P=b)\\{1,64}"|\\{1,64}[^"\\])+)',
            re.A,
        ),
        _named("credential"),
    ),
    # source code and configuration: a name and a quoted word
    (
        re.compile(
            _EDGE
            + _NAME
            + r"\\{0,8}[\"']?\s{0,4}(?::|=>?)\s{0,4}\\{0,8}[\"']"
            + _FIXED
            + r"(?P<v>[^\"'\\\s]{8,})(?=\\{0,8}[\"']|\Z)",
            re.A,
        ),
        _named("credential"),
    ),
    # the environment
    (
        re.compile(
            _EDGE + r"(?P<name>(?:[nrt]|u[0-9a-fA-F]{4})?[A-Z][A-Z0-9_]{1,63})=" + _FIXED + r"(?P<v>[^\s\"'\\;&|<>()]{6,})", re.A
        ),
        _named("credential"),
    ),
    # query and form parameters
    (re.compile(r"(?:^|[?&;]|%26|\\u0026)" + _NAME + "=(?![$<{])" + _NEW + r"(?P<v>[^&\s\"'\\#<>;]+)", re.A), _query),
    # options of commands
    (
        re.compile(_ALONE + "--?" + _NAME + r"(?:=|\s{1,4})\\{0,4}[\"']?(?!-)" + _FIXED + r"(?P<v>[^\s\"'\\]{6,})", re.A),
        _named("credential"),
    ),
)

RULES: tuple[tuple[Rule, ...], ...] = (
    ((re.compile(r"sk-ant-[A-Za-z0-9_-]{8,}"), _all("anthropic-key")),),
    (
        (re.compile(r"sk-(?:proj|svcacct|admin|None|or-v1)-[A-Za-z0-9_-]{16,}"), _all("openai-key")),
        (re.compile("sk-" + _START.format("sk-") + r"[A-Za-z0-9]{16,}[A-Za-z0-9_-]*"), _all("openai-key")),
    ),
    ((re.compile(r"[sr]k_(?:live|test)_[A-Za-z0-9]{10,}"), _all("stripe-key")),),
    ((re.compile(r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{20,}"), _all("github-token")),),
    ((re.compile(r"A(?:KIA|SIA)[A-Z0-9]{16}"), _all("aws-key")),),
    ((re.compile(r"AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}"), _all("google-key")),),
    ((re.compile(r"xox[abeoprs]-[A-Za-z0-9-]{10,}"), _all("slack-token")),),
    ((re.compile(r"glpat-[A-Za-z0-9_-]{16,}"), _all("gitlab-token")),),
    ((re.compile(r"hf_[A-Za-z0-9]{30,}"), _all("huggingface-token")),),
    ((re.compile(r"npm_[A-Za-z0-9]{30,}"), _all("npm-token")),),
    ((re.compile("eyJ" + _START.format("eyJ") + r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*"), _all("jwt")),),
    ((re.compile(r"bearer(?:[ \t+]+|%20)" + _NEW + r"(?P<v>[A-Za-z0-9._~+/=-]{16,})", re.I | re.A), _value("bearer")),),
    ((re.compile(_PEM), _all("private-key")),),
    (
        (
            re.compile(r"(?<=[A-Za-z0-9+.-]://)[^\s/?#@:\"'\\<>]{0,256}:" + _NEW + r"(?P<v>[^\s/?#@\"'\\<>]{1,512})@", re.A),
            _value("url-password"),
        ),
    ),
    _NAMED,
)
if len(RULES) != native.KINDS:
    raise ImportError("agentsight._native.redact is of another version: build the package again")


NAMED = len(RULES) - 1


def redact(text: str, kinds: int) -> str:
    """`text` with all secrets of `kinds` (bits of the rules) replaced; the same object where there are none.

    The expressions want ASCII or no particular characters, so text beyond ASCII is treated as its UTF-8 bytes, one character
    each: places are then the same in C and here.
    """
    if text.isascii():
        return _redact(text, kinds)
    try:
        plain = text.encode().decode("latin-1")
    except UnicodeEncodeError:  # lone surrogates
        return _redact(text, kinds, everywhere=True)
    clean = _redact(plain, kinds)
    return text if clean is plain else clean.encode("latin-1").decode("utf-8", "replace")


def _redact(text: str, kinds: int, everywhere: bool = False) -> str:
    for bit, rules in enumerate(RULES):
        if not kinds >> bit & 1:
            continue
        places: list[int] | None = None
        if bit == NAMED and not everywhere:
            places = native.names(text.encode("latin-1"))
        for pattern, pick in rules:
            found = _apply(text, pattern.finditer(text) if places is None else _near(text, pattern, places), pick)
            if found is not text:
                text = found
                if places is not None:
                    places = native.names(text.encode("latin-1"))
    return text


BEFORE = 100  # a match begins at most so far before the place of its name
AFTER = 512  # and is looked for up to here; where it reaches further it is made anew, to its end


def _near(text: str, pattern: re.Pattern[str], places: list[int]) -> Iterator[re.Match[str]]:
    """Matches around the places, in order, as `pattern.finditer(text)` would give them."""
    done = 0
    for place in places:
        begin, end = max(done, place - BEFORE), min(len(text), place + AFTER)
        while begin < end:
            m = pattern.search(text, begin, end)
            if m is not None and end < len(text) and m.end() > end - 32:
                begin = m.start() + 1
                m = pattern.match(text, m.start())
                if m is None:
                    continue
            if m is None:
                break
            yield m
            begin = done = max(m.end(), begin)


def _apply(text: str, matches: Iterable[re.Match[str]], pick: Pick) -> str:
    out: list[str] = []
    done = 0
    for m in matches:
        span = pick(m)
        if span is not None:
            out += (text[done : span[0]], f"[REDACTED:{span[2]}]")
            done = span[1]
    if not out:
        return text
    out.append(text[done:])
    return "".join(out)


def spans(text: str, kinds: int) -> list[Span]:
    """Where the secrets are, in no order; they may overlap."""
    found: list[Span] = []
    for bit, rules in enumerate(RULES):
        if kinds >> bit & 1:
            for pattern, pick in rules:
                found += (span for span in map(pick, pattern.finditer(text)) if span is not None)
    return found

"""The scripted model: a script's name and the request make a `Plan`, what to answer and how to send it.

A name is `script-BASE[+MOD...]`, given as the request's model or, without the `script-`, in an `x-script` header.
An unknown model gets `text`. All is a function of name and request, so a test computes what it expects by `plan()`.

BASE: text, unicode, empty, thinking, maxtokens, echo (the last user text), count-N (N deltas), big[-BYTES] (5 MiB),
tool, tools (two at once), error-STATUS, error-midstream, cut (connection dropped in mid-stream), noend (ends well,
but without the terminator event), linger (all events, then the body is left open until the client goes).
MOD: slow[-MS] (100 between events), ping (keep-alive events in between), gzip deflate rawdeflate br zstd,
chunked length close trailers, split-N (writes of N bytes whatever they cut), crlf, cr, nospace, ascii (JSON escapes
in place of UTF-8).

The tool scripts answer a request that brings no tool result with calls of the offered tools (none: `Bash`). A user
text with a line `RUN: command` chooses the command. A request with results gets a final text that repeats them.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

TEXT = "The sockets told me everything: who called, what was asked, and what came back. Nothing was changed on the way."
UNICODE = 'Grüße an die 世界 🌍: naïve café, Ελληνικά, עברית, 👩‍👩‍👧‍👦, quote " backslash \\ tab \t newline \n end.'
ERRORS = {
    400: ("invalid_request_error", "max_tokens: Field required"),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "model: not found"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "Number of request tokens has exceeded your per-minute rate limit"),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}


@dataclasses.dataclass(frozen=True)
class Text:
    """Answer text, in the pieces in which it is streamed."""

    deltas: list[str]


@dataclasses.dataclass(frozen=True)
class Thinking:
    """Reasoning before the answer."""

    deltas: list[str]
    signature: str


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool call; its JSON input is streamed in `fragments`."""

    name: str
    input: dict[str, Any]
    fragments: list[str]


@dataclasses.dataclass
class Plan:
    """What is answered (`parts`, `stop` in Anthropic's words, `error`) and how it is sent."""

    base: str
    parts: list[Text | Thinking | Tool] = dataclasses.field(default_factory=list)
    stop: str = "end_turn"
    error: int | None = None  # HTTP status in place of an answer
    fault: str | None = None  # error-midstream, cut, noend, linger
    delay: float = 0.0  # seconds before each event
    ping: bool = False
    coding: str = ""
    framing: str = ""  # chunked, trailers, length, close; "": chunked when streamed, else length
    split: int = 0
    newline: str = "\n"
    space: str = " "
    ascii: bool = False

    @property
    def text(self) -> str:
        """All answer text."""
        return "".join("".join(part.deltas) for part in self.parts if isinstance(part, Text))

    @property
    def tools(self) -> list[Tool]:
        """All tool calls."""
        return [part for part in self.parts if isinstance(part, Tool)]

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer: a quarter of its characters, at least one."""
        length = sum(
            len(part.name) + sum(map(len, part.fragments)) if isinstance(part, Tool) else sum(map(len, part.deltas))
            for part in self.parts
        )
        return max(1, (length + 3) // 4)


def pieces(text: str, size: int) -> list[str]:
    """`text` in pieces of `size` characters."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def words(text: str) -> list[str]:
    """`text` word by word, each with the space before it."""
    first, *rest = text.split(" ")
    return [first, *(" " + word for word in rest)]


def _messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation: messages, or the items of the Responses API."""
    items = request.get("messages") or request.get("input") or []
    return [{"role": "user", "content": items}] if isinstance(items, str) else list(items)


def last_user_text(request: dict[str, Any]) -> str:
    """Text of the last user message; "" if there is none."""
    for message in reversed(_messages(request)):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return _text_of(content)
    return ""


def tool_results(request: dict[str, Any]) -> list[str]:
    """Texts of the tool results that this request brings: blocks of the last message, or trailing tool messages or items."""
    results: list[str] = []
    messages = _messages(request)
    for message in reversed(messages):
        if message.get("role") != "tool" and message.get("type") != "function_call_output":
            break
        results.insert(0, _text_of(message.get("content") or message.get("output")))
    if messages and isinstance(messages[-1].get("content"), list):
        blocks = messages[-1]["content"]
        results += [_text_of(block.get("content")) for block in blocks if block.get("type") == "tool_result"]
    return results


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tool_parts(request: dict[str, Any], count: int) -> list[Text | Thinking | Tool]:
    command = "echo hello from a tool"
    for line in last_user_text(request).splitlines():
        if line.startswith("RUN: "):
            command = line.removeprefix("RUN: ")
    offered: list[dict[str, Any]] = [tool.get("function", tool) for tool in request.get("tools") or []]
    # a shell tool first, where there is one: the command is what tests look for
    offered.sort(key=lambda tool: "command" not in _properties(tool))
    offered = offered or [{"name": "Bash"}]
    parts: list[Text | Thinking | Tool] = [Text(words("I will look at that with a tool."))]
    for number in range(count):
        tool = offered[number % len(offered)]
        properties = _properties(tool) or {"command": {}}
        required = (tool.get("input_schema") or tool.get("parameters") or {}).get("required", list(properties))
        values: dict[str, Any] = {name: _value(properties.get(name, {}), f"{name} {number}") for name in required}
        if "command" in properties:
            values["command"] = command if number == 0 else f"{command}; : {number}"
        fragments = ["", *pieces(json.dumps(values, ensure_ascii=False), 7)]
        parts.append(Tool(tool["name"], values, fragments))
    return parts


def _properties(tool: dict[str, Any]) -> dict[str, Any]:
    return dict((tool.get("input_schema") or tool.get("parameters") or {}).get("properties", {}))


def _value(schema: dict[str, Any], text: str) -> Any:
    plain = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    return plain.get(schema.get("type", "string"), text)


def _number(name: str, default: int) -> int:
    tail = name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else default


def plan(name: str, request: dict[str, Any]) -> Plan:
    """The plan for a model name or a script's name and a request body. ValueError for an unknown script."""
    if not name.startswith("script-"):
        name = "script-text"
    base, *mods = name.removeprefix("script-").split("+")
    made = Plan(base)
    for mod in mods:
        _apply(made, mod)
    if base in ("text", "error-midstream", "cut", "noend", "linger"):
        made.parts = [Text(words(TEXT))]
        made.fault = None if base == "text" else base
    elif base == "unicode":
        made.parts = [Text(pieces(UNICODE, 3))]
    elif base == "echo":
        made.parts = [Text(pieces(last_user_text(request), 11))]
    elif base == "thinking":
        made.parts = [
            Thinking(words("First I think about what was asked."), "c2lnbmF0dXJl"),
            Text(words(TEXT)),
        ]
    elif base == "maxtokens":
        made.parts, made.stop = [Text(words(TEXT)[:4])], "max_tokens"
    elif base.startswith("count-"):
        made.parts = [Text([f"w{number} " for number in range(_number(base, 1))])]
    elif base.startswith("big"):
        size = _number(base, 5 * 1024 * 1024)
        line = "All work and no play makes a dull answer, line %09d.\n"
        made.parts = [Text(pieces("".join(line % at for at in range(size // len(line % 0) + 1))[:size], 8192))]
    elif base in ("tool", "tools"):
        if results := tool_results(request):
            made.parts = [Text(words("The tool said: " + " | ".join(results)))]
        else:
            made.parts, made.stop = _tool_parts(request, 1 if base == "tool" else 2), "tool_use"
    elif base.startswith("error-") and _number(base, 0) in ERRORS:
        made.error = _number(base, 0)
    elif base != "empty":
        raise ValueError(f"unknown script {base!r}")
    return made


def _apply(made: Plan, mod: str) -> None:
    if mod.startswith("slow"):
        made.delay = _number(mod, 100) / 1000
    elif mod.startswith("split-"):
        made.split = _number(mod, 1)
    elif mod in ("gzip", "deflate", "rawdeflate", "br", "zstd"):
        made.coding = f"{made.coding}, {mod}" if made.coding else mod
    elif mod in ("chunked", "length", "close", "trailers"):
        made.framing = mod
    elif mod in ("crlf", "cr"):
        made.newline = "\r\n" if mod == "crlf" else "\r"
    elif mod == "nospace":
        made.space = ""
    elif mod in ("ping", "ascii"):
        setattr(made, mod, True)
    else:
        raise ValueError(f"unknown modifier {mod!r}")

"""What a provider is: one LLM wire format, read from whole messages.

A provider takes the text of a request (`prompt`), of a plain answer (`answer`) or the events of a streamed one (`stream`) and
gives a `Prompt` or an `Answer`. It is recognised by the tail of the path and the shape of the body, never by the host: the same
format is spoken by many servers. Nothing here raises for bad input: what cannot be read is said in `problems`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, SupportsIndex, TypeVar, overload

import msgspec

from agentsight.events import SseFrames, ToolCall, Usage
from agentsight.providers.squeeze import squeeze

T = TypeVar("T")

# A lone surrogate escape is legal JSON (JavaScript writes it) but no character: it becomes U+FFFD.
_SURROGATES = re.compile(r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_decode_any = msgspec.json.Decoder().decode


class SentList(list[Any]):
    """A JSON array as it was sent: elements stay encoded (`msgspec.Raw`) until somebody looks at them.

    Encodes to JSON verbatim. A prompt of a long session is some hundred kilobytes that most readers only pass on: parsing and
    writing it again would cost more than everything else that is done to a call.
    """

    __slots__ = ()

    @overload
    def __getitem__(self, i: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, i: slice) -> list[Any]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> Any:
        found = super().__getitem__(i)
        return [_open(x) for x in found] if isinstance(i, slice) else _open(found)

    def __iter__(self) -> Iterator[Any]:
        return map(_open, super().__iter__())

    def __reversed__(self) -> Iterator[Any]:
        return map(_open, super().__reversed__())

    def __contains__(self, x: object) -> bool:
        return any(x == y for y in self)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, list) else other)

    __hash__ = None

    def __repr__(self) -> str:
        return repr(list(self))

    def encoded(self) -> Iterator[Any]:
        """The elements as they are kept."""
        return super().__iter__()


def _open(x: Any) -> Any:
    return _decode_any(x) if type(x) is msgspec.Raw else x


class Prompt:
    """What a request asked."""

    __slots__ = ("messages", "model", "params", "problem", "stream", "system", "tools")

    def __init__(self) -> None:
        self.model: str | None = None
        self.stream = False
        self.messages: list[Any] = []
        self.system: Any = None
        self.tools: list[Any] = []
        self.params: dict[str, Any] = {}
        self.problem: str | None = None  # why there is no more of it


class Answer:
    """What the model said, merged from one body or from the events of a stream."""

    __slots__ = (
        "error",
        "finished",
        "first",
        "model",
        "parts",
        "problems",
        "response_id",
        "started",
        "stop_reason",
        "text",
        "thinking",
        "tool_calls",
        "tool_json",
        "usage",
    )

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.parts: list[dict[str, Any]] = []
        self.tool_calls: list[ToolCall] = []
        self.stop_reason: str | None = None
        self.usage: Usage | None = None
        self.error: dict[str, Any] | None = None
        self.first = -1  # stream: index of the first payload that carries answer content
        self.started = False  # stream: its beginning was seen
        self.finished = False  # its own end was seen
        self.problems: list[str] = []
        self.text = ""
        self.thinking = ""
        self.tool_json = ""  # arguments of tool calls as they came, concatenated

    def add_text(self, text: str, **more: Any) -> None:
        """A part of plain text."""
        self.parts.append({"type": "text", "text": text, **more})
        self.text += text

    def add_thinking(self, text: str, **more: Any) -> None:
        """A part of the model's reasoning."""
        self.parts.append({"type": "thinking", "thinking": text, **more})
        self.thinking += text

    def add_tool(self, ident: str | None, name: str | None, text: str, arguments: Any = None) -> None:
        """A tool call; `text` is its arguments' JSON (empty: none), or they are given parsed."""
        bad = None
        if arguments is None:
            arguments, bad = parse_arguments(text)
        part: dict[str, Any] = {"type": "tool_call", "id": ident, "name": name, "arguments": arguments}
        if bad is not None:
            part["arguments_text"] = bad
        self.parts.append(part)
        self.tool_calls.append(ToolCall(ident, name, arguments, bad))
        self.tool_json += text


class Provider(Protocol):
    """One wire format."""

    @property
    def name(self) -> str:
        """The maker of the format, lower case."""

    @property
    def api(self) -> str:
        """Which of its APIs."""

    @property
    def tails(self) -> tuple[str, ...]:
        """Ends of paths, query left out."""

    def prompt(self, body: str) -> Prompt | None:
        """The request; None where the body is no call of a model."""

    def answer(self, body: str) -> Answer | None:
        """A whole, not streamed answer, or an error body; None where it is neither."""

    def stream(self, frames: SseFrames) -> Answer:
        """A streamed answer, as far as it came."""

    def knows(self, names: frozenset[str], first: dict[str, Any]) -> bool:
        """Whether a stream or body of unknown path is of this format: its event names, its first payload."""


def decode(decoder: Callable[[Any], T], text: str | bytes) -> T:
    """`decoder(text)`, with lone surrogates replaced where there are any. msgspec.DecodeError, ValidationError as usual."""
    try:
        return decoder(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        if isinstance(e, msgspec.ValidationError):
            raise
        loose = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        fixed = _SURROGATES.sub(_pair, loose)
        if fixed == text:
            raise msgspec.DecodeError(str(e)) from None
        return decoder(fixed)


def _pair(m: re.Match[str]) -> str:
    found = m.group()
    return found if len(found) != 6 else "\\ufffd"


def parse(text: str | bytes) -> Any:
    """Any JSON value; None where it is no JSON."""
    try:
        return decode(_decode_any, text)
    except (msgspec.DecodeError, RecursionError):
        return None


def sent_list(items: Iterable[Any], text: str) -> list[Any]:
    """Encoded elements of the body `text` as a list. Where they hold line breaks (a body printed prettily), as plain values:
    an event is one line of a log, and JSON has line breaks between its tokens only."""
    sent = SentList(items)
    return list(sent) if "\n" in text or "\r" in text else sent


def parse_arguments(text: str) -> tuple[Any, str | None]:
    """Arguments of a tool call: the parsed value, and the text where it does not parse. Nothing at all means no arguments."""
    if not text or text.isspace():
        return {}, None
    try:
        return decode(_decode_any, text), None
    except (msgspec.DecodeError, RecursionError):
        return None, text


def payloads(frames: SseFrames) -> list[bytes]:
    """The payloads of a stream one by one, also where one of them is no valid JSON."""
    data = frames.frames
    if frames.ends:
        out = []
        start = 1
        for end in memoryview(frames.ends).cast("I"):
            out.append(data[start:end])
            start = end + 1
        return out
    try:
        return [bytes(raw) for raw in msgspec.json.decode(data, type=list[msgspec.Raw])]
    except msgspec.DecodeError:
        return [data]


def decode_frames(
    frames: SseFrames,
    whole: Callable[[bytes], list[T]],
    one: Callable[[Any], T],
    answer: Answer,
    empty: T,
    matters: Callable[[dict[str, Any]], bool],
    growing: Sequence[bytes] = (),
) -> list[T]:
    """All payloads in one call; where one does not fit, each for itself. Texts behind the markers `growing` are joined before.

    What cannot be read becomes `empty`, and is counted where it is no JSON or `matters`: kinds that nobody knows do not.
    """
    try:
        return whole(squeeze(frames.frames, frames.ends, growing) if growing else frames.frames)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        out: list[T] = []
        bad = 0
        for payload in payloads(frames):
            try:
                out.append(decode(one, payload))
            except msgspec.ValidationError:
                out.append(empty)
                value = parse(payload)
                bad += value is None or (isinstance(value, dict) and matters(value))
            except (msgspec.DecodeError, RecursionError):
                out.append(empty)
                bad += 1
        if bad:
            answer.problems.append(f"{bad} unreadable events")
        return out


def as_error(value: Any) -> dict[str, Any]:
    """An error as an object, whatever the server made of it."""
    if isinstance(value, dict):
        return value
    return {"message": value if isinstance(value, str) else msgspec.json.encode(value).decode()}


def count(raw: Any, *path: str) -> int | None:
    """A number of tokens inside `raw`, None where it is not told."""
    for key in path:
        if not isinstance(raw, dict):
            return None
        raw = raw.get(key)
    return raw if isinstance(raw, int) and not isinstance(raw, bool) else None


def string(value: Any) -> str | None:
    """`value` if it is text."""
    return value if isinstance(value, str) else None


_MODEL = re.compile(r'"model"\s*:\s*"((?:[^"\\]|\\.){1,200})"')
_STREAM = re.compile(r'"stream"\s*:\s*true')


def salvage(body: str, problem: str) -> Prompt:
    """What can be told of a request whose body is not whole: the model, and whether it asked for a stream."""
    prompt = Prompt()
    prompt.problem = problem
    found = _MODEL.search(body)
    if found:
        prompt.model = string(parse(f'"{found.group(1)}"'))
    prompt.stream = _STREAM.search(body) is not None
    return prompt


class _Sent(msgspec.Struct, gc=False):
    """The fields that both formats share."""

    model: Any = None
    stream: Any = None
    messages: list[msgspec.Raw] | None = None
    tools: list[msgspec.Raw] | None = None


def request_type(name: str, params: Iterable[str], **more: Any) -> Any:
    """A struct type for requests: the shared fields, those of `more`, and `params` of any type."""
    fields: list[tuple[str, Any, Any]] = [(k, t, None) for k, t in more.items()]
    fields += [(p, Any, msgspec.UNSET) for p in params]
    return msgspec.defstruct(name, fields, bases=(_Sent,), gc=False)


class RequestReader:
    """Reads requests that have `messages`: typed and lazily, and slowly where types are not as expected."""

    def __init__(self, typed: Any, params: tuple[str, ...]) -> None:
        self._params = params
        self._decode = msgspec.json.Decoder(typed).decode

    def read(self, body: str) -> tuple[Prompt, Any] | None:
        """The prompt and the decoded request (an object with the type's fields, or a dict); None where it is no such request."""
        try:
            sent = decode(self._decode, body)
        except msgspec.ValidationError:
            return self._slowly(parse(body))
        except (msgspec.DecodeError, RecursionError):
            return salvage(body, "request is no whole JSON"), {}
        if sent.messages is None:
            return None
        prompt = Prompt()
        prompt.model = string(sent.model)
        prompt.stream = sent.stream is True
        prompt.messages = sent_list(sent.messages, body)
        if sent.tools:
            prompt.tools = sent_list(sent.tools, body)
        for name in self._params:
            value = getattr(sent, name)
            if value is not msgspec.UNSET:
                prompt.params[name] = value
        return prompt, sent

    def _slowly(self, sent: Any) -> tuple[Prompt, Any] | None:
        if not isinstance(sent, dict) or not isinstance(sent.get("messages"), list):
            return None
        prompt = Prompt()
        prompt.model = string(sent.get("model"))
        prompt.stream = sent.get("stream") is True
        prompt.messages = sent["messages"]
        tools = sent.get("tools")
        prompt.tools = tools if isinstance(tools, list) else [tools] if tools else []
        prompt.params = {k: sent[k] for k in self._params if k in sent}
        return prompt, sent

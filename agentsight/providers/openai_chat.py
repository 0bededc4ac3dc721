"""OpenAI Chat Completions (``POST .../chat/completions``), streamed and not, and the many servers that speak it.

Fragments of tool calls belong together by choice and `index`; some servers give index 0 to all or none at all: then a new
id begins a new call. Usage comes in a last chunk without choices. The stream ends with ``[DONE]``, which is no JSON and
therefore among `SseFrames.others`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentsight.events import SseFrames, Usage
from agentsight.providers.base import Answer, Prompt, RequestReader, as_error, count, decode_frames, parse, request_type, string

PARAMS = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "response_format",
    "reasoning_effort",
    "reasoning",
    "tool_choice",
    "parallel_tool_calls",
    "stream_options",
    "service_tier",
    "store",
    "metadata",
    "modalities",
    "verbosity",
    "prompt_cache_key",
    "user",
)


# what comes in many small pieces
_GROWING = (b'"delta":{"content":"', b'"reasoning_content":"', b'"reasoning":"', b'"function":{"arguments":"')


class Function(msgspec.Struct, gc=False):
    """A piece of a function call."""

    name: str | None = None
    arguments: Any = None


class ToolDelta(msgspec.Struct, gc=False):
    """A piece of a tool call."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: Function | None = None
    custom: dict[str, Any] | None = None


class Delta(msgspec.Struct, gc=False):
    """What a chunk adds to one choice; the same fields as a whole message."""

    content: Any = None
    tool_calls: list[ToolDelta] | None = None
    refusal: str | None = None
    function_call: Function | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_text: Any = None
    reasoning_details: Any = None
    reasoning_opaque: Any = None
    annotations: Any = None
    audio: Any = None


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk or of a whole answer."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a stream, or a whole answer."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(list[Chunk]).decode
_chunk = msgspec.json.Decoder(Chunk).decode
_NOTHING = Chunk()


class _Tool:
    __slots__ = ("custom", "id", "index", "name", "pieces")

    def __init__(self, ident: str | None, index: int | None) -> None:
        self.id = ident
        self.index = index
        self.name: str | None = None
        self.pieces: list[str] = []
        self.custom = False  # its input is text, not JSON


class _Growing:
    """One choice while it grows: runs of text and of thinking, tool calls, in the order in which they began."""

    __slots__ = ("by_index", "extra", "finish", "last_tool", "legacy", "order", "refusal")

    def __init__(self) -> None:
        self.order: list[tuple[str, list[str] | _Tool]] = []
        self.by_index: dict[int, _Tool] = {}
        self.last_tool: _Tool | None = None
        self.legacy: _Tool | None = None
        self.refusal: list[str] = []
        self.extra: dict[str, Any] = {}
        self.finish: str | None = None

    def run(self, kind: str, text: str) -> None:
        """Text that continues the last run of its kind, or begins one."""
        last = self.order[-1] if self.order else ("", None)
        if last[0] == kind and isinstance(last[1], list):
            last[1].append(text)
        else:
            self.order.append((kind, [text]))

    def tool(self, d: ToolDelta) -> _Tool:
        """The call that a piece belongs to."""
        known = self.by_index.get(d.index) if d.index is not None else self.last_tool
        if known is None or (d.id and known.id and d.id != known.id):
            known = _Tool(d.id or None, d.index)
            self.order.append(("tool_call", known))
        elif d.id and not known.id:
            known.id = d.id
        if d.index is not None:
            self.by_index[d.index] = known
        self.last_tool = known
        return known

    def add(self, d: Delta) -> bool:
        """Take a delta; whether it carried content."""
        some = False
        if d.content:
            self._content(d.content)
            some = True
        thought = d.reasoning_content or d.reasoning or d.reasoning_text
        if thought and isinstance(thought, str):
            self.run("thinking", thought)
            some = True
        elif d.reasoning_details:
            some = self._details(d.reasoning_details) or some
        if d.tool_calls:
            some = True
            for piece in d.tool_calls:
                self._tool_piece(piece)
        if d.function_call is not None:
            some = True
            if self.legacy is None:
                self.legacy = _Tool(None, None)
                self.order.append(("tool_call", self.legacy))
            _grow(self.legacy, d.function_call)
        if d.refusal:
            self.refusal.append(d.refusal)
            some = True
        for name in ("annotations", "audio", "reasoning_opaque"):
            value = getattr(d, name)
            if value:
                self._more(name, value)
        return some

    def _content(self, content: Any) -> None:
        if isinstance(content, str):
            self.run("text", content)
            return
        for part in content if isinstance(content, list) else [content]:  # parts, as Mistral sends them
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                self.run("text", part["text"])
            elif isinstance(part, dict) and part.get("type") == "thinking":
                inner = part.get("thinking")
                for p in inner if isinstance(inner, list) else [inner]:
                    text = p.get("text") if isinstance(p, dict) else p
                    if isinstance(text, str):
                        self.run("thinking", text)

    def _details(self, details: Any) -> bool:
        some = False
        for d in details if isinstance(details, list) else [details]:
            text = (d.get("text") or d.get("summary")) if isinstance(d, dict) else None
            if isinstance(text, str) and text:
                self.run("thinking", text)
                some = True
        return some

    def _tool_piece(self, d: ToolDelta) -> None:
        tool = self.tool(d)
        if d.function is not None:
            _grow(tool, d.function)
        if d.custom:
            tool.custom = True
            tool.name = string(d.custom.get("name")) or tool.name
            tool.pieces.append(string(d.custom.get("input")) or "")

    def _more(self, name: str, value: Any) -> None:
        old = self.extra.get(name)
        if isinstance(old, list) and isinstance(value, list):
            self.extra[name] = old + value
        elif isinstance(old, dict) and isinstance(value, dict):
            self.extra[name] = {**old, **value}
            for key in ("data", "transcript"):
                if isinstance(old.get(key), str) and isinstance(value.get(key), str):
                    self.extra[name][key] = old[key] + value[key]
        elif isinstance(old, str) and isinstance(value, str):
            self.extra[name] = old + value
        else:
            self.extra[name] = value


def _grow(tool: _Tool, f: Function) -> None:
    if f.name and not tool.name:
        tool.name = f.name
    if isinstance(f.arguments, str):
        tool.pieces.append(f.arguments)
    elif f.arguments is not None:  # some servers send the object itself
        tool.pieces.append(msgspec.json.encode(f.arguments).decode())


class OpenAIChat:
    """The Chat Completions format."""

    name = "openai"
    api = "chat_completions"
    tails = ("/chat/completions",)

    def __init__(self) -> None:
        self._requests = RequestReader(request_type("Request", PARAMS, functions=list[msgspec.Raw] | None), PARAMS)

    def knows(self, names: frozenset[str], first: dict[str, Any]) -> bool:
        """By the `object` that every chunk and answer names."""
        return first.get("object") in ("chat.completion.chunk", "chat.completion")

    def prompt(self, body: str) -> Prompt | None:
        """See Provider. `system` stays None: system and developer messages stand among the others."""
        found = self._requests.read(body)
        if found is None:
            return None
        prompt, sent = found
        functions = sent.get("functions") if isinstance(sent, dict) else sent.functions
        if functions and not prompt.tools and isinstance(functions, list):
            prompt.tools = [msgspec.json.decode(f) if isinstance(f, msgspec.Raw) else f for f in functions]
        return prompt

    def answer(self, body: str) -> Answer | None:
        """See Provider."""
        raw = parse(body)
        if isinstance(raw, list) and raw:  # an error in a list, as Google's endpoint of this format sends it
            raw = raw[0]
        if not isinstance(raw, dict):
            return None
        answer = Answer()
        if raw.get("error") and not raw.get("choices"):
            answer.error = as_error(raw["error"])
            answer.finished = True
            return answer
        try:
            whole = msgspec.convert(raw, Chunk)
        except msgspec.ValidationError:
            return None
        if whole.choices is None:
            return None
        answer.started = answer.finished = True
        self._merge(answer, [whole])
        return answer

    def stream(self, frames: SseFrames) -> Answer:
        """See Provider."""
        answer = Answer()
        chunks = decode_frames(frames, _chunks, _chunk, answer, _NOTHING, _matters, _GROWING)
        self._merge(answer, chunks)
        answer.started = bool(chunks)
        if "[DONE]" in frames.others or answer.error is not None:
            answer.finished = True
        return answer

    def _merge(self, answer: Answer, chunks: list[Chunk]) -> None:
        choices: dict[int, _Growing] = {}
        counts: dict[str, Any] | None = None
        for i, chunk in enumerate(chunks):
            if chunk.usage:
                counts = chunk.usage
            if answer.response_id is None and chunk.id:
                answer.response_id = chunk.id
            if answer.model is None and chunk.model:
                answer.model = chunk.model
            if chunk.error is not None:
                answer.error = as_error(chunk.error)
            for choice in chunk.choices or ():
                growing = choices.get(choice.index)
                if growing is None:
                    growing = choices[choice.index] = _Growing()
                delta = choice.delta or choice.message
                if delta is not None and growing.add(delta) and answer.first < 0:
                    answer.first = i
                if choice.finish_reason is not None:
                    growing.finish = choice.finish_reason
        for index in sorted(choices):
            self._finish(answer, choices[index], index, len(choices) > 1)
        answer.usage = usage(counts)

    def _finish(self, answer: Answer, growing: _Growing, index: int, several: bool) -> None:
        """Parts of one choice. Where there are several, each part says which, and `text` is the first one's alone."""
        begin = len(answer.parts)
        text = answer.text
        for kind, what in growing.order:
            if isinstance(what, _Tool):
                joined = "".join(what.pieces)
                answer.add_tool(what.id, what.name, joined, joined if what.custom else None)
            elif kind == "text":
                answer.add_text("".join(what))
            else:
                answer.add_thinking("".join(what))
        if growing.refusal:
            answer.parts.append({"type": "refusal", "refusal": "".join(growing.refusal)})
        for name, value in growing.extra.items():
            answer.parts.append({"type": name, name: value})
        if several:
            for part in answer.parts[begin:]:
                part["choice"] = index
            if begin:
                answer.text = text
        if answer.stop_reason is None:
            answer.stop_reason = growing.finish


def _matters(chunk: dict[str, Any]) -> bool:
    return bool(chunk.get("choices") or chunk.get("error"))


def usage(raw: Any) -> Usage | None:
    """Normalised tokens: here input has cached and output has reasoning tokens in it already."""
    if not isinstance(raw, dict):
        return None
    read = count(raw, "prompt_tokens_details", "cached_tokens")
    return Usage(
        input_tokens=count(raw, "prompt_tokens"),
        output_tokens=count(raw, "completion_tokens"),
        cache_read_tokens=read if read is not None else count(raw, "prompt_cache_hit_tokens"),
        cache_write_tokens=count(raw, "prompt_tokens_details", "cache_write_tokens"),
        reasoning_tokens=count(raw, "completion_tokens_details", "reasoning_tokens"),
        total_tokens=count(raw, "total_tokens"),
        raw=raw,
    )

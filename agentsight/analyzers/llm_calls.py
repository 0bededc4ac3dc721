"""Model calls: the request and the answer of one HTTP exchange become one LlmCall, whichever of them came first.

What is a model call is told by the path's end and the body's shape (agentsight.providers), so that any host will do. A call
stands behind the message that completed it. One of which something is missing is given all the same, and says what: at the
end of its connection, at the end of the stream, or when too much is waiting (that is counted and said).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from agentsight.analyzers.base import Analyzer, diagnostic
from agentsight.analyzers.exchange import Key, decoded, times
from agentsight.events import ConnectionEvent, Event, HttpEvent, LlmCall, SseFrames
from agentsight.providers import Answer, Prompt, Provider, of_body, of_path

MAX_PENDING = 4096
MAX_PENDING_BYTES = 256 << 20  # of request bodies that wait


class _Exchange:
    """What has come of one exchange."""

    __slots__ = ("begun", "frames", "prompt", "provider", "request", "response", "weight")

    def __init__(self, provider: Provider, begun: HttpEvent) -> None:
        self.provider = provider
        self.begun = begun  # what came first
        self.prompt: Prompt | None = None
        self.request: HttpEvent | None = None
        self.response: HttpEvent | None = None
        self.frames: SseFrames | None = None
        self.weight = 0  # bytes that it holds while it waits


class LlmCalls(Analyzer):
    """Gives one LlmCall per exchange with a model; every event passes."""

    requires: ClassVar[frozenset[str]] = frozenset(("http", "frames", "connections"))

    def __init__(self, *, max_pending: int = MAX_PENDING, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        self.evicted = 0  # calls given early since too much was waiting
        self._max = max_pending
        self._max_bytes = max_pending_bytes
        self._pending: dict[Key, _Exchange] = {}
        self._bytes = 0
        self._by_conn: dict[str, int] = {}
        self._frames: dict[Key, SseFrames] = {}
        self._gone: dict[Key, None] = {}  # no calls, or given early: their answers make no call

    def feed_many(self, events: list[Event]) -> list[Event]:
        """See Analyzer."""
        out: list[Event] | None = None
        for n, e in enumerate(events):
            if type(e) is HttpEvent:
                more = self._message(e)
            elif isinstance(e, SseFrames):
                more = self._keep_frames(e)
            elif type(e) is ConnectionEvent and e.conn in self._by_conn:
                more = [self._take(key, at=e) for key in [k for k in self._pending if k[0] == e.conn]]
            else:
                more = None
            if more and out is None:
                out = events[:n]
            if out is not None:
                out.append(e)
                if more:
                    out += more
        return events if out is None else out

    def flush(self) -> Iterable[Event]:
        """See Analyzer."""
        self._frames.clear()
        return [self._take(key) for key in list(self._pending)]

    def _keep_frames(self, e: SseFrames) -> list[Event] | None:
        self._frames[e.conn, e.exchange_id] = e
        if len(self._frames) > self._max:  # their responses never came
            self._frames.pop(next(iter(self._frames)))
            return self._too_much(e)
        return None

    def _message(self, e: HttpEvent) -> list[Event] | None:
        key = (e.conn, e.exchange_id)
        if e.message_type == "request":
            return self._request(key, e)
        frames = self._frames.pop(key, None) if self._frames else None
        waiting = self._pending.get(key)
        if waiting is not None:
            waiting.response, waiting.frames = e, frames
            return [self._take(key)]
        if e.path:
            provider = of_path(e.path) if _may_call(e) else None
        elif frames is not None:
            frames = decoded(frames, e)
            provider = frames.provider
        else:
            provider = of_body(e.body) if e.body and e.body.lstrip()[:1] == "{" else None
        if provider is None:
            return None
        if key in self._gone:
            del self._gone[key]
            return None
        exchange = _Exchange(provider, e)
        exchange.response, exchange.frames = e, frames
        if "no-request" in e.flags:
            return [_call(exchange)]
        return self._wait(key, exchange)

    def _request(self, key: Key, e: HttpEvent) -> list[Event] | None:
        waiting = self._pending.get(key)
        by_path = of_path(e.path) if e.path and _may_call(e) else None
        provider = by_path if waiting is None else waiting.provider
        if provider is None:
            return None
        if e.body:
            prompt = provider.prompt(e.body)
        else:
            prompt = Prompt()
            prompt.problem = "request body is no text" if e.body_base64 else "no request body"
        if prompt is None:  # that path, but no call of a model
            if waiting is not None:
                self._forget(key)
            else:
                self._pass_over(key)
            return None
        if waiting is not None:
            waiting.request, waiting.prompt = e, prompt
            return [self._take(key)]
        exchange = _Exchange(provider, e)
        exchange.request, exchange.prompt = e, prompt
        return self._wait(key, exchange)

    def _wait(self, key: Key, exchange: _Exchange) -> list[Event] | None:
        for part in (exchange.request, exchange.response):
            exchange.weight += len(part.body) if part is not None and part.body else 0
        exchange.weight += len(exchange.frames.frames) if exchange.frames is not None else 0
        self._pending[key] = exchange
        self._by_conn[key[0]] = self._by_conn.get(key[0], 0) + 1
        self._bytes += exchange.weight
        out: list[Event] = []
        while len(self._pending) > self._max or (self._bytes > self._max_bytes and len(self._pending) > 1):
            oldest = next(iter(self._pending))
            self._pass_over(oldest)
            call = self._take(oldest, "given early: too many calls were waiting")
            out.append(call)
            out += self._too_much(call)
        return out

    def _pass_over(self, key: Key) -> None:
        self._gone[key] = None
        if len(self._gone) > MAX_PENDING:
            del self._gone[next(iter(self._gone))]

    def _too_much(self, at: Event) -> list[Event]:
        self.evicted += 1
        if self.evicted & (self.evicted - 1):  # said at 1, 2, 4, 8, ...
            return []
        message = f"{self.evicted} model calls were given before they ended: too many were waiting"
        return [diagnostic(at, "llm_calls_evicted", message, evicted=self.evicted)]

    def _forget(self, key: Key) -> _Exchange:
        exchange = self._pending.pop(key)
        self._bytes -= exchange.weight
        left = self._by_conn[key[0]] - 1
        if left:
            self._by_conn[key[0]] = left
        else:
            del self._by_conn[key[0]]
        return exchange

    def _take(self, key: Key, why: str | None = None, at: Event | None = None) -> Event:
        return _call(self._forget(key), why, at)


def _may_call(e: HttpEvent) -> bool:
    return e.method in ("POST", None)


def _answer(x: _Exchange, why: list[str]) -> Answer:
    """What the model said; what is missing of it is added to `why`."""
    response, frames = x.response, x.frames
    if response is None:
        why.append("no response")
        return Answer()
    if frames is not None:
        known = decoded(frames, response)
        answer = known.answer if known.answer is not None and known.provider is x.provider else x.provider.stream(frames)
        if frames.gaps:
            why.append(f"{frames.gaps} gaps in the stream")
        if frames.body_limited:
            why.append("stream longer than what is kept")
        if not answer.finished and not (response.complete and answer.stop_reason is not None):
            why.append("stream ended early")
            if not response.complete:
                why += [f"response {flag}" for flag in response.flags]
        why += answer.problems
        return answer
    if not response.complete:
        why += [f"response {flag}" for flag in response.flags] or ["response incomplete"]
    body = response.body
    if response.is_sse:
        if response.complete:
            why.append("stream without events")
        return Answer()
    plain = x.provider.answer(body) if body else None
    failed = response.status_code is not None and response.status_code >= 400
    if plain is None:
        plain = Answer()
        if failed:
            plain.error = {"type": "http_error", "message": (body or response.status_text or "")[:2000]}
        elif response.complete:
            why.append("answer is of no known form" if body else "answer without text")
    return plain


def _call(x: _Exchange, extra: str | None = None, at: Event | None = None) -> LlmCall:
    request, response, frames = x.request, x.response, x.frames
    why = [extra] if extra else []
    if request is None:
        why.append("no request")
    else:
        if not request.complete:
            why += [f"request {flag}" for flag in request.flags] or ["request incomplete"]
        if x.prompt is not None and x.prompt.problem:
            why.append(x.prompt.problem)
    prompt = x.prompt or Prompt()
    answer = _answer(x, why)
    message = response or x.begun
    last = request if request is not None and request.seq > message.seq else message
    client = message.client or (request.client if request is not None else None)
    start, end, first_byte, first_token = _times(x, answer)
    at = at or last
    return LlmCall(
        seq=at.seq,
        timestamp=at.timestamp,
        timestamp_ns=at.timestamp_ns,
        pid=client.pid if client is not None else last.pid,
        comm=client.comm if client is not None else last.comm,
        provider=x.provider.name,
        api=x.provider.api,
        model=prompt.model,
        response_model=answer.model,
        host=(request.host if request is not None else None) or message.host,
        path=(request.path if request is not None else None) or message.path or "",
        stream=prompt.stream or (response is not None and response.is_sse),
        status_code=response.status_code if response is not None else None,
        error=answer.error,
        messages=prompt.messages,
        parts=answer.parts,
        tool_calls=answer.tool_calls,
        stop_reason=answer.stop_reason,
        usage=answer.usage,
        ttfb_ms=first_byte,
        ttft_ms=first_token,
        duration_ms=max(0, end - start) / 1e6,
        complete=not why,
        conn=message.conn,
        exchange_id=message.exchange_id,
        start_ns=start,
        end_ns=end,
        system=prompt.system,
        tools=prompt.tools,
        text=answer.text,
        response_id=answer.response_id,
        request_id=_request_id(response),
        params=prompt.params,
        incomplete=why,
        client=client,
        server=message.server or (request.server if request is not None else None),
        evidence=sorted({e.seq for e in (request, frames, response) if e is not None}),
    )


def _times(x: _Exchange, answer: Answer) -> tuple[int, int, float | None, float | None]:
    """Begin and end of the exchange in ns since boot, ms to the first byte and to the first token, counted from the request's
    last byte. An answer that begins before the request has ended took no time."""
    request, response = x.request, x.response
    begin = (request.start_ns if request is not None else 0) or (response.request_start_ns if response is not None else 0)
    if response is None:
        end = x.begun.timestamp_ns
        return begin or end, end, None, None
    asked = response.request_end_ns or (request.timestamp_ns if request is not None else 0)
    arrivals = times(x.frames) if x.frames is not None else None
    end = response.timestamp_ns
    if arrivals and answer.finished:  # the transport may go on for long after the model has ended
        end = arrivals[-1]
    first_byte = max(0, response.start_ns - asked) / 1e6 if asked and response.start_ns else None
    first_token = None
    if asked and arrivals and 0 <= answer.first < len(arrivals):
        first_token = max(0, arrivals[answer.first] - asked) / 1e6
    return begin or response.start_ns or end, end, first_byte, first_token


def _request_id(response: HttpEvent | None) -> str | None:
    if response is None:
        return None
    return response.headers.get("request-id") or response.headers.get("x-request-id")

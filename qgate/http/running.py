"""Runs a `Work` and says its events: as one body, or as a stream that never ends clean if it failed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from qgate.capability.nlp.form import as_text
from qgate.capability.work import Begun, Chunk, Event, Finished, Moved, Problem, Work
from qgate.http.exchange import EVENTS, Exchange, Header, dumps, error_object

HEARTBEAT_S: Final = 10.0
"""Silence after which a comment keeps proxies and clients from giving up; most wait for 30 s and more."""

HEARTBEAT: Final = b": waiting\n\n"

FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


class Runner(Protocol):
    """The engine, as surfaces see it."""

    def run(self, work: Work) -> AsyncGenerator[Event, None]:
        """The events of one request; closing it cancels the request everywhere."""


@dataclass(slots=True)
class Answer:
    """What has been heard of one request so far; ``node`` has it now, or finished it."""

    work: Work
    begun: Begun | None = None
    node: str = ""
    texts: list[str] = field(default_factory=list)
    deltas: list[Mapping[str, Any]] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    moves: list[Moved] = field(default_factory=list)
    finished: Finished | None = None

    def take(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case Chunk():
                if event.raw is not None:
                    self._take_raw(event.raw)
                if event.text:
                    self.texts.append(event.text)
                if event.delta:
                    self.deltas.append(event.delta)
                if event.logprobs:
                    self.logprobs.append(event.logprobs)
            case Begun():
                self.begun = event
                self.node = event.node
            case Moved():
                self.moves.append(event)
                self.node = event.to_node
            case Finished():
                self.finished = event

    def _take_raw(self, raw: bytes) -> None:
        delta = delta_of(raw)
        if delta:
            self.deltas.append(delta)

    @property
    def end(self) -> Finished:
        """How it ended; only after it did."""
        assert self.finished is not None
        return self.finished

    @property
    def model(self) -> str:
        """The model that answers."""
        return self.begun.model if self.begun is not None else self.work.request.model or ""

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, in OpenAI's words."""
        reason = self.end.finish_reason
        return reason if reason in FINISH_REASONS else "stop"

    @property
    def text(self) -> str:
        """The whole text, from pieces, a provider's body, or an analysis' result."""
        pieces = self.texts or [one["content"] for one in self.deltas if isinstance(one.get("content"), str)]
        if pieces:
            return "".join(pieces)
        finished = self.end
        if finished.raw is not None:
            content = message_of(finished.raw).get("content")
            return content if isinstance(content, str) else ""
        return words_of(self.work.request.task, finished.result)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Tool calls put together from their deltas, or as a provider's body has them."""
        if self.finished is not None and self.finished.raw is not None:
            found = message_of(self.finished.raw).get("tool_calls")
            return list(found) if isinstance(found, list) else []
        return merged_tool_calls(self.deltas)

    def mesh(self) -> dict[str, Any]:
        """The extra field ``qgate`` of an answer: the signed receipt, and the way that the request took."""
        return {"receipt": dict(self.end.receipt.document), **self._way()}

    def spelt_mesh(self) -> bytes:
        """`mesh` as JSON; a receipt that is text already goes in as it was signed."""
        receipt = self.end.receipt
        spelt = receipt.text.encode() if receipt.text else dumps(dict(receipt.document))
        return b'{"receipt":' + spelt + b"," + dumps(self._way())[1:]

    def _way(self) -> dict[str, Any]:
        route = [
            {"from": one.from_node, "to": one.to_node, "how": one.how, "reason": one.reason}
            for one in self.moves
        ]
        found: dict[str, Any] = {"node": self.node, "route": route}
        if self.work.kind == "analysis" and self.end.result is not None:
            found["result"] = self.end.result  # spans and scores, which the text does not show
        return found

    def headers(self) -> list[Header]:
        """What an answer's head says of its request."""
        found = [(b"x-request-id", self.work.id.encode())]
        if self.begun is not None:
            found.append((b"x-qgate-node", self.node.encode("ascii", "replace")))
        receipt = self.work.id if self.finished is None else self.finished.receipt.id
        found.append((b"x-qgate-receipt", receipt.encode()))
        return found


class WholeFace(Protocol):
    """One API's way to say an answer in one piece."""

    def whole(self, answer: Answer) -> bytes:
        """The body of an answer that was not asked for as a stream."""


class Face(WholeFace, Protocol):
    """One API's way to say an answer, whole or as a stream."""

    content_type: bytes

    def opening(self, answer: Answer) -> bytes:
        """What a stream begins with; may be empty."""

    def piece(self, answer: Answer, chunk: Chunk) -> bytes:
        """A chunk; may be empty."""

    def closing(self, answer: Answer) -> bytes:
        """What a complete stream ends with."""

    def failing(self, problem: Problem) -> bytes:
        """How a stream that breaks off says why; nothing follows it."""


async def respond(exchange: Exchange, runner: Runner, work: Work, face: Face) -> None:
    """Run ``work`` and answer with it. Raises `Problem` only while nothing was sent."""
    if not work.stream:
        await respond_whole(exchange, runner, work, face)
        return
    async with exchange.attended(), contextlib.aclosing(runner.run(work)) as events:
        await _stream(exchange, events, Answer(work), face)


async def respond_whole(exchange: Exchange, runner: Runner, work: Work, face: WholeFace) -> None:
    """Run ``work`` and answer in one piece. Raises `Problem`, with nothing sent."""
    answer = Answer(work)
    async with exchange.attended(), contextlib.aclosing(runner.run(work)) as events:
        async for event in events:
            answer.take(event)
        await exchange.answer(200, face.whole(answer), *answer.headers())


async def _stream(
    exchange: Exchange, events: AsyncGenerator[Event, None], answer: Answer, face: Face
) -> None:
    out = _Outflow(exchange, answer, face)
    try:
        async for event in events:
            if type(event) is Chunk:
                if event.raw is None:
                    answer.take(event)
                await out.chunk(event)
                continue
            answer.take(event)
            if type(event) is Begun:
                out.begun()
        if answer.finished is None:
            raise Problem("the answer broke off", code="stream_interrupted")
        await out.end()
    except Problem as problem:
        if not exchange.started:
            raise
        await out.fail(problem)
    except Exception:
        if exchange.started:
            await out.fail(Problem("an internal error of the gate", code="internal_error"))
        raise
    finally:
        out.close()


class _Outflow:
    """A stream's way out: its head goes with the first piece, comments fill long silences."""

    __slots__ = ("_answer", "_beat", "_beating", "_busy", "_exchange", "_face", "_loop", "_opened", "_said")

    def __init__(self, exchange: Exchange, answer: Answer, face: Face) -> None:
        self._exchange = exchange
        self._answer = answer
        self._face = face
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._said = False
        self._opened = False
        self._beat: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None

    def begun(self) -> None:
        """A node has it: from now on silence is filled. Before, an error can still have its own status."""
        if self._beat is None and self._face.content_type == EVENTS:
            self._beat = self._loop.call_later(HEARTBEAT_S, self._due)

    async def chunk(self, chunk: Chunk) -> None:
        """Send a chunk."""
        data = self._opening() + self._face.piece(self._answer, chunk)
        if not data:
            return
        self._busy = self._said = True
        await self._ready()
        await self._exchange.write(data)
        self._busy = False

    async def end(self) -> None:
        """Send what a complete answer ends with."""
        data = self._opening() + self._face.closing(self._answer)
        self._busy = True
        await self._ready()
        await self._exchange.end(data)

    async def fail(self, problem: Problem) -> None:
        """Say why the answer breaks off, and break off."""
        self._busy = True
        await self._ready()
        await self._exchange.write(self._face.failing(problem))
        await self._exchange.cut()

    def close(self) -> None:
        """Stop the clock."""
        if self._beat is not None:
            self._beat.cancel()
        if self._beating is not None:
            self._beating.cancel()

    def _opening(self) -> bytes:
        if self._opened:
            return b""
        self._opened = True
        return self._face.opening(self._answer)

    async def _ready(self) -> None:
        if self._beating is not None:
            await self._beating
            self._beating = None
        if not self._exchange.started:
            await self._exchange.begin(self._face.content_type, *self._answer.headers())

    def _due(self) -> None:
        if not self._busy and not self._said:
            self._beating = self._loop.create_task(self._say_nothing())
        self._said = False
        self._beat = self._loop.call_later(HEARTBEAT_S, self._due)

    async def _say_nothing(self) -> None:
        if not self._exchange.started:
            await self._exchange.begin(self._face.content_type, *self._answer.headers())
        await self._exchange.write(self._opening() + HEARTBEAT)


# --- reading what others wrote ------------------------------------------------------------------------------


def delta_of(raw: bytes) -> Mapping[str, Any]:
    """The delta of a provider's SSE payload; empty where it has none."""
    choices = _read(raw).get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return {}
    first = choices[0]
    delta = first.get("delta")
    if isinstance(delta, dict):
        return delta
    text = first.get("text")
    return {"content": text} if isinstance(text, str) else {}


def message_of(raw: bytes) -> Mapping[str, Any]:
    """The message of a provider's whole body; empty where it has none."""
    choices = _read(raw).get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return {}
    message = choices[0].get("message")
    if isinstance(message, dict):
        return message
    text = choices[0].get("text")
    return {"content": text} if isinstance(text, str) else {}


def _read(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Problem("the provider answered with something that is no answer", code="invalid_response")
    return value


def spliced(raw: bytes, extra: bytes) -> bytes:
    """A JSON object with one more field at its end; ``extra`` is ``"name":value``. Not parsed on the way."""
    stripped = raw.rstrip()
    if not stripped.endswith(b"}"):
        raise Problem("the provider answered with something that is no answer", code="invalid_response")
    inner = stripped[:-1].rstrip()
    return inner + (b"" if inner.endswith(b"{") else b",") + extra + b"}"


def merged_tool_calls(deltas: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls from their pieces: arguments are joined, by index."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for piece in delta.get("tool_calls") or ():
            call = calls.setdefault(
                piece.get("index", 0),
                {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
            )
            call["id"] = piece.get("id") or call["id"]
            function = piece.get("function") or {}
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""
    return [calls[index] for index in sorted(calls)]


def words_of(task: str, result: object) -> str:
    """An analysis' result as text, in the form that docs/nlp.md gives for its task."""
    if result is None:
        return ""
    return result if isinstance(result, str) else as_text(task, result)


def error_event(problem: Problem) -> bytes:
    """A `Problem` as a server-sent event, as OpenAI's SDKs expect it in mid-stream."""
    return b"data: " + dumps(error_object(problem)) + b"\n\n"

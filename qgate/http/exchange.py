"""One HTTP request and its answer, over ASGI: headers, a bounded body, JSON, SSE, and who has left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final

from qgate.capability.work import Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream; charset=utf-8"

_NO_STORE: Final = (b"cache-control", b"no-store")


_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    return _encode(value).encode()


def error_object(problem: Problem) -> dict[str, Any]:
    """A `Problem` in the shape of OpenAI's errors."""
    message = f"{problem.message} ({problem.hint})" if problem.hint else problem.message
    error: dict[str, Any] = {
        "message": message,
        "type": problem.type,
        "param": problem.param,
        "code": problem.code,
    }
    if problem.hint:
        error["hint"] = problem.hint
    if problem.detail:
        error["detail"] = dict(problem.detail)
    return {"error": error}


class Exchange:
    """A request with its answer. ``state`` is what the connection knows: sidecar, source, how to cut it."""

    __slots__ = ("_complete", "_receive", "_send", "extra", "headers", "method", "path", "started", "state")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Iterable[Header] = scope["headers"]
        self.state: Mapping[str, Any] = scope.get("state") or {}
        self.extra: list[Header] = []
        """Headers that every answer to this request carries."""
        self.started = False
        self._complete = False

    def header(self, name: bytes) -> str | None:
        """A request header; the first where it comes several times. ``name`` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None

    async def body(self, limit: int) -> bytes:
        """Read the whole body. `Problem` 413 as soon as it is known to be longer than ``limit`` bytes."""
        told = self.header(b"content-length")
        if told is not None and told.isdecimal() and int(told) > limit:
            raise too_large(limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts) if len(parts) > 1 else part

    async def answer(self, status: int, body: bytes, *headers: Header, content_type: bytes = JSON) -> None:
        """Send a whole answer."""
        await self._start(
            status,
            [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), _NO_STORE, *headers],
        )
        self._complete = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def problem(self, problem: Problem) -> None:
        """Answer with an error."""
        headers: list[Header] = []
        if problem.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(problem.retry_after_s))))
        if problem.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if problem.status == 413:
            headers.append((b"connection", b"close"))  # the rest of the body is not waited for
        said = error_object(problem)
        if self.path.startswith("/api/"):  # Ollama's clients show what stands under ``error`` as it is
            said = {**said["error"], "error": said["error"]["message"]}
        await self.answer(problem.status, dumps(said), *headers)

    async def begin(self, content_type: bytes, *headers: Header) -> None:
        """Begin an answer whose end is not known yet."""
        await self._start(200, [(b"content-type", content_type), _NO_STORE, *headers])

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece, and the mark that it was the last."""
        self._complete = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def cut(self) -> None:
        """End the connection so that nobody can take what was sent for complete."""
        self._complete = True
        close = self.state.get("close")
        if close is not None:
            close()
            await asyncio.sleep(0)  # the server learns of it before this request's task returns to it

    def attended(self) -> AbstractAsyncContextManager[None]:
        """Run the body of ``async with`` only while the client is there.

        When it leaves, the body is cancelled and `ClientLeftError` raised in its place.
        """
        presence = self.state.get("presence")
        return self._watched() if presence is None else _Attended(self, presence)

    @property
    def complete(self) -> bool:
        """Whether all was said: a client that leaves now misses nothing."""
        return self._complete

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """`attended` where only the server's `receive` tells of a client that leaves."""
        presence = Presence()

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            presence.leave()

        watcher = asyncio.get_running_loop().create_task(watch())
        try:
            async with _Attended(self, presence):
                yield
        finally:
            watcher.cancel()

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.started = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self.extra]}
        )


class Presence:
    """Whether a connection's client is there. One request at a time can ask to be told when it leaves."""

    __slots__ = ("_told", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._told: Callable[[], None] | None = None

    def watch(self, told: Callable[[], None]) -> None:
        """Call ``told`` when it leaves."""
        self._told = told

    def forget(self, told: Callable[[], None]) -> None:
        """It need not be told any more; another one that asked since still is."""
        if self._told == told:
            self._told = None

    def leave(self) -> None:
        """It is gone."""
        self.gone = True
        told, self._told = self._told, None
        if told is not None:
            told()


class _Attended:
    """See `Exchange.attended`."""

    __slots__ = ("_exchange", "_left", "_presence", "_task")

    def __init__(self, exchange: Exchange, presence: Presence) -> None:
        self._exchange = exchange
        self._presence = presence
        self._left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._presence.watch(self._leaves)
        if self._presence.gone:
            self._leaves()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._presence.forget(self._leaves)
        if self._left and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientLeftError from None

    def _leaves(self) -> None:
        if not self._exchange.complete:
            self._left = True
            self._task.cancel()


class ClientLeftError(Exception):
    """The client closed its connection before it had its answer."""


def too_large(limit: int) -> Problem:
    """The 413 of a body beyond ``limit`` bytes."""
    return Problem(
        f"the request's body is longer than {limit} bytes",
        code="payload_too_large",
        hint="send less text, or have the administrator raise http.max_body",
    )

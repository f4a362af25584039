"""Attempts at model APIs over HTTPS: connections that are kept, a task an attempt.

A provider's key is opened for the one call that carries it and is in no message, log or repr. Redirects are
not followed. The answer is asked for without compression, so that each chunk can be passed on when it comes.
Nothing of a request or an answer is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from qgate.capability.providers import http_errors
from qgate.capability.providers.anthropic import AnthropicDialect
from qgate.capability.providers.catalogue import Provider, key_purpose
from qgate.capability.providers.connection import (
    BrokenError,
    Connection,
    Connections,
    NotHttpError,
    UnreachableError,
)
from qgate.capability.providers.deadline import Deadline
from qgate.capability.providers.dialect import (
    Dialect,
    InvalidAnswerError,
    StreamedError,
    UntranslatableError,
)
from qgate.capability.providers.openai import OpenAIDialect
from qgate.capability.providers.sse import EventStream, EventStreamError
from qgate.capability.work import Attempt, Blame, Failure, Running, Sink, Usage
from qgate.governance.directory import Directory
from qgate.vault import VaultError

BODY_MAX: Final = 64 << 20
"""Bytes of an answer that is not streamed; a thousand embeddings of 4,096 numbers have about 50 MB."""
ERROR_BODY_MAX: Final = 64 << 10
KEEP_ALIVE_S: Final = 30.0
DRAIN_S: Final = 0.5
DRAIN_MAX: Final = 16 << 10
_LATE: Final = "did not begin to answer in time"
_SILENT: Final = "fell silent in the middle of its answer"
_DIALECTS: Final = {"openai": OpenAIDialect, "anthropic": AnthropicDialect}

log = structlog.get_logger(__name__)


def _plain(value: object) -> object:
    """Mappings and tuples that are no JSON types of their own."""
    if hasattr(value, "items"):
        return dict(value.items())
    return list(value)  # type: ignore[call-overload]


_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain).encode


class ProviderExecutor:
    """Carries out attempts at the directory's providers. `open` before the first one, `close` at the end.

    `clock` gives unix seconds. `tls` is what a server must prove; None: the system's certificates.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        clock: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._tls = tls
        self._connections: Connections | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: Counter[str] = Counter()

    async def open(self) -> None:
        """Be ready for attempts, on the loop that will make them."""
        self._connections = Connections(keep_s=KEEP_ALIVE_S, tls=self._tls)

    async def close(self) -> None:
        """Cancel what runs and close every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connections is not None:
            self._connections.close()
            self._connections = None

    def running(self, provider: str) -> int:
        """How many attempts are under way at a provider."""
        return self._busy[provider]

    def start(self, attempt: Attempt, sink: Sink) -> Running:
        """Begin, without waiting."""
        call = _ProviderCall(attempt, sink)
        name = attempt.candidate.node
        provider = self._directory.providers().get(name)
        if provider is None or not provider.enabled or self._connections is None:
            what = "is not there any more" if provider is None else "is switched off"
            sink.failed(_unspent("unavailable", f"{name} {what}"))
            return call
        if attempt.emitted or attempt.emitted_text:
            sink.failed(
                _unspent("stream_interrupted", f"{name} cannot go on with another's answer", retriable=False)
            )
            return call
        if self._busy[name] >= provider.max_concurrent:
            sink.failed(
                _unspent(
                    "queue_full",
                    f"{name} has {provider.max_concurrent} requests of this gate already",
                    retry_after_s=1.0,
                )
            )
            return call
        try:
            key = self._key(provider)
        except VaultError as error:
            log.warning("a provider's key cannot be opened", provider=name, reason=error.message)
            sink.failed(_unspent("provider_error", f"the key for {name} cannot be opened"))
            return call
        self._busy[name] += 1
        task = asyncio.get_running_loop().create_task(
            call.run(self._connections, provider, key, self._clock), name=f"provider {name}"
        )
        call.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(name, done))
        return call

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._busy[name] -= 1

    def _key(self, provider: Provider) -> str:
        if provider.sealed_key is None:
            return ""
        return self._directory.open_key(provider.sealed_key, key_purpose(provider)).decode()


class _ProviderCall:
    """One attempt under way: an `Running`."""

    def __init__(self, attempt: Attempt, sink: Sink) -> None:
        self.task: asyncio.Task[None] | None = None
        self._attempt = attempt
        self._sink = sink
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._chunks = 0

    def cancel(self) -> None:
        """Drop the connection, which tells the provider."""
        if self.task is not None:
            self.task.cancel()

    def pause(self) -> None:
        """Read no further; the provider's sending comes to a halt by itself."""
        self._flowing.clear()

    def resume(self) -> None:
        """Read on."""
        self._flowing.set()

    async def run(
        self, connections: Connections, provider: Provider, key: str, clock: Callable[[], float]
    ) -> None:
        """Everything from the request to `done` or `failed`."""
        failure: Failure
        deadline = Deadline(
            self._total(provider),
            "did not end its answer in time",
            provider.connect_timeout_s + provider.first_byte_timeout_s,
            _LATE,
            least_s=provider.idle_timeout_s,
        )
        try:
            dialect = _DIALECTS[provider.kind](self._attempt, provider)
            async with deadline:
                failed = await self._exchange(connections, dialect, key, clock, deadline)
            if failed is None:
                return
            failure = failed
        except UntranslatableError as error:
            failure = _unspent("unsupported", f"{provider.name}: {error.message}")
        except StreamedError as error:
            failure = http_errors.stream_failure(error.error, provider=provider.name, key=key, now=clock())
        except (InvalidAnswerError, EventStreamError) as error:
            failure = http_errors.invalid(provider.name, str(error))
        except TimeoutError:
            what = deadline.what if deadline.expired else _LATE
            failure = Failure("unavailable", f"{provider.name} {what}", retriable=True, blame="provider")
        except (OSError, NotHttpError) as error:
            failure = self._network(provider, error)
        except Exception as error:  # a defect must end the attempt, not the client's patience
            log.error("an attempt at a provider failed", provider=provider.name, error=type(error).__name__)
            failure = Failure("internal_error", "a defect of the gate", retriable=True, blame="provider")
        self._sink.failed(self._interrupted(provider, failure))

    async def _exchange(
        self,
        connections: Connections,
        dialect: Dialect,
        key: str,
        clock: Callable[[], float],
        deadline: Deadline,
    ) -> Failure | None:
        provider = dialect.provider
        call = dialect.call(key)
        place = connections.place(call.url)
        body = _encode(call.body).encode("utf-8", "replace")
        connection = await connections.take(place, connect_s=provider.connect_timeout_s)
        try:
            connection.ask(place, call.headers, body)
            await connection.head()
            if connection.status != 200:
                said = await self._beginning(connection, provider, deadline)
                return http_errors.failure_of(
                    connection.status,
                    connection.headers,
                    said,
                    provider=provider.name,
                    key=key,
                    now=clock(),
                )
            if problem := _unusable(connection, stream=self._attempt.work.stream):
                return http_errors.invalid(provider.name, problem)
            self._sink.accepted(state="resident")
            if self._attempt.work.stream:
                return await self._stream(connection, dialect, deadline)
            return await self._whole(connection, dialect, deadline)
        finally:
            connections.give_back(connection)

    async def _stream(self, connection: Connection, dialect: Dialect, deadline: Deadline) -> Failure | None:
        provider, events = dialect.provider, EventStream()
        lines = -1
        while not dialect.complete:
            # A trickle of single bytes that never makes a line is as good as silence.
            if events.lines != lines:
                lines = events.lines
                deadline.within(provider.idle_timeout_s, _SILENT)
            data = await self._more(connection, provider, deadline)
            if not data:
                break
            for event in events.feed(data):
                piece = dialect.event(event.name, event.data)
                if piece is not None:
                    self._chunks += 1
                    self._sink.chunk(piece.chunk)
        ended = dialect.ended()
        if dialect.complete and ended is not None:
            self._sink.done(*ended, model_version=dialect.version)
            await _drain(connection)
            return None
        if ended is None or events.inside:
            return Failure(
                "stream_interrupted",
                f"{provider.name} broke off in the middle of its answer",
                retriable=True,
                blame="provider",
            )
        self._sink.done(*ended, model_version=dialect.version)
        return None

    async def _whole(self, connection: Connection, dialect: Dialect, deadline: Deadline) -> Failure | None:
        provider = dialect.provider
        deadline.within(provider.idle_timeout_s, _SILENT)
        parts: list[bytes] = []
        size = 0
        while data := await self._more(connection, provider, deadline):
            deadline.within(provider.idle_timeout_s, _SILENT)
            parts.append(data)
            size += len(data)
            if size > BODY_MAX:
                return http_errors.invalid(provider.name, f"it has more than {BODY_MAX >> 20} MiB")
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        reason, usage, result = dialect.answer(body)
        self._sink.done(
            reason, usage, result=result, raw=dialect.whole_answer(body), model_version=dialect.version
        )
        return None

    async def _more(self, connection: Connection, provider: Provider, deadline: Deadline) -> bytes:
        """What arrives next; empty at the end. While the client reads too slowly, nobody is silent."""
        if not self._flowing.is_set():
            deadline.unhurried()
            await self._flowing.wait()
            deadline.within(provider.idle_timeout_s, _SILENT)
        return await connection.more()

    async def _beginning(self, connection: Connection, provider: Provider, deadline: Deadline) -> bytes:
        """As much of an error's body as is worth reading."""
        body = bytearray()
        deadline.unhurried()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(provider.idle_timeout_s):
                while len(body) < ERROR_BODY_MAX and (data := await connection.more()):
                    body += data
        return bytes(body[:ERROR_BODY_MAX])

    def _total(self, provider: Provider) -> float:
        deadline = self._attempt.deadline_s
        return provider.total_timeout_s if deadline is None else min(deadline, provider.total_timeout_s)

    def _interrupted(self, provider: Provider, failure: Failure) -> Failure:
        """The same failure as seen by a client who has part of the answer already."""
        if not self._chunks or failure.code == "stream_interrupted":
            return failure
        return Failure(
            "stream_interrupted",
            f"{provider.name} broke off in the middle of its answer: {failure.message}",
            retriable=True,
            retry_after_s=failure.retry_after_s,
            blame=failure.blame,
            status=failure.status,
        )

    def _network(self, provider: Provider, error: Exception) -> Failure:
        name = provider.name
        if isinstance(error, NotHttpError):
            return http_errors.invalid(name, "it is not HTTP")
        if isinstance(error, ssl.SSLError):
            return _unspent("provider_error", f"{name} could not prove who it is (TLS certificate)")
        if isinstance(error, UnreachableError):
            return _unspent("unavailable", f"{name} cannot be reached", blame="network")
        if isinstance(error, BrokenError):
            what = f"{name} ended the connection in the middle of its answer"
        else:
            what = f"the connection to {name} was lost"
        return Failure("unavailable", what, retriable=True, blame="network")


def _unspent(
    code: str,
    message: str,
    *,
    retriable: bool = True,
    retry_after_s: float | None = None,
    blame: Blame = "provider",
) -> Failure:
    """A failure before anything was sent, so that nothing can have been charged."""
    return Failure(
        code, message, retriable=retriable, retry_after_s=retry_after_s, blame=blame, usage=Usage()
    )


async def _drain(connection: Connection) -> None:
    """Read past the end of a stream that is over, so that the connection can be used again."""
    left = DRAIN_MAX
    with contextlib.suppress(OSError):
        async with asyncio.timeout(DRAIN_S):
            while left > 0 and (data := await connection.more()):
                left -= len(data)


def _unusable(connection: Connection, *, stream: bool) -> str:
    """Why an answer with status 200 cannot be read; "" where it can."""
    headers = connection.headers
    if headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
        return "it is compressed, although it was asked not to be"
    wanted = "text/event-stream" if stream else "application/json"
    given = headers.get("content-type", "").partition(";")[0].strip().lower() or "without a content type"
    return "" if given == wanted else f"it is {given[:60]}, not {wanted}"

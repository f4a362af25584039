"""Talking to an inference server beside this daemon: requests, streams, and what may go wrong with both.

What a server says is somebody else's data: answers are read up to a bound, must be JSON, and a stream that
ends without its last word is a failure, never a clean end. Bodies pass through as they are; no field is
known here but those that this daemon sets.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, ClassVar, Final

import aiohttp
import structlog

from qdaemon.runtimes.engine import Sink
from tunnel_proto.errors import MeshError
from tunnel_proto.messages import JobStart, ModelState, RuntimeState
from tunnel_proto.shapes import ShapeError, json_value

log = structlog.get_logger()

ANSWER_MAX: Final = 64 << 20  # bytes of one JSON answer
LINE_MAX: Final = 4 << 20  # bytes of one event
CONNECT_S: Final = 5.0
SILENCE_S: Final = 300.0
"""A server that says nothing for so long is taken for dead; a long prompt on a slow machine takes minutes."""
LOOK_S: Final = 3.0

_EVENT: Final = json_value(depth=24, nodes=50_000)  # less than a message takes: it is wrapped in one


class EngineError(MeshError):
    """A server beside us failed; ``code`` is for machines."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", retriable: bool = True, blame: str = "node"
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retriable = retriable
        self.blame = blame


class Server:
    """One server: where it is and how it is spoken to."""

    def __init__(self, url: str, *, key: str = "", silence_s: float = SILENCE_S) -> None:
        self.url = url.rstrip("/")
        self._silence_s = silence_s
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str) -> Any:
        """GET JSON while looking around. Raises `EngineError`."""
        timeout = aiohttp.ClientTimeout(total=LOOK_S)
        return await self._whole("GET", path, None, timeout)

    async def ask(self, path: str, body: Mapping[str, Any], *, seconds: float = LOOK_S) -> Any:
        """POST JSON and return the JSON that comes back. Raises `EngineError`."""
        return await self._whole("POST", path, body, aiohttp.ClientTimeout(total=seconds))

    async def lines(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """POST JSON and yield the lines of the answer. Raises `EngineError`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._silence_s)
        try:
            async with self._opened().post(
                self.url + path,
                data=_json(body),
                headers=self._headers(),
                timeout=timeout,
                allow_redirects=False,
            ) as reply:
                if reply.status != 200:
                    raise refused(reply.status, await _bounded(reply, LINE_MAX))
                rest = b""
                async for chunk in reply.content.iter_any():
                    rest += chunk
                    if len(rest) > LINE_MAX:
                        raise EngineError("engine_garbage", "the engine sent an event without an end")
                    *whole, rest = rest.split(b"\n")
                    for line in whole:
                        yield line.rstrip(b"\r")
                if rest:
                    yield rest
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(error) from None

    async def _whole(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: aiohttp.ClientTimeout
    ) -> Any:
        try:
            async with self._opened().request(
                method,
                self.url + path,
                data=None if body is None else _json(body),
                headers=self._headers(),
                timeout=timeout,
                allow_redirects=False,
            ) as reply:
                data = await _bounded(reply, ANSWER_MAX)
                if reply.status != 200:
                    raise refused(reply.status, data)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(error) from None
        return parsed(data)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=False), trust_env=False
            )
        return self._session

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers


class HttpJob:
    """A job at such a server: a task that ends with one word to the sink."""

    def __init__(self, start: JobStart, sink: Sink, work: Callable[[HttpJob], Awaitable[None]]) -> None:
        self.start = start
        self.sink = sink
        self._gate = asyncio.Event()
        self._gate.set()
        self._task = asyncio.get_running_loop().create_task(self._run(work))

    def cancel(self) -> None:
        """Hang up: servers stop generating then."""
        self._task.cancel()

    def pause(self) -> None:
        """Read no further; the server stops when its socket is full."""
        self._gate.clear()

    def resume(self) -> None:
        self._gate.set()

    async def turn(self) -> None:
        """Wait while paused."""
        await self._gate.wait()

    async def _run(self, work: Callable[[HttpJob], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self.start.deadline_s):
                await work(self)
        except EngineError as error:
            blame: Any = error.blame
            self.sink.failed(error.code, error.message, retriable=error.retriable, blame=blame)
        except TimeoutError:
            self.sink.failed(
                "deadline_exceeded",
                "its time was over before the engine was done",
                retriable=False,
                blame="node",
            )
        except Exception as error:
            # Without the traceback: an exception's text may quote what a client sent.
            log.error("external job failed", job=self.start.job, kind=type(error).__name__)
            self.sink.failed(
                "defect", "a defect of the daemon; its log has more", retriable=True, blame="node"
            )


class HttpEngine(ABC):
    """A server that lists its models and takes jobs; ``kind`` is whose API it speaks."""

    kind: ClassVar[str]

    def __init__(self, server: Server, *, name: str, isolation: str = "none", slots: int = 4) -> None:
        self.server = server
        self.name = name
        self.slots = slots
        self.isolation = f"declared-{isolation}"
        self.build = ""

    @abstractmethod
    async def interrogate(self) -> list[ModelState]:
        """Its models as they are now. Raises `EngineError` where it is no server of this kind."""

    def state(self, models: int, problem: str = "") -> RuntimeState:
        """The server as gates are told of it."""
        return RuntimeState(
            name=self.name,
            engine=self.kind,
            url=self.server.url,
            build=self.build,
            state="down" if problem else "up",
            problem=problem,
            isolation=self.isolation,
            models=models,
        )

    def submit(self, start: JobStart, sink: Sink) -> HttpJob:
        """Begin a job."""
        return HttpJob(start, sink, self._run)

    async def close(self) -> None:
        await self.server.close()

    @abstractmethod
    async def _run(self, job: HttpJob) -> None: ...


def parsed(data: bytes) -> Any:
    """JSON from an engine, in which all text is text and all numbers are finite. Raises `EngineError`."""
    try:
        value = json.loads(data, parse_constant=_no_constant)
        if b"\\u" in data:  # half of a surrogate pair can only be written so
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise EngineError("engine_garbage", "the engine answered with something that is not JSON") from None
    return value


def parsed_event(data: bytes) -> dict[str, Any]:
    """One event of a stream, small enough to be passed on as a whole. Raises `EngineError`."""
    event = parsed(data)
    if not isinstance(event, dict):
        raise EngineError("engine_garbage", "the engine sent an event that is no object")
    try:
        _EVENT(event)
    except ShapeError:
        raise EngineError("engine_garbage", "the engine sent an event that no message can carry") from None
    if "error" in event:
        raise EngineError("engine_failed", "the engine failed in the middle of its answer")
    return event


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def refused(status: int, data: bytes) -> EngineError:
    """An answer that is no success. The engine's own words are not repeated: they may quote the request."""
    if status in {400, 404, 413, 422}:
        code = {404: "model_not_found", 413: "payload_too_large"}.get(status, "invalid_request")
        said = _field_at_fault(data)
        text = f"the engine refused the request with status {status}" + (f" (at {said})" if said else "")
        return EngineError(code, text, retriable=status == 404, blame="node" if status == 404 else "request")
    if status in {401, 403}:
        return EngineError("engine_key", f"the engine wants another key (status {status})")
    if status in {429, 503}:
        return EngineError("busy", f"the engine has no room now (status {status})")
    return EngineError("engine_failed", f"the engine failed with status {status}")


def unreachable(error: BaseException) -> EngineError:
    """No connection, or one that broke."""
    return EngineError("engine_lost", f"the engine cannot be reached or went away ({type(error).__name__})")


def _field_at_fault(data: bytes) -> str:
    """The parameter that an OpenAI-shaped error names, if it is one word."""
    try:
        param = json.loads(data)["error"]["param"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return param if isinstance(param, str) and param.isidentifier() and len(param) < 40 else ""


async def _bounded(reply: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    async for chunk in reply.content.iter_any():
        data += chunk
        if len(data) > most:
            raise EngineError("engine_garbage", f"the engine's answer is longer than {most} bytes")
    return bytes(data)


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")

"""A model API on a real socket that answers byte for byte as a test tells it, and misbehaves on request."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

Reply = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request that arrived, and the means to answer it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    writer: asyncio.StreamWriter = field(repr=False)
    closed: asyncio.Event = field(repr=False)

    @property
    def json(self) -> dict[str, Any]:
        """The body."""
        document: dict[str, Any] = json.loads(self.body)
        return document

    async def head(self, status: int = 200, **headers: str) -> None:
        """The head of an answer whose body is sent in chunks, unless a length is given."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if "content-length" not in named:
            named.setdefault("transfer-encoding", "chunked")
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in named.items())]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """One chunk of the body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """The last chunk."""
        await self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """End the connection with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def cut(self) -> None:
        """End the connection in an orderly way."""
        self.writer.close()


class ModelApi:
    """Serves `reply` on a free port; `seen` are the requests so far. Use as `async with`."""

    def __init__(self, reply: Reply | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.reply = reply or answer(chat())
        self.seen: list[Exchange] = []
        self.connections = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it is, as a provider's URL."""
        assert self._server is not None
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connection(self) -> asyncio.StreamReaderProtocol:
        gone = asyncio.Event()
        reader = asyncio.StreamReader()
        return _Connection(reader, lambda reader, writer: self._accept(reader, writer, gone), gone)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while (exchange := await self._request(reader, writer, gone)) is not None:
                self.seen.append(exchange)
                await self.reply(exchange)
                if writer.transport.is_closing() or gone.is_set():
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event
    ) -> Exchange | None:
        line = (await reader.readline()).decode()
        if not line:
            return None
        method, path, _ = line.split()
        headers = {}
        while text := (await reader.readline()).decode().strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Exchange(method, path, headers, body, writer, gone)


class _Connection(asyncio.StreamReaderProtocol):
    """Tells when the client hangs up, also while nobody reads."""

    def __init__(self, reader: asyncio.StreamReader, accept: Any, gone: asyncio.Event) -> None:
        super().__init__(reader, accept)
        self._gone = gone

    def eof_received(self) -> bool:
        self._gone.set()
        return bool(super().eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        super().connection_lost(exc)


# --- answers


def answer(document: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON answer in one piece."""

    async def reply(exchange: Exchange) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        given = {"content_type": "application/json"} | headers
        await exchange.head(status, content_length=str(len(body)), **given)
        await exchange.send(body)

    return reply


def events(*payloads: Any, end: bool = True, done: bool = True) -> Reply:
    """An event stream in OpenAI's shape; bytes are sent as they are, the rest as JSON."""

    async def reply(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream; charset=utf-8")
        for payload in payloads:
            data = (
                payload if isinstance(payload, bytes) else b"data: " + json.dumps(payload).encode() + b"\n\n"
            )
            await exchange.chunk(data)
        if done:
            await exchange.chunk(b"data: [DONE]\n\n")
        if end:
            await exchange.end()

    return reply


def chat(text: str = "hello", *, usage: bool = True) -> dict[str, Any]:
    """A chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "big-2026-01-01",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        **({"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}} if usage else {}),
    }


def piece(text: str | None = None, *, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of a streamed chat."""
    given = {**({} if text is None else {"content": text}), **delta}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "big-2026-01-01",
        "choices": [{"index": 0, "delta": given, "finish_reason": finish}],
    }


USAGE = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "big",
    "choices": [],
} | {"usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}}

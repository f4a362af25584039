"""Connections to model APIs, on asyncio's loop and on uvloop, which the gate runs on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from qgate.capability.providers.connection import (
    HEAD_MAX,
    UNREAD_MAX,
    BrokenError,
    Connection,
    Connections,
    NotHttpError,
    Place,
    UnreachableError,
)
from tests.qgate.model_api import Exchange, ModelApi, answer
from tests.qgate.test_providers import tls_contexts

Scene = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    """Runs a scene on a loop of its own, in ten seconds at most."""

    def played(scene: Scene) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await scene()

        request.param(bounded())

    return played


def pool(keep_s: float = 30.0, tls: ssl.SSLContext | None = None) -> Connections:
    return Connections(keep_s=keep_s, tls=tls)


async def asked(connections: Connections, url: str, body: bytes = b"{}", **headers: str) -> Connection:
    """A connection whose answer has begun."""
    place = connections.place(url)
    connection = await connections.take(place, connect_s=5.0)
    connection.ask(place, headers, body)
    await connection.head()
    return connection


async def read(connection: Connection) -> bytes:
    """The rest of the answer."""
    parts = []
    while part := await connection.more():
        parts.append(part)
    return b"".join(parts)


async def once(connections: Connections, url: str) -> bytes:
    """One request from beginning to end."""
    connection = await asked(connections, url)
    try:
        return await read(connection)
    finally:
        connections.give_back(connection)


def test_one_connection_after_another_is_one(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        connections = pool()
        async with ModelApi(answer({"a": 1}, x_odd=" caf\u00e9 ")) as api:
            for _ in range(5):
                connection = await asked(
                    connections, api.url + "/chat?x=%20", b"[1]", Authorization="Bearer k"
                )
                assert (connection.status, connection.headers["x-odd"]) == (200, "caf\u00e9")
                assert await read(connection) == b'{"a": 1}'
                connections.give_back(connection)
            assert api.connections == 1
            sent = api.seen[-1]
            assert (sent.method, sent.path, sent.body) == ("POST", "/v1/chat?x=%20", b"[1]")
            assert sent.headers["authorization"] == "Bearer k"
            assert sent.headers["host"] == api.url.removeprefix("http://").removesuffix("/v1")
            connections.close()
            await sent.closed.wait()

    play(scene)


def test_who_asks_at_the_same_time_has_a_connection_of_its_own(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        connections = pool()
        async with ModelApi() as api:
            one, other = await asked(connections, api.url), await asked(connections, api.url)
            assert one is not other
            assert await read(one) == await read(other)
            connections.give_back(one)
            connections.give_back(other)
            assert await connections.take(connections.place(api.url), connect_s=1.0) is other
            connections.close()

    play(scene)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi, and more than that",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nho",
    ],
)
def test_a_connection_that_is_to_end_or_says_too_much_is_not_used_again(
    raw: bytes, play: Callable[[Scene], None]
) -> None:
    async def scene() -> None:
        async def reply(exchange: Exchange) -> None:
            await exchange.send(raw)

        connections = pool()
        async with ModelApi(reply) as api:
            for count in (1, 2):
                assert await once(connections, api.url) == b"hi"
                assert api.connections == count

    play(scene)


def test_a_server_that_hangs_up_between_two_requests_is_called_anew(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        connections = pool()
        async with ModelApi() as api:
            await once(connections, api.url)
            place = connections.place(api.url)
            connection = await connections.take(place, connect_s=1.0)
            connections.give_back(connection)
            api.seen[0].cut()
            while connection.usable:
                await asyncio.sleep(0.001)
            await once(connections, api.url)
            assert api.connections == 2
            connections.close()

    play(scene)


def test_early_hints_are_not_the_answer(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        async def reply(exchange: Exchange) -> None:
            await exchange.send(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n"
            )
            await answer({"a": 1})(exchange)

        connections = pool()
        async with ModelApi(reply) as api:
            for _ in range(2):
                connection = await asked(connections, api.url)
                assert (connection.status, "x-early" in connection.headers) == (200, False)
                assert await read(connection) == b'{"a": 1}'
                connections.give_back(connection)
            assert api.connections == 1
            connections.close()

    play(scene)


def test_a_body_may_end_with_its_connection(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        async def reply(exchange: Exchange) -> None:
            await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nto the end")
            exchange.cut()

        connections = pool()
        async with ModelApi(reply) as api:
            assert await once(connections, api.url) == b"to the end"
            await once(connections, api.url)
            assert api.connections == 2

    play(scene)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nno length\r\n",
    ],
)
def test_half_a_body_is_none(raw: bytes, play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        async def reply(exchange: Exchange) -> None:
            await exchange.send(raw)
            exchange.cut()

        connections = pool()
        async with ModelApi(reply) as api:
            connection = await asked(connections, api.url)
            assert await connection.more() == b"half"
            with pytest.raises(BrokenError):
                await connection.more()
            connections.give_back(connection)
            assert not connection.usable

    play(scene)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", BrokenError),
        (b"HTTP/1.1 200 OK\r\ncontent-", BrokenError),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", NotHttpError),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", NotHttpError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * (HEAD_MAX + 1), NotHttpError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", NotHttpError),
    ],
)
def test_what_is_no_answer_is_told_so(
    raw: bytes, error: type[Exception], play: Callable[[Scene], None]
) -> None:
    async def scene() -> None:
        async def reply(exchange: Exchange) -> None:
            await exchange.send(raw)
            exchange.cut()

        connections = pool()
        async with ModelApi(reply) as api:
            with pytest.raises(error):
                await asked(connections, api.url)

    play(scene)


def test_a_header_is_one_header(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        connections = pool()
        async with ModelApi() as api:
            for value in ("a\r\nx: y", "a\nb", "a\x00"):
                with pytest.raises(ValueError, match="control character"):
                    await asked(connections, api.url, Authorization=value)
            assert api.seen == []

    play(scene)


def test_what_nobody_reads_is_not_taken(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        whole = 40 * UNREAD_MAX
        sent = 0

        async def reply(exchange: Exchange) -> None:
            nonlocal sent
            await exchange.head(content_length=str(whole))
            while sent < whole:
                await exchange.send(b"x" * UNREAD_MAX)
                sent += UNREAD_MAX

        connections = pool()
        async with ModelApi(reply) as api:
            connection = await asked(connections, api.url)
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < whole
            assert len(await read(connection)) == whole
            connections.give_back(connection)
            assert connection.usable
            connections.close()

    play(scene)


def test_a_large_request_arrives_whole(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        connections = pool()
        async with ModelApi() as api:
            body = bytes(range(256)) * 20_000
            connection = await asked(connections, api.url, body)
            await read(connection)
            assert api.seen[0].body == body
            connections.give_back(connection)
            connections.close()

    play(scene)


def test_leaving_an_answer_hangs_up(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        async def reply(exchange: Exchange) -> None:
            await exchange.head(content_type="text/event-stream")
            await exchange.chunk(b"one")
            await exchange.closed.wait()

        connections = pool()
        async with ModelApi(reply) as api:
            connection = await asked(connections, api.url)
            assert await connection.more() == b"one"
            connections.give_back(connection)
            await api.seen[0].closed.wait()

    play(scene)


def test_what_is_idle_for_too_long_is_closed(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        connections = pool(keep_s=0.05)
        async with ModelApi() as api:
            await once(connections, api.url)
            await api.seen[0].closed.wait()

    play(scene)


def test_only_a_server_that_proves_who_it_is_is_asked(tmp_path: Path, play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        server, client = tls_contexts(tmp_path)
        async with ModelApi(tls=server) as api:
            trusting, strict = pool(tls=client), pool()
            for _ in range(2):
                await once(trusting, api.url)
            assert (api.connections, len(api.seen)) == (1, 2)
            trusting.close()
            with pytest.raises(ssl.SSLError):
                await once(strict, api.url)
            assert len(api.seen) == 2

    play(scene)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid", "a" * 70 + ".example"])
def test_nobody_there(host: str, play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        with pytest.raises(UnreachableError):
            await once(pool(), f"http://{host}/v1")

    play(scene)


def test_somebody_who_does_not_answer_the_call(play: Callable[[Scene], None]) -> None:
    async def scene() -> None:
        taken: list[asyncio.StreamWriter] = []

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken.append(writer)

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connections = pool()
        place = connections.place(f"https://127.0.0.1:{port}/v1")
        with pytest.raises(TimeoutError):
            await connections.take(place, connect_s=0.1)
        server.close()
        for writer in taken:
            writer.close()

    play(scene)


@pytest.mark.parametrize("url", ["ftp://host/x", "nonsense", "http:///x"])
def test_what_is_no_url_of_an_api(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Place.of(url)


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("https://api.example/v1/x", b"POST /v1/x HTTP/1.1", b"Host: api.example"),
        ("http://[::1]:8080/v1?a=b", b"POST /v1?a=b HTTP/1.1", b"Host: [::1]:8080"),
        ("https://b\u00fccher.example/a b", b"POST /a%20b HTTP/1.1", b"Host: xn--bcher-kva.example"),
    ],
)
def test_where_a_url_leads(url: str, line: bytes, host: bytes) -> None:
    assert Place.of(url).head.split(b"\r\n")[:2] == [line, host]

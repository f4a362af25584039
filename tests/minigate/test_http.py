"""An HTTP app and its stream: bytes as they are, and every way in which it can end."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

import pytest

from minigate.relay import EARLY_DATA_MAX
from minigate.sidecar import _DRAINING
from tests.minigate.conftest import KeyPair, open_wire, until
from tests.minigate.test_starting import App, connect
from tunnel_proto.constants import StreamCode
from tunnel_proto.link import StreamError

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def _refused(app: App) -> tuple[bytes, dict[str, Any]]:
    """The head and the error of an answer that ends the connection."""
    head, _, body = (await app.rest()).partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    return head, json.loads(body)["error"]


async def test_a_request_opens_a_stream_and_is_never_compressed() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST[:30])
        stream = await wire.stream()
        own_host, own_port = app.writer.get_extra_info("sockname")
        assert stream.kind == "http"
        assert stream.metadata == {"source": f"{own_host}:{own_port}", "uid": None, "tls": False}
        app.send(REQUEST[30:])
        await until(lambda: stream.data == REQUEST)
        assert all(sensitive for _, sensitive in stream.written)
        stream.receiver.data_received(ANSWER, True)
        assert await app.read(len(ANSWER)) == ANSWER
        assert stream.returned == len(ANSWER)
        assert wire.connections.counts.recognised == {"http": 1}


@pytest.mark.parametrize("half", [True, False])
async def test_an_app_that_closes_cancels(half: bool) -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        if half:
            app.writer.write_eof()
        else:
            app.writer.close()
        await until(lambda: stream.reset_with is not None)
        assert stream.reset_with is not None
        assert stream.reset_with[0] == StreamCode.CANCELLED
        if half:
            assert await app.rest() == b""
        await until(lambda: not wire.connections.live)


async def test_credit_is_held_back_while_the_app_does_not_read() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        block, sent = b"x" * 65536, 0
        while stream.returned == sent and sent < 1 << 28:
            stream.receiver.data_received(block, False)
            sent += len(block)
        before = stream.returned
        assert before < sent
        async with asyncio.timeout(60):
            left = sent
            while left:
                left -= len(await app.reader.read(1 << 20))
        await until(lambda: stream.returned == sent)


async def test_an_app_that_writes_too_much_is_not_read() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        await until(lambda: stream.data == REQUEST)
        stream.receiver.pause_writing()
        app.send(b"x" * 4_000_000)
        stream.receiver.resume_writing()
        await until(lambda: len(stream.data) == len(REQUEST) + 4_000_000)


# --- the gate fails


@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [
        (StreamCode.GATE_SHUTDOWN, b"503", True),
        (StreamCode.SESSION_LOST, b"503", True),
        (StreamCode.LIMIT, b"503", True),
        (StreamCode.REFUSED, b"502", False),
        (StreamCode.INTERNAL, b"502", False),
        (StreamCode.REVOKED, b"403", False),
    ],
)
async def test_before_an_answer_a_failure_is_told(code: StreamCode, status: bytes, retry: bool) -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        stream.receiver.stream_closed(StreamError(code, "for a reason"))
        head, error = await _refused(app)
        assert head.split(b" ")[1] == status
        assert (b"\r\nRetry-After: 1\r\n" in head) == retry
        assert "for a reason" in error["message"]
        assert set(error) == {"message", "type", "param", "code"}


async def test_inside_an_answer_a_failure_resets_the_connection() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        stream.receiver.data_received(ANSWER[:-1], False)
        assert await app.read(len(ANSWER) - 1) == ANSWER[:-1]
        stream.receiver.stream_closed(StreamError(StreamCode.SESSION_LOST))
        with pytest.raises(ConnectionResetError):
            await app.read(1)
        assert wire.connections.counts.aborted == 1


async def test_between_answers_a_failure_closes_and_says_nothing() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        stream.receiver.data_received(ANSWER, True)
        assert await app.read(len(ANSWER)) == ANSWER
        stream.receiver.stream_closed(StreamError(StreamCode.SESSION_LOST))
        assert await app.rest() == b""
        assert wire.connections.counts.aborted == 0


async def test_the_second_request_of_a_connection_is_told_too() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        stream.receiver.data_received(ANSWER, True)
        assert await app.read(len(ANSWER)) == ANSWER
        app.send(REQUEST)
        await until(lambda: stream.data == REQUEST * 2)
        stream.receiver.stream_closed(StreamError(StreamCode.SESSION_LOST))
        head, _ = await _refused(app)
        assert b" 503 " in head


async def test_the_gates_end_is_the_connections_end_and_a_refused_body_goes_nowhere() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        stream.receiver.data_received(ANSWER, True)
        stream.receiver.eof_received()
        assert await app.read(len(ANSWER)) == ANSWER
        app.send(b"y" * 1_000_000)
        assert await app.rest() == b""
        assert b"y" not in stream.data


# --- no gate


async def test_without_a_gate_the_app_is_told_at_once() -> None:
    async with open_wire(up=False) as wire, connect(wire) as app:
        wire.gate.become("connecting", "connection refused")
        app.send(REQUEST)
        head, error = await _refused(app)
        assert b" 503 " in head
        assert b"\r\nRetry-After: 1\r\n" in head
        assert "gate hq at 10.0.0.1:7443: connection refused" in error["message"]
        assert error["code"] == "no_gate"


async def test_a_head_request_gets_no_body() -> None:
    async with open_wire(up=False) as wire, connect(wire) as app:
        app.send(b"HEAD /v1/models HTTP/1.1\r\n\r\n")
        assert (await app.rest()).endswith(b"\r\n\r\n")


async def test_with_patience_a_long_request_waits_and_is_not_read_beyond_a_bound() -> None:
    async with open_wire(up=False, patience_s=30) as wire, connect(wire) as app:
        app.send(REQUEST + b"x" * 5_000_000)
        await until(lambda: len(wire.connections.waiting) == 1)
        (waiting,) = wire.connections.waiting
        await until(lambda: len(waiting._rest) > EARLY_DATA_MAX)  # type: ignore[attr-defined]
        wire.gate.become("up")
        stream = await wire.stream()
        await until(lambda: len(stream.data) == len(REQUEST) + 5_000_000)


async def test_a_full_link_and_too_many_connections_are_told() -> None:
    async with open_wire(max_connections=1) as wire, connect(wire) as first:
        wire.gate.full = True
        first.send(REQUEST)
        assert (await _refused(first))[1]["code"] == "too_many_streams"
        wire.gate.full = False
        async with connect(wire) as second, connect(wire) as third:
            second.send(REQUEST)
            await wire.stream()
            third.send(REQUEST)
            assert (await _refused(third))[1]["code"] == "too_many_connections"


# --- drain


async def test_a_drain_ends_idle_connections_and_tells_the_others() -> None:
    async with open_wire() as wire, connect(wire) as idle, connect(wire) as asking, connect(wire) as inside:
        for number, app in enumerate((idle, asking, inside)):
            app.send(REQUEST)
            await wire.stream(number)
        first, second, third = wire.gate.opened
        first.receiver.data_received(ANSWER, True)
        await idle.read(len(ANSWER))
        third.receiver.data_received(ANSWER[:-1], False)
        await inside.read(len(ANSWER) - 1)
        ended = [side.end_idle(_DRAINING) for side in list(wire.connections.live)]
        assert sorted(ended) == [False, False, True]
        assert await idle.rest() == b""
        for side in list(wire.connections.live):
            side.end_now(_DRAINING)
        head, _ = await _refused(asking)
        assert b" 503 " in head
        with pytest.raises(ConnectionResetError):
            await inside.read(1)
        assert [one.reset_with is not None for one in (first, second, third)] == [True] * 3


# --- local TLS


@pytest.mark.parametrize("alpn", [["http/1.1"], ["h2", "http/1.1"], []])
async def test_https_where_a_certificate_is_configured(key_pair: KeyPair, alpn: list[str]) -> None:
    context = ssl.create_default_context(cafile=key_pair.certificate)
    if alpn:
        context.set_alpn_protocols(alpn)
    async with open_wire(certificate=key_pair.load()) as wire:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", wire.port, ssl=context, server_hostname="localhost"
        )
        app = App(reader, writer)
        app.send(REQUEST)
        stream = await wire.stream()
        assert (stream.kind, stream.metadata["tls"]) == ("http", True)
        stream.receiver.data_received(ANSWER, True)
        assert await app.read(len(ANSWER)) == ANSWER
        writer.close()
        await until(lambda: stream.reset_with is not None)


async def test_http2_without_tls_is_told_to_use_http1() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b"HTTP/1.1" in await app.rest()
        assert wire.connections.counts.refused["HTTP/2"] == 1

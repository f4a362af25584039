"""Sessions at a pool that the sidecar has left: which go on elsewhere, which wait, what the rest is told."""

from __future__ import annotations

import json

import pytest

from minigate.pools import _leave_behind
from tests.minigate.conftest import Wire, open_wire, until
from tests.minigate.gates import RecordedStream
from tests.minigate.test_starting import SASL, STARTUP, App, connect
from tunnel_proto.constants import StreamCode
from tunnel_proto.link import StreamError
from tunnel_proto.pgwire import (
    AUTHENTICATION_OK,
    authentication_sasl_continue,
    query,
    ready_for_query,
    sasl_response,
)

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
LOST = StreamError(StreamCode.SESSION_LOST, "the tunnel stayed down for too long")


async def begun(wire: Wire, app: App) -> RecordedStream:
    app.send(STARTUP)
    await app.read(len(SASL))
    stream = await wire.stream()
    app.send(sasl_response(b"proof"))
    await until(lambda: stream.data == sasl_response(b"proof"))
    return stream


async def logged_in(wire: Wire, app: App) -> RecordedStream:
    stream = await begun(wire, app)
    greeting = AUTHENTICATION_OK + ready_for_query(b"I")
    stream.receiver.data_received(greeting, True)
    await app.read(len(greeting))
    return stream


async def test_who_has_not_heard_a_word_goes_to_the_next_pool_unnoticed() -> None:
    async with open_wire(patience_s=10) as wire, connect(wire) as app:
        first = await begun(wire, app)
        wire.gate.become("lost", "reset")
        _leave_behind(wire.gate)
        assert first.reset_with is not None
        assert first.reset_with[0] == StreamCode.CANCELLED
        wire.gate.become("up")
        second = await wire.stream(1)
        assert second.data == sasl_response(b"proof")
        challenge = authentication_sasl_continue(b"r=nonce")
        second.receiver.data_received(challenge, True)
        assert await app.read(len(challenge)) == challenge, "and no second greeting before it"


async def test_who_is_in_the_middle_of_its_log_in_is_told_at_once() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await begun(wire, app)
        challenge = authentication_sasl_continue(b"r=nonce")
        stream.receiver.data_received(challenge, True)
        await app.read(len(challenge))
        wire.gate.become("lost", "reset")
        _leave_behind(wire.gate)
        assert (await app.error())["C"] == "57P01"


@pytest.mark.parametrize(
    ("state", "asked", "sqlstate"),
    [
        (b"I", False, "57P01"),
        (b"T", False, "57P01"),
        (b"E", False, "57P01"),
        (b"T", True, "08007"),
        (b"I", True, "08007"),
    ],
)
async def test_a_session_waits_for_its_window_and_is_told_what_is_known(
    state: bytes, asked: bool, sqlstate: str
) -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await logged_in(wire, app)
        app.send(query("BEGIN"))
        await until(lambda: len(stream.written) == 2)
        stream.receiver.data_received(ready_for_query(state), True)
        await app.read(len(ready_for_query(state)))
        if asked:
            app.send(query("COMMIT"))
            await until(lambda: len(stream.written) == 3)
        wire.gate.become("lost", "reset")
        _leave_behind(wire.gate)
        assert stream.reset_with is None
        assert len(wire.connections.live) == 1
        stream.receiver.stream_closed(LOST)
        error = await app.error()
        assert error["C"] == sqlstate
        assert "moved to another pool" in error["M"]


async def test_a_session_whose_link_comes_back_goes_on_as_if_nothing_had_been() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await logged_in(wire, app)
        _leave_behind(wire.gate)
        stream.receiver.link_restored()
        stream.receiver.data_received(ready_for_query(b"I"), True)
        await app.read(len(ready_for_query(b"I")))
        stream.receiver.stream_closed(LOST)
        assert (await app.error())["C"] == "08006"


async def test_an_error_is_never_put_into_the_middle_of_a_row() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await logged_in(wire, app)
        app.send(query("SELECT 1"))
        await until(lambda: len(stream.written) == 2)
        stream.receiver.data_received(b"D\0\0\1\0half", False)
        await app.read(9)
        _leave_behind(wire.gate)
        stream.receiver.stream_closed(LOST)
        with pytest.raises(ConnectionResetError):
            await app.rest()


async def test_a_session_that_is_drained_is_told_what_is_known() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await logged_in(wire, app)
        app.send(query("INSERT"))
        await until(lambda: len(stream.written) == 2)
        (side,) = wire.connections.live
        side.leave()
        assert (await app.error())["C"] == "08007"
        assert stream.reset_with is not None


async def test_a_request_without_an_answer_is_told_to_try_again() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        await until(lambda: stream.data == REQUEST)
        wire.gate.become("lost", "reset")
        _leave_behind(wire.gate)
        head, _, body = (await app.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"Retry-After" in head
        assert "moved to another pool" in json.loads(body)["error"]["message"]


async def test_an_answer_that_has_begun_waits_for_its_link() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(REQUEST)
        stream = await wire.stream()
        stream.receiver.data_received(b"HTTP/1.1 200 OK\r\n", False)
        await app.read(17)
        _leave_behind(wire.gate)
        assert stream.reset_with is None
        stream.receiver.data_received(b"Content-Length: 0\r\n\r\n", True)
        assert await app.read(21) == b"Content-Length: 0\r\n\r\n"

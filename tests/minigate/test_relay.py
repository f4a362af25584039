"""One app and its stream: bytes and credit both ways, and every way in which it can end."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigate.relay import SQLSTATES, AuthenticationWatch, stream_error_response
from tests.minigate.conftest import Wire, open_wire, until
from tests.minigate.gates import RecordedStream
from tests.minigate.test_starting import SASL, STARTUP, App, connect
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Discard
from tunnel_proto.link import StreamError
from tunnel_proto.pgwire import (
    AUTHENTICATION_OK,
    TERMINATE,
    authentication_sasl_continue,
    authentication_sasl_final,
    message,
    parse_report,
    query,
    ready_for_query,
    sasl_response,
)

READY = ready_for_query(b"I")


async def _log_in(wire: Wire, app: App, *, number: int = 0) -> RecordedStream:
    """Play the gate until the app is logged in and idle."""
    app.send(STARTUP)
    await app.read(len(SASL))
    stream = await wire.stream(number)
    app.send(sasl_response(b"secret"))
    await until(lambda: stream.data == sasl_response(b"secret"))
    greeting = AUTHENTICATION_OK + READY
    stream.receiver.data_received(greeting, True)
    assert await app.read(len(greeting)) == greeting
    return stream


# --- data


async def test_only_what_precedes_authentication_ok_is_sensitive() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        app.send(query("SELECT 1"))
        await until(lambda: len(stream.written) == 2)
        assert [sensitive for _, sensitive in stream.written] == [True, False]


@given(
    data=st.sampled_from(
        [
            authentication_sasl_continue(b"R\0\0\0\x08\0\0\0\0") + authentication_sasl_final(b"v=x"),
            message(b"N", b"notice R\0\0\0\x08\0\0\0\0"),
            b"",
        ]
    ),
    after=st.binary(max_size=20),
    cuts=st.lists(st.integers(min_value=1, max_value=60), max_size=6),
)
def test_authentication_ok_is_found_in_any_chunking(data: bytes, after: bytes, cuts: list[int]) -> None:
    whole = data + AUTHENTICATION_OK + after
    end = len(data) + len(AUTHENTICATION_OK)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    watch = AuthenticationWatch()
    for start, stop in pairwise(edges):
        found = watch.feed(whole[start:stop])
        assert found == (stop >= end)
        if found:
            break


async def test_credit_returns_as_the_app_reads() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        before = stream.returned
        stream.receiver.data_received(b"d" * 1000, False)
        assert await app.read(1000) == b"d" * 1000
        assert stream.returned == before + 1000


async def test_credit_is_held_back_while_the_app_does_not_read() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        before, sent = stream.returned, 0
        # A gate with a window of 1 MiB: it stops as soon as that much credit is outstanding.
        while sent - (stream.returned - before) < 1024 * 1024:
            stream.receiver.data_received(b"d" * 65536, False)
            sent += 65536
            await asyncio.sleep(0)
            assert sent < 64 * 1024 * 1024
        (side,) = wire.connections.live
        assert side.transport.get_write_buffer_size() <= 2 * 1024 * 1024
        received = len(await app.read(sent))
        assert received == sent
        await until(lambda: stream.returned - before == sent)


async def test_a_stream_without_credit_stops_the_app() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        stream.receiver.pause_writing()
        app.send(b"x" * 100)
        await until(lambda: not app.writer.transport.get_write_buffer_size())
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(stream.written) == 1
        stream.receiver.resume_writing()
        await until(lambda: stream.data.endswith(b"x" * 100))


# --- ends


async def test_the_apps_half_close_is_passed_on_and_the_answer_still_comes() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        app.send(query("SELECT 1"))
        app.writer.write_eof()
        await until(lambda: stream.ended)
        stream.receiver.data_received(READY, True)
        stream.receiver.eof_received()
        stream.receiver.stream_closed(None)
        assert await app.rest() == READY
        await until(lambda: not wire.connections.live)
        assert stream.reset_with is None


async def test_terminate_then_close_ends_quietly() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        app.send(TERMINATE)
        app.writer.close()
        await until(lambda: stream.ended)
        assert stream.data.endswith(TERMINATE)
        stream.receiver.eof_received()
        stream.receiver.stream_closed(None)
        await until(lambda: not wire.connections.live)
        assert stream.reset_with is None


async def test_an_app_that_is_gone_resets_its_stream() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        app.writer.transport.abort()
        await until(lambda: stream.ended)

        def gone() -> bool:  # a first write is answered by RST, a later one finds that out
            if stream.reset_with is None:
                stream.receiver.data_received(b"d" * 1000, False)
            return not wire.connections.live

        await until(gone)
        assert stream.reset_with == (StreamCode.CANCELLED, "the app closed its connection")


async def test_the_gates_end_reaches_the_app() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        stream.receiver.data_received(b"bye", True)
        stream.receiver.eof_received()
        assert await app.rest() == b"bye"
        app.writer.close()
        await until(lambda: stream.ended)


@pytest.mark.parametrize(
    ("code", "sqlstate"),
    [
        (StreamCode.GATE_SHUTDOWN, "57P01"),
        (StreamCode.REVOKED, "57P01"),
        (StreamCode.SESSION_LOST, "08006"),
        (StreamCode.UPSTREAM_LOST, "08006"),
        (StreamCode.LIMIT, "53300"),
        (StreamCode.REFUSED, "08004"),
        (StreamCode.BOMB, "08P01"),
    ],
)
async def test_a_failed_stream_is_told_at_a_message_boundary(code: StreamCode, sqlstate: str) -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        app.send(query("SELECT 1"))
        await until(lambda: len(stream.written) == 2)
        stream.receiver.stream_closed(StreamError(code))
        error = await app.error()
        assert (error["S"], error["C"]) == ("FATAL", sqlstate)
        assert error["M"]
        assert await app.rest() == b""
        assert wire.connections.counts.errors == {sqlstate: 1}
        app.writer.close()
        await until(lambda: not wire.connections.live)


async def test_a_failed_stream_resets_the_app_inside_a_message() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        stream.receiver.data_received(b"D\0\0\1\0half a row", False)
        assert (await app.read(15)).startswith(b"D")
        stream.receiver.stream_closed(StreamError(StreamCode.SESSION_LOST))
        with pytest.raises(ConnectionResetError):
            await app.read(1)
        assert wire.connections.counts.aborted == 1
        assert not wire.connections.live


async def test_a_reset_before_any_answer_is_told_after_our_own_greeting() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(STARTUP)
        await app.read(len(SASL))
        stream = await wire.stream()
        stream.receiver.stream_closed(
            StreamError(StreamCode.REFUSED, "this sidecar may not", sqlstate="28000")
        )
        error = await app.error()
        assert (error["C"], error["M"]) == ("28000", "this sidecar may not")


async def test_an_app_that_does_not_close_is_cut_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_wire() as wire, connect(wire) as app:
        wire.connections.lingering.period_s = 0.1
        stream = await _log_in(wire, app)
        stream.receiver.stream_closed(StreamError(StreamCode.REVOKED))
        assert (await app.error())["C"] == "57P01"
        await until(lambda: not wire.connections.live)


@given(
    code=st.sampled_from(list(StreamCode)),
    text=st.text(max_size=50),
)
def test_every_code_has_an_error_that_drivers_can_read(code: StreamCode, text: str) -> None:
    response = stream_error_response(StreamError(code, text.encode("utf-8", "ignore").decode()))
    fields = parse_report(response[5:])
    assert len(fields["C"]) == 5
    assert fields["C"] == SQLSTATES[code]


# --- a gate that goes away before its first word


async def test_an_app_that_logs_in_while_its_gate_drains_is_moved_and_does_not_notice() -> None:
    async with open_wire(patience_s=30) as wire, connect(wire) as app:
        app.send(STARTUP)
        assert await app.read(len(SASL)) == SASL
        old = await wire.stream()
        app.send(sasl_response(b"client-first"))
        await until(lambda: bool(old.written))
        wire.gate.become("draining", "going down")  # a new client is made for the same gate
        old.receiver.stream_closed(StreamError(StreamCode.GATE_SHUTDOWN, "draining"))
        await until(lambda: len(wire.connections.waiting) == 1)
        wire.gate.become("up")
        new = await wire.stream()
        assert new is not old
        assert new.metadata == old.metadata
        assert new.written == [(sasl_response(b"client-first"), True)]
        new.receiver.data_received(AUTHENTICATION_OK + READY, True)
        assert await app.read(9 + len(READY)) == AUTHENTICATION_OK + READY
        assert len(wire.connections.live) == 1


async def test_an_app_is_not_handed_round_for_ever() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(STARTUP)
        assert await app.read(len(SASL)) == SASL
        for number in range(3):
            stream = await wire.stream(number)
            stream.receiver.stream_closed(StreamError(StreamCode.GATE_SHUTDOWN))
        assert (await app.error())["C"] == "57P01"
        assert len(wire.gate.opened) == 3


async def test_once_the_gate_has_spoken_its_end_is_told() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(STARTUP)
        await app.read(len(SASL))
        stream = await wire.stream()
        challenge = authentication_sasl_continue(b"r=nonce")
        stream.receiver.data_received(challenge, True)
        assert await app.read(len(challenge)) == challenge
        stream.receiver.stream_closed(StreamError(StreamCode.GATE_SHUTDOWN))
        assert (await app.error())["C"] == "57P01"
        assert len(wire.gate.opened) == 1


# --- drain


async def test_an_idle_app_is_told_to_go_and_its_session_ends_in_order() -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        (side,) = wire.connections.live
        assert side.end_idle(StreamError(StreamCode.GATE_SHUTDOWN, "shutting down"))
        assert (await app.error())["C"] == "57P01"
        assert stream.data.endswith(TERMINATE)
        assert stream.ended
        receiver: object = stream.receiver
        assert isinstance(receiver, Discard)
        stream.receiver.data_received(b"late", True)
        stream.receiver.stream_closed(None)
        app.writer.close()
        await until(lambda: not wire.connections.live)
        assert stream.reset_with is None


@pytest.mark.parametrize("state", [b"T", b"E", b"busy"])
async def test_a_busy_app_is_not_idle(state: bytes) -> None:
    async with open_wire() as wire, connect(wire) as app:
        stream = await _log_in(wire, app)
        (side,) = wire.connections.live
        app.send(query("BEGIN"))
        await until(lambda: len(stream.written) == 2)
        if state != b"busy":
            stream.receiver.data_received(ready_for_query(state), True)
        assert not side.end_idle(StreamError(StreamCode.GATE_SHUTDOWN))
        side.end_now(StreamError(StreamCode.GATE_SHUTDOWN, sqlstate="57P01"))
        if state != b"busy":
            await app.read(len(READY))
        assert (await app.error())["C"] == "57P01"
        assert stream.reset_with is not None

"""The tunnel over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.kit.process import free_port
from tests.tunnel_proto.wire import QUICK, Collector, Echo, Wire, wire
from tunnel_proto.constants import STREAM_WINDOW, StreamCode
from tunnel_proto.errors import LocalProtocolError, TunnelError
from tunnel_proto.link import StreamError, TunnelServer
from tunnel_proto.pump import Stream


async def test_a_stream_carries_bytes_both_ways_and_closes() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        stream.write(b"hello ", boundary=False)
        stream.write(b"world", boundary=True)
        await here.until(lambda: bytes(here.data) == b"hello world")
        assert here.boundaries[-1] is True
        stream.write_eof()
        await here.until(lambda: bool(here.closed))
        assert here.closed == [None]
        assert here.eof
        assert w.accepted[0].closed == [None]
        assert not w.client.streams


async def test_bulk_both_ways() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        data = os.urandom(20 * 1024 * 1024)
        stream.write(data)
        await here.until(lambda: len(here.data) == len(data))
        assert bytes(here.data) == data


async def test_the_gate_opens_streams_to_a_client_that_takes_them() -> None:
    taken = Echo()

    def take(stream: Stream) -> None:
        taken.stream = stream
        stream.receiver = taken

    async with wire(on_stream_here=take) as w:
        at_gate = Collector()
        stream = w.sessions[0].open_stream("job", {"id": "1"}, at_gate)
        at_gate.stream = stream
        stream.write(b"work", boundary=True)
        await at_gate.until(lambda: bytes(at_gate.data) == b"work")
        assert taken.stream is not None
        assert taken.stream.kind == "job"
        w.proxy.cut()
        await at_gate.until(lambda: at_gate.restored == 1)
        stream.write_eof()
        await at_gate.until(lambda: bool(at_gate.closed))
        assert at_gate.closed == [None]
    with pytest.raises(LocalProtocolError, match="over"):
        w.sessions[0].open_stream("job", {}, Collector())


async def test_a_client_that_takes_no_streams_refuses_them() -> None:
    async with wire() as w:
        at_gate = Collector()
        at_gate.stream = w.sessions[0].open_stream("job", {}, at_gate)
        await at_gate.until(lambda: bool(at_gate.closed))
        (error,) = at_gate.closed
        assert error is not None
        assert error.code == StreamCode.REFUSED


async def test_a_cut_link_is_resumed_and_nobody_notices() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        data = os.urandom(8 * 1024 * 1024)
        for start in range(0, len(data), 1 << 20):
            stream.write(data[start : start + (1 << 20)])
            await here.until(lambda start=start: len(here.data) > start // 2)  # type: ignore[misc]
            w.proxy.cut()
        await here.until(lambda: len(here.data) == len(data))
        assert bytes(here.data) == data
        assert w.client.stats.resumes >= 2
        assert here.closed == []


async def test_streams_opened_while_the_link_is_lost_wait_for_it() -> None:
    async with wire() as w:
        first = Collector()
        w.open(first).write(b"a")
        await first.until(lambda: bytes(first.data) == b"a")
        w.proxy.accepting = False
        w.proxy.cut()
        await first.until(lambda: first.lost == 1)
        assert w.client.state == "lost"
        later = Collector()
        w.open(later).write(b"patience")
        w.proxy.accepting = True
        await later.until(lambda: bytes(later.data) == b"patience")
        assert first.restored == 1
        assert w.accepted[0].lost == 1
        assert w.accepted[0].restored == 1


async def test_past_the_window_streams_end_as_lost_and_a_new_session_begins() -> None:
    settings = replace(QUICK, resume_window_s=0.2)
    async with wire(settings) as w:
        here = Collector()
        w.open(here).write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        w.proxy.accepting = False
        w.proxy.cut()
        await here.until(lambda: bool(here.closed))
        await w.accepted[0].until(lambda: bool(w.accepted[0].closed))
        for receiver in (here, w.accepted[0]):
            (error,) = receiver.closed
            assert error is not None
            assert error.code == StreamCode.SESSION_LOST
        assert not w.server.sessions
        w.proxy.accepting = True
        await w.client.wait_up(60)
        again = Collector()
        w.open(again).write(b"b")
        await again.until(lambda: bytes(again.data) == b"b")


async def test_a_gate_that_lost_the_session_ends_its_streams_honestly() -> None:
    async with wire() as w:
        here = Collector()
        w.open(here).write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        w.proxy.accepting = False
        w.proxy.cut()
        await here.until(lambda: here.lost == 1)
        w.sessions[0].close(StreamCode.INTERNAL, "forgotten")
        w.proxy.accepting = True
        await here.until(lambda: bool(here.closed))
        (error,) = here.closed
        assert error is not None
        assert error.code == StreamCode.SESSION_LOST
        await w.client.wait_up(60)


@pytest.mark.parametrize("forgetful", ["client", "gate"])
async def test_a_session_that_cannot_be_joined_ends_at_once(forgetful: str) -> None:
    """One side says that it has fewer records than it once acknowledged; no later link could mend that."""
    async with wire(replace(QUICK, resume_window_s=600)) as w:
        here = Collector()
        stream = w.open(here)
        client, gate = w.client._session, w.sessions[0].session
        assert client is not None
        while not (client.log.acknowledged and gate.log.acknowledged):
            before = len(here.data)
            stream.write(b"a")
            await here.until(lambda before=before: len(here.data) > before)  # type: ignore[misc]
        (client if forgetful == "client" else gate).received = 0
        w.proxy.cut()
        for receiver in (here, w.accepted[0]):
            await receiver.until(lambda receiver=receiver: bool(receiver.closed))  # type: ignore[misc]
            (error,) = receiver.closed
            assert error is not None
            assert error.code == StreamCode.SESSION_LOST
        await w.client.wait_up(60)
        again = Collector()
        w.open(again).write(b"b")
        await again.until(lambda: bytes(again.data) == b"b")
        assert len(w.server.sessions) == 1


async def test_a_stalled_link_is_found_dead_and_replaced() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        stream.write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        w.proxy.stall()
        stream.write(b"b")
        await here.until(lambda: here.lost >= 1)
        w.proxy.cut()
        w.proxy.flow()
        await here.until(lambda: bytes(here.data) == b"ab")


async def test_an_idle_link_that_stalls_is_found_dead() -> None:
    async with wire() as w:
        here = Collector()
        w.open(here)
        w.proxy.stall()
        await here.until(lambda: here.lost >= 1)
        assert "silent" in w.client.last_error
        w.proxy.flow()
        await here.until(lambda: here.restored >= 1)


async def test_a_reader_that_stalls_pauses_its_own_writer_and_nobody_else() -> None:
    async with wire(receivers=lambda s: Collector(consume=False) if s.kind == "stall" else Echo()) as w:
        stalled = Collector()
        stream = w.open(stalled, "stall")
        for _ in range(40):
            stream.write(bytes(65536))
        await stalled.until(lambda: stalled.paused == 1)
        assert not stream.writable
        here = Collector()
        other = w.open(here)
        data = os.urandom(3_000_000)
        other.write(data)
        await here.until(lambda: len(here.data) == len(data))
        assert len(w.accepted[0].data) == STREAM_WINDOW
        reader = w.accepted[0]
        assert reader.stream is not None
        reader.consume = True
        reader.stream.consumed(STREAM_WINDOW)
        await stalled.until(lambda: stalled.resumed == 1)
        await reader.until(lambda: len(reader.data) == 40 * 65536)


async def test_a_reset_reaches_the_other_side_with_its_reason_and_no_other_stream() -> None:
    async with wire() as w:
        one, two = Collector(), Collector()
        w.open(one).write(b"1")
        second = w.open(two)
        second.write(b"2")
        await two.until(lambda: bytes(two.data) == b"2")
        gate_stream = w.accepted[0].stream
        assert gate_stream is not None
        gate_stream.reset(StreamCode.UPSTREAM_LOST, "the server closed", sqlstate="57P01")
        await one.until(lambda: bool(one.closed))
        (error,) = one.closed
        assert error is not None
        assert (error.code, error.message, error.sqlstate) == (8, "the server closed", "57P01")
        assert w.accepted[0].closed == []
        second.write(b"3")
        await two.until(lambda: bytes(two.data) == b"23")


async def test_goaway_refuses_new_streams_and_lets_old_ones_finish() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        stream.write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        draining = asyncio.ensure_future(w.server.drain(5))
        while w.client.state != "draining":
            await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError, match="draining"):
            w.open(Collector())
        w.proxy.cut()  # a link may be resumed while the gate drains
        await here.until(lambda: here.restored == 1)
        stream.write(b"b")
        stream.write_eof()
        await here.until(lambda: bool(here.closed))
        assert here.closed == [None]
        assert bytes(here.data) == b"ab"
        await draining


async def test_a_revoked_session_ends_with_its_reason() -> None:
    async with wire() as w:
        here = Collector()
        w.open(here).write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        w.sessions[0].close(StreamCode.REVOKED, "the sidecar was revoked")
        await here.until(lambda: bool(here.closed))
        (error,) = here.closed
        assert error is not None
        assert error.code == StreamCode.REVOKED
        assert w.closed_sessions == w.sessions[:1]


async def test_a_restarted_node_ends_its_predecessors_session() -> None:
    async with wire() as w:
        here = Collector()
        w.open(here).write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        successor = w.successor()
        successor.start()
        try:
            await successor.wait_up(60)
            await w.accepted[0].until(lambda: bool(w.accepted[0].closed))
            assert w.accepted[0].closed[0] is not None
        finally:
            await w.client.close()
            await successor.close()


async def test_a_link_is_renewed_before_it_is_given_up() -> None:
    async with wire(replace(QUICK, renew_s=0.3)) as w:
        here = Collector()
        stream = w.open(here)
        sent = 0
        while w.client.stats.resumes < 3:
            stream.write(b"x" * 1000)
            sent += 1000
            await here.until(lambda sent=sent: len(here.data) == sent)  # type: ignore[misc]
        assert here.lost == 0
        assert w.accepted[0].lost == 0
        assert w.proxy.connections >= 4


async def test_a_client_reaches_the_gate_through_a_connect_proxy() -> None:
    async with wire(connect=False) as w:
        requests: list[bytes] = []

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            onward_reader, onward = await asyncio.open_connection(*w.server.listening[0])
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

            async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(copy(reader, onward), copy(onward_reader, writer))

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        client = w.successor(proxy=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        client.start()
        await client.wait_up(60)
        assert requests[0].startswith(f"CONNECT 127.0.0.1:{w.client.gate.port} HTTP/1.1\r\n".encode())
        await client.close()
        server.close()


@contextlib.asynccontextmanager
async def two_gates(**changes: Any) -> AsyncIterator[tuple[Wire, TunnelServer]]:
    """A session at the first gate, and new connections to the common address lead to the second."""
    port = free_port()
    async with wire(replace(QUICK, **changes), addresses=[f"127.0.0.1:{port}"], port=port) as w:
        second = w.make_server([])
        await second.start("127.0.0.1", 0)
        w.proxy.target = second.listening[0]
        yield w, second
        await w.client.close()
        await second.close()


async def test_a_session_is_resumed_at_the_gate_that_holds_it() -> None:
    async with two_gates() as (w, second):
        here = Collector()
        stream = w.open(here)
        stream.write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        w.proxy.cut()
        stream.write(b"b")
        await here.until(lambda: bytes(here.data) == b"ab")
        assert here.restored == 1
        assert not second.sessions
        # Gone from there as well, the session is lost and the next one begins at the common address.
        await w.server.close()
        await here.until(lambda: bool(here.closed))
        await w.client.wait_up(60)
        assert len(second.sessions) == 1


async def test_a_gate_that_cannot_be_dialled_itself_is_reached_as_configured() -> None:
    async with wire(addresses=[f"127.0.0.1:{free_port()}"]) as w:
        here = Collector()
        stream = w.open(here)
        w.proxy.cut()
        stream.write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        assert here.restored == 1


async def test_a_link_that_another_gate_will_not_renew_goes_on() -> None:
    async with two_gates(renew_s=0.3, retry_max_s=0.1) as (w, _):
        here = Collector()
        stream = w.open(here)
        for server in w.server._servers:  # from now on it cannot be dialled
            server.close()
        before = w.proxy.connections
        while w.proxy.connections < before + 2:
            stream.write(b"a")
            size = len(here.data)
            await here.until(lambda size=size: len(here.data) > size)  # type: ignore[misc]
        assert here.closed == []
        assert here.lost == 0


async def test_what_a_client_says_when_it_cannot_connect() -> None:
    async with wire(connect=False) as w:
        await w.proxy.close()
        w.client.start()
        with pytest.raises(TunnelError, match="cannot be reached"):
            await w.client.wait_up(0.3)
        assert w.client.last_error
        with pytest.raises(LocalProtocolError, match="connecting"):
            w.open(Collector())


async def test_a_receiver_that_raises_costs_its_own_stream_only() -> None:
    def broken(_: bytes) -> None:
        raise ValueError("bug")

    async with wire(receivers=lambda s: Collector(on_data=broken) if s.kind == "broken" else Echo()) as w:
        bad, good = Collector(), Collector()
        w.open(bad, "broken").write(b"x")
        w.open(good).write(b"y")
        await bad.until(lambda: bool(bad.closed))
        assert bad.closed[0] is not None
        assert bad.closed[0].code == StreamCode.INTERNAL
        await good.until(lambda: bytes(good.data) == b"y")
        failed = next(one for one in w.accepted if not isinstance(one, Echo))
        (told,) = failed.closed  # so that it can give back what it holds
        assert told is not None
        assert told.code == StreamCode.INTERNAL


async def test_a_receiver_that_fails_at_its_end_is_not_told_again() -> None:
    class Broken(Echo):
        def stream_closed(self, error: StreamError | None) -> None:
            super().stream_closed(error)
            raise ValueError("bug")

    async with wire(receivers=lambda _: Broken()) as w:
        bad, good = Collector(), Collector()
        w.open(bad).reset(StreamCode.CANCELLED, "enough")
        w.open(good).write(b"y")
        await good.until(lambda: bytes(good.data) == b"y")
        assert [len(one.closed) for one in w.accepted] == [1, 0]


async def test_with_compression_off_no_byte_of_what_is_said_is_on_the_wire() -> None:
    async with wire(replace(QUICK, compression="off")) as w:
        here = Collector()
        stream = w.client.open_stream("canary-kind", {"canary-key": b"canary-value"}, here)
        here.stream = stream
        stream.write(b"canary-data" * 100)
        await here.until(lambda: len(here.data) == 1100)
        w.sessions[0].close(StreamCode.REVOKED, "canary-reason")
        await here.until(lambda: bool(here.closed))
        assert b"canary" not in w.proxy.carried
        assert len(w.proxy.carried) > 2000


async def test_many_streams_over_a_link_that_dies_all_the_time() -> None:
    settings = replace(QUICK, resume_window_s=20, renew_s=0.5, rekey_bytes=1 << 18)
    async with wire(settings) as w:
        source = random.Random(7)

        async def converse(seed: int) -> None:
            mine = random.Random(seed)
            here = Collector()
            stream = w.open(here, compression=mine.choice(["auto", "off", "long"]))
            sent = bytearray()
            while w.client.stats.resumes < 12:
                data = b"row %d\t" % mine.randrange(99) * mine.randrange(1, 2000)
                stream.write(data + mine.randbytes(mine.randrange(3000)), boundary=True)
                sent = sent + data
                before = len(here.data)
                await here.until(lambda before=before: len(here.data) > before or bool(here.closed))  # type: ignore[misc]
                assert not here.closed
            stream.write_eof()
            await here.until(lambda: bool(here.closed))
            assert here.closed == [None]
            accepted = next(
                one for one in w.accepted if one.stream is not None and one.stream.id == stream.id
            )
            assert here.data == accepted.data
            assert len(here.data) > len(sent)

        async def torment() -> None:
            while w.client.stats.resumes < 12:
                await asyncio.sleep(source.uniform(0.01, 0.15))
                session = w.client._session
                if session is not None:  # compress on a link that is faster than any compressor
                    session.mux.compression.link_measured(source.choice([1e6, 1e9]))
                w.proxy.cut()

        await asyncio.gather(torment(), *(converse(seed) for seed in range(12)))
        assert w.client.stats.resent_bytes + w.sessions[0].stats.resent_bytes > 0
        assert len(w.sessions) == 1

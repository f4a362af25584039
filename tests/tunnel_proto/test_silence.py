"""What strangers get from a gate: not one byte, and little of its memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tracemalloc

import pytest

from tests.tunnel_proto.wire import QUICK, Collector, Wire, next_timestamp, wire
from tunnel_proto.cipher import RecordLayer
from tunnel_proto.constants import PROTOCOL_VERSIONS, FrameType
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.frame import Limits, Resume, Start, encode
from tunnel_proto.handshake import Established, Hello, InitiatorHandshake
from tunnel_proto.identity import Identity
from tunnel_proto.link import TunnelClient


@pytest.fixture(autouse=True)
def _short_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel_proto.admission.SILENT_HOLD_S", (0.05, 0.1))
    monkeypatch.setattr("tunnel_proto.acceptor.FIRST_MESSAGE_TIMEOUT_S", 0.3)


def hello(identity: Identity) -> Hello:
    del identity
    return Hello("client", PROTOCOL_VERSIONS, frozenset(), b"chain", next_timestamp())


async def answer(w: Wire, sent: bytes) -> bytes:
    """All bytes that a gate sends to who sends it ``sent``, until it hangs up."""
    reader, writer = await asyncio.open_connection(*w.server.listening[0])
    try:
        writer.write(sent)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00",
        os.urandom(64),
        os.urandom(4000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    ],
    ids=["nothing", "one byte", "random", "long random", "http", "tls", "SSLRequest"],
)
async def test_a_strangers_bytes_get_no_answer(sent: bytes) -> None:
    async with wire(connect=False) as w:
        assert await answer(w, sent) == b""
        await asyncio.sleep(0)
        assert not w.server.sessions


async def test_an_unknown_nodes_true_handshake_gets_no_answer() -> None:
    async with wire(connect=False) as w:
        stranger = Identity.generate()
        handshake = InitiatorHandshake(
            identity=stranger,
            hello=hello(stranger),
            responder_key=w.client.gate.handshake_public,
            ephemeral=os.urandom(32),
        )
        message = handshake.message_1()
        assert await answer(w, message) == b""
        assert await answer(w, message[:-1]) == b""
        assert await answer(w, message[:-1] + bytes([message[-1] ^ 1])) == b""


async def test_a_gigabyte_of_zeros_costs_no_memory() -> None:
    async with wire(connect=False) as w:
        tracemalloc.start()
        try:
            reader, writer = await asyncio.open_connection(*w.server.listening[0])
            zeros = bytes(1 << 20)
            sent = 0
            try:
                while sent < 1 << 30:
                    writer.write(zeros)
                    await writer.drain()
                    sent += len(zeros)
                raise AssertionError("the gate read a gigabyte from a stranger")
            except ConnectionError:
                pass
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.transport.abort()
            _, peak = tracemalloc.get_traced_memory()
            assert peak < 8 << 20  # the writer's own megabytes included
        finally:
            tracemalloc.stop()


async def test_handshakes_in_flight_are_limited() -> None:
    async with wire(connect=False) as w:
        w.server.admission._in_flight_max = 3
        connections = [await asyncio.open_connection(*w.server.listening[0]) for _ in range(3)]
        while w.server.admission.in_flight < 3:
            await asyncio.sleep(0)
        assert await answer(w, b"") == b""  # closed at once, not after the time for a first message
        for _, writer in connections:
            writer.transport.abort()
        while w.server.admission.in_flight:
            await asyncio.sleep(0)
        w.client.start()
        await w.client.wait_up(60)
        assert w.server.admission.in_flight == 0


class Raw:
    """A node's connection after its handshake, driven by hand."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, result: Established
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.link = RecordLayer(result.send_key, result.receive_key)

    def say(self, frame: bytes) -> None:
        self.writer.write(self.link.seal(b"\0" + frame))

    async def hear(self) -> bytes | None:
        """The next record's plaintext, None when the gate hangs up."""
        while (record := self.link.next_record()) is None:
            try:
                data = await self.reader.read(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self.link.feed(data)
        return record


async def known(w: Wire) -> Raw:
    identity = w.client._identity
    handshake = InitiatorHandshake(
        identity=identity,
        hello=hello(identity),
        responder_key=w.client.gate.handshake_public,
        ephemeral=os.urandom(32),
    )
    reader, writer = await asyncio.open_connection(*w.server.listening[0])
    w.writers.append(writer)
    writer.write(handshake.message_1())
    result = None
    while result is None:
        result = handshake.receive(await reader.read(65536))
    return Raw(reader, writer, result)


LIMITS = Limits(8, 0, 0, 0, 17)


async def test_a_handshake_alone_changes_no_session() -> None:
    """Message 1 can be replayed: only a valid record of its sender may start, resume or fence anything."""
    async with wire() as w:
        here = Collector()
        w.open(here).write(b"a")
        await here.until(lambda: bytes(here.data) == b"a")
        raw = await known(w)
        raw.writer.write(os.urandom(100))
        assert await raw.hear() is None
        assert list(w.server.sessions.values()) == w.sessions
        assert w.client.state == "up"
        assert here.lost == 0


async def test_the_first_record_must_be_start_or_resume_and_small() -> None:
    async with wire(connect=False) as w:
        for record in (encode(FrameType.PING, 0, bytes(8)), b"", encode(FrameType.START, 0, bytes(50))):
            raw = await known(w)
            raw.say(record)
            assert await raw.hear() is None
        raw = await known(w)
        raw.writer.write((100_000).to_bytes(4) + bytes(60_000))
        assert await raw.hear() is None
        assert not w.server.sessions


async def test_an_older_reconnect_that_arrives_late_is_refused_and_a_newer_one_fences() -> None:
    async with wire(connect=False) as w:
        ticket = os.urandom(32)
        first = await known(w)
        first.say(Start(ticket, bytes(16), b"", LIMITS).encode())
        assert await first.hear() is not None
        newer = await known(w)
        newer.say(Resume(ticket, 2, 0).encode())
        resumed = await newer.hear()
        assert resumed is not None
        assert resumed[1] == FrameType.RESUMED
        while await first.hear() is not None:  # fenced
            pass
        late = await known(w)
        late.say(Resume(ticket, 1, 0).encode())
        assert await late.hear() is None
        newer.say(encode(FrameType.PING, 0, bytes(8)))
        while (record := await newer.hear()) is not None and FrameType.PONG not in record[1:2]:
            pass
        assert record is not None


async def test_a_ticket_is_worth_nothing_to_another_node() -> None:
    async with wire() as w:
        ticket = w.sessions[0].session.ticket
        thief = Identity.generate()
        w.admit(thief, "thief")
        client = TunnelClient(
            identity=thief,
            chain=b"chain",
            gate=GateAddress("gate", "127.0.0.1", w.proxy.port, w.client.gate.handshake_public),
            settings=QUICK,
            role="client",
            next_timestamp=next_timestamp,
            on_state=lambda _: None,
        )
        w.client, original = client, w.client
        raw = await known(w)
        w.client = original
        raw.say(Resume(ticket, 99, 0).encode())
        refused = await raw.hear()
        assert refused is not None
        assert refused[1] == FrameType.REFUSED
        assert await raw.hear() is None
        assert w.client.state == "up"

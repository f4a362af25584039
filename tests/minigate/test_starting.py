"""Conversations with minigate over real sockets; the tunnel behind it is a stand-in."""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from minigate.connections import SPARE_CONNECTIONS
from minigate.settings import ListenSettings
from tests.minigate.conftest import KeyPair, Wire, open_wire, until
from tests.minigate.gates import address
from tunnel_proto.pgwire import (
    GSSENC_REQUEST,
    SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS,
    SSL_REQUEST,
    authentication_sasl,
    cancel_request,
    negotiate_protocol_version,
    parse_report,
    startup_packet,
)

STARTUP = startup_packet(0x0003_0000, {"user": "web", "database": "shop"})
SASL = authentication_sasl([SCRAM_SHA_256])


class App:
    """An app's socket, read with a limit on time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(60):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Everything until the other side closes."""
        async with asyncio.timeout(60):
            return await self.reader.read()

    async def error(self) -> dict[str, str]:
        """The ErrorResponse that comes next."""
        head = await self.read(5)
        assert head[:1] == b"E", head
        return parse_report(await self.read(int.from_bytes(head[1:], "big") - 4))


@asynccontextmanager
async def connect(wire: Wire, path: Path | None = None) -> AsyncIterator[App]:
    if path is None:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    else:
        reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield App(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_start_up_opens_a_stream_with_all_the_gate_needs() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(STARTUP)
        assert await app.read(len(SASL)) == SASL
        stream = await wire.stream()
        own_host, own_port = app.writer.get_extra_info("sockname")
        assert stream.kind == "pg"
        assert stream.metadata == {
            "startup": STARTUP,
            "tls": False,
            "cbind": None,
            "plus": False,
            "uid": None,
            "sasl_sent": True,
            "source": f"{own_host}:{own_port}",
        }


async def test_a_newer_protocol_is_negotiated_down() -> None:
    packet = startup_packet(0x0003_270F, {"user": "web", "_pq_.shine": "1", "_pq_.glow": "2"})
    async with open_wire() as wire, connect(wire) as app:
        app.send(packet)
        expected = negotiate_protocol_version(0x0003_0002, ["_pq_.glow", "_pq_.shine"]) + SASL
        assert await app.read(len(expected)) == expected
        assert (await wire.stream()).metadata["startup"] == packet


async def test_gss_then_ssl_then_plain() -> None:
    async with open_wire() as wire, connect(wire) as app:
        for request in (GSSENC_REQUEST, SSL_REQUEST):
            app.send(request)
            assert await app.read(1) == b"N"
        app.send(STARTUP)
        assert await app.read(len(SASL)) == SASL


async def test_the_unix_socket_tells_who_connects(tmp_path: Path) -> None:
    listen = ListenSettings(hosts=("127.0.0.1",), port=0, unix_socket=tmp_path)
    async with open_wire(listen=listen) as wire, connect(wire, tmp_path / f".s.PGSQL.{wire.port}") as app:
        app.send(STARTUP)
        assert await app.read(len(SASL)) == SASL
        metadata = (await wire.stream()).metadata
        assert (metadata["uid"], metadata["source"]) == (os.getuid(), "unix")


async def test_a_start_up_packet_that_is_too_long_is_refused_and_the_error_arrives() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(struct.pack("!II", 20_000, 0x0003_0000) + b"x" * 500_000)
        assert (await app.error())["C"] == "08P01"
        assert await app.rest() == b""
        assert wire.gate.opened == []


async def test_garbage_is_closed_without_a_word() -> None:
    async with open_wire() as wire, connect(wire) as app:
        app.send(b"\xde\xad\xbe\xef")
        assert await app.rest() == b""
        assert wire.connections.counts.refused["unrecognised"] == 1


async def test_a_slow_start_up_is_told_and_closed() -> None:
    async with open_wire(startup_timeout_s=0.2) as wire, connect(wire) as half, connect(wire) as silent:
        half.send(STARTUP[:7])
        assert (await half.error())["C"] == "57014"
        assert await half.rest() == b""
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await silent.read(1)


async def test_too_many_connections_are_told_so_and_cancels_still_pass() -> None:
    async with open_wire(max_connections=1) as wire, connect(wire) as first:
        first.send(STARTUP)
        await first.read(len(SASL))
        async with connect(wire) as second:
            second.send(STARTUP)
            assert (await second.error())["C"] == "53300"
        async with connect(wire) as third:
            third.send(cancel_request(1, b"key!"))
            assert await third.rest() == b""
        assert [stream.kind for stream in wire.gate.opened] == ["pg", "pg-cancel"]


async def test_a_crowd_that_says_nothing_is_bounded() -> None:
    async with open_wire(max_connections=1) as wire:
        apps = [await asyncio.open_connection("127.0.0.1", wire.port) for _ in range(SPARE_CONNECTIONS + 20)]
        await until(lambda: wire.connections.counts.refused["too many connections"] >= 19)
        assert len(wire.connections.starting) == SPARE_CONNECTIONS + 1
        for _, writer in apps:
            writer.close()
        await until(lambda: len(wire.connections.starting) == 0)


async def test_a_full_link_is_told_as_too_many_connections() -> None:
    async with open_wire() as wire, connect(wire) as app:
        wire.gate.full = True
        app.send(STARTUP)
        assert (await app.error())["C"] == "53300"


# --- cancel


async def test_a_cancel_goes_to_every_gate_and_is_closed_after_they_took_it() -> None:
    async with open_wire() as wire:
        wire.uplink.configure([address("hq"), address("spare")], b"chain")
        wire.gate.become("connecting", "was away")  # so that the second one is started
        spare = wire.pool.newest("spare")
        spare.become("up")
        hq = wire.pool.newest("hq")
        hq.become("up")
        hq.confirms_cancels = False
        async with connect(wire) as app:
            app.send(cancel_request(77, b"k" * 32))
            await until(lambda: bool(hq.opened) and bool(spare.opened))
            for gate in (hq, spare):
                assert gate.opened[0].metadata == {"pid": 77, "key": b"k" * 32}
                assert gate.opened[0].ended
            assert not app.reader.at_eof()
            hq.opened[0].receiver.stream_closed(None)
            assert await app.rest() == b""


async def test_a_cancel_without_gates_is_just_closed() -> None:
    async with open_wire(up=False) as wire, connect(wire) as app:
        app.send(cancel_request(77, b"1234"))
        assert await app.rest() == b""


# --- no gate


async def test_without_patience_the_app_is_told_at_once() -> None:
    async with open_wire(up=False) as wire, connect(wire) as app:
        wire.gate.become("connecting", "connection refused")
        app.send(STARTUP)
        error = await app.error()
        assert error["S"] == "FATAL"
        assert error["C"] == "08001"
        assert "gate hq at 10.0.0.1:7443: connection refused" in error["M"]
        assert await app.rest() == b""


async def test_with_patience_the_app_waits_for_the_gate() -> None:
    async with open_wire(up=False, patience_s=30) as wire, connect(wire) as app:
        app.send(STARTUP)
        await until(lambda: len(wire.connections.waiting) == 1)
        wire.gate.become("up")
        assert await app.read(len(SASL)) == SASL
        assert len(wire.connections.waiting) == 0


async def test_patience_ends() -> None:
    async with open_wire(patience_s=0.2) as wire, connect(wire) as app:
        wire.gate.become("lost", "timed out")
        app.send(STARTUP)
        error = await app.error()
        assert error["C"] == "08006"
        assert "link lost; timed out" in error["M"]


async def test_an_app_that_leaves_while_it_waits_is_forgotten() -> None:
    async with open_wire(up=False, patience_s=30) as wire:
        async with connect(wire) as app:
            app.send(STARTUP)
            await until(lambda: len(wire.connections.waiting) == 1)
        await until(lambda: len(wire.connections.waiting) == 0)
        wire.gate.become("up")
        assert wire.gate.opened == []


async def test_an_app_that_floods_while_it_waits_is_refused() -> None:
    async with open_wire(up=False, patience_s=30) as wire, connect(wire) as app:
        app.send(STARTUP + b"x" * 1_000_000)
        assert (await app.error())["C"] == "08P01"


# --- local TLS


def _client_context(key_pair: KeyPair, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=key_pair.certificate)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def test_direct_tls_with_alpn(key_pair: KeyPair) -> None:
    offered = authentication_sasl([SCRAM_SHA_256_PLUS, SCRAM_SHA_256])
    async with open_wire(certificate=key_pair.load()) as wire:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", wire.port, ssl=_client_context(key_pair, "postgresql"), server_hostname="localhost"
        )
        app = App(reader, writer)
        app.send(STARTUP)
        assert await app.read(len(offered)) == offered
        stream = await wire.stream()
        assert (stream.metadata["tls"], stream.metadata["plus"]) == (True, True)
        assert stream.metadata["cbind"] == key_pair.load().binding
        writer.close()
        await until(lambda: stream.ended)


async def test_direct_tls_without_alpn_is_closed(key_pair: KeyPair) -> None:
    async with open_wire(certificate=key_pair.load()) as wire:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", wire.port, ssl=_client_context(key_pair), server_hostname="localhost"
        )
        writer.write(STARTUP)
        assert await App(reader, writer).rest() == b""
        writer.close()
        assert wire.connections.counts.refused["direct TLS without ALPN"] == 1


async def test_a_cancel_inside_tls(key_pair: KeyPair) -> None:
    async with open_wire(certificate=key_pair.load()) as wire, connect(wire) as app:
        app.send(SSL_REQUEST)
        assert await app.read(1) == b"S"
        await app.writer.start_tls(_client_context(key_pair), server_hostname="localhost")
        app.send(cancel_request(5, b"abcd"))
        assert await app.rest() == b""
        assert wire.gate.opened[0].metadata == {"pid": 5, "key": b"abcd"}


async def test_bytes_stuffed_after_ssl_request_never_reach_the_session(key_pair: KeyPair) -> None:
    async with open_wire(certificate=key_pair.load()) as wire, connect(wire) as app:
        app.send(SSL_REQUEST + STARTUP)
        assert (await app.error())["C"] == "08P01"
        assert await app.rest() == b""
        assert wire.gate.opened == []


async def test_a_broken_tls_handshake_is_closed(key_pair: KeyPair) -> None:
    async with open_wire(certificate=key_pair.load()) as wire, connect(wire) as app:
        app.send(SSL_REQUEST)
        assert await app.read(1) == b"S"
        app.send(b"GET / HTTP/1.1\r\n\r\n" * 10)
        await app.rest()  # at most an alert
        await until(lambda: wire.connections.counts.refused["TLS handshake"] == 1)
        await until(lambda: len(wire.connections.starting) == 0)


async def test_direct_tls_without_a_certificate_gets_an_alert(key_pair: KeyPair) -> None:
    async with open_wire() as wire:
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(
                "127.0.0.1",
                wire.port,
                ssl=_client_context(key_pair, "postgresql"),
                server_hostname="localhost",
            )

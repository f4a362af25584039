"""Apps at the relay's door: real drivers, and log-ins spoken by hand over a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.qgate.wire import PASSWORD, Wire, WireStream
from tunnel_proto import pgwire, scram

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def connect(running: Wire, **more: str) -> Connection:
    return await psycopg.AsyncConnection.connect(running.dsn(**more), autocommit=True)


async def fetch(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(sql.encode())).fetchall()


async def refused(running: Wire, **more: str) -> psycopg.OperationalError:
    with pytest.raises(psycopg.OperationalError) as caught:
        await connect(running, **more)
    return caught.value


async def settled(running: Wire) -> None:
    """Wait until no session is live and no connection is being reset."""
    while running.front.live or running.front.pool._tasks:
        await asyncio.sleep(0.005)


async def begin(running: Wire, user: str, **metadata: Any) -> tuple[WireStream, scram.ScramClient]:
    """Open a stream as minigate would and send the client-first message."""
    packet = pgwire.startup_packet(pgwire.PROTOCOL_3_0, {"user": user, "database": "shop"})
    stream = WireStream({**running.metadata(packet), **metadata})
    running.front.accept(running.peer, stream)  # type: ignore[arg-type]
    binding = metadata.get("cbind") if metadata.get("plus") else None
    client = scram.ScramClient(nonce="abcdefghijklmnop", binding=binding)
    mechanism = "SCRAM-SHA-256-PLUS" if binding else "SCRAM-SHA-256"
    if not stream.metadata["sasl_sent"]:
        await take(stream, b"R")
    stream.arrive(pgwire.sasl_initial_response(mechanism, client.first()))
    return stream, client


async def take(stream: WireStream, *kinds: bytes) -> tuple[bytes, bytes]:
    """The next message that the gate wrote."""
    await stream.until(lambda: len(stream.out) >= 5)
    kind, length = bytes(stream.out[:1]), int.from_bytes(stream.out[1:5], "big")
    await stream.until(lambda: len(stream.out) >= length + 1)
    payload = bytes(stream.out[5 : length + 1])
    del stream.out[: length + 1]
    assert not kinds or kind in kinds, (kind, payload)
    return kind, payload


async def sasl_data(stream: WireStream) -> bytes:
    return (await take(stream, b"R"))[1][4:]


async def finish(stream: WireStream, client: scram.ScramClient, password: str) -> dict[str, str]:
    """Go on to the proof; the fields of the error that comes."""
    challenge = client.challenge(await sasl_data(stream))
    keys = scram.derive_keys(password.encode(), challenge.salt, challenge.iterations)
    stream.arrive(pgwire.sasl_response(client.final(keys)))
    _, payload = await take(stream, b"E")
    await stream.until(lambda: stream.eof_written)
    stream.close()
    return pgwire.parse_report(payload)


async def logged_in(running: Wire, user: str = "web", **metadata: Any) -> WireStream:
    """A stream past its log-in, everything up to ReadyForQuery taken."""
    stream, client = await begin(running, user, **metadata)
    challenge = client.challenge(await sasl_data(stream))
    keys = scram.derive_keys(PASSWORD.encode(), challenge.salt, challenge.iterations)
    stream.arrive(pgwire.sasl_response(client.final(keys)))
    client.verify(await sasl_data(stream))
    while (await take(stream))[0] != b"Z":
        pass
    return stream

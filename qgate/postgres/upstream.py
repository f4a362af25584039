"""One connection to a real PostgreSQL server, as an asyncio Protocol: no streams, no copies on the way
through.

An Upstream is born by `qgate.postgres.back.connect`, then lives in leases: while leased, its bytes go
straight to the lessee; between leases it is reset and waits in a pool, and whatever else happens to it
there is noticed.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from tunnel_proto import pgwire

WRITE_HIGH_WATER: Final = 256 * 1024
"""Bytes that may wait for the server's socket before the client's credit is withheld."""
_READ_HIGH_WATER: Final = 64 * 1024
MAX_RESET_MESSAGE: Final = 1 << 20
RESET_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection goes: a host name or address with its port, or a socket directory with its
    suffix.
    """

    host: str
    port: int

    @property
    def socket_path(self) -> str | None:
        """Path of the unix socket, None for TCP."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.host.startswith("/") else None

    def __str__(self) -> str:
        return self.socket_path or f"{self.host}:{self.port}"


class Lessee(Protocol):
    """Who holds the lease: called from the event loop, must not block."""

    def upstream_data(self, data: bytes) -> None:
        """Bytes from the server."""

    def upstream_lost(self, error: Exception | None) -> None:
        """The connection is gone; called once."""

    def upstream_full(self) -> None:
        """The server does not take what is written; write no more until `upstream_drained`."""

    def upstream_drained(self) -> None:
        """The server takes bytes again."""


class Upstream(asyncio.Protocol):
    """A connection to a server, logged in or on its way there."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.address = endpoint
        """Where it is connected to, host names looked up."""
        self.context: ssl.SSLContext | None = None
        """The TLS context in use, None for a bare connection; a cancel goes the same way."""
        self.parameters: dict[str, str] = {}
        """ParameterStatus as of the start of a lease."""
        self.pid: int | None = None
        self.key = b""
        self.version = 0
        self.method = ""
        self.password_index = 0
        """Which of the offered passwords was accepted."""
        self.cancelled = False
        """A cancel was sent for it: it must not be leased again."""
        self.lost = False
        self._lessee: Lessee | None = None
        self._transport: asyncio.Transport | None = None
        self._chunks = bytearray()
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.attach(cast(asyncio.Transport, transport))  # uvloop's is one without saying so

    def attach(self, transport: asyncio.Transport) -> None:
        """Use ``transport`` from now on (the bare one, then the one inside TLS)."""
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        lessee = self._lessee
        if lessee is not None:
            lessee.upstream_data(data)
            return
        self._chunks += data
        if len(self._chunks) > _READ_HIGH_WATER and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._error = exc
        lessee, self._lessee = self._lessee, None
        if lessee is not None:
            lessee.upstream_lost(exc)
        self._wake()

    def pause_writing(self) -> None:
        if self._lessee is not None:
            self._lessee.upstream_full()

    def resume_writing(self) -> None:
        if self._lessee is not None:
            self._lessee.upstream_drained()

    # --- for the lessee

    @property
    def transport(self) -> asyncio.Transport:
        """The transport to write to; only valid after `connection_made`."""
        assert self._transport is not None
        return self._transport

    def lease(self, lessee: Lessee) -> None:
        """Send everything that arrives to ``lessee`` from now on."""
        assert self._lessee is None
        self._lessee = lessee

    def release(self) -> None:
        """End the lease; what arrives is kept for `read` again."""
        self._lessee = None

    def close(self) -> None:
        """Say Terminate and close once it is written."""
        if self._transport is not None and not self._closed:
            self._closed = True
            if not self._transport.is_closing():
                self._transport.write(pgwire.TERMINATE)
                self._transport.resume_reading()
            self._transport.close()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone; only outside a lease and after `close` or `abort`."""
        while not self.lost:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._closed = True
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether it can be leased: open, never cancelled, and silent since its reset."""
        return not (self.lost or self._closed or self.cancelled or self._chunks)

    # --- conversations outside a lease

    async def read(self) -> bytes:
        """The next bytes; ConnectionError at the end of the connection."""
        while not self._chunks:
            if self.lost:
                raise self._error or ConnectionResetError("the server closed the connection")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self._chunks)
        self._chunks.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        return data

    async def ask(self, sql: str) -> list[list[str | None]]:
        """Run one simple query and give its rows as text. PostgresError on an error; not for large
        results.
        """
        self.transport.write(pgwire.query(sql))
        buffer = pgwire.MessageBuffer(MAX_RESET_MESSAGE)
        rows: list[list[str | None]] = []
        failure: pgwire.PostgresError | None = None
        while True:
            while (found := buffer.next_message()) is not None:
                kind, payload = found
                if kind == b"D":
                    rows.append(_columns(payload))
                elif kind == b"S":
                    name, value = pgwire.parse_parameter_status(payload)
                    self.parameters[name] = value
                elif kind == b"E":
                    fields = pgwire.parse_report(payload)
                    failure = pgwire.PostgresError(fields.get("M", ""), sqlstate=fields.get("C", "XX000"))
                elif kind == b"Z":
                    if failure is not None:
                        raise failure
                    if payload != b"I" or len(buffer):
                        raise pgwire.protocol_violation("the server is not idle after a single statement")
                    return rows
            buffer.feed(await self.read())

    async def reset(self) -> bool:
        """DISCARD ALL; whether the connection is as good as new."""
        try:
            async with asyncio.timeout(RESET_TIMEOUT_S):
                await self.ask("DISCARD ALL")
        except (OSError, TimeoutError, pgwire.PostgresError):
            return False
        return self.usable

    def tls_facts(self) -> str:
        """Version and cipher for a person, ``""`` without TLS."""
        facts: Any = None if self._transport is None else self._transport.get_extra_info("cipher")
        return f"{facts[1]} {facts[0]}" if facts else ""

    def peer_certificate(self) -> bytes | None:
        """The server's certificate in DER, None without TLS."""
        facts: Any = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        certificate: bytes | None = None if facts is None else facts.getpeercert(binary_form=True)
        return certificate

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _columns(payload: bytes) -> list[str | None]:
    count = int.from_bytes(payload[:2], "big")
    values: list[str | None] = []
    at = 2
    for _ in range(count):
        length = int.from_bytes(payload[at : at + 4], "big", signed=True)
        at += 4
        if length < 0:
            values.append(None)
        else:
            values.append(payload[at : at + length].decode("utf-8", "replace"))
            at += length
    return values

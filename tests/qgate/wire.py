"""A stand-in for minigate and the tunnel: apps connect over TCP, the gate sees streams of the contract's
shape.

Only what the relay can notice is imitated: credit (64 KiB unacknowledged), half-close, reset, pause. Every
write is kept with its ``boundary`` flag checked against a walk of its own.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from qgate.governance.audit import AuditEvent
from qgate.governance.directory import App, Directory, Route, Snapshot
from qgate.postgres.front import PostgresFront
from qgate.settings import PostgresSettings
from tunnel_proto import pgwire, scram
from tunnel_proto.link import StreamError, StreamReceiver

WINDOW = 64 * 1024
SALT = b"0123456789abcdef"
PASSWORD = "wire-secret"


class MemoryAudit:
    """An audit sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.accepting = True

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[AuditEvent]:
        return [event for event in self.events if event.kind == kind]


class WireStream:
    """The gate's end of one stream whose other end is an app's TCP connection (or a test, without one)."""

    def __init__(self, metadata: dict[str, Any], transport: asyncio.Transport | None = None) -> None:
        self.id = 1
        self.kind = "pg"
        self.metadata = metadata
        self.receiver: StreamReceiver
        self.transport = transport
        self.writable = True
        self.compression = ""
        self.out = bytearray()
        self.sensitive: list[bytes] = []
        self.eof_written = False
        self.closed = False
        self.reset_with: tuple[int, str, str] | None = None
        self.uncredited = 0
        self.peak_uncredited = 0
        self._walk_left = 0
        self._head = b""
        self._changed = asyncio.Event()

    # the gate's calls

    def write(self, data: bytes, *, boundary: bool = False, sensitive: bool = False) -> None:
        assert not self.eof_written, "write after write_eof"
        if self.closed:
            return
        self._check_boundary(data, boundary)
        if sensitive:
            self.sensitive.append(data)
        if self.transport is not None:
            self.transport.write(data)
        else:
            self.out += data
        self._changed.set()

    def _check_boundary(self, data: bytes, claimed: bool) -> None:
        data = self._head + data
        self._head = b""
        at = self._walk_left
        while len(data) - at >= 5:
            at += 1 + int(struct.unpack_from("!I", data, at + 1)[0])
        self._walk_left = max(at - len(data), 0)
        self._head = data[at:] if at < len(data) else b""
        at_boundary = not self._walk_left and not self._head
        assert claimed == at_boundary, f"boundary={claimed} but the walk says {at_boundary}"

    def write_eof(self) -> None:
        self.eof_written = True
        if self.transport is not None:
            self.transport.close()
        self._changed.set()

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        self.reset_with = (code, message, sqlstate)
        self.closed = True
        if self.transport is not None:
            self.transport.abort()
        self._changed.set()

    def consumed(self, n: int) -> None:
        self.uncredited -= n
        assert self.uncredited >= 0, "more credit than data"
        if self.transport is not None and self.uncredited < WINDOW and not self.transport.is_closing():
            self.transport.resume_reading()
        self._changed.set()

    def set_compression(self, mode: str) -> None:
        self.compression = mode

    # the app's end

    def arrive(self, data: bytes) -> None:
        """The app sent ``data``."""
        self.uncredited += len(data)
        self.peak_uncredited = max(self.peak_uncredited, self.uncredited)
        if self.transport is not None and self.uncredited >= WINDOW:
            self.transport.pause_reading()
        self.receiver.data_received(data, False)

    def close(self, error: StreamError | None = None) -> None:
        """The stream is over."""
        if not self.closed:
            self.closed = True
            self.receiver.stream_closed(error)
            self._changed.set()

    async def until(self, condition: Any) -> None:
        """Wait until ``condition()`` holds; it is asked again whenever the gate did something."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class AppConnection(asyncio.Protocol):
    """An app's TCP connection: minigate's part, in forty lines."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._data = b""
        self._stream: WireStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.arrive(data)
            return
        self._data += data
        while len(self._data) >= 4:
            length = pgwire.startup_length(self._data)
            if len(self._data) < length:
                return
            packet, self._data = self._data[:length], self._data[length:]
            request = pgwire.parse_startup(packet)
            if isinstance(request, pgwire.SSLRequest | pgwire.GSSENCRequest):
                self._transport.write(b"N")
            elif isinstance(request, pgwire.CancelRequest):
                stream = WireStream({"pid": request.pid, "key": request.key})
                self._wire.front.cancel(self._wire.peer, stream)  # type: ignore[arg-type]
                self._transport.close()
                return
            else:
                self._open(request)
                return

    def _open(self, startup: pgwire.Startup) -> None:
        if startup.needs_negotiation:
            message = pgwire.negotiate_protocol_version(startup.negotiated, startup.protocol_options)
            self._transport.write(message)
        stream = WireStream(self._wire.metadata(startup.packet), self._transport)
        self._wire.streams.append(stream)
        self._stream = stream
        self._wire.front.accept(self._wire.peer, stream)  # type: ignore[arg-type]
        data, self._data = self._data, b""
        if data:
            stream.arrive(data)

    def eof_received(self) -> bool:
        if self._stream is not None and not self._stream.closed:
            self._stream.receiver.eof_received()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.close()

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.writable = False
            self._stream.receiver.pause_writing()

    def resume_writing(self) -> None:
        if self._stream is not None:
            self._stream.writable = True
            self._stream.receiver.resume_writing()


@dataclass
class Wire:
    """A running front with a TCP port for apps."""

    front: PostgresFront
    audit: MemoryAudit
    directory: Directory
    port: int = 0
    peer: Any = field(default_factory=lambda: SimpleNamespace(peer=SimpleNamespace(name="laptop")))
    streams: list[WireStream] = field(default_factory=list)
    extra_metadata: dict[str, Any] = field(default_factory=dict)

    def metadata(self, packet: bytes) -> dict[str, Any]:
        base = {"startup": packet, "tls": False, "cbind": None, "plus": False, "uid": None}
        return base | {"sasl_sent": False, "source": "test"} | self.extra_metadata

    def dsn(self, user: str = "web", database: str = "shop", password: str = PASSWORD, **more: str) -> str:
        parts = {"host": "127.0.0.1", "port": str(self.port), "user": user, "password": password}
        parts |= {"dbname": database} | more
        return " ".join(f"{name}={value}" for name, value in parts.items())

    def change(self, *, apps: list[App] | None = None, routes: list[Route] | None = None) -> None:
        """Replace apps or routes of the directory by name."""
        old = self.directory.snapshot
        new_apps = {**old.apps, **{app.name: app for app in apps or []}}
        new_routes = {**old.routes, **{route.name: route for route in routes or []}}
        self.directory.replace(
            Snapshot(
                apps=new_apps,
                routes=new_routes,
                nodes=old.nodes,
                passwords=old.passwords,
                settings=old.settings,
            )
        )


def app(name: str = "web", *, password: str = PASSWORD, **fields: Any) -> App:
    """An app bound to database ``shop``."""
    verifier = scram.make_verifier(password.encode(), salt=SALT)
    defaults: dict[str, Any] = {"verifiers": ((verifier, None),), "databases": frozenset({"shop"})}
    return App(name=name, **(defaults | fields))


def directory(apps: list[App], routes: list[Route], passwords: Mapping[str, tuple[bytes, ...]]) -> Directory:
    """A directory whose secrets are not sealed."""
    return Directory(
        Snapshot(
            apps={one.name: one for one in apps},
            routes={one.name: one for one in routes},
            passwords={
                (name, read_only): found for name, found in passwords.items() for read_only in (False, True)
            },
        ),
        unseal=lambda sealed, _context: sealed,
    )


@asynccontextmanager
async def wire(
    apps: list[App],
    routes: list[Route],
    passwords: Mapping[str, tuple[bytes, ...]],
    settings: PostgresSettings | None = None,
    **clocks: Any,
) -> AsyncIterator[Wire]:
    """A front with a TCP port, closed afterwards; nothing it holds may be left."""
    audit = MemoryAudit()
    found = directory(apps, routes, passwords)
    front = PostgresFront(
        directory=found, audit=audit, settings=settings or PostgresSettings(), secret=b"s" * 32, **clocks
    )
    running = Wire(front, audit, found)
    server = await asyncio.get_running_loop().create_server(lambda: AppConnection(running), "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        await front.close()
        for stream in running.streams:
            if stream.transport is not None:
                stream.transport.abort()
        await asyncio.sleep(0)
        counts = front.pool.counts()
        assert all(used == (0, 0, 0) for used in counts.values()), f"connections leaked: {counts}"
        assert not front.live

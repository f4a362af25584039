"""An app's connection from accept until its stream is open: runs the start-up conversation on a transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import structlog

from minigate.connections import Connections
from minigate.http import KIND as HTTP_KIND
from minigate.http import HttpGateSide, HttpSide
from minigate.http_reply import http_error
from minigate.relay import EARLY_DATA_MAX, AppSide, GateSide
from minigate.startup import (
    BeginTls,
    Command,
    ForwardCancel,
    OpenHttp,
    OpenStream,
    Refuse,
    Send,
    StartupConversation,
    Wire,
)
from minigate.tls import Certificate, TlsLayer
from minigate.uplink import Outage
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.link import TunnelClient
from tunnel_proto.pgwire import (
    SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS,
    Startup,
    authentication_sasl,
    error_response,
    negotiate_protocol_version,
)

log = structlog.get_logger()

ATTEMPTS = 3
"""Gates that one app is handed to, one after the other, before it is told that they all go away."""

_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Gates(Protocol):
    """Where streams can go: the gates of one pool (`Uplink`), or of several (`Pools`)."""

    def available(self) -> TunnelClient | None:
        """The client that takes new streams, if any."""

    def outage(self) -> Outage:
        """Why there is none."""

    def cancel(self, pid: int, key: bytes, done: Callable[[], None]) -> None:
        """Send a CancelRequest to whoever may hold the session."""


@dataclass(slots=True)
class Door:
    """What every new connection is given; a reload replaces ``certificate``."""

    connections: Connections
    uplink: Gates
    certificate: Certificate | None = None
    draining: bool = False

    def gates_up(self) -> None:
        """A gate has become usable: those who wait for one get their streams, the longest wait first."""
        for app in self.connections.waiting:
            if isinstance(app, StartingApp) and not app.try_gates():
                break


class StartingApp(asyncio.Protocol):
    """One app that has connected and has no stream yet."""

    __slots__ = (
        "_attempts",
        "_certificate",
        "_conversation",
        "_door",
        "_http",
        "_rest",
        "_startup",
        "_transport",
    )

    _transport: asyncio.Transport

    def __init__(self, door: Door) -> None:
        self._door = door
        self._certificate = door.certificate
        self._conversation = StartupConversation(tls_available=door.certificate is not None)
        self._startup: Startup | None = None
        self._http = False
        self._rest = b""
        self._attempts = 0

    # --- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        connections = self._door.connections
        connections.counts.accepted["unix" if _is_unix(transport) else "tcp"] += 1
        if connections.crowded:
            connections.counts.refused["too many connections"] += 1
            transport.abort()
            return
        connections.starting.add(self)

    def data_received(self, data: bytes) -> None:
        if self._http:
            self._rest += data
            if len(self._rest) > EARLY_DATA_MAX:
                self._transport.pause_reading()
        elif self._startup is None:
            self._execute(self._conversation.receive(data))
        elif len(self._rest) + len(data) <= EARLY_DATA_MAX:
            self._rest += data
        else:
            self._refuse("08P01", "data before authentication", "too much data before authentication")

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def expired(self) -> None:
        """The start-up took too long, or no gate was found in time, or no gate confirmed a cancel."""
        if self._startup is not None or self._http:
            self._no_gate()
        elif self._conversation.done:  # a cancel request; it gets no reply
            self._transport.close()
        elif self._conversation.wire is Wire.POSTGRESQL:
            self._refuse("57014", "slow start-up", "canceling authentication due to timeout")
        else:
            self._door.connections.counts.refused["slow start-up"] += 1
            self._transport.abort()

    # --- what the conversation asks for

    def _execute(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(data):
                    self._transport.write(data)
                case BeginTls(received):
                    self._begin_tls(received)
                case OpenStream(startup, rest):
                    self._startup = startup
                    self._want_session(rest)
                case OpenHttp(rest):
                    self._http = True
                    self._want_session(rest)
                case ForwardCancel(pid, key):
                    self._forward_cancel(pid, key)
                case Refuse(reply, reason):
                    self._say_and_close(reply, reason)

    def _begin_tls(self, received: bytes) -> None:
        assert self._certificate is not None
        layer = TlsLayer(
            self._certificate.context,
            self._transport,
            self,
            established=lambda alpn: self._execute(self._conversation.tls_established(alpn)),
            failed=self._tls_failed,
        )
        self._transport.set_protocol(layer)
        self._transport = layer
        if received:
            layer.data_received(received)

    def _tls_failed(self, reason: str) -> None:
        self._door.connections.counts.refused["TLS handshake"] += 1
        log.info("TLS handshake with an app failed", cause=reason)

    def _want_session(self, rest: bytes) -> None:
        door = self._door
        door.connections.starting.remove(self)
        self._rest = rest
        if door.draining:
            self._refuse("57P03", "draining", "the sidecar is shutting down")
        elif door.connections.full:
            self._refuse(
                "53300",
                "too many connections",
                f"sorry, the sidecar has {door.connections.max_connections} connections already",
                hint="Raise listen.max_connections in minigate.toml, or use a pool with fewer connections.",
            )
        else:
            self._find_gate()

    def _forward_cancel(self, pid: int, key: bytes) -> None:
        connections = self._door.connections
        connections.starting.remove(self)
        connections.cancelling.add(self)
        connections.counts.cancels += 1
        connections.counts.recognised["cancel"] += 1
        self._door.uplink.cancel(pid, key, self._transport.close)

    # --- opening the stream

    def try_gates(self) -> bool:
        """Open the stream if a gate is up; False leaves everything as it is."""
        client = self._door.uplink.available()
        if client is None:
            return False
        if self._http:
            return self._open_http(client)
        startup = self._startup
        if startup is None:
            return False
        binding = self._certificate.binding if self._certificate and self._conversation.encrypted else None
        app = AppSide(self._transport, self._door.connections)
        try:
            stream = client.open_stream(
                "pg",
                {
                    "startup": startup.packet,
                    "tls": self._conversation.encrypted,
                    "cbind": binding,
                    "plus": binding is not None,
                    "uid": peer_uid(self._transport),
                    "sasl_sent": True,
                    "source": source(self._transport),
                },
                GateSide(app, self),
            )
        except LocalProtocolError as error:
            if client.state != "up":
                return False
            self._refuse("53300", "too many streams", f"the link to the gate is full: {error.message}")
            return True
        self._door.connections.waiting.remove(self)
        self._door.connections.counts.recognised["postgresql"] += 1
        app.attach(stream)
        if not self._attempts:
            self._transport.write(_greeting(startup, plus=binding is not None))
        self._attempts += 1
        rest, self._rest = self._rest, b""
        if rest:
            app.data_received(rest)
        return True

    def _open_http(self, client: TunnelClient) -> bool:
        app = HttpSide(self._transport, self._door.connections)
        metadata = {
            "source": source(self._transport),
            "uid": peer_uid(self._transport),
            "tls": self._conversation.encrypted,
        }
        try:
            stream = client.open_stream(HTTP_KIND, metadata, HttpGateSide(app))
        except LocalProtocolError as error:
            if client.state != "up":
                return False
            self._refuse("53300", "too many streams", f"the link to the gate is full: {error.message}")
            return True
        self._door.connections.waiting.remove(self)
        self._door.connections.counts.recognised[HTTP_KIND] += 1
        app.attach(stream)
        rest, self._rest = self._rest, b""
        app.data_received(rest)
        self._transport.resume_reading()
        return True

    def start_again(self, sent: bytes) -> bool:
        """The gate drained or lost the session before its first word: the app need not know."""
        if self._attempts >= ATTEMPTS or self._door.draining:
            return False
        self._transport.set_protocol(self)
        self._rest = sent
        self._find_gate()
        return True

    def _find_gate(self) -> None:
        if self.try_gates():
            return
        if self._door.connections.waiting.period_s > 0:
            self._door.connections.waiting.add(self)
        else:
            self._no_gate()

    def _no_gate(self) -> None:
        outage = self._door.uplink.outage()
        self._refuse(outage.sqlstate, "no gate", outage.message)

    # --- ending

    def refuse_draining(self) -> None:
        """The sidecar drains: nobody who still waits will get a session."""
        self._refuse("57P03", "draining", "the sidecar is shutting down")

    def _refuse(self, sqlstate: str, reason: str, message: str, *, hint: str = "") -> None:
        if self._http:
            self._door.connections.counts.errors[HTTP_KIND] += 1
            text = f"{message}. {hint}" if hint else message
            head_only = self._rest.startswith(b"HEAD ")
            code = reason.replace(" ", "_")
            reply = http_error(HTTPStatus.SERVICE_UNAVAILABLE, code, text, head_only=head_only)
            self._say_and_close(reply, reason)
            return
        self._door.connections.counts.errors[sqlstate] += 1
        self._say_and_close(error_response("FATAL", sqlstate, message, hint=hint), reason)

    def _say_and_close(self, reply: bytes, reason: str) -> None:
        self._forget()
        self._door.connections.counts.refused[reason] += 1
        log.info("app refused", cause=reason, source=source(self._transport))
        if reply:
            Farewell(self._transport, self._door.connections).say(reply)
        else:
            self._transport.close()

    def _forget(self) -> None:
        connections = self._door.connections
        connections.starting.remove(self)
        connections.waiting.remove(self)
        connections.cancelling.remove(self)


class Farewell(asyncio.Protocol):
    """Sends a last message and waits until the app has closed: a close with unread data would destroy it."""

    __slots__ = ("_connections", "_transport")

    def __init__(self, transport: asyncio.Transport, connections: Connections) -> None:
        self._transport = transport
        self._connections = connections

    def say(self, reply: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.set_protocol(self)
        self._transport.write(reply)
        self._connections.lingering.add(self)
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.lingering.remove(self)

    def expired(self) -> None:
        """The app did not close."""
        self._transport.abort()


def _greeting(startup: Startup, *, plus: bool) -> bytes:
    """What minigate says itself: the static AuthenticationSASL, and NegotiateProtocolVersion where due."""
    mechanisms = (SCRAM_SHA_256_PLUS, SCRAM_SHA_256) if plus else (SCRAM_SHA_256,)
    request = authentication_sasl(mechanisms)
    if startup.needs_negotiation:
        return negotiate_protocol_version(startup.negotiated, sorted(startup.protocol_options)) + request
    return request


def _is_unix(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.family == socket.AF_UNIX


def source(transport: asyncio.Transport) -> str:
    """Where an app connects from: "127.0.0.1:5555", "[::1]:5555" or "unix"."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple) or len(peer) < 2:
        return "unix"
    host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
    return f"{host}:{peer[1]}"


def peer_uid(transport: asyncio.Transport) -> int | None:
    """User id of the process at the other end of a unix socket; ``None`` on TCP."""
    if not _is_unix(transport):
        return None
    sock = transport.get_extra_info("socket")
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    except OSError:
        return None
    return int(_PEER_CREDENTIALS.unpack(credentials)[1])

"""An app's socket joined to its stream: bytes both ways, credit both ways, and an honest end.

Two small objects stand for one connection: `AppSide` is the protocol of the app's transport, `GateSide` the
receiver of the stream. What the app is sent when a stream fails is decided in `GateSide.stream_closed`: an
ErrorResponse where the gate's data last ended on a message boundary, a connection reset anywhere else. An
error written into the middle of a message would be taken for data.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Final, Protocol, cast

from minigate.connections import Connections
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Discard
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.pgwire import AUTHENTICATION_OK, TERMINATE, error_response, ready_for_query

_READY_IDLE: Final = ready_for_query(b"I")
_LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST instead of FIN

_READY: Final = _READY_IDLE[:5]  # without the byte that says whether a transaction is open
_CONNECTION_FAILURE = "08006"
_UNKNOWN_RESOLUTION = "08007"
_ADMIN_SHUTDOWN = "57P01"

SQLSTATES: dict[int, str] = {
    StreamCode.NO_ERROR: _ADMIN_SHUTDOWN,
    StreamCode.PROTOCOL: "08P01",
    StreamCode.REFUSED: "08004",
    StreamCode.LIMIT: "53300",
    StreamCode.CANCELLED: _ADMIN_SHUTDOWN,
    StreamCode.GATE_SHUTDOWN: _ADMIN_SHUTDOWN,
    StreamCode.SESSION_LOST: _CONNECTION_FAILURE,
    StreamCode.REVOKED: _ADMIN_SHUTDOWN,
    StreamCode.UPSTREAM_LOST: _CONNECTION_FAILURE,
    StreamCode.BOMB: "08P01",
    StreamCode.INTERNAL: "XX000",
}
"""What an app is told for each way in which a stream can fail (appendix A of the PostgreSQL manual)."""

_MESSAGES: dict[int, str] = {
    StreamCode.PROTOCOL: "the tunnel to the gate failed: protocol violation",
    StreamCode.REFUSED: "the gate refused the connection",
    StreamCode.LIMIT: "the gate has too many connections from this sidecar",
    StreamCode.GATE_SHUTDOWN: "terminating connection because the gate shuts down",
    StreamCode.SESSION_LOST: "the link to the gate was lost and could not be resumed",
    StreamCode.REVOKED: "terminating connection because access was revoked",
    StreamCode.UPSTREAM_LOST: "the gate lost its connection to the database",
    StreamCode.BOMB: "the tunnel to the gate failed: compressed data expands too far",
}
_OF_THE_TUNNEL = frozenset({StreamCode.PROTOCOL, StreamCode.SESSION_LOST, StreamCode.BOMB})
_HINTS: dict[int, str] = {
    StreamCode.GATE_SHUTDOWN: "Connect again.",
    StreamCode.SESSION_LOST: "Connect again; whether the last transaction was committed is not known.",
    StreamCode.UPSTREAM_LOST: "Connect again; whether the last transaction was committed is not known.",
    StreamCode.REVOKED: "Ask the gate's administrator: meshctl app list, meshctl sidecar list.",
}


def stream_error_response(error: StreamError) -> bytes:
    """The FATAL ErrorResponse that tells an app why its stream ended."""
    sqlstate = error.sqlstate or SQLSTATES.get(error.code, _CONNECTION_FAILURE)
    message = error.message or _MESSAGES.get(error.code, "terminating connection")
    if error.message and error.code in _OF_THE_TUNNEL:  # such a cause alone means nothing to an app's user
        message = f"{_MESSAGES[error.code]}: {error.message}"
    return error_response("FATAL", sqlstate, message, hint=_HINTS.get(error.code, ""))


def reset_connection(transport: asyncio.Transport) -> None:
    """Cut an app off so that it cannot take what it has for complete: RST on TCP, a bare close elsewhere."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()


def moved_error(*, settled: bool) -> StreamError:
    """What an app is told whose session stays behind at a pool that this sidecar has left.

    57P01 where nothing it sent was without an answer (an open transaction is rolled back for certain), 08007
    where something was: it may have been carried out, or not.
    """
    if settled:
        return StreamError(
            StreamCode.GATE_SHUTDOWN,
            "terminating connection because this sidecar has moved to another pool",
            sqlstate=_ADMIN_SHUTDOWN,
        )
    return StreamError(
        StreamCode.SESSION_LOST,
        "this sidecar has moved to another pool and what was under way may have been carried out or not",
        sqlstate=_UNKNOWN_RESOLUTION,
    )


EARLY_DATA_MAX = 64 * 1024
"""Bytes that an app may send before a gate has answered; a SASL message has below 1 KiB."""

_TRANSFERABLE = frozenset({StreamCode.GATE_SHUTDOWN, StreamCode.SESSION_LOST})


class Origin(Protocol):
    """Where an app came from: it can be given another gate while the first has not said a word to it."""

    def start_again(self, sent: bytes) -> bool:
        """Take the transport back; ``sent`` is what the app sent since. False: it has been tried enough."""


class AuthenticationWatch:
    """Finds AuthenticationOk in what the gate sends, by walking message headers over any chunking.

    `feed` returns True with the data that holds the whole message. Memory: at most nine bytes are kept.
    """

    __slots__ = ("_head", "_skip")

    def __init__(self) -> None:
        self._head = b""
        self._skip = 0

    def feed(self, data: bytes) -> bool:
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            wanted = 9 if self._head[:1] == b"R" else 5
            step = min(wanted - len(self._head), len(data) - at)
            self._head += data[at : at + step]
            at += step
            if len(self._head) < 5 or (self._head[:1] == b"R" and len(self._head) < 9):
                continue
            if self._head == AUTHENTICATION_OK:
                return True
            length = int.from_bytes(self._head[1:5], "big")
            self._skip = max(0, length + 1 - len(self._head))
            self._head = b""
        return False


class AppSide:
    """The app's end, the protocol of its transport: what it sends goes into the stream.

    It has no base class, so that it can be compiled.

    ``idle`` is true while the app waits for nothing: the gate's last data ended in ReadyForQuery outside a
    transaction and the app has sent nothing since. Only a drain reads it.
    """

    __slots__ = (
        "_authenticating",
        "_backlog",
        "_early",
        "_ended",
        "_eof",
        "connections",
        "idle",
        "said",
        "stream",
        "transport",
    )

    def __init__(self, transport: asyncio.Transport, connections: Connections) -> None:
        self.transport = transport
        self.stream: Stream | None = None
        self.idle = False
        self.said = b""  # the last bytes from the gate, if they ended a message and the app was silent since
        self._authenticating = True
        self._early: bytes | None = b""  # what was sent while no gate had answered, to say it to another
        self.connections = connections
        self._eof = False
        self._ended = False  # the gate's side is over, or the app has been told so: nothing more goes to it
        self._backlog = 0  # bytes unread by the app when its time to linger last ran out

    def attach(self, stream: Stream) -> None:
        """Begin: ``stream`` carries this app from now on, and the transport calls this object."""
        self.stream = stream
        self.connections.live.add(self)
        self.connections.counts.opened += 1
        self.transport.set_protocol(cast("asyncio.Protocol", self))

    @property
    def settled(self) -> bool:
        """Everything the app has sent was answered; a transaction may be open."""
        return self.idle or self.said[:5] == _READY

    def data_received(self, data: bytes) -> None:
        self.idle = False
        self.said = b""
        stream = self.stream
        if stream is None:
            return
        if self._authenticating:  # a password or a SASL message: never compressed
            if self._early is not None:
                self._early = self._early + data if len(self._early) + len(data) <= EARLY_DATA_MAX else None
            stream.write(data, sensitive=True)
        else:
            stream.write(data)

    def authenticated(self) -> None:
        """The gate let the app in; from now on nothing it sends is a password."""
        self._authenticating = False

    def answered(self) -> None:
        """The gate said something: from now on the session is its own."""
        self._early = None

    def move_to(self, origin: Origin) -> bool:
        """The gate went away before its first word: have the stream opened again, at whatever gate is up."""
        if self._early is None or self._eof or self.transport.is_closing():
            return False
        self.transport.resume_reading()
        if not origin.start_again(self._early):
            return False
        self.connections.live.discard(self)
        return True

    def eof_received(self) -> bool:
        if not self._eof:
            self._eof = True
            if self.stream is not None:
                self.stream.write_eof()
        return self.stream is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.live.discard(self)
        self.connections.lingering.remove(self)
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, "the app closed its connection")

    def pause_writing(self) -> None:
        """The app does not read; `GateSide` watches for it, see `GateSide.hold`."""
        if self.stream is not None:
            gate_side = self.stream.receiver
            assert isinstance(gate_side, GateSide)
            gate_side.hold()

    def resume_writing(self) -> None:
        if self.stream is not None:
            gate_side = self.stream.receiver
            assert isinstance(gate_side, GateSide)
            gate_side.release()

    def expired(self) -> None:
        """The app did not close in time; it may go on while it still reads what it was sent."""
        before, self._backlog = self._backlog, self.transport.get_write_buffer_size()
        if self._backlog and self._backlog != before:
            self.connections.lingering.add(self)
        else:
            self.transport.abort()

    def linger(self) -> None:
        """The app has been told all; it has a few seconds to read that and close."""
        self._ended = True
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                with contextlib.suppress(OSError):
                    self.transport.write_eof()
            self.transport.resume_reading()  # or the app's own end would not be seen
            self.connections.lingering.add(self)

    def fail(self, error: StreamError, *, at_boundary: bool) -> None:
        """Tell the app that its session is over, or cut it off where nothing can be told."""
        counts = self.connections.counts
        if self._ended or self.transport.is_closing():
            self.transport.close()
        elif at_boundary:
            counts.errors[error.sqlstate or SQLSTATES.get(error.code, _CONNECTION_FAILURE)] += 1
            self.transport.write(stream_error_response(error))
            self.linger()
        else:
            counts.aborted += 1
            reset_connection(self.transport)

    def end_idle(self, error: StreamError) -> bool:
        """Drain: if the app is idle, tell it to go and let the gate end the session in its usual way."""
        if not self.idle or self.stream is None or self._ended:
            return False
        stream, self.stream = self.stream, None
        stream.receiver = Discard(stream)
        if not self._eof:
            stream.write(TERMINATE)
            stream.write_eof()
        self.fail(error, at_boundary=True)
        return True

    def leave(self) -> None:
        """The sidecar has left the pool that this session is at, and will not wait for it any longer."""
        self.end_now(moved_error(settled=self.settled))

    def end_now(self, error: StreamError) -> None:
        """Drain is over: tell the app if that can be done, cut it off otherwise."""
        stream, self.stream = self.stream, None
        if stream is not None:
            gate_side = stream.receiver
            assert isinstance(gate_side, GateSide)
            stream.reset(StreamCode.CANCELLED, error.message)
            self.fail(error, at_boundary=gate_side.boundary)


class GateSide:
    """The stream's receiver: what the gate sends goes to the app, and its credit back once it went.

    ``boundary``: the gate's last data ended on a message boundary; only the gate's own flag decides this.
    """

    __slots__ = ("_app", "_held", "_holding", "_moved", "_origin", "_watch", "boundary")

    def __init__(self, app: AppSide, origin: Origin | None = None) -> None:
        self._app = app
        self._held = 0
        self._holding = False
        self._watch: AuthenticationWatch | None = AuthenticationWatch()
        self._origin = origin  # until the gate's first word
        self._moved = False  # new streams go to another pool, and this one waits for its link
        self.boundary = True

    @property
    def app(self) -> AppSide:
        """Whom the stream serves."""
        return self._app

    def left_behind(self, stream: Stream) -> None:
        """The link is lost and new streams go to another pool.

        Who has not heard a word from the gate goes there too; who is in the middle of its log-in has nothing
        to resume and is told at once; a session waits for its link, until the window ends.
        """
        app = self._app
        if self._watch is None:
            self._moved = True
            return
        origin, self._origin = self._origin, None
        app.stream = None
        stream.reset(StreamCode.CANCELLED, "moved to another pool")
        if origin is None or not app.move_to(origin):
            app.fail(moved_error(settled=True), at_boundary=self.boundary)

    def unheard(self, stream: Stream) -> None:
        """The link is lost and another gate is there: who has not heard a word goes to that one."""
        app, origin = self._app, self._origin
        if origin is None:
            return
        self._origin = None
        app.stream = None
        stream.reset(StreamCode.CANCELLED, "asked at another gate")
        if not app.move_to(origin):
            app.fail(StreamError(StreamCode.SESSION_LOST, "the gate is silent"), at_boundary=self.boundary)

    def data_received(self, data: bytes, boundary: bool) -> None:
        app = self._app
        self.boundary = boundary
        app.transport.write(data)
        app.idle = boundary and data.endswith(_READY_IDLE)
        app.said = data[-6:] if boundary else b""
        if self._holding:
            self._held += len(data)
        elif app.stream is not None:
            app.stream.consumed(len(data))
        if self._watch is not None:
            self._origin = None
            app.answered()
            if self._watch.feed(data):
                self._watch = None
                app.authenticated()

    def hold(self) -> None:
        """The app's transport is full: keep the credit of what arrives, so that the gate stops sending."""
        self._holding = True

    def release(self) -> None:
        """The app has read: return the credit kept."""
        self._holding = False
        held, self._held = self._held, 0
        if held and self._app.stream is not None:
            self._app.stream.consumed(held)

    def eof_received(self) -> None:
        self._app.linger()

    def stream_closed(self, error: StreamError | None) -> None:
        app = self._app
        app.stream = None
        origin, self._origin = self._origin, None
        if error is not None and self._moved and error.code == StreamCode.SESSION_LOST:
            error = moved_error(settled=app.settled)
        if error is None:
            app.transport.close()
        elif origin is None or error.code not in _TRANSFERABLE or not app.move_to(origin):
            app.fail(error, at_boundary=self.boundary)

    def pause_writing(self) -> None:
        if not self._app.transport.is_closing():
            self._app.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._app.transport.is_closing():
            self._app.transport.resume_reading()

    def link_lost(self) -> None:
        self._app.connections.counts.link_losses += 1

    def link_restored(self) -> None:
        """Nothing was lost: the session goes on where it is."""
        self._moved = False

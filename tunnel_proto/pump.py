"""The asyncio pump between one session and whichever transport carries it now.

One flush a loop tick, scheduled with ``call_soon`` the moment something wants to be sent: no timer delays
anything. Records are made only while the transport holds no unsent byte (its high-water mark is 0, and the
kernel's own backlog is kept short by TCP_NOTSENT_LOWAT), so whatever is urgent waits for one record at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, cast

from tunnel_proto.cipher import RecordLayer
from tunnel_proto.constants import ACK_DELAY_S, FAST_NOTSENT, FLUSH_MAX, StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import RemoteProtocolError, TunnelError
from tunnel_proto.events import (
    DataReceived,
    EofReceived,
    LinkDead,
    PeerDraining,
    SessionEnded,
    SessionStarted,
    StreamEnded,
    StreamOpened,
    WritePaused,
    WriteResumed,
)
from tunnel_proto.mux import Mux
from tunnel_proto.session import Session
from tunnel_proto.stream import MuxStream

_TCP_INFO_RTT: Final = 68  # offset of tcpi_rtt in linux/tcp.h's struct tcp_info


class StreamError(TunnelError):
    """Why a stream ended before both sides had closed it.

    ``code`` is a `StreamCode`, ``message`` is fit to be shown, ``sqlstate`` may be empty.
    """

    def __init__(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.sqlstate = sqlstate


class StreamReceiver(Protocol):
    """Callbacks of one stream; none is called from inside ``Stream.write``.

    None of them may raise: one that does has its stream reset with INTERNAL, and `stream_closed` called.
    """

    def data_received(self, data: bytes, boundary: bool) -> None:
        """``boundary``: the sender says that this data ends on a message boundary of its protocol."""

    def eof_received(self) -> None:
        """The peer will send nothing more; we still may."""

    def stream_closed(self, error: StreamError | None) -> None:
        """The stream is over: exactly once, and last. None after both sides closed."""

    def pause_writing(self) -> None:
        """Credit or the resend buffer ran out: what is written now is only kept in memory."""

    def resume_writing(self) -> None:
        """The backlog has drained."""

    def link_lost(self) -> None:
        """The tunnel is down and may come back; nothing is lost yet."""

    def link_restored(self) -> None:
        """The tunnel is back and what was on its way is being resent."""


class Stream(MuxStream):
    """One ordered, flow-controlled, resumable byte stream in each direction, with its owner's callbacks.

    `write`, `write_eof`, `reset`, `consumed`, `set_compression`, `writable`, `id`, `kind` and `metadata` are
    `MuxStream`'s. Whoever resets a stream gets no callback for it.
    """

    __slots__ = ("receiver",)

    receiver: StreamReceiver

    def __init__(self, mux: Mux, stream_id: int, kind: str, metadata: dict[str, Any], mode: int) -> None:
        super().__init__(mux, stream_id, kind, metadata, mode)
        self.receiver = _NOBODY

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        """End both directions now; queued data is dropped. No callback follows, not even of data here."""
        self.receiver = _NOBODY
        super().reset(code, message, sqlstate=sqlstate)


_NOBODY: Final = Ignore()
"""Receiver of streams that nobody has taken."""


class SessionOwner(Protocol):
    """Who keeps a session: told what concerns it as a whole."""

    def link_down(self, reason: str) -> None:
        """The transport in use is gone and the session has none."""

    def stream_opened(self, stream: Stream) -> None:
        """The peer opened a stream; its receiver must be set before this returns."""

    def session_started(self) -> None:
        """The gate confirmed the session."""

    def peer_draining(self, message: str) -> None:
        """The peer takes no new streams."""

    def session_ended(self, code: int, message: str) -> None:
        """The session is over; its streams were told."""


class Pump:
    """Moves bytes between a session and a transport, and events to streams and owner."""

    def __init__(
        self,
        session: Session,
        owner: SessionOwner,
        loop: asyncio.AbstractEventLoop,
        fault: Callable[[str], None],
    ) -> None:
        self.session = session
        self._owner = owner
        self._loop = loop
        self._clock = time.monotonic  # uvloop's own is cached and counts whole milliseconds
        self._fault = fault  # a callback of a stream raised: for the log
        self._transport: asyncio.Transport | None = None
        self._writable = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._fast: bool | None = None  # which kernel backlog is set
        self._dispatching = False
        self._watchers: set[asyncio.Future[None]] = set()
        self._flush_later = self._flush_soon
        session.mux.on_wake = self._wake

    @property
    def streams(self) -> Mapping[int, Stream]:
        """The session's open streams by number."""
        return cast("Mapping[int, Stream]", self.session.mux.streams)

    @property
    def connected(self) -> bool:
        """Is there a transport?"""
        return self._transport is not None

    def attach(self, transport: asyncio.Transport, link: RecordLayer) -> None:
        """Go on over ``transport``, to which the session has just been attached; the old one is dropped."""
        old, self._transport = self._transport, transport
        if old is not None and old is not transport:
            old.abort()
        self._writable = True
        self._fast = None
        transport.set_protocol(cast("asyncio.BaseProtocol", Carrier(self, transport)))
        tune(transport)
        self.session.mux.awake = True
        self.flush()
        if link.buffered:
            self.data_received(transport, b"")

    def data_received(self, transport: asyncio.Transport, data: bytes) -> None:
        """Bytes of a link; those of a fenced one are ignored."""
        if transport is not self._transport:
            return
        session = self.session
        now = self._clock()
        try:
            session.receive_data(data, now)
        except RemoteProtocolError as error:
            session.end(error.code, error.message)
        except TunnelError as error:
            self.drop(error.message)
            return
        self._dispatch()
        self._arm(now)

    def pause_writing(self, transport: asyncio.Transport) -> None:
        """The transport holds unsent bytes."""
        if transport is self._transport:
            self._writable = False
            if self.session.wants_to_send:
                self.session.rate.link_limited()

    def resume_writing(self, transport: asyncio.Transport) -> None:
        """The transport is empty again."""
        if transport is self._transport:
            self._writable = True
            self.flush()

    def connection_lost(self, transport: asyncio.Transport, error: Exception | None) -> None:
        """The transport is gone."""
        if transport is self._transport:
            self.drop(str(error) if error else "the connection was closed")

    def drop(self, reason: str) -> None:
        """Give the link up at once; the session stays."""
        transport, self._transport = self._transport, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if transport is None:
            return
        transport.abort()
        self.session.detach()
        if not self.session.over:
            self._owner.link_down(reason)
        self._notify()

    def flush(self) -> None:
        """Send records while the transport has room, then let the streams know how it went."""
        session = self.session
        session.mux.awake = False
        transport = self._transport
        # One that was reset is closed before we are told so, and uvloop's raise when they are written to.
        if transport is not None and not transport.is_closing():
            now = self._clock()
            room = FLUSH_MAX
            while self._writable and room > 0:
                record = session.data_to_send(now)
                if record is None:
                    break
                transport.write(record)
                room -= len(record)
                if not session.wants_to_send:
                    break
            if self._writable:
                if room <= 0:
                    session.mux.wake()
                elif session.over and not session.wants_to_send:
                    transport.close()
            elif session.wants_to_send:
                session.rate.link_limited()
            if session.rate.fast is not self._fast:
                self._tune_backlog(transport)
            self._arm(now)
        if session.mux.swollen:
            session.end_flush()
        if session.mux.events or self._watchers:
            self._dispatch()

    def _wake(self) -> None:
        self._loop.call_soon(self._flush_later)

    def _flush_soon(self) -> None:
        if self.session.mux.awake:  # else something flushed meanwhile
            self.flush()

    def _tune_backlog(self, transport: asyncio.Transport) -> None:
        self._fast = self.session.rate.fast
        wanted = FAST_NOTSENT if self._fast else self.session.settings.notsent_lowat
        raw = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError, AttributeError):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, wanted)

    def _arm(self, now: float) -> None:
        """Have a timer that is not later than what is due. One that fires early is cheaper than moving it."""
        if self._timer is not None and self._timer_at <= now + ACK_DELAY_S:
            return  # nothing is ever due sooner than an acknowledgement
        due = self.session.next_timeout()
        if due is None or self._transport is None:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - now), self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        if self._transport is not None:
            now = self._clock()
            self.session.handle_timeout(now)
            self._dispatch()
            self._arm(now)

    def _dispatch(self) -> None:
        """Hand all events to whom they concern. Events that callbacks cause join the end of the queue."""
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while events := self.session.take_events():
                for event in events:
                    if type(event) is DataReceived:
                        self._deliver(event)
                    else:
                        self._dispatch_one(event)
        finally:
            self._dispatching = False
        if self._watchers:
            self._notify()

    async def wait_until(self, condition: Callable[[Pump], bool]) -> None:
        """Return once ``condition(self)`` holds; it is looked at whenever something has happened."""
        while not condition(self):
            watcher: asyncio.Future[None] = self._loop.create_future()
            self._watchers.add(watcher)
            try:
                await watcher
            finally:
                self._watchers.discard(watcher)

    def _notify(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _deliver(self, event: DataReceived) -> None:
        for stream, data, boundary in event.chunks:
            try:
                cast("Stream", stream).receiver.data_received(data, boundary)
            except Exception as error:
                self._failed(stream, error)

    def _dispatch_one(self, event: object) -> None:
        match event:
            case EofReceived(stream):
                self._call(stream, "eof_received")
            case WritePaused(stream):
                self._call(stream, "pause_writing")
            case WriteResumed(stream):
                self._call(stream, "resume_writing")
            case StreamEnded(stream, code, message, sqlstate):
                error = None if code is None else StreamError(code, message, sqlstate=sqlstate)
                self._call(stream, "stream_closed", error)
            case StreamOpened(stream):
                try:
                    self._owner.stream_opened(cast("Stream", stream))
                except Exception as error:
                    self._failed(stream, error)
            case SessionStarted():
                self._owner.session_started()
            case PeerDraining(_, message):
                self._owner.peer_draining(message)
            case SessionEnded(code, message):
                self._owner.session_ended(code, message)
            case LinkDead(silence):
                self.drop(f"the peer has been silent for {silence:.1f} s")

    def tell_streams(self, callback: str) -> None:
        """Call ``link_lost`` or ``link_restored`` of every stream."""
        for stream in list(self.session.mux.streams.values()):
            self._call(stream, callback)

    def _call(self, stream: MuxStream, callback: str, *arguments: object) -> None:
        receiver = cast("Stream", stream).receiver
        if callback == "stream_closed":  # the last: it must not be told again, should this one raise
            cast("Stream", stream).receiver = _NOBODY
        try:
            getattr(receiver, callback)(*arguments)
        except Exception as error:
            self._failed(stream, error)

    def _failed(self, stream: MuxStream, error: Exception) -> None:
        """One stream's owner failed: only that stream pays for it, and its owner hears so."""
        self._fault(f"stream {stream.id} ({stream.kind}): {type(error).__name__}: {error}")
        receiver = cast("Stream", stream).receiver
        stream.reset(StreamCode.INTERNAL, "internal error")
        try:
            receiver.stream_closed(StreamError(StreamCode.INTERNAL, "internal error"))
        except Exception as again:
            self._fault(f"stream {stream.id} ({stream.kind}): {type(again).__name__}: {again}")


class Carrier:
    """The protocol of a transport that carries a session. Without a base class it can be compiled."""

    def __init__(self, pump: Pump, transport: asyncio.Transport) -> None:
        self._pump = pump
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pump.data_received(self._transport, data)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def connection_lost(self, error: Exception | None) -> None:
        self._pump.connection_lost(self._transport, error)

    def pause_writing(self) -> None:
        self._pump.pause_writing(self._transport)

    def resume_writing(self) -> None:
        self._pump.resume_writing(self._transport)


def tune(transport: asyncio.Transport) -> None:
    """Set a link's socket up: no Nagle, no user-space backlog."""
    transport.set_write_buffer_limits(high=0)
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def kernel_rtt(transport: asyncio.Transport) -> float:
    """Round trip that the kernel measured while connecting, in seconds; 0 where it does not tell."""
    raw = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    if raw is None or option is None:
        return 0.0
    try:
        info = raw.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_RTT + 4)
    except (OSError, AttributeError):
        return 0.0
    if len(info) < _TCP_INFO_RTT + 4:
        return 0.0
    (microseconds,) = struct.unpack_from("=I", info, _TCP_INFO_RTT)
    return float(microseconds) / 1e6

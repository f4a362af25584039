"""A tunnel stream with the face of an asyncio transport, for protocols that were written for sockets.

the protocol above        the stream below
data_received        <-   DATA; its credit returns once the protocol has taken it
connection_lost      <-   CLOSE, RESET, or the end of the session: an HTTP half-close means "no more interest"
pause_reading        ->   credit is kept back, so that the app's own socket is not read
write                ->   DATA; pause_writing and resume_writing follow the stream's credit
close                ->   CLOSE after what was written; what still comes is dropped
abort                ->   RESET
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from tunnel_proto.link import Stream, StreamError

LINGER_S: Final = 10.0
"""How long the peer may take to close a stream that we have closed."""


class StreamTransport(asyncio.Transport):
    """The transport of ``protocol`` and the receiver of ``stream``; `begin` joins them.

    ``extra`` is what `get_extra_info` knows.
    """

    def __init__(self, stream: Stream, protocol: asyncio.Protocol, extra: Mapping[str, Any]) -> None:
        super().__init__()
        self._stream = stream
        self._protocol = protocol
        self._known = extra
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._kept: list[bytes] = []  # arrived while paused; without credit, so the window bounds it
        self._closing = False
        self._over = False  # the stream is
        self._lost = False  # and the protocol knows
        self._linger: asyncio.TimerHandle | None = None
        self._away = False  # the link is
        self.freed_at = 0.0
        """The loop's time at which `held` was true last; 0 for never."""

    @property
    def held(self) -> bool:
        """Whether nothing can arrive now and the app is not to blame: the link is away, or reading paused."""
        return self._away or self._paused

    def begin(self) -> None:
        """Take the stream's events and tell the protocol that it is connected."""
        self._stream.receiver = self
        self._protocol.connection_made(self)

    def mark_boundary(self) -> None:
        """What was written last ends a message: the sidecar may speak for itself after it."""
        if self._stream.pending_bytes:
            self._stream.boundary = True

    def end(self, code: StreamCode, message: str) -> None:
        """Reset the stream with a reason that the sidecar can tell the app."""
        self._closing = True
        if not self._over:
            self._over = True
            self._stream.reset(code, message)
        self._lose()

    # --- the stream's receiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        del boundary
        if self._paused or self._kept:
            self._kept.append(data)
        else:
            self._hand(data)

    def eof_received(self) -> None:
        self.end(StreamCode.CANCELLED, "the client closed its connection")

    def stream_closed(self, error: StreamError | None) -> None:
        del error
        self._over = True
        self._lose()

    def pause_writing(self) -> None:
        if not self._lost:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if not self._lost:
            self._protocol.resume_writing()

    def link_lost(self) -> None:
        """Nothing is lost yet: what was written will be resent."""
        self._away = True

    def link_restored(self) -> None:
        """And nothing was."""
        self._away = False
        self.freed_at = self._loop.time()

    def _hand(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)
        if not self._over:
            self._stream.consumed(len(data))

    def _deliver(self) -> None:
        while self._kept and not self._paused:
            self._hand(self._kept.pop(0))

    def _lose(self) -> None:
        self._closing = True
        if self._over and self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if not self._lost:
            self._lost = True
            self._kept.clear()
            self._protocol.connection_lost(None)

    def _linger_over(self) -> None:
        self._linger = None
        if not self._over:
            self._over = True
            self._stream.reset(StreamCode.NO_ERROR)

    # --- the protocol's transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closing:
            self._stream.write(data if type(data) is bytes else bytes(data))

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(MeshError):
            self._stream.write_eof()
        self._paused = False
        self._linger = self._loop.call_later(LINGER_S, self._linger_over)
        self._loop.call_soon(self._deliver)
        self._loop.call_soon(self._lose)

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._stream.reset(StreamCode.INTERNAL, "the gate gave the request up")
        self._closing = True
        self._loop.call_soon(self._lose)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self.freed_at = self._loop.time()
        if self._kept:
            self._loop.call_soon(self._deliver)

    def is_reading(self) -> bool:
        return not self._paused

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._known.get(name, default)

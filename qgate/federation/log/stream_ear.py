"""One stream of the kind "log" as messages: what was received waits in a queue, what is written waits for
room.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import RemoteProtocolError, TunnelError
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.log_messages import Decoder, LogMessage, encode

QUEUED_MAX: Final = 1000
"""Messages that wait to be looked at; a peer that sends more than was asked for is cut off."""


class LogStream:
    """The receiver of a log stream. `next` gives messages in order and raises what ended the stream; `bytes`
    counts what came.
    """

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.bytes = 0
        self._decoder = Decoder()
        self._queue: asyncio.Queue[tuple[LogMessage, int] | TunnelError] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._over: TunnelError | None = None
        self._unspent = 0

    def attach(self, stream: Stream) -> None:
        """The stream that this hears."""
        self.stream = stream
        stream.set_compression("long")

    async def next(self) -> LogMessage:
        """The next message. TunnelError once the stream is over."""
        if self._queue.empty() and self._over is not None:
            raise self._over
        item = await self._queue.get()
        if isinstance(item, TunnelError):
            raise item
        message, size = item
        if self.stream is not None:
            self.stream.consumed(size)
        return message

    async def send(self, message: LogMessage) -> int:
        """Send a message once there is room; returns its bytes."""
        await self._room.wait()
        if self._over is not None:
            raise self._over
        assert self.stream is not None
        frame = encode(message)
        self.stream.write(frame, boundary=True)
        return len(frame)

    def say(self, message: LogMessage) -> None:
        """Send a small message now, or not at all where the other side does not read."""
        if self.stream is not None and self._over is None and self._room.is_set():
            self.stream.write(encode(message), boundary=True)

    def close(self) -> None:
        """End the stream from our side."""
        if self.stream is not None and self._over is None:
            self._end(StreamError(StreamCode.CANCELLED, "the log stream was closed"))
            self.stream.reset(StreamCode.CANCELLED, "no longer needed")

    # --- the tunnel's callbacks

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Messages, or parts of them."""
        del boundary
        self.bytes += len(data)
        self._unspent += len(data)
        try:
            messages = self._decoder.feed(data)
        except RemoteProtocolError as error:
            self._refuse(error)
            return
        if self._queue.qsize() + len(messages) > QUEUED_MAX:
            self._refuse(RemoteProtocolError("more log messages than were asked for", code=3))
            return
        if not messages:
            # A frame may be longer than the window: what is held of it is bounded by the decoder.
            self._return_credit()
        for message in messages:
            size, self._unspent = self._unspent, 0
            self._queue.put_nowait((message, size))

    def eof_received(self) -> None:
        """The other side has no more questions."""
        if self.stream is not None:
            self.stream.write_eof()

    def stream_closed(self, error: StreamError | None) -> None:
        """It is over."""
        self._end(error or StreamError(StreamCode.NO_ERROR, "the log stream ended"))

    def pause_writing(self) -> None:
        """No room."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Room again."""
        self._room.set()

    def link_lost(self) -> None:
        """It may come back."""

    def link_restored(self) -> None:
        """Nothing was lost."""

    def _return_credit(self) -> None:
        if self.stream is not None and self._unspent:
            size, self._unspent = self._unspent, 0
            self.stream.consumed(size)

    def _refuse(self, error: RemoteProtocolError) -> None:
        self._end(error)
        if self.stream is not None:
            self.stream.reset(error.code, error.message[:200])

    def _end(self, error: TunnelError) -> None:
        if self._over is None:
            self._over = error
            self._queue.put_nowait(error)
            self._room.set()

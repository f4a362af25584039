"""One stream of the kind "chunks" as messages, at either end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tunnel_proto.blob_messages import BlobMessage, Decoder, encode
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import RemoteProtocolError, TunnelError
from tunnel_proto.link import Stream, StreamError

QUEUED_MAX: Final = 64
"""Messages that wait to be looked at; a peer asks for far fewer at a time."""


class ChunkStream:
    """The receiver of such a stream. `next` gives messages in order and raises what ended it.

    ``stirred`` is called whenever bytes came, whole messages or not.
    """

    def __init__(self, stirred: Callable[[], None] | None = None) -> None:
        self.stream: Stream | None = None
        self._stirred = stirred
        self._decoder = Decoder()
        self._queue: asyncio.Queue[BlobMessage | TunnelError] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._over: TunnelError | None = None

    async def next(self) -> BlobMessage:
        """The next message. TunnelError once the stream is over."""
        if self._queue.empty() and self._over is not None:
            raise self._over
        item = await self._queue.get()
        if isinstance(item, TunnelError):
            raise item
        return item

    async def send(self, message: BlobMessage) -> None:
        """Send a message once there is room."""
        await self._room.wait()
        if self._over is not None or self.stream is None:
            raise self._over or TunnelError("the stream is over")
        self.stream.write(encode(message), boundary=True)

    def close(self) -> None:
        """End the stream from our side."""
        stream, self.stream = self.stream, None
        if stream is not None and self._over is None:
            self._end(StreamError(StreamCode.CANCELLED, "the stream was closed"))
            stream.reset(StreamCode.CANCELLED, "no longer needed")

    # --- the tunnel's callbacks

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Messages, or parts of them. What is held of one is bounded by the longest there may be."""
        del boundary
        if self.stream is None:
            return
        self.stream.consumed(len(data))
        if self._stirred is not None:
            self._stirred()
        try:
            messages = self._decoder.feed(data)
            if self._queue.qsize() + len(messages) > QUEUED_MAX:
                raise RemoteProtocolError("more messages about files than are answered at a time", code=3)
        except RemoteProtocolError as error:
            self._end(error)
            stream, self.stream = self.stream, None
            stream.reset(error.code, error.message[:200])
            return
        for message in messages:
            self._queue.put_nowait(message)

    def eof_received(self) -> None:
        """The other side has no more questions."""
        if self.stream is not None:
            self.stream.write_eof()

    def stream_closed(self, error: StreamError | None) -> None:
        """It is over."""
        self.stream = None
        self._end(error or StreamError(StreamCode.NO_ERROR, "the stream ended"))

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

    def _end(self, error: TunnelError) -> None:
        if self._over is None:
            self._over = error
            self._queue.put_nowait(error)
            self._room.set()

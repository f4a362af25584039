"""One file on its way from a gate into a worker's store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.link import PeerSession, Stream, StreamError
from tunnel_proto.messages import KIND_BLOB, Answer, Decoder, Fault, LoadProgress

ANSWER_S: Final = 300.0
"""After its last byte a file is hashed, synced to disk and read: minutes for a hundred gigabytes."""


class Passage:
    """One file on its way to a worker: a stream of kind ``blob``, written no faster than it is taken."""

    def __init__(self, session: PeerSession, metadata: dict[str, Any]) -> None:
        self._decoder = Decoder(1 << 20)
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._room = asyncio.Event()
        self._room.set()
        self._full = False
        self._lost = not session.connected
        self.progress: LoadProgress | None = None
        self._stream: Stream | None = session.open_stream(KIND_BLOB, metadata, self, compression="off")

    async def send(self, chunks: AsyncIterator[bytes]) -> Answer:
        """Pass all of it on and return the worker's answer, which may come early. Raises `TimeoutError`."""
        async for chunk in chunks:
            await self._room.wait()
            if self._answer.done() or self._stream is None:
                break
            if chunk:
                self._stream.write(chunk)
        else:
            if self._stream is not None:
                self._stream.write_eof()
        async with asyncio.timeout(ANSWER_S):
            return await asyncio.shield(self._answer)

    def close(self) -> None:
        """Let go of the stream; a file that is not there whole is thrown away by the worker."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, "the upload ended")
        if not self._answer.done():
            self._answer.cancel()

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Progress, and the answer."""
        if self._stream is None:
            return
        self._stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if isinstance(message, Answer) and not self._answer.done():
                    self._answer.set_result(message)
                    self._room.set()
                elif isinstance(message, LoadProgress):
                    self.progress = message
        except RemoteProtocolError as error:
            self._failed("invalid_response", error.message)

    def eof_received(self) -> None:
        """The worker has said all it will."""
        self._failed("node_lost", "the worker ended the upload without an answer")

    def stream_closed(self, error: StreamError | None) -> None:
        """The worker or its session is gone."""
        self._stream = None
        said = error.message if error is not None and error.message else "the worker went away"
        self._failed("node_lost", said)

    def pause_writing(self) -> None:
        """The worker is behind."""
        self._full = True
        self._look()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._full = False
        self._look()

    def link_lost(self) -> None:
        """Wait: the stream goes on with the session."""
        self._lost = True
        self._look()

    def link_restored(self) -> None:
        """Go on."""
        self._lost = False
        self._look()

    def _look(self) -> None:
        if (self._full or self._lost) and not self._answer.done():
            self._room.clear()
        else:
            self._room.set()

    def _failed(self, code: str, message: str) -> None:
        if not self._answer.done():
            self._answer.set_result(Answer(0, False, problem=Fault(code, message[:2000])))
        self._room.set()

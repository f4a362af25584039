"""A model file on its way into the store: a stream of kind ``blob`` that a gate opens.

Its metadata is {"name": model name, "size": bytes, "sha256": expected hash or ""}. The daemon answers with
`LoadProgress` now and then and one `Answer` (number 0). The bytes go to disk as they come, in a thread; the
stream's credit is given back only then, so that a fast link cannot fill the memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from qdaemon.models.store import Arrival, Entry, ModelStore
from tunnel_proto.discard import Discard
from tunnel_proto.errors import MeshError
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.messages import Answer, Fault, LoadProgress, encode

log = structlog.get_logger()

PROGRESS_S: Final = 0.5
NAME_MAX: Final = 200


class Upload:
    """Receiver of one blob stream. ``arrived`` is awaited with the new entry and returns what to answer."""

    def __init__(
        self, stream: Stream, store: ModelStore, arrived: Callable[[Entry], Awaitable[dict[str, Any]]]
    ) -> None:
        self._stream: Stream | None = stream
        self._store = store
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        metadata = stream.metadata
        self._name = metadata.get("name")
        self._size = metadata.get("size")
        self._expected = metadata.get("sha256") or ""
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task = self._loop.create_task(self._take())

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._chunks.put_nowait(data)

    def eof_received(self) -> None:
        self._chunks.put_nowait(None)

    def stream_closed(self, error: StreamError | None) -> None:
        """The gate or the sender is gone: what came is thrown away."""
        self._stream = None
        self.task.cancel()

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def link_lost(self) -> None: ...

    def link_restored(self) -> None: ...

    # --- parts

    async def _take(self) -> None:
        name, size = self._name, self._size
        if not isinstance(name, str) or type(size) is not int or size < 0 or type(self._expected) is not str:
            problem = Fault("invalid", "the upload's metadata is not name and size")
            self._answer(Answer(0, False, problem=problem))
            return
        try:
            arrival = await self._begin(name, size)
            try:
                await self._write(arrival, name[:NAME_MAX])
                entry = await self._in_thread(
                    lambda: arrival.finish(now=time.time(), expected=self._expected)
                )
            finally:
                await self._in_thread(arrival.abandon)
            result = await self._arrived(entry)
        except MeshError as error:
            code = str(getattr(error, "code", "failed"))
            log.warning("upload refused", code=code, cause=error.message)
            self._answer(Answer(0, False, problem=Fault(code, error.message[:2000], error.hint[:2000])))
        else:
            log.info("model added", model=entry.name, sha256=entry.sha256[:12], size=entry.size)
            self._answer(Answer(0, True, result=result))

    async def _write(self, arrival: Arrival, name: str) -> None:
        told = self._loop.time()
        while (chunk := await self._chunks.get()) is not None:
            chunks = [chunk]
            ended = False
            while not self._chunks.empty():
                more = self._chunks.get_nowait()
                if more is None:
                    ended = True
                    break
                chunks.append(more)
            data = b"".join(chunks)
            await self._in_thread(arrival.write, data)
            if self._stream is not None:
                self._stream.consumed(len(data))
            if ended:
                break
            if self._loop.time() - told >= PROGRESS_S and self._stream is not None and arrival.size:
                told = self._loop.time()
                share = min(1.0, arrival.received / arrival.size)
                self._stream.write(encode(LoadProgress(name, "uploading", share)), boundary=True)

    async def _begin(self, name: str, size: int) -> Arrival:
        made: list[Arrival] = []
        try:
            await self._in_thread(lambda: made.append(self._store.arrival(name, size)))
        except asyncio.CancelledError:
            for arrival in made:
                arrival.abandon()
            raise
        return made[0]

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run it in a thread, to its end also when we are cancelled: nothing may touch the file beside it."""
        future = self._loop.run_in_executor(None, call, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    def _answer(self, answer: Answer) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        stream.write(encode(answer), boundary=True)
        stream.receiver = Discard(stream)  # the rest of a refused file may still come
        stream.write_eof()

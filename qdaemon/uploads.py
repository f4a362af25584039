"""A model file on its way into the store: a stream of kind ``blob`` that a gate opens.

Its metadata is {"name": model name, "size": bytes, "sha256": expected hash or ""}. The daemon answers with
`LoadProgress` now and then and one `Answer` (number 0). The bytes go to disk as they come, in a thread; the
stream's credit is given back only then, so that a fast link cannot fill the memory.

A file that is known by its hash may go on where it broke off: {"ask": true} is answered with {"offset": bytes
that are here}, and {"offset": N} says that what follows begins there. What came of it before stream, gate or
daemon went away is kept for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import structlog

from qdaemon.models.store import SHA256, Arrival, Entry, ModelStore
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Discard, Ignore
from tunnel_proto.errors import MeshError
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.messages import Answer, Fault, LoadProgress, encode

log = structlog.get_logger()

PROGRESS_S: Final = 0.5
NAME_MAX: Final = 200


class Upload(Ignore):
    """Receiver of one blob stream. ``arrived`` is awaited with the new entry and returns what to answer;
    ``others()`` are the uploads under way: one of the same file gives way to this one.
    """

    def __init__(
        self,
        stream: Stream,
        store: ModelStore,
        arrived: Callable[[Entry], Awaitable[dict[str, Any]]],
        others: Callable[[], Iterable[Upload]] = tuple,
    ) -> None:
        self._stream: Stream | None = stream
        self._store = store
        self._arrived = arrived
        self._others = others
        self._loop = asyncio.get_running_loop()
        metadata = stream.metadata
        self._name = metadata.get("name")
        self._size = metadata.get("size")
        self._expected = metadata.get("sha256") or ""
        self._offset = metadata.get("offset")
        self._asks = metadata.get("ask") is True
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task = self._loop.create_task(self._take())

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._chunks.put_nowait(data)

    def eof_received(self) -> None:
        self._chunks.put_nowait(None)

    def stream_closed(self, error: StreamError | None) -> None:
        """The gate or the sender is gone: what came waits for the rest, or is thrown away."""
        self._stream = None
        self.task.cancel()

    # --- parts

    async def _take(self) -> None:
        name, size, offset = self._name, self._size, self._offset
        if (
            not isinstance(name, str)
            or type(size) is not int
            or size < 0
            or type(self._expected) is not str
            or not (offset is None or (type(offset) is int and 0 <= offset <= size))
            or (
                self._expected
                and SHA256.fullmatch(self._expected) is None
                and (self._asks or offset is not None)
            )
        ):
            problem = Fault("invalid", "the upload's metadata is not name and size")
            self._answer(Answer(0, False, problem=problem))
            return
        try:
            if self._asks:
                here = await self._in_thread(self._store.held, self._expected, size)
                self._answer(Answer(0, True, result={"offset": here}))
                return
            entry = await self._taken(name, size, offset)
            result = await self._arrived(entry)
        except MeshError as error:
            code = str(getattr(error, "code", "failed"))
            log.warning("upload refused", code=code, cause=error.message)
            self._answer(Answer(0, False, problem=Fault(code, error.message[:2000], error.hint[:2000])))
        else:
            log.info("model added", model=entry.name, sha256=entry.sha256[:12], size=entry.size)
            self._answer(Answer(0, True, result=result))

    async def _taken(self, name: str, size: int, offset: int | None) -> Entry:
        """The entry of what arrived, or of what was here already."""
        if offset is not None:
            await self._take_over()
            if offset == size and await self._in_thread(self._store.path(self._expected).exists):
                here: Entry = await self._in_thread(
                    lambda: self._store.put(name, self._expected, size, now=time.time())
                )
                return here
        arrival = await self._begin(name, size, offset)
        try:
            await self._write(arrival, name[:NAME_MAX])
            entry: Entry = await self._in_thread(
                lambda: arrival.finish(now=time.time(), expected=self._expected)
            )
        except asyncio.CancelledError:
            await self._in_thread(arrival.keep)
            raise
        finally:
            await self._in_thread(arrival.abandon)
        return entry

    async def _take_over(self) -> None:
        """Have an upload of the same file give way: its sender has come back by another way."""
        for other in list(self._others()):
            if other is not self and other._offset is not None and other._expected == self._expected:
                other.give_way()
                await asyncio.wait({other.task})

    def give_way(self) -> None:
        """End here; what came is kept."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, "the same file is sent anew")
        self.task.cancel()

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

    async def _begin(self, name: str, size: int, offset: int | None) -> Arrival:
        made: list[Arrival] = []

        def begin() -> None:
            self._store.purge(time.time())
            made.append(self._store.arrival(name, size, sha256=self._expected, offset=offset))

        try:
            await self._in_thread(begin)
        except asyncio.CancelledError:
            for arrival in made:
                arrival.keep()
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

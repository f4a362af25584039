"""A model file on its way out of the store: streams of kind ``blob-read`` that gates of the home pool open.

Its metadata is {"sha256", "offset", "length"} for bytes of the file, or {"sha256", "hashes": chunk size} for
what a manifest is made of: the size (u64, big-endian) and the hash of each chunk. Only files that are in the
store can be named, and only by their SHA-256. The answer ends with the stream; a refusal resets it.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from qdaemon.models.store import ModelStore
from tunnel_proto.blob_messages import CHUNK_MAX, CHUNK_MIN, chunk_hash
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import MeshError
from tunnel_proto.link import Stream, StreamError

PIECE: Final = 256 * 1024
"""Bytes that are read and written at a time."""

_SHA: Final = re.compile(r"[0-9a-f]{64}")
_SIZE: Final = struct.Struct(">Q")

log = structlog.get_logger()


class ReadingError(MeshError):
    """The stream's metadata names nothing that can be read."""


class Reading(Ignore):
    """Receiver of one such stream."""

    def __init__(self, stream: Stream, store: ModelStore) -> None:
        self._stream: Stream | None = stream
        self._store = store
        self._room = asyncio.Event()
        self._room.set()
        self.task = asyncio.get_running_loop().create_task(self._tell(dict(stream.metadata)))

    async def _tell(self, metadata: dict[str, Any]) -> None:
        try:
            pieces = self._pieces(metadata)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await self._room.wait()
                if self._stream is None:
                    return
                self._stream.write(piece)
        except (MeshError, OSError) as error:
            reason = error.message if isinstance(error, MeshError) else str(error.strerror or error)
            log.warning("a model is not read", cause=reason)
            self._end(StreamCode.REFUSED, reason)
        else:
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.write_eof()

    def _pieces(self, metadata: dict[str, Any]) -> Iterator[bytes]:
        path = self._path(metadata.get("sha256"))
        chunk = metadata.get("hashes")
        if chunk is not None:
            if type(chunk) is not int or not CHUNK_MIN <= chunk <= CHUNK_MAX:
                raise ReadingError("the size of a chunk is out of bounds")
            return _hashes(path, chunk)
        offset, length = metadata.get("offset"), metadata.get("length")
        if type(offset) is not int or type(length) is not int or offset < 0 or not 0 < length <= CHUNK_MAX:
            raise ReadingError("offset and length are out of bounds")
        return _bytes(path, offset, length)

    def _path(self, sha256: object) -> Path:
        if not isinstance(sha256, str) or _SHA.fullmatch(sha256) is None:
            raise ReadingError("a model is named by its SHA-256")
        path = self._store.path(sha256)
        if not path.is_file():
            raise ReadingError(f"the model {sha256[:12]} is not here")
        return path

    def _end(self, code: StreamCode, reason: str) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code, reason[:200])

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Nothing is to be said there."""
        if self._stream is not None:
            self._stream.consumed(len(data))

    def stream_closed(self, error: StreamError | None) -> None:
        """The gate wants no more."""
        self._stream = None
        self.task.cancel()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()


def _bytes(path: Path, offset: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while length and (data := file.read(min(PIECE, length))):
            length -= len(data)
            yield data
    if length:
        raise ReadingError("the file ends before that")


def _hashes(path: Path, chunk: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield _SIZE.pack(path.stat().st_size)
        while data := file.read(chunk):
            yield chunk_hash(data)

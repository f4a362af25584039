"""Reading a model's file out of a worker's store: a stream of kind ``blob-read`` that the gate opens."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final

from tunnel_proto.blob_messages import CHUNKS_MAX, HASH_BYTES, KIND_BLOB_READ
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import RemoteProtocolError, TunnelError
from tunnel_proto.link import PeerSession, Stream, StreamError

READ_S: Final = 60.0
"""Without a byte for so long a worker counts as gone; while it hashes it says something throughout."""

_SIZE: Final = struct.Struct(">Q")


async def read_chunk(session: PeerSession, sha256: str, offset: int, length: int) -> bytes:
    """Bytes of a model's file. TunnelError where the worker does not have them."""
    said = await _read(session, {"sha256": sha256, "offset": offset, "length": length}, length)
    if len(said) != length:
        raise RemoteProtocolError("a worker sent another length of a model than was asked for")
    return said


async def read_hashes(session: PeerSession, sha256: str, chunk: int) -> tuple[int, tuple[bytes, ...]]:
    """The size of a model's file, and the hash of each chunk of it. TunnelError."""
    said = await _read(session, {"sha256": sha256, "hashes": chunk}, _SIZE.size + CHUNKS_MAX * HASH_BYTES)
    hashes = said[_SIZE.size :]
    if len(said) < _SIZE.size or len(hashes) % HASH_BYTES:
        raise RemoteProtocolError("a worker sent no hashes of a model")
    (size,) = _SIZE.unpack_from(said)
    found = tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))
    if len(found) != -(-size // chunk):
        raise RemoteProtocolError("a worker sent another number of hashes than the model has chunks")
    return int(size), found


async def _read(session: PeerSession, metadata: dict[str, Any], most: int) -> bytes:
    ear = _Ear(most)
    ear.stream = session.open_stream(KIND_BLOB_READ, metadata, ear, compression="off")
    try:
        while not ear.over.done():
            ear.came.clear()
            async with asyncio.timeout(READ_S):
                await ear.came.wait()
        return ear.over.result()
    except TimeoutError:
        raise TunnelError("the worker does not send the model") from None
    finally:
        ear.close()


class _Ear(Ignore):
    """Collects what a worker sends, up to ``most`` bytes; a lost link is waited out."""

    def __init__(self, most: int) -> None:
        self.stream: Stream | None = None
        self.came = asyncio.Event()
        self.over: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._most = most
        self._data = bytearray()

    def data_received(self, data: bytes, boundary: bool) -> None:
        """More of it."""
        self._data += data
        if self.stream is not None:
            self.stream.consumed(len(data))
        if len(self._data) > self._most:
            self._end(RemoteProtocolError("a worker sent more of a model than was asked for"))
        self.came.set()

    def eof_received(self) -> None:
        """That was all."""
        if not self.over.done():
            self.over.set_result(bytes(self._data))
        self.came.set()

    def stream_closed(self, error: StreamError | None) -> None:
        """The worker refused, or is gone."""
        self.stream = None
        self._end(error or TunnelError("the worker ended the stream"))

    def close(self) -> None:
        """Let go of it."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, "no longer needed")
        if self.over.done() and not self.over.cancelled():
            self.over.exception()  # seen

    def _end(self, error: TunnelError) -> None:
        if not self.over.done():
            self.over.set_exception(error)
        self.came.set()

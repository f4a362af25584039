"""Messages on a stream, parted by their lengths: a u32 (big-endian), then so many bytes."""

from __future__ import annotations

import struct
from typing import Final

from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import RemoteProtocolError

_LENGTH: Final = struct.Struct(">I")


def framed(payload: bytes) -> bytes:
    """One message with its length before it."""
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Cuts a stream's bytes into payloads; holds at most one incomplete one, of ``most`` bytes.

    ``what`` is what errors call a message.
    """

    __slots__ = ("_buffer", "_most", "_what")

    def __init__(self, most: int, what: str = "a message") -> None:
        self._buffer = bytearray()
        self._most = most
        self._what = what

    @property
    def clean(self) -> bool:
        """Whether the stream may end here: no part of a message is waiting for its rest."""
        return not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; the payloads that they complete. RemoteProtocolError for one that is too long."""
        self._buffer += data
        found: list[bytes] = []
        position = 0
        while len(self._buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, position)
            if length > self._most:
                raise RemoteProtocolError(
                    f"{self._what} of {length} bytes where {self._most} are allowed", code=StreamCode.LIMIT
                )
            start = position + _LENGTH.size
            if len(self._buffer) < start + length:
                break
            found.append(bytes(self._buffer[start : start + length]))
            position = start + length
        del self._buffer[:position]
        return found

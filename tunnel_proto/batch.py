"""The per-frame loops, kept apart and plainly typed so that mypyc can compile this module alone.

What is here is also its own oracle: compiled or not, the functions take and give the same values.
"""

from __future__ import annotations

import struct
from typing import Final

from tunnel_proto.errors import RemoteProtocolError

_HEADER: Final = struct.Struct("!BBHI")  # type, flags, payload length, stream


def split_frames(body: bytes, position: int) -> list[tuple[int, int, int, bytes]]:
    """Cut a record's plaintext from ``position`` into (type, flags, stream, payload).

    RemoteProtocolError when a header or a payload is cut short.
    """
    frames: list[tuple[int, int, int, bytes]] = []
    end = len(body)
    unpack = _HEADER.unpack_from
    while position < end:
        start = position + 8
        if start > end:
            raise RemoteProtocolError("a frame header is cut short")
        kind, flags, length, stream = unpack(body, position)
        position = start + length
        if position > end:
            raise RemoteProtocolError("a frame is longer than its record")
        frames.append((kind, flags, stream, body[start:position]))
    return frames

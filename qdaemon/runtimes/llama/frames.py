"""Frames between a runtime and its child: a 32-bit big-endian length, then one msgpack map with a "t"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgpack

from tunnel_proto.errors import RemoteProtocolError

MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes of one frame. A prompt is refused long before; this only bounds what a broken child can cost."""

Frame = dict[str, Any]


def encode(frame: Frame) -> bytes:
    """``frame`` with its length before it. RemoteProtocolError where it is longer than `MAX_FRAME`."""
    body: bytes = msgpack.packb(frame, use_bin_type=True)
    if len(body) > MAX_FRAME:
        raise RemoteProtocolError(f"a frame of {len(body)} bytes is more than {MAX_FRAME}")
    return len(body).to_bytes(4, "big") + body


class Decoder:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Every frame that ``data`` completes. RemoteProtocolError for anything else than a frame."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= 4:
                length = int.from_bytes(self._buffer[start : start + 4], "big")
                if length > MAX_FRAME:
                    raise RemoteProtocolError(f"a frame of {length} bytes is more than {MAX_FRAME}")
                if len(self._buffer) - start - 4 < length:
                    break
                body = self._buffer[start + 4 : start + 4 + length]
                start += 4 + length
                yield _parsed(body)
        finally:
            # What was read is overwritten, not only let go: it may be someone's prompt.
            self._buffer[:start] = bytes(start)
            del self._buffer[:start]


def _parsed(body: bytearray) -> Frame:
    try:
        frame = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except Exception as error:
        raise RemoteProtocolError(f"not a frame: {type(error).__name__}") from None
    finally:
        body[:] = bytes(len(body))
    if not isinstance(frame, dict) or not isinstance(frame.get("t"), str):
        raise RemoteProtocolError("not a frame: no type")
    return frame

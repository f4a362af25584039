"""msgpack with exactly one accepted encoding for each value, and bounds on everything.

What two nodes sign or authenticate must not have two spellings, so a value that does not encode
back to the very bytes it came from is refused: overlong integers, repeated map keys, trailing
bytes and extension types all end here.
"""

from __future__ import annotations

from typing import Any

import msgpack

from tunnel_proto.errors import RemoteProtocolError


def pack(value: object) -> bytes:
    """Encode None, bool, int, float, str, bytes, lists and maps; tuples become arrays."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes, *, max_bytes: int, max_items: int = 64) -> Any:
    """Decode one value from ``data``; arrays come back as lists.

    ``max_bytes`` bounds the whole input, ``max_items`` each array and map. Raises RemoteProtocolError
    for anything longer, malformed, followed by more bytes, or not in its shortest encoding.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"a packed value of {len(data)} bytes where {max_bytes} are allowed")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=max_bytes,
            max_bin_len=max_bytes,
            max_array_len=max_items,
            max_map_len=max_items,
            max_ext_len=0,
        )
        again = pack(value)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        raise RemoteProtocolError("a packed value is malformed") from None
    if again != data:
        raise RemoteProtocolError("a packed value is not in its shortest encoding")
    return value

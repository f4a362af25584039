"""Frames: the units inside a record. Encoders give whole frames, decoders take a checked payload.

Layout: ``type u8 | flags u8 | length u16 | stream u32 | payload``, big-endian. See docs/tunnel.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from tunnel_proto.constants import (
    FRAME_PAYLOAD_MAX,
    INSTANCE_BYTES,
    METADATA_MAX,
    RESET_MESSAGE_MAX,
    TICKET_BYTES,
    WINDOW_LOG_MAX,
    WINDOW_LOG_MIN,
    FrameType,
)
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError

HEADER: Final = struct.Struct("!BBHI")
_CREDIT: Final = struct.Struct("!II")
_RESET: Final = struct.Struct("!H5s")
_RESUME: Final = struct.Struct(f"!{TICKET_BYTES}sQQ")
_NO_SQLSTATE: Final = b"\0" * 5

MODES: Final = ("off", "auto", "long")  # the index is the wire value of a compression mode


def encode(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """One frame; ValueError when the payload is longer than a frame can hold."""
    if len(payload) > FRAME_PAYLOAD_MAX:
        raise ValueError(f"frame payload of {len(payload)} bytes")
    return HEADER.pack(kind, flags, len(payload), stream) + payload


def encode_open(stream: int, kind: str, metadata: dict[str, Any], mode: int) -> bytes:
    """OPEN: msgpack ``[kind, metadata, mode]``; LocalProtocolError when it is too large."""
    payload: bytes = msgpack.packb([kind, metadata, mode])
    if len(payload) > METADATA_MAX:
        raise LocalProtocolError(f"stream metadata of {len(payload)} bytes; at most {METADATA_MAX} are taken")
    return encode(FrameType.OPEN, stream, payload)


def decode_open(payload: bytes) -> tuple[str, dict[str, Any], int]:
    """Kind, metadata and compression mode of an OPEN; RemoteProtocolError."""
    match unpack(payload, METADATA_MAX):
        case [str() as kind, dict() as metadata, int() as mode] if (
            len(kind) <= 32 and 0 <= mode < len(MODES) and all(isinstance(key, str) for key in metadata)
        ):
            return kind, metadata, mode
    raise RemoteProtocolError("OPEN does not hold [kind, metadata, mode]")


def encode_credit(stream: int, consumed: int, grown: int) -> bytes:
    """CREDIT: ``consumed u32 | grown u32``, both in decompressed bytes."""
    return HEADER.pack(FrameType.CREDIT, 0, 8, stream) + _CREDIT.pack(consumed, grown)


def decode_credit(payload: bytes) -> tuple[int, int]:
    """Consumed bytes and window growth of a CREDIT."""
    if len(payload) != _CREDIT.size:
        raise RemoteProtocolError("CREDIT of a wrong length")
    consumed, grown = _CREDIT.unpack(payload)
    return consumed, grown


def encode_reason(
    kind: int, stream: int, code: int, message: str, sqlstate: str = "", flags: int = 0
) -> bytes:
    """RESET, GOAWAY or REFUSED: ``code u16 | sqlstate 5 bytes or zeros | message UTF-8``."""
    state = sqlstate.encode("ascii", "replace") if len(sqlstate) == 5 else _NO_SQLSTATE
    text = message.encode()[:RESET_MESSAGE_MAX].decode(errors="ignore").encode()
    return encode(kind, stream, _RESET.pack(code, state) + text, flags)


def decode_reason(payload: bytes) -> tuple[int, str, str]:
    """Code, message and SQLSTATE (or ""); RemoteProtocolError."""
    if not _RESET.size <= len(payload) <= _RESET.size + RESET_MESSAGE_MAX:
        raise RemoteProtocolError("a reason of a wrong length")
    code, state = _RESET.unpack_from(payload)
    sqlstate = state.decode("ascii", "replace") if state.isalnum() else ""
    return code, payload[_RESET.size :].decode(errors="replace"), sqlstate


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver takes; announced in START and STARTED, kept to by the other side's sender."""

    max_streams: int
    session_window: int  # decompressed bytes beyond STREAM_WINDOW a stream
    contexts: int
    context_memory: int  # bytes: sum of the zstd windows of open contexts
    window_log: int

    def pack(self) -> list[int]:
        """The order that START and STARTED carry."""
        return [self.max_streams, self.session_window, self.contexts, self.context_memory, self.window_log]


# Until STARTED arrives a client knows of the gate only what every implementation must take.
UNKNOWN_LIMITS: Final = Limits(
    max_streams=64, session_window=0, contexts=0, context_memory=0, window_log=WINDOW_LOG_MIN
)


def decode_limits(value: object) -> Limits:
    """Limits from their packed form; RemoteProtocolError."""
    if (
        isinstance(value, list)
        and len(value) == 5
        and all(type(number) is int and 0 <= number < 1 << 40 for number in value)
        and WINDOW_LOG_MIN <= value[4] <= WINDOW_LOG_MAX
    ):
        return Limits(*value)
    raise RemoteProtocolError("limits are malformed")


@dataclass(frozen=True, slots=True)
class Start:
    """START: a client begins a session and names the ticket under which it may resume it."""

    ticket: bytes
    instance: bytes
    replaces: bytes  # ticket of a session that the client gave up, or empty
    limits: Limits

    def encode(self) -> bytes:
        """The whole frame."""
        fields = [self.ticket, self.instance, self.replaces, self.limits.pack()]
        return encode(FrameType.START, 0, msgpack.packb(fields))

    @classmethod
    def decode(cls, payload: bytes) -> Start:
        """From a payload; RemoteProtocolError."""
        match unpack(payload, 256):
            case [bytes() as ticket, bytes() as instance, bytes() as replaces, limits] if (
                len(ticket) == TICKET_BYTES
                and len(instance) == INSTANCE_BYTES
                and len(replaces) in {0, TICKET_BYTES}
            ):
                return cls(ticket, instance, replaces, decode_limits(limits))
        raise RemoteProtocolError("START is malformed")


@dataclass(frozen=True, slots=True)
class Started:
    """STARTED: the gate took the session; its ``session`` id is for people and logs."""

    session: str
    limits: Limits

    def encode(self) -> bytes:
        """The whole frame."""
        return encode(FrameType.STARTED, 0, msgpack.packb([self.session, self.limits.pack()]))

    @classmethod
    def decode(cls, payload: bytes) -> Started:
        """From a payload; RemoteProtocolError."""
        match unpack(payload, 256):
            case [str() as session, limits]:
                return cls(session, decode_limits(limits))
        raise RemoteProtocolError("STARTED is malformed")


@dataclass(frozen=True, slots=True)
class Resume:
    """RESUME: ``ticket 32 | generation u64 | received u64``; a lower generation is an older attempt."""

    ticket: bytes
    generation: int
    received: int

    def encode(self) -> bytes:
        """The whole frame."""
        return encode(FrameType.RESUME, 0, _RESUME.pack(self.ticket, self.generation, self.received))

    @classmethod
    def decode(cls, payload: bytes) -> Resume:
        """From a payload; RemoteProtocolError."""
        if len(payload) != _RESUME.size:
            raise RemoteProtocolError("RESUME is malformed")
        return cls(*_RESUME.unpack(payload))


def encode_number(kind: int, number: int) -> bytes:
    """PING, PONG or RESUMED: one u64."""
    return encode(kind, 0, number.to_bytes(8))


def decode_number(payload: bytes) -> int:
    """The u64 of a PING, PONG or RESUMED."""
    if len(payload) != 8:
        raise RemoteProtocolError("a number of a wrong length")
    return int.from_bytes(payload)


def unpack(payload: bytes, limit: int) -> Any:
    """Msgpack with every length bounded by the payload's own; RemoteProtocolError."""
    if len(payload) > limit:
        raise RemoteProtocolError(f"{len(payload)} bytes where at most {limit} may be", code=3)
    try:
        return msgpack.unpackb(
            payload, strict_map_key=True, max_ext_len=0, max_array_len=256, max_map_len=256, use_list=True
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise RemoteProtocolError("a payload is not msgpack of the expected kind") from error

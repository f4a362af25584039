"""What gates of paired pools say to each other beside the log: heartbeats. Specified in docs/federation.md.

On a stream of the kind "heartbeat" each message is a frame: a u32 (big-endian) length, then a msgpack array
of a body and the Ed25519 signature of the sender's online key over it. The body is a msgpack map that is
checked field by field; fields whose names end in "?" may be skipped. The bytes that were signed travel as
they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError
from tunnel_proto.framing import framed
from tunnel_proto.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack
from tunnel_proto.shapes import ShapeError, has, listed, one_of, plan_of, raw, real, record, text, whole

KIND_HEARTBEAT: Final = "heartbeat"

HEARTBEAT_MAX: Final = 16 * 1024
"""Bytes of a frame; one with the heads of 50 pools has about 5,000."""

HEADS_MAX: Final = 64
GATES_MAX: Final = 16
HEALTH: Final = ("ok", "degraded", "draining")

_DOMAIN: Final = "heartbeat"
_NAME = text(63, r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = text(253, r"[!-~]+")


@dataclass(frozen=True, slots=True)
class LogHead:
    """How far one pool's log has come at the sender."""

    pool: bytes = has(raw(KEY_BYTES))
    incarnation: bytes = has(raw(32))
    seq: int = has(whole())


@dataclass(frozen=True, slots=True)
class GatePlace:
    """Where one gate of the sender's pool is dialled, and the X25519 key that it proves."""

    name: str = has(_NAME)
    host: str = has(_HOST)
    port: int = has(whole(1, 65535))
    handshake_public: bytes = has(raw(KEY_BYTES))


@dataclass(frozen=True, slots=True)
class Load:
    """What a pool carries now, in all its gate knows of."""

    sessions: int = has(whole(), 0)  # of apps
    jobs: int = has(whole(), 0)  # under way
    waiting: int = has(whole(), 0)
    workers: int = has(whole(), 0)  # connected


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A gate's sign of life to another pool.

    ``pool`` is the sender's pool key, ``instance`` 16 random bytes of its process, ``seq`` grows by one with
    each. ``time`` is its unix time: it tells how far its clock is off, nothing is decided by it. ``gates``
    are named when they changed and now and then.
    """

    pool: bytes = has(raw(KEY_BYTES))
    gate: str = has(_NAME)
    instance: bytes = has(raw(16))
    seq: int = has(whole())
    time: float = has(real(0.0, 1e11))
    health: str = has(one_of(*HEALTH), "ok")
    load: Load = has(record(Load), Load())
    heads: tuple[LogHead, ...] = has(listed(record(LogHead), HEADS_MAX), ())
    roster: int = has(whole(), 0)  # serial of the newest roster
    gates: tuple[GatePlace, ...] = has(listed(record(GatePlace), GATES_MAX), ())


def sign_heartbeat(beat: Heartbeat, online: Identity) -> bytes:
    """One frame. LocalProtocolError for a heartbeat that the other side would refuse."""
    try:
        body = pack(plan_of(Heartbeat).write(beat))
    except ShapeError as error:
        raise LocalProtocolError(f"this heartbeat cannot be sent: {error}") from None
    frame = pack([body, online.sign(_DOMAIN, body)])
    if len(frame) > HEARTBEAT_MAX:
        raise LocalProtocolError(f"this heartbeat cannot be sent: it has {len(frame)} bytes")
    return framed(frame)


def read_heartbeat(frame: bytes, verify_key: bytes) -> Heartbeat:
    """A frame's payload, checked against the online key that must have signed it.

    RemoteProtocolError for a malformed one, AuthenticationFailed for another's signature.
    """
    value = unpack(frame, max_bytes=HEARTBEAT_MAX)
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(one, bytes) for one in value):
        raise RemoteProtocolError("a heartbeat is malformed")
    body, signature = value
    if len(signature) != SIGNATURE_BYTES:
        raise AuthenticationFailed("the heartbeat's signature has the wrong size")
    verify(verify_key, _DOMAIN, body, signature)
    document: Any = unpack(body, max_bytes=HEARTBEAT_MAX)
    try:
        beat: Heartbeat = plan_of(Heartbeat).read(document)
    except ShapeError as error:
        raise RemoteProtocolError(f"a bad heartbeat: {error}") from None
    return beat

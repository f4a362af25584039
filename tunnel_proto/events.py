"""What a session tells its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tunnel_proto.stream import MuxStream


@dataclass
class DataReceived:
    """All data of one record: (stream, data, ends on a message boundary), in order."""

    chunks: list[tuple[MuxStream, bytes, bool]]


@dataclass
class StreamOpened:
    """The peer opened a stream."""

    stream: MuxStream


@dataclass
class EofReceived:
    """The peer closed its direction of a stream."""

    stream: MuxStream


@dataclass
class StreamEnded:
    """A stream is over: ``code`` None after both sides closed, else a `StreamCode`."""

    stream: MuxStream
    code: int | None
    message: str
    sqlstate: str


@dataclass
class WritePaused:
    """A stream's backlog stayed above its bound after a flush."""

    stream: MuxStream


@dataclass
class WriteResumed:
    """A paused stream's backlog has drained."""

    stream: MuxStream


@dataclass
class SessionStarted:
    """The gate confirmed a new session."""

    session: str


@dataclass
class PeerDraining:
    """GOAWAY: the peer takes no new streams."""

    code: int
    message: str


@dataclass
class SessionEnded:
    """The session is over for both; its streams have ended before this event."""

    code: int
    message: str


@dataclass
class LinkDead:
    """The peer did not answer in time: drop the link."""

    silence_s: float


Event: TypeAlias = (
    DataReceived
    | StreamOpened
    | EofReceived
    | StreamEnded
    | WritePaused
    | WriteResumed
    | SessionStarted
    | PeerDraining
    | SessionEnded
    | LinkDead
)

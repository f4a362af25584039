"""The asyncio face of the tunnel: streams, the gate's server and the client's reconnecting link.

It mirrors asyncio's Protocol and Transport: a `StreamReceiver` gets callbacks, a `Stream` takes bytes.
Everything here runs on one event loop and is not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tunnel_proto.configuration import SessionStats, TunnelSettings
from tunnel_proto.errors import TunnelError

if TYPE_CHECKING:
    from tunnel_proto.certificate import NodeCertificate
    from tunnel_proto.enrolment import GateAddress
    from tunnel_proto.handshake import Hello, ReplayMarks
    from tunnel_proto.identity import Identity


class StreamError(TunnelError):
    """Why a stream ended before both sides had closed it.

    ``code`` is a `StreamCode`, ``message`` is fit to be shown, ``sqlstate`` may be empty.
    """

    def __init__(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.sqlstate = sqlstate


class StreamReceiver(Protocol):
    """Callbacks of one stream; none of them may raise, none is called from inside ``Stream.write``."""

    def data_received(self, data: bytes, boundary: bool) -> None:
        """``boundary``: the sender says that this data ends on a message boundary of its protocol."""

    def eof_received(self) -> None:
        """The peer will send nothing more; we still may."""

    def stream_closed(self, error: StreamError | None) -> None:
        """The stream is over: exactly once, and last. None after both sides closed."""

    def pause_writing(self) -> None:
        """Credit or the resend buffer ran out: what is written now is only kept in memory."""

    def resume_writing(self) -> None:
        """The backlog has drained."""

    def link_lost(self) -> None:
        """The tunnel is down and may come back; nothing is lost yet."""

    def link_restored(self) -> None:
        """The tunnel is back and what was on its way is being resent."""


class Stream:
    """One ordered, flow-controlled, resumable byte stream in each direction."""

    __slots__ = ("id", "kind", "metadata", "receiver")

    id: int
    kind: str
    metadata: dict[str, Any]
    receiver: StreamReceiver

    def write(self, data: bytes, *, boundary: bool = False, sensitive: bool = False) -> None:
        """Queue ``data``; it leaves at the end of this loop tick if credit allows.

        ``boundary``: it ends on a message boundary of the inner protocol. ``sensitive``: it is never
        compressed and shares no frame with other data. LocalProtocolError after `write_eof`; silently
        dropped once the stream is over.
        """
        raise NotImplementedError

    def write_eof(self) -> None:
        """Half-close after what is queued."""
        raise NotImplementedError

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        """End both directions now; queued data is dropped. No callback follows."""
        raise NotImplementedError

    def consumed(self, n: int) -> None:
        """``n`` received bytes were written onward: their credit returns to the sender."""
        raise NotImplementedError

    def set_compression(self, mode: str) -> None:
        """``off``, ``auto`` or ``long`` (history kept over turn-arounds), for both directions."""
        raise NotImplementedError

    @property
    def writable(self) -> bool:
        """False between ``pause_writing`` and ``resume_writing`` and once nothing may be written."""
        raise NotImplementedError


class PeerSession:
    """A client's session at the gate; it outlives the links that carry it."""

    id: str
    peer: NodeCertificate
    connected: bool
    address: str  # "host:port" of the newest link
    stats: SessionStats
    streams: Mapping[int, Stream]
    since: float  # unix time of its start

    def close(self, code: int, message: str) -> None:
        """End the session and all its streams (revocation, shutdown)."""
        raise NotImplementedError

    def goaway(self, message: str) -> None:
        """Drain: the peer opens no new streams here."""
        raise NotImplementedError


class TunnelServer:
    """Listens for known nodes and keeps their sessions; to anyone else it does not say a byte.

    ``authorise(hello, remote_static)`` checks chain, enrolment and revocation and raises
    AuthenticationFailed; the server itself applies ``marks`` afterwards, so ``authorise`` must not.
    ``on_stream`` sets ``stream.receiver`` before it returns, or resets the stream.
    """

    sessions: Mapping[str, PeerSession]

    def __init__(
        self,
        *,
        identity: Identity,
        chain: bytes,
        authorise: Callable[[Hello, bytes], NodeCertificate],
        marks: ReplayMarks,
        settings: TunnelSettings,
        on_session: Callable[[PeerSession], None],
        on_stream: Callable[[PeerSession, Stream], None],
        on_session_closed: Callable[[PeerSession], None],
        node: str,
        addresses: Sequence[str],
    ) -> None:
        raise NotImplementedError

    async def start(self, host: str, port: int) -> None:
        """Listen; may be called for several addresses. OSError as asyncio raises it."""
        raise NotImplementedError

    async def drain(self, timeout: float) -> None:
        """Stop listening, send GOAWAY, wait until all streams have ended or ``timeout`` s passed."""
        raise NotImplementedError

    async def close(self) -> None:
        """End every session with GATE_SHUTDOWN."""
        raise NotImplementedError


class TunnelClient:
    """One gate's link as its client sees it; reconnects and resumes by itself until closed.

    ``state`` is ``idle``, ``connecting``, ``up``, ``lost`` (streams wait for resumption), ``draining`` (the
    gate said GOAWAY) or ``closed``. ``instance`` (16 random bytes) should be one per process: another one
    ends this node's earlier sessions at the gate.
    """

    state: str
    last_error: str
    stats: SessionStats
    gate: GateAddress
    streams: Mapping[int, Stream]

    def __init__(
        self,
        *,
        identity: Identity,
        chain: bytes,
        gate: GateAddress,
        settings: TunnelSettings,
        role: str,
        next_timestamp: Callable[[], int],
        on_state: Callable[[TunnelClient], None],
        proxy: str | None = None,
        instance: bytes | None = None,
    ) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Begin connecting; needs a running event loop."""
        raise NotImplementedError

    async def wait_up(self, timeout: float) -> None:
        """Wait for state ``up``; TunnelError with the cause after ``timeout`` s."""
        raise NotImplementedError

    async def close(self, drain: float = 0) -> None:
        """Wait up to ``drain`` s for streams to end, then end the session."""
        raise NotImplementedError

    def open_stream(
        self, kind: str, metadata: dict[str, Any], receiver: StreamReceiver, *, compression: str = "auto"
    ) -> Stream:
        """Open a stream; its OPEN and first data leave together. LocalProtocolError unless up or lost."""
        raise NotImplementedError

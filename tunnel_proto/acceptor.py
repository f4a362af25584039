"""The gate's side of the tunnel: listen, stay silent to strangers, keep sessions while links come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import structlog

from tunnel_proto.batch import split_frames
from tunnel_proto.cipher import RecordLayer
from tunnel_proto.compression import ContextPool
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import FIRST_MESSAGE_TIMEOUT_S, OPENING_MAX, FrameType, StreamCode
from tunnel_proto.durability import Durability
from tunnel_proto.errors import (
    AuthenticationFailed,
    LocalProtocolError,
    RemoteProtocolError,
    ResumeRefused,
    TunnelError,
)
from tunnel_proto.frame import Resume, Start, encode_reason
from tunnel_proto.handshake import Admission, Hello, ResponderHandshake, Welcome, choose_version
from tunnel_proto.pump import Pump, Stream, kernel_rtt
from tunnel_proto.refusals import TELL_EVERY_S, Refusals
from tunnel_proto.resume import SessionTable
from tunnel_proto.session import Session, SessionIdentity
from tunnel_proto.stats import SessionStats

if TYPE_CHECKING:
    from tunnel_proto.certificate import NodeCertificate
    from tunnel_proto.handshake import Established
    from tunnel_proto.identity import Identity
    from tunnel_proto.marks import ReplayMarks
    from tunnel_proto.pump import StreamReceiver

log = structlog.get_logger()

_LINGER_S = 5.0  # how long the last words of a session may take to leave
UNWELCOME = "unwelcome"
"""Reason, in the log, for nodes with a certificate that may not come in; who authorises counts them."""

_FAREWELL_S = 1.0  # the same while the gate stops


class PeerSession:
    """A client's session at the gate; it outlives the links that carry it.

    ``id`` is for people and logs, ``address`` the "host:port" of the newest link, ``since`` unix time.
    """

    def __init__(
        self, server: TunnelServer, peer: NodeCertificate, identity: SessionIdentity, address: str
    ) -> None:
        self.id = os.urandom(6).hex()
        self.peer = peer
        self.address = address
        self.since = time.time()
        self.stats = SessionStats()
        self.session = Session(
            client=False,
            identity=identity,
            settings=server.settings,
            pool=server.pool,
            cpu_clock=time.perf_counter,
            stats=self.stats,
            factory=Stream,
        )
        self._server = server
        self._loop = asyncio.get_running_loop()
        self.pump = Pump(self.session, self, self._loop, self._fault)
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Is there a link now?"""
        return self.pump.connected

    @property
    def streams(self) -> Mapping[int, Stream]:
        """Open streams by number."""
        return self.pump.streams

    def open_stream(
        self, kind: str, metadata: dict[str, Any], receiver: StreamReceiver, *, compression: str = "auto"
    ) -> Stream:
        """Open a stream to the peer. LocalProtocolError at its limits or once the session is over."""
        if self.session.over:
            raise LocalProtocolError(f"the session of {self.peer.name} is over")
        stream = cast("Stream", self.session.mux.open(kind, metadata, compression))
        stream.receiver = receiver
        return stream

    def close(self, code: int, message: str) -> None:
        """End the session and all its streams (revocation, shutdown)."""
        self.session.end(code, message)

    def goaway(self, message: str) -> None:
        """Drain: the peer opens no new streams here."""
        if not self.session.mux.refusing:
            self.session.mux.goaway(StreamCode.GATE_SHUTDOWN, message)

    def resume(self, transport: asyncio.Transport, link: RecordLayer, resume: Resume, address: str) -> None:
        """Go on over a new link, fencing the old one.

        ResumeRefused when what the two sides have cannot be joined: no later link could mend that, so the
        session ends.
        """
        try:
            self.session.accept_resume(link, time.monotonic(), kernel_rtt(transport), resume)
        except RemoteProtocolError as error:
            self.close(StreamCode.SESSION_LOST, error.message)
            raise ResumeRefused(error.message) from None
        self.address = address
        restored = self._expiry is not None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self.pump.attach(transport, link)
        if restored:
            self.pump.tell_streams("link_restored")

    # --- SessionOwner

    def link_down(self, reason: str) -> None:
        """Wait for a resumption, for as long as the settings say."""
        log.info("link lost", session=self.id, node=self.peer.name, reason=reason)
        window = self._server.settings.resume_window_s
        self._expiry = self._loop.call_later(window, self._expire)
        self.pump.tell_streams("link_lost")

    def stream_opened(self, stream: Stream) -> None:
        """Hand a new stream to the gate."""
        self._server.on_stream(self, stream)

    def session_started(self) -> None:
        """Only clients are told this."""

    def peer_draining(self, message: str) -> None:
        """A client that drains opens no streams; there is nothing to do."""

    def session_ended(self, code: int, message: str) -> None:
        """Forget the session."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._loop.call_later(_LINGER_S, self.pump.drop, message)
        self._server.forget(self)

    def _expire(self) -> None:
        self._expiry = None
        self.session.end(StreamCode.SESSION_LOST, "the tunnel stayed down for too long")

    def _fault(self, message: str) -> None:
        log.error("a stream's receiver failed", session=self.id, error=message)


class Arrival(asyncio.Protocol):
    """One connection to the gate, from its first byte until it carries a session."""

    def __init__(self, server: TunnelServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._host = ""
        self._address = ""
        self._entered = False
        self._spoken = False
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: ResponderHandshake | None = None
        self._established: Established | None = None
        self._link: RecordLayer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the stranger and give it a moment to prove itself."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername") or ("", 0)
        self._host = str(peer[0])
        self._address = f"[{peer[0]}]:{peer[1]}" if ":" in self._host else f"{peer[0]}:{peer[1]}"
        server = self._server
        if not server.admission.enter(self._host):
            server.refused("crowded", self._address, "too many connections that have not proved themselves")
            self._transport.abort()
            return
        self._entered = True
        server.arrivals.add(self)
        self._handshake = ResponderHandshake(
            identity=server.identity,
            ephemeral=os.urandom(32),
            authorise=server.authorise,
            welcome=server.welcome,
            admit=self._admit,
        )
        self._timer = self._loop.call_later(FIRST_MESSAGE_TIMEOUT_S, self._refuse, "slow", "too slow")

    def data_received(self, data: bytes) -> None:
        """Handshake, then the first record; what follows goes to the session's pump."""
        try:
            if self._link is not None:
                self._link.feed(data)
                self._open(self._link)
            elif self._handshake is not None:
                self._shake(self._handshake, data)
        except AuthenticationFailed as error:
            self._refuse(error.reason or UNWELCOME, error.message)
        except TunnelError as error:
            self._refuse("record", error.message)
        except Exception as error:  # whatever went wrong here, a stranger must not learn of it
            log.exception("a handshake failed", address=self._address)
            self._refuse("fault", type(error).__name__)

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._leave()
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _admit(self) -> bool:
        return self._server.admission.spend(self._host, self._loop.time())

    def _shake(self, handshake: ResponderHandshake, data: bytes) -> None:
        established = handshake.receive(data)
        if established is None:
            return
        self._handshake = None
        self._server.admission.refund(self._host)
        self._server.durability_due()
        assert self._transport is not None
        self._transport.write(handshake.message_2())
        self._spoken = True
        if established.welcome.refusal or established.peer is None:
            self._transport.close()
            return
        self._established = established
        self._link = RecordLayer(established.send_key, established.receive_key)

    def _open(self, link: RecordLayer) -> None:
        """START or RESUME: only the holder of the initiator's keys can have sealed this record."""
        record = link.next_record()
        if record is None:
            if link.buffered > OPENING_MAX:
                raise RemoteProtocolError("the first record is too long")
            return
        assert self._established is not None
        assert self._transport is not None
        peer = self._established.peer
        assert peer is not None
        frames = split_frames(record, 1)
        if record[0] or len(frames) != 1:
            raise RemoteProtocolError("the first record holds one START or RESUME")
        kind, _, _, payload = frames[0]
        self._leave()
        if self._timer is not None:
            self._timer.cancel()
        try:
            if kind == FrameType.START:
                session = self._server.begin(peer, Start.decode(payload), self._address)
                session.session.accept(
                    link, time.monotonic(), kernel_rtt(self._transport), Start.decode(payload), session.id
                )
                session.pump.attach(self._transport, link)
            elif kind == FrameType.RESUME:
                resume = Resume.decode(payload)
                session = self._server.find(peer, resume)
                session.resume(self._transport, link, resume, self._address)
            else:
                raise RemoteProtocolError("the first record holds one START or RESUME")
        except ResumeRefused as error:
            self._say_refused(link, StreamCode.SESSION_LOST, error.message)
        except _DrainingError as error:
            self._say_refused(link, StreamCode.GATE_SHUTDOWN, error.message)

    def _say_refused(self, link: RecordLayer, code: int, message: str) -> None:
        assert self._transport is not None
        self._transport.write(link.seal(b"\0" + encode_reason(FrameType.REFUSED, 0, code, message)))
        self._transport.close()

    def _refuse(self, reason: str, detail: str) -> None:
        """Not a byte back: hold the connection a random moment, reading nothing, and drop it."""
        if self._timer is not None:
            self._timer.cancel()
        self._handshake = None
        self._server.refused(reason, self._address, detail)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._spoken:  # then it was a known node, which may know at once
            transport.abort()
            return
        transport.pause_reading()
        self._timer = self._loop.call_later(Admission.hold(os.urandom(8)), transport.abort)

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._server.admission.leave(self._host)
        self._server.arrivals.discard(self)


class _DrainingError(TunnelError):
    """START while the gate drains."""


class TunnelServer:
    """Listens for known nodes and keeps their sessions; to anyone else it does not say a byte.

    ``authorise(hello, remote_static)`` checks chain, enrolment, revocation and replay mark and raises
    AuthenticationFailed (`tunnel_proto.authorisation.Authorisation` is one); ``marks``, which it keeps, are
    synced to the disk a second later. ``on_stream`` sets ``stream.receiver`` before it returns, or resets
    the stream. ``refusal(certificate)`` is a word that a known node is told instead of a session, or "".
    """

    def __init__(
        self,
        *,
        identity: Identity,
        chain: bytes,
        authorise: Callable[[Hello, bytes], NodeCertificate],
        settings: TunnelSettings,
        on_session: Callable[[PeerSession], None],
        on_stream: Callable[[PeerSession, Stream], None],
        on_session_closed: Callable[[PeerSession], None],
        node: str,
        addresses: Sequence[str],
        marks: ReplayMarks | None = None,
        refusal: Callable[[NodeCertificate], str] | None = None,
    ) -> None:
        self.identity = identity
        self.chain = chain
        self.authorise = authorise
        self.settings = settings
        self.on_stream = on_stream
        self.pool = ContextPool()
        self.admission = Admission(in_flight_max=settings.handshakes_in_flight)
        self.refusals = Refusals()
        self.arrivals: set[Arrival] = set()
        self.draining = False
        self._durability = Durability(marks) if marks is not None else None
        self._on_session = on_session
        self._on_session_closed = on_session_closed
        self._refusal = refusal
        self._node = node
        self._addresses = tuple(addresses)
        self._servers: list[asyncio.Server] = []
        self._telling: set[asyncio.TimerHandle] = set()
        self._table: SessionTable[Session] = SessionTable()
        self._peers: dict[Session, PeerSession] = {}
        self._sessions: dict[str, PeerSession] = {}

    @property
    def sessions(self) -> Mapping[str, PeerSession]:
        """Sessions by id, with a link or waiting for one."""
        return self._sessions

    @property
    def listening(self) -> list[tuple[str, int]]:
        """Addresses and ports, once started."""
        return [one.getsockname()[:2] for server in self._servers for one in server.sockets]

    async def start(self, host: str, port: int) -> None:
        """Listen; may be called for several addresses. OSError as asyncio raises it."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(lambda: Arrival(self), host, port, backlog=1024))

    async def drain(self, timeout: float) -> None:
        """Send GOAWAY and wait until all streams have ended or ``timeout`` s passed.

        New sessions are refused; links that are lost meanwhile may still be resumed.
        """
        self.draining = True
        for session in list(self._sessions.values()):
            session.goaway("the gate is shutting down")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for session in list(self._sessions.values()):
                    await session.pump.wait_until(lambda pump: not pump.streams)

    async def close(self) -> None:
        """Stop listening and end every session with GATE_SHUTDOWN."""
        self.draining = True
        for server in self._servers:
            server.close()
        for timer in self._telling:
            timer.cancel()
        for arrival in list(self.arrivals):
            arrival.abort()
        sessions = list(self._sessions.values())
        for session in sessions:
            session.close(StreamCode.GATE_SHUTDOWN, "the gate is shutting down")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                for session in sessions:
                    await session.pump.wait_until(lambda pump: not pump.connected)
        for session in sessions:
            session.pump.drop("the gate is shutting down")
        if self._durability is not None:
            await self._durability.close()

    def durability_due(self) -> None:
        """A handshake was accepted, and its mark belongs on the disk."""
        if self._durability is not None:
            self._durability.due()

    def welcome(self, hello: Hello, peer: NodeCertificate) -> Welcome:
        """What message 2 says to a known node."""
        version = choose_version(hello.versions)
        refusal = self._refusal(peer) if self._refusal is not None else ""
        return Welcome(version or 1, frozenset(), self._node, self._addresses, refusal)

    def begin(self, peer: NodeCertificate, start: Start, address: str) -> PeerSession:
        """A new session for START, ending those that it replaces. RemoteProtocolError, or draining."""
        if self.draining:
            raise _DrainingError("the gate is shutting down")
        identity = SessionIdentity(peer.handshake_public, start.ticket, start.instance)
        session = PeerSession(self, peer, identity, address)
        for ended in self._table.start(session.session, start.replaces):
            ended.end(StreamCode.SESSION_LOST, "the node started anew")
        self._peers[session.session] = session
        self._sessions[session.id] = session
        self._on_session(session)
        log.info("session started", session=session.id, node=peer.name, role=peer.role, address=address)
        return session

    def find(self, peer: NodeCertificate, resume: Resume) -> PeerSession:
        """The session that RESUME names. ResumeRefused, RemoteProtocolError."""
        session = self._table.resume(peer.handshake_public, resume)
        if session.over:
            raise ResumeRefused("the session has ended")
        return self._peers[session]

    def refused(self, reason: str, address: str, detail: str) -> None:
        """Count a refused connection, and log it: the first of its kind at once, more of them together."""
        host = address.rpartition(":")[0]
        if self.refusals.note(reason, host, counted=reason != UNWELCOME):
            log.info("connection refused", address=address, kind=reason, reason=detail)
            self._tell_later(reason)

    def _tell_later(self, reason: str) -> None:
        def tell() -> None:
            self._telling.discard(timer)
            if muted := self.refusals.due(reason):
                log.info(
                    "connections refused",
                    kind=reason,
                    count=muted.count,
                    hosts=len(muted.hosts),
                    last=muted.last,
                    within_s=TELL_EVERY_S,
                )
                self._tell_later(reason)

        timer = asyncio.get_running_loop().call_later(TELL_EVERY_S, tell)
        self._telling.add(timer)

    def forget(self, session: PeerSession) -> None:
        """A session is over."""
        self._table.remove(session.session)
        self._peers.pop(session.session, None)
        if self._sessions.pop(session.id, None) is not None:
            log.info("session ended", session=session.id, node=session.peer.name)
            self._on_session_closed(session)


__all__ = ["AuthenticationFailed", "PeerSession", "TunnelServer"]

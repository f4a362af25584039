"""The client's side of the tunnel: one gate's link, kept up by connecting and resuming again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from tunnel_proto.cipher import RecordLayer
from tunnel_proto.compression import ContextPool
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import (
    DRAIN_KINDS,
    INSTANCE_BYTES,
    PROTOCOL_VERSIONS,
    TICKET_BYTES,
    StreamCode,
)
from tunnel_proto.dial import Dial
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError, ResumeRefused, TunnelError
from tunnel_proto.frame import Resume
from tunnel_proto.handshake import Hello, InitiatorHandshake
from tunnel_proto.pump import Pump, Stream, StreamReceiver, kernel_rtt
from tunnel_proto.session import Session, SessionIdentity
from tunnel_proto.stats import SessionStats

if TYPE_CHECKING:
    from tunnel_proto.enrolment import GateAddress
    from tunnel_proto.identity import Identity

_STEADY_LINK_S = 0.05  # a link that lived so long is replaced at once when it dies
_LINGER_S = 1.0
_HOME_SHARE = 1 / 3  # of the time to connect: for the gate that holds the session, before any other


class TunnelClient:
    """One gate's link as its client sees it; reconnects and resumes by itself until closed.

    ``state`` is ``idle``, ``connecting``, ``up``, ``lost`` (streams wait for resumption), ``draining`` (the
    gate said GOAWAY) or ``closed``. ``instance`` (16 random bytes) should be one per process: another one
    ends this node's earlier sessions at the gate. ``proxy`` is the "host:port" of an HTTP CONNECT proxy.
    ``on_stream`` takes streams that the gate opens, setting their receiver; without it they are refused.
    """

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
        on_stream: Callable[[Stream], None] | None = None,
    ) -> None:
        self.gate = gate
        self.state = "idle"
        self.last_error = ""
        self.stats = SessionStats()
        self._identity = identity
        self._chain = chain
        self._settings = settings
        self._role = role
        self._next_timestamp = next_timestamp
        self._on_state = on_state
        self._on_stream = on_stream
        self._proxy = proxy
        self._instance = instance or os.urandom(INSTANCE_BYTES)
        self._pool = ContextPool()
        self._session: Session | None = None
        self._pump: Pump | None = None
        self._ticket = b""
        self._home: tuple[str, ...] = ()  # where the process that holds the session can be dialled
        self._draining = False
        self._task: asyncio.Task[None] | None = None
        self._down = asyncio.Event()
        self._linked_at = 0.0
        self._renew_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def streams(self) -> Mapping[int, Stream]:
        """Open streams by number."""
        return self._pump.streams if self._pump is not None else {}

    # --- what its owner does

    def start(self) -> None:
        """Begin connecting; needs a running event loop."""
        if self._task is None and self.state != "closed":
            self._set_state("connecting")
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait_up(self, timeout: float) -> None:
        """Wait for state ``up``; TunnelError with the cause after ``timeout`` s."""
        if self.state == "up":
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter, timeout)
        except TimeoutError:
            cause = self.last_error or "no answer"
            raise TunnelError(f"gate {self.gate.name} cannot be reached: {cause}") from None
        finally:
            self._waiters.discard(waiter)

    async def close(self, drain: float = 0) -> None:
        """Wait up to ``drain`` s for streams to end, then end the session."""
        if self._pump is not None and drain > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain):
                    await self._pump.wait_until(lambda pump: not pump.streams)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        session, pump = self._session, self._pump
        self._session = None
        if session is not None and pump is not None:
            session.end(StreamCode.CANCELLED, "the client is gone")
            pump.flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await pump.wait_until(lambda pump: not pump.connected)
            pump.drop("closed")
        if self._expiry is not None:
            self._expiry.cancel()
        if self.state != "closed":
            self._set_state("closed")

    def open_stream(
        self, kind: str, metadata: dict[str, Any], receiver: StreamReceiver, *, compression: str = "auto"
    ) -> Stream:
        """Open a stream; its OPEN and first data leave together. LocalProtocolError unless up or lost."""
        ending = self.state == "draining" and kind in DRAIN_KINDS
        if self._session is None or not (ending or self.state in {"up", "lost"}):
            raise LocalProtocolError(f"the link to gate {self.gate.name} is {self.state}")
        stream = cast("Stream", self._session.mux.open(kind, metadata, compression))
        stream.receiver = receiver
        return stream

    def retune(self, settings: TunnelSettings) -> None:
        """Go by other settings from now on, in the running session too: how soon silence is noticed."""
        self._settings = settings
        if self._session is not None:
            self._session.settings = settings

    # --- the life of links

    async def _run(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            if self._pump is not None and self._pump.connected:
                if await self._wait_down():
                    failures = 0 if loop.time() - self._linked_at >= _STEADY_LINK_S else failures + 1
                    await self._pause(failures)
                    continue
                self._renew_at = loop.time() + self._settings.retry_max_s  # should this attempt fail
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    await self._connect()
            except (OSError, TunnelError) as error:
                if isinstance(error, ResumeRefused):
                    self._resume_refused(error)
                self.last_error = _cause(error)
                self._on_state(self)
                failures += 1
                await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        """Grow with each failure, with jitter so that a gate's clients do not come back as one."""
        if failures:
            longest = min(
                self._settings.retry_max_s, self._settings.retry_min_s * 2.0 ** min(failures - 1, 16)
            )
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))

    async def _wait_down(self) -> bool:
        """True when the link died, False when it is old enough to be renewed."""
        self._down.clear()
        if self._pump is None or not self._pump.connected:
            return True
        try:
            async with asyncio.timeout_at(self._renew_at):
                await self._down.wait()
        except TimeoutError:
            return self._pump is None or not self._pump.connected
        return True

    async def _connect(self) -> None:
        """Dial the process that holds the session, if there is one, and then the configured address.

        Several gates may stand behind the latter, and only one of them can resume the session.
        """
        configured = (self.gate.host, self.gate.port)
        resuming = self._session is not None and not self._session.untouched
        home = [address for address in map(_host_and_port, self._home) if address != configured]
        refused: ResumeRefused | None = None
        if resuming and home:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.connect_timeout_s * _HOME_SHARE):
                    for host, port in home:
                        try:
                            return await self._dial(host, port)
                        except ResumeRefused as error:
                            refused = error
                        except (OSError, TunnelError) as error:
                            self.last_error = _cause(error)
        try:
            await self._dial(*configured)
        except (OSError, TunnelError) as error:
            raise refused or error from None

    async def _dial(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        if self._proxy is not None:
            target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            host, port = _host_and_port(self._proxy)
            _, dial = await loop.create_connection(lambda: Dial(self, target), host, port)
        else:
            _, dial = await loop.create_connection(lambda: Dial(self, ""), host, port)
        try:
            await dial.done
        finally:
            dial.abort()

    def handshake(self) -> InitiatorHandshake:
        """A fresh handshake for a new connection."""
        hello = Hello(self._role, PROTOCOL_VERSIONS, frozenset(), self._chain, self._next_timestamp())
        return InitiatorHandshake(
            identity=self._identity,
            hello=hello,
            responder_key=self.gate.handshake_public,
            ephemeral=os.urandom(32),
        )

    def opening(self) -> Resume | None:
        """What to say first on a new link: RESUME, or None where START begins a session."""
        session = self._session
        if session is None:
            session = self._begin()
        elif session.untouched:
            session.rename(os.urandom(TICKET_BYTES))
        else:
            return session.offer()
        self._ticket = session.ticket
        return None

    def linked(
        self,
        transport: asyncio.Transport,
        link: RecordLayer,
        offer: Resume | None,
        peer_received: int | None,
        dial: Dial,
    ) -> None:
        """A connection is ready to carry the session.

        TunnelError when the session ended meanwhile, ResumeRefused when it cannot be joined to the gate's.
        """
        session, pump = self._session, self._pump
        if session is None or pump is None or (offer is not None and offer.ticket != session.ticket):
            raise TunnelError("the session ended while it was being resumed")
        loop = asyncio.get_running_loop()
        rtt = kernel_rtt(transport) if self._proxy is None else 0.0
        if offer is None:
            session.start(link, time.monotonic(), rtt)
        else:
            try:
                session.resume(
                    link, time.monotonic(), rtt, told=offer.received, peer_received=peer_received or 0
                )
            except RemoteProtocolError as error:  # no later link could mend that
                raise ResumeRefused(error.message) from None
        self._home = dial.addresses
        self._linked_at = loop.time()
        self._renew_at = loop.time() + self._settings.renew_s * random.uniform(0.9, 1.0)
        self._down.clear()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        was_lost = self.state == "lost"
        pump.attach(transport, link)
        if offer is not None and session.started and not session.over:
            self._set_state("draining" if self._draining else "up")
            if was_lost:
                pump.tell_streams("link_restored")

    def _begin(self) -> Session:
        identity = SessionIdentity(
            owner=self._identity.handshake_public,
            ticket=os.urandom(TICKET_BYTES),
            instance=self._instance,
            replaces=self._ticket,
        )
        self.stats.streams_open = 0
        session = self._session = Session(
            client=True,
            identity=identity,
            settings=self._settings,
            pool=self._pool,
            cpu_clock=time.perf_counter,
            stats=self.stats,
            factory=Stream,
        )
        self._pump = Pump(session, self, asyncio.get_running_loop(), self._fault)
        self._draining = False
        return session

    def _resume_refused(self, error: ResumeRefused) -> None:
        if self._pump is not None and self._pump.connected:
            return  # the link that was to be renewed is in use, so it was another gate that refused
        if self._session is not None:
            self._session.end(StreamCode.SESSION_LOST, error.message)
            if self._pump is not None:
                self._pump.flush()

    def _expire(self) -> None:
        self._expiry = None
        if self._session is not None:
            self._session.end(StreamCode.SESSION_LOST, "the tunnel stayed down for too long")

    # --- SessionOwner

    def link_down(self, reason: str) -> None:
        """Start resuming at once."""
        self.last_error = reason
        self._down.set()
        self._expiry = asyncio.get_running_loop().call_later(self._settings.resume_window_s, self._expire)
        if self._session is not None and self._session.started:
            self._set_state("lost")
        if self._pump is not None:
            self._pump.tell_streams("link_lost")

    def stream_opened(self, stream: Stream) -> None:
        """The gate opened a stream."""
        if self._on_stream is None:
            stream.reset(StreamCode.REFUSED, "this side takes no streams")
        else:
            self._on_stream(stream)

    def session_started(self) -> None:
        """The gate confirmed the session."""
        self.last_error = ""
        self._set_state("up")

    def peer_draining(self, message: str) -> None:
        """GOAWAY: streams go on, new ones belong elsewhere."""
        self._draining = True
        self.last_error = message
        self._set_state("draining")

    def session_ended(self, code: int, message: str) -> None:
        """Begin anew, unless closed."""
        self.last_error = message
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        pump, self._session = self._pump, None
        if pump is not None:
            asyncio.get_running_loop().call_later(_LINGER_S, pump.drop, message)
        self._down.set()
        if self._task is not None:
            self._pump = None
            self._set_state("connecting")

    def _set_state(self, state: str) -> None:
        self.state = state
        if state in {"up", "closed"}:
            for waiter in list(self._waiters):
                if not waiter.done():
                    if state == "up":
                        waiter.set_result(None)
                    else:
                        waiter.set_exception(TunnelError(f"the link to gate {self.gate.name} was closed"))
        self._on_state(self)

    def _fault(self, message: str) -> None:
        self.last_error = message


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _cause(error: Exception) -> str:
    if isinstance(error, TunnelError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__

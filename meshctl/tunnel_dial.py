"""Dial gates through the tunnel from a program that has no event loop: one thread has it for all links.

`TunnelDial.dial` gives one end of a socketpair; the other is pumped into a stream of kind ``http``, so that
whoever speaks HTTP over a socket need not know about tunnels. A link that went silent gets `GRACE_S` to come
back; then the sockets that hang on it are closed, and the next dial begins afresh, here or elsewhere.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import INSTANCE_BYTES, StreamCode
from tunnel_proto.discard import Discard, Ignore
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import MeshError, TunnelError
from tunnel_proto.identity import Identity
from tunnel_proto.link import Stream, StreamError, TunnelClient
from tunnel_proto.mark import Mark

ROLE: Final = "admin"
KIND: Final = "http"

CONNECT_S: Final = 2.0
"""Longest wait for a gate's connection and handshake; then the next gate or pool is asked."""

SILENCE_S: Final = 0.8
"""Silence after which a gate is asked whether it is there, and the least wait for its answer."""

GRACE_S: Final = 0.75
"""How long a link that was lost may take to come back before what hangs on it is given up."""

RESUME_S: Final = 5.0
"""How long a gate keeps the session of a meshctl that vanished."""

CLOSE_S: Final = 1.0

DRAIN_S: Final = 30.0
"""How long a request may still run at a gate that shuts down; the gate may end it earlier."""

_INSTANCE_PERSON: Final = b"meshctl-instance"

T = TypeVar("T")


def instance_of(identity: Identity) -> bytes:
    """The instance that all programs of one context share: none of them ends another's session."""
    digest = hashlib.blake2b(identity.verify_key, digest_size=INSTANCE_BYTES, person=_INSTANCE_PERSON)
    return digest.digest()


class TunnelDial:
    """Links to gates, kept up for as long as the program runs. Safe to use from any thread."""

    def __init__(
        self,
        identity: Identity,
        chain: bytes,
        mark: Path,
        *,
        settings: TunnelSettings | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        """``mark`` is the file of this node's handshake timestamps."""
        tuned = settings or replace(TunnelSettings(), resume_window_s=RESUME_S, connect_timeout_s=CONNECT_S)
        self._settings = tuned.watchful(SILENCE_S)
        self._identity = identity
        self._chain = chain
        self._mark_file = mark
        self._grace_s = grace_s
        self._mark: Mark | None = None
        self._links: dict[GateAddress, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def dial(
        self, gates: Sequence[GateAddress], timeout: float | None = None, *, patience_s: float = CONNECT_S
    ) -> socket.socket:
        """A connection to the first of one pool's gates that answers, each within ``patience_s``.

        Raises ConnectionError with what was wrong with each, TimeoutError where the last did not answer.
        """
        ours, theirs = socket.socketpair()
        try:
            self._run(self._join(gates, theirs, patience_s))
        except BaseException:
            ours.close()
            theirs.close()
            raise
        ours.settimeout(timeout)
        return ours

    def close(self) -> None:
        """End all links and the thread; a gate hears of it. Safe to call twice."""
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
            asyncio.run_coroutine_threadsafe(self._close_links(), loop).result(CLOSE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S)
        if not thread.is_alive():
            loop.close()
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    # --- the thread

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._started(work)
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                try:
                    self._mark = Mark(self._mark_file, time.time_ns)
                except MeshError:
                    work.close()
                    raise
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="meshctl tunnel", daemon=True
                )
                self._thread.start()
            return self._loop

    # --- in the thread

    async def _join(self, gates: Sequence[GateAddress], theirs: socket.socket, patience_s: float) -> None:
        causes: list[str] = []
        late = False
        for gate in gates:
            link = self._link(gate)
            try:
                await link.ready(patience_s)
                await link.join(theirs)
            except (OSError, TunnelError) as error:
                late = isinstance(error, TimeoutError)
                said = error.message if isinstance(error, TunnelError) else str(error)
                causes.append(f"{gate.name} at {gate.host}:{gate.port}: {said or 'no answer'}")
                self._drop(link)
            else:
                return
        told = "; ".join(causes) or "no gate is known"
        raise TimeoutError(told) if late else ConnectionError(told)

    def _link(self, gate: GateAddress) -> Link:
        link = self._links.get(gate)
        if link is not None and link.over:
            self._drop(link)
            link = None
        if link is None:
            link = self._links[gate] = Link(self._client, gate, self._grace_s, self._drop)
        return link

    def _client(self, gate: GateAddress, on_state: Callable[[TunnelClient], None]) -> TunnelClient:
        assert self._mark is not None
        return TunnelClient(
            identity=self._identity,
            chain=self._chain,
            gate=gate,
            settings=self._settings,
            role=ROLE,
            next_timestamp=self._mark.next,
            on_state=on_state,
            instance=instance_of(self._identity),
        )

    def _drop(self, link: Link) -> None:
        """Use a link no more, and end it; safe to call twice."""
        if self._links.get(link.gate) is link:
            del self._links[link.gate]
        if link.dropped:
            return
        link.dropped = True
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_links(self) -> None:
        for link in list(self._links.values()):
            self._drop(link)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.sleep(0)  # sockets that were cut off are closed by the loop, a turn later


class Link:
    """One gate's tunnel and the sockets that hang on it."""

    def __init__(
        self,
        connect: Callable[[GateAddress, Callable[[TunnelClient], None]], TunnelClient],
        gate: GateAddress,
        grace_s: float,
        on_over: Callable[[Link], None],
    ) -> None:
        """``on_over`` is told when the link was given up; it would go on to dial otherwise."""
        self.gate = gate
        self.over = False
        self.dropped = False
        self._on_over = on_over
        self._draining = False
        self._grace_s = grace_s
        self._changed = asyncio.Event()
        self._carriers: set[Carrier] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._failed = False
        self._was_up = False
        self.client = connect(gate, self._on_state)
        self.client.start()

    async def ready(self, timeout: float) -> None:
        """Wait until streams can be opened. TunnelError when the gate cannot be used, TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.client.state != "up":
                if self.over or (self._failed and not self._was_up):
                    raise TunnelError(self.client.last_error or "the gate ended the session")
                self._changed.clear()
                await self._changed.wait()

    async def join(self, sock: socket.socket) -> None:
        """Carry a socket in a new stream."""
        receiver = Receiver()
        stream = self.client.open_stream(KIND, {"source": "", "tls": False}, receiver, compression="off")
        carrier = Carrier(stream, receiver, self._carriers.discard)
        receiver.carrier = carrier
        self._carriers.add(carrier)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: carrier, sock=sock)
        except OSError:
            carrier.abandon("the socket cannot be used")
            raise

    async def close(self) -> None:
        """End the session; what hangs on it is cut off, except that a gate which drains may answer first."""
        if self._draining:
            await self.client.close(DRAIN_S)
        self._give_up()
        await self.client.close()

    def _on_state(self, client: TunnelClient) -> None:
        if client.state == "up":
            self._was_up = True
            self._hush()
        elif client.state == "closed":
            self._give_up()
        elif client.state == "draining":
            self._draining = self.over = True
        elif client.state == "lost":
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._grace_s, self._give_up)
        elif client.last_error:
            self._failed = True
        self._changed.set()

    def _give_up(self) -> None:
        self._hush()
        self.over = True
        for carrier in list(self._carriers):
            carrier.abandon("the link was lost")
        self._changed.set()
        self._on_over(self)

    def _hush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Carrier(asyncio.Protocol):
    """The socket's end: what comes out of it goes into the stream, uncompressed, since tokens pass here."""

    def __init__(self, stream: Stream, receiver: Receiver, gone: Callable[[Carrier], None]) -> None:
        self.stream: Stream | None = stream
        self.transport: asyncio.Transport | None = None
        self._receiver = receiver
        self._gone = gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.stream is None:  # given up before it was ready
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.write(data, sensitive=True)

    def eof_received(self) -> bool:
        self.abandon("the client is gone")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.abandon("the client is gone")

    def pause_writing(self) -> None:
        self._receiver.hold()

    def resume_writing(self) -> None:
        self._receiver.release()

    def abandon(self, message: str) -> None:
        """End both sides."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, message)
        if self.transport is not None:
            self.transport.abort()
        self._gone(self)


class Receiver(Ignore):
    """The stream's end: what comes out of it goes into the socket, and its credit back once it went."""

    carrier: Carrier

    def __init__(self) -> None:
        self._holding = False
        self._held = 0

    def data_received(self, data: bytes, boundary: bool) -> None:
        del boundary
        carrier = self.carrier
        if carrier.transport is not None:
            carrier.transport.write(data)
        if self._holding:
            self._held += len(data)
        elif carrier.stream is not None:
            carrier.stream.consumed(len(data))

    def hold(self) -> None:
        """The socket is full: keep the credit of what arrives, so that the gate stops sending."""
        self._holding = True

    def release(self) -> None:
        """The socket was read: return the credit kept."""
        self._holding = False
        held, self._held = self._held, 0
        if held and self.carrier.stream is not None:
            self.carrier.stream.consumed(held)

    def eof_received(self) -> None:
        """The gate has said all: so has the socket, once it is read."""
        stream, self.carrier.stream = self.carrier.stream, None
        if stream is not None:
            stream.receiver = Discard(stream)
            stream.write_eof()
        if self.carrier.transport is not None:
            self.carrier.transport.close()

    def stream_closed(self, error: StreamError | None) -> None:
        self.carrier.stream = None
        if self.carrier.transport is None:
            return
        if error is None:
            self.carrier.transport.close()
        else:
            self.carrier.transport.abort()

    def pause_writing(self) -> None:
        if self.carrier.transport is not None and not self.carrier.transport.is_closing():
            self.carrier.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.carrier.transport is not None and not self.carrier.transport.is_closing():
            self.carrier.transport.resume_reading()

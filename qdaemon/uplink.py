"""One session with every gate of the pool that this worker serves, and in each the control stream.

A worker serves all gates of a pool at once, so unlike a sidecar it dials them all. Which pool that is says
`tunnel_proto.whereabouts`: home, and another one only while home is dead (or as it was ordered). Gates of
other pools may be dialled too, as standbys or candidates; they are told nothing of the worker, so they send
it no work. A session that was resumed keeps its streams; after one that was lost, the control stream is
opened again and begins with a full report.

A pool that is left for another reason than its death is drained: its gates hear that the worker takes no more
jobs, and the control stream ends once its jobs have, or after `DRAIN_S`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from qdaemon.inventory import Inventory, Told
from tunnel_proto.constants import StreamCode
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.failover import Move, Ready
from tunnel_proto.link import Stream, StreamError, TunnelClient
from tunnel_proto.messages import (
    KIND_DAEMON,
    KIND_JOB,
    Answer,
    Ask,
    Decoder,
    Fault,
    LoadProgress,
    Report,
    encode,
)
from tunnel_proto.whereabouts import Whereabouts

log = structlog.get_logger()

REVIVE_S: Final = 5.0
"""Wait before a gate whose client closed for good is dialled afresh."""

NEWS_S: Final = 0.02
"""Changes within so much time are told together."""

ASK_MAX: Final = 1 << 20
"""Bytes of one order."""

DEAD_S: Final = 0.75
"""How long a gate that fell silent may take to answer a new handshake before it counts as dead."""

FIRST_S: Final = 3.0
"""The same of a gate that was never reached."""

RTT_PATIENCE: Final = 4.0
"""On a slow link it may take so many round trips."""

DRAIN_S: Final = 60.0
"""How long jobs of a pool that was left may go on."""

DRAIN_LOOK_S: Final = 0.25
LEAVE_S: Final = 30.0
"""How long tunnels to a pool that is not wanted any more are kept: it may be wanted again."""

Connect = Callable[[bytes, GateAddress, bytes, Callable[[TunnelClient], None]], TunnelClient]
"""Make a client for a gate: the key of its pool, its address, this node's chain, a callback for states."""


@dataclass(eq=False, slots=True)
class GateLink:
    """One gate. Times are the event loop's."""

    pool: bytes
    gate: GateAddress
    chain: bytes
    client: TunnelClient | None = None
    state: str = "idle"
    since: float = 0.0  # its last change of state
    was_up: bool = False
    failures: int = 0  # probes that failed since it was last up
    control: Control | None = None
    leaving: bool = False  # its pool was left: it hears that no more jobs are taken
    revive: asyncio.TimerHandle | None = None

    @property
    def dead_at(self) -> float:
        """When it counts as dead: silent, and a probe failed or had no answer in time."""
        client = self.client
        if client is None or self.failures or client.state == "draining":
            return -math.inf
        if not self.was_up:
            return self.since + FIRST_S
        return self.since + max(DEAD_S, RTT_PATIENCE * client.stats.rtt_s)


@dataclass(eq=False, slots=True)
class Uplink:
    """All gates that one daemon dials. ``on_ask`` takes an order and what to answer it with."""

    connect: Connect
    inventory: Inventory
    on_ask: Callable[[Ask, Callable[[Answer], None]], None]
    loop: asyncio.AbstractEventLoop
    where: Whereabouts
    links: list[GateLink] = field(default_factory=list)
    on_watch: Callable[[], None] = lambda: None
    """Called when there are other pools to go to where there were none, or the other way round."""
    _chain: bytes = b""
    _dial: tuple[bytes, ...] = ()
    _watched: bool = False
    _leave_at: dict[bytes, asyncio.TimerHandle] = field(default_factory=dict)
    _drains: dict[bytes, asyncio.TimerHandle] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)
    _news: asyncio.TimerHandle | None = None
    _looks: asyncio.TimerHandle | None = None
    _closed: bool = False

    def open(self, chain: bytes, roster: bytes = b"") -> None:
        """Begin where the last process was; ``roster`` is the bundle's."""
        self._chain = chain
        self.where.open(roster)

    def configure(self, gates: tuple[GateAddress, ...], chain: bytes) -> None:
        """Use a newer bundle: the home pool's gates, and this node's certificate."""
        self._chain = chain
        self.where.rehome(gates)
        self._arrange()

    def act(self, ready: Ready) -> None:
        """Carry out what the machine decided, once it was written down."""
        if self._closed:
            return
        self._dial = ready.dial
        for pool in ready.dial:
            if timer := self._leave_at.pop(pool, None):
                timer.cancel()
        self._arrange()
        for move in ready.moves:
            self._moved(move)
        for link in self.links:
            if link.client is not None and link.client.state == "up":
                self.where.tell(link.pool, link.client)
        if self._watched == self.where.alone():
            self._watched = not self._watched
            self.on_watch()

    def up(self) -> list[GateLink]:
        """Gates of the pool that is served which hold a session now."""
        target = self.where.target
        return [
            link
            for link in self.links
            if link.pool == target and link.client is not None and link.client.state == "up"
        ]

    def clients(self) -> Iterator[TunnelClient]:
        """Every gate's client."""
        for link in self.links:
            if link.client is not None:
                yield link.client

    def changed(self) -> None:
        """Something that gates should know has changed: tell them in a moment."""
        if self._news is None and not self._closed:
            self._news = self.loop.call_later(NEWS_S, self.tell)

    def beat(self) -> None:
        """Send every gate a report, changed or not."""
        for link in self.links:
            if link.control is not None:
                link.control.report()

    def progress(self, message: LoadProgress) -> None:
        """Tell every gate how far a load is."""
        for link in self.links:
            if link.control is not None:
                link.control.send(message)

    async def close(self, drain: float) -> None:
        """End all sessions, each after up to ``drain`` s in which its streams may end."""
        self._closed = True
        self.where.close()
        for timer in (self._news, self._looks, *self._leave_at.values(), *self._drains.values()):
            if timer is not None:
                timer.cancel()
        for link in self.links:
            if link.revive is not None:
                link.revive.cancel()
            if link.control is not None:
                link.control.end()
        await asyncio.gather(*(client.close(drain) for client in self.clients()))
        await asyncio.gather(*self._closing, return_exceptions=True)

    def tell(self) -> None:
        """Tell what is new now: before an answer that a gate may act on at once."""
        if self._news is not None:
            self._news.cancel()
            self._news = None
        for link in self.links:
            if link.control is not None and self.inventory.news(link.control.told):
                link.control.report()

    # --- which gates

    def _arrange(self) -> None:
        """Dial every gate of the pools that are wanted; leave those of others after a while."""
        if self._closed:
            return
        known = {(link.pool, link.gate, link.chain): link for link in self.links}
        wanted: list[GateLink] = []
        for pool in self._dial:
            for gate in self.where.gates(pool):
                key = (pool, gate, self._chain)
                wanted.append(known.pop(key) if key in known else GateLink(*key))
        for link in known.values():
            if link.pool in self._dial:
                self._leave(link)
                continue
            wanted.append(link)
            if link.pool not in self._leave_at and link.pool not in self._drains:
                self._leave_at[link.pool] = self.loop.call_later(LEAVE_S, self._leave_pool, link.pool)
        self.links = wanted
        for link in wanted:
            if link.client is None and link.revive is None:
                self._start(link)

    def _moved(self, move: Move) -> None:
        """Serve another pool from now on."""
        if timer := self._drains.pop(move.to, None):
            timer.cancel()
        for link in self.links:
            if link.pool == move.to:
                link.leaving = False
                if link.control is None:
                    _open_again(self, link)
            elif link.pool == move.source:
                link.leaving = True
                if link.control is not None and move.drain:
                    link.control.report()
                elif link.control is not None:
                    link.control.end()
        if move.drain:
            self._drain(move.source, self.loop.time() + DRAIN_S)

    def _drain(self, pool: bytes, until: float) -> None:
        """Let the jobs of a pool that was left end; then end its control streams."""
        self._drains.pop(pool, None)
        left = [link for link in self.links if link.pool == pool and link.client is not None]
        jobs = [
            stream
            for link in left
            if link.client is not None
            for stream in link.client.streams.values()
            if stream.kind == KIND_JOB
        ]
        if jobs and self.loop.time() < until:
            self._drains[pool] = self.loop.call_later(DRAIN_LOOK_S, self._drain, pool, until)
            return
        for stream in jobs:
            receiver = stream.receiver
            error = StreamError(StreamCode.CANCELLED, "the worker serves another pool")
            stream.reset(error.code, error.message)
            receiver.stream_closed(error)
        for link in left:
            if link.control is not None:
                link.control.end()
        self._arrange()

    def _leave_pool(self, pool: bytes) -> None:
        self._leave_at.pop(pool, None)
        if pool in self._dial or self._closed:
            return
        for link in [link for link in self.links if link.pool == pool]:
            self.links.remove(link)
            self._leave(link)
        self.where.see(pool, "unknown")

    # --- what is seen

    def _sight(self, pool: bytes) -> tuple[str, str]:
        links = [link for link in self.links if link.pool == pool]
        if not links:
            return "unknown", ""
        if any(link.client is not None and link.client.state == "up" for link in links):
            return "well", ""
        causes = [link.client.last_error for link in links if link.client is not None]
        cause = "; ".join(dict.fromkeys(filter(None, causes))) or "no answer"
        now = self.loop.time()
        if all(now >= link.dead_at for link in links):
            return "dead", cause
        return ("suspect", cause) if any(link.was_up for link in links) else ("unknown", "")

    def _look(self) -> None:
        """Tell the machine what every pool looks like, and look again when a wait is over."""
        if self._looks is not None:
            self._looks.cancel()
            self._looks = None
        if self._closed:
            return
        for pool in dict.fromkeys(link.pool for link in self.links):
            self.where.see(pool, *self._sight(pool))
        now = self.loop.time()
        due = [
            link.dead_at
            for link in self.links
            if (link.client is None or link.client.state != "up") and link.dead_at > now
        ]
        if due:
            self._looks = self.loop.call_at(min(due), self._look)

    # --- parts

    def _start(self, link: GateLink) -> None:
        link.revive = None
        link.since = self.loop.time()
        link.state = "connecting"
        link.client = self.connect(link.pool, link.gate, link.chain, self._state_changed)
        link.client.start()
        if self._looks is None:
            self._looks = self.loop.call_later(DEAD_S, self._look)

    def _leave(self, link: GateLink) -> None:
        if link.revive is not None:
            link.revive.cancel()
        client, link.client = link.client, None
        if client is not None:
            task = self.loop.create_task(client.close(0))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _state_changed(self, client: TunnelClient) -> None:
        link = next((one for one in self.links if one.client is client), None)
        if link is None or self._closed:
            return
        if client.state != link.state:
            link.state = client.state
            link.since = self.loop.time()
            log.info("gate", gate=link.gate.name, state=client.state, cause=client.last_error or None)
        elif client.last_error:
            link.failures += 1
        if client.state == "up":
            link.was_up = True
            link.failures = 0
            if link.control is None:
                _open_again(self, link)
            self.where.tell(link.pool, client)
        elif client.state == "closed":
            link.client = None
            link.revive = self.loop.call_later(REVIVE_S, self._start, link)
        self._look()

    def _open(self, link: GateLink, client: TunnelClient) -> None:
        control = Control(self, link)
        try:
            stream = client.open_stream(
                KIND_DAEMON, {"worker": self.inventory.worker, "version": self.inventory.version}, control
            )
        except LocalProtocolError as error:
            log.warning("control stream not opened", gate=link.gate.name, cause=error.message)
            return
        control.stream = stream
        link.control = control
        control.report()


class Control:
    """The control stream at one gate; reports wait while the link is full, the newest state goes then."""

    __slots__ = ("_decoder", "_link", "_paused", "_uplink", "stream", "told")

    def __init__(self, uplink: Uplink, link: GateLink) -> None:
        self._uplink = uplink
        self._link = link
        self._decoder = Decoder(ASK_MAX)
        self._paused = False
        self.stream: Stream | None = None
        self.told = Told()

    def report(self) -> None:
        """Send what the gate does not know yet."""
        if not self._paused:
            self.send(self._uplink.inventory.report(self.told, leaving=self._link.leaving))

    def send(self, message: Report | LoadProgress | Answer) -> None:
        """Send one message; an answer that is too long for one becomes a fault."""
        if self.stream is None:
            return
        try:
            data = encode(message)
        except LocalProtocolError as error:
            log.error("message not sent", kind=type(message).__name__, cause=error.message)
            if not isinstance(message, Answer):
                return
            data = encode(Answer(message.id, False, problem=too_long(error)))
        self.stream.write(data, boundary=True)

    def end(self) -> None:
        """No more reports."""
        stream, self.stream = self.stream, None
        self._link.control = None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, "the daemon stops")

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Orders."""
        if self.stream is None:
            return
        self.stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if not isinstance(message, Ask):
                    raise RemoteProtocolError("a gate says only ask on this stream")
                self._uplink.on_ask(message, self.send)
        except RemoteProtocolError as error:
            log.error("gate breaks the protocol", gate=self._link.gate.name, cause=error.message)
            stream, self.stream = self.stream, None
            stream.reset(StreamCode.PROTOCOL, error.message)
            self._gone()

    def eof_received(self) -> None:
        """The gate wants no more of it: it is draining."""
        self.end()

    def stream_closed(self, error: StreamError | None) -> None:
        """The session is gone, or the gate refused the stream."""
        if error is not None and error.code in {StreamCode.REFUSED, StreamCode.PROTOCOL}:
            log.warning("gate refused the control stream", gate=self._link.gate.name, cause=error.message)
        self.stream = None
        self._gone()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.report()

    def link_lost(self) -> None:
        """What is written meanwhile is sent once the tunnel is back; reports only need the newest state."""
        self._paused = True

    def link_restored(self) -> None:
        self._paused = False
        self.report()

    def _gone(self) -> None:
        """Open it again where the session itself lives on, after a moment."""
        link, uplink = self._link, self._uplink
        if link.control is not self:
            return
        link.control = None
        if not uplink._closed:
            uplink.loop.call_later(REVIVE_S, _open_again, uplink, link)


def _open_again(uplink: Uplink, link: GateLink) -> None:
    """Open a control stream where the worker serves the gate's pool and there is none."""
    served = link.pool == uplink.where.target and not uplink._closed
    if served and link.control is None and link.client is not None and link.client.state == "up":
        uplink._open(link, link.client)


def too_long(error: LocalProtocolError) -> Fault:
    return Fault("too_long", error.message)

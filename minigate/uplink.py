"""Which gate of one pool an app's stream goes to: the first in the configured order that is up.

One `TunnelClient` stands for one gate and reconnects by itself. The uplink starts the first; the next one
only once those before it have failed or stayed away for ``failover_s``. When an earlier gate is back, new
streams go there and later gates are left as soon as their streams have ended. A gate that drains (GOAWAY) or
is no longer configured keeps its client until its streams have ended, beside the one that takes its place.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from minigate.metrics import Ledger
from tunnel_proto.discard import Discard
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.link import Stream, StreamError, TunnelClient

log = structlog.get_logger()

RETIRED_DRAIN_S = 24 * 3600.0
"""How long streams may go on at a gate that is not used for new ones; the gate may end them earlier."""

STANDBY_S = 30.0
"""How long a later gate is kept without streams after an earlier one came back: it may go away again."""

REVIVE_S = 5.0
"""Wait before a gate whose client closed for good (it refused us) is tried afresh."""

FIRST_S = 3.0
"""How long a gate that was never reached may take to answer before its pool counts as dead."""

RTT_PATIENCE = 4.0
"""A probe takes a connection and a handshake: on a slow link it is waited for so many round trips."""

Connect = Callable[[GateAddress, bytes, Callable[[TunnelClient], None]], TunnelClient]
"""Make a client for a gate from its address, this node's certificate chain and a callback for states."""


@dataclass(frozen=True, slots=True)
class Outage:
    """Why no gate can be used now, as PostgreSQL tells it."""

    sqlstate: str
    message: str


@dataclass(eq=False, slots=True)
class Link:
    """One gate's place in the order. Times are the event loop's, in seconds."""

    gate: GateAddress
    chain: bytes
    client: TunnelClient | None = None
    since: float = 0.0  # its last change of state
    state: str = "idle"
    was_up: bool = False
    went: str = ""  # why the client before this one ended, "draining" or its last error
    revive_at: float = 0.0
    failures: int = 0  # probes that failed since it was last up
    idle_since: float | None = None  # while it is a standby without streams
    leading: bool = False  # it is asked, as no earlier gate is up

    def dead_at(self, failover_s: float) -> float:
        """When a gate that is not up counts as dead: silent, and a probe failed or had no answer in time."""
        client = self.client
        if client is None or self.failures or client.state == "draining":
            return -math.inf
        rtt = client.stats.rtt_s
        return self.since + (max(failover_s, RTT_PATIENCE * rtt) if self.was_up else max(failover_s, FIRST_S))

    @property
    def where(self) -> str:
        host = f"[{self.gate.host}]" if ":" in self.gate.host else self.gate.host
        return f"gate {self.gate.name} at {host}:{self.gate.port}"


@dataclass(eq=False, slots=True)
class Uplink:
    """All gates of one pool.

    ``on_up`` is called whenever a gate has become usable; it may open streams at once. ``on_change`` is
    called whenever `sight` may give another answer.
    """

    connect: Connect
    on_up: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    failover_s: float = 2.0
    links: list[Link] = field(default_factory=list)
    retired: list[TunnelClient] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    on_change: Callable[[], None] | None = None
    _closing: set[asyncio.Task[None]] = field(default_factory=set)
    _timer: asyncio.TimerHandle | None = None
    _closed: bool = False

    def configure(self, gates: Iterable[GateAddress], chain: bytes) -> None:
        """Use these gates, in this order; clients of others, or with an older chain, are drained."""
        known = {(link.gate, link.chain): link for link in self.links}
        self.links = []
        for gate in gates:
            link = known.pop((gate, chain)) if (gate, chain) in known else Link(gate, chain)
            self.links.append(link)
        for link in known.values():
            self._retire(link)
        self._choose()

    def sight(self) -> tuple[str, str]:
        """How the pool looks from here, as `tunnel_proto.failover` calls it, and why."""
        if not self.links:
            return "unknown", ""
        if self.available() is not None:
            return "well", ""
        now = self.loop.time()
        if all(now >= link.dead_at(self.failover_s) for link in self.links):
            return "dead", self.outage().message
        if any(link.was_up for link in self.links):
            return "suspect", self.outage().message
        return "unknown", ""

    def available(self) -> TunnelClient | None:
        """The client that takes new streams, if any."""
        for link in self.links:
            if link.client is not None and link.client.state == "up":
                return link.client
        return None

    def clients(self) -> Iterator[TunnelClient]:
        """Every client that may carry streams."""
        for link in self.links:
            if link.client is not None:
                yield link.client
        yield from self.retired

    def outage(self) -> Outage:
        """Say why `available` finds nothing.

        57P03 while a gate drains or is being reached for the first time, 08006 when a link was lost, 08001
        when no gate could ever be reached.
        """
        causes = []
        states = set()
        for link in self.links:
            client = link.client
            error = client.last_error if client is not None else ""
            if link.went == "draining" or (client is not None and client.state == "draining"):
                states.add("draining")
                causes.append(f"{link.where}: shutting down" + (f"; {error}" if error else ""))
            elif link.was_up:
                states.add("lost")
                causes.append(f"{link.where}: link lost" + (f"; {error}" if error else ""))
            elif error or link.went:
                states.add("unreachable")
                causes.append(f"{link.where}: {error or link.went}")
            elif client is not None:
                states.add("starting")
                causes.append(f"{link.where}: no answer yet")
        for state, sqlstate in (("draining", "57P03"), ("lost", "08006"), ("unreachable", "08001")):
            if state in states:
                return Outage(sqlstate, "no gate is reachable: " + "; ".join(causes))
        return Outage("57P03", "no gate is reachable yet: " + ("; ".join(causes) or "none is configured"))

    def cancel(self, pid: int, key: bytes, done: Callable[[], None]) -> None:
        """Send a CancelRequest to every gate that may hold the session; ``done`` once all have taken it."""
        pending = CancelRequests(done)
        for client in list(self.clients()):
            try:
                pending.open(client, pid, key)
            except LocalProtocolError:
                continue
        pending.sealed()

    async def close(self, drain: float) -> None:
        """End all sessions, each after up to ``drain`` s in which its streams may end."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._closing:
            task.cancel()
        clients = list(self.clients())
        await asyncio.gather(*(client.close(drain) for client in clients))
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- choosing

    def _changed(self, client: TunnelClient) -> None:
        if self._closed:
            return
        link = next((one for one in self.links if one.client is client), None)
        if link is None:
            if client.state == "closed":
                self._forget(client)
            return
        if client.state != link.state:
            link.since = self.loop.time()
            link.state = client.state
            log.info("gate", gate=link.gate.name, state=client.state, cause=client.last_error or None)
        elif client.last_error:
            link.failures += 1
        if client.state == "up":
            link.was_up = True
            link.went = ""
            link.failures = 0
        elif client.state == "draining":
            self._retire(link)
            link.went = "draining"
        elif client.state == "closed":
            link.client = None
            self.ledger.settle(client.stats)
            link.went = client.last_error or "the gate ended the session"
            link.revive_at = self.loop.time() + REVIVE_S
        self._choose()
        if self.available() is not None:
            self.on_up()

    def _choose(self) -> None:
        """Start what is needed, leave what is not, and look again when a wait is over."""
        self._arrange()
        if self.on_change is not None and not self._closed:
            self.on_change()

    def _arrange(self) -> None:
        now = self.loop.time()
        again: list[float] = []
        leading = True  # no earlier gate is up, or may still come up in time
        for link in self.links:
            if not leading:
                link.leading = False
                self._stand_by(link, now, again)
                continue
            if not link.leading:
                link.leading = True
                self._ask_afresh(link)
            link.idle_since = None
            if link.client is None:
                if now < link.revive_at:
                    again.append(link.revive_at)
                    continue
                self._start(link, now)
            client = link.client
            if client is None:
                continue
            if client.state == "up":
                leading = False
            elif not client.last_error and now < link.since + self.failover_s:
                again.append(link.since + self.failover_s)
                leading = False
        if self.on_change is not None and self.available() is None:
            again += [at for link in self.links if (at := link.dead_at(self.failover_s)) > now]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if again and not self._closed:
            self._timer = self.loop.call_at(min(again), self._choose)

    def _ask_afresh(self, link: Link) -> None:
        """What a standby was found to be while an earlier gate served says nothing of it now."""
        client = link.client
        if client is not None and client.state not in {"up", "draining"} and not client.streams:
            self._retire(link)
            link.was_up = False
            link.failures = 0

    def _start(self, link: Link, now: float) -> None:
        link.client = self.connect(link.gate, link.chain, self._changed)
        link.since = now
        link.state = "connecting"
        link.client.start()

    def _stand_by(self, link: Link, now: float, again: list[float]) -> None:
        if link.client is None:
            return
        if link.client.streams:
            link.idle_since = None
            again.append(now + STANDBY_S)
        elif link.idle_since is None:
            link.idle_since = now
            again.append(now + STANDBY_S)
        elif now >= link.idle_since + STANDBY_S:
            self._retire(link)
            link.was_up = False
        else:
            again.append(link.idle_since + STANDBY_S)

    def _retire(self, link: Link) -> None:
        client, link.client = link.client, None
        link.idle_since = None
        if client is not None:
            self.retired.append(client)
            task = self.loop.create_task(self._close_retired(client))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_retired(self, client: TunnelClient) -> None:
        await client.close(RETIRED_DRAIN_S)
        self._forget(client)

    def _forget(self, client: TunnelClient) -> None:
        if client in self.retired:
            self.retired.remove(client)
            self.ledger.settle(client.stats)


class CancelRequests:
    """One app's CancelRequest on its way to several gates; each gate closes its stream once it has acted."""

    __slots__ = ("_done", "_open")

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self._open = 1  # until sealed

    def open(self, client: TunnelClient, pid: int, key: bytes) -> None:
        receiver = _CancelReceiver(self)
        stream = client.open_stream("pg-cancel", {"pid": pid, "key": key}, receiver, compression="off")
        receiver.attach(stream)
        self._open += 1
        stream.write_eof()

    def sealed(self) -> None:
        """All have been sent."""
        self._open -= 1
        if self._open == 0:
            self._done()


class _CancelReceiver(Discard):
    __slots__ = ("_requests",)

    def __init__(self, requests: CancelRequests) -> None:
        self._requests = requests

    def attach(self, stream: Stream) -> None:
        super().__init__(stream)

    def stream_closed(self, error: StreamError | None) -> None:
        self._requests.sealed()

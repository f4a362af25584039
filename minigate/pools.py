"""Which pool an app's stream goes to: the home pool, or where `tunnel_proto.whereabouts` says that we are.

One `Uplink` stands for the gates of one pool. Pools that the machine wants to be dialled have one; what it
sees of each is told to the machine, and what the machine decides is carried out here:

    a move away from a dead pool    new streams go elsewhere; sessions that wait for their link go on waiting
    any other move                  sessions at the old pool end as they become idle, the rest after `DRAIN_S`
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from minigate.metrics import Ledger
from minigate.relay import AppSide, GateSide, moved_error
from minigate.uplink import CancelRequests, Link, Outage, Uplink
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.failover import Move, Ready
from tunnel_proto.link import Stream, TunnelClient
from tunnel_proto.whereabouts import Whereabouts

log = structlog.get_logger()

DRAIN_S: Final = 60.0
"""How long sessions at a pool that was left may finish what they do."""

DRAIN_LOOK_S: Final = 0.25
LEAVE_S: Final = 30.0
"""How long tunnels to a pool that is not wanted any more are kept: it may be wanted again."""

Connect = Callable[[bytes, GateAddress, bytes, Callable[[TunnelClient], None]], TunnelClient]
"""As `uplink.Connect`, with the pool's key first."""


@dataclass(eq=False, slots=True)
class Draining:
    """Sessions at a pool that was left; ``until`` is the event loop's time."""

    until: float
    timer: asyncio.Handle | None = None


@dataclass(eq=False, slots=True)
class Pools:
    """All pools that one minigate may go to. `open` reads where it is and begins to dial."""

    connect: Connect
    on_up: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    where: Whereabouts
    failover_s: float = 0.75
    ledger: Ledger = field(default_factory=Ledger)
    on_watch: Callable[[], None] = lambda: None
    """Called when there are other pools to go to where there were none, or the other way round."""
    _uplinks: dict[bytes, Uplink] = field(default_factory=dict)
    _draining: dict[bytes, Draining] = field(default_factory=dict)
    _leaving: dict[bytes, asyncio.TimerHandle] = field(default_factory=dict)
    _chain: bytes = b""
    _watched: bool = False
    _closed: bool = False

    # --- life

    def open(self, chain: bytes, roster: bytes = b"") -> None:
        """Begin where the last process was; ``roster`` is the bundle's."""
        self._chain = chain
        self.where.open(roster)

    def configure(self, gates: tuple[GateAddress, ...], chain: bytes) -> None:
        """Use a newer bundle: the home pool's gates, and this node's certificate."""
        self._chain = chain
        self.where.rehome(gates)
        for pool_key, uplink in list(self._uplinks.items()):
            uplink.failover_s = self.failover_s
            uplink.configure(self.where.gates(pool_key), chain)

    async def close(self, drain: float) -> None:
        """End all sessions, each after up to ``drain`` s in which its streams may end."""
        self._closed = True
        self.where.close()
        for timer in self._leaving.values():
            timer.cancel()
        for draining in self._draining.values():
            if draining.timer is not None:
                draining.timer.cancel()
        await asyncio.gather(*(uplink.close(drain) for uplink in self._uplinks.values()))

    # --- what the rest of minigate asks

    @property
    def links(self) -> list[Link]:
        """Gates of all pools that are dialled, those of the pool in use first."""
        target = self.where.target
        ordered = sorted(self._uplinks, key=lambda pool: pool != target)
        return [link for pool in ordered for link in self._uplinks[pool].links]

    @property
    def retired(self) -> list[TunnelClient]:
        """Clients that only keep what they carry."""
        return [client for uplink in self._uplinks.values() for client in uplink.retired]

    def clients(self) -> Iterator[TunnelClient]:
        """Every client that may carry streams."""
        for uplink in list(self._uplinks.values()):
            yield from uplink.clients()

    def available(self) -> TunnelClient | None:
        """The client that takes new streams, if any."""
        uplink = self._uplinks.get(self.where.target)
        return uplink.available() if uplink is not None else None

    def outage(self) -> Outage:
        """Say why `available` finds nothing: the target's reasons."""
        uplink = self._uplinks.get(self.where.target)
        if uplink is None:
            return Outage("57P03", "no gate is reachable yet")
        found = uplink.outage()
        if self.where.alone():
            return found
        return Outage(found.sqlstate, f"pool {self.where.name(self.where.target)}: {found.message}")

    def cancel(self, pid: int, key: bytes, done: Callable[[], None]) -> None:
        """Send a CancelRequest to every gate that may hold the session; ``done`` once all have taken it."""
        pending = CancelRequests(done)
        for client in list(self.clients()):
            try:
                pending.open(client, pid, key)
            except LocalProtocolError:
                continue
        pending.sealed()

    def pools(self) -> list[dict[str, object]]:
        """One row a pool, for /status."""
        state = self.where.state
        return [
            {
                "pool": self.where.name(pool),
                "home": pool == state.home,
                "used": pool == state.target,
                "sight": state.sight(pool).word,
                "cause": state.sight(pool).cause,
                "dialled": pool in self._uplinks,
            }
            for pool in state.order
        ]

    # --- what the machine decides

    def act(self, ready: Ready) -> None:
        """Carry out a step that was written down: dial first, so that a move finds its tunnel."""
        if self._closed:
            return
        for pool in ready.dial:
            self._dial(pool)
        for pool in list(self._uplinks):
            if pool not in ready.dial and pool not in self._leaving and pool not in self._draining:
                self._leaving[pool] = self.loop.call_later(LEAVE_S, self._leave, pool)
        for move in ready.moves:
            self._moved(move)
        if self._watched == self.where.alone():
            self._watched = not self._watched
            self.on_watch()
        for pool, uplink in list(self._uplinks.items()):
            client = uplink.available()
            if client is not None:
                self.where.tell(pool, client)

    def _dial(self, pool: bytes) -> None:
        if timer := self._leaving.pop(pool, None):
            timer.cancel()
        gates = self.where.gates(pool)
        uplink = self._uplinks.get(pool)
        if uplink is None:
            uplink = Uplink(
                lambda gate, chain, on_state: self.connect(pool, gate, chain, on_state),
                lambda: self._up(pool),
                self.loop,
                failover_s=self.failover_s,
                ledger=self.ledger,
            )
            self._uplinks[pool] = uplink
            uplink.on_change = lambda: self._look(pool)
        elif tuple(link.gate for link in uplink.links) == gates:
            return
        uplink.configure(gates, self._chain)

    def _leave(self, pool: bytes) -> None:
        self._leaving.pop(pool, None)
        uplink = self._uplinks.get(pool)
        if uplink is None or self._closed:
            return
        uplink.on_change = None
        uplink.configure((), self._chain)
        self.where.see(pool, "unknown")
        if not uplink.retired:
            del self._uplinks[pool]
        else:
            self._leaving[pool] = self.loop.call_later(LEAVE_S, self._leave, pool)

    def _look(self, pool: bytes) -> None:
        uplink = self._uplinks.get(pool)
        if uplink is not None and not self._closed:
            self.where.see(pool, *uplink.sight())
            self._ask_elsewhere(uplink)

    def _up(self, pool: bytes) -> None:
        if pool == self.where.target:
            self.on_up()
        uplink = self._uplinks[pool]
        if (client := uplink.available()) is not None:
            self.where.tell(pool, client)
        self._ask_elsewhere(uplink)

    def _ask_elsewhere(self, uplink: Uplink) -> None:
        """Nobody who was not answered waits for a silent gate while another one of the pool is there."""
        if uplink.available() is None:
            return
        for client in list(uplink.clients()):
            if client.state not in {"up", "draining"}:
                for stream, side in _sides(client):
                    side.unheard(stream)

    def _moved(self, move: Move) -> None:
        if (back := self._draining.pop(move.to, None)) is not None and back.timer is not None:
            back.timer.cancel()
        if move.drain and move.source in self._uplinks:
            draining = self._draining[move.source] = Draining(self.loop.time() + DRAIN_S)
            draining.timer = self.loop.call_soon(self._drain, move.source)
        elif move.source in self._uplinks:
            for client in list(self._uplinks[move.source].clients()):
                if client.state not in {"up", "draining"}:
                    _leave_behind(client)
        self.on_up()

    def _drain(self, pool: bytes) -> None:
        """End sessions at a pool that was left, the idle ones first."""
        draining, uplink = self._draining.get(pool), self._uplinks.get(pool)
        if draining is None or uplink is None or self._closed:
            return
        late = self.loop.time() >= draining.until
        left = False
        for client in list(uplink.clients()):
            for app in _apps(client):
                if late:
                    app.leave()
                elif not app.end_idle(moved_error(settled=True)):
                    left = True
        if left:
            draining.timer = self.loop.call_later(DRAIN_LOOK_S, self._drain, pool)
            return
        del self._draining[pool]
        if pool not in self._leaving and pool not in {self.where.target, self.where.state.home}:
            self._leaving[pool] = self.loop.call_later(LEAVE_S, self._leave, pool)


def _sides(client: TunnelClient) -> list[tuple[Stream, GateSide]]:
    return [
        (stream, stream.receiver)
        for stream in list(client.streams.values())
        if isinstance(stream.receiver, GateSide)
    ]


def _apps(client: TunnelClient) -> list[AppSide]:
    return [side.app for _, side in _sides(client)]


def _leave_behind(client: TunnelClient) -> None:
    for stream, side in _sides(client):
        side.left_behind(stream)

"""Heartbeats on their way: one stream to every gate of a peer, one from each of its gates, and what follows.

A heartbeat is made and signed once a beat and goes to all. A gate of a peer that none of our tunnels leads
to has dialled us: each of them hears us, as each judges for itself. Streams are never resumed: a heartbeat
that comes late is worth nothing. A peer that refuses them is asked again when something about it changes, or
now and then.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from qgate.federation.heartbeat import (
    CLOCK_OFF_S,
    Heard,
    Pulse,
    check_certificate,
    check_heartbeat,
    gates_told,
)
from qgate.federation.links import Carrier, PeerLinks, Peers
from qgate.federation.peer import Peer
from qgate.federation.suspicion import ALIVE, SUSPECT, Patience, Standing, Suspicion
from qgate.federation.trust import may
from tunnel_proto.certificate import OnlineCertificate, OnlineKey
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError, MeshError, TunnelError
from tunnel_proto.framing import Frames
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.peer_messages import (
    HEADS_MAX,
    HEARTBEAT_MAX,
    KIND_HEARTBEAT,
    Heartbeat,
    Load,
    LogHead,
    sign_heartbeat,
)

REFUSED_RETRY_S: Final = (1.0, 30.0)
"""How long after a refusal a stream of heartbeats is tried again: at first, and at most."""

PROBE_TIMEOUT_S: Final = 2.0
GATES_EVERY_S: Final = 5.0
"""How often the addresses of this pool's gates are looked up."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Own:
    """What this gate says of itself, asked at each beat. ``heads`` by pool key: (incarnation, seq)."""

    health: Callable[[], str]
    load: Callable[[], Load]
    heads: Callable[[], Mapping[bytes, tuple[bytes, int]]]
    roster: Callable[[], int]
    gates: Callable[[], Awaitable[tuple[GateAddress, ...]]]


@dataclass(frozen=True, slots=True)
class Tempo:
    """The settings: seconds between beats, and the patience of suspicion."""

    beat_s: float
    patience: Patience


class Vitals:
    """Signs of life between this gate and all peers.

    ``learn(peer, gates, online certificate)`` is told of what a peer says of itself that we did not know.
    """

    def __init__(
        self,
        *,
        links: PeerLinks,
        peers: Peers,
        online: OnlineKey,
        pool_key: bytes,
        gate: str,
        own: Own,
        tempo: Callable[[], Tempo],
        learn: Callable[[Peer, tuple[GateAddress, ...], bytes], Awaitable[None]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.heard: dict[bytes, Heard] = {}
        self.suspicion = Suspicion(tempo().patience)
        self._links = links
        self._peers = peers
        self._online = online
        self._own = own
        self._tempo = tempo
        self._learn = learn
        self.clock = clock
        self._monotonic = monotonic
        self._pulse = Pulse(pool_key, gate, os.urandom(16))
        self._out: dict[tuple[bytes, str], _Out] = {}  # by pool and gate
        self._retry_at: dict[bytes, float] = {}
        self._refusals: dict[bytes, int] = {}
        self._gates: tuple[GateAddress, ...] = ()
        self._states: dict[bytes, str] = {}
        self._on_beat: list[Callable[[Peer, Heartbeat], None]] = []
        self._on_verdict: list[Callable[[Peer, Standing], None]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._stirred = asyncio.Event()
        links.serve(KIND_HEARTBEAT, "heartbeat", self._accept)
        links.on_change(self._changed)

    # --- what the parts of the federation use

    def on_beat(self, callback: Callable[[Peer, Heartbeat], None]) -> None:
        """Call ``callback`` with each sound heartbeat."""
        self._on_beat.append(callback)

    def on_verdict(self, callback: Callable[[Peer, Standing], None]) -> None:
        """Call ``callback`` whenever a peer becomes alive, suspect or dead to us."""
        self._on_verdict.append(callback)

    def standing(self, pool_key: bytes) -> Standing | None:
        """What is thought of a peer now; None for one whose heartbeats we do not take."""
        return self.suspicion.standing(pool_key)

    def latest(self, pool_key: bytes) -> Heartbeat | None:
        """The newest heartbeat of a peer, None where none came since the start."""
        held = self.heard.get(pool_key)
        return None if held is None else held.latest

    def shown(self, pool_key: bytes) -> dict[str, Any]:
        """For the list of pools: `{health, heard_s, heads, skew_s, load, doubt}`."""
        standing = self.standing(pool_key)
        held = self.heard.get(pool_key)
        latest = None if held is None else held.latest
        if standing is None:
            return {"health": None, "heard_s": None}
        health = standing.state
        if health == ALIVE and held is not None:
            health = "alive" if held.health() in {"ok", ""} else held.health()
        elif health == SUSPECT and self._answers(pool_key):
            health = "silent"
        return {
            "health": health + (" (or it is us)" if standing.doubt else ""),
            "heard_s": None if held is None else round(self._monotonic() - standing.heard_at, 1),
            "heads": {} if latest is None else self._named_heads(latest),
            "skew_s": None if held is None else round(held.skew_s, 1),
            "load": None
            if latest is None
            else {
                "sessions": latest.load.sessions,
                "jobs": latest.load.jobs,
                "waiting": latest.load.waiting,
                "workers": latest.load.workers,
            },
        }

    def problem(self, pool_key: bytes) -> str:
        """What is wrong with a peer though its link is up; empty where nothing is."""
        held = self.heard.get(pool_key)
        if held is not None and abs(held.skew_s) > CLOCK_OFF_S:
            return f"its clock is {held.skew_s:+.0f} s off ours"
        return ""

    # --- life

    async def run(self) -> None:
        """Beat, listen and judge, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._beat(), name="heartbeats")
            tasks.create_task(self._judge(), name="suspicion")

    async def _beat(self) -> None:
        looked_at = -GATES_EVERY_S
        while True:
            if self._monotonic() - looked_at >= GATES_EVERY_S:
                looked_at = self._monotonic()
                try:
                    # In one order for all gates of a pool, or peers would take each for a change.
                    self._gates = tuple(sorted(await self._own.gates(), key=lambda one: (one.name, one.host)))
                except MeshError as error:
                    log.debug("gates are not known", reason=error.message)
            try:
                self._send()
            except MeshError as error:
                log.error("no heartbeat could be sent", reason=error.message)
            await asyncio.sleep(self._tempo().beat_s)

    def _send(self) -> None:
        wanted = [peer for peer in self._peers.peers() if may(peer, "heartbeat", "send")]
        ready = [out for peer in wanted for out in self._streams_to(peer)]
        if not ready:
            return
        frame = sign_heartbeat(self.beat(), self._online.identity)
        for out in ready:
            out.write(frame)

    def beat(self) -> Heartbeat:
        """The next heartbeat, not signed yet."""
        heads = sorted(self._own.heads().items())[:HEADS_MAX]
        return self._pulse.beat(
            self.clock(),
            health=self._own.health(),
            load=self._own.load(),
            heads=[LogHead(pool, incarnation, seq) for pool, (incarnation, seq) in heads],
            roster=self._own.roster(),
            gates=self._gates,
        )

    def _streams_to(self, peer: Peer) -> list[_Out]:
        key, found = peer.pool_key, []
        if self._monotonic() < self._retry_at.get(key, 0.0):
            return [out for (pool, _), out in self._out.items() if pool == key and not out.over]
        ways = self._links.ways(key)
        for gone in [place for place, out in self._out.items() if place[0] == key and out.over]:
            del self._out[gone]
        for gate, way in ways.items():
            out = self._out.get((key, gate))
            if out is None:
                out = _Out(self, key)
                try:
                    meta = {"online_certificate": self._online.certificate}
                    # Keys and hashes do not shrink, and 50 contexts would cost more than the beats do.
                    out.stream = self._links.open(key, KIND_HEARTBEAT, meta, out, compression="off", over=way)
                except LocalProtocolError:
                    continue  # the next beat looks again
                self._out[key, gate] = out
                self._pulse.repeat_gates()
            found.append(out)
        return found

    def refused(self, pool_key: bytes, error: StreamError | None) -> None:
        """A stream of ours ended; a refusal is not hammered at."""
        if error is not None and error.code in {StreamCode.REFUSED, StreamCode.REVOKED}:
            first, most = REFUSED_RETRY_S
            count = self._refusals.get(pool_key, 0)
            self._refusals[pool_key] = count + 1
            self._retry_at[pool_key] = self._monotonic() + min(most, first * 2.0 ** min(count, 8))

    def _changed(self, pool_key: bytes) -> None:
        self._ask_again(pool_key)
        self._stirred.set()

    def _ask_again(self, pool_key: bytes) -> None:
        """Something tells that a peer which refused our heartbeats may take them now."""
        self._retry_at.pop(pool_key, None)
        self._refusals.pop(pool_key, None)

    # --- listening

    def _accept(self, peer: Peer, carrier: Carrier, stream: Stream) -> None:
        del carrier
        offered = stream.metadata.get("online_certificate")
        try:
            if not isinstance(offered, bytes):
                raise TunnelError("heartbeats begin with the online certificate")
            certificate = check_certificate(offered, peer, now=self.clock())
        except TunnelError as error:
            stream.reset(StreamCode.PROTOCOL, error.message)
            return
        stream.receiver = _In(self, peer.pool_key, stream, certificate)
        self._ask_again(peer.pool_key)  # who sends has set a level for us
        if offered != peer.online_certificate:
            self._teach(peer, peer.gates, offered)

    def take(self, pool_key: bytes, frame: bytes, certificate: OnlineCertificate) -> None:
        """A frame came over a peer's stream. TunnelError where it is not what it should be."""
        peer = self._peers.peer(pool_key)
        if peer is None or not may(peer, "heartbeat", "receive"):
            raise TunnelError("heartbeats are not accepted from your pool here")
        beat = check_heartbeat(frame, peer, certificate)
        now = self._monotonic()
        if not self.heard.setdefault(pool_key, Heard()).take(beat, monotonic=now, now=self.clock()):
            return
        self.suspicion = self.suspicion.heard(pool_key, now)
        self._tell_verdict(pool_key)
        gates = gates_told(beat)
        if gates and frozenset(gates) != frozenset(peer.gates):
            self._teach(peer, gates, peer.online_certificate)
        for callback in tuple(self._on_beat):
            callback(peer, beat)

    def _teach(self, peer: Peer, gates: tuple[GateAddress, ...], certificate: bytes) -> None:
        async def learn() -> None:
            try:
                await self._learn(peer, gates, certificate)
            except MeshError as error:
                log.info("what a peer says of itself was not kept", pool=peer.name, reason=error.message)
            except Exception:
                log.exception("what a peer says of itself was not kept", pool=peer.name)

        if self._tasks is not None:
            self._tasks.create_task(learn())

    # --- judging

    async def _judge(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._stirred.clear()
            self._follow()
            now = self._monotonic()
            self.suspicion, probes = self.suspicion.look(now)
            self._tell_verdicts()
            for pool_key in probes:
                assert self._tasks is not None
                self._tasks.create_task(self._probe(pool_key))
            wait = max(0.02, self.suspicion.wake_at(now) - now)
            try:
                async with asyncio.timeout_at(loop.time() + wait):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    def _follow(self) -> None:
        """Watch whoever may send us heartbeats, with the patience that is set now."""
        watched = frozenset(
            peer.pool_key for peer in self._peers.peers() if may(peer, "heartbeat", "receive")
        )
        patience = self._tempo().patience
        self.suspicion = Suspicion(patience, self.suspicion.peers).follow(watched, self._monotonic())
        for gone in self.heard.keys() - watched:
            del self.heard[gone]
        for gone in self._states.keys() - watched:
            del self._states[gone]

    async def _probe(self, pool_key: bytes) -> None:
        try:
            answered = await self._links.probe(pool_key, PROBE_TIMEOUT_S)
        except Exception:  # whatever went wrong with a probe, the gate goes on
            log.exception("a probe failed")
            answered = False
        self.suspicion = self.suspicion.probed(pool_key, self._monotonic(), answered=answered)
        self._stirred.set()

    def _tell_verdicts(self) -> None:
        for pool_key in self.suspicion.peers:
            self._tell_verdict(pool_key)

    def _tell_verdict(self, pool_key: bytes) -> None:
        one, peer = self.suspicion.peers.get(pool_key), self._peers.peer(pool_key)
        if one is None or peer is None or self._states.get(pool_key, ALIVE) == one.state:
            return
        standing = self.suspicion.standing(pool_key)
        assert standing is not None
        self._states[pool_key] = standing.state
        log.info("peer", pool=peer.name, verdict=standing.state, doubt=standing.doubt or None)
        for callback in tuple(self._on_verdict):
            try:
                callback(peer, standing)
            except Exception:  # one listener's fault is not the others', nor the gate's end
                log.exception("a verdict was not taken", pool=peer.name)

    # --- for people

    def _answers(self, pool_key: bytes) -> bool:
        one = self.suspicion.peers.get(pool_key)
        return one is not None and one.answered_at is not None

    def _named_heads(self, beat: Heartbeat) -> dict[str, int]:
        named = {}
        for head in beat.heads:
            peer = self._peers.peer(head.pool)
            own = "own" if head.pool == beat.pool else "ours" if head.pool == self._pulse.pool else ""
            if own or peer is not None:
                named[own or (peer.name if peer is not None else "")] = head.seq
        return named


@dataclass(eq=False, slots=True)
class _Out(Ignore):
    """Our heartbeats to one peer."""

    vitals: Vitals
    pool_key: bytes
    stream: Stream | None = None
    over: bool = False

    def write(self, frame: bytes) -> None:
        if self.stream is not None and not self.over and self.stream.writable:
            self.stream.write(frame)

    def data_received(self, data: bytes, boundary: bool) -> None:
        del boundary
        if self.stream is not None:
            self.stream.consumed(len(data))

    def eof_received(self) -> None:
        self.link_lost()

    def stream_closed(self, error: StreamError | None) -> None:
        self.over = True
        self.vitals.refused(self.pool_key, error)

    def link_lost(self) -> None:
        if not self.over and self.stream is not None:
            self.over = True
            self.stream.reset(StreamCode.CANCELLED, "heartbeats are not resumed")


@dataclass(eq=False, slots=True)
class _In(Ignore):
    """A peer's heartbeats to us."""

    vitals: Vitals
    pool_key: bytes
    stream: Stream
    certificate: OnlineCertificate
    frames: Frames = field(default_factory=lambda: Frames(HEARTBEAT_MAX))

    def data_received(self, data: bytes, boundary: bool) -> None:
        del boundary
        self.stream.consumed(len(data))
        try:
            for frame in self.frames.feed(data):
                self.vitals.take(self.pool_key, frame, self.certificate)
        except TunnelError as error:
            log.warning("a heartbeat was refused", reason=error.message)
            self.stream.reset(StreamCode.PROTOCOL, error.message)

    def eof_received(self) -> None:
        self.stream.reset(StreamCode.CANCELLED)

    def link_lost(self) -> None:
        self.stream.reset(StreamCode.CANCELLED, "heartbeats are not resumed")

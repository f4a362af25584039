"""Who is alive, as one gate sees it: heartbeats over the network, silence, probes, verdicts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qgate.federation.suspicion import ALIVE, DEAD, Patience, Suspicion

if TYPE_CHECKING:
    from tests.sim.pool import Gate, Pool

BEAT_S = 1.0
LOOK_S = 1.0
PROBE_S = 2.0
"""How long a probe may take: `qgate.federation.vitals.PROBE_TIMEOUT_S`."""


class Liveness:
    """One gate's part of `qgate.federation.vitals`: messages for streams, a question for a handshake."""

    def __init__(self, pool: Pool, gate: Gate) -> None:
        self._pool, self._gate = pool, gate
        self.suspicion = Suspicion(Patience())
        pool.world.heap.every(BEAT_S, self._beat)
        pool.world.heap.every(LOOK_S, self._look)

    def begin(self) -> None:
        """A new process knows nobody."""
        self.suspicion = Suspicion(Patience())

    def dead(self, key: bytes) -> bool:
        """Whether a peer is held for dead."""
        one = self.suspicion.peers.get(key)
        return one is not None and one.state == DEAD

    def alive(self, key: bytes) -> bool:
        """Whether a peer's heartbeats are heard."""
        one = self.suspicion.peers.get(key)
        return one is not None and one.state == ALIVE

    def heard(self, key: bytes) -> None:
        """A heartbeat of a peer came."""
        if not self._gate.working:
            return
        now = self._pool.world.heap.now
        self._pool.world.watch.beat(self._pool, self._gate, key)
        self.suspicion = self.suspicion.heard(key, now)

    def _beat(self) -> None:
        """To each gate of each peer."""
        pool = self._pool
        if not self._gate.working:
            return
        for key, level in pool.trust.items():
            peer = pool.world.by_key[key]
            for there in peer.gates if level >= 1 else ():
                pool.world.network.send(pool.name, peer.name, partial(there.liveness.heard, pool.key))

    def _look(self) -> None:
        pool = self._pool
        if not self._gate.working:
            return
        now = pool.world.heap.now
        watched = frozenset(key for key, level in pool.trust.items() if level >= 1)
        followed = self.suspicion.follow(watched, now)
        before = {key: one.state for key, one in followed.peers.items()}
        self.suspicion, probes = followed.look(now)
        for key in sorted(probes):
            self._probe(key)
        for key, one in self.suspicion.peers.items():
            if one.state == DEAD != before[key]:
                pool.world.watch.declared_dead(pool, self._gate, key)
        pool.world.watch.gate_looked(pool, self._gate)
        pool.elections.look(self._gate)

    def _probe(self, key: bytes) -> None:
        """A handshake: it needs both directions, and a gate at the other end, from its begin to its end."""
        pool, gate, run = self._pool, self._gate, self._gate.run
        peer, network = pool.world.by_key[key], pool.world.network
        reached = network.both(pool.name, peer.name) and peer.awake

        def ended() -> None:
            if not gate.working or gate.run != run:
                return
            answered = reached and network.both(pool.name, peer.name) and peer.awake
            pool.world.watch.probed(pool, gate, key, answered=answered)
            self.suspicion = self.suspicion.probed(key, pool.world.heap.now, answered=answered)

        pool.world.heap.after(0.05 if reached else PROBE_S, ended)

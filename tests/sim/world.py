"""One history: pools, nodes, what goes wrong, and what must hold all the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from qgate.federation.log.entry import Contents
from tests.sim.heap import Heap
from tests.sim.nemesis import Nemesis
from tests.sim.network import Network
from tests.sim.node import Node
from tests.sim.pool import Place, Pool
from tests.sim.watch import Watch

NAMES = ("hq", "gpu", "branch", "annex", "depot")
SETTLE_S = 420.0
"""After all is healed: the longest hold, and time to come home and to fetch what was missed."""
QUIET_S = 60.0
"""After the last write: time for everybody to hear of it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a history is and how dense its troubles. ``elections``: they kill masters above all."""

    seconds: float = 600.0
    pools: int = 3
    nodes: int = 3
    trouble_every_s: float = 12.0
    write_every_s: float = 10.0
    elections: bool = False


USUAL = Plan()
ELECTIONS = Plan(pools=5, nodes=0, trouble_every_s=15.0, elections=True)
"""Histories in which a master dies every other minute: five pools, of which three elect."""


class World:
    """A history of its own for each seed."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed, self.plan = seed, plan
        self.heap = Heap(seed)
        self.network = Network(self.heap)
        self.watch = Watch(self)
        self.troubles: set[str] = set()
        self.servers = [1]
        self.garbling: set[str] = set()
        self.streams = ("guests", "routing", "nodes", "pairings")
        self.canary = b"canary-" + hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=12).digest()
        self.write_every_s = plan.write_every_s
        self.writing = True
        self.by_key: dict[bytes, Pool] = {}
        self.pools = [Pool(self, name) for name in NAMES[: plan.pools]]
        for pool in self.pools:
            self.by_key[pool.key] = pool
            pool.trust = {peer.key: 3 for peer in self.pools if peer is not pool}
        self.nodes = [
            Node(self, f"node-{number}", [self.pools[(number + at) % plan.pools] for at in range(plan.pools)])
            for number in range(plan.nodes)
        ]
        self.nemesis = Nemesis(self)

    def garbled(self, pool: Pool, entries: list[Place]) -> list[Place]:
        """What a pool says, with a byte changed here and there while it garbles."""
        if pool.name not in self.garbling or not entries:
            return entries
        chance = self.heap.random
        at = chance.randrange(len(entries))
        entry, contents, missing = entries[at]
        if contents is not None and contents.payload and chance.random() < 0.5:
            payload = bytearray(contents.payload)
            payload[-1] ^= 1
            place: Place = (entry, Contents(contents.salt, bytes(payload)), missing)
        else:
            forged = replace(
                entry, raw=entry.raw[:-1] + bytes([entry.raw[-1] ^ 1]), hash=chance.randbytes(32)
            )
            place = (forged, contents, missing)
        return [*entries[:at], place, *entries[at + 1 :]]

    def run(self) -> None:
        """Trouble, then peace, then judgement. Raises `Broken`."""
        self.nemesis.start()
        self.heap.run(self.plan.seconds)
        self.nemesis.stop()
        self.heap.run(self.plan.seconds + SETTLE_S)
        self.writing = False
        self.heap.run(self.plan.seconds + SETTLE_S + QUIET_S)
        self.watch.converged()


def simulate(seed: int, plan: Plan) -> World:
    """Run one history."""
    world = World(seed, plan)
    world.run()
    return world

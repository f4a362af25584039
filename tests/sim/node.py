"""One minigate or qdaemon: the moving machine, what it sees, and the file that outlives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.authority import EPOCH
from tunnel_proto import failover
from tunnel_proto.failover import Configured, Event, Ordered, Rules, Seen, State, Tick

if TYPE_CHECKING:
    from tests.sim.pool import Pool
    from tests.sim.world import World

LOOK_S = 0.5
SUSPECT_S = 1.0
DEAD_S = 2.0


@dataclass(slots=True)
class Tunnel:
    """What a node knows of one pool: when it last answered and when it was first dialled."""

    dialled_at: float
    heard_at: float | None = None
    word: str = "unknown"


class Node:
    """``offset`` is how wrong its calendar was when its process began; only that matters to it."""

    def __init__(self, world: World, name: str, roster: list[Pool]) -> None:
        self.world, self.name = world, name
        self.roster = tuple(pool.key for pool in roster)
        self.mode = "auto"
        self.alive = True
        self.offset = 0.0
        self.calendar = 0.0
        self.rules = Rules.spread(world.heap.random.random())
        self.disk = failover.dump_state(State())
        self.state = State()
        self.tunnels: dict[bytes, Tunnel] = {}
        self.dial: tuple[bytes, ...] = ()
        self.wake_at: float | None = None
        self.orders = 0
        self.start()
        world.heap.every(LOOK_S, self.look)

    @property
    def now(self) -> float:
        """The machine's time."""
        return EPOCH + self.world.heap.now + self.offset

    def start(self) -> None:
        """A process begins with what the last one wrote down."""
        self.alive = True
        stepped = self.calendar - self.offset
        self.offset = self.calendar
        self.tunnels.clear()
        self.state = failover.load_state(self.disk, self.now)
        self.world.watch.node_started(self, stepped)
        self.step(Configured(self.roster, self.mode))

    def configure(self, roster: list[Pool] | None = None, mode: str | None = None) -> None:
        """A newer roster has come from home."""
        if roster is not None:
            self.roster = tuple(pool.key for pool in roster)
        self.mode = mode or self.mode
        if self.alive:
            self.step(Configured(self.roster, self.mode))

    def order(self, verb: str, target: bytes) -> None:
        """An administrator or the balancer orders a move."""
        self.orders += 1
        if self.alive:
            self.step(Ordered(verb, target, self.orders, self.roster[0], self.now + 30.0, "test"))

    def look(self) -> None:
        """Dial, listen, and tell the machine what has changed."""
        if not self.alive:
            return
        now = self.world.heap.now
        for key in self.dial:
            pool = self.world.by_key[key]
            tunnel = self.tunnels.setdefault(key, Tunnel(now))
            if self.world.network.both(self.name, pool.name) and pool.serving:
                tunnel.heard_at, word = now, "well"
            else:
                silent = now - (tunnel.dialled_at if tunnel.heard_at is None else tunnel.heard_at)
                word = "dead" if silent >= DEAD_S else "suspect" if silent >= SUSPECT_S else tunnel.word
            if word != tunnel.word:
                tunnel.word = word
                self.step(Seen(key, word, "simulated"))
        for key in [one for one in self.tunnels if one not in self.dial]:
            del self.tunnels[key]
            self.step(Seen(key, "unknown"))
        if self.wake_at is not None and self.now >= self.wake_at:
            self.step(Tick())
        self.world.watch.node_looked(self)

    def step(self, event: Event) -> None:
        """Take one event: write down, then act."""
        before = self.state
        ready = failover.step(before, event, self.now, self.rules)
        if ready.persist:
            self.disk = failover.dump_state(ready.state)
        self.state, self.dial, self.wake_at = ready.state, ready.dial, ready.wake_at
        self.world.watch.node_stepped(self, before, event, ready)

"""What must always hold, judged by other means than the machines use. Checks are counted by trouble."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qgate.federation.election import Question
from qgate.federation.log import hlc
from qgate.federation.log.entry import Contents, Entry
from qgate.federation.log.replica import Forked
from qgate.federation.log.streams import OWN_STREAMS, STREAMS
from qgate.federation.results import request_of
from tests.sim.authority import EPOCH
from tunnel_proto.failover import Event, Ready, Seen, State

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.pool import Gate, Pool
    from tests.sim.store import Record
    from tests.sim.world import World

HOLD_S = 300.0
FLAP_S = 300.0
VOLUNTARY_S = 300.0
RETURN_MOST_S = 60.0
RETURN_LEAST_S = 30.0
ACT_WITHIN_S = 8.0
SUSPECT_S = 3.0
DEAD_S = 6.0
SEEN_WITHIN_S = 16.0
"""Silence, a probe that was answered last and is repeated every 10 s, its time, and two looks."""
GONE_S = 150.0


class Broken(AssertionError):  # noqa: N818 - reads as what it is
    """A promise that was not kept; ``promise`` is its name."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise


@dataclass(slots=True)
class Past:
    """What the watch remembers of a node, in seconds of the history."""

    failed: float | None = None
    returned: float | None = None
    flapped: float | None = None
    rebalanced: float | None = None
    home_down: bool = False
    well: dict[bytes, float] = field(default_factory=dict)  # since when pools are seen to be well
    due_since: float | None = None
    stranded_since: float | None = None
    blurred_until: float = 0.0  # its calendar was set: what it wrote down looks older, or newer, than it is
    unsure_until: float = 0.0  # home failed while that was so: was it a flap, and is home held off?


class Watch:
    """Checks at every step. ``counts[trouble, promise]`` says how often which was checked during what."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.counts: Counter[tuple[str, str]] = Counter()
        self._signed: dict[bytes, str] = {}
        self._pasts: dict[str, Past] = {}
        self._masters: dict[tuple[str, int], set[bytes]] = {}
        self._beats: dict[tuple[str, bytes], float] = {}
        self._probes: dict[tuple[str, bytes], tuple[float, bool]] = {}
        self._unseen: dict[tuple[str, bytes], float] = {}
        self._looked: dict[str, tuple[float, int]] = {}
        self._began: dict[str, float] = {}
        self._owed: set[tuple[bytes, str]] = set()
        self.elections: dict[int, dict[str, bytes]] = {}
        """Of each epoch that somebody was elected into: who, and the digest of the promotion."""

    def check(self, promise: str, holds: bool, text: str) -> None:
        """Count a check; raise `Broken` where it fails."""
        for trouble in self.world.troubles or ("calm",):
            self.counts[trouble, promise] += 1
        if not holds:
            raise Broken(promise, f"{text} ({self.world.heap.now:.1f} s)")

    # --- the log

    def signed(self, pool: Pool, entry: Entry, contents: Contents) -> None:
        """A pool has signed an entry."""
        self._signed[entry.hash] = pool.name
        self.check(
            "local stays", self.world.canary not in contents.payload, f"{entry.stream} left {pool.name}"
        )

    def applied(self, at: Pool, origin: Pool, entry: Entry, contents: Contents, gate: Gate) -> None:
        """A pool has applied an entry of another."""
        self.check("authentic", self._signed.get(entry.hash) == origin.name, f"{at.name} applied a forgery")
        self.check("local stays", self.world.canary not in contents.payload, f"at {at.name}")
        if entry.stream == "catalogue":
            self.wrote(at, origin.key, entry.epoch)
        level = at.trust[origin.key]
        self.check(
            "trust", STREAMS[entry.stream].level <= level, f"{at.name} applied {entry.stream} at {level}"
        )
        early = hlc.seconds(entry.hlc) - at.unix(gate)
        self.check("clock", early <= hlc.AHEAD_MAX_S + 1, f"{at.name} applied what is {early:.0f} s ahead")
        dragged = hlc.seconds(at.store.replicas[origin.key].state.hlc) - EPOCH - self.world.heap.now
        most = hlc.AHEAD_MAX_S + max(at.fastest, 0.0)
        self.check(
            "clock", dragged <= most + 1, f"{origin.name} dragged the clock of {at.name} by {dragged:.0f} s"
        )

    def quarantined(self, at: Pool, origin: Pool, fork: Forked) -> None:
        """A pool has proof of a fork: nobody here is dishonest."""
        self.check("no fork", False, f"{at.name} quarantines {origin.name} at {fork.seq}")

    def wrote(self, at: Pool, origin: bytes, epoch: int) -> None:
        """A pool has taken a write of the catalogue."""
        masters = self._masters.setdefault((at.name, epoch), set())
        masters.add(origin)
        self.check("one master", len(masters) == 1, f"{at.name} took two masters' writes at epoch {epoch}")

    def elected(self, pool: Pool, question: Question) -> None:
        """A pool is master by a majority's vote."""
        winners = self.elections.setdefault(question.epoch, {})
        winners[pool.name] = pool.authority.promotion_at(question.epoch)
        self.check("one elected", len(winners) == 1, f"{sorted(winners)} were elected at {question.epoch}")
        self.world.nemesis.elected(pool)

    def restored(self, pool: Pool) -> None:
        """A pool's store is an older one: what it had taken since is forgotten."""
        known = {digest for one in self.world.pools for digest in one.store.documents}
        for winners in self.elections.values():  # one of whom nobody has heard never was
            for name in [name for name, digest in winners.items() if digest not in known]:
                del winners[name]
        self._masters = {place: found for place, found in self._masters.items() if place[0] != pool.name}
        self._owed = {place for place in self._owed if self._known_of(*place)}

    def converged(self) -> None:
        """All is healed and quiet: everybody has what everybody else said."""
        for home, request in sorted(self._owed):
            pool = self.world.by_key[home]
            self.check("no lost job", request in pool.store.receipts, f"{pool.name} never recorded {request}")
        for pool in self.world.pools:
            for gate in pool.gates:
                unheard = [key for key in pool.trust if not gate.liveness.alive(key)]
                self.check("life seen", not unheard, f"{gate.name} does not hear {len(unheard)} peers")
            self.check("converged", not pool.store.outbox, f"{pool.name} has not signed everything")
            first, mine = self.world.pools[0].authority, pool.authority
            self.check("one catalogue", mine.standing == first.standing, f"{pool.name} knows another master")
            alike = mine.standing.frozen or mine.catalogue() == first.catalogue()
            self.check("one catalogue", alike, f"{pool.name} has another catalogue")
            for peer in self.world.pools:
                if peer is pool:
                    continue
                replica = pool.store.replicas[peer.key]
                have, of = replica.state.head, peer.store.head
                self.check("converged", have == of, f"{pool.name} has {have.seq} of {peer.name}'s {of.seq}")
                level = min(pool.trust[peer.key], peer.trust[pool.key])
                wanted = folded(peer, level)
                kept = {key: value for key, value in replica.applied.items() if key in wanted}
                self.check("converged", kept == wanted, f"{pool.name} applied other things of {peer.name}")

    # --- jobs

    def kept(self, executor: Pool, home: bytes, job: str) -> None:
        """A result is in the store of whoever executed it: from now on home owes it a record."""
        del executor
        self._owed.add((home, request_of(job)))

    def forgotten(self, home: Pool, request: str, life: int) -> None:
        """Whoever executed it has forgotten it; what home lost with its store is owed no more."""
        there = request in home.store.receipts
        if not there and life != home.store.life and not self._known_of(home.key, request):
            self._owed.discard((home.key, request))
            return
        self.check("no lost job", there or life != home.store.life, f"{request} is known nowhere")

    def wrote_receipt(self, pool: Pool, gate: Gate, request: str) -> None:
        """A gate writes the receipt of a request of its own."""
        found = pool.store.receipts.get(request)
        twice = found is not None and not found.gone
        self.check("recorded once", not twice, f"{gate.name} writes {request}, which is recorded")

    def recovering(self, pool: Pool, request: str, *, gone: bool) -> None:
        """A gate records a request for another process."""
        self.check("recorded once", request not in pool.store.receipts, f"{request} is recorded twice")
        awake = [
            gate
            for gate in pool.gates
            if gate.working and (request in gate.desk.requests or request in gate.desk.unwritten)
        ]
        # Whoever could not announce itself for so long may be thought to be gone: the store takes one.
        silent = all(self._silent(pool, gate) for gate in awake)
        self.check("recorded once", not awake or (gone and silent), f"{request} goes on at {pool.name}")

    def _silent(self, pool: Pool, gate: Gate) -> bool:
        return self.world.heap.now - pool.store.announced.get(gate.name, -1e9) > GONE_S

    def _known_of(self, home: bytes, request: str) -> bool:
        if request in self.world.by_key[home].store.receipts:
            return True
        return any(
            key == home and request_of(job) == request
            for pool in self.world.pools
            for key, job in pool.store.results
        )

    # --- who is alive

    def beat(self, pool: Pool, gate: Gate, peer: bytes) -> None:
        """A heartbeat came."""
        self._beats[gate.name, peer] = self.world.heap.now

    def probed(self, pool: Pool, gate: Gate, peer: bytes, *, answered: bool) -> None:
        """A handshake was tried."""
        self._probes[gate.name, peer] = self.world.heap.now, answered

    def declared_dead(self, pool: Pool, gate: Gate, peer: bytes) -> None:
        """A gate holds a peer for dead: two signs, and not because it is alone."""
        now, name = self.world.heap.now, self.world.by_key[peer].name
        silence = now - self._beats.get((gate.name, peer), -1e9)
        self.check("no false death", silence >= DEAD_S, f"{gate.name}: {name}, heard {silence:.1f} s ago")
        _, answered = self._probes.get((gate.name, peer), (-1e9, True))
        self.check("no false death", not answered, f"{gate.name}: {name}, whom no probe failed to reach")
        others = [key for key, level in pool.trust.items() if key != peer and level >= 1]
        heard = [
            key
            for key in others
            if now - self._beats.get((gate.name, key), -1e9) <= SUSPECT_S + 1.5
            or self._probes.get((gate.name, key), (0.0, False))[1]
        ]
        self.check("self-doubt", not others or bool(heard), f"{gate.name}: {name}, though it hears nobody")

    def gate_looked(self, pool: Pool, gate: Gate) -> None:
        """Time passes at a gate: whoever is gone for long is held for dead."""
        now, network = self.world.heap.now, self.world.network
        at, run = self._looked.get(gate.name, (-1e9, 0))
        if run != gate.run or now - at > 2:  # its process began, or had been stopped
            self._began[gate.name] = now
        self._looked[gate.name] = now, gate.run
        there: dict[bytes, bool] = {}
        for key, level in pool.trust.items():
            peer = self.world.by_key[key]
            there[key] = level >= 1 and network.both(pool.name, peer.name) and peer.awake
            if there[key] or level < 1:
                self._unseen.pop((gate.name, key), None)
            else:
                self._unseen.setdefault((gate.name, key), now)
        for key, here in there.items():
            if here or pool.trust[key] < 1 or not self._sure(pool, gate, key, there):
                continue
            at, answered = self._probes.get((gate.name, key), (0.0, False))
            signs = (self._unseen[gate.name, key], self._beats.get((gate.name, key), 0.0), at * answered)
            if now - max(*signs, self._began[gate.name]) < SEEN_WITHIN_S:
                continue
            name = self.world.by_key[key].name
            self.check("death seen", gate.liveness.dead(key), f"{gate.name} has not noticed {name}")

    def _sure(self, pool: Pool, gate: Gate, key: bytes, there: dict[bytes, bool]) -> bool:
        """Whether a gate has no reason to doubt itself: it hears another peer, steadily."""
        others = [other for other in there if other != key and pool.trust[other] >= 1]
        return any(
            self.world.heap.now - self._beats.get((gate.name, other), -1e9) < SUSPECT_S for other in others
        )

    # --- nodes

    def past(self, node: Node) -> Past:
        """What is remembered of a node."""
        return self._pasts.setdefault(node.name, Past())

    def node_started(self, node: Node, stepped: float) -> None:
        """A node's process begins; its calendar was set by ``stepped`` since the last one."""
        past = self.past(node)
        past.well.clear()
        past.due_since = past.stranded_since = None
        if stepped:
            past.blurred_until = self.world.heap.now + HOLD_S + abs(stepped)

    def node_stepped(self, node: Node, before: State, event: Event, ready: Ready) -> None:
        """A node's machine has taken an event."""
        past, now, state = self.past(node), self.world.heap.now, ready.state
        if isinstance(event, Seen):
            self._saw(past, event, now, home=event.pool == before.home)
        blurred = now < past.blurred_until
        for move in ready.moves:
            if before.mode == "manual" and state.mode == "manual":
                self.check("5 manual", move.rule in {"order", "withdrawn"}, f"{node.name}: {move.rule}")
            if move.rule == "return":
                held = past.flapped is not None and now - past.flapped < HOLD_S - 1
                unsure = blurred or now < past.unsure_until
                if not unsure:
                    self.check("3 hold", not held, f"{node.name} returned into a hold")
                ran = now - past.well.get(state.home, now)
                self.check("2 unbroken", ran >= RETURN_LEAST_S - 1, f"{node.name} returned after {ran:.0f} s")
            if move.rule == "rebalance":
                last = past.rebalanced
                early = last is not None and now - last < VOLUNTARY_S - 1
                self.check("4 seldom", blurred or not early, f"{node.name} moved twice for balance")
                self.check(
                    "4 calm", before.sight(before.target).word == "well", f"{node.name} left a dead pool"
                )
                past.rebalanced = now
                past.failed, past.home_down = None, False
            if move.to == state.home and move.rule in {"return", "order", "emergency"}:
                past.returned = now
        if state.home != before.home and before.pools:
            past.blurred_until = now + HOLD_S  # of which home were its failures?
        target = state.sight(state.target)
        other = any(state.sight(pool).word == "well" for pool in state.pools if pool != state.target)
        if state.mode == "auto":
            self.check(
                "1 at once", not (target.word == "dead" and other), f"{node.name} stays at a dead pool"
            )
        self.check("known", not state.pools or state.target in state.pools, f"{node.name} is nowhere")

    def _saw(self, past: Past, event: Seen, now: float, *, home: bool) -> None:
        if event.sight == "well":
            past.well.setdefault(event.pool, now)
        else:
            past.well.pop(event.pool, None)
        if not home:
            return
        if event.sight == "well":
            past.home_down = False
        elif event.sight == "dead" and not past.home_down:
            recent = [at for at in (past.failed, past.returned) if at is not None and now - at < FLAP_S]
            past.failed, past.home_down = now, True
            past.flapped = now if recent else past.flapped
            if now < max(past.blurred_until, past.unsure_until):
                past.unsure_until = now + HOLD_S + 5

    def node_looked(self, node: Node) -> None:
        """Time passes: what must happen by itself has happened in time."""
        past, now, state = self.past(node), self.world.heap.now, node.state
        auto = state.mode == "auto" and not state.pinned and state.pending is None
        home_well = now - past.well.get(state.home, now) > RETURN_MOST_S
        held = past.flapped is not None and now - past.flapped <= HOLD_S + 5
        sure = now >= max(past.blurred_until, past.unsure_until)
        due = auto and state.target != state.home and home_well and not held and sure
        past.due_since = (past.due_since or now) if due else None
        late = past.due_since is not None and now - past.due_since > 5
        self.check("2 returns", not late, f"{node.name} is not home although it could be")
        lost = state.mode == "auto" and not self._usable(node, state.target)
        lost = lost and any(self._usable(node, pool) for pool in state.pools)
        past.stranded_since = (past.stranded_since or now) if lost else None
        late = past.stranded_since is not None and now - past.stranded_since > ACT_WITHIN_S
        self.check("1 moves", not late, f"{node.name} stays where nothing answers")

    def _usable(self, node: Node, pool: bytes) -> bool:
        there = self.world.by_key[pool]
        return there.serving and self.world.network.both(node.name, there.name)


def folded(pool: Pool, level: int) -> dict[Record, bytes]:
    """What a pool's log says, of the streams that a peer of that level may read.

    A record whose last payload the pool itself got back without it (nobody who was asked had it) is left out.
    """
    found: dict[Record, bytes] = {}
    for row in pool.store.rows:
        if row.entry.stream in {*OWN_STREAMS, "catalogue"} or STREAMS[row.entry.stream].level > level:
            continue
        key = row.entry.stream, row.entry.record
        found.pop(key, None)
        if row.contents is not None:
            found[key] = row.contents.payload
    return found

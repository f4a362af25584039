"""What goes wrong: each trouble begins, lasts a while, and ends; several may be on at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.pool import Gate, Pool

if TYPE_CHECKING:
    from tests.sim.world import World

End = Callable[[], None]
CLOCK_MOST_S = 400.0


class Nemesis:
    """Begins a trouble of a random kind now and then, until stopped; then ends them all."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kinds: dict[str, Callable[[], End | None]] = {
            "gate crash": self.crash_gate,
            "pool crash": self.crash_pool,
            "pause": self.pause_gate,
            "partition": self.partition,
            "one-way cut": self.one_way,
            "island": self.island,
            "node cut off": self.cut_node,
            "bad lines": self.bad_lines,
            "clock step": self.step_clock,
            "node clock step": self.step_node_clock,
            "store outage": self.store_outage,
            "store failover": self.fail_over_store,
            "store restore": self.restore_store,
            "machine restore": self.restore_machine,
            "tail elsewhere": self.tail_elsewhere,
            "disk full": self.fill_disk,
            "garbled log": self.garble,
            "node crash": self.crash_node,
            "trust change": self.change_trust,
            "flapping home": self.flap,
            "manual mode": self.manual_mode,
            "order": self.order_move,
            "promotion": self.promote,
            "two promotions": self.promote_twice,
        }
        if world.plan.elections:
            self.kinds = self._election_kinds()
        self._upon_election: list[Callable[[Pool], None]] = []
        self._ends: dict[int, tuple[str, End]] = {}
        self._number = 0
        self._stopped = False

    def _election_kinds(self) -> dict[str, Callable[[], End | None]]:
        """What makes pools elect, more often than what stops them; what nodes do matters little here."""
        chosen = ("gate crash", "pause", "partition", "one-way cut", "island", "bad lines", "store outage")
        seldom = ("promotion", "two promotions", "disk full")
        return {
            **{name: self.kinds[name] for name in (*chosen, *seldom)},
            **{f"dead master {number}": self.kill_master for number in range(len(chosen))},
            "forgotten ballots": self.forget_ballots,
        }

    def elected(self, winner: Pool) -> None:
        """A pool is master by a majority's vote."""
        upon, self._upon_election = self._upon_election, []
        for one in upon:
            one(winner)

    def start(self) -> None:
        """Let trouble begin."""
        self.world.heap.after(20.0, self._next)

    def stop(self) -> None:
        """Heal everything."""
        self._stopped = True
        for number in list(self._ends):
            self._end(number)
        self.world.network.heal()
        for pool in self.world.pools:
            for gate in pool.gates:
                self._start_gate(gate)
        for node in self.world.nodes:
            if not node.alive:
                node.start()
            node.configure(mode="auto")
            node.order("back", node.state.home)

    def _next(self) -> None:
        if self._stopped:
            return
        heap = self.world.heap
        name = heap.random.choice(list(self.kinds))
        end = self.kinds[name]()
        if end is not None:
            self._number += 1
            number = self._number
            self._ends[number] = (name, end)
            self.world.troubles.add(name)
            heap.after(
                heap.random.choice((2.0, 8.0, 30.0, 90.0)) * heap.random.random(), lambda: self._end(number)
            )
        heap.after(self.world.plan.trouble_every_s * heap.random.uniform(0.2, 1.8), self._next)

    def _end(self, number: int) -> None:
        if number not in self._ends:
            return
        name, end = self._ends.pop(number)
        end()
        if all(other != name for other, _ in self._ends.values()):
            self.world.troubles.discard(name)

    # --- processes

    def _sites(self) -> list[str]:
        return [pool.name for pool in self.world.pools] + [node.name for node in self.world.nodes]

    def _pool(self) -> Pool:
        return self.world.heap.random.choice(self.world.pools)

    def _start_gate(self, gate: Gate) -> None:
        if not gate.alive:
            gate.begin()
        gate.paused = False

    def _start_gates(self, pool: Pool) -> None:
        for gate in pool.gates:
            self._start_gate(gate)

    def crash_gate(self) -> End:
        """SIGKILL; its continuity is forgotten, its note is not."""
        gate = self.world.heap.random.choice(self._pool().gates)
        gate.alive = False
        return lambda: self._start_gate(gate)

    def crash_pool(self) -> End:
        """All gates at once."""
        pool = self._pool()
        for gate in pool.gates:
            gate.alive = False
        return lambda: self._start_gates(pool)

    def pause_gate(self) -> End:
        """SIGSTOP of a pool's gates, one or both."""
        pool = self._pool()
        gates = pool.gates if self.world.heap.random.random() < 0.5 else pool.gates[:1]
        for gate in gates:
            gate.paused = True

        def end() -> None:
            for gate in gates:
                gate.paused = False

        return end

    def crash_node(self) -> End:
        """A minigate or qdaemon is killed."""
        node = self.world.heap.random.choice(self.world.nodes)
        node.alive = False
        return lambda: None if node.alive else node.start()

    # --- lines

    def _cut(self, pairs: set[tuple[str, str]]) -> End:
        network = self.world.network
        mine = pairs - network.cut
        network.cut |= mine
        return lambda: network.cut.difference_update(mine)

    def partition(self) -> End:
        """The sites fall into two groups."""
        chance = self.world.heap.random
        sites = self._sites()
        left = {site for site in sites if chance.random() < 0.5}
        right = set(sites) - left
        return self._cut({(a, b) for a in left for b in right} | {(b, a) for a in left for b in right})

    def one_way(self) -> End:
        """One direction between two pools."""
        one, other = self.world.heap.random.sample(self.world.pools, 2)
        return self._cut({(one.name, other.name)})

    def island(self) -> End:
        """A pool hears nobody and nobody hears it."""
        name = self._pool().name
        others = [site for site in self._sites() if site != name]
        return self._cut({(name, other) for other in others} | {(other, name) for other in others})

    def cut_node(self) -> End:
        """A node does not reach one pool."""
        node, pool = self.world.heap.random.choice(self.world.nodes), self._pool()
        return self._cut({(node.name, pool.name)})

    def bad_lines(self) -> End:
        """Loss, delay and duplicates between two pools."""
        chance, network = self.world.heap.random, self.world.network
        one, other = chance.sample(self.world.pools, 2)
        line = network.line(one.name, other.name)
        line.loss, line.twice, line.spread_s = (
            0.4 * chance.random(),
            0.3 * chance.random(),
            4 * chance.random(),
        )

        def end() -> None:
            network.lines.pop((one.name, other.name), None)

        return end

    def flap(self) -> End:
        """A pool comes and goes every few seconds."""
        pool, heap = self._pool(), self.world.heap
        on = [True]

        def toggle() -> None:
            if not on[0] or self._stopped:
                return
            for gate in pool.gates:
                if gate.alive:
                    gate.alive = False
                else:
                    self._start_gate(gate)
            heap.after(heap.random.uniform(1, 40), toggle)

        toggle()

        def end() -> None:
            on[0] = False
            for gate in pool.gates:
                self._start_gate(gate)

        return end

    # --- calendars

    def _offset(self) -> float:
        chance = self.world.heap.random
        return chance.choice((-1, 1)) * chance.choice((5.0, 50.0, CLOCK_MOST_S)) * chance.random()

    def step_clock(self) -> End:
        """A gate's calendar jumps, and is corrected later."""
        pool = self._pool()
        gate = self.world.heap.random.choice(pool.gates)
        gate.offset = self._offset()
        pool.fastest = max(pool.fastest, gate.offset)

        def end() -> None:
            gate.offset = 0.0

        return end

    def step_node_clock(self) -> End:
        """A node's calendar jumps: its next process notices."""
        node = self.world.heap.random.choice(self.world.nodes)
        node.calendar = self._offset()

        def end() -> None:
            node.calendar = 0.0

        return end

    # --- stores

    def store_outage(self) -> End:
        """The store is away; gates connect anew when it is back."""
        pool = self._pool()
        pool.store.up = False

        def end() -> None:
            pool.store.up = True
            pool.store.connection += 1

        return end

    def fill_disk(self) -> End:
        """The store takes no writes."""
        pool = self._pool()
        pool.store.full = True

        def end() -> None:
            pool.store.full = False

        return end

    def _back_to(self, pool: Pool, number: int, *, server: bool, files: bool) -> None:
        connection, life, servers = pool.store.connection, pool.store.life, self.world.servers
        store, noted = pool.backups[number]
        pool.store = store.copy()
        del pool.backups[number + 1 or len(pool.backups) :]  # what came later is of an abandoned life
        pool.store.connection, pool.store.life = connection + 1, life + 1
        self.world.watch.restored(pool)
        if server:
            servers[0] += 1
            pool.store.server = servers[0]
        if files:
            for gate in pool.gates:
                gate.noted = noted[gate.name]

    def fail_over_store(self) -> End | None:
        """A standby that lags is promoted: same system, new timeline."""
        pool = self._pool()
        if pool.backups:
            self._back_to(pool, -1, server=True, files=False)
        return lambda: None

    def restore_store(self) -> End | None:
        """An old backup is played back on a new server."""
        pool = self._pool()
        if pool.backups:
            self._back_to(pool, self.world.heap.random.randrange(len(pool.backups)), server=True, files=False)
        return lambda: None

    def restore_machine(self) -> End | None:
        """The machine is set back as a whole, store, files and all: nothing on it shows it."""
        pool = self._pool()
        if pool.backups:
            for gate in pool.gates:
                gate.alive = False
            self._back_to(pool, self.world.heap.random.randrange(len(pool.backups)), server=False, files=True)
        return lambda: self._start_gates(pool)

    def tail_elsewhere(self) -> End | None:
        """A pool is restored while the only peer that has its newest entries cannot be asked."""
        pool, heap, network = self._pool(), self.world.heap, self.world.network
        keeper = heap.random.choice([one for one in self.world.pools if one is not pool])
        others = [one for one in self.world.pools if one not in {pool, keeper}]
        first = {(pool.name, one.name) for one in others} - network.cut
        then = {(pool.name, keeper.name)} - network.cut
        network.cut |= first

        def restore() -> None:
            network.cut.difference_update(first)
            network.cut.update(then)
            if pool.backups and not self._stopped:
                machine = heap.random.random() < 0.5
                self._back_to(pool, -1, server=not machine, files=machine)

        heap.after(heap.random.uniform(20, 50), restore)
        heap.after(heap.random.uniform(60, 140), lambda: network.cut.difference_update(then))
        return lambda: None

    def garble(self) -> End:
        """A pool's words arrive changed: what a liar, or a broken disk, would send."""
        name = self._pool().name
        self.world.garbling.add(name)
        return lambda: self.world.garbling.discard(name)

    # --- people

    def change_trust(self) -> End:
        """An administrator lowers a peer, and raises it again."""
        one, other = self.world.heap.random.sample(self.world.pools, 2)
        one.trust[other.key] = self.world.heap.random.choice((0, 1, 2))

        def end() -> None:
            one.trust[other.key] = 3

        return end

    def manual_mode(self) -> End:
        """A node's pool is set to manual."""
        node = self.world.heap.random.choice(self.world.nodes)
        node.configure(mode="manual")
        return lambda: node.configure(mode="auto")

    def order_move(self) -> End:
        """An administrator, or the balancer, orders a move."""
        chance = self.world.heap.random
        node = chance.choice(self.world.nodes)
        verb = chance.choice(("move", "back", "reassign", "reassign"))
        node.order(verb, node.state.home if verb == "back" else chance.choice(node.roster))
        return lambda: None

    def promote(self) -> End:
        """An administrator promotes a pool, or resolves what is frozen."""
        self._pool().authority.promote(self._pool().key)
        return lambda: None

    # --- elections

    def kill_master(self) -> End | None:
        """All gates of the catalogue's master, for long enough that it is replaced; there is one at least."""
        pool = self._pool()
        standing = pool.authority.standing
        if standing.master is None or standing.frozen:
            pool.authority.promote(pool.key)
            return None
        master = self.world.by_key[standing.master]
        for gate in master.gates:
            gate.alive = False
        self.world.heap.after(self.world.heap.random.uniform(40, 120), lambda: self._start_gates(master))
        return lambda: None

    def forget_ballots(self) -> End:
        """Whoever is elected next is cut off at once, and those who voted forget it."""
        self._upon_election.append(self._forget)
        return lambda: None

    def _forget(self, winner: Pool) -> None:
        heap, others = self.world.heap, [one for one in self.world.pools if one is not winner]
        uncut = self._cut(
            {(winner.name, one.name) for one in others} | {(one.name, winner.name) for one in others}
        )
        heap.after(heap.random.uniform(30, 150), uncut)
        for one in others:
            if one.backups and not self._stopped:
                self._back_to(one, -1, server=heap.random.random() < 0.5, files=True)

    def promote_twice(self) -> End:
        """Two administrators promote at once."""
        one, other = self.world.heap.random.sample(self.world.pools, 2)
        one.authority.promote(one.key)
        other.authority.promote(other.key)
        return lambda: None

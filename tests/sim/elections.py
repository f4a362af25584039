"""Elections of the catalogue's master: `qgate.governance.elections` with messages for questions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qgate.federation.election import Question, Sight, judge, majority, voters, why_not_stand

if TYPE_CHECKING:
    from tests.sim.pool import Gate, Pool

AFTER_S = 8.0
ABSTAIN_S = 300.0
ANSWERS_S = 1.5


class Elections:
    """One pool's; any gate of it asks and answers, over one store."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._asking_until = 0.0

    def look(self, gate: Gate) -> None:
        """Stand if it is time."""
        pool = self._pool
        now = pool.world.heap.now
        if not pool.store.up or pool.store.full or now < self._asking_until:
            return
        sight = self._sight(gate)
        if why_not_stand(sight) or sight.standing.master is None:
            return
        self._asking_until = now + 2 * ANSWERS_S + 1
        self._poll(gate, sight, binding=False)

    def _poll(self, gate: Gate, sight: Sight, *, binding: bool) -> None:
        """Ask everybody; go on with those who said yes in time."""
        pool, world = self._pool, self._pool.world
        master = sight.standing.master
        assert master is not None
        question = Question(sight.standing.epoch + 1, master, pool.key, sight.head, binding)
        said = {pool.key}

        def came(voter: bytes) -> None:
            said.add(voter)

        for key in sorted(voters(sight.standing.group) - {pool.key, master}):
            peer = world.by_key[key]
            answer = partial(peer.elections.asked, pool, question, came)
            world.network.send(pool.name, peer.name, answer)
        process = gate.run, pool.store.life

        def counted() -> None:
            if (gate.run, pool.store.life) == process:
                self._counted(gate, sight, question, said)

        world.heap.after(ANSWERS_S, counted)

    def asked(self, candidate: Pool, question: Question, came: Callable[[bytes], None]) -> None:
        """Another pool stands, and asks."""
        pool = self._pool
        gate = pool.entrance(pool.gates[0])
        if gate is None or not pool.store.up or pool.store.full or judge(self._sight(gate), question):
            return
        if question.binding:
            pool.store.ballots[question.epoch] = candidate.key
        pool.world.network.send(pool.name, candidate.name, partial(came, pool.key))

    def _counted(self, gate: Gate, sight: Sight, question: Question, said: set[bytes]) -> None:
        pool = self._pool
        store = pool.store
        if not gate.working or not store.up or store.full or len(said) < majority(sight.standing.group):
            return
        if not question.binding:
            if not why_not_stand(self._sight(gate)):
                store.ballots[question.epoch] = pool.key
                self._poll(gate, sight, binding=True)
            return
        standing = pool.authority.standing
        if standing.frozen or standing.master is None or standing.epoch + 1 != question.epoch:
            return
        if store.ballots.get(question.epoch) != pool.key:
            return
        pool.authority.promote(pool.key)
        if pool.authority.standing.epoch == question.epoch:
            pool.world.watch.elected(pool, question)

    def _sight(self, gate: Gate) -> Sight:
        pool = self._pool
        standing = pool.authority.standing
        master = standing.master
        verdict = gate.liveness.suspicion.standing(master) if master else None
        dead = verdict is not None and verdict.state == "dead" and not verdict.doubt
        return Sight(
            own=pool.key,
            standing=standing,
            automatic=True,
            dead_s=pool.world.heap.now - verdict.since if dead and verdict is not None else None,
            after_s=AFTER_S,
            head=pool.authority.last_write(),
            ballot=pool.store.ballots.get(standing.epoch + 1),
            restored_s=self._restored_s(gate),
            abstain_s=ABSTAIN_S,
        )

    def _restored_s(self, gate: Gate) -> float | None:
        """`qgate.store.log_lost.restored_s`, and 0 while the gate asks what peers have of the log."""
        store = self._pool.store
        if not gate.ready.publish or (store.head.seq and store.settled != store.server) or store.claims:
            return 0.0
        return None if store.restored_at is None else self._pool.world.heap.now - store.restored_at

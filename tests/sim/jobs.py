"""Requests that a pool has worked on by its peers: asked for, moved, executed, kept, told and recorded.

What is decided is decided by `qgate.federation.results`; this stands in for tunnels and SQL. A request lives
in the memory of one gate; its receipt, and a result that is kept for another pool, live in a store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from qgate.federation import results
from qgate.federation.results import Docket, Home, Telling, request_of

if TYPE_CHECKING:
    from tests.sim.pool import Gate, Pool

ASK_S = 6.0
WORK_S = 40.0
PATIENCE_S = 45.0
ATTEMPTS_MAX = 3
ANNOUNCE_S = 60.0
SETTLE_S = 0.5


@dataclass(slots=True)
class Request:
    """One request at the gate that its app had asked."""

    attempt: int = 0
    executor: bytes = b""
    since: float = 0.0
    tried: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Kept:
    """A result in a store."""

    docket: Docket


@dataclass(frozen=True, slots=True)
class Record:
    """The one record of a request. ``gone``: its gate was only thought to be gone."""

    by: str
    recovered: bool = False
    gone: bool = False


@dataclass(slots=True)
class Desk:
    """What a gate's process knows of jobs; forgotten when it ends."""

    requests: dict[str, Request] = field(default_factory=dict)
    unwritten: set[str] = field(default_factory=set)
    executing: set[tuple[bytes, str]] = field(default_factory=set)
    unkept: list[tuple[bytes, str, Docket]] = field(default_factory=list)
    tellings: dict[tuple[bytes, str, int], Telling] = field(default_factory=dict)


class Jobs:
    """Both ends of one pool: what its apps ask others for, and what it does for others."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._number = 0
        pool.world.heap.every(ASK_S, self._ask)

    # --- at home

    def _ask(self) -> None:
        """An app of this pool asks for something that its own workers do not have."""
        pool = self._pool
        gates = [gate for gate in pool.gates if gate.working]
        if not gates or not pool.world.writing:
            return
        gate = pool.world.heap.random.choice(gates)
        self._number += 1
        request = f"{pool.name}-{self._number}"
        gate.desk.requests[request] = Request()
        self._place(gate, request)

    def _place(self, gate: Gate, request: str) -> None:
        """Begin the next attempt, at a peer that is not known to be dead; without one it has failed."""
        pool, one = self._pool, gate.desk.requests[request]
        able = [
            key
            for key, level in pool.trust.items()
            if level >= 2 and key not in one.tried and not gate.liveness.dead(key)
        ]
        if not able or one.attempt >= ATTEMPTS_MAX:
            self._end(gate, request)
            return
        now = pool.world.heap.now
        one.attempt, one.since = one.attempt + 1, now
        one.executor = pool.world.heap.random.choice(sorted(able))
        one.tried.add(one.executor)
        job = f"{request}.{one.attempt}"
        docket = Docket("app", "chat", gate.name, str(gate.run), now)
        peer = pool.world.by_key[one.executor]
        pool.world.network.send(pool.name, peer.name, partial(peer.jobs.take, pool, gate, job, docket))

    def _end(self, gate: Gate, request: str) -> None:
        del gate.desk.requests[request]
        gate.desk.unwritten.add(request)  # if it never left, there is a receipt all the same

    def done(self, gate: Gate, job: str, run: int) -> None:
        """A peer says that a job is over."""
        one = gate.desk.requests.get(request_of(job))
        if gate.working and gate.run == run and one is not None and job.endswith(f".{one.attempt}"):
            self._end(gate, request_of(job))

    def turn(self, gate: Gate) -> None:
        """What a gate does every second: move what waits in vain, write, keep, tell."""
        pool, desk, now = self._pool, gate.desk, self._pool.world.heap.now
        for request, one in list(desk.requests.items()):
            if gate.liveness.dead(one.executor) or now - one.since > PATIENCE_S:
                self._place(gate, request)
        store = pool.store
        if not store.up or store.full:
            return
        if now - store.announced.get(gate.name, -ANNOUNCE_S) >= ANNOUNCE_S:
            store.announced[gate.name] = now
        for request in sorted(desk.unwritten):
            pool.world.watch.wrote_receipt(pool, gate, request)
            store.receipts.setdefault(request, Record(gate.name))
        desk.unwritten.clear()
        for home, job, docket in desk.unkept:
            self._keep(home, job, docket)
        desk.unkept.clear()
        self._tell(gate)

    def hear(self, gate: Gate, run: int, executor: Pool, job: str, docket: Docket) -> None:
        """A peer tells a result that it keeps for this pool."""
        pool, store, now = self._pool, self._pool.store, self._pool.world.heap.now
        if not gate.working or gate.run != run or not store.up or store.full:
            return
        request = request_of(job)
        home = Home(gate.name, str(gate.run), {name: now - at for name, at in store.announced.items()})
        underway = request in gate.desk.requests or request in gate.desk.unwritten
        word = results.judge(docket, home, recorded=request in store.receipts, underway=underway)
        if word == "wait":
            return
        if word == "record":
            gone = docket.gate != gate.name
            pool.world.watch.recovering(pool, request, gone=gone)
            store.receipts[request] = Record(gate.name, recovered=True, gone=gone)
        acknowledge = partial(executor.jobs.acknowledged, pool, job, store.life)
        pool.world.network.send(pool.name, executor.name, acknowledge)

    # --- where it is executed

    def take(self, home: Pool, asker: Gate, job: str, docket: Docket) -> None:
        """A job arrives; it is worked on by one gate's process, for as long as that lives."""
        pool, chance = self._pool, self._pool.world.heap.random
        gate = pool.entrance(asker)
        if gate is None or pool.trust.get(home.key, 0) < 2 or (home.key, job) in gate.desk.executing:
            return
        gate.desk.executing.add((home.key, job))
        asking = int(docket.run)
        pool.world.heap.after(
            WORK_S * chance.random() ** 2,
            partial(self._finish, gate, gate.run, home, asker, asking, job, docket),
        )

    def _finish(
        self, gate: Gate, run: int, home: Pool, asker: Gate, asking: int, job: str, docket: Docket
    ) -> None:
        """The job is over: keep its result, then say so."""
        pool = self._pool
        if not gate.alive or gate.run != run:
            return
        if gate.paused:
            again = partial(self._finish, gate, run, home, asker, asking, job, docket)
            pool.world.heap.after(1.0, again)
            return
        gate.desk.executing.discard((home.key, job))
        said = partial(home.jobs.done, asker, job, asking)
        if pool.store.up and not pool.store.full:
            self._keep(home.key, job, docket)
            pool.world.network.send(pool.name, home.name, said)
        else:
            gate.desk.unkept.append((home.key, job, docket))
            pool.world.heap.after(
                SETTLE_S,
                lambda: pool.world.network.send(pool.name, home.name, said) if gate.working else None,
            )

    def _keep(self, home: bytes, job: str, docket: Docket) -> None:
        self._pool.store.results[home, job] = Kept(docket)
        self._pool.world.watch.kept(self._pool, home, job)

    def _tell(self, gate: Gate) -> None:
        """Each gate of a home holds a stream to one gate here, and is told everything that is kept for it."""
        pool, desk, world = self._pool, gate.desk, self._pool.world
        by_home: dict[bytes, list[str]] = {}
        for key, job in pool.store.results:
            by_home.setdefault(key, []).append(job)
        for key, jobs in by_home.items():
            home = world.by_key[key]
            if min(pool.trust.get(key, 0), home.trust.get(pool.key, 0)) < 2:
                continue
            for there in home.gates:
                if not there.working or pool.entrance(there) is not gate:
                    continue
                telling = desk.tellings.setdefault((key, there.name, there.run), Telling())
                for job in telling.due(jobs, world.heap.now):
                    docket = pool.store.results[key, job].docket
                    tell = partial(home.jobs.hear, there, there.run, pool, job, docket)
                    world.network.send(pool.name, home.name, tell)

    def acknowledged(self, home: Pool, job: str, life: int) -> None:
        """Home has recorded it."""
        pool = self._pool
        if not pool.serving or pool.store.full or (home.key, job) not in pool.store.results:
            return
        del pool.store.results[home.key, job]
        pool.world.watch.forgotten(home, request_of(job), life)

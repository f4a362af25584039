"""Histories full of trouble keep every promise, and each planted bug breaks one."""

from __future__ import annotations

import pytest

from qgate.federation.election import STAGGER_S
from tests.sim.elections import AFTER_S, ANSWERS_S
from tests.sim.planted import Bug, bugs
from tests.sim.watch import Broken
from tests.sim.world import ELECTIONS, Plan, World, simulate

EACH = 10
SHORT = Plan(seconds=240.0, trouble_every_s=6.0, write_every_s=8.0)
ONCE_FAILED = (23, 24, 57)
"""Seeds that found something: 23, a gate that signed on although silent peers had more of its pool's log.

Of the short ones that all are played, 64 and 99: a peer that was watched anew ended a gate's doubt of itself.
"""
LONG = Plan(seconds=7200.0, trouble_every_s=20.0, write_every_s=30.0)
ONCE_FAILED_LONG = (170, 238, 298, 375, 994)
"""Seeds of two hours: a backup that brought contents back as lost, after they had been given up once; 375, a
node whose calendar was stepped between a return and the next failure: only one of us saw a flap; 994, a gate
that had heard a peer just before a backup came back under it, and took that for an answer about the backup.
"""

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("first", range(0, 200, EACH))
def test_promises_are_kept(first: int) -> None:
    for seed in range(first, first + EACH):
        simulate(seed, SHORT)


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_seeds_that_found_something(seed: int) -> None:
    simulate(seed, Plan())


@pytest.mark.parametrize("seed", ONCE_FAILED_LONG)
def test_long_seeds_that_found_something(seed: int) -> None:
    simulate(seed, LONG)


def test_a_master_that_dies_is_replaced_by_a_majority() -> None:
    """Nothing else happens: the two others agree within the time that docs/replication.md names."""
    for seed in range(3):
        world = World(seed, Plan(nodes=0))
        hq, *others = world.pools
        world.heap.run(30.0)
        hq.authority.promote(hq.key)
        world.heap.run(90.0)
        assert {pool.authority.standing.master for pool in world.pools} == {hq.key}
        for gate in hq.gates:
            gate.alive = False
        world.heap.run(90.0 + 20.0 + AFTER_S + STAGGER_S + 4 * ANSWERS_S + 10.0)
        first, second = (pool.authority.standing for pool in others)
        assert (first.epoch, first.frozen) == (2, False)
        assert first.master == second.master in {pool.key for pool in others}
        for gate in hq.gates:
            gate.begin()
        world.heap.run(world.heap.now + 60.0)
        assert hq.authority.standing.master == first.master, "the old one hears of it"


def test_many_elections_and_votes_that_are_forgotten() -> None:
    elected = [len(simulate(seed, ELECTIONS).watch.elections) for seed in range(3)]
    assert sum(elected) >= 5, f"{elected}: they were about little"


def test_a_pool_that_is_alone_elects_nobody() -> None:
    for seed in range(3):
        world = World(seed, Plan(nodes=0))
        hq, gpu, branch = world.pools
        world.heap.run(30.0)
        hq.authority.promote(hq.key)
        world.heap.run(90.0)
        for other in (hq, branch):
            world.network.cut |= {(gpu.name, other.name), (other.name, gpu.name)}
        world.heap.run(600.0)
        assert {pool.authority.standing.master for pool in world.pools} == {hq.key}


def test_a_seed_is_a_history() -> None:
    one, other = simulate(7, SHORT), simulate(7, SHORT)
    assert one.heap.steps == other.heap.steps
    assert one.watch.counts == other.watch.counts
    assert [pool.store.head for pool in one.pools] == [pool.store.head for pool in other.pools]


@pytest.mark.parametrize("name", bugs())
def test_planted_bugs_are_caught(name: str) -> None:
    bug = bugs()[name]
    with bug.planted():
        assert first_broken(bug) in bug.promises


def first_broken(bug: Bug) -> str:
    """The promise that the first of 200 histories to fail broke."""
    for seed in (*range(bug.first, 200), *range(bug.first)):
        try:
            simulate(seed, bug.plan)
        except Broken as broken:
            return broken.promise
    return "none"

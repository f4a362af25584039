"""Histories full of trouble keep every promise, and each planted bug breaks one."""

from __future__ import annotations

import pytest

from tests.sim.planted import bugs
from tests.sim.watch import Broken
from tests.sim.world import Plan, simulate

EACH = 10
SHORT = Plan(seconds=240.0, trouble_every_s=6.0, write_every_s=8.0)
ONCE_FAILED = (23, 24, 57)
"""Seeds that found something: 23, a gate that signed on although silent peers had more of its pool's log.

Of the short ones that all are played, 64 and 99: a peer that was watched anew ended a gate's doubt of itself.
"""

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("first", range(0, 200, EACH))
def test_promises_are_kept(first: int) -> None:
    for seed in range(first, first + EACH):
        simulate(seed, SHORT)


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_seeds_that_found_something(seed: int) -> None:
    simulate(seed, Plan())


def test_a_seed_is_a_history() -> None:
    one, other = simulate(7, SHORT), simulate(7, SHORT)
    assert one.heap.steps == other.heap.steps
    assert one.watch.counts == other.watch.counts
    assert [pool.store.head for pool in one.pools] == [pool.store.head for pool in other.pools]


@pytest.mark.parametrize("name", bugs())
def test_planted_bugs_are_caught(name: str) -> None:
    bug = bugs()[name]
    with bug.planted():
        assert first_broken() in bug.promises


def first_broken() -> str:
    """The promise that the first of 200 histories to fail broke."""
    for seed in range(200):
        try:
            simulate(seed, Plan())
        except Broken as broken:
            return broken.promise
    return "none"

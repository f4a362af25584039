"""Suspicion over simulated time: two signs before a death, self-doubt before that, nothing for good."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.suspicion import ALIVE, DEAD, SUSPECT, Patience, Suspicion

PATIENCE = Patience()
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@dataclass
class World:
    """A pool with peers of which each may be heard and may answer probes, in steps of a tenth of a second."""

    keys: tuple[bytes, ...]
    heard: set[bytes] = field(default_factory=set)
    answers: set[bytes] = field(default_factory=set)
    now: float = 1000.0
    beats: int = 0

    def __post_init__(self) -> None:
        self.heard, self.answers = set(self.keys), set(self.keys)
        self.suspicion = Suspicion(PATIENCE).follow(frozenset(self.keys), self.now)
        self.last_heard = dict.fromkeys(self.keys, self.now)
        self.pending: list[tuple[float, bytes]] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.step()

    def step(self) -> None:
        self.now += 0.1
        self.beats += 1
        if self.beats % 10 == 0:
            for key in self.heard:
                self.suspicion = self.suspicion.heard(key, self.now)
                self.last_heard[key] = self.now
        for due, key in list(self.pending):
            if due <= self.now:
                self.pending.remove((due, key))
                answered = key in self.answers
                self.suspicion = self.suspicion.probed(key, self.now, answered=answered)
        before = {key: self.state(key) for key in self.keys}
        self.suspicion, probes = self.suspicion.look(self.now)
        self.pending += [(self.now + 0.5, key) for key in probes]
        for key in self.keys:
            if before[key] != DEAD and self.state(key) == DEAD:
                self.check_death(key)

    def check_death(self, key: bytes) -> None:
        """What must hold when somebody is declared dead: silence, a failed probe, no doubt of ourselves."""
        one = self.suspicion.peers[key]
        assert self.now - self.last_heard[key] >= PATIENCE.dead_s
        assert one.failed_at is not None
        assert one.failed_at > self.last_heard[key]
        others = [other for other in self.keys if other != key]
        assert not others or not self.suspicion.doubt

    def state(self, key: bytes) -> str:
        standing = self.suspicion.standing(key)
        assert standing is not None
        return standing.state


def test_a_silent_peer_is_suspected_then_dead_then_alive_again() -> None:
    world = World((A, B))
    world.run(10)
    assert world.state(A) == world.state(B) == ALIVE
    world.heard.remove(A)
    world.answers.remove(A)
    world.run(3.9)
    assert world.state(A) == SUSPECT
    world.run(3.1)
    assert world.state(A) == DEAD
    assert world.state(B) == ALIVE
    world.heard.add(A)
    world.run(1.1)
    assert world.state(A) == ALIVE


def test_silence_alone_kills_nobody() -> None:
    world = World((A, B))
    world.heard.remove(A)
    world.run(600)
    assert world.state(A) == SUSPECT


def test_who_hears_nobody_suspects_itself() -> None:
    world = World((A, B, C))
    world.heard.clear()
    world.answers.clear()
    world.run(60)
    assert {world.state(key) for key in world.keys} == {SUSPECT}
    assert world.suspicion.doubt
    standing = world.suspicion.standing(A)
    assert standing is not None
    assert standing.doubt
    # Our network is back but for one peer: now that one is dead.
    world.heard |= {B, C}
    world.run(1.1)
    assert (world.state(A), world.state(B)) == (DEAD, ALIVE)


def test_a_single_peer_dies_later_and_in_doubt() -> None:
    world = World((A,))
    world.heard.clear()
    world.answers.clear()
    world.run(PATIENCE.dead_s + 2)
    assert world.state(A) == SUSPECT
    world.run(PATIENCE.dead_s)
    standing = world.suspicion.standing(A)
    assert standing is not None
    assert (standing.state, standing.doubt) == (DEAD, True)


def test_who_is_not_followed_is_not_judged() -> None:
    suspicion = Suspicion().follow(frozenset({A}), 0.0)
    assert suspicion.heard(B, 1.0) is suspicion
    assert suspicion.probed(B, 1.0, answered=False) is suspicion
    assert suspicion.standing(B) is None
    assert suspicion.follow(frozenset(), 1.0).peers == {}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.floats(0.1, 8.0)), max_size=25),
)
def test_no_death_without_its_signs_and_life_always_returns(
    count: int, happenings: list[tuple[int, bool, bool, float]]
) -> None:
    world = World((A, B, C, b"d" * 32)[:count])
    for number, heard, answers, seconds in happenings:
        key = world.keys[number % count]
        (world.heard.add if heard else world.heard.discard)(key)
        (world.answers.add if answers else world.answers.discard)(key)
        world.run(seconds)  # `check_death` holds at every step
        assert world.suspicion.wake_at(world.now) > world.now
    world.heard = set(world.keys)
    world.run(1.2)
    assert all(world.state(key) == ALIVE for key in world.keys)


def test_a_peer_that_is_watched_anew_says_nothing_of_our_network() -> None:
    world = World((A, B))
    world.run(10)
    world.heard.clear()
    world.answers.clear()
    world.run(4)
    assert world.suspicion.doubt
    world.suspicion = world.suspicion.follow(frozenset({A}), world.now)
    world.suspicion = world.suspicion.follow(frozenset({A, B}), world.now)  # its level was raised again
    world.run(60)
    assert world.state(A) == SUSPECT
    assert world.suspicion.doubt

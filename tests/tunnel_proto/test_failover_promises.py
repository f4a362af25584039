"""The five promises of `tunnel_proto.failover`, each over simulated time.

Hypothesis writes a history: what happens to the pools, when orders come, when the process restarts. A node
lives through it and looks again whenever its machine asks to. What it did is judged here from the history
alone, by a bookkeeping of its own.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel_proto.failover import (
    Configured,
    Event,
    Move,
    Ordered,
    Rules,
    Seen,
    State,
    Tick,
    dump_state,
    load_state,
    step,
)

HOME, NEXT, LAST = POOLS = tuple(bytes((n,)) * 32 for n in (1, 2, 3))
WORDS = ("well", "well", "unfit", "suspect", "dead")
LONG_S = 1200.0

Step = tuple[float, Event | str]


@st.composite
def histories(draw: st.DrawFn, *, mode: str = "auto", orders: bool = False) -> list[Step]:
    """(seconds since the step before, event) pairs; "restart" ends the process and begins another."""
    number = 0
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 25))):
        pause = draw(st.sampled_from((0.01, 0.1, 1.0, 5.0, 29.0, 35.0, 61.0, 150.0, 299.0, 301.0, 700.0)))
        choice = draw(st.integers(0, 11))
        if choice == 0:
            steps.append((pause, "restart"))
        elif orders and choice <= 3:
            number += 1
            verb = draw(st.sampled_from(("move", "reassign", "back")))
            target = HOME if verb == "back" else draw(st.sampled_from(POOLS))
            steps.append((pause, Ordered(verb, target, number, HOME, math.inf, "admin")))
        else:
            steps.append((pause, Seen(draw(st.sampled_from(POOLS)), draw(st.sampled_from(WORDS)))))
    return [(0.0, Configured(POOLS, mode)), *steps]


@dataclass
class Life:
    """What a node did: each move with its time and what the node had seen of every pool just then."""

    rules: Rules
    moves: list[tuple[float, Move]] = field(default_factory=list)
    seen: dict[bytes, list[tuple[float, str]]] = field(default_factory=lambda: {pool: [] for pool in POOLS})
    homes: list[tuple[float, bytes]] = field(default_factory=lambda: [(0.0, HOME)])
    restarts: list[float] = field(default_factory=list)
    checks: list[tuple[float, State]] = field(default_factory=list)
    end: float = 0.0

    def word(self, pool: bytes, at: float) -> str:
        """What was known of a pool at a time."""
        return next((word for when, word in reversed(self.seen[pool]) if when <= at), "unknown")

    def well_for(self, pool: bytes, at: float) -> float:
        """For how long a pool had been well without a break."""
        since = math.inf
        for when, word in self.seen[pool]:
            if when > at:
                break
            since = (since if since < math.inf else when) if word == "well" else math.inf
        return at - since


def live(history: list[Step], rules: Rules, *, tail_s: float = LONG_S) -> Life:
    """Run a history, then ``tail_s`` of nothing."""
    life = Life(rules)
    state = State()
    now, wake = 100_000.0, math.inf
    mode = "auto"

    def take(event: Event) -> None:
        nonlocal state, wake
        ready = step(state, event, now, rules)
        if ready.persist:
            assert load_state(dump_state(ready.state), now).target == ready.state.target
        state = ready.state
        wake = math.inf if ready.wake_at is None else ready.wake_at
        assert wake >= now
        life.moves += [(now, move) for move in ready.moves]
        for move in ready.moves:
            if move.rule == "rebalance":
                life.homes.append((now, move.to))
        life.checks.append((now, state))

    def wait_until(end: float) -> None:
        nonlocal now
        looks = 0
        while wake <= end:
            looks = looks + 1 if wake == now else 0
            assert looks < 3, "the machine asks to look again without a pause"
            now = wake
            take(Tick())
        now = end

    for pause, event in history:
        wait_until(now + pause)
        if event == "restart":
            life.restarts.append(now)
            state = load_state(dump_state(state), now)
            for sights in life.seen.values():
                sights.append((now, "unknown"))
            take(Configured(POOLS, mode))
        else:
            assert not isinstance(event, str)
            if isinstance(event, Configured):
                mode = event.mode
            if isinstance(event, Seen):
                life.seen[event.pool].append((now, event.sight))
            take(event)
    wait_until(now + tail_s)
    life.end = now
    return life


def flaps(life: Life) -> list[float]:
    """Flaps by the definition: home failed within 300 s of its last failure, or of a return."""
    returns = [
        at for at, move in life.moves if move.to == HOME and move.rule in {"return", "emergency", "order"}
    ]
    found: list[float] = []
    failures: list[float] = []
    down, before = False, "unknown"
    for at, word in life.seen[HOME]:
        last, before = before, word
        if word in {"well", "unfit"}:
            down = False
        elif word == "dead" and not down:
            down = True
            if last == "unknown":
                continue
            if any(0 <= at - before < life.rules.flap_s for before in (*failures, *returns) if before < at):
                found.append(at)
            failures.append(at)
    return found


rules_of_nodes = st.floats(0, 0.999).map(Rules.spread)


@given(histories(orders=True), rules_of_nodes)
@settings(max_examples=200, deadline=None)
def test_promise_1_an_emergency_move_is_never_delayed(history: list[Step], rules: Rules) -> None:
    life = live(history, rules)
    for at, state in life.checks:
        if state.target and state.sight(state.target).word == "dead":
            assert not any(state.sight(pool).usable for pool in POOLS), f"stayed at a dead pool at {at}"
    for at, move in life.moves:
        if move.rule == "emergency":
            assert not move.drain
            assert life.word(move.to, at) in {"well", "unfit"}


@given(histories(), rules_of_nodes)
@settings(max_examples=200, deadline=None)
def test_promise_2_home_within_a_minute_of_a_healthy_run(history: list[Step], rules: Rules) -> None:
    history = [*history, (0.01, Seen(HOME, "well"))]
    life = live(history, rules)
    for at, move in life.moves:
        if move.rule == "return":
            assert life.well_for(HOME, at) >= 30 - 1e-6
            assert move.drain
    last = max((0.0, *flaps(life)))
    run_began = life.end - life.well_for(HOME, life.end)
    due = max(run_began + 60, last + life.rules.hold_s)
    settled = [state for at, state in life.checks if at <= due]
    assert settled[-1].target == HOME, "home is well, and the node is elsewhere"


@given(histories(), rules_of_nodes)
@settings(max_examples=200, deadline=None)
def test_promise_3_no_return_for_five_minutes_after_the_last_flap(history: list[Step], rules: Rules) -> None:
    life = live(history, rules)
    for at, move in life.moves:
        if move.rule == "return":
            earlier = [flap for flap in flaps(life) if flap <= at]
            assert not earlier or at - earlier[-1] >= 300 - 1e-6


@given(histories(orders=True), rules_of_nodes)
@settings(max_examples=200, deadline=None)
def test_promise_4_one_voluntary_move_in_five_minutes(history: list[Step], rules: Rules) -> None:
    life = live(history, rules)
    voluntary = [(at, move) for at, move in life.moves if move.rule == "rebalance"]
    for (first, _), (second, _) in itertools.pairwise(voluntary):
        assert second - first >= 300
    for at, move in voluntary:
        assert life.word(move.source, at) == "well"


@given(histories(mode="manual"), rules_of_nodes)
@settings(max_examples=150, deadline=None)
def test_promise_5_manual_mode_stays_where_it_is(history: list[Step], rules: Rules) -> None:
    assert live(history, rules).moves == []


@given(histories(mode="manual", orders=True), rules_of_nodes)
@settings(max_examples=150, deadline=None)
def test_promise_5_manual_mode_moves_as_ordered_and_keeps_a_standby(
    history: list[Step], rules: Rules
) -> None:
    life = live(history, rules)
    ordered = [event for _, event in history if isinstance(event, Ordered)]
    assert len(life.moves) <= len(ordered)
    for _, move in life.moves:
        assert move.rule == "order"
        assert any(order.target == move.to for order in ordered)
    for at, state in life.checks:
        dial = step(state, Tick(), at, rules).dial
        assert len(dial) >= 2, "no standby tunnel to hear an order by"


@given(histories(orders=True), rules_of_nodes)
@settings(max_examples=100, deadline=None)
def test_the_target_and_home_are_always_dialled(history: list[Step], rules: Rules) -> None:
    life = live(history, rules)
    for at, state in life.checks:
        dial = step(state, Tick(), at, rules).dial
        assert {state.target, state.home} <= set(dial) <= set(POOLS)
        assert len(dial) == len(set(dial))

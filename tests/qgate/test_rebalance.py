"""Lending workers: on lasting load alone, rarely, and never more than half of what one has."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.rebalance import (
    PAUSE_S,
    SUSTAINED_S,
    BalanceState,
    PoolLoad,
    Reassign,
    Sight,
    step,
)

GPU, BRANCH = b"g" * 32, b"b" * 32
QUIET = PoolLoad(0, 2)
BUSY = PoolLoad(6, 2)


def look(state: BalanceState, now: float, **sight: object) -> tuple[BalanceState, Reassign | None]:
    fields: dict[str, object] = {"own": QUIET, "peers": {GPU: BUSY}, "idle": ("a", "b"), "here": 4, **sight}
    return step(state, Sight(**fields), now)  # type: ignore[arg-type]


def test_a_worker_is_lent_once_work_has_waited_for_long_enough() -> None:
    state, order = look(BalanceState(), 0)
    assert order is None
    state, order = look(state, SUSTAINED_S - 0.1)
    assert order is None
    state, order = look(state, SUSTAINED_S)
    assert order is not None
    assert (order.worker, order.pool) == ("a", GPU)
    assert "6 requests wait there, 3.0 a worker" in order.why
    state, order = look(state, SUSTAINED_S + PAUSE_S - 1)
    assert order is None


def test_a_break_in_the_waiting_begins_it_anew() -> None:
    state, _ = look(BalanceState(), 0)
    state, _ = look(state, 20, peers={GPU: QUIET})
    state, order = look(state, 40)
    assert order is None
    assert look(state, 40 + SUSTAINED_S)[1] is not None


def test_the_neediest_is_helped() -> None:
    peers = {GPU: PoolLoad(6, 3), BRANCH: PoolLoad(5, 1)}
    state, _ = look(BalanceState(), 0, peers=peers)
    _, order = look(state, SUSTAINED_S, peers=peers)
    assert order is not None
    assert order.pool == BRANCH


def test_nobody_is_lent_while_work_waits_here_or_few_are_left() -> None:
    for sight in ({"own": BUSY}, {"idle": ()}, {"here": 1}, {"here": 2, "lent": {BRANCH: ("x", "y")}}):
        state, _ = look(BalanceState(), 0, **sight)
        order = look(state, SUSTAINED_S, **sight)[1]
        assert order is None or not order.pool


def test_a_lent_worker_is_called_back_when_it_is_needed_here() -> None:
    sight = {"own": BUSY, "peers": {GPU: QUIET}, "lent": {GPU: ("z", "y")}}
    state, _ = look(BalanceState(), 0, **sight)
    _, order = look(state, SUSTAINED_S, **sight)
    assert order is not None
    assert (order.worker, order.pool) == ("y", b"")


sights = st.builds(
    Sight,
    own=st.builds(PoolLoad, st.integers(0, 3), st.integers(0, 4)),
    peers=st.dictionaries(
        st.sampled_from((GPU, BRANCH)), st.builds(PoolLoad, st.integers(0, 3), st.integers(0, 4))
    ),
    idle=st.lists(st.sampled_from("abc"), unique=True),
    here=st.integers(0, 5),
    lent=st.dictionaries(st.sampled_from((GPU, BRANCH)), st.lists(st.sampled_from("xyz"), unique=True)),
)


@given(st.lists(st.tuples(st.sampled_from((1.0, 7.0, 31.0, 290.0, 301.0)), sights), max_size=40))
@settings(max_examples=150, deadline=None)
def test_orders_are_rare_and_half_stays(history: list[tuple[float, Sight]]) -> None:
    state, now = BalanceState(), 0.0
    given_at: list[float] = []
    for pause, sight in history:
        now += pause
        state, order = step(state, sight, now)
        if order is None:
            continue
        assert not given_at or now - given_at[-1] >= PAUSE_S
        given_at.append(now)
        lent = sum(map(len, sight.lent.values()))
        if order.pool:
            assert order.worker in sight.idle
            assert sight.own.waiting == 0 < sight.peers[order.pool].waiting
            assert (lent + 1) * 2 <= sight.here + lent
        else:
            assert sight.own.waiting > 0

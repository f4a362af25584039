"""When a pool lends an idle worker to a peer, and wants one back: on load alone, before anything breaks.

Pure: loads and time go in, at most one order comes out. A worker that is lent has the peer for its home until
it is called back, so that nothing fights the choice; what the worker itself makes of the order (it obeys one
in 300 s, and none while it is held off or its pool is not well) is `tunnel_proto.failover`'s.

    lend    work has been waiting at a peer for `SUSTAINED_S`, none waits here, and more than half of our
            workers would stay
    recall  work has been waiting here for as long, none waits where one of ours was lent to
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

SUSTAINED_S: Final = 30.0
"""How long work must have been waiting without a break."""

PAUSE_S: Final = 300.0
"""Between two orders of one pool: what the last one changed has to show first."""


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What a pool carries: requests that wait for a place, workers that are there."""

    waiting: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen at one moment. ``peers`` are those that are alive and may take our workers.

    ``idle`` are our workers here that do nothing, ``lent`` those of ours at peers, by pool.
    """

    own: PoolLoad
    peers: Mapping[bytes, PoolLoad]
    idle: Sequence[str] = ()
    here: int = 0
    lent: Mapping[bytes, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reassign:
    """Order this worker to that pool, for this reason. ``pool`` empty: back to us."""

    worker: str
    pool: bytes
    why: str


@dataclass(frozen=True, slots=True)
class BalanceState:
    """Since when work has been waiting, by pool (ours under the empty key); when the last order was given."""

    waiting_since: Mapping[bytes, float] = field(default_factory=dict)
    ordered_at: float | None = None


def step(state: BalanceState, sight: Sight, now: float) -> tuple[BalanceState, Reassign | None]:
    """Look at the loads at ``now`` (seconds, only forward); the next state and what is to be ordered."""
    loads = {b"": sight.own, **sight.peers}
    since = {pool: state.waiting_since.get(pool, now) for pool, load in loads.items() if load.waiting > 0}
    state = replace(state, waiting_since=since)
    if state.ordered_at is not None and now - state.ordered_at < PAUSE_S:
        return state, None
    chosen = _recall(sight, since, now) or _lend(sight, since, now)
    return (state, None) if chosen is None else (replace(state, ordered_at=now), chosen)


def _recall(sight: Sight, since: Mapping[bytes, float], now: float) -> Reassign | None:
    if b"" not in since or now - since[b""] < SUSTAINED_S:
        return None
    for pool in sorted(sight.lent):
        if sight.lent[pool] and sight.peers.get(pool, PoolLoad()).waiting == 0:
            why = f"{sight.own.waiting} requests wait here, none where it is lent to"
            return Reassign(min(sight.lent[pool]), b"", why)
    return None


def _lend(sight: Sight, since: Mapping[bytes, float], now: float) -> Reassign | None:
    if b"" in since or not sight.idle or sight.here < 2:
        return None
    lent = sum(len(workers) for workers in sight.lent.values())
    if (lent + 1) * 2 > sight.here + lent:
        return None  # at least half of what is ours stays
    needy = [
        (load.waiting / max(1, load.workers), pool)
        for pool, load in sight.peers.items()
        if pool in since and now - since[pool] >= SUSTAINED_S
    ]
    if not needy:
        return None
    pressure, pool = max(needy)
    why = f"{sight.peers[pool].waiting} requests wait there, {pressure:.1f} a worker; none here"
    return Reassign(min(sight.idle), pool, why)

"""Whether our own log may go on where its store says it ended: what happens to a restored store. Pure.

A restored backup, or a standby that was promoted before it had caught up, may be behind what our peers have
had from us. To go on from there would sign a second entry for a number that is taken: a fork, for which every
peer would quarantine us. Therefore the sequencer asks this machine, and it compares three witnesses: the
store's system identifier and timeline with those of the last batch, the head that this gate noted in a file
of its own, and what peers say they have of us.

    state      | event                                        | next
    -----------+----------------------------------------------+-----------------------------------------------
    starting   | store seen, all three agree                  | publishing
               | store seen, it is another than last time     | asking
    publishing | a peer has more of us, or something else     | reclaiming from the one that has most
    asking     | a peer has more of us, or something else     | reclaiming from the one that has most
               | all known peers have answered, none has more | publishing: nothing was lost
               | some answered, `PATIENCE_S` passed           | opening: who is silent may have more
               | nobody answered                              | asking: publishing waits, local writes do not
               | there are no peers                           | opening
    reclaiming | our tail is back                             | the next one that has more, or opening
               | it could not prove its claim                 | as if it had said nothing
    opening    | the incarnation is open                      | publishing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from qgate.federation.log.vector import EMPTY, Head

PATIENCE_S: Final = 30.0
"""How long silent peers are waited for once one has answered."""

Phase = Literal["starting", "asking", "reclaiming", "opening", "publishing"]


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """The store as it is now. ``same`` is false where system identifier or timeline differ from those of the
    last batch; ``noted`` is the head in this gate's file and ``noted_ours`` whether the log has it.
    """

    head: Head
    same: bool
    noted: Head | None = None
    noted_ours: bool = True


@dataclass(frozen=True, slots=True)
class PeersKnown:
    """The pools that may hold something of our log."""

    pools: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class PeerHas:
    """A peer says what it has of us; ``ours``: our log has that very entry."""

    pool: bytes
    head: Head
    ours: bool


@dataclass(frozen=True, slots=True)
class TailReclaimed:
    """What a peer had of us is in our store again; ``head`` is our head now."""

    pool: bytes
    head: Head


@dataclass(frozen=True, slots=True)
class TailUnproven:
    """A peer could not show what it claimed to have, or went away."""

    pool: bytes


@dataclass(frozen=True, slots=True)
class Advanced:
    """We published up to here, or opened an incarnation."""

    head: Head


@dataclass(frozen=True, slots=True)
class Woke:
    """Time passed."""


Event = StoreSeen | PeersKnown | PeerHas | TailReclaimed | TailUnproven | Advanced | Woke


@dataclass(frozen=True, slots=True)
class ContinuityState:
    """Where the machine stands. ``claims`` are peers' heads of our log that are not in it."""

    phase: Phase = "starting"
    head: Head = EMPTY
    reason: str = ""
    peers: frozenset[bytes] = frozenset()
    answered: frozenset[bytes] = frozenset()
    claims: Mapping[bytes, Head] = field(default_factory=dict)
    reclaiming: bytes | None = None
    lost: bool = False  # something of ours is known to have been missing
    patience_until: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """What the driver is to do: ``publish``: entries may be signed; ``reclaim`` from which pool; ``open``
    an incarnation cut at which head, ``wake_at`` in monotonic seconds.
    """

    publish: bool = False
    reclaim: bytes | None = None
    open: Head | None = None
    wake_at: float | None = None
    reason: str = ""


def step(state: ContinuityState, event: Event, now: float) -> tuple[ContinuityState, Ready]:
    """Take one event at monotonic time ``now``; returns the next state and what is to be done."""
    state = _heard(state, event, now)
    state = _decide(state, now)
    return state, _ready(state)


def _heard(state: ContinuityState, event: Event, now: float) -> ContinuityState:
    match event:
        case StoreSeen(head, same, noted, noted_ours):
            state = replace(state, head=head, answered=frozenset(), claims={}, reclaiming=None, lost=False)
            if noted is not None and not noted_ours:
                reason = f"this gate had seen entry {noted.seq}, and the store does not have it"
                return replace(state, phase="asking", lost=True, reason=reason, patience_until=None)
            if not same:
                reason = "the store is another than the one that was published from"
                return replace(state, phase="asking", reason=reason, patience_until=None)
            return replace(state, phase="publishing", reason="")
        case PeersKnown(pools):
            claims = {pool: head for pool, head in state.claims.items() if pool in pools}
            return replace(state, peers=pools, answered=state.answered & pools, claims=claims)
        case PeerHas(pool, head, ours):
            claims = {one: at for one, at in state.claims.items() if one != pool}
            if not ours:
                claims[pool] = head
            patience = state.patience_until
            if state.phase == "asking" and patience is None:
                patience = now + PATIENCE_S
            return replace(state, answered=state.answered | {pool}, claims=claims, patience_until=patience)
        case TailReclaimed(pool, head):
            claims = {one: at for one, at in state.claims.items() if one != pool}
            return replace(state, head=head, claims=claims, reclaiming=None, lost=True, phase="asking")
        case TailUnproven(pool):
            claims = {one: at for one, at in state.claims.items() if one != pool}
            return replace(state, claims=claims, reclaiming=None, phase="asking")
        case Advanced(head):
            return replace(state, head=head, phase="publishing", lost=False, reason="")
        case Woke():
            return state


def _decide(state: ContinuityState, now: float) -> ContinuityState:
    if state.phase in {"starting", "reclaiming", "opening"}:
        return state
    if state.claims:
        pool, head = max(state.claims.items(), key=lambda claim: (claim[1].seq, claim[0]))
        reason = state.reason or f"a peer has entry {head.seq} of ours, which the store does not have"
        return replace(state, phase="reclaiming", reclaiming=pool, reason=reason, patience_until=None)
    if state.phase == "publishing":
        return state
    everybody = state.peers <= state.answered
    if everybody and state.peers and not state.lost:
        return replace(state, phase="publishing", reason="", patience_until=None)
    impatient = state.patience_until is not None and now >= state.patience_until
    if everybody or impatient:
        return replace(state, phase="opening", patience_until=None)
    return state


def _ready(state: ContinuityState) -> Ready:
    match state.phase:
        case "publishing":
            return Ready(publish=True)
        case "reclaiming":
            return Ready(reclaim=state.reclaiming, reason=state.reason)
        case "opening":
            return Ready(open=state.head, reason=state.reason)
        case _:
            return Ready(wake_at=state.patience_until, reason=state.reason)

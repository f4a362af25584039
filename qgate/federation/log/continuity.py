"""Whether our own log may go on where its store says it ended: what happens to a restored store. Pure.

A restored backup, or a standby that was promoted before it had caught up, may be behind what our peers have
had from us. To go on from there would sign a second entry for a number that is taken: a fork, for which every
peer would quarantine us. Therefore the sequencer asks this machine, and it compares three witnesses: the
store's system identifier and timeline with those of the last batch, the head that this gate noted in a file
of its own, and what peers say they have of us.

    state      | event                                        | next
    -----------+----------------------------------------------+-----------------------------------------------
    starting   | store seen                                   | asking; suspicious where the two do not agree
    asking     | a peer has more of us, or something else     | reclaiming from the one that has most
               | all known peers have answered, none has more | publishing: nothing was lost
               | there are none that could be asked           | publishing; suspicious: opening
               | some answered, patience is over              | opening: the silent ones may have more of us
               | nobody answered                              | asking: publishing waits, local writes do not
    reclaiming | our tail is back                             | the next one that has more, or asking, lost
               | it could not prove its claim                 | asking: it has nothing that we have not
               | it went away over it                         | asking: it is silent, and may have more
    asking,    | all have answered, or patience is over       | opening
    lost       |                                              |
    opening    | the incarnation is open                      | publishing
    publishing | a peer has more of us, or something else     | reclaiming from the one that has most

A machine that was restored as a whole, store and files, shows by nothing but its peers. So even who finds
nothing suspicious asks first; while nobody can hear us, nothing is lost by not signing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from qgate.federation.log.vector import EMPTY, Head

PATIENCE_S: Final = 5.0
"""How long silent peers are waited for once one has answered, where nothing is suspicious."""

SUSPICIOUS_PATIENCE_S: Final = 30.0
"""The same where the store is another, or something is known to be lost."""

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
    """A peer could not show what it claimed to have, though it answered."""

    pool: bytes


@dataclass(frozen=True, slots=True)
class TailAway:
    """A peer went away, or its store did, before it could show what it claimed to have."""

    pool: bytes


@dataclass(frozen=True, slots=True)
class Advanced:
    """We published up to here, or opened an incarnation."""

    head: Head


@dataclass(frozen=True, slots=True)
class Woke:
    """Time passed."""


Event = StoreSeen | PeersKnown | PeerHas | TailReclaimed | TailUnproven | TailAway | Advanced | Woke


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
    suspicious: bool = False  # the store is another than the one that was published from
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
            lost = noted is not None and not noted_ours
            reason = "peers are asked what they have of our log"
            if not same:
                reason = "the store is another than the one that was published from"
            if noted is not None and lost:
                reason = f"this gate had seen entry {noted.seq}, and the store does not have it"
            return replace(
                state,
                phase="asking",
                head=head,
                reason=reason,
                answered=frozenset(),  # at the start too: what was said before was said of another store
                claims={},
                reclaiming=None,
                suspicious=not same,
                lost=lost,
                patience_until=None,
            )
        case PeersKnown(pools):
            claims = {pool: head for pool, head in state.claims.items() if pool in pools}
            return replace(state, peers=pools, answered=state.answered & pools, claims=claims)
        case PeerHas(pool, head, ours):
            claims = {one: at for one, at in state.claims.items() if one != pool}
            if not ours:
                claims[pool] = head
            patience = state.patience_until
            if state.phase == "asking" and patience is None:
                patience = now + _patience(state)
            return replace(state, answered=state.answered | {pool}, claims=claims, patience_until=patience)
        case TailReclaimed(pool, head):
            claims = {one: at for one, at in state.claims.items() if one != pool}
            return replace(
                state,
                head=head,
                claims=claims,
                reclaiming=None,
                lost=True,
                phase="asking",
                answered=frozenset(),  # what they said was said of another end of our log
                patience_until=None,
            )
        case TailUnproven(pool):
            claims = {one: at for one, at in state.claims.items() if one != pool}
            return replace(
                state,
                claims=claims,
                reclaiming=None,
                phase="asking",
                answered=frozenset({pool}),
                patience_until=now + _patience(state),
            )
        case TailAway(pool):
            claims = {one: at for one, at in state.claims.items() if one != pool}
            answered = state.answered - {pool}
            patience = now + _patience(state) if answered else None
            return replace(
                state,
                claims=claims,
                reclaiming=None,
                phase="asking",
                answered=answered,
                patience_until=patience,
            )
        case Advanced(head):
            return replace(state, head=head, phase="publishing", suspicious=False, lost=False, reason="")
        case Woke():
            return state


def _decide(state: ContinuityState, now: float) -> ContinuityState:
    if state.phase in {"starting", "reclaiming", "opening"}:
        return state
    if state.claims:
        pool, head = max(state.claims.items(), key=lambda claim: (claim[1].seq, claim[0]))
        reason = f"a peer has entry {head.seq} of ours, which the store does not have"
        return replace(state, phase="reclaiming", reclaiming=pool, reason=reason, patience_until=None)
    if state.phase == "publishing":
        return state
    everybody = state.peers <= state.answered
    impatient = state.patience_until is not None and now >= state.patience_until
    if not everybody and not impatient:
        if state.patience_until is None and state.answered:
            return replace(state, patience_until=now + _patience(state))
        return state
    if state.lost or not everybody or (state.suspicious and not state.peers):
        return replace(state, phase="opening", patience_until=None)
    return replace(state, phase="publishing", suspicious=False, reason="", patience_until=None)


def _patience(state: ContinuityState) -> float:
    return SUSPICIOUS_PATIENCE_S if state.suspicious or state.lost else PATIENCE_S


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

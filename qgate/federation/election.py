"""Who becomes master of the catalogue when its master is dead: a majority of the group decides. Pure.

    candidate                                              voter (each pool for itself)
    the master has been dead to me for long enough
    would you vote for me?                            ──▶  judges; nothing is written
    a majority would: my ballot is mine, in my store
    I ask for your vote                               ──▶  judges; writes its ballot first, then says yes
    a majority did: a promotion, as a person signs it

There is one ballot a pool and *epoch*, written down before it is told, and the epoch is always the one
after that of the master who died. Two majorities have a pool in common, and that pool voted once: so no two
pools are elected into one epoch.

A pool whose store was restored may have forgotten a ballot. It neither votes nor stands for `ABSTAIN_S` from
then on: whoever was elected by the forgotten ballot signed its promotion within seconds of it, and meanwhile
the others hear of that. One pool that forgot elects nobody twice in any case: the master who died has no
vote, so two majorities of the others have two pools in common. (A person may promote at the same moment, and
a winner may be cut off for longer: then the epoch is frozen, as after any two promotions, until a person
resolves it.)

A vote goes only to a pool that has at least as much of the dead master's writes as the voter: what a majority
had is not lost. Candidates stand one after the other, in an order that follows from the epoch; if two still
took their own ballots, the later one in that order gives its own to the earlier. It may: nobody else counted
it, and it signs only while it holds it.

With fewer than three voters there is no majority without the dead one: nobody stands (`why_not_automatic`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from qgate.federation.catalogue import Group, Standing

STAGGER_S: Final = 10.0
"""Each candidate waits this much longer than the one before it."""

ABSTAIN_S: Final = 600.0
"""How long a pool whose store was restored takes no part: it may have voted, and not know of it."""

VOTERS_MIN: Final = 3

_RANK: Final = b"qgate-candidate"


@dataclass(frozen=True, slots=True)
class Question:
    """A candidate's. ``head`` is the last entry of the dead master's writes that it has; ``binding``: it asks
    for the vote, not only whether it would get it.
    """

    epoch: int
    master: bytes
    candidate: bytes
    head: int
    binding: bool


@dataclass(frozen=True, slots=True)
class Sight:
    """What a pool sees. ``dead_s``: for how long the master has been dead to it, None where it is not, or
    where it may be this pool that is cut off; ``head`` as in `Question`; ``ballot`` is for whom it voted in
    the next epoch, None for nobody. ``restored_s``: how long ago its store was found to be restored, 0 while
    that is being found out, None for never.
    """

    own: bytes
    standing: Standing
    automatic: bool
    dead_s: float | None
    after_s: float
    head: int = 0
    ballot: bytes | None = None
    restored_s: float | None = None
    abstain_s: float = ABSTAIN_S


def voters(group: Group | None) -> frozenset[bytes]:
    """Who votes: members and witnesses."""
    return frozenset() if group is None else frozenset((*group.members, *group.witnesses))


def majority(group: Group | None) -> int:
    """How many votes elect."""
    return len(voters(group)) // 2 + 1


def candidates(standing: Standing) -> tuple[bytes, ...]:
    """Pools that may stand, in their order: members whose word the group takes, without the dead master."""
    group = standing.group
    if group is None:
        return ()
    able = [one for one in group.members if one in group.promoters and one != standing.master]
    epoch = standing.epoch.to_bytes(8, "big")
    return tuple(
        sorted(able, key=lambda one: hashlib.blake2b(one, key=epoch, digest_size=16, person=_RANK).digest())
    )


def why_not_stand(sight: Sight) -> str:
    """Why this pool does not ask for votes now; empty where it does."""
    if problem := _why_no_election(sight):
        return problem
    order = candidates(sight.standing)
    if sight.own not in order:
        return "this pool may not be master"
    if sight.ballot not in {None, sight.own}:
        return "this pool voted for another one"
    if (sight.dead_s or 0.0) < sight.after_s + STAGGER_S * order.index(sight.own):
        return "another pool stands first"
    return ""


def judge(sight: Sight, question: Question) -> str:
    """Why a pool does not vote for a candidate; empty where it does."""
    standing = sight.standing
    if problem := _why_no_election(sight):
        return problem
    if (question.epoch, question.master) != (standing.epoch + 1, standing.master):
        return f"the epoch after {standing.epoch} is another one here"
    order = candidates(standing)
    if question.candidate not in order:
        return "the candidate may not be master"
    if question.head < sight.head:
        return f"the candidate has the master's writes up to {question.head}, here they go to {sight.head}"
    if sight.ballot is None or sight.ballot == question.candidate:
        return ""
    yields = sight.ballot == sight.own and order.index(question.candidate) < order.index(sight.own)
    return "" if yields else "this pool voted for another one"


def _why_no_election(sight: Sight) -> str:
    standing = sight.standing
    if not sight.automatic:
        return "here a person promotes"
    if len(voters(standing.group)) < VOTERS_MIN:
        return "fewer than three voters have no majority without the master"
    if sight.own not in voters(standing.group):
        return "this pool does not vote"
    if sight.restored_s is not None and sight.restored_s < sight.abstain_s:
        return "this pool's store was restored, and may have forgotten a vote"
    if standing.frozen:
        return "the catalogue is frozen"
    if standing.master is None:
        return "the catalogue has no master, by a person's word"
    if standing.master == sight.own:
        return "this pool is the master"
    if sight.dead_s is None:
        return "the master is not dead"
    if sight.dead_s < sight.after_s:
        return "the master has not been dead for long enough"
    return ""

"""Who may write the catalogue: the same answer from the same documents, whatever order they came in."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.catalogue import (
    NOBODY,
    Document,
    Group,
    Promotion,
    Standing,
    document_payload,
    first_group,
    fold,
    next_promotion,
    payload_document,
    read_document,
    resolution,
    sign_document,
    why_not_automatic,
)
from qgate.federation.log.problems import LogConflict, LogProblem
from qgate.federation.log.replica import Mastership, Reign
from tests.qgate.log_origin import NOW, Origin

POOLS = sorted((Origin() for _ in range(4)), key=lambda pool: pool.key)
HQ, GPU, BRANCH, STRANGER = POOLS
MEMBERS = (HQ.key, GPU.key, BRANCH.key)
GROUP = Group(1, MEMBERS, MEMBERS)


def signed(by: Origin, what: Group | Promotion, at: int = int(NOW)) -> Document:
    return sign_document(by.online, by.certificate_bytes, pool=by.key, what=what, at=at)


def promotion(by: Origin, epoch: int, master: Origin | None, through: int = 0) -> Document:
    return signed(by, Promotion(epoch, master.key if master else NOBODY, through))


FOUNDING = signed(HQ, GROUP)


def test_a_document_is_its_signers_word() -> None:
    document = promotion(HQ, 1, GPU, 7)
    assert read_document(document.raw) == document
    assert payload_document(document_payload(document)) == document
    for place in range(0, len(document.raw), 5):
        changed = bytearray(document.raw)
        changed[place] ^= 1
        with pytest.raises(LogProblem):
            read_document(bytes(changed))
    with pytest.raises(LogProblem, match="vouch"):
        sign_document(HQ.online, GPU.certificate_bytes, pool=HQ.key, what=GROUP, at=int(NOW))
    with pytest.raises(LogProblem, match="missing"):
        payload_document({})


@pytest.mark.parametrize(
    "what",
    [Group(1, (), ()), Group(1, MEMBERS, (STRANGER.key,)), Group(1, MEMBERS, MEMBERS, (HQ.key,)),
     Group(1, (b"short",), ()), Promotion(0, HQ.key, 0), Promotion(1, b"short", 0), Promotion(1, HQ.key, -1)],
)  # fmt: skip
def test_what_makes_no_sense_is_not_read(what: Group | Promotion) -> None:
    with pytest.raises(LogProblem):
        signed(HQ, what)


def test_the_highest_epoch_rules_and_old_ones_are_cut() -> None:
    standing = fold([FOUNDING, promotion(HQ, 1, HQ), promotion(GPU, 2, GPU, 30), promotion(GPU, 3, None, 44)])
    assert (standing.epoch, standing.master, standing.frozen) == (3, None, False)
    assert standing.reigns == (Reign(1, HQ.key, 30), Reign(2, GPU.key, 44))


def test_who_is_no_promoter_or_no_member_counts_for_nothing() -> None:
    few = signed(HQ, Group(1, MEMBERS, (HQ.key,)))
    assert fold([few, promotion(GPU, 1, GPU)]).epoch == 0
    assert fold([few, promotion(HQ, 1, STRANGER)]).epoch == 0
    assert fold([promotion(HQ, 1, HQ)]) == Standing(), "no group, no authority"
    usurper = signed(STRANGER, Group(2, (STRANGER.key,), (STRANGER.key,)))
    assert fold([FOUNDING, usurper, promotion(HQ, 1, HQ)]).group == GROUP


def test_the_same_decision_twice_is_one_and_two_decisions_freeze() -> None:
    same = [promotion(HQ, 1, GPU, 5), promotion(BRANCH, 1, GPU, 5)]
    assert fold([FOUNDING, *same]).master == GPU.key
    standing = fold(
        [FOUNDING, promotion(HQ, 1, HQ), promotion(GPU, 2, GPU, 5), promotion(BRANCH, 2, BRANCH, 5)]
    )
    assert standing.frozen
    assert standing.master is None
    assert {one.master for one in standing.contenders} == {GPU.key, BRANCH.key}
    resolved = fold(
        [FOUNDING, promotion(HQ, 1, HQ), promotion(GPU, 2, GPU, 5), promotion(BRANCH, 2, BRANCH, 5),
         promotion(HQ, 3, BRANCH, 0)]
    )  # fmt: skip
    assert (resolved.master, resolved.frozen) == (BRANCH.key, False)
    assert [reign.epoch for reign in resolved.reigns] == [1], "a contested epoch was nobody's"
    assert resolved.reigns[0].through == 5


def test_two_groups_of_one_serial_freeze_too() -> None:
    rival = signed(GPU, Group(1, (GPU.key, HQ.key), (GPU.key,)))
    assert fold([FOUNDING, rival, promotion(GPU, 1, GPU)]).frozen
    healed = signed(GPU, Group(2, MEMBERS, MEMBERS))
    assert not fold([FOUNDING, rival, healed, promotion(GPU, 1, GPU)]).frozen


@given(st.integers(0, 1_000_000))
@settings(max_examples=100, deadline=None)
def test_every_pool_folds_alike_and_never_sees_two_masters(seed: int) -> None:
    chance = random.Random(seed)
    documents = [FOUNDING]
    for _ in range(chance.randint(0, 12)):
        by, master = chance.choice(POOLS), chance.choice([*POOLS, None])
        documents.append(promotion(by, chance.randint(1, 5), master, chance.randint(0, 3)))
    expected = fold(documents)
    for _ in range(5):
        shuffled = documents * 2
        chance.shuffle(shuffled)
        assert fold(shuffled) == expected
    assert not (expected.frozen and expected.master)
    assert len({reign.epoch for reign in expected.reigns}) == len(expected.reigns)


@given(st.integers(0, 1_000_000))
@settings(max_examples=40, deadline=None)
def test_no_two_pools_write_in_one_epoch_of_one_fold(seed: int) -> None:
    chance = random.Random(seed)
    documents = [FOUNDING]
    for epoch in range(1, chance.randint(2, 6)):
        for _ in range(chance.choice([1, 1, 2])):
            by = chance.choice(POOLS[:3])
            documents.append(promotion(by, epoch, chance.choice(POOLS[:3]), chance.randint(0, 9)))
    mastership = fold(documents).mastership
    for epoch in range(1, 7):
        writers = set()
        for origin in POOLS[:3]:
            entry, _ = origin.make("catalogue", {"n": 1}, epoch=epoch, seq=1)
            if mastership.allows(entry)[0] == "apply":
                writers.add(origin.key)
        assert len(writers) <= 1


# --- what an admin may do


def refusal(call: Any, standing: Standing, **changes: Any) -> LogConflict:
    arguments = {"own": HQ.key, "master": GPU.key, "through": 0, "reason": ""} | changes
    with pytest.raises(LogConflict) as caught:
        call(standing, **arguments)
    return caught.value


def test_promotions_that_are_refused_say_why() -> None:
    ruled = fold([FOUNDING, promotion(HQ, 1, GPU)])
    frozen = fold([FOUNDING, promotion(HQ, 1, GPU), promotion(GPU, 1, HQ)])
    assert refusal(next_promotion, Standing()).code == "no-group"
    assert refusal(next_promotion, ruled, own=STRANGER.key).code == "not-promoter"
    assert refusal(next_promotion, ruled, master=STRANGER.key).code == "not-member"
    assert refusal(next_promotion, ruled).code == "unchanged"
    assert "resolve" in refusal(next_promotion, frozen).hint
    assert refusal(resolution, ruled).code == "not-frozen"
    made = resolution(frozen, own=HQ.key, master=GPU.key, through=0, reason="")
    assert made.epoch == 2
    assert next_promotion(ruled, own=HQ.key, master=NOBODY, through=3, reason="").master == NOBODY


def test_why_it_does_not_move_by_itself() -> None:
    assert "no catalogue group" in why_not_automatic(None)
    assert "no majority" in why_not_automatic(first_group(HQ.key, [GPU.key]))
    assert why_not_automatic(first_group(HQ.key, [GPU.key, BRANCH.key])) == ""
    assert why_not_automatic(Group(1, MEMBERS[:2], MEMBERS[:2], MEMBERS[2:])) == "", "a witness votes"


@pytest.mark.parametrize(
    ("epoch", "seq", "expected"),
    [(1, 5, "apply"), (1, 6, "rejected"), (2, 1, "rejected"), (3, 99, "apply"), (4, 1, "held")],
)
def test_what_an_old_master_wrote_counts_up_to_the_cut(epoch: int, seq: int, expected: str) -> None:
    mastership = Mastership(3, HQ.key, reigns=(Reign(1, HQ.key, 5), Reign(2, GPU.key, 9)))
    entry, _ = HQ.make("catalogue", {"n": 1}, epoch=epoch, seq=seq)
    assert mastership.allows(entry)[0] == expected

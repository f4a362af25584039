"""Elections of the catalogue's master: one winner an epoch, never against a majority, nothing of it lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.catalogue import Group, Standing, why_not_automatic
from qgate.federation.election import (
    ABSTAIN_S,
    STAGGER_S,
    Question,
    Sight,
    candidates,
    judge,
    majority,
    voters,
    why_not_stand,
)
from qgate.federation.log.problems import LogConflict
from qgate.federation.suspicion import ALIVE, DEAD
from qgate.federation.suspicion import Standing as Verdict
from qgate.gate import Gate
from qgate.store import catalogue as table
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import control
from tests.qgate.log_pools import until
from tests.qgate.peering import pair, pools

KEYS = tuple(bytes([n]) * 32 for n in range(1, 8))
MASTER, AFTER_S = KEYS[0], 60.0


def group(count: int, witnesses: int = 0) -> Group:
    members = KEYS[:count]
    return Group(1, members, members, KEYS[count : count + witnesses])


def sight(own: bytes, of: Group | None = None, **changes: object) -> Sight:
    standing = Standing(of or group(3), 4, MASTER)
    held = Sight(own, standing, automatic=True, dead_s=1000.0, after_s=AFTER_S, head=7)
    return replace(held, **changes)  # type: ignore[arg-type]


def question(candidate: bytes, *, epoch: int = 5, head: int = 7) -> Question:
    return Question(epoch, MASTER, candidate, head, binding=True)


def test_two_pools_are_refused_and_a_witness_makes_a_majority() -> None:
    assert "no majority" in why_not_automatic(group(2))
    assert why_not_automatic(group(2, witnesses=1)) == ""
    assert why_not_automatic(group(3)) == ""
    assert [majority(group(count)) for count in (3, 4, 5)] == [2, 3, 3]
    assert "fewer than three" in why_not_stand(sight(KEYS[1], group(2)))
    assert why_not_stand(sight(KEYS[1], group(2, witnesses=1))) == ""
    assert "may not be master" in why_not_stand(sight(KEYS[2], group(2, witnesses=1))), "a witness only votes"
    assert judge(sight(KEYS[2], group(2, witnesses=1)), question(KEYS[1])) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"automatic": False}, "a person promotes"),
        ({"dead_s": None}, "not dead"),
        ({"dead_s": AFTER_S - 1}, "long enough"),
        ({"own": MASTER}, "is the master"),
        ({"own": KEYS[6]}, "does not vote"),
        ({"standing": Standing(group(3), 4, MASTER, frozen=True)}, "frozen"),
        ({"standing": Standing(group(3), 4, None)}, "by a person's word"),
        ({"standing": Standing(None)}, "fewer than three"),
        ({"head": 8}, "writes up to 7, here they go to 8"),
        ({"ballot": KEYS[6]}, "voted for another"),
        ({"restored_s": 0.0}, "may have forgotten"),
        ({"restored_s": ABSTAIN_S - 1}, "may have forgotten"),
    ],
)  # fmt: skip
def test_a_vote_is_refused_with_the_reason(changes: dict[str, object], why: str) -> None:
    voter = replace(sight(KEYS[2]), **changes)  # type: ignore[arg-type]
    assert why in judge(voter, question(KEYS[1]))


def test_a_pool_whose_store_was_restored_takes_part_again_after_a_while() -> None:
    assert "may have forgotten" in why_not_stand(sight(KEYS[1], restored_s=0.0))
    assert why_not_stand(sight(KEYS[1], restored_s=ABSTAIN_S)) == ""
    assert judge(sight(KEYS[2], restored_s=ABSTAIN_S), question(KEYS[1])) == ""


def test_a_vote_is_for_this_epoch_and_a_member() -> None:
    voter = sight(KEYS[2])
    assert judge(voter, question(KEYS[1])) == ""
    assert "another one here" in judge(voter, question(KEYS[1], epoch=6))
    assert "another one here" in judge(voter, replace(question(KEYS[1]), master=KEYS[2]))
    assert "may not be master" in judge(voter, question(KEYS[6]))
    assert "may not be master" in judge(voter, question(MASTER)), "the dead one does not stand"


def test_candidates_stand_one_after_the_other_and_the_later_gives_way() -> None:
    first, second = candidates(sight(KEYS[1]).standing)
    assert why_not_stand(sight(first, dead_s=AFTER_S)) == ""
    assert why_not_stand(sight(second, dead_s=AFTER_S)) == "another pool stands first"
    assert why_not_stand(sight(second, dead_s=AFTER_S + STAGGER_S)) == ""
    assert judge(sight(second, ballot=second), question(first)) == ""
    assert judge(sight(first, ballot=first), question(second)) != ""
    assert "voted for another" in why_not_stand(sight(second, ballot=first))


@dataclass
class Voter:
    """A pool with its store: the ballots are on its disk, all else is gone with a crash."""

    own: bytes
    head: int
    ballots: dict[int, bytes] = field(default_factory=dict)
    campaign: set[bytes] | None = None
    restored_s: float | None = None


def play(
    chance: random.Random,
    judging: Callable[[Sight, Question], str] = judge,
    needed: Callable[[Group | None], int] = majority,
) -> int:
    """Questions and answers are lost, repeated and late; pools crash and stand again whenever they like, and
    in every other play stores are restored to what they were before anybody voted. How many were elected;
    AssertionError where that is more than one, or one that a majority was ahead of.
    """
    of = group(chance.randint(3, 6))
    standing = Standing(of, 4, MASTER)
    pools = {key: Voter(key, chance.choice((5, 6, 7))) for key in of.members if key != MASTER}
    wires: list[Callable[[], None]] = []
    winners: dict[bytes, int] = {}
    restores = chance.choice((0.0, 0.02))

    def seen(pool: Voter) -> Sight:
        dead = 1000.0 if chance.random() < 0.9 else None
        return Sight(pool.own, standing, True, dead, AFTER_S, pool.head, pool.ballots.get(5), pool.restored_s)

    def asked(voter: Voter, said: Question) -> None:
        if voter.own not in winners and not judging(seen(voter), said):
            voter.ballots[5] = said.candidate
            wires.append(partial(answered, pools[said.candidate], voter.own))

    def answered(candidate: Voter, voter: bytes) -> None:
        if candidate.campaign is None:
            return
        candidate.campaign.add(voter)
        if len(candidate.campaign) >= needed(of) and candidate.ballots.get(5) == candidate.own:
            winners[candidate.own] = candidate.head

    for _ in range(120):
        roll = chance.random()
        if roll < 0.25:
            candidate = chance.choice(list(pools.values()))
            if not why_not_stand(seen(candidate)):
                candidate.ballots[5], candidate.campaign = candidate.own, {candidate.own}
                said = Question(5, MASTER, candidate.own, candidate.head, binding=True)
                others = sorted(voters(of) - {MASTER, candidate.own})
                wires += [partial(asked, pools[key], said) for key in others]
        elif roll < 0.3:
            chance.choice(list(pools.values())).campaign = None
        elif roll < 0.3 + restores:
            restored = chance.choice(list(pools.values()))
            restored.ballots, restored.campaign, restored.restored_s = {}, None, 0.0
        elif wires:
            deliver = wires.pop(chance.randrange(len(wires)))
            if chance.random() < 0.8:
                deliver()
            if chance.random() < 0.2:
                wires.append(deliver)
        assert len(winners) <= 1
    for head in winners.values():
        assert sum(pool.head <= head for pool in pools.values()) >= majority(of), "a majority had more"
    return len(winners)


@given(st.integers(0, 1_000_000))
@settings(max_examples=150, deadline=None)
def test_nobody_else_is_ever_elected_into_an_epoch(seed: int) -> None:
    play(random.Random(seed))


def test_somebody_is_elected_as_a_rule() -> None:
    assert sum(play(random.Random(seed)) for seed in range(100)) > 30


BUGS: dict[str, dict[str, Any]] = {
    "votes for anybody": {"judging": lambda sight, said: judge(replace(sight, ballot=None), said)},
    "one vote less is enough": {"needed": lambda of: majority(of) - 1},
    "votes again after a restore": {
        "judging": lambda sight, said: judge(replace(sight, restored_s=None), said)
    },
    "votes for who is behind": {"judging": lambda sight, said: judge(replace(sight, head=0), said)},
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_break_the_promise(name: str) -> None:
    with pytest.raises(AssertionError):
        sum(play(random.Random(seed), **BUGS[name]) for seed in range(3000))


# --- real pools


def hold(gate: Gate, *dead: Gate) -> None:
    """Let a gate hold pools for dead, and all others for alive."""
    keys = {one.parts.keys.pool_key for one in dead}
    since = time.monotonic() - 1000.0

    def verdict(pool: bytes) -> Verdict:
        return Verdict(DEAD if pool in keys else ALIVE, since, since, doubt=False)

    gate.governing.elections._verdict = verdict


async def test_a_majority_elects_and_a_master_without_one_is_silent(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "gpu", "branch") as three:
        hq, gpu, branch = three
        for one, other in ((hq, gpu), (hq, branch), (gpu, branch)):
            await pair(one, other, level=3)
        await elected(hq, gpu, branch)
        await silent_without_a_majority(three)


async def elected(hq: Gate, gpu: Gate, branch: Gate) -> None:
    """The master dies to the others, and they agree on another one."""
    three = [hq, gpu, branch]
    key = {gate: gate.parts.keys.pool_key for gate in three}
    await until(lambda: all(a.peering.links.up(key[b]) for a in three for b in three if a is not b))
    await hq.catalogue.promote(None, by="test")
    await hq.catalogue.put("llama", {"quant": "Q4"}, by="test")

    async def everywhere() -> bool:
        return all([len(await gate.catalogue.records()) == 1 for gate in three])

    await until(everywhere)
    await until(lambda: all(gate.replication.ready.publish for gate in three))
    for gate in (gpu, branch):
        hold(gate, hq)
    assert not await gpu.governing.elections.look(), "here a person promotes"
    hold(branch)  # the gates look by themselves too, as soon as they may
    for gate in three:
        async with control(gate) as client:
            reply = await client.put("/failover/mode", json={"mode": "auto", "authority": True})
            assert (reply.status_code, reply.json()["needed"]) == (200, 2), reply.text
            assert sorted(reply.json()["voters"]) == ["branch", "gpu", "hq"]
            assert (await client.get("/catalogue")).json()["automatic"] is True
    assert not await gpu.governing.elections.look(), "nobody else holds the master for dead"
    async with gpu.parts.store.store.connection() as connection:
        assert await table.ballot(connection, 2) is None, "who would not win does not vote"
    hold(branch, hq)
    looks = (gpu.governing.elections.look(), branch.governing.elections.look())
    won = list(await asyncio.gather(*looks))
    assert sum(won) <= 1
    for _ in range(4):
        for gate in (gpu, branch):
            if not any(won):
                won = [await gate.governing.elections.look()]
    assert any(won)

    async def agreed() -> bool:
        masters = {(await gate.catalogue.status())["master"] for gate in three}
        return len(masters) == 1 and masters != {"hq"}

    await until(agreed)
    status = await hq.catalogue.status()
    assert (status["epoch"], status["frozen"]) == (2, False)
    assert status["promotions"][-1]["reason"].startswith("elected by ")
    with pytest.raises(LogConflict, match="written at"):
        await hq.catalogue.put("too-late", {}, by="test")
    winner = gpu if status["master"] == "gpu" else branch
    assert [row["kind"] for row in await winner.movement.journal.incidents()] == ["authority_moved"]
    await winner.catalogue.put("qwen", {"quant": "Q8"}, by="test")


async def silent_without_a_majority(three: list[Gate]) -> None:
    """The new master writes only while it hears a majority, or a person says that it may."""
    name = (await three[0].catalogue.status())["master"]
    master = next(gate for gate in three if gate.parts.directory.own_pool().name == name)
    others = [gate for gate in three if gate is not master]
    hold(master, *others)
    with pytest.raises(LogConflict, match="hears 1 of 3 voters"):
        await master.catalogue.put("gemma", {}, by="test")
    hold(master, others[0])
    await master.catalogue.put("gemma", {}, by="test")
    async with control(master) as client:
        reply = await client.put("/failover/mode", json={"mode": "manual", "authority": True})
    assert reply.json()["was"] == "auto"
    hold(master, *others)
    await master.catalogue.put("gemma", {"n": 2}, by="test")

"""A store that was restored: nothing is signed twice for one number, and what was lost comes back."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.log import continuity, replication
from qgate.federation.log.continuity import (
    PATIENCE_S,
    SUSPICIOUS_PATIENCE_S,
    Advanced,
    ContinuityState,
    Event,
    PeerHas,
    PeersKnown,
    Ready,
    StoreSeen,
    TailAway,
    TailReclaimed,
    TailUnproven,
    Woke,
    step,
)
from qgate.federation.log.problems import LogConflict
from qgate.federation.log.stream_ear import LogStream
from qgate.federation.log.vector import EMPTY, Head
from qgate.federation.peer import Peer
from qgate.store import Store, StoreUnavailableError
from qgate.store import log as table
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.log_life import life_of
from qgate.store.log_lost import restored_s
from tests.qgate.log_pools import TestPool, pair, running, until
from tunnel_proto.log_messages import Pull

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def head(seq: int, branch: int = 0) -> Head:
    return Head(bytes(16), seq, bytes([branch]) + seq.to_bytes(31, "big"))


class Machine:
    """The machine with its time."""

    def __init__(self) -> None:
        self.state, self.now = ContinuityState(), 100.0
        self.ready = Ready()

    def feed(self, *events: Event, after: float = 0.0) -> Ready:
        self.now += after
        for event in events:
            self.state, self.ready = step(self.state, event, self.now)
        return self.ready


def test_a_pool_without_peers_signs_at_once() -> None:
    assert Machine().feed(PeersKnown(frozenset()), StoreSeen(head(5), same=True)).publish


def test_it_asks_its_peers_before_it_signs() -> None:
    machine = Machine()
    assert not machine.feed(PeersKnown(frozenset({A, B})), StoreSeen(head(5), same=True)).publish
    assert not machine.feed(PeerHas(A, head(5), ours=True)).publish
    assert machine.feed(PeerHas(B, head(3), ours=True)).publish


def test_what_a_peer_said_before_the_look_at_the_store_was_said_of_another_store() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A})), PeerHas(A, head(5), ours=True))
    assert not machine.feed(StoreSeen(head(4), same=False)).publish, "a backup came back between the two"
    assert not machine.feed(Woke(), after=86_400.0).publish, "and nobody has been heard since"
    assert machine.feed(PeerHas(A, head(5), ours=False)).reclaim == A
    assert not machine.feed(StoreSeen(head(5), same=True)).publish, "another store is another question"


def test_a_silent_peer_is_waited_for_a_while_and_nobody_at_all_for_ever() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A, B})), StoreSeen(head(5), same=True))
    assert not machine.feed(Woke(), after=86_400.0).publish
    ready = machine.feed(PeerHas(A, head(5), ours=True))
    assert ready.wake_at == pytest.approx(machine.now + PATIENCE_S)
    assert not machine.feed(Woke(), after=PATIENCE_S - 0.1).publish
    assert machine.feed(Woke(), after=0.2).open == head(5), "who is silent may have more"


def test_what_a_peer_has_more_comes_back_before_an_incarnation_opens() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A, B})), StoreSeen(head(5), same=True))
    machine.feed(PeerHas(B, head(6), ours=False))
    assert machine.ready.reclaim == B
    machine.feed(PeerHas(A, head(9), ours=False))
    assert machine.ready.reclaim == B, "one at a time"
    machine.feed(TailReclaimed(B, head(6)))
    assert machine.ready.reclaim == A
    ready = machine.feed(TailReclaimed(A, head(9)))
    assert ready.open is None, "what they said was said of another end of our log"
    ready = machine.feed(PeerHas(A, head(9), ours=True), PeerHas(B, head(6), ours=True))
    assert ready.open == head(9)
    assert machine.feed(Advanced(head(10))).publish


def test_a_claim_that_cannot_be_shown_is_as_if_it_had_not_been_made() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A})), StoreSeen(head(5), same=True))
    machine.feed(PeerHas(A, head(99), ours=False))
    assert machine.ready.reclaim == A
    assert machine.feed(TailUnproven(A)).publish


def test_who_goes_away_over_a_claim_may_have_more_all_the_same() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A, B})), StoreSeen(head(5), same=True))
    machine.feed(PeerHas(B, head(5), ours=True), PeerHas(A, head(8), ours=False))
    assert machine.ready.reclaim == A
    ready = machine.feed(TailAway(A))
    assert (ready.publish, ready.open, ready.reclaim) == (False, None, None)
    assert machine.feed(PeerHas(A, head(8), ours=False)).reclaim == A, "it is back"
    machine.feed(TailAway(A))
    assert machine.feed(Woke(), after=PATIENCE_S + 1).open == head(5)


def test_another_server_that_lost_nothing_goes_on() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A})), StoreSeen(head(5), same=False))
    assert machine.feed(PeerHas(A, head(5), ours=True)).publish


def test_another_server_with_a_silent_peer_opens_an_incarnation() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A, B})), StoreSeen(head(5), same=False))
    machine.feed(PeerHas(A, head(5), ours=True))
    ready = machine.feed(Woke(), after=SUSPICIOUS_PATIENCE_S + 1)
    assert ready.open == head(5)


def test_what_this_gate_noted_itself_counts() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A})), StoreSeen(head(5), same=True, noted=head(7), noted_ours=False))
    assert machine.feed(PeerHas(A, head(5), ours=True)).open == head(5)


def test_a_contradiction_while_publishing_stops_it() -> None:
    machine = Machine()
    machine.feed(PeersKnown(frozenset({A})), StoreSeen(head(5), same=True), PeerHas(A, head(5), ours=True))
    assert machine.ready.publish
    assert machine.feed(PeerHas(A, head(5, branch=1), ours=False)).reclaim == A


@given(st.integers(0, 1_000_000))
@settings(max_examples=150, deadline=None)
def test_it_never_signs_over_what_an_answering_peer_has(seed: int) -> None:
    """Random restores and answers: when it signs, no peer that answered has anything that our log has not."""
    chance = random.Random(seed)
    peers = {A: chance.randint(0, 9), B: chance.randint(0, 9), C: chance.randint(0, 9)}
    ours = chance.randint(0, 9)
    machine = Machine()
    machine.feed(
        PeersKnown(frozenset(peers)), StoreSeen(head(ours) if ours else EMPTY, chance.random() < 0.5)
    )
    told: set[bytes] = set()
    for _ in range(40):
        ready = machine.ready
        if ready.reclaim is not None:
            if chance.random() < 0.2:
                told.discard(ready.reclaim)
                machine.feed(TailUnproven(ready.reclaim))
                peers[ready.reclaim] = 0
            else:
                ours = max(ours, peers[ready.reclaim])
                machine.feed(TailReclaimed(ready.reclaim, head(ours)))
        elif ready.open is not None:
            assert ready.open.seq == ours
            ours += 1
            machine.feed(Advanced(head(ours)))
        if machine.ready.publish:
            assert all(peers[pool] <= ours for pool in told)
            break
        pool = chance.choice([A, B, C])
        told.add(pool)
        seq = peers[pool]
        machine.feed(PeerHas(pool, head(seq) if seq else EMPTY, ours=seq <= ours), after=chance.random() * 5)
    assert machine.ready.publish


# --- with stores


class Stores:
    """Pools, each in a database of its own, which can be copied and put back."""

    def __init__(self, server: EmbeddedPostgres, administrator: asyncpg.Connection, folder: Path) -> None:
        self.server, self.administrator, self.folder = server, administrator, folder
        self.databases: dict[str, str] = {}
        self.pools: list[TestPool] = []

    async def new(self, name: str) -> TestPool:
        database = f"restore_{name}_{secrets.token_hex(4)}"
        await self.administrator.execute(f"CREATE DATABASE {database}")
        self.databases[name] = database
        store = await Store.open(self.server.dsn(database))
        pool = TestPool(name, store, note=self.folder / f"{name}.head")
        self.pools.append(pool)
        return pool

    async def back_up(self, pool: TestPool) -> None:
        database = self.databases[pool.name]
        await pool.store.close()
        await self.administrator.execute(f"CREATE DATABASE {database}_kept TEMPLATE {database}")
        pool.store = await Store.open(self.server.dsn(database))
        pool.make()

    async def restore(self, pool: TestPool, *, with_note: bytes | None = None) -> None:
        database = self.databases[pool.name]
        await pool.store.close()
        await self.administrator.execute(f"DROP DATABASE {database} WITH (FORCE)")
        await self.administrator.execute(f"CREATE DATABASE {database} TEMPLATE {database}_kept")
        pool.store = await Store.open(self.server.dsn(database))
        if with_note is not None and pool.note is not None:
            pool.note.write_bytes(with_note)
        pool.make()

    async def replace(self, pool: TestPool) -> None:
        """Put the backup in the place of a store while its gate runs."""
        database = self.databases[pool.name]
        await self.administrator.execute(f"DROP DATABASE {database} WITH (FORCE)")
        await self.administrator.execute(f"CREATE DATABASE {database} TEMPLATE {database}_kept")

    async def close(self) -> None:
        for pool in self.pools:
            await pool.store.close()
        for database in self.databases.values():
            await self.administrator.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
            await self.administrator.execute(f"DROP DATABASE IF EXISTS {database}_kept WITH (FORCE)")
        await self.administrator.close()


@pytest.fixture
async def stores(store_server: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Stores]:
    made = Stores(store_server, await asyncpg.connect(store_server.dsn()), tmp_path)
    yield made
    await made.close()


async def test_a_restored_pool_gets_its_tail_back_and_goes_on_as_another_incarnation(stores: Stores) -> None:
    hq, branch = await stores.new("hq"), await stores.new("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
    await stores.back_up(hq)
    assert hq.note is not None
    note = hq.note.read_bytes()
    async with running(hq, branch):
        await hq.say("nodes", {"n": 2}, {"n": 3})
        await branch.has(hq, 3)
        assert await hq.replication.sequencer.erase([2], "asked by its owner") == 1
        await until(lambda: branch.replication.head(hq.key).seq == 5)
        before = branch.replication.head(hq.key)
    assert await _restored_s(hq) is None
    await stores.restore(hq, with_note=note)  # the machine as a whole: store and files
    async with running(hq, branch):
        await hq.say("nodes", {"n": "after"})
        await branch.has(hq, 4)
        assert await branch.heard(hq) == [{"n": 1}, {"n": 2}, {"n": 3}, {"n": "after"}]
        assert [entry.seq for entry in hq.returned] == [3, 4], "state of ours came back"
        await until(lambda: branch.replication.head(hq.key).seq == before.seq + 2)
        after = branch.replication.head(hq.key)
        assert after.incarnation != before.incarnation
        assert not (await _quarantine(branch, hq))
        async with hq.store.connection() as connection:
            (erased,) = await table.entries_at(connection, hq.key, [2])
        assert erased.contents is None, "the backup had it still"
        await until(lambda: hq.replication.head(hq.key) == branch.replication.head(hq.key))
    restored_s = await _restored_s(hq)
    assert restored_s is not None
    assert 0 <= restored_s < 600, "it may have forgotten a vote"


async def _restored_s(pool: TestPool) -> float | None:
    async with pool.store.connection() as connection:
        return await restored_s(connection, await life_of(connection))


async def test_a_restored_pool_whose_peers_are_away_waits_and_takes_local_writes(stores: Stores) -> None:
    hq, branch = await stores.new("hq"), await stores.new("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
    await stores.back_up(hq)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 2})
        await branch.has(hq, 2)
    await stores.restore(hq)
    branch.links.cut.add(hq.key)
    hq.links.cut.add(branch.key)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 3})
        await until(lambda: hq.replication.ready.reason.startswith("this gate had seen"))
        assert hq.replication.signed == 0
        hq.links.reconnect(branch.key)
        branch.links.reconnect(hq.key)
        await branch.has(hq, 3)
        assert await branch.heard(hq) == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_a_promoted_standby_that_had_everything_goes_on_as_it_was(stores: Stores) -> None:
    hq, branch = await stores.new("hq"), await stores.new("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
        await until(lambda: branch.replication.head(hq.key).seq == 2)
        before = branch.replication.head(hq.key)
    async with hq.store.connection() as connection:
        await connection.execute("UPDATE log_head SET server = 'another/00000002'")
    hq.make()
    async with running(hq, branch):
        await hq.say("nodes", {"n": 2})
        await branch.has(hq, 2)
        assert branch.replication.head(hq.key).incarnation == before.incarnation


async def test_a_pool_that_forked_itself_is_cut_back_and_says_again_what_it_said(stores: Stores) -> None:
    """A restored pool signed before any peer could object: its own branch gives way to what peers have."""
    hq, branch = await stores.new("hq"), await stores.new("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
    await stores.back_up(hq)
    assert hq.note is not None
    note = hq.note.read_bytes()
    async with running(hq, branch):
        await hq.say("nodes", {"n": 2})
        await branch.has(hq, 2)
    await stores.restore(hq, with_note=note)
    hq.peers_by_key.clear()  # it does not know that anybody could object
    async with running(hq):
        await hq.say("nodes", {"n": "other"})
        await until(lambda: hq.replication.signed == 1)
    hq.make()
    hq.meet(branch)
    async with running(hq, branch):
        await branch.has(hq, 3, timeout_s=60)
        assert sorted(str(one["n"]) for one in await branch.heard(hq)) == ["1", "2", "other"]


async def _quarantine(pool: TestPool, origin: TestPool) -> str:
    async with pool.store.connection() as connection:
        return (await table.replica(connection, origin.key)).quarantine


async def test_contents_that_the_asked_peer_never_had_come_back_from_another(stores: Stores) -> None:
    """The peer that gives our tail back was not trusted with its contents; the next one was."""
    hq, branch, gpu = await stores.new("hq"), await stores.new("branch"), await stores.new("gpu")
    pair(hq, branch)
    pair(hq, gpu)
    hq.trust(branch, 1)
    async with running(hq, branch, gpu):
        await hq.say("nodes", {"n": 1})
        await gpu.has(hq, 1)
    await stores.back_up(hq)
    async with running(hq, branch, gpu):
        await hq.say("nodes", {"n": 2})
        await gpu.has(hq, 2)
        await until(lambda: _head(branch, hq) == _own_head(hq))
    await stores.restore(hq)
    hq.make()
    async with running(hq, branch):
        await until(lambda: hq.replication.sequencer.lost(10))
    async with running(hq, branch, gpu):
        await until(lambda: _all_found(hq))
        hq.trust(branch, 2)
        branch.links.changed(hq.key)
        await branch.has(hq, 2)
        assert [one["n"] for one in await branch.heard(hq)] == [1, 2]


async def _all_found(pool: TestPool) -> bool:
    return not await pool.replication.sequencer.lost(10)


def _own_head(pool: TestPool) -> object:
    return pool.replication.heads().get(pool.key)


def _head(pool: TestPool, origin: TestPool) -> object:
    return pool.replication.heads().get(origin.key)


async def test_a_log_that_was_begun_twice_is_taken_over_from_its_beginning(stores: Stores) -> None:
    """The store was made anew, without a backup and without its peers, and theirs is the later life."""
    anew, hq, branch = await stores.new("anew"), await stores.new("hq"), await stores.new("branch")
    anew = TestPool("hq", anew.store, identity=hq.identity, online=hq.online)
    async with running(anew):
        await anew.say("nodes", {"n": "alone"})
        await until(lambda: anew.replication.signed == 1)
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
    anew.make()
    pair(anew, branch)
    async with running(anew, branch):
        await branch.has(anew, 2)
        assert await branch.heard(anew) == [{"n": 1}, {"n": "alone"}]
        assert not await _quarantine(branch, anew)


# --- what comes between two steps of the driver


async def test_a_store_that_is_replaced_under_a_gate_is_looked_at_before_anything_is_signed(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate goes on, and its other connections reach the backup before the one that listens does."""
    hq, branch = await stores.new("hq"), await stores.new("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
    await stores.back_up(hq)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 2}, {"n": 3})
        await branch.has(hq, 3)
        monkeypatch.setattr(replication, "RETRY_S", 86_400.0)  # nobody listens any more
        branch.links.disconnect(hq.key)
        signed = hq.replication.signed
        await stores.replace(hq)
        await until(lambda: _said(hq, {"n": "after"}))
        hq.replication.look()
        await until(lambda: hq.replication.signed > signed or not hq.replication.ready.publish)
        assert hq.replication.signed == signed, "a second entry for a number that is taken"
        branch.links.reconnect(hq.key)
        await branch.has(hq, 4)
        assert [one["n"] for one in await branch.heard(hq)] == [1, 2, 3, "after"]
        assert not await _quarantine(branch, hq)


async def _said(pool: TestPool, payload: dict[str, str]) -> bool:
    """Whether something could be published: connections to a store that went have to be found dead first."""
    try:
        await pool.say("nodes", payload)
    except StoreUnavailableError:
        return False
    return True


async def test_a_peer_that_goes_away_with_our_tail_is_not_taken_for_a_liar(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq, branch = await stores.new("hq"), await stores.new("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
    await stores.back_up(hq)
    assert hq.note is not None
    note = hq.note.read_bytes()
    async with running(hq, branch):
        await hq.say("nodes", {"n": 2})
        await branch.has(hq, 2)
    await stores.restore(hq, with_note=note)
    asked = []
    pull = branch.replication.publisher._pull

    async def away_at_first(peer: Peer, ear: LogStream, question: Pull) -> None:
        if question.origin == hq.key:
            asked.append(question)
            if len(asked) == 1:
                raise StoreUnavailableError("the store is unavailable")
        await pull(peer, ear, question)

    monkeypatch.setattr(branch.replication.publisher, "_pull", away_at_first)
    async with running(hq, branch):
        await hq.say("nodes", {"n": "after"})
        await branch.has(hq, 3)
        assert [one["n"] for one in await branch.heard(hq)] == [1, 2, "after"]
        assert not await _quarantine(branch, hq)
        assert len(asked) > 1


async def test_nothing_at_all_is_signed_in_a_store_that_nobody_has_looked_at(stores: Stores) -> None:
    """Erasures too, which the gate makes again before it serves, are entries of the log."""
    hq = await stores.new("hq")
    async with running(hq):
        await hq.say("nodes", {"n": 1})
        await until(lambda: hq.replication.head(hq.key).seq == 2)
    await stores.back_up(hq)
    await stores.restore(hq)
    await hq.say("nodes", {"n": 2})
    assert await _restored_s(hq) == 0, "nor is a vote given in it"
    sequencer = hq.replication.sequencer
    assert not await sequencer.settled()
    assert await sequencer.run_batch() == 0
    with pytest.raises(LogConflict, match="before peers have told") as waits:
        await sequencer.erase([2], "asked by its owner")
    assert "meshctl pool log" in waits.value.hint
    assert (await sequencer.look()).own.head.seq == 2
    assert not await sequencer.settle("the life of another store")
    hq.replication._life = (await sequencer.look()).life
    hq.replication._peer_has(A, EMPTY, True, "the life of another store")
    assert not hq.replication.continuity.answered, "what was compared with another store is no answer"
    async with running(hq):
        await until(lambda: hq.replication.head(hq.key).seq == 3)
        assert await sequencer.erase([2], "asked by its owner") == 1


async def test_a_peer_that_never_shows_our_tail_stops_us_for_a_while_only(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq, branch, gpu = await stores.new("hq"), await stores.new("branch"), await stores.new("gpu")
    pair(hq, branch)
    pair(hq, gpu)
    monkeypatch.setattr(replication, "RECLAIM_S", 0.2)
    monkeypatch.setattr(continuity, "PATIENCE_S", 0.2)
    pull = branch.replication.publisher._pull

    async def silent_about_us(peer: Peer, ear: LogStream, question: Pull) -> None:
        if question.origin == hq.key:
            await asyncio.Event().wait()
        await pull(peer, ear, question)

    async with running(hq, branch, gpu):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
        await gpu.has(hq, 1)
        before = hq.replication.head(hq.key)
        monkeypatch.setattr(branch.replication.publisher, "_pull", silent_about_us)
        async with branch.store.connection() as connection:
            await connection.execute("UPDATE log_replicas SET seq = 99, hash = $1", bytes(32))
        branch.replication.pullers[hq.key].look()
        await until(lambda: branch.key in hq.replication._ignored)
        gpu.replication.pullers[hq.key].look()
        await hq.say("nodes", {"n": 2})
        await gpu.has(hq, 2)
        assert hq.replication.head(hq.key).incarnation != before.incarnation, "branch may have more"


async def test_the_claim_of_who_is_no_peer_any_more_stops_nobody(stores: Stores) -> None:
    hq, branch = await stores.new("hq"), await stores.new("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
        async with branch.store.connection() as connection:
            await connection.execute("UPDATE log_replicas SET seq = 99, hash = $1", bytes(32))
        hq.links.cut.add(branch.key)  # it can say so, and cannot be asked to show it
        branch.replication.pullers[hq.key].look()
        await until(lambda: not hq.replication.ready.publish)
        await hq.say("nodes", {"n": 2})
        assert hq.replication.signed == 1
        hq.peers_by_key.clear()
        hq.replication.look()
        await until(lambda: hq.replication.signed == 2)

"""Copies too many: told after a while, let go of, never below what is wanted. Copies that come: a few at a
time, in fair shares.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.capability.workers import Workers
from qgate.federation.blob_files import BlobFiles
from qgate.federation.blob_queue import AT_ONCE, next_fetches, share
from qgate.federation.blobs import LOST_AFTER_S, Holder, manifest_of, placement
from qgate.federation.copies import Copies, Sight, read_blob
from qgate.federation.log.pace import BURST, Pace
from qgate.federation.peer import Peer
from qgate.federation.surplus import USED_S, Copied, Taken, Word, ripen, too_many, why_it_stays
from qgate.gate import Gate
from qgate.store import Store
from qgate.store import blobs as table
from qgate.store.blobs import Blob, PeerBlob
from qgate.store.embedded import EmbeddedPostgres
from qgate.surplus_copies import SurplusCopies
from tests.qgate.gates import until
from tests.qgate.peering import know, pair, peer_of, pools
from tunnel_proto.blob_messages import CHUNK_MIN, chunk_hash
from tunnel_proto.errors import MeshError, RemoteProtocolError
from tunnel_proto.messages import ModelState
from tunnel_proto.packing import unpack

A, B, C, D, E = (bytes([n]) * 32 for n in range(1, 6))
FILE, OTHER = b"f" * 32, b"g" * 32
CALM_S = 3600.0


def copied(**changes: Any) -> Copied:
    held = Copied(2, (A, B), frozenset((A, B, C)), frozenset((A, B, C)), own=True)
    return replace(held, **changes)


def test_too_many_is_what_is_beyond_the_chosen_and_only_while_they_are_all_there() -> None:
    assert too_many(copied()) == {C}
    assert too_many(copied(there=frozenset((A, B)))) == {C}, "whose copy goes need not be there"
    assert too_many(copied(there=frozenset((A, C)))) == frozenset(), "a chosen one is away"
    assert too_many(copied(has=frozenset((A, C)))) == frozenset(), "a chosen one has not got it yet"
    assert too_many(copied(placed=(A,))) == frozenset(), "fewer are chosen than wanted"
    assert too_many(copied(own=False)) == frozenset(), "the origin has lost it: every copy is needed"
    assert too_many(copied(wanted=0, placed=())) == frozenset(), "wanting none removes none"


def test_it_takes_a_while_without_a_break() -> None:
    since, ripe = ripen({}, {FILE: frozenset((C,))}, 0.0, calm_s=CALM_S)
    assert ripe == {}
    since, ripe = ripen(since, {FILE: frozenset((C, D))}, CALM_S - 1, calm_s=CALM_S)
    assert ripe == {}
    since, ripe = ripen(since, {FILE: frozenset((C, D))}, CALM_S, calm_s=CALM_S)
    assert ripe == {FILE: (C,)}, "each pool has its own while"
    since, ripe = ripen(since, {}, CALM_S + 1, calm_s=CALM_S)
    assert (since, ripe) == ({}, {}), "a break takes it back at once"
    _, ripe = ripen(since, {FILE: frozenset((C,))}, CALM_S + 2, calm_s=CALM_S)
    assert ripe == {}
    assert ripen({(FILE, C): 0.0}, {FILE: frozenset((C,))}, 1e9, calm_s=0.0)[1] == {}, "0: never"


STORED = ModelState(name="llama", sha256=FILE.hex(), state="stored")
TAKEN = Taken(FILE, "box", "llama")
WALL = 2_000_000_000.0
LETS_GO = Word((A, B), (C,), linked=True)


@pytest.mark.parametrize(
    ("words", "models", "why"),
    [
        ([LETS_GO], [STORED], ""),
        ([], [STORED], "no origin"),
        ([Word((A, C), (), True)], [STORED], "wanted here"),
        ([LETS_GO, Word((C,), (), True)], [STORED], "wanted here"),
        ([LETS_GO, Word((A,), (), True)], [STORED], "does not call it"),
        ([replace(LETS_GO, linked=False)], [STORED], "away"),
        ([LETS_GO], [], "worker is away"),
        ([LETS_GO], [dataclasses.replace(STORED, pinned=True)], "pinned"),
        ([LETS_GO], [dataclasses.replace(STORED, state="resident")], "in use"),
        ([LETS_GO], [dataclasses.replace(STORED, state="loading")], "in use"),
        ([LETS_GO], [dataclasses.replace(STORED, queued=1)], "in use"),
        ([LETS_GO], [dataclasses.replace(STORED, last_used=WALL - USED_S + 1)], "lately"),
        ([LETS_GO], [dataclasses.replace(STORED, name="mine")], "somebody's"),
    ],
)
def test_what_a_holder_lets_go_of(words: list[Word], models: list[ModelState], why: str) -> None:
    found = why_it_stays(C, TAKEN, words, [("box", one) for one in models], wall=WALL)
    assert (why in found) if why else (found == "")


@dataclass
class Pool:
    """A pool of the simulation: whether it is there and has the file."""

    key: bytes
    there: bool = True
    has: bool = False
    away_since: float = 0.0


def counted(pools: Mapping[bytes, Pool], now: float) -> int:
    """Copies to count on: where a pool is, or was lately."""
    lately = (one for one in pools.values() if one.has and (one.there or now - one.away_since < LOST_AFTER_S))
    return sum(1 for _ in lately)


def play(chance: random.Random) -> int:
    """Two days of pools that come and go; how many copies were let go of."""
    pools = {key: Pool(key) for key in (A, B, C, D, E)}
    wanted, placed = chance.randint(1, 3), tuple[bytes, ...]()
    since: Mapping[tuple[bytes, bytes], float] = {}
    removed = 0
    now = 0.0
    while now < 2 * 86_400:
        now += chance.choice((5.0, 60.0, 300.0, 900.0))
        for pool in pools.values():
            if chance.random() < (0.02 if pool.there else 0.3):
                pool.there, pool.away_since = not pool.there, now
        before = counted(pools, now)
        away = {one.key: 0.0 if one.there else now - one.away_since for one in pools.values()}
        chosen = [key for key in placed if away[key] < LOST_AFTER_S]
        chosen.sort(key=lambda key: not pools[key].has)
        del chosen[wanted:]
        has = frozenset(one.key for one in pools.values() if one.has)
        holders = [Holder(key, key in has or key in chosen, 1, away[key]) for key in pools]
        already = [key for key in sorted(has - set(chosen)) if away[key] < LOST_AFTER_S]
        more = [*already, *placement(FILE, 1, wanted, holders)]
        placed = (*chosen, *more[: wanted - len(chosen)])
        there = frozenset(one.key for one in pools.values() if one.there)
        found = {FILE: too_many(Copied(wanted, placed, has, there, own=True))}
        since, ripe = ripen(since, found, now, calm_s=CALM_S)
        word = Word(placed, ripe.get(FILE, ()), linked=True)
        for pool in pools.values():
            if not pool.there or chance.random() < 0.2:
                continue  # it hears of this later
            if pool.key in word.placed:
                pool.has = pool.has or chance.random() < 0.5
            elif pool.has and not why_it_stays(pool.key, TAKEN, [word], [("box", STORED)], wall=WALL):
                pool.has = False
                removed += 1
        assert counted(pools, now) >= min(before, wanted)
    return removed


@given(st.integers(0, 1_000_000))
@settings(max_examples=40, deadline=None)
def test_copies_never_fall_below_what_is_wanted(seed: int) -> None:
    play(random.Random(seed))


def test_copies_are_let_go_of() -> None:
    assert sum(play(random.Random(seed)) for seed in range(10)) > 5


# --- a few at a time


def blob(origin: bytes, number: int, size: int = 10) -> PeerBlob:
    return PeerBlob(origin, bytes([number]) * 32, f"m{number}", size, bytes(32), 1, (C,))


def test_origins_take_turns_and_the_smallest_is_first() -> None:
    greedy = [blob(A, n, size=n) for n in range(1, 9)]
    begin, declined = next_fetches([*greedy, blob(B, 20, size=500)], [], 1000)
    assert (len(begin), declined) == (AT_ONCE, [])
    assert [(one.origin, one.size) for one in begin] == [(A, 1), (B, 500), (A, 2)]
    begin, _ = next_fetches(greedy, [blob(A, 30), blob(B, 31)], 1000)
    assert len(begin) == AT_ONCE - 2
    assert next_fetches(greedy, [blob(A, n) for n in range(AT_ONCE)], 1000) == ([], [])


def test_what_has_no_room_is_declined_and_room_is_given_once() -> None:
    begin, declined = next_fetches([blob(A, 1, 60), blob(B, 2, 60), blob(B, 3, 30)], [], 100)
    assert [one.size for one in begin] == [30, 60]
    assert [one.size for one in declined] == [60]


def test_bandwidth_is_shared_by_origin_and_is_never_more_than_all() -> None:
    running = {b"1": A, b"2": A, b"3": B}
    assert [share(90.0, running, name) for name in (b"1", b"2", b"3")] == [22.5, 22.5, 45.0]
    assert sum(share(90.0, running, name) for name in running) == 90.0
    assert share(90.0, {b"1": A}, b"1") == 90.0
    assert share(0.0, running, b"1") == 0.0, "no bound"


def test_another_share_forgives_no_debt() -> None:
    pace = Pace(1000.0, at=0.0).spent(BURST + 5000, 0.0)
    assert pace.wait(0.0) == pytest.approx(5.0)
    assert pace.at_rate(500.0, 0.0).wait(0.0) == pytest.approx(10.0)
    assert Pace(0.0).spent(1 << 40, 0.0).at_rate(1000.0, 0.0).wait(0.0) == 0.0


async def test_a_gate_fetches_a_few_at_a_time_and_all_in_the_end(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "gpu", "branch") as (hq, gpu, branch):
        replicating = branch.governing.replicating
        most = 0
        sizes = {hq: (30, 31, 32, 33), gpu: (200,)}  # what gpu wants is larger than all that hq wants
        for gate in (hq, gpu):
            await pair(gate, branch, level=2)
            shelf = BlobFiles(tmp_path / f"shelf-{gate.settings.name}", reserve=0)
            shelf.open()
            gate.governing.replicating.serving._files = shelf
            async with gate.parts.store.store.transaction() as connection:
                for chunks in sizes[gate]:
                    data = random.Random(chunks).randbytes(chunks * CHUNK_MIN)
                    parts = [data[at : at + CHUNK_MIN] for at in range(0, len(data), CHUNK_MIN)]
                    digest = hashlib.sha256(data)
                    made = manifest_of(digest.digest(), len(data), map(chunk_hash, parts), chunk=CHUNK_MIN)
                    (shelf.folder / f"{digest.hexdigest()}.gguf").write_bytes(data)
                    wanted = Blob(made.sha256, f"m{chunks}", made.size, made.root, 1, (), made.pack())
                    await table.put_blob(connection, wanted, by="test", at=datetime.now(UTC))
        preferences = branch.administration.preferences
        await preferences.set("federation.model_kb_s", 400, by="test")  # so that none is through too soon

        def together() -> int:
            nonlocal most
            running = [one for one in replicating._running.values() if not one.task.done()]
            most = max(most, len(running))
            return len({one.fetch.blob.origin for one in running})

        await until(lambda: together() == 2, 60)
        await preferences.set("federation.model_kb_s", 8000, by="test")

        async def whole() -> bool:
            together()
            return len(await asyncio.to_thread(replicating.files.whole)) == 5

        async with asyncio.timeout(120):
            while not await whole():
                await asyncio.sleep(0.05)
        assert 2 <= most <= AT_ONCE


# --- in a store


@pytest.fixture
async def gate(tmp_path: Path, store_server: EmbeddedPostgres) -> AsyncIterator[tuple[Gate, Gate]]:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await know(hq, peer_of(branch, level=2, gates=()))
        yield hq, branch


@dataclass
class Boxes:
    """The workers of a pool; ``refuses`` is what the next order hears."""

    orders: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    refuses: str = ""

    async def ask(self, name: str, verb: str, args: Mapping[str, Any], *, timeout: float) -> Any:
        assert timeout > 0
        self.orders.append((name, verb, dict(args)))
        if self.refuses:
            raise MeshError(self.refuses)
        return {"removed": args["model"]}


async def test_a_surplus_copy_is_removed_and_written_down(gate: tuple[Gate, Gate]) -> None:
    hq, branch = gate
    own, origin = hq.parts.keys.pool_key, branch.parts.keys.pool_key
    office, boxes = hq.administration.office, Boxes()
    surplus = SurplusCopies(
        office,
        cast(Workers, boxes),
        pool_key=own,
        linked=lambda pool: pool == origin,
        named=lambda pool: "branch" if pool == origin else "?",
    )
    places = {FILE: [("box", STORED)], OTHER: [("box", dataclasses.replace(STORED, sha256=OTHER.hex()))]}
    wanted = PeerBlob(origin, FILE, "llama", 10, bytes(32), 1, (own,))
    store = office.store

    async def say(said: PeerBlob) -> None:
        async with store.connection() as connection:
            await table.put_peer_blob(connection, said, b"r" * 32)

    await say(replace(wanted, placed=(A,), surplus=(own,)))
    assert await surplus.clear(places) is None, "what did not come as a copy is nobody's to remove"
    async with store.connection() as connection:
        await table.note_taken(connection, TAKEN, origin, office.now())
    await say(wanted)
    assert await surplus.clear(places) is None, "it is wanted"
    await say(replace(wanted, placed=(A,), surplus=(own,)))
    boxes.refuses = "llama is in memory, or on its way there"
    assert await surplus.clear(places) is None
    boxes.refuses = ""
    assert await surplus.clear(places) == FILE
    assert boxes.orders[-1] == ("box", "remove", {"model": f"llama@{FILE.hex()}", "idle": True})
    assert await surplus.clear(places) is None, "once"
    await hq.parts.audit.flush()
    details = [row["detail"] for row in await hq.parts.trail.entries(kind="admin", after=0)]
    (said,) = [one for one in details if one["what"] == "model.surplus"]
    assert (said["name"], said["pools"], said["worker"]) == ("llama", ["branch"], "box")


async def test_the_origin_says_it_after_a_while_and_takes_it_back(store: Store) -> None:
    now = [0.0]
    peers = [Peer(key, name, level=2) for key, name in ((A, "a"), (D, "d"))]
    copies = Copies(
        pool_key=B,
        peers=lambda: peers,
        linked=lambda _: True,
        calm_s=lambda: CALM_S,
        monotonic=lambda: now[0],
    )
    async with store.transaction() as connection:
        made = Blob(FILE, "llama", 10, bytes(32), 1, (A,), b"m")
        await table.put_blob(connection, made, by="test", at=datetime.now(UTC))
        for pool in (A, D):
            await table.put_holding(connection, pool, FILE, pool)

    async def told(*, own: bool = True) -> list[bytes]:
        sight = Sight(frozenset((FILE,)) if own else frozenset(), frozenset(), 0)
        async with store.transaction() as connection:
            await copies.reconcile(connection, sight)
            payloads = await connection.fetch(
                "SELECT payload FROM outbox WHERE stream = 'redundancy' ORDER BY id"
            )
        blobs = [one for row in payloads if (one := unpack(row["payload"], max_bytes=4096))["kind"] == "blob"]
        return list(blobs[-1].get("surplus", []))

    assert await told() == []
    now[0] = CALM_S
    assert await told() == [D]
    assert await told(own=False) == [], "the origin has lost its own"
    assert await told() == [], "the while begins anew"


async def test_a_pool_that_is_lost_is_replaced_and_a_pool_that_is_back_is_one_too_many(store: Store) -> None:
    now, up = [0.0], {A, C, D}
    peers = [Peer(key, name, level=2) for key, name in ((A, "a"), (C, "c"), (D, "d"))]
    copies = Copies(pool_key=B, peers=lambda: peers, linked=lambda pool: pool in up, monotonic=lambda: now[0])
    async with store.transaction() as connection:
        made = Blob(FILE, "llama", 10, bytes(32), 2, (A, C), b"m")
        await table.put_blob(connection, made, by="test", at=datetime.now(UTC))
        for pool in (A, C):
            await table.put_holding(connection, pool, FILE, pool)
        await table.put_holding(connection, D, table.ROOM, b"room", room=100)

    async def placed() -> set[bytes]:
        async with store.transaction() as connection:
            await copies.reconcile(connection, Sight(frozenset((FILE,)), frozenset(), 0))
            return set((await table.own_blobs(connection))[FILE].placed)

    assert await placed() == {A, C}
    up.discard(C)
    now[0] = LOST_AFTER_S - 1
    assert await placed() == {A, C}, "away for a while moves nothing"
    now[0] = LOST_AFTER_S + 1
    assert await placed() == {A, D}
    up.add(C)
    assert await placed() == {A, D}, "what was begun goes on"
    up.discard(D)
    now[0] = 3 * LOST_AFTER_S
    assert await placed() == {A, C}, "a copy that is there is better than one that would have to be made"


def test_an_older_gate_that_says_nothing_of_it_is_understood() -> None:
    said = Blob(FILE, "llama", 10, bytes(32), 1, (A,)).payload()
    assert "surplus" not in said, "and understands: its digests are of what it knows"
    assert read_blob(B, said).surplus == ()
    told = replace(Blob(FILE, "llama", 10, bytes(32), 1, (A,)), surplus=(C,)).payload()
    assert read_blob(B, told).surplus == (C,)
    assert read_blob(B, told).payload() == told
    with pytest.raises(RemoteProtocolError):
        read_blob(B, {**told, "surplus": [b"short"]})

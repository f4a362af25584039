"""Files between pools: every byte verified, nothing fetched twice, the wanted number of copies."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.blobs import (
    LATE_S,
    LOST_AFTER_S,
    REST_S,
    WINDOW,
    BytesCame,
    ChunkCame,
    Fetch,
    Holder,
    Manifest,
    Ready,
    SourceCame,
    SourceWent,
    WholeChecked,
    Woke,
    manifest_of,
    placement,
    read_manifest,
    step,
)
from qgate.federation.log.problems import LogProblem
from tunnel_proto.blob_messages import CHUNK_MIN, chunk_hash
from tunnel_proto.packing import pack

A, B, C, D = (bytes([n]) * 32 for n in range(1, 5))


def manifest(size: int, seed: int = 0) -> tuple[Manifest, bytes]:
    data = random.Random(seed).randbytes(size)
    hashes = [chunk_hash(data[at : at + CHUNK_MIN]) for at in range(0, size, CHUNK_MIN)]
    return manifest_of(hashlib.sha256(data).digest(), size, hashes, chunk=CHUNK_MIN), data


@given(st.integers(1, 5 * CHUNK_MIN))
@settings(max_examples=20, deadline=None)
def test_a_manifest_covers_every_byte_once(size: int) -> None:
    made, data = manifest(size)
    assert read_manifest(made.pack(), made.root) == made
    spans = [made.span(index) for index in range(len(made.hashes))]
    assert [start for start, _ in spans] == list(range(0, size, CHUNK_MIN))
    assert sum(length for _, length in spans) == size
    for index, (start, length) in enumerate(spans):
        chunk = data[start : start + length]
        assert made.right(index, chunk)
        assert not made.right(index, chunk[:-1])
        assert not made.right(index, bytes([chunk[0] ^ 1]) + chunk[1:])


def test_another_manifest_does_not_stand_for_the_root() -> None:
    made, _ = manifest(3 * CHUNK_MIN)
    other, _ = manifest(3 * CHUNK_MIN, seed=1)
    with pytest.raises(LogProblem, match="published"):
        read_manifest(other.pack(), made.root)
    of_text = pack([1, "s" * 32, made.size, made.chunk, b"".join(made.hashes)])
    of_a_list = pack([1, made.sha256, made.size, made.chunk, [0] * 32 * len(made.hashes)])
    for raw in (b"", b"\x90", made.pack()[:-1], made.pack() + b"\0", of_text, of_a_list):
        with pytest.raises(LogProblem, match="malformed"):
            read_manifest(raw, made.root)
    with pytest.raises(LogProblem, match="add up"):
        manifest_of(bytes(32), CHUNK_MIN * 3, [bytes(32)], chunk=CHUNK_MIN)


class Transfer:
    """The machine with its time."""

    def __init__(self, chunks: int, have: frozenset[int] = frozenset()) -> None:
        self.fetch, self.now = Fetch(chunks, have), 0.0
        self.ready = Ready()
        self.written: list[int] = []

    def feed(self, *events: object, after: float = 0.0) -> Ready:
        self.now += after
        for event in events:
            self.fetch, self.ready = step(self.fetch, event, self.now)  # type: ignore[arg-type]
            if self.ready.write is not None:
                self.written.append(self.ready.write)
        return self.ready


def test_a_window_of_chunks_is_asked_of_each_source() -> None:
    transfer = Transfer(20)
    assert transfer.feed(SourceCame(A)).ask == tuple((A, n) for n in range(WINDOW))
    assert transfer.feed(SourceCame(B)).ask == tuple((B, n) for n in range(WINDOW, 2 * WINDOW))
    assert transfer.feed(ChunkCame(A, 0, True)).ask == ((A, 2 * WINDOW),)


def test_a_wrong_chunk_costs_its_sender_all() -> None:
    transfer = Transfer(4)
    transfer.feed(SourceCame(A), SourceCame(B))
    ready = transfer.feed(ChunkCame(A, 1, False))
    assert ready.write is None
    assert {pool for pool, _ in ready.ask} == {B}
    assert transfer.feed(SourceCame(A)).ask == ()
    assert A not in transfer.fetch.sources


def test_what_was_not_asked_for_is_not_written() -> None:
    transfer = Transfer(10)
    transfer.feed(SourceCame(A))
    assert transfer.feed(ChunkCame(B, 0, True)).write is None
    assert transfer.feed(ChunkCame(A, 9, True)).write is None
    assert transfer.feed(ChunkCame(A, 0, True)).write == 0
    assert transfer.feed(ChunkCame(A, 0, True)).write is None, "once"


def test_a_late_source_rests_and_comes_back() -> None:
    transfer = Transfer(2)
    ready = transfer.feed(SourceCame(A))
    assert ready.wake_at == LATE_S
    ready = transfer.feed(Woke(), after=LATE_S)
    assert ready.ask == ()
    assert ready.wake_at == LATE_S + REST_S
    assert transfer.feed(Woke(), after=REST_S).ask == ((A, 0), (A, 1))


def test_a_restart_goes_on_where_it_was() -> None:
    transfer = Transfer(6, frozenset({0, 1, 4}))
    assert [index for _, index in transfer.feed(SourceCame(A)).ask] == [2, 3, 5]


def test_a_manifest_that_lied_fails_the_whole() -> None:
    transfer = Transfer(1)
    transfer.feed(SourceCame(A))
    assert transfer.feed(ChunkCame(A, 0, True)).check
    transfer.feed(WholeChecked(False))
    assert (transfer.fetch.state, transfer.fetch.have) == ("failed", frozenset())


@given(st.integers(0, 1_000_000))
@settings(max_examples=150, deadline=None)
def test_it_ends_with_every_chunk_written_once(seed: int) -> None:
    """Sources come, go, lie and stall; as long as one honest source returns the file is whole in the end."""
    chance = random.Random(seed)
    chunks = chance.randint(1, 30)
    transfer = Transfer(chunks)
    honest, liar = A, B
    pending: list[tuple[bytes, int]] = list(transfer.feed(SourceCame(honest), SourceCame(liar)).ask)
    pending = [(pool, index) for index, (pool, _) in transfer.fetch.asked.items()]
    for _ in range(4000):
        if transfer.fetch.state != "fetching":
            break
        roll = chance.random()
        if pending and roll < 0.7:
            pool, index = pending.pop(chance.randrange(len(pending)))
            right = pool == honest or chance.random() < 0.5
            ready = transfer.feed(ChunkCame(pool, index, right))
        elif roll < 0.8:
            gone = chance.choice([honest, liar])
            pending = [one for one in pending if one[0] != gone]
            transfer.feed(SourceWent(gone))
            ready = transfer.feed(SourceCame(gone))
        else:
            if chance.random() < 0.3:
                pending.clear()  # a stall: what was asked never comes
            ready = transfer.feed(Woke(), after=chance.random() * 200)
        pending += ready.ask
        assert all(
            sum(by == pool for by, _ in transfer.fetch.asked.values()) <= WINDOW for pool in (honest, liar)
        )
    assert transfer.fetch.state == "checking"
    assert sorted(transfer.written) == list(range(chunks))


# --- copies


def test_every_pool_places_alike_and_no_more_than_is_missing() -> None:
    holders = [Holder(A, True, 0), Holder(B, False, 100), Holder(C, False, 100), Holder(D, False, 5)]
    chosen = placement(bytes(32), 50, 2, holders)
    assert len(chosen) == 1
    assert chosen[0] in {B, C}, "D has no room"
    assert placement(bytes(32), 50, 2, holders[::-1]) == chosen
    assert set(placement(bytes(32), 50, 9, holders)) == {B, C}
    assert placement(bytes(32), 50, 1, holders) == ()


def test_a_pool_that_is_briefly_away_moves_nothing_and_a_lost_one_does() -> None:
    def holders(away: float) -> list[Holder]:
        return [Holder(A, True, 0), Holder(B, True, 0, away), Holder(C, False, 100)]

    assert placement(bytes(32), 50, 2, holders(LOST_AFTER_S - 1)) == ()
    assert placement(bytes(32), 50, 2, holders(LOST_AFTER_S + 1)) == (C,)


def test_files_spread_over_pools() -> None:
    pools = [Holder(bytes([n]) * 32, False, 100) for n in range(10)]
    first = [placement(hashlib.sha256(bytes([n])).digest(), 1, 1, pools)[0] for n in range(200)]
    assert len(set(first)) == 10


def test_a_chunk_that_comes_slowly_is_not_late() -> None:
    transfer = Transfer(2)
    transfer.feed(SourceCame(A))
    for _ in range(10):  # ten minutes for one chunk, of which something comes all the time
        ready = transfer.feed(BytesCame(A), after=LATE_S - 1)
        assert ready.ask == ()
    assert transfer.feed(ChunkCame(A, 0, True)).write == 0

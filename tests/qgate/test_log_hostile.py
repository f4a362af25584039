"""A peer, or a file, that means harm: nothing of it is kept, the gate stays up, and the reason is told."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.log.archive import (
    ArchiveReader,
    ArchiveReceipt,
    ArchiveWriter,
    make_receipt,
    read_receipt,
)
from qgate.federation.log.entry import Contents
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.replica import Forked, Gap, Refused
from qgate.federation.log.replicas import Arrived
from qgate.federation.log.sequencer import read_note
from qgate.federation.log.stream_ear import LogStream
from qgate.federation.log.vector import Head
from qgate.federation.peer import Peer
from qgate.store import log as table
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.log_origin import Origin
from tests.qgate.log_pools import NewPool, PipeStream, new_pools, pair, running, until
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.identity import Identity
from tunnel_proto.log_messages import (
    FRAME_MAX,
    TYPES,
    Decoder,
    Entries,
    Item,
    LogMessage,
    News,
    Place,
    Pull,
    Sorry,
    decode,
    encode,
)

KEY = bytes(32)
PLACE = Place(bytes(16), 0, bytes(32))

# --- messages


def test_messages_are_read_as_they_were_written() -> None:
    said: list[LogMessage] = [
        Pull(1, KEY, PLACE, ((5, bytes(32)),), (KEY,)),
        Entries(1, KEY, PLACE, (Item(b"e", bytes(32), b"p"), Item(b"f", missing="erased")), more=True),
        News(KEY, PLACE),
        Sorry(3, "not-told", "no"),
    ]
    decoder = Decoder()
    wire = b"".join(encode(one) for one in said)
    heard = [message for byte in wire for message in decoder.feed(bytes([byte]))]
    assert heard == said
    assert decoder.clean
    assert len(TYPES) == 8


def test_a_gigabyte_is_refused_by_its_length_alone() -> None:
    decoder = Decoder()
    with pytest.raises(RemoteProtocolError, match=f"1073741824 bytes where {FRAME_MAX}"):
        decoder.feed(struct.pack(">I", 1 << 30) + b"\x81")


def test_an_entry_too_large_is_refused_on_both_sides() -> None:
    with pytest.raises(LocalProtocolError, match="524288"):
        encode(Entries(1, KEY, PLACE, (Item(b"e", bytes(32), bytes((512 << 10) + 1)),)))
    import msgpack

    huge = {"t": "entries", "id": 1, "origin": KEY, "head": {"incarnation": bytes(16), "seq": 0, "hash": KEY},
            "items": [{"entry": b"e", "payload": bytes((512 << 10) + 1)}]}  # fmt: skip
    with pytest.raises(RemoteProtocolError, match="larger than allowed"):
        decode(msgpack.packb(huge))


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_noise_is_no_message(noise: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert decode(noise) is None, "at most a type that may be skipped"


def test_who_sends_more_than_was_asked_for_is_cut_off() -> None:
    class Near:
        reason = ""

        def set_compression(self, mode: str) -> None: ...
        def consumed(self, n: int) -> None: ...
        def reset(self, code: int, message: str = "") -> None:
            self.reason = message

    import asyncio

    async def drown() -> str:
        ear, near = LogStream(), Near()
        ear.attach(near)  # type: ignore[arg-type]
        for _ in range(2000):
            ear.data_received(encode(News(KEY, PLACE)), True)
        return near.reason

    assert "more log messages" in asyncio.run(drown())


# --- peers


@pytest.fixture
async def new_pool(store_server: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[NewPool]:
    async with new_pools(store_server, tmp_path) as new:
        yield new


def peer_of(origin: Origin, level: int = 3) -> Peer:
    return Peer(origin.key, "origin", level=level)


def items(origin: Origin, start: int = 0) -> list[Arrived]:
    return [Arrived(entry, contents) for entry, contents in origin.entries[start:]]


async def test_a_fork_quarantines_and_both_halves_are_kept(new_pool: NewPool) -> None:
    pool, origin = await new_pool("victim"), Origin()
    origin.last = 0
    async with pool.store.connection() as connection:
        from tests.qgate.log_pools import TABLE

        await connection.execute(TABLE)
    now = origin.certify(origin.online, 1)
    origin.write("nodes", {"n": 1})
    twin = origin.clone()
    origin.write("nodes", {"n": "to one"})
    twin.write("nodes", {"n": "to another"})
    replicas, peer = pool.replication.replicas, peer_of(origin)
    await replicas.take(peer, items(origin), [now])
    taken = await replicas.take(peer, items(twin))
    assert isinstance(taken.stopped, Forked)
    async with pool.store.connection() as connection:
        kept = await table.entries_at(connection, origin.key, [3])
        aside = await table.stranded(connection, origin.key)
        state = await table.replica(connection, origin.key)
    assert kept[0].entry == origin.entries[2][0]
    assert [row["hash"] for row in aside] == [twin.entries[2][0].hash]
    assert state.quarantine == "fork at 3"
    origin.write("nodes", {"n": "later"})
    stopped = (await replicas.take(peer, items(origin, 3))).stopped
    assert isinstance(stopped, Refused)
    assert stopped.code == "quarantined"
    await replicas.free(peer)
    assert (await replicas.take(peer, items(origin, 3))).accepted == 1


@pytest.mark.parametrize("how", ["tampered", "stranger", "payload", "gap"])
async def test_what_does_not_verify_leaves_no_trace(new_pool: NewPool, how: str) -> None:
    pool, origin = await new_pool("victim"), Origin()
    origin.write("nodes", {"n": 1})
    origin.write("nodes", {"n": 2})
    entry, contents = origin.entries[1]
    bad = {
        "tampered": [
            items(origin)[0],
            Arrived(replace(entry, raw=entry.raw[:-1] + bytes([entry.raw[-1] ^ 1])), contents),
        ],
        "stranger": [items(origin)[0], Arrived(*Origin().make("nodes", {"n": 1}))],
        "payload": [items(origin)[0], Arrived(entry, Contents(contents.salt, contents.payload + b"\0"))],
        "gap": [items(origin)[0], items(origin)[2]],
    }[how]
    replicas = pool.replication.replicas
    taken = await replicas.take(peer_of(origin), bad, [origin.certificate_bytes])
    assert isinstance(taken.stopped, Gap if how == "gap" else Refused)
    assert taken.accepted == 1, "what came before it is sound and stays"
    async with pool.store.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM log_entries") == 1


async def test_certificates_of_others_are_refused(new_pool: NewPool) -> None:
    pool, origin = await new_pool("victim"), Origin()
    with pytest.raises(LogProblem, match="another pool"):
        await pool.replication.replicas.take(peer_of(origin), items(origin), [Origin().certificate_bytes])
    with pytest.raises(LogProblem, match="malformed"):
        await pool.replication.replicas.take(peer_of(origin), items(origin), [b"no certificate"])


async def test_a_garbling_link_ends_a_stream_and_nothing_else(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    garbled = 0

    def garble(data: bytes) -> bytes:
        nonlocal garbled
        garbled += 1
        if garbled > 3:
            return data
        return struct.pack(">I", 1 << 30) + data[4:]

    hq.links.garble = garble
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
        assert garbled > 3


async def test_a_peer_that_asks_for_a_third_pools_log_gets_nothing(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    third = Origin()
    await hq.replication.replicas.take(peer_of(third), items(third), [third.certificate_bytes])
    answers: list[Any] = []

    class Asker:
        def data_received(self, data: bytes, boundary: bool) -> None:
            answers.extend(one for one in Decoder().feed(data) if not isinstance(one, News))

        def stream_closed(self, error: object) -> None: ...
        def eof_received(self) -> None: ...

    async with running(hq, branch):
        near, far = PipeStream("log"), PipeStream("log")
        near.other, far.other, near.receiver = far, near, Asker()
        hq.links.accept(hq.peers_by_key[branch.key], None, far)
        near.write(encode(Pull(7, third.key, PLACE)))
        await until(lambda: bool(answers))
        assert answers == [Sorry(7, "not-told", "that log is not told to you")]
        near.write(encode(News(KEY, PLACE)))
        await until(lambda: near.over)


async def test_a_liar_about_our_own_log_stops_us_once_and_not_for_long(
    new_pool: NewPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
        async with branch.store.connection() as connection:
            await connection.execute("UPDATE log_replicas SET seq = 99, hash = $1", os.urandom(32))
        puller, publisher = hq.replication.pullers[branch.key], hq.replication.publisher
        said, shown = Mock(wraps=publisher._heard), AsyncMock(wraps=puller.fetch_own)
        monkeypatch.setattr(publisher, "_heard", said)
        monkeypatch.setattr(puller, "fetch_own", shown)
        branch.replication.pullers[hq.key].look()
        await until(lambda: shown.await_count)
        await hq.say("nodes", {"n": 2})
        await until(lambda: hq.replication.signed >= 2)
        said.reset_mock()
        branch.replication.pullers[hq.key].look()
        await until(lambda: said.call_count >= 2)
        assert shown.await_count == 1, "it is not asked to show it again"
        assert hq.replication.ready.publish


# --- archives


def archive(origin: Origin, recipient: Identity, recipient_pool: bytes) -> bytes:
    writer = ArchiveWriter(
        origin.online, certificate=origin.certificate_bytes, sender=origin.key, recipient=recipient_pool,
        recipient_online=recipient.verify_key, made=1_800_000_000, entropy=os.urandom(48),
    )  # fmt: skip
    return b"".join((writer.opening, writer.message(b"one", 1), writer.message(b"two", 2), writer.end()))


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_an_archive_that_was_touched_anywhere_is_refused(data: st.DataObject) -> None:
    whole = archive(ORIGIN, READER, POOL)
    change = data.draw(st.sampled_from(["cut", "flip", "longer", "without a part"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = {
        "cut": whole[:place],
        "flip": whole[:place]
        + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))])
        + whole[place + 1 :],
        "longer": whole + os.urandom(30),
        "without a part": whole[: place // 2] + whole[place // 2 + 1 :],
    }[change]
    reader = ArchiveReader(READER, recipient=POOL)

    def read() -> None:
        for _ in reader.feed(changed):
            pass
        reader.end()

    with pytest.raises(LogProblem) as caught:
        read()
    assert caught.value.code.startswith("archive-")


def test_a_whole_archive_is_read_in_any_pieces() -> None:
    whole = archive(ORIGIN, READER, POOL)
    for size in (1, 7, 100, len(whole)):
        reader = ArchiveReader(READER, recipient=POOL)
        found = [m for at in range(0, len(whole), size) for m in reader.feed(whole[at : at + size])]
        assert found == [b"one", b"two"]
        assert reader.end().sender == ORIGIN.key


def test_an_archive_for_another_pool_or_key_is_not_readable_here() -> None:
    for reader, code in (
        (ArchiveReader(READER, recipient=bytes(32)), "archive-recipient"),
        (ArchiveReader(Identity.generate(), recipient=POOL), "archive-key"),
    ):
        with pytest.raises(LogProblem) as caught:
            list(reader.feed(archive(ORIGIN, READER, POOL)))
        assert caught.value.code == code


def test_a_receipt_is_its_recipients_word_and_nobody_elses() -> None:
    receipt = ArchiveReceipt(bytes(16), POOL, ORIGIN.key, Head(bytes(16), 5, bytes(32)), 1_800_000_000)
    raw = make_receipt(ORIGIN.online, ORIGIN.certificate_bytes, receipt)
    assert read_receipt(raw) == receipt
    for place in range(0, len(raw), 11):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(LogProblem):
            read_receipt(bytes(changed))
    forged = make_receipt(Identity.generate(), ORIGIN.certificate_bytes, receipt)
    with pytest.raises(LogProblem, match="cannot be trusted"):
        read_receipt(forged)


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    file = tmp_path / "log.head"
    assert read_note(file) is None
    for text in ("", "{}", '{"incarnation": "zz", "seq": 1, "hash": ""}', "[1]"):
        file.write_text(text)
        assert read_note(file) is None


ORIGIN, READER, POOL = Origin(), Identity.generate(), os.urandom(32)

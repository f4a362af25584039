"""Signs what is in the outbox: one gate of the pool at a time, never before the store has it for good.

A batch is one transaction: it takes the pool's advisory lock, locks the head row, moves rows from the outbox
into the log and moves the head, which must still be where it was read. What is told to peers is what was
committed.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from qgate.federation.log import hlc
from qgate.federation.log.entry import (
    INCARNATION_BYTES,
    SALT_BYTES,
    Contents,
    Entry,
    check_contents,
    make_entry,
)
from qgate.federation.log.erasure import erased_places, erasure_payload
from qgate.federation.log.incarnation import incarnation_payload
from qgate.federation.log.problems import LogConflict, LogProblem
from qgate.federation.log.snapshot import kept_of, make_snapshot
from qgate.federation.log.streams import ERASURE, INCARNATION
from qgate.federation.log.vector import EMPTY, Head
from qgate.store import Store, outbox
from qgate.store import log as table
from qgate.store.database import Connection
from qgate.store.log import OwnHead, Row
from qgate.store.log_life import life_of, note_server, server_of
from qgate.store.log_lost import lost_entries, note_restored
from tunnel_proto.certificate import OnlineKey, read_online
from tunnel_proto.packing import unpack

BATCH: Final = 200
"""Entries of one transaction: about 30 ms of signing, during which the gate does nothing else."""

LOST: Final = "lost"
LOST_PATIENCE_S: Final = 3600.0
"""How long peers may take to give contents back that were lost with the store."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a restored store shows by: where its log ends, on which server, in which life of it, and what this
    gate had noted.
    """

    own: OwnHead
    server: str
    life: str
    noted: Head | None
    noted_ours: bool


class Sequencer:
    """Writes this pool's log. `note` is this gate's own file of the newest head, None in tests without
    one.
    """

    def __init__(
        self,
        store: Store,
        *,
        online: OnlineKey,
        pool_key: bytes,
        gate: str,
        note: Path | None,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._online = online
        self._pool = pool_key
        self._gate = gate
        self._note = note
        self._clock = clock
        self._entropy = entropy

    async def look(self) -> StoreFacts:
        """Compare the store with what is known of it."""
        noted = read_note(self._note)
        async with self._store.transaction(snapshot=True) as connection:
            own = await table.own_head(connection)
            server = await server_of(connection)
            life = await life_of(connection)
            ours = True
            if noted is not None and noted != EMPTY:
                ours = await has_entry(connection, self._pool, noted)
        return StoreFacts(own, server, life, noted, ours)

    async def run_batch(self) -> int:
        """Sign up to `BATCH` rows; 0 where there are none, or another gate is at it."""
        async with self._store.transaction() as connection:
            if not await table.elected(connection) or not await self._settled(connection):
                return 0
            rows = await outbox.take(connection, BATCH)
            if not rows:
                return 0
            await self._check_key(connection)
            own = await self._begun(connection)
            made: list[Row] = []
            head, stamp = own.head, own.hlc
            for row in rows:
                stamp = hlc.tick(stamp, self._clock())
                contents = Contents(self._entropy(SALT_BYTES), row.payload)
                entry = self._entry(
                    head, stamp, row.stream, row.record, contents, version=row.version, epoch=row.epoch
                )
                made.append(Row(entry, contents, "mine"))
                head = Head(entry.incarnation, entry.seq, entry.hash)
            await self._commit(connection, own.head, made, stamp)
        self.note(head)
        return len(made)

    async def _check_key(self, connection: Connection) -> None:
        """A key that was replaced signs nothing more: peers would refuse it."""
        serial = read_online(self._online.certificate).serial
        known = await table.certificates(connection, self._pool)
        if any(one.serial > serial for one, _ in known.values()):
            raise LogProblem(
                "rotated",
                "the pool has another online key by now, and this gate signs with the old one",
                hint="copy keys/online.key and online.cert from the other gate, meshctl gate renew, restart",
            )

    async def open(self, cut: Head, reason: str) -> Head | None:
        """Begin an incarnation at ``cut``, and say again what was cut off beyond it.

        None, and nothing is done, where the log does not end at ``cut`` any more: a sibling was faster, and
        whoever asked has to look again.
        """
        async with self._store.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", table.SEQUENCER_LOCK)
            own = await table.own_head(connection, lock=True)
            if own.head != cut:
                return None
            await self._check_key(connection)
            head = await self._open(connection, own, reason)
            await note_restored(connection)
            await table.clear_claims(connection, self._pool)
            await table.drop_claims(connection)
        self.note(head)
        return head

    async def cut_back(self, cut: Head, why: str) -> int:
        """Take what we have beyond ``cut`` out of our log, to be published again: peers have other entries
        there.
        """
        async with self._store.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", table.SEQUENCER_LOCK)
            own = await table.own_head(connection, lock=True)
            if own.head.seq <= cut.seq:
                return 0
            rows = await table.entries_after(connection, self._pool, cut.seq, count=1_000_000, size=1 << 40)
            await table.strand(connection, self._pool, cut.seq, why)
            await self._say_again(connection, rows)
            await table.move_head(
                connection,
                own.head,
                cut,
                hlc=own.hlc,
                server=own.server,
                life=own.life,
                sequencer=self._gate,
            )
            return len(rows)

    async def reclaimed(
        self,
        entries: Sequence[tuple[Entry, Contents | None]],
        into: Callable[[Connection, Row], Awaitable[None]],
        *,
        erased: frozenset[int] = frozenset(),
    ) -> Head:
        """Add entries of our own that came back from a peer, whose signatures the caller has checked;
        ``into`` is called for each that is new, in the same transaction. Returns the head after them.

        Contents that are missing and not ``erased`` were withheld from that peer: they are lost until another
        one has them (`refill`), or for good (`give_up_lost`).
        """
        async with self._store.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", table.SEQUENCER_LOCK)
            own = await table.own_head(connection, lock=True)
            head, stamp = own.head, own.hlc
            fresh: list[Row] = []
            for entry, contents in entries:
                if entry.seq != head.seq + 1 or entry.previous != head.hash:
                    continue
                row = Row(
                    entry, contents, "mine", "" if contents else "erased" if entry.seq in erased else LOST
                )
                await into(connection, row)
                fresh.append(row)
                head = Head(entry.incarnation, entry.seq, entry.hash)
                stamp = max(stamp, entry.hlc)
            if fresh:
                await self._commit(connection, own.head, fresh, stamp, settled=False)
                await self._erase_again(connection, fresh)
                await note_restored(connection)
            await table.clear_claims(connection, self._pool)
        return head

    async def _erase_again(self, connection: Connection, returned: Sequence[Row]) -> None:
        """What was erased after the backup is in it: erase it as the log says."""
        for row in returned:
            if row.entry.stream == ERASURE and row.contents is not None:
                places = erased_places(row.contents.value(), before=row.entry.seq)
                await table.erase(connection, self._pool, places)

    async def lost(self, limit: int) -> list[int]:
        """Entries of our own whose contents no peer has given back yet."""
        async with self._store.connection() as connection:
            return [row.entry.seq for row in await lost_entries(connection, self._pool, limit=limit)]

    async def refill(
        self,
        entries: Sequence[tuple[Entry, Contents | None]],
        into: Callable[[Connection, Row], Awaitable[None]],
    ) -> int:
        """Put contents back that were lost; ``into`` is called for those that are their records' newest."""
        async with self._store.transaction() as connection:
            lost = {row.entry.hash: row for row in await lost_entries(connection, self._pool)}
            found: list[Row] = []
            for entry, contents in entries:
                row = lost.get(entry.hash)
                if row is None or contents is None:
                    continue
                check_contents(row.entry, contents)
                found.append(replace(row, contents=contents, reason=""))
                if await table.newest_of(connection, row.entry) == row.entry.seq:
                    await into(connection, found[-1])
            await table.set_states(connection, self._pool, found)
        return len(found)

    async def give_up_lost(self) -> int:
        """Erase what has been lost for `LOST_PATIENCE_S`, so that nobody waits for it; returns how many."""
        async with self._store.connection() as connection:
            rows = await lost_entries(connection, self._pool, older_s=LOST_PATIENCE_S)
        if not rows:
            return 0
        await self.erase([row.entry.seq for row in rows], "lost with the store, and no peer has it")
        return len(rows)

    async def settle(self, life: str) -> bool:
        """Nothing of the log was lost: it goes on in that life of the store. False where this is another one
        by now, which nobody has looked at.
        """
        async with self._store.connection() as connection:
            if await life_of(connection) != life:
                return False
            if (await table.own_head(connection)).life == life:
                return True
        async with self._store.transaction() as connection:
            own = await table.own_head(connection, lock=True)
            if await life_of(connection) != life:
                return False
            server = await server_of(connection)
            if own.head.seq and own.server != server:
                await note_restored(connection)
            await note_server(connection, server, life)
        return True

    async def settled(self) -> bool:
        """Whether anything may be signed: some gate of the pool has compared the store with its peers."""
        async with self._store.connection() as connection:
            return await self._settled(connection)

    async def erase(self, places: Sequence[int], reason: str) -> int:
        """Erase payloads of our log and say so in it. Returns how many had one. LogConflict ``waiting`` where
        nothing may be signed.
        """
        async with self._store.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", table.SEQUENCER_LOCK)
            if not await self._settled(connection):
                raise LogConflict(
                    "waiting",
                    "nothing can be said in the log before peers have told what they have of it",
                    hint="meshctl pool log says what publishing waits for; then erase again",
                )
            await self._check_key(connection)
            own = await self._begun(connection)
            there = await table.entries_at(connection, self._pool, places)
            erasable = [row.entry.seq for row in there if row.entry.stream not in {INCARNATION, ERASURE}]
            payload = erasure_payload(erasable, reason)
            erased = await table.erase(connection, self._pool, erasable)
            contents = Contents.of(payload, self._entropy(SALT_BYTES))
            stamp = hlc.tick(own.hlc, self._clock())
            entry = self._entry(own.head, stamp, ERASURE, self._entropy(16), contents)
            await self._commit(connection, own.head, [Row(entry, contents, "mine")], stamp)
        self.note(Head(entry.incarnation, entry.seq, entry.hash))
        return erased

    async def truncate(self, *, keep: int) -> int:
        """Sign a snapshot ``keep`` entries before the end and delete what it makes superfluous; returns how
        many entries went.
        """
        async with self._store.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", table.SEQUENCER_LOCK)
            own = await table.own_head(connection, lock=True)
            cut = own.head.seq - keep
            if cut <= 0:
                return 0
            await self._check_key(connection)
            (last,) = await table.entries_at(connection, self._pool, [cut])
            rows = await table.entries_after(connection, self._pool, 0, count=cut, size=1 << 40)
            kept = kept_of(row.entry for row in rows if row.entry.seq <= cut and row.contents is not None)
            head = Head(last.entry.incarnation, cut, last.entry.hash)
            snapshot = make_snapshot(
                self._online.identity, pool=self._pool, head=head, hlc=last.entry.hlc, kept=kept
            )
            return await table.truncate(connection, snapshot, [entry.seq for entry in kept])

    def note(self, head: Head) -> None:
        """Write the newest head into this gate's own file; a disk that is full costs one witness."""
        if self._note is None:
            return
        beside = self._note.with_name(f".{self._note.name}.part")
        try:
            beside.write_text(
                json.dumps({"incarnation": head.incarnation.hex(), "seq": head.seq, "hash": head.hash.hex()})
            )
            os.replace(beside, self._note)
        except OSError as error:
            log.warning("the head of the log cannot be noted", reason=error.strerror)

    # --- inside a transaction

    async def _settled(self, connection: Connection) -> bool:
        """The fence: nothing is signed in a life of the store that nobody compared with the last one, or
        against a peer's word.
        """
        own = await table.own_head(connection, lock=True)
        return own.life == await life_of(connection) and not await table.contradicted(connection)

    async def _begun(self, connection: Connection) -> OwnHead:
        """The head, locked; a log that is empty is begun."""
        own = await table.own_head(connection, lock=True)
        if own.head.seq == 0:
            head = await self._open(connection, own, "the log begins")
            own = OwnHead(head, hlc.tick(own.hlc, self._clock()), own.server, own.life)
        return own

    async def _open(self, connection: Connection, own: OwnHead, reason: str) -> Head:
        contents = Contents.of(incarnation_payload(own.head, reason), self._entropy(SALT_BYTES))
        stamp = hlc.tick(own.hlc, self._clock())
        entry = self._entry(
            Head(self._entropy(INCARNATION_BYTES), own.head.seq, own.head.hash),
            stamp,
            INCARNATION,
            self._entropy(16),
            contents,
        )
        await self._commit(connection, own.head, [Row(entry, contents, "mine")], stamp)
        return Head(entry.incarnation, entry.seq, entry.hash)

    def _entry(
        self,
        after: Head,
        stamp: int,
        stream: str,
        record: bytes,
        contents: Contents,
        *,
        version: int = 1,
        epoch: int = 0,
    ) -> Entry:
        return make_entry(
            self._online.identity,
            pool=self._pool,
            incarnation=after.incarnation,
            seq=after.seq + 1,
            previous=after.hash,
            hlc=stamp,
            stream=stream,
            record=record,
            contents=contents,
            version=version,
            epoch=epoch,
        )

    async def _commit(
        self, connection: Connection, before: Head, rows: list[Row], stamp: int, *, settled: bool = True
    ) -> None:
        last = rows[-1].entry
        await connection.execute("SET LOCAL synchronous_commit = on")
        await table.append(connection, rows)
        own = await table.own_head(connection)
        server, life = own.server, own.life
        if settled:
            server, life = await server_of(connection), await life_of(connection)
        moved = await table.move_head(
            connection,
            before,
            Head(last.incarnation, last.seq, last.hash),
            hlc=stamp,
            server=server,
            life=life,
            sequencer=self._gate,
        )
        assert moved, "the head row is locked"
        await table.tell(connection, f"head {last.seq}")

    async def _say_again(self, connection: Connection, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.entry.stream not in {INCARNATION, ERASURE} and row.contents is not None:
                value = unpack(row.contents.payload, max_bytes=len(row.contents.payload), max_items=10_000)
                await outbox.publish(
                    connection,
                    stream=row.entry.stream,
                    record=row.entry.record,
                    payload=value,
                    epoch=row.entry.epoch,
                )


async def has_entry(connection: Connection, origin: bytes, head: Head) -> bool:
    """Whether a log in the store has that very entry, or had it once: it is truncated beyond it, or the
    entry is of an incarnation that another one has followed, whose tail was given up.
    """
    if head == EMPTY:
        return True
    known = (await table.known_at(connection, origin, [head.seq])).get(head.seq)
    if known is not None and known.hash == head.hash:
        return True
    if known is None and head.seq <= await table.snapshot_seq(connection, origin):
        return True
    return await table.is_past(connection, origin, head.incarnation)


def read_note(path: Path | None) -> Head | None:
    """The head that this gate noted last; None where it noted none, or the file is damaged."""
    if path is None:
        return None
    try:
        document = json.loads(path.read_text())
        return Head(
            bytes.fromhex(document["incarnation"]), int(document["seq"]), bytes.fromhex(document["hash"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def sign_all(sequencer: Sequencer) -> int:
    """Batches until the outbox is empty; other tasks get their turn between two."""
    total = 0
    while count := await sequencer.run_batch():
        total += count
        await asyncio.sleep(0)
    return total

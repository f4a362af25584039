"""Logs as administrators see them: how replication goes, whether chains hold, copies, archives, erasure."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from qgate.federation.log import hlc
from qgate.federation.log.archive import (
    MAGIC,
    ArchiveReader,
    ArchiveReceipt,
    ArchiveWriter,
    make_receipt,
    read_receipt,
)
from qgate.federation.log.chain import ChainCheck
from qgate.federation.log.problems import LogConflict, LogProblem
from qgate.federation.log.publisher import bounded, item_for, place
from qgate.federation.log.redundancy import Copy, redundancy
from qgate.federation.log.replica import Forked, Gap, Refused
from qgate.federation.log.replicas import Arrived, arrived, own_certificates
from qgate.federation.log.replication import Replication
from qgate.federation.log.sequencer import has_entry
from qgate.federation.log.snapshot import read_snapshot
from qgate.federation.log.streams import OWN_STREAMS, STREAMS
from qgate.federation.log.telling import told
from qgate.federation.log.vector import EMPTY, Head
from qgate.federation.peer import Peer
from qgate.governance.office import Office, iso
from qgate.governance.problems import UnknownNameError
from qgate.governance.proving import Turns
from qgate.store import log as table
from qgate.store import log_archives
from qgate.store.log import Row
from qgate.store.outbox import waiting
from tunnel_proto.certificate import read_online
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.identity import fingerprint
from tunnel_proto.log_messages import Certificates, Decoder, Entries, Item, LogMessage, Snapshot, encode

CHUNK: Final = 500
PROVED_CHUNK: Final = 100
CHUNK_BYTES: Final = 1024 * 1024
LIST_MAX: Final = 1000
PIECE: Final = 256 * 1024


class Logs:
    """What people ask about this pool's log and its replicas."""

    def __init__(self, office: Office, replication: Replication) -> None:
        self._office = office
        self._replication = replication
        self._pool = replication.pool_key

    # --- reading

    async def status(self) -> dict[str, Any]:
        """Every log in the store, ours first, and why signing waits where it does."""
        async with self._office.store.transaction(snapshot=True) as connection:
            own = await table.own_head(connection)
            replicas = await table.replicas(connection)
            counts = await table.counts(connection)
            unsigned = await waiting(connection)
            archives = await log_archives.archives(connection)
        ready = self._replication.ready
        rows = [
            {
                "pool": self._name(self._pool),
                "own": True,
                "state": "publishing" if ready.publish else "waiting",
                "problem": ready.reason,
                **_place(own.head),
                "entries": sum(counts.get(self._pool, {}).values()),
                "held": 0,
                "behind": unsigned,
                "heard_at": None,
            }
        ]
        for peer in self._replication.peers.peers():
            replica = replicas.get(peer.pool_key)
            puller = self._replication.pullers.get(peer.pool_key)
            progress = puller.progress if puller is not None else None
            states = counts.get(peer.pool_key, {})
            problem = progress.problem if progress else ""
            if replica is not None and replica.quarantine:
                problem = f"quarantined: {replica.quarantine}"
            rows.append(
                {
                    "pool": peer.name,
                    "own": False,
                    "state": "quarantined"
                    if replica is not None and replica.quarantine
                    else (progress.state if progress else peer.state),
                    "problem": problem,
                    **_place(replica.head if replica else EMPTY),
                    "entries": sum(states.values()),
                    "held": states.get("held", 0) + states.get("failed", 0),
                    "behind": progress.behind if progress else None,
                    "heard_at": progress.heard_at if progress else None,
                }
            )
        return {
            "items": rows,
            "publishing": ready.publish,
            "waits_for": "" if ready.publish else ready.reason,
            "unsigned": unsigned,
            "archives": [
                {
                    "id": row["id"].hex(),
                    "pool": self._name(row["pool"]),
                    "direction": row["direction"],
                    "entries": row["entries"],
                    "receipt": row["receipt"],
                    "at": iso(row["at"]),
                }
                for row in archives
            ],
        }

    async def entries(
        self, pool: str | None, *, after: int | None, limit: int, stream: str | None, held: bool
    ) -> list[dict[str, Any]]:
        """Entries of one log without their payloads; without ``after`` the newest ones."""
        origin = self._key(pool)
        limit = max(1, min(limit, LIST_MAX))
        async with self._office.store.transaction(snapshot=True) as connection:
            if held:
                rows = (await table.waiting_entries(connection, origin))[:limit]
            else:
                if after is None:
                    head = self._replication.head(origin)
                    after = max(0, head.seq - limit)
                rows = await table.entries_after(
                    connection, origin, after, count=limit, size=1 << 40, stream=stream
                )
        return [
            {
                "seq": row.entry.seq,
                "stream": row.entry.stream,
                "record": row.entry.record.hex(),
                "epoch": row.entry.epoch,
                "at": iso(datetime.fromtimestamp(hlc.seconds(row.entry.hlc), UTC)),
                "state": "published" if row.state == "mine" else row.state,
                "reason": row.reason,
                "bytes": row.entry.size,
                "readable": row.contents is not None,
                "hash": row.entry.hash.hex(),
            }
            for row in rows
        ]

    async def stranded(self) -> list[dict[str, Any]]:
        """What was put aside: other halves of forks, tails of restored logs."""
        async with self._office.store.connection() as connection:
            rows = await table.stranded(connection)
        return [
            {
                "pool": self._name(row["origin"]),
                "seq": row["seq"],
                "stream": row["stream"],
                "why": row["why"],
                "hash": row["hash"].hex(),
                "at": iso(row["at"]),
            }
            for row in rows
        ]

    # --- checking

    async def verify(self, pool: str | None) -> dict[str, Any]:
        """Check every byte of one log, or of all: signatures, links, commitments, holes; and that the
        tables made of it say what it says.
        """
        peers = self._replication.peers.peers()
        keys = [self._key(pool)] if pool else [self._pool, *(one.pool_key for one in peers)]
        items = [await self._verify(key) for key in keys]
        return {"ok": all(one["ok"] for one in items), "items": items}

    async def _verify(self, origin: bytes) -> dict[str, Any]:
        async with self._office.store.transaction(snapshot=True) as connection:
            known = await table.certificates(connection, origin)
            raw = await table.snapshot_of(connection, origin)
            head = (
                (await table.own_head(connection)).head
                if origin == self._pool
                else (await table.replica(connection, origin)).head
            )
            quarantine = (await table.replica(connection, origin)).quarantine
            check = ChainCheck(
                origin, {key: one for key, (one, _) in known.items()}, read_snapshot(raw) if raw else None
            )
            after, going, turns = 0, True, Turns()
            while going and (
                rows := await table.entries_after(
                    connection, origin, after, count=PROVED_CHUNK, size=CHUNK_BYTES
                )
            ):
                for row in rows:
                    after = row.entry.seq
                    withheld = row.contents is None and row.reason != "erased"
                    if not check.feed(row.entry, row.contents, withheld=withheld and origin != self._pool):
                        going = False
                        break
                    await turns.pause()
            finding = check.end(head)
            peer = self._replication.peers.peer(origin)
            differs: list[str] = []
            if finding is None and peer is not None:
                differs = await self._replication.replicas.differing(connection, peer)
        return {
            "pool": self._name(origin),
            "ok": finding is None and not quarantine and not differs,
            "entries": check.entries,
            "head": head.seq,
            "erased": check.erased,
            "withheld": check.withheld,
            "first_bad_seq": finding[0] if finding else None,
            "problem": _problem(finding, quarantine, differs),
        }

    async def repair(self, pool: str, *, by: str) -> dict[str, Any]:
        """Make the tables anew from a peer's log."""
        peer = self._peer(pool)
        applied = await self._replication.replicas.rebuild(peer)
        await self._office.changed("log.repair", pool, by, {"applied": applied})
        return {"pool": pool, "applied": applied}

    async def release(self, pool: str, *, by: str) -> dict[str, Any]:
        """End a pool's quarantine."""
        peer = self._peer(pool)
        await self._replication.replicas.free(peer)
        if (puller := self._replication.pullers.get(peer.pool_key)) is not None:
            puller.progress.state, puller.progress.problem = "waiting", ""
            puller.look()
        await self._office.changed("log.release", pool, by)
        return await self.status()

    async def erase(self, places: list[int], *, reason: str, by: str) -> dict[str, Any]:
        """Erase payloads of our own log, here and at every pool that has them."""
        erased = await self._replication.sequencer.erase(places, reason)
        await self._office.changed("log.erase", "own", by, {"entries": len(places), "reason": reason})
        return {"erased": erased}

    # --- copies

    async def redundancy(self) -> dict[str, Any]:
        """Who has a readable copy of what we published."""
        wanted: int = self._office.directory.setting("replication.copies")
        async with self._office.store.transaction(snapshot=True) as connection:
            head = (await table.own_head(connection)).head
            said = await table.copies(connection)
            counted = await connection.fetch(
                """
                SELECT stream, count(*) AS n FROM log_entries WHERE origin = $1
                GROUP BY stream ORDER BY stream
                """,
                self._pool,
            )
        now = self._office.clock()
        streams = {row["stream"]: row["n"] for row in counted}
        items = []
        for peer in self._replication.peers.peers():
            if peer.state != "paired":
                continue
            row = said.get(peer.pool_key)
            unreadable = [
                name
                for name in streams
                if name not in OWN_STREAMS and not told(peer, name, origin=self._pool)
            ]
            copy = Copy(
                peer.name,
                row["seq"] if row else 0,
                now - row["at"].timestamp() if row else float("inf"),
                row["how"] if row else "",
                not unreadable,
                self._replication.linked(peer.pool_key),
            )
            items.append((copy, unreadable))
        verdict = redundancy(head.seq, wanted, [copy for copy, _ in items])
        return {
            "state": verdict.state,
            "wanted": verdict.wanted,
            "setting": wanted,
            "whole": verdict.whole,
            "partial": verdict.partial,
            "head": head.seq,
            "streams": streams,
            "items": [
                {
                    "pool": copy.pool,
                    "seq": copy.seq,
                    "behind": max(0, head.seq - copy.seq),
                    "heard_s": None if copy.age_s == float("inf") else round(copy.age_s, 1),
                    "how": copy.how,
                    "link": "up" if copy.up else "down",
                    "not_told": unreadable,
                }
                for copy, unreadable in items
            ],
        }

    # --- archives

    async def export(self, pool: str, *, whole: bool = False) -> AsyncIterator[bytes]:
        """What that pool lacks of our log (``whole``: all of it), sealed to it, piece by piece."""
        peer = self._peer(pool)
        if peer.state != "paired" or not peer.online_certificate:
            raise LogConflict("not-paired", f"nothing can be sealed to {pool}: it is not paired")
        recipient = read_online(peer.online_certificate)
        online = self._office.online
        writer = ArchiveWriter(
            online.identity,
            certificate=online.certificate,
            sender=self._pool,
            recipient=peer.pool_key,
            recipient_online=recipient.verify_key,
            made=int(self._office.clock()),
            entropy=secrets.token_bytes(48),
        )
        return self._pieces(peer, writer, whole=whole)

    async def _pieces(self, peer: Peer, writer: ArchiveWriter, *, whole: bool) -> AsyncIterator[bytes]:
        yield writer.opening
        entries = 0
        async with self._office.store.transaction(snapshot=True) as connection:
            end = (await table.own_head(connection)).head
            said = (await table.copies(connection)).get(peer.pool_key)
            cut = await table.snapshot_seq(connection, self._pool)
            after = said["seq"] if said and said["ours"] and not whole else 0
            known = await table.certificates(connection, self._pool)
            certificates = Certificates(self._pool, tuple(raw for _, raw in known.values())[:64])
            yield writer.message(encode(certificates), 0)
            raw = await table.snapshot_of(connection, self._pool)
            kept = raw is not None and after < cut
            if kept and raw is not None:
                yield writer.message(encode(Snapshot(0, self._pool, raw)), 0)
                after = 0
            while rows := await table.entries_after(
                connection, self._pool, after, count=CHUNK, size=CHUNK_BYTES
            ):
                if kept:
                    early = [row for row in rows if row.entry.seq <= cut]
                    kept, rows = bool(early), early or rows
                items, _ = bounded([self._item(peer, row) for row in rows])
                after = rows[len(items) - 1].entry.seq
                entries += len(items)
                message = Entries(0, self._pool, place(end), items, more=after < end.seq, kept=kept)
                yield writer.message(encode(message), len(items))
        yield writer.end()
        async with self._office.store.transaction() as connection:
            await log_archives.put_archive(
                connection, writer.id, peer.pool_key, "sent", entries, self._office.now()
            )

    async def take(self, file: Path, *, by: str) -> dict[str, Any]:
        """Take an archive or a receipt from a file. Nothing of an archive is taken unless all of it is
        sound.
        """
        if not await asyncio.to_thread(_is_archive, file):
            return await self._take_receipt(file, by=by)
        began = time.monotonic()
        head, total = await asyncio.to_thread(self._read_through, file)
        peer = self._replication.peers.peer(head.sender)
        if peer is None or peer.state != "paired":
            raise LogConflict(
                "not-paired",
                "the archive is of a pool that this one is not paired with",
                hint="meshctl pool pair",
            )
        before = self._replication.head(peer.pool_key)
        accepted = applied = 0
        async for taken in self._apply(peer, file):
            accepted += taken[0]
            applied += taken[1]
        async with self._office.store.transaction() as connection:
            now = (await table.replica(connection, peer.pool_key)).head
            await log_archives.put_archive(
                connection, head.id, peer.pool_key, "taken", total, self._office.now()
            )
        online = self._office.online
        receipt = make_receipt(
            online.identity,
            online.certificate,
            ArchiveReceipt(head.id, peer.pool_key, self._pool, now, int(self._office.clock())),
        )
        await self._office.changed("log.import", peer.name, by, {"entries": total, "new": accepted})
        return {
            "kind": "archive",
            "pool": peer.name,
            "entries": total,
            "new": accepted,
            "applied": applied,
            "head": now.seq,
            "before": before.seq,
            "seconds": round(time.monotonic() - began, 3),
            "receipt": receipt.hex(),
        }

    def _read_through(self, file: Path) -> Any:
        """The head of an archive that is whole, and how many entries it has. LogProblem."""
        reader = ArchiveReader(self._office.online.identity, recipient=self._pool)
        for message in _messages(reader, file):
            if isinstance(message, Entries):
                arrived(message.items)
                reader.counted(len(message.items))
        return reader.end(), reader.entries

    async def _apply(self, peer: Peer, file: Path) -> AsyncIterator[tuple[int, int]]:
        reader = ArchiveReader(self._office.online.identity, recipient=self._pool)
        certificates: list[bytes] = []
        snapshot = b""
        kept: list[Arrived] = []
        replicas = self._replication.replicas
        for message in _messages(reader, file):
            match message:
                case Certificates(origin, raw) if origin == peer.pool_key:
                    own_certificates(origin, raw)
                    certificates += raw
                case Snapshot(_, _, raw_snapshot):
                    snapshot = raw_snapshot
                case Entries(_, _, _, items, _, True) if snapshot:
                    kept += arrived(items)
                case Entries(_, _, _, items, _, False):
                    if snapshot:
                        seq = read_snapshot(snapshot).head.seq
                        async with self._office.store.connection() as connection:
                            have = (await table.replica(connection, peer.pool_key)).head.seq
                        if seq > have:
                            taken = await replicas.take_snapshot(peer, snapshot, kept, certificates)
                            yield taken.accepted, taken.applied
                        snapshot = b""
                    taken = await replicas.take(peer, arrived(items), certificates)
                    yield taken.accepted, taken.applied
                    match taken.stopped:
                        case Gap(after):
                            raise LogConflict(
                                "gap",
                                f"the archive begins after entry {after + 1}, which this pool lacks",
                                hint=f"export again at {peer.name}, with --whole",
                            )
                        case Forked(seq=seq):
                            raise LogConflict("fork", f"{peer.name} signed two entries for number {seq}")
                        case Refused(code, text):
                            raise LogConflict(code, text)
                case _:
                    raise LogProblem("archive-format", "the archive holds something that is no log")

    async def _take_receipt(self, file: Path, *, by: str) -> dict[str, Any]:
        data = await asyncio.to_thread(file.read_bytes)
        try:
            raw = bytes.fromhex(data.decode("ascii").strip())
            if not raw:
                raise ValueError
        except ValueError:
            raise LogProblem(
                "archive-format",
                "this is neither an archive of a log nor the receipt of one",
                hint="meshctl pool export makes an archive",
            ) from None
        receipt = read_receipt(raw)
        peer = self._replication.peers.peer(receipt.recipient)
        if peer is None or receipt.sender != self._pool:
            raise LogConflict("receipt", "the receipt is not for this pool, or of one that it does not know")
        async with self._office.store.transaction() as connection:
            if not await log_archives.put_receipt(connection, receipt.archive, peer.pool_key, raw):
                raise LogConflict("receipt", "no archive was made here that this receipt is for")
            ours = await has_entry(connection, self._pool, receipt.head)
            at = datetime.fromtimestamp(receipt.taken, UTC)
            await table.put_copy(connection, peer.pool_key, receipt.head, ours=ours, how="archive", at=at)
        await self._office.changed("log.receipt", peer.name, by, {"seq": receipt.head.seq})
        return {"kind": "receipt", "pool": peer.name, "head": receipt.head.seq, "ours": ours}

    def _item(self, peer: Peer, row: Row) -> Item:
        return item_for(row, told(peer, row.entry.stream, origin=self._pool))

    # --- names

    def _key(self, pool: str | None) -> bytes:
        if pool is None or pool == self._office.directory.own_pool().name:
            return self._pool
        return self._peer(pool).pool_key

    def _peer(self, pool: str) -> Peer:
        peer = self._office.directory.peer_named(pool)
        if peer is None:
            raise UnknownNameError(f"there is no pool {pool!r}", hint="meshctl pool list")
        return peer

    def _name(self, key: bytes) -> str:
        if key == self._pool:
            return self._office.directory.own_pool().name
        peer = self._replication.peers.peer(key)
        return peer.name if peer is not None else fingerprint(key)


def streams() -> list[dict[str, Any]]:
    """Every stream that exists, for people."""
    return [
        {"name": one.name, "level": one.level, "written_by": one.authority, "version": one.version}
        for one in STREAMS.values()
    ]


def _messages(reader: ArchiveReader, file: Path) -> Any:
    decoder = Decoder()
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            for frame in reader.feed(piece):
                messages: list[LogMessage] = []
                try:
                    messages = decoder.feed(frame)
                except RemoteProtocolError as error:
                    raise LogProblem("archive-damaged", error.message) from None
                yield from messages
    reader.end()


def _problem(finding: tuple[int, str] | None, quarantine: str, differs: list[str]) -> str:
    if finding is not None:
        return finding[1]
    if quarantine:
        return f"quarantined: {quarantine}"
    return f"tables differ from the log: {', '.join(differs)}; --repair mends it" if differs else ""


def _is_archive(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def _place(head: Head) -> dict[str, Any]:
    return {"seq": head.seq, "incarnation": head.incarnation.hex(), "hash": head.hash.hex()}

"""The replicated model catalogue as administrators see it, and the rules by which its streams are applied."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

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
    resolution,
    sign_document,
    why_not_automatic,
)
from qgate.federation.election import candidates, majority, voters
from qgate.federation.log.digest import GONE, SUPERSEDED, is_gone, record_digest
from qgate.federation.log.entry import Entry
from qgate.federation.log.problems import LogConflict, LogProblem
from qgate.federation.log.replica import Mastership
from qgate.federation.log.replicas import AUTHORITY
from qgate.federation.log.streams import StreamRule
from qgate.federation.peer import Peer
from qgate.governance.office import Office, iso
from qgate.governance.problems import UnknownNameError
from qgate.governance.versions import versioned
from qgate.store import catalogue as table
from qgate.store.catalogue import CatalogueRow
from qgate.store.database import Connection
from qgate.store.outbox import publish
from tunnel_proto.constants import TIME_MAX
from tunnel_proto.identity import fingerprint

STREAM: Final = "catalogue"
AUTOMATIC: Final = "failover.authority"
"""The setting: "auto" where a majority may move the authority."""

NAME_MAX: Final = 200
LEVEL: Final = 3


class Catalogue:
    """Status, promotions and records. ``pool_key`` is this pool's, ``alive`` tells whether a peer is
    heard.
    """

    def __init__(self, office: Office, pool_key: bytes) -> None:
        self._office = office
        self._pool = pool_key
        self.alive: Callable[[bytes], bool] = lambda _pool: True

    def rules(self) -> tuple[StreamRule, ...]:
        """The rules of the streams "authority" and "catalogue"."""
        return (
            StreamRule(AUTHORITY, self._hear_document, forget=self._relay, reclaim=self._reclaim_document),
            StreamRule(
                STREAM,
                self._apply,
                forget=self._forget,
                reclaim=self._reclaim,
                rejected=self._review,
                erased=self._erased,
                rows=self._rows,
                authority="master",
            ),
        )

    # --- what an admin asks

    async def status(self) -> dict[str, Any]:
        """Group, epoch, master, freeze, and how much is in review."""
        async with self._office.store.transaction(snapshot=True) as connection:
            standing = await self.standing(connection)
            rows = await table.all_rows(connection)
            reviews = await table.reviews(connection)
            documents = await table.documents(connection)
        group = standing.group
        promotions = sorted(
            (one for one in documents if one.promotion is not None),
            key=lambda one: (one.promotion.epoch if one.promotion else 0, one.at),
        )
        return {
            "epoch": standing.epoch,
            "master": self._name(standing.master) if standing.master else None,
            "writable_here": standing.master == self._pool and not standing.frozen,
            "frozen": standing.frozen,
            "reason": standing.reason,
            "contenders": [self._promotion(one) for one in standing.contenders],
            "members": [self._name(key) for key in group.members] if group else [],
            "promoters": [self._name(key) for key in group.promoters] if group else [],
            "witnesses": [self._name(key) for key in group.witnesses] if group else [],
            "records": len(rows),
            "in_review": len(reviews),
            "automatic": self._automatic() and not why_not_automatic(group),
            "why_not_automatic": why_not_automatic(group)
            or ("" if self._automatic() else "a person promotes here: meshctl failover auto --authority"),
            "promotions": [self._history(one) for one in promotions],
        }

    async def promote(self, name: str | None, *, by: str, reason: str = "") -> dict[str, Any]:
        """Make a pool (None: this one) the master; the first promotion of all makes the group too."""
        return await self._decide(self._key(name), by=by, reason=reason)

    async def demote(self, *, by: str, reason: str = "") -> dict[str, Any]:
        """Make nobody the master: read-only until somebody is promoted."""
        return await self._decide(NOBODY, by=by, reason=reason)

    async def resolve(self, name: str | None, *, by: str, reason: str = "") -> dict[str, Any]:
        """End a freeze: pick the master."""
        return await self._decide(self._key(name), by=by, reason=reason, frozen=True)

    async def set_group(
        self, promoters: list[str] | None, witnesses: list[str] | None, *, by: str
    ) -> dict[str, Any]:
        """Sign a new group document: all pools of level 3 as members, and who may promote."""
        async with self._office.store.transaction() as connection:
            await table.lock_authority(connection)
            standing = await self.standing(connection)
            group = standing.group
            if group is not None and self._pool not in group.promoters:
                raise LogConflict("not-promoter", "only a promoter changes the group")
            votes = tuple(self._key(name) for name in witnesses or ())
            members = tuple(
                one for one in first_group(self._pool, self._sharing()).members if one not in votes
            )
            may = members if promoters is None else tuple(self._key(name) for name in promoters)
            serial = group.serial + 1 if group else 1
            await self._sign(connection, Group(serial, members, may, votes))
            await self._refold(connection)
        await self._office.changed("catalogue.group", "group", by, {"serial": serial})
        return await self.status()

    async def plan_automatic(self, mode: str) -> dict[str, Any]:
        """What it means that the authority moves by itself, or not. LogConflict with the reason where there
        can be no majority.
        """
        async with self._office.store.connection() as connection:
            group = (await self.standing(connection)).group
        if mode == "auto" and (why := why_not_automatic(group)):
            raise LogConflict(
                "no-majority",
                f"the catalogue's master does not change by itself: {why}",
                hint="meshctl catalog promote",
            )
        return {
            "mode": mode,
            "was": self._office.directory.setting(AUTOMATIC),
            "targets": [self._name(one) for one in candidates(Standing(group))],
            "voters": sorted(self._name(one) for one in voters(group)),
            "needed": majority(group),
            "nodes": [],
        }

    async def elect(self, epoch: int, voted: Iterable[bytes], why: str) -> bool:
        """Become the master by a majority's vote. False where something has changed since: another promotion
        came, or this pool gave its ballot away.
        """
        async with self._office.store.transaction() as connection:
            await table.lock_authority(connection)
            standing = await self.standing(connection)
            if standing.frozen or standing.master is None or standing.epoch + 1 != epoch:
                return False
            if await table.ballot(connection, epoch) != self._pool:
                return False
            names = sorted(self._name(one) for one in voted)
            reason = f"elected by {', '.join(names)}: {why}"
            through = await table.last_write(connection, standing.master, standing.epoch)
            promotion = next_promotion(
                standing, own=self._pool, master=self._pool, through=through, reason=reason
            )
            await self._sign(connection, promotion)
            await self._refold(connection)
        detail = {
            "epoch": epoch,
            "reason": reason,
            "was": self._name(standing.master),
            "through": through,
            "rule": f"{majority(standing.group)} of {len(voters(standing.group))} voters",
        }
        await self._office.changed("catalogue.elect", self._name(self._pool), "election", detail)
        return True

    # --- records

    async def records(self) -> list[dict[str, Any]]:
        """Rows for people, by name."""
        async with self._office.store.connection() as connection:
            return [self._shown(row) for row in await table.all_rows(connection)]

    async def record(self, name: str) -> dict[str, Any]:
        """One row for people. UnknownNameError."""
        async with self._office.store.transaction() as connection:
            row = await table.row_named(connection, name)
        if row is None:
            raise _no_record(name)
        return self._shown(row)

    async def put(self, name: str, document: Mapping[str, Any], *, by: str) -> dict[str, Any]:
        """Write a record, at the master only."""
        if not 0 < len(name) <= NAME_MAX:
            raise LogProblem("name", f"a record's name has 1 to {NAME_MAX} characters")
        async with self._office.store.transaction() as connection:
            standing = await self._writable(connection)
            before = await table.row_named(connection, name)
            row = CatalogueRow(
                name,
                before.record if before else secrets.token_bytes(16),
                dict(document),
                standing.epoch,
                self._pool,
                by,
                self._office.now(),
            )
            await table.put_row(connection, row)
            await self._publish(connection, row)
        detail = {"epoch": row.epoch, "new": before is None}
        shown = self._shown(row)
        was = self._shown(before) if before else None
        await self._office.changed("catalogue.put", name, by, detail, before=was, after=shown)
        return shown

    async def remove(self, name: str, *, by: str) -> None:
        """Remove a record, at the master only."""
        async with self._office.store.transaction() as connection:
            standing = await self._writable(connection)
            before = await table.row_named(connection, name)
            if before is None:
                raise _no_record(name)
            await table.drop_row(connection, before.record, standing.epoch)
            payload = {"name": name, "by": by, GONE: True}
            await publish(
                connection, stream=STREAM, record=before.record, payload=payload, epoch=standing.epoch
            )
        detail = {"epoch": standing.epoch}
        await self._office.changed("catalogue.remove", name, by, detail, before=self._shown(before))

    async def reviews(self) -> list[dict[str, Any]]:
        """Writes that do not count, because their master had been replaced."""
        async with self._office.store.connection() as connection:
            rows = await table.reviews(connection)
        return [
            {
                "pool": self._name(row["origin"]),
                "seq": row["seq"],
                "name": row["name"],
                "document": row["document"],
                "epoch": row["epoch"],
                "why": row["why"],
                "at": iso(row["at"]),
            }
            for row in rows
        ]

    async def decide_review(self, pool: str, seq: int, *, accept: bool, by: str) -> None:
        """Write a stranded record again as the present master (``accept``), or let it go."""
        origin = self._key(pool)
        async with self._office.store.connection() as connection:
            rows = [row for row in await table.reviews(connection) if row["origin"] == origin]
        row = next((row for row in rows if row["seq"] == seq), None)
        if row is None:
            raise UnknownNameError(
                f"nothing of {pool} with number {seq} is in review", hint="meshctl catalog review"
            )
        if accept and row["document"] is None:
            await self.remove(row["name"], by=by)
        elif accept:
            await self.put(row["name"], row["document"], by=by)
        async with self._office.store.transaction() as connection:
            await table.decide_reviews(
                connection, [(origin, seq)], f"{'taken' if accept else 'let go'} by {by}"
            )
        detail = {"pool": pool, "seq": seq, "taken": accept}
        await self._office.changed("catalogue.review", str(row["name"]), by, detail)

    # --- folding

    async def standing(self, connection: Connection) -> Standing:
        """Who may write, by all documents that are here."""
        return fold(await table.documents(connection))

    async def masters(self, connection: Connection) -> Mapping[str, Mastership]:
        """As replicas judge by it."""
        return {STREAM: (await self.standing(connection)).mastership}

    async def _decide(self, master: bytes, *, by: str, reason: str, frozen: bool = False) -> dict[str, Any]:
        async with self._office.store.transaction() as connection:
            await table.lock_authority(connection)
            standing = await self.standing(connection)
            if standing.group is None and not frozen:
                await self._sign(connection, first_group(self._pool, self._sharing()))
                standing = await self.standing(connection)
            through = 0
            if standing.master == self._pool and await table.unsigned(connection):
                raise LogConflict(
                    "unsigned", "writes of this master are not signed yet", hint="try again in a moment"
                )
            if standing.master is not None:
                through = await table.last_write(connection, standing.master, standing.epoch)
            choose = resolution if frozen else next_promotion
            promotion = choose(standing, own=self._pool, master=master, through=through, reason=reason)
            await self._sign(connection, promotion)
            await self._refold(connection)
        what = "resolve" if frozen else ("promote" if master else "demote")
        detail = {"epoch": promotion.epoch, "reason": reason}
        await self._office.changed(
            f"catalogue.{what}", self._name(master) if master else "nobody", by, detail
        )
        return await self.status()

    async def _sign(self, connection: Connection, what: Group | Promotion) -> None:
        online = self._office.online
        document = sign_document(
            online.identity, online.certificate, pool=self._pool, what=what, at=int(self._office.clock())
        )
        await table.put_document(connection, document)
        await publish(
            connection, stream=AUTHORITY, record=document.digest, payload=document_payload(document)
        )

    def _automatic(self) -> bool:
        return bool(self._office.directory.setting(AUTOMATIC) == "auto")

    async def _writable(self, connection: Connection) -> Standing:
        await table.share_authority(connection)
        standing = await self.standing(connection)
        if standing.frozen:
            raise LogConflict(
                "frozen",
                f"the catalogue is read-only: {standing.reason}",
                hint="meshctl catalog resolve POOL",
            )
        if standing.master != self._pool:
            who = self._name(standing.master) if standing.master else None
            raise LogConflict(
                "not-master",
                f"the catalogue is written at {who}" if who else "the catalogue has no master",
                hint="write it there, or promote this pool: meshctl catalog promote",
            )
        if self._automatic() and not why_not_automatic(standing.group):
            heard = {self._pool, *filter(self.alive, voters(standing.group) - {self._pool})}
            if len(heard) < majority(standing.group):
                raise LogConflict(
                    "no-majority",
                    f"this master hears {len(heard)} of {len(voters(standing.group))} voters: another one may"
                    " be elected any moment, and what is written here would not count",
                    hint="meshctl pool list; to write all the same: meshctl failover manual --authority",
                )
        return standing

    async def _publish(self, connection: Connection, row: CatalogueRow) -> None:
        await publish(connection, stream=STREAM, record=row.record, payload=_payload(row), epoch=row.epoch)

    async def _refold(self, connection: Connection) -> None:
        """The authority has changed: make the catalogue anew from every log, in the order of epochs."""
        mastership = (await self.standing(connection)).mastership
        waiting = [row for row in await table.all_rows(connection) if row.origin == self._pool]
        rows = await table.writes(connection)
        signed = {(row.entry.record, row.entry.epoch) for row in rows if row.entry.pool == self._pool}
        await table.drop_all(connection)
        for row in rows:
            if row.contents is None:
                await table.drop_row(connection, row.entry.record, row.entry.epoch)
                continue
            payload = row.contents.value()
            disposition, why = mastership.allows(row.entry)
            if disposition == "apply" or (row.state == "mine" and disposition == "held"):
                await self._write(connection, row.entry, payload)
            elif disposition == "rejected":
                await self._review(connection, row.entry, payload, why)
        for own in waiting:  # committed here, and not signed yet
            if (own.record, own.epoch) not in signed and own.epoch == mastership.epoch:
                await table.put_row(connection, own)

    async def _review(
        self, connection: Connection, entry: Entry, payload: Mapping[str, Any], why: str
    ) -> None:
        document = payload.get("document")
        await table.put_review(
            connection,
            entry,
            name=str(payload.get("name", ""))[:NAME_MAX],
            document=document if isinstance(document, dict) and not is_gone(payload) else None,
            why=why,
        )

    async def _write(self, connection: Connection, entry: Entry, payload: Mapping[str, Any]) -> None:
        if is_gone(payload):
            await table.drop_row(connection, entry.record, entry.epoch)
            return
        name, document = payload.get("name"), payload.get("document")
        if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX or not isinstance(document, dict):
            raise LogProblem("payload-malformed", "a record of the catalogue is malformed")
        at = payload.get("at")
        changed = datetime.fromtimestamp(at if type(at) is int and 0 <= at <= TIME_MAX else 0, UTC)
        by = str(payload.get("by", ""))[:NAME_MAX]
        await table.put_row(
            connection, CatalogueRow(name, entry.record, document, entry.epoch, entry.pool, by, changed)
        )

    # --- rules

    async def _apply(self, connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]) -> None:
        del peer
        await self._write(connection, entry, payload)

    async def _forget(self, connection: Connection, peer: Peer) -> None:
        await table.drop_rows_of(connection, peer.pool_key)

    async def _reclaim(self, connection: Connection, entry: Entry, payload: dict[str, Any]) -> None:
        await self._write(connection, entry, payload)

    async def _erased(self, connection: Connection, peer: Peer, entry: Entry) -> None:
        del peer
        await table.drop_row(connection, entry.record, entry.epoch)

    async def _rows(self, connection: Connection, peer: Peer) -> Mapping[bytes, bytes]:
        found: dict[bytes, bytes] = dict.fromkeys(
            await table.records_of_others(connection, peer.pool_key), SUPERSEDED
        )
        for row in await table.all_rows(connection):
            if row.origin == peer.pool_key and row.record not in found:
                found[row.record] = record_digest(_payload(row))
        return found

    async def _hear_document(
        self, connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]
    ) -> None:
        del peer, entry  # whoever relays it, its promoter signed it
        document = payload_document(payload)
        if await table.put_document(connection, document):
            await self._refold(connection)

    async def _relay(self, connection: Connection, peer: Peer) -> None:
        """A peer lost part of its log. What it had decided there still holds: say it for it."""
        del peer
        said = await table.said_documents(connection)
        for document in await table.documents(connection):
            if document.digest not in said:
                await publish(
                    connection, stream=AUTHORITY, record=document.digest, payload=document_payload(document)
                )

    async def _reclaim_document(self, connection: Connection, entry: Entry, payload: dict[str, Any]) -> None:
        del entry
        if await table.put_document(connection, payload_document(payload)):
            await self._refold(connection)

    # --- names

    def _sharing(self) -> list[bytes]:
        """The pools that this one shares its catalogue with."""
        peers = self._office.directory.peers()
        return [one.pool_key for one in peers if one.state == "paired" and one.level >= LEVEL]

    def _key(self, name: str | None) -> bytes:
        own = self._office.directory.own_pool().name
        if name is None or name == own:
            return self._pool
        for one in self._office.directory.peers():
            if one.name == name:
                return one.pool_key
        raise UnknownNameError(f"there is no pool {name!r}", hint="meshctl pool list")

    def _name(self, key: bytes) -> str:
        if key == self._pool:
            return self._office.directory.own_pool().name
        peer = self._office.directory.peer(key)
        return peer.name if peer is not None else fingerprint(key)

    def _promotion(self, one: Promotion) -> dict[str, Any]:
        return {
            "epoch": one.epoch,
            "master": self._name(one.master) if one.master else None,
            "through": one.through,
            "reason": one.reason,
        }

    def _history(self, one: Document) -> dict[str, Any]:
        assert one.promotion is not None
        at = iso(datetime.fromtimestamp(min(one.at, TIME_MAX), UTC))
        return {**self._promotion(one.promotion), "by_pool": self._name(one.promoter), "at": at}

    def _shown(self, row: CatalogueRow) -> dict[str, Any]:
        shown = {
            "name": row.name,
            "document": row.document,
            "epoch": row.epoch,
            "pool": self._name(row.origin),
            "changed_by": row.changed_by,
            "changed_at": iso(row.changed_at),
        }
        return versioned("catalogue", shown)


def _no_record(name: str) -> UnknownNameError:
    return UnknownNameError(f"the catalogue has no {name!r}", hint="meshctl catalog list")


def _payload(row: CatalogueRow) -> dict[str, Any]:
    """How a record travels."""
    return {
        "name": row.name,
        "document": row.document,
        "by": row.changed_by,
        "at": int(row.changed_at.timestamp()),
    }

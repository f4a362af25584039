"""The replicated model catalogue: its rows, the documents that say who may write it, and what is in
review.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qgate.federation.catalogue import Document, read_document
from qgate.federation.log.entry import Entry, read_entry
from qgate.store.database import Connection
from qgate.store.log import Row, row_of

AUTHORITY_LOCK = 0x71_67_63_61_74
"""Held by whoever decides about the catalogue's authority: "qgcat" in ASCII."""


async def lock_authority(connection: Connection) -> None:
    """Decide alone about the catalogue's authority until this transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", AUTHORITY_LOCK)


async def share_authority(connection: Connection) -> None:
    """Keep the catalogue's authority as it is until this transaction ends; others may do so too."""
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", AUTHORITY_LOCK)


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """One record of the catalogue. ``record`` names it in the log."""

    name: str
    record: bytes
    document: dict[str, Any]
    epoch: int
    origin: bytes
    changed_by: str
    changed_at: datetime


async def documents(connection: Connection) -> list[Document]:
    """Every group and promotion."""
    rows = await connection.fetch("SELECT document FROM catalogue_authority")
    return [read_document(row["document"]) for row in rows]


async def put_document(connection: Connection, document: Document) -> bool:
    """Keep a document; False where it is there already."""
    epoch = document.promotion.epoch if document.promotion else 0
    done = await connection.execute(
        """
        INSERT INTO catalogue_authority (digest, kind, epoch, promoter, document) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (digest) DO NOTHING
        """,
        document.digest,
        document.kind,
        epoch,
        document.promoter,
        document.raw,
    )
    return done != "INSERT 0 0"


async def all_rows(connection: Connection) -> list[CatalogueRow]:
    """The catalogue by name."""
    rows = await connection.fetch("SELECT * FROM catalogue ORDER BY name")
    return [CatalogueRow(**row) for row in rows]


async def row_named(connection: Connection, name: str) -> CatalogueRow | None:
    """One record, locked until this transaction ends."""
    row = await connection.fetchrow("SELECT * FROM catalogue WHERE name = $1 FOR UPDATE", name)
    return None if row is None else CatalogueRow(**row)


async def put_row(connection: Connection, row: CatalogueRow) -> None:
    """Write a record unless a later epoch's is there; a record of the same name gives way."""
    await connection.execute(
        """
        WITH given_way AS (DELETE FROM catalogue WHERE name = $1 AND record <> $2 AND epoch <= $4)
        INSERT INTO catalogue AS c (name, record, document, epoch, origin, changed_by, changed_at)
        SELECT $1, $2, $3, $4, $5, $6, $7
        WHERE NOT EXISTS (SELECT FROM catalogue WHERE name = $1 AND record <> $2 AND epoch > $4)
        ON CONFLICT (record) DO UPDATE SET name = excluded.name, document = excluded.document,
            epoch = excluded.epoch, origin = excluded.origin, changed_by = excluded.changed_by,
            changed_at = excluded.changed_at
        WHERE c.epoch <= excluded.epoch
        """,
        row.name,
        row.record,
        row.document,
        row.epoch,
        row.origin,
        row.changed_by,
        row.changed_at,
    )


async def drop_row(connection: Connection, record: bytes, epoch: int) -> None:
    """Remove a record unless a later epoch's is there."""
    await connection.execute("DELETE FROM catalogue WHERE record = $1 AND epoch <= $2", record, epoch)


async def drop_rows_of(connection: Connection, origin: bytes) -> None:
    """Remove what one pool wrote."""
    await connection.execute("DELETE FROM catalogue WHERE origin = $1", origin)


async def drop_all(connection: Connection) -> None:
    """Empty the catalogue, to fold it anew."""
    await connection.execute("DELETE FROM catalogue")


async def said_documents(connection: Connection) -> set[bytes]:
    """Digests of the documents that somebody's log has, or ours is about to have."""
    rows = await connection.fetch(
        """
        SELECT record FROM log_entries WHERE stream = 'authority'
        UNION SELECT record FROM outbox WHERE stream = 'authority'
        """
    )
    return {row["record"] for row in rows}


async def writes(connection: Connection) -> list[Row]:
    """Every readable entry of the stream "catalogue" in every log, in the order of epochs, then of their
    logs.
    """
    rows = await connection.fetch(
        """
        SELECT entry, salt, payload, state, reason, wake_at FROM log_entries
        WHERE stream = 'catalogue' AND (payload IS NOT NULL OR reason = 'erased')
        """
    )
    return sorted((row_of(row) for row in rows), key=lambda row: (row.entry.epoch, row.entry.seq))


async def records_of_others(connection: Connection, origin: bytes) -> list[bytes]:
    """Records that a pool other than ``origin`` has written to as well."""
    rows = await connection.fetch(
        "SELECT DISTINCT record FROM log_entries WHERE stream = 'catalogue' AND origin <> $1", origin
    )
    return [row["record"] for row in rows]


async def last_write(connection: Connection, origin: bytes, epoch: int) -> int:
    """The number of the last entry that a pool wrote to the catalogue in an epoch; 0 for none."""
    rows = await connection.fetch(
        """
        SELECT seq, entry FROM log_entries WHERE origin = $1 AND stream = 'catalogue'
        ORDER BY seq DESC LIMIT 1000
        """,
        origin,
    )
    return next((row["seq"] for row in rows if read_entry(row["entry"]).epoch == epoch), 0)


async def ballot(connection: Connection, epoch: int) -> bytes | None:
    """For whom this pool voted, locked until this transaction ends."""
    query = "SELECT candidate FROM catalogue_ballots WHERE epoch = $1 FOR UPDATE"
    found = await connection.fetchval(query, epoch)
    return None if found is None else bytes(found)


async def put_ballot(connection: Connection, epoch: int, candidate: bytes, at: datetime) -> None:
    """Vote. The caller has looked whether it may, under `lock_authority`."""
    await connection.execute(
        """
        INSERT INTO catalogue_ballots (epoch, candidate, at) VALUES ($1, $2, $3)
        ON CONFLICT (epoch) DO UPDATE SET candidate = excluded.candidate, at = excluded.at
        """,
        epoch,
        candidate,
        at,
    )


async def unsigned(connection: Connection) -> bool:
    """Whether writes of our own to the catalogue wait for the sequencer."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM outbox WHERE stream = 'catalogue')"))


async def put_review(
    connection: Connection, entry: Entry, *, name: str, document: dict[str, Any] | None, why: str
) -> None:
    """Put a write that does not count before a person; one that was decided stays decided."""
    await connection.execute(
        """
        INSERT INTO catalogue_review (origin, seq, name, document, epoch, why) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (origin, seq) DO NOTHING
        """,
        entry.pool,
        entry.seq,
        name,
        document,
        entry.epoch,
        why,
    )


async def reviews(connection: Connection) -> list[dict[str, Any]]:
    """What nobody decided yet, oldest first."""
    rows = await connection.fetch("SELECT * FROM catalogue_review WHERE done IS NULL ORDER BY at, seq")
    return [dict(row) for row in rows]


async def decide_reviews(connection: Connection, places: Sequence[tuple[bytes, int]], how: str) -> None:
    """Note what became of writes in review."""
    await connection.executemany(
        "UPDATE catalogue_review SET done = $3 WHERE origin = $1 AND seq = $2",
        [(origin, seq, how) for origin, seq in places],
    )

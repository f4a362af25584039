"""The audit chain's tables. Only insertion is possible; the front is cut off behind a signed marker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qgate.store.database import Connection
from tunnel_proto.audit_chain import SignedHead

CHANNEL = "qgate_audit"


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One entry as it is stored."""

    seq: int
    entry: str
    hash: bytes


async def lock_head(connection: Connection) -> tuple[int, bytes]:
    """The last entry's number and hash; other gates wait until this transaction ends."""
    row = await connection.fetchrow("SELECT seq, hash FROM audit_head FOR UPDATE")
    assert row is not None
    return row["seq"], row["hash"]


async def head(connection: Connection) -> tuple[int, bytes]:
    """The last entry's number and hash."""
    row = await connection.fetchrow("SELECT seq, hash FROM audit_head")
    assert row is not None
    return row["seq"], row["hash"]


async def append(connection: Connection, rows: Sequence[AuditRow]) -> None:
    """Add entries and move the head; the caller holds its lock."""
    await connection.execute(
        "INSERT INTO audit_entries (seq, entry, hash)"
        " SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[])",
        [row.seq for row in rows],
        [row.entry for row in rows],
        [row.hash for row in rows],
    )
    await connection.execute("UPDATE audit_head SET seq = $1, hash = $2", rows[-1].seq, rows[-1].hash)
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, str(rows[-1].seq))


async def holds(connection: Connection, seq: int, digest: bytes) -> bool:
    """Whether exactly this entry is there: how a commit whose answer was lost is settled."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM audit_entries WHERE seq = $1 AND hash = $2)", seq, digest
        )
    )


async def read(
    connection: Connection,
    *,
    after: int,
    limit: int,
    app: str | None = None,
    database: str | None = None,
    kind: str | None = None,
) -> list[AuditRow]:
    """Entries after `after`, oldest first."""
    rows = await connection.fetch(
        """
        SELECT seq, entry, hash FROM audit_entries
        WHERE seq > $1 AND ($3::text IS NULL OR app = $3) AND ($4::text IS NULL OR database = $4)
          AND ($5::text IS NULL OR kind = $5)
        ORDER BY seq LIMIT $2
        """,
        after,
        limit,
        app,
        database,
        kind,
    )
    return [AuditRow(row["seq"], row["entry"], row["hash"]) for row in rows]


async def read_back(
    connection: Connection,
    *,
    before: int | None,
    limit: int,
    app: str | None = None,
    database: str | None = None,
    kind: str | None = None,
    text: str | None = None,
) -> list[AuditRow]:
    """The last entries before `before` (None: of the whole chain), oldest first; `text` is in the entry."""
    rows = await connection.fetch(
        """
        SELECT seq, entry, hash FROM audit_entries
        WHERE ($1::bigint IS NULL OR seq < $1) AND ($3::text IS NULL OR app = $3)
          AND ($4::text IS NULL OR database = $4) AND ($5::text IS NULL OR kind = $5)
          AND ($6::text IS NULL OR strpos(lower(entry), lower($6)) > 0)
        ORDER BY seq DESC LIMIT $2
        """,
        before,
        limit,
        app,
        database,
        kind,
        text,
    )
    return [AuditRow(row["seq"], row["entry"], row["hash"]) for row in reversed(rows)]


async def put_signed_head(connection: Connection, signed: SignedHead) -> None:
    """Keep a signed head; another gate may have signed the same one."""
    await connection.execute(
        """
        INSERT INTO audit_signed_heads (seq, hash, signed_at, signature, certificate) VALUES ($1, $2, $3,
        $4, $5) ON CONFLICT (seq) DO NOTHING
        """,
        signed.seq,
        signed.hash,
        signed.signed_at,
        signed.signature,
        signed.certificate,
    )


async def signed_heads(connection: Connection) -> list[SignedHead]:
    """Every signed head, oldest first."""
    rows = await connection.fetch(
        "SELECT seq, hash, signed_at, signature, certificate FROM audit_signed_heads ORDER BY seq"
    )
    return [SignedHead(*row) for row in rows]


async def last_signed_head(connection: Connection) -> SignedHead | None:
    """The newest signed head."""
    row = await connection.fetchrow(
        "SELECT seq, hash, signed_at, signature, certificate FROM audit_signed_heads"
        " ORDER BY seq DESC LIMIT 1"
    )
    return SignedHead(*row) if row else None


async def last_marker(connection: Connection) -> SignedHead | None:
    """The newest retention marker."""
    row = await connection.fetchrow(
        """
        SELECT removed_through, hash, signed_at, signature, certificate
        FROM audit_markers ORDER BY removed_through DESC LIMIT 1
        """
    )
    return SignedHead(*row) if row else None


async def last_before(connection: Connection, at: str) -> AuditRow | None:
    """The last entry of the oldest run whose entries all began before `at` (as entries spell time)."""
    row = await connection.fetchrow(
        """
        SELECT seq, entry, hash FROM audit_entries
        WHERE seq < coalesce(
            (SELECT min(seq) FROM audit_entries WHERE (entry::jsonb) ->> 'started_at' >= $1),
            (SELECT seq FROM audit_head))
        ORDER BY seq DESC LIMIT 1
        """,
        at,
    )
    return AuditRow(row["seq"], row["entry"], row["hash"]) if row else None


async def cut(connection: Connection, marker: SignedHead) -> int:
    """Remove the entries up to a marker, which is kept; returns how many."""
    await connection.execute(
        """
        INSERT INTO audit_markers (removed_through, hash, signed_at, signature, certificate)
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (removed_through) DO NOTHING
        """,
        marker.seq,
        marker.hash,
        marker.signed_at,
        marker.signature,
        marker.certificate,
    )
    done = await connection.execute("DELETE FROM audit_entries WHERE seq <= $1", marker.seq)
    return int(done.split()[-1])

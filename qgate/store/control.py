"""What the control surface keeps: the newest change of each object, and replies to repeated requests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qgate.store.database import Connection


@dataclass(frozen=True, slots=True)
class Kept:
    """A request that came under an idempotency key. ``status`` None: it still runs, or its gate died."""

    digest: bytes
    gate: str
    at: datetime
    status: int | None
    body: str | None


async def note_change(
    connection: Connection, kind: str, name: str, *, what: str, by: str, at: datetime, fields: Sequence[str]
) -> None:
    """Remember who changed an object last, and which fields of it."""
    await connection.execute(
        """
        INSERT INTO last_changes (kind, name, what, by, at, fields) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (kind, name) DO UPDATE SET
            what = excluded.what, by = excluded.by, at = excluded.at, fields = excluded.fields
        """,
        kind,
        name,
        what,
        by,
        at,
        list(fields),
    )


async def last_change(connection: Connection, kind: str, name: str) -> dict[str, Any] | None:
    """The newest change of an object, None where none was noted."""
    row = await connection.fetchrow("SELECT * FROM last_changes WHERE kind = $1 AND name = $2", kind, name)
    return None if row is None else dict(row)


async def lock_object(connection: Connection, kind: str, name: str) -> None:
    """Let no other gate check and change that object until this transaction ends."""
    digest = hashlib.blake2b(f"{kind}\0{name}".encode(), digest_size=8, person=b"qgate-object").digest()
    await connection.execute("SELECT pg_advisory_xact_lock($1)", int.from_bytes(digest, "big", signed=True))


async def begin_request(
    connection: Connection, principal: str, key: str, *, digest: bytes, gate: str, at: datetime
) -> Kept | None:
    """Take a key for a request; None where it was free, else what came under it before."""
    taken = await connection.fetchval(
        """
        INSERT INTO idempotency_keys (principal, key, digest, gate, at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (principal, key) DO NOTHING RETURNING true
        """,
        principal,
        key,
        digest,
        gate,
        at,
    )
    if taken:
        return None
    row = await connection.fetchrow(
        "SELECT * FROM idempotency_keys WHERE principal = $1 AND key = $2", principal, key
    )
    if row is None:  # it was let go in between
        return await begin_request(connection, principal, key, digest=digest, gate=gate, at=at)
    return Kept(row["digest"], row["gate"], row["at"], row["status"], row["body"])


async def end_request(
    connection: Connection, principal: str, key: str, *, status: int, body: str | None
) -> None:
    """Keep a request's reply."""
    await connection.execute(
        "UPDATE idempotency_keys SET status = $3, body = $4 WHERE principal = $1 AND key = $2",
        principal,
        key,
        status,
        body,
    )


async def free_request(connection: Connection, principal: str, key: str) -> None:
    """Let a key go: its request changed nothing."""
    await connection.execute("DELETE FROM idempotency_keys WHERE principal = $1 AND key = $2", principal, key)


async def drop_requests(connection: Connection, before: datetime) -> None:
    """Forget old keys."""
    await connection.execute("DELETE FROM idempotency_keys WHERE at < $1", before)

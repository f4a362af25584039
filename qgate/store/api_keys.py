"""Keys of apps for the HTTP surface, as digests."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from qgate.governance.policy import ApiKey
from qgate.store.database import Connection


async def all_api_keys(connection: Connection) -> list[ApiKey]:
    """Every key, revoked ones included."""
    return [
        ApiKey(
            id=row["id"],
            app=row["app"],
            prefix=row["prefix"],
            digest=row["digest"],
            valid_until=row["valid_until"].timestamp() if row["valid_until"] else None,
            revoked=row["revoked_at"] is not None,
        )
        for row in await connection.fetch("SELECT * FROM api_keys")
    ]


async def list_api_keys(connection: Connection, app: str) -> list[dict[str, Any]]:
    """Rows for people, oldest first."""
    rows = await connection.fetch("SELECT * FROM api_keys WHERE app = $1 ORDER BY created_at, id", app)
    return [dict(row) for row in rows]


async def add_api_key(
    connection: Connection, key: ApiKey, *, created_at: datetime, valid_until: datetime | None
) -> None:
    """Add a key."""
    await connection.execute(
        """
        INSERT INTO api_keys (id, app, prefix, digest, created_at, valid_until)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        key.id,
        key.app,
        key.prefix,
        key.digest,
        created_at,
        valid_until,
    )


async def revoke_api_keys(connection: Connection, app: str, at: datetime, id: str | None = None) -> int:  # noqa: A002 - the column's name
    """Revoke one key of an app, or all of them; how many were."""
    done = await connection.execute(
        """
        UPDATE api_keys SET revoked_at = $2
        WHERE app = $1 AND revoked_at IS NULL AND ($3::text IS NULL OR id = $3)
        """,
        app,
        at,
        id,
    )
    return int(done.split()[-1])

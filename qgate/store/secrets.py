"""Further sealed secrets by name: TLS client keys, and what the gates of a pool share among themselves."""

from __future__ import annotations

from datetime import datetime

from qgate.store.database import Connection


async def all_secrets(connection: Connection) -> dict[str, bytes]:
    """Every box by name."""
    return {row["name"]: row["sealed"] for row in await connection.fetch("SELECT name, sealed FROM secrets")}


async def secret_changed_at(connection: Connection, name: str) -> datetime | None:
    """When a secret was set, None where there is none."""
    at: datetime | None = await connection.fetchval("SELECT changed_at FROM secrets WHERE name = $1", name)
    return at


async def put_secret(connection: Connection, name: str, sealed: bytes, at: datetime) -> None:
    """Set a secret."""
    await connection.execute(
        """
        INSERT INTO secrets (name, sealed, changed_at) VALUES ($1, $2, $3)
        ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed, changed_at = excluded.changed_at
        """,
        name,
        sealed,
        at,
    )


async def offer_secret(connection: Connection, name: str, sealed: bytes, at: datetime) -> None:
    """Set a secret unless there is one; gates that start together agree on the first."""
    await connection.execute(
        "INSERT INTO secrets (name, sealed, changed_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
        name,
        sealed,
        at,
    )


async def drop_secrets(connection: Connection, prefix: str, *, before: datetime) -> int:
    """Forget the secrets whose names begin so and that were set before a moment; how many."""
    done = await connection.execute(
        "DELETE FROM secrets WHERE starts_with(name, $1) AND changed_at < $2", prefix, before
    )
    return int(done.split()[-1])


async def drop_secret(connection: Connection, name: str) -> None:
    """Forget a secret, if it is there."""
    await connection.execute("DELETE FROM secrets WHERE name = $1", name)

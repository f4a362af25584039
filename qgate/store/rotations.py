"""Online keys that were replaced by others with the word of both: ours and peers'."""

from __future__ import annotations

from typing import Any

from qgate.store.database import Connection


async def known_rotation(connection: Connection, pool: bytes, new: bytes) -> bool:
    """Whether it is known that this key took another's place."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM rotations WHERE pool = $1 AND new_key = $2)", pool, new
        )
    )


async def put_rotation(
    connection: Connection, pool: bytes, *, new: bytes, old: bytes, serial: int, after: int, record: bytes
) -> None:
    """Keep that ``new`` replaced ``old`` after an entry of the pool's log."""
    await connection.execute(
        """
        INSERT INTO rotations (pool, new_key, old_key, serial, after, record) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (pool, new_key) DO NOTHING
        """,
        pool,
        new,
        old,
        serial,
        after,
        record,
    )


async def rotations_of(connection: Connection, pool: bytes) -> list[dict[str, Any]]:
    """What is known of a pool's rotations, newest first."""
    rows = await connection.fetch("SELECT * FROM rotations WHERE pool = $1 ORDER BY serial DESC", pool)
    return [dict(row) for row in rows]


async def forget_rotations(connection: Connection, pool: bytes) -> None:
    """Forget what a peer said of its keys."""
    await connection.execute("DELETE FROM rotations WHERE pool = $1", pool)

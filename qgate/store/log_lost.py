"""What a restored store has lost: contents of our own log that no peer gave back, and what nothing shows."""

from __future__ import annotations

from qgate.store.database import Connection
from qgate.store.log import Row, row_of


async def lost_entries(
    connection: Connection, origin: bytes, *, limit: int = 10_000, older_s: float = 0.0
) -> list[Row]:
    """Entries of our own whose contents were lost, for ``older_s`` or longer, in order."""
    rows = await connection.fetch(
        """
        SELECT entry, salt, payload, state, reason, wake_at FROM log_entries
        WHERE origin = $1 AND reason = 'lost' AND at <= now() - make_interval(secs => $3)
        ORDER BY seq LIMIT $2
        """,
        origin,
        limit,
        older_s,
    )
    return [row_of(row) for row in rows]


async def note_restored(connection: Connection) -> None:
    """The store was found to be another, or to lack entries of our log: it may have lost more than these."""
    await connection.execute("UPDATE log_head SET restored_at = clock_timestamp()")


async def restored_s(connection: Connection, life: str) -> float | None:
    """Seconds since the store was last found to be restored, by its own clock; 0 while that is being found
    out, None for never. ``life`` is what it is now, by `qgate.store.log_life.life_of`.
    """
    found = await connection.fetchval(
        """
        SELECT CASE WHEN life <> $1 OR EXISTS (SELECT FROM log_copies WHERE NOT ours) THEN 0
                    ELSE extract(epoch FROM clock_timestamp() - restored_at)::float8 END
        FROM log_head
        """,
        life,
    )
    return None if found is None else float(found)

"""Entries of our own log that came back from a peer without their contents."""

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

"""Archives of logs that are carried by hand: which were sent to whom or taken from whom, and receipts."""

from __future__ import annotations

from typing import Any

from qgate.store.database import Connection


async def put_archive(
    connection: Connection, archive: bytes, pool: bytes, direction: str, entries: int, at: Any
) -> None:
    """Note an archive that was sent to a pool or taken from one; one that is noted stays as it is."""
    await connection.execute(
        """
        INSERT INTO log_archives (id, pool, direction, entries, at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (id) DO NOTHING
        """,
        archive,
        pool,
        direction,
        entries,
        at,
    )


async def put_receipt(connection: Connection, archive: bytes, pool: bytes, receipt: bytes) -> bool:
    """Keep the receipt of an archive that was sent to that pool; False where there was none."""
    done = await connection.execute(
        "UPDATE log_archives SET receipt = $3 WHERE id = $1 AND pool = $2 AND direction = 'sent'",
        archive,
        pool,
        receipt,
    )
    return done != "UPDATE 0"


async def archives(connection: Connection) -> list[dict[str, Any]]:
    """Archives, the newest first."""
    rows = await connection.fetch(
        "SELECT id, pool, direction, entries, receipt IS NOT NULL AS receipt, at FROM log_archives"
        " ORDER BY at DESC LIMIT 200"
    )
    return [dict(row) for row in rows]

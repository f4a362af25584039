"""Handshake timestamps: a copy of each gate's replay marks, written behind."""

from __future__ import annotations

from collections.abc import Mapping

from qgate.store.database import Connection


async def all_marks(connection: Connection) -> dict[bytes, int]:
    """The newest timestamp (nanoseconds) by X25519 public key."""
    rows = await connection.fetch("SELECT handshake_public, newest FROM marks")
    return {row["handshake_public"]: row["newest"] for row in rows}


async def raise_marks(connection: Connection, marks: Mapping[bytes, int]) -> None:
    """Raise marks to at least these timestamps; none ever falls."""
    keys = sorted(marks)  # one order for every gate, so that two writers cannot deadlock
    await connection.execute(
        """
        INSERT INTO marks (handshake_public, newest) SELECT * FROM unnest($1::bytea[], $2::bigint[])
        ON CONFLICT (handshake_public) DO UPDATE SET newest = greatest(marks.newest, excluded.newest)
        """,
        keys,
        [marks[key] for key in keys],
    )

"""Sums over the store for whoever wants to see a pool at a glance."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from qgate.store.database import Connection


async def incidents_by_state(connection: Connection) -> dict[str, int]:
    """How many incidents are open, and how many acknowledged; resolved ones are not counted."""
    rows = await connection.fetch(
        "SELECT state, count(*) AS n FROM incidents WHERE state <> 'resolved' GROUP BY state"
    )
    return {row["state"]: row["n"] for row in rows}


async def cost_between(connection: Connection, since: datetime, until: datetime) -> dict[str, Decimal]:
    """What receipts of that time say was paid, by currency; requests without a price cost nothing. Those
    that an earlier version wrote are counted once `read_documents` has come to them.
    """
    rows = await connection.fetch(
        """
        SELECT currency, sum(price) AS amount FROM receipts
        WHERE at >= $1 AND at < $2 AND day IS NOT NULL AND price IS NOT NULL GROUP BY 1
        """,
        since,
        until,
    )
    return {row["currency"]: row["amount"] for row in rows}

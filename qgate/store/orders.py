"""Orders for a later time: what is to be done, when, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from qgate.store.database import Connection

ORDER_CLASS: Final = 0x71_67_6F_72
"""First half of the advisory lock of an order that runs; the second is its number: "qgor" in ASCII."""


async def add_order(
    connection: Connection,
    *,
    at: datetime,
    what: str,
    arguments: Mapping[str, Any],
    reason: str,
    by: str,
    now: datetime,
) -> int:
    """Keep an order; its number."""
    return int(
        await connection.fetchval(
            """
            INSERT INTO scheduled_orders (at, what, arguments, reason, ordered_by, ordered_at, changed_at)
            VALUES ($1, $2, $3, $4, $5, $6, $6) RETURNING number
            """,
            at,
            what,
            dict(arguments),
            reason,
            by,
            now,
        )
    )


async def list_orders(
    connection: Connection, *, states: Sequence[str] = (), limit: int = 100, before: int | None = None
) -> list[dict[str, Any]]:
    """Orders in these states (none named: in any), those that are to come first, then the newest first."""
    rows = await connection.fetch(
        """
        SELECT * FROM scheduled_orders
        WHERE (cardinality($1::text[]) = 0 OR state = ANY($1)) AND ($3::bigint IS NULL OR number < $3)
        ORDER BY state NOT IN ('waiting', 'running'),
            CASE WHEN state IN ('waiting', 'running') THEN at END, number DESC
        LIMIT $2
        """,
        list(states),
        limit,
        before,
    )
    return [dict(row) for row in rows]


async def find_order(connection: Connection, number: int) -> dict[str, Any] | None:
    """One order, locked for this transaction."""
    row = await connection.fetchrow("SELECT * FROM scheduled_orders WHERE number = $1 FOR UPDATE", number)
    return dict(row) if row else None


async def pressing_orders(connection: Connection, now: datetime) -> list[dict[str, Any]]:
    """Orders that some gate began and has not ended, and those that wait though their time has come; the
    earliest first.
    """
    rows = await connection.fetch(
        """
        SELECT * FROM scheduled_orders WHERE state = 'running' OR (state = 'waiting' AND at <= $1)
        ORDER BY at, number
        """,
        now,
    )
    return [dict(row) for row in rows]


async def hold_order(connection: Connection, number: int) -> bool:
    """Take an order for this connection, so that no other gate does; it is free again when that ends."""
    return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", ORDER_CLASS, number))


async def release_order(connection: Connection, number: int) -> None:
    """Let go of what `hold_order` took."""
    await connection.execute("SELECT pg_advisory_unlock($1, $2)", ORDER_CLASS, number)


async def advance_order(
    connection: Connection,
    number: int,
    *,
    was: str,
    state: str,
    at: datetime,
    gate: str | None = None,
    outcome: str | None = None,
) -> bool:
    """Take an order from one state to another; False where it is no longer in the first."""
    done = await connection.execute(
        """
        UPDATE scheduled_orders SET state = $3, changed_at = $4, gate = coalesce($5, gate),
            outcome = coalesce($6, outcome)
        WHERE number = $1 AND state = $2
        """,
        number,
        was,
        state,
        at,
        gate,
        outcome,
    )
    return done != "UPDATE 0"


async def forget_orders(connection: Connection, before: datetime) -> None:
    """Forget orders that were over before then."""
    await connection.execute(
        "DELETE FROM scheduled_orders WHERE state NOT IN ('waiting', 'running') AND changed_at < $1", before
    )

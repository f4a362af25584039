"""Parts of other pools' budgets that their apps may spend here, as budgets of the guests."""

from __future__ import annotations

from collections.abc import Sequence

from qgate.store.database import Connection


def by_pool(pool: bytes) -> str:
    """Who set such a budget."""
    return f"pool:{pool.hex()[:16]}"


async def put_slices(
    connection: Connection, pool: bytes, guest: str, slices: Sequence[tuple[str, str, str]]
) -> None:
    """Let a guest app ("POOL/APP") spend (period, amount, currency) here and no more.

    What an administrator of this pool has set for it stays.
    """
    await connection.execute(
        "DELETE FROM budgets WHERE scope = 'app' AND subject = $1 AND changed_by = $2 AND period <> ALL($3)",
        guest,
        by_pool(pool),
        [period for period, _, _ in slices],
    )
    for period, amount, currency in slices:
        await connection.execute(
            """
            INSERT INTO budgets (id, scope, subject, period, hard, currency, changed_by, changed_at)
            VALUES ($1, 'app', $2, $3, $4::text::numeric, $5, $6, now())
            ON CONFLICT (id) DO UPDATE SET hard = excluded.hard, currency = excluded.currency,
                changed_at = excluded.changed_at WHERE budgets.changed_by = excluded.changed_by
            """,
            f"app:{guest}/{period}",
            guest,
            period,
            amount,
            currency,
            by_pool(pool),
        )


async def forget_slices(connection: Connection, pool: bytes) -> None:
    """The pool's apps have no part of anything here any more."""
    await connection.execute("DELETE FROM budgets WHERE changed_by = $1", by_pool(pool))

"""Budgets, what gates have leased of them, and the journal of what they shifted.

The arithmetic is in two functions of the database (`lease_budget`, `settle_slice`), under one row lock and
by its clock, so that no gate's memory or clock can break the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from qgate.capability.finops.budgets import Budget
from qgate.store.database import Connection

CHANNEL: Final = "qgate_budget"


@dataclass(frozen=True, slots=True)
class Lease:
    """What the database answered: `granted` is None where the need did not fit into `left_over`.

    `idle` is what other runs hold of the period without having spent it, told where nothing was granted.
    `remaining_s` seconds were left of the period when it answered.
    """

    granted: Decimal | None
    left_over: Decimal | None
    hard: Decimal | None
    idle: Decimal
    started_at: datetime
    ends_at: datetime
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How a budget stands in its present period: `committed` counts slices whole, `spent` as told.

    `lost` is what runs of gates hold that have not been heard of for a while: it counts as spent.
    """

    id: str
    started_at: datetime
    ends_at: datetime
    committed: Decimal
    spent: Decimal
    lost: Decimal
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Shift:
    """One entry of the journal; `at` is unix time."""

    id: str
    at: float
    budget: str
    what: str
    reason: str
    app: str = ""
    request: str = ""
    from_model: str = ""
    to_model: str = ""


def budget_of(row: Any) -> Budget:
    """A budgets row."""
    return Budget(
        scope=row["scope"],
        subject=row["subject"],
        period=row["period"],
        soft=row["soft"],
        hard=row["hard"],
        currency=row["currency"],
    )


async def all_budgets(connection: Connection) -> list[Budget]:
    """Every budget."""
    return [budget_of(row) for row in await connection.fetch("SELECT * FROM budgets ORDER BY id")]


async def put_budget(connection: Connection, budget: Budget, *, by: str, at: datetime) -> None:
    """Set a budget; what its present period has spent stays."""
    await connection.execute(
        """
        INSERT INTO budgets (id, scope, subject, period, soft, hard, currency, changed_by, changed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (id) DO UPDATE SET
            soft = excluded.soft, hard = excluded.hard, currency = excluded.currency,
            changed_by = excluded.changed_by, changed_at = excluded.changed_at
        """,
        budget.id,
        budget.scope,
        budget.subject,
        budget.period,
        budget.soft,
        budget.hard,
        budget.currency,
        by,
        at,
    )


async def drop_budget(connection: Connection, id: str) -> bool:  # noqa: A002 - the column's name
    """Forget a budget; what it has spent is kept, in case it is set again. False where there is none."""
    return await connection.execute("DELETE FROM budgets WHERE id = $1", id) != "DELETE 0"


async def lease(
    connection: Connection, budget: str, *, run: str, gate: str, need: Decimal, want: Decimal
) -> Lease | None:
    """Lease from a budget; None where there is no such budget."""
    row = await connection.fetchrow(
        "SELECT * FROM lease_budget($1, $2, $3, $4, $5)", budget, run, gate, need, want
    )
    return Lease(*row) if row else None


@dataclass(frozen=True, slots=True)
class Told:
    """What a run says of its slice: all that it has spent, and what it gives back (to be said once only)."""

    budget: str
    started_at: datetime
    run: str
    spent: Decimal
    gives_back: Decimal


async def settle(connection: Connection, told: Sequence[Told]) -> None:
    """Say what slices have spent and what is given back, in one order, so that gates cannot deadlock."""
    await connection.executemany(
        "SELECT settle_slice($1, $2, $3, $4, $5)",
        [
            (one.budget, one.started_at, one.run, one.spent, one.gives_back)
            for one in sorted(told, key=lambda one: (one.budget, one.started_at, one.run))
        ],
    )


async def recall(connection: Connection, budget: str) -> None:
    """Ask the other gates to give back what they do not need of a budget."""
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, budget)


async def standings(connection: Connection, *, silent_s: float) -> dict[str, Standing]:
    """How each budget stands now; a slice not heard of for `silent_s` seconds is counted as lost."""
    rows = await connection.fetch(
        """
        SELECT b.id, w.begins AS started_at, w.ends AS ends_at,
               coalesce(p.committed, 0) AS committed, coalesce(s.spent, 0) AS spent,
               coalesce(s.lost, 0) AS lost,
               extract(epoch FROM w.ends - clock_timestamp())::double precision AS remaining_s
        FROM budgets b
        CROSS JOIN LATERAL (
            SELECT date_trunc(b.period, now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS begins,
                   (date_trunc(b.period, now() AT TIME ZONE 'UTC') + ('1 ' || b.period)::interval)
                       AT TIME ZONE 'UTC' AS ends
        ) w
        LEFT JOIN budget_periods p ON p.budget = b.id AND p.started_at = w.begins
        LEFT JOIN LATERAL (
            SELECT sum(spent) AS spent,
                   sum(granted - spent) FILTER (
                       WHERE granted > spent AND seen_at < clock_timestamp() - make_interval(secs => $1)
                   ) AS lost
            FROM budget_slices WHERE budget = b.id AND started_at = w.begins
        ) s ON true
        """,
        silent_s,
    )
    return {row["id"]: Standing(*row) for row in rows}


async def history(connection: Connection, budget: str, limit: int) -> list[dict[str, Any]]:
    """The latest periods of a budget, newest first."""
    rows = await connection.fetch(
        """
        SELECT p.started_at, p.ends_at, p.committed, coalesce(sum(s.spent), 0) AS spent
        FROM budget_periods p LEFT JOIN budget_slices s USING (budget, started_at)
        WHERE p.budget = $1 GROUP BY p.started_at, p.ends_at, p.committed
        ORDER BY p.started_at DESC LIMIT $2
        """,
        budget,
        limit,
    )
    return [dict(row) for row in rows]


async def slices_of(connection: Connection, budget: str, started_at: datetime) -> list[dict[str, Any]]:
    """Who holds what of a budget's period."""
    rows = await connection.fetch(
        """
        SELECT gate, run, granted, spent, seen_at FROM budget_slices
        WHERE budget = $1 AND started_at = $2 ORDER BY gate, seen_at
        """,
        budget,
        started_at,
    )
    return [dict(row) for row in rows]


async def add_shifts(connection: Connection, gate: str, shifts: Sequence[Shift]) -> None:
    """Write to the journal; an entry that is there already (its answer was lost) stays one."""
    await connection.executemany(
        """
        INSERT INTO budget_shifts (id, at, gate, budget, what, app, request, from_model, to_model, reason)
        VALUES ($1, to_timestamp($2), $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING
        """,
        [
            (
                one.id,
                one.at,
                gate,
                one.budget,
                one.what,
                one.app,
                one.request,
                one.from_model,
                one.to_model,
                one.reason,
            )
            for one in shifts
        ],
    )


async def list_shifts(connection: Connection, budget: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest entries of the journal, newest first."""
    rows = await connection.fetch(
        """
        SELECT * FROM budget_shifts WHERE $1::text IS NULL OR budget = $1 ORDER BY at DESC, id LIMIT $2
        """,
        budget,
        limit,
    )
    return [dict(row) for row in rows]


async def forget_before(connection: Connection, before: datetime) -> None:
    """Drop periods that ended before a moment, their slices, and journal entries as old."""
    await connection.execute("DELETE FROM budget_periods WHERE ends_at < $1", before)
    await connection.execute("DELETE FROM budget_shifts WHERE at < $1", before)

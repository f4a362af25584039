"""Receipts: the signed text as it was handed out, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from qgate.store.database import Connection


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One receipt as it is stored; `at` is unix time."""

    id: str
    at: float
    app: str
    document: str


_FACTS: Final = """
    coalesce(doc->>'team', '') AS team, coalesce(doc->>'model', '') AS model,
    coalesce(doc->>'task', '') AS task, coalesce(doc->>'currency', '') AS currency,
    coalesce(doc->>'outcome' <> 'ok', false) AS failed,
    coalesce((doc->>'tokens_in')::bigint, 0) AS tokens_in,
    coalesce((doc->>'tokens_out')::bigint, 0) AS tokens_out, (doc->>'price')::numeric AS price"""
"""What is read of a document (``doc``), once, when the receipt comes: the columns beside it."""

_SUMS: Final = """
    count(*) AS requests, count(*) FILTER (WHERE failed) AS failed, sum(tokens_in) AS tokens_in,
    sum(tokens_out) AS tokens_out, sum(price) AS cost, max(at) AS last_at"""


async def add_receipts(connection: Connection, rows: Sequence[ReceiptRow]) -> None:
    """Keep receipts; one that is there already (its answer was lost) stays one."""
    await connection.execute(
        f"""
        INSERT INTO receipts (id, at, app, document, day, team, model, task, currency, failed, tokens_in,
            tokens_out, price)
        SELECT id, at, app, document, (at AT TIME ZONE 'UTC')::date, {_FACTS}
        FROM (SELECT u.id, to_timestamp(u.at) AS at, u.app, u.document, u.document::jsonb AS doc
              FROM unnest($1::text[], $2::double precision[], $3::text[], $4::text[])
                   AS u (id, at, app, document) OFFSET 0) AS new
        ON CONFLICT (id) DO NOTHING
        """,  # noqa: S608 - our own expressions
        [row.id for row in rows],
        [row.at for row in rows],
        [row.app for row in rows],
        [row.document for row in rows],
    )


async def find_receipt(connection: Connection, id: str, app: str | None) -> ReceiptRow | None:  # noqa: A002 - the column's name
    """A receipt; with `app` only one of that app."""
    row = await connection.fetchrow(
        "SELECT * FROM receipts WHERE id = $1 AND ($2::text IS NULL OR app = $2)", id, app
    )
    return _row(row) if row else None


async def list_receipts(
    connection: Connection,
    *,
    app: str | None,
    since: datetime | None,
    before: str | None,
    limit: int,
    text: str | None = None,
) -> list[ReceiptRow]:
    """The newest receipts, newest first; those older than the receipt `before`, where one is named, and those
    that hold `text`, in any case.
    """
    rows = await connection.fetch(
        """
        SELECT * FROM receipts
        WHERE ($1::text IS NULL OR app = $1) AND ($2::timestamptz IS NULL OR at >= $2)
          AND ($3::text IS NULL OR (at, id) < (SELECT b.at, b.id FROM receipts b WHERE b.id = $3))
          AND ($5::text IS NULL OR position(lower($5) in lower(document)) > 0)
        ORDER BY at DESC, id DESC LIMIT $4
        """,
        app,
        since,
        before,
        limit,
        text,
    )
    return [_row(row) for row in rows]


async def sum_receipts(
    connection: Connection, *, by: str, since: datetime, app: str | None
) -> list[dict[str, Any]]:
    """What receipts say was used since a moment, a row each app, team, model, task or day (``by``)
    and currency."""
    key = {"app": "app", "model": "model", "task": "task", "team": "team", "day": "day"}[by]
    name = "to_char(name, 'YYYY-MM-DD')" if by == "day" else "name"
    rows = await connection.fetch(
        f"""
        SELECT {name} AS name, currency, sum(requests)::bigint AS requests, sum(failed)::bigint AS failed,
               sum(tokens_in)::bigint AS tokens_in, sum(tokens_out)::bigint AS tokens_out,
               coalesce(sum(cost), 0)::text AS cost, max(last_at) AS last_at
        FROM (
            SELECT {key} AS name, currency, {_SUMS} FROM receipts
            WHERE at >= $1 AND ($2::text IS NULL OR app = $2) AND day IS NOT NULL GROUP BY 1, 2
            UNION ALL
            SELECT {key}, currency, {_SUMS}
            FROM (SELECT at, app, (at AT TIME ZONE 'UTC')::date AS day, {_FACTS}
                  FROM (SELECT at, app, document::jsonb AS doc FROM receipts
                        WHERE at >= $1 AND ($2::text IS NULL OR app = $2) AND day IS NULL OFFSET 0) AS unread
                 ) AS facts GROUP BY 1, 2
        ) AS parts
        GROUP BY 1, 2 ORDER BY 1, 2
        """,  # noqa: S608 - our own expressions
        since,
        app,
    )
    return [dict(row) for row in rows]


async def read_documents(connection: Connection, limit: int) -> int:
    """Fill the columns of receipts that an earlier version wrote, the newest first; how many."""
    done = await connection.execute(
        f"""
        UPDATE receipts SET day = (receipts.at AT TIME ZONE 'UTC')::date, team = facts.team,
            model = facts.model, task = facts.task, currency = facts.currency, failed = facts.failed,
            tokens_in = facts.tokens_in, tokens_out = facts.tokens_out, price = facts.price
        FROM (SELECT id, {_FACTS} FROM (
                  SELECT id, document::jsonb AS doc FROM receipts WHERE day IS NULL
                  ORDER BY at DESC LIMIT $1 FOR UPDATE SKIP LOCKED) AS unread) AS facts
        WHERE receipts.id = facts.id
        """,  # noqa: S608 - our own expressions
        limit,
    )
    return int(done.split()[-1])


async def drop_receipts(connection: Connection, before: datetime) -> int:
    """Forget receipts from before a moment; how many."""
    done = await connection.execute("DELETE FROM receipts WHERE at < $1", before)
    return int(done.split()[-1])


def _row(row: Any) -> ReceiptRow:
    return ReceiptRow(row["id"], row["at"].timestamp(), row["app"], row["document"])

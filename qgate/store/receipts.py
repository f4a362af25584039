"""Receipts: the signed text as it was handed out, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qgate.store.database import Connection


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One receipt as it is stored; `at` is unix time."""

    id: str
    at: float
    app: str
    document: str


async def add_receipts(connection: Connection, rows: Sequence[ReceiptRow]) -> None:
    """Keep receipts; one that is there already (its answer was lost) stays one."""
    await connection.execute(
        """
        INSERT INTO receipts (id, at, app, document)
        SELECT u.id, to_timestamp(u.at), u.app, u.document
        FROM unnest($1::text[], $2::double precision[], $3::text[], $4::text[])
             AS u (id, at, app, document)
        ON CONFLICT (id) DO NOTHING
        """,
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
    key = {
        "app": "app",
        "model": "doc->>'model'",
        "task": "doc->>'task'",
        "team": "doc->>'team'",
        "day": "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    }[by]
    rows = await connection.fetch(
        f"""
        SELECT coalesce({key}, '') AS name, coalesce(doc->>'currency', '') AS currency,
               count(*) AS requests, count(*) FILTER (WHERE doc->>'outcome' <> 'ok') AS failed,
               coalesce(sum((doc->>'tokens_in')::bigint), 0)::bigint AS tokens_in,
               coalesce(sum((doc->>'tokens_out')::bigint), 0)::bigint AS tokens_out,
               coalesce(sum((doc->>'price')::numeric), 0)::text AS cost,
               max(at) AS last_at
        FROM (SELECT at, app, document::jsonb AS doc FROM receipts
              WHERE at >= $1 AND ($2::text IS NULL OR app = $2)) AS receipt
        GROUP BY 1, 2 ORDER BY 1, 2
        """,  # noqa: S608 - our own expressions
        since,
        app,
    )
    return [dict(row) for row in rows]


async def drop_receipts(connection: Connection, before: datetime) -> int:
    """Forget receipts from before a moment; how many."""
    done = await connection.execute("DELETE FROM receipts WHERE at < $1", before)
    return int(done.split()[-1])


def _row(row: Any) -> ReceiptRow:
    return ReceiptRow(row["id"], row["at"].timestamp(), row["app"], row["document"])

"""The inbox of notifications, and the tables that they are made of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from qgate.store.database import Connection


async def add_notification(
    connection: Connection,
    *,
    ref: str,
    kind: str,
    severity: str,
    subject: str,
    body: str,
    following: str,
    at: datetime,
) -> int | None:
    """Keep a notification; None where there is one about the same already."""
    number = await connection.fetchval(
        """
        INSERT INTO notifications (ref, kind, severity, subject, body, next, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (ref) DO NOTHING RETURNING id
        """,
        ref,
        kind,
        severity,
        subject,
        body,
        following,
        at,
    )
    return None if number is None else int(number)


async def list_notifications(
    connection: Connection,
    reader: str,
    *,
    limit: int,
    before: int | None,
    severities: list[str],
    unread: bool,
    cleared: bool,
    kind: str | None,
    text: str | None = None,
) -> list[dict[str, Any]]:
    """The newest first, with whether ``reader`` has read them; with ``text`` in subject or body."""
    rows = await connection.fetch(
        """
        SELECT n.*, r.read_at FROM notifications n
        LEFT JOIN notification_reads r ON r.notification = n.id AND r.reader = $1
        WHERE ($3::bigint IS NULL OR n.id < $3) AND n.severity = ANY($4::text[])
          AND (NOT $5 OR r.read_at IS NULL) AND ($6 OR n.cleared_at IS NULL)
          AND ($7::text IS NULL OR n.kind = $7)
          AND ($8::text IS NULL OR strpos(lower(n.subject || ' ' || n.body), lower($8)) > 0)
        ORDER BY n.id DESC LIMIT $2
        """,
        reader,
        limit,
        before,
        severities,
        unread,
        cleared,
        kind,
        text,
    )
    return [dict(row) for row in rows]


async def count_notifications(connection: Connection, reader: str) -> tuple[int, int]:
    """(open, unread by ``reader``)."""
    row = await connection.fetchrow(
        """
        SELECT count(*) AS open, count(*) FILTER (WHERE r.read_at IS NULL) AS unread FROM notifications n
        LEFT JOIN notification_reads r ON r.notification = n.id AND r.reader = $1
        WHERE n.cleared_at IS NULL
        """,
        reader,
    )
    assert row is not None
    return int(row["open"]), int(row["unread"])


async def read_notifications(
    connection: Connection, reader: str, numbers: list[int] | None, at: datetime
) -> int:
    """Note that ``reader`` has read those, or all with None; how many were unread."""
    done = await connection.execute(
        """
        INSERT INTO notification_reads (notification, reader, read_at)
        SELECT id, $1, $3 FROM notifications
        WHERE cleared_at IS NULL AND ($2::bigint[] IS NULL OR id = ANY($2)) ON CONFLICT DO NOTHING
        """,
        reader,
        numbers,
        at,
    )
    return int(done.split()[-1])


async def clear_notifications(connection: Connection, numbers: list[int] | None, at: datetime) -> int:
    """Put those, or all with None, away for everybody; how many."""
    done = await connection.execute(
        """
        UPDATE notifications SET cleared_at = $2
        WHERE cleared_at IS NULL AND ($1::bigint[] IS NULL OR id = ANY($1))
        """,
        numbers,
        at,
    )
    return int(done.split()[-1])


async def clear_settled(connection: Connection, at: datetime) -> int:
    """Put away what tells of incidents that are over; how many."""
    done = await connection.execute(
        """
        UPDATE notifications n SET cleared_at = $1 FROM incidents i
        WHERE n.cleared_at IS NULL AND i.state = 'resolved'
          AND n.ref IN ('incident:' || i.id, 'incident:' || i.id || ':escalated')
        """,
        at,
    )
    return int(done.split()[-1])


async def drop_old_notifications(connection: Connection, before: datetime) -> None:
    """Forget what was told before a moment."""
    await connection.execute("DELETE FROM notifications WHERE created_at < $1", before)


# --- what there is to tell ----------------------------------------------------------------------------------


async def untold_incidents(connection: Connection) -> list[dict[str, Any]]:
    """Incidents that last and of which no notification tells yet."""
    rows = await connection.fetch(
        """
        SELECT i.* FROM incidents i WHERE i.state <> 'resolved'
          AND (NOT EXISTS (SELECT FROM notifications n WHERE n.ref = 'incident:' || i.id)
               OR (i.escalated_at IS NOT NULL AND NOT EXISTS
                   (SELECT FROM notifications n WHERE n.ref = 'incident:' || i.id || ':escalated')))
        ORDER BY i.id
        """
    )
    return [dict(row) for row in rows]


async def spent_budgets(connection: Connection, at: datetime) -> list[dict[str, Any]]:
    """Budgets whose current period is beyond a limit: id, scope, subject, period, limits, spent."""
    rows = await connection.fetch(
        """
        SELECT b.id, b.scope, b.subject, b.period, b.soft, b.hard, b.currency, p.started_at, p.ends_at,
               sum(s.spent) AS spent
        FROM budgets b JOIN budget_periods p ON p.budget = b.id AND p.started_at <= $1 AND p.ends_at > $1
        JOIN budget_slices s ON s.budget = b.id AND s.started_at = p.started_at
        GROUP BY b.id, p.started_at, p.ends_at
        HAVING sum(s.spent) >= least(coalesce(b.soft, b.hard), coalesce(b.hard, b.soft))
        """,
        at,
    )
    return [dict(row) for row in rows]


async def lock_outs(connection: Connection, now: float) -> list[tuple[str, float]]:
    """(subject, unix time of its end) of every lock-out that lasts: a name or a client key that guessed."""
    rows = await connection.fetch(
        "SELECT subject, locked_until FROM admin_strikes WHERE locked_until > $1 ORDER BY subject", now
    )
    return [(row["subject"], float(row["locked_until"])) for row in rows]


async def ending_nodes(connection: Connection, before: datetime) -> list[dict[str, Any]]:
    """Nodes whose certificate ends before a moment: name, role, serial, expires_at."""
    rows = await connection.fetch(
        """
        SELECT name, role, serial, expires_at FROM nodes WHERE revoked_at IS NULL AND expires_at < $1
            AND NOT (role = 'admin' AND owner = '')  -- a set-up token's, good for a day
        ORDER BY expires_at
        """,
        before,
    )
    return [dict(row) for row in rows]

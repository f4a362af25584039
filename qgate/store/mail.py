"""Mail that waits, and who is told of what."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from qgate.store.database import Connection

CHANNEL = "qgate_mail"
"""Heard by every gate when there is mail to send."""


@dataclass(frozen=True, slots=True)
class WaitingMail:
    """A mail whose turn it is; ``attempts`` counts this one."""

    id: str
    kind: str
    sealed: bytes = field(repr=False)
    attempts: int
    created_at: datetime


async def queue_mail(
    connection: Connection, mail: str, *, person: str | None, kind: str, sealed: bytes, at: datetime
) -> None:
    """Let a mail be sent once the caller's transaction is committed."""
    await connection.execute(
        """
        INSERT INTO mail_outbox (id, person, kind, sealed, state, next_at, created_at)
        VALUES ($1, $2, $3, $4, 'waiting', $5, $5)
        """,
        mail,
        person,
        kind,
        sealed,
        at,
    )
    await connection.execute("SELECT pg_notify($1, '')", CHANNEL)


async def take_due(connection: Connection, at: datetime, *, lease_s: float, limit: int) -> list[WaitingMail]:
    """Mails whose turn it is, for ``lease_s`` seconds this gate's alone."""
    rows = await connection.fetch(
        """
        WITH due AS (SELECT id FROM mail_outbox WHERE state = 'waiting' AND next_at <= $1
                     ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED)
        UPDATE mail_outbox m SET attempts = m.attempts + 1, next_at = $2 FROM due WHERE m.id = due.id
        RETURNING m.id, m.kind, m.sealed, m.attempts, m.created_at
        """,
        at,
        at + timedelta(seconds=lease_s),
        limit,
    )
    return sorted((WaitingMail(**dict(row)) for row in rows), key=lambda mail: mail.created_at)


async def next_due(connection: Connection) -> datetime | None:
    """When the next mail's turn is, None where none waits."""
    at: datetime | None = await connection.fetchval(
        "SELECT min(next_at) FROM mail_outbox WHERE state = 'waiting'"
    )
    return at


async def postpone(connection: Connection, mail: str, *, until: datetime, said: str) -> None:
    """Try a mail again later."""
    await connection.execute(
        "UPDATE mail_outbox SET next_at = $2, said = $3 WHERE id = $1", mail, until, said
    )


async def finish(connection: Connection, mail: str, *, state: str, said: str, at: datetime) -> None:
    """A mail is sent, or never will be: its text and addresses are dropped."""
    await connection.execute(
        "UPDATE mail_outbox SET state = $2, sealed = NULL, said = $3, done_at = $4 WHERE id = $1",
        mail,
        state,
        said,
        at,
    )


async def retry_now(connection: Connection, at: datetime) -> int:
    """Let every waiting mail be tried at once; how many."""
    done = await connection.execute("UPDATE mail_outbox SET next_at = $1 WHERE state = 'waiting'", at)
    await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
    return int(done.split()[-1])


async def sealed_mail(connection: Connection) -> list[tuple[str, bytes]]:
    """(id, box) of all mail whose text is still here."""
    rows = await connection.fetch("SELECT id, sealed FROM mail_outbox WHERE sealed IS NOT NULL")
    return [(row["id"], row["sealed"]) for row in rows]


async def drop_mail(connection: Connection, mail: str) -> None:
    """Forget a mail, sent or not."""
    await connection.execute("DELETE FROM mail_outbox WHERE id = $1", mail)


async def list_mail(connection: Connection, *, limit: int) -> list[dict[str, Any]]:
    """The newest mails, without what is in them."""
    rows = await connection.fetch(
        """
        SELECT id, person, kind, state, attempts, next_at, created_at, done_at, said FROM mail_outbox
        ORDER BY created_at DESC, id DESC LIMIT $1
        """,
        limit,
    )
    return [dict(row) for row in rows]


async def mail_to(
    connection: Connection, person: str, *, before: str | None, limit: int
) -> list[dict[str, Any]]:
    """The newest mails to a person, without what is in them; those older than the mail ``before``."""
    rows = await connection.fetch(
        """
        SELECT id, person, kind, state, attempts, next_at, created_at, done_at, said FROM mail_outbox
        WHERE person = $1 AND ($2::text IS NULL OR (created_at, id) <
            (SELECT b.created_at, b.id FROM mail_outbox b WHERE b.id = $2))
        ORDER BY created_at DESC, id DESC LIMIT $3
        """,
        person,
        before,
        limit,
    )
    return [dict(row) for row in rows]


async def count_mail(connection: Connection) -> dict[str, int]:
    """How many mails are in which state."""
    rows = await connection.fetch("SELECT state, count(*) AS number FROM mail_outbox GROUP BY state")
    return {row["state"]: int(row["number"]) for row in rows}


async def drop_old_mail(connection: Connection, before: datetime) -> None:
    """Forget what was sent or given up before a moment."""
    await connection.execute("DELETE FROM mail_outbox WHERE state <> 'waiting' AND done_at < $1", before)


# --- who is told --------------------------------------------------------------------------------------------


async def all_recipients(connection: Connection) -> list[tuple[str, bytes, str]]:
    """(id, sealed address or person, least severity) of everybody who is told by mail."""
    rows = await connection.fetch("SELECT id, sealed, severity FROM mail_recipients ORDER BY id")
    return [(row["id"], row["sealed"], row["severity"]) for row in rows]


async def put_recipient(connection: Connection, recipient: str, sealed: bytes, severity: str) -> None:
    """Add somebody to tell."""
    await connection.execute(
        "INSERT INTO mail_recipients (id, sealed, severity) VALUES ($1, $2, $3)", recipient, sealed, severity
    )


async def drop_recipient(connection: Connection, recipient: str) -> None:
    """Tell them no more."""
    await connection.execute("DELETE FROM mail_recipients WHERE id = $1", recipient)


async def drop_recipients(connection: Connection) -> None:
    """Tell nobody."""
    await connection.execute("DELETE FROM mail_recipients")

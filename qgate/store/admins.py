"""Administrators, their sessions and their wrong passwords."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qgate.governance.admin_list import AdminList, KnownAdmin, KnownSession
from qgate.governance.principal import Role
from qgate.governance.second_factor import factor_purpose
from qgate.governance.strikes import Strikes
from qgate.store.admin_words import all_out
from qgate.store.database import Connection

CLAIM_LOCK = 0x71_67_61_64_6D
"""Taken by whoever makes the first admin: "qgadm" in ASCII."""


@dataclass(frozen=True, slots=True)
class AdminRow:
    """One account. `second_factor` and `pending_factor` are sealed."""

    name: str
    role: str
    version: int
    created_at: datetime
    created_by: str
    password_changed_at: datetime
    logged_in_at: datetime | None
    disabled_at: datetime | None
    factor_step: int
    verifier: str = field(repr=False)
    second_factor: bytes | None = field(repr=False)
    pending_factor: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session as it is opened. Times are aware; ``proof`` is what its grant hashes to."""

    sid: bytes
    admin: str
    client: str
    node: str
    second_factor: bool
    read_only: bool
    opened_at: datetime
    expires_at: datetime
    proof: bytes = field(default=b"", repr=False)


_SELECT = """
    SELECT name, role, version, created_at, created_by, password_changed_at, logged_in_at, disabled_at,
        factor_step, verifier, second_factor, pending_factor
    FROM admins"""


async def read_admins(connection: Connection) -> AdminList:
    """What requests are checked against. Sessions that ran out long ago are left out."""
    admins = await connection.fetch("SELECT name, role, disabled_at FROM admins")
    sessions = await connection.fetch(
        "SELECT sid, admin, expires_at FROM admin_sessions"
        " WHERE ended_at IS NULL AND expires_at > now() - interval '1 day'"
    )
    over = await connection.fetch("SELECT pool, sid FROM admin_sessions_over")
    return AdminList(
        {
            row["name"]: KnownAdmin(row["name"], Role(row["role"]), row["disabled_at"] is not None)
            for row in admins
        },
        {row["sid"]: KnownSession(row["admin"], row["expires_at"].timestamp()) for row in sessions},
        frozenset((bytes(row["pool"]), bytes(row["sid"])) for row in over),
        await all_out(connection),
    )


async def list_admins(connection: Connection) -> list[AdminRow]:
    """Every account, by name."""
    rows = await connection.fetch(_SELECT + " ORDER BY name")
    return [AdminRow(*row) for row in rows]


async def find_admin(connection: Connection, name: str, *, lock: bool = False) -> AdminRow | None:
    """One account; with ``lock`` nobody changes it before this transaction ends."""
    row = await connection.fetchrow(_SELECT + " WHERE name = $1" + (" FOR UPDATE" if lock else ""), name)
    return AdminRow(*row) if row else None


async def claim(connection: Connection) -> bool:
    """Whether there is no admin yet; until this transaction ends nobody else can make the first."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", CLAIM_LOCK)
    return not await connection.fetchval("SELECT EXISTS (SELECT FROM admins)")


async def count_admins(connection: Connection) -> int:
    """How many accounts are not disabled."""
    return int(await connection.fetchval("SELECT count(*) FROM admins WHERE disabled_at IS NULL"))


async def add_admin(
    connection: Connection, name: str, role: str, verifier: str, *, at: datetime, by: str
) -> bool:
    """Add an account; False where the name is taken."""
    done = await connection.execute(
        """
        INSERT INTO admins (name, role, verifier, created_at, created_by, password_changed_at)
        VALUES ($1, $2, $3, $4, $5, $4) ON CONFLICT DO NOTHING
        """,
        name,
        role,
        verifier,
        at,
        by,
    )
    return bool(done != "INSERT 0 0")


async def change_admin(connection: Connection, name: str, *, role: str, disabled_at: datetime | None) -> None:
    """Set role and standing."""
    await connection.execute(
        "UPDATE admins SET role = $2, disabled_at = $3, version = version + 1 WHERE name = $1",
        name,
        role,
        disabled_at,
    )


async def remove_admin(connection: Connection, name: str) -> None:
    """Remove an account with its sessions."""
    await connection.execute("DELETE FROM admins WHERE name = $1", name)


async def live_owners(connection: Connection) -> set[str]:
    """Names of owners that are not disabled; locked, so that two of them cannot be lost at once."""
    rows = await connection.fetch(
        "SELECT name FROM admins WHERE role = 'owner' AND disabled_at IS NULL ORDER BY name FOR UPDATE"
    )
    return {row["name"] for row in rows}


async def set_password(connection: Connection, name: str, verifier: str, at: datetime) -> None:
    """Replace a password's verifier."""
    await connection.execute(
        "UPDATE admins SET verifier = $2, password_changed_at = $3, version = version + 1 WHERE name = $1",
        name,
        verifier,
        at,
    )


async def set_factors(
    connection: Connection, name: str, *, current: bytes | None, pending: bytes | None, step: int
) -> None:
    """Set the sealed secrets of the second factor and the last step that was used."""
    await connection.execute(
        """
        UPDATE admins SET second_factor = $2, pending_factor = $3, factor_step = $4, version = version + 1
        WHERE name = $1
        """,
        name,
        current,
        pending,
        step,
    )


async def use_step(connection: Connection, name: str, step: int) -> bool:
    """Note that a code was used; False where it, or a later one, was used before."""
    done = await connection.execute(
        "UPDATE admins SET factor_step = $2 WHERE name = $1 AND factor_step < $2", name, step
    )
    return bool(done != "UPDATE 0")


async def reseal_admins(connection: Connection, reseal: Callable[[bytes, str], bytes]) -> int:
    """Replace each sealed second factor by `reseal(box, purpose)`; returns how many."""
    count = 0
    for row in await list_admins(connection):
        current, pending = (
            None if box is None else reseal(box, factor_purpose(row.name))
            for box in (row.second_factor, row.pending_factor)
        )
        if current or pending:
            await set_factors(connection, row.name, current=current, pending=pending, step=row.factor_step)
            count += (current is not None) + (pending is not None)
    return count


# --- sessions


async def open_session(connection: Connection, session: SessionRow) -> None:
    """Add a session; sessions long over are removed."""
    await connection.execute(
        """
        INSERT INTO admin_sessions
            (sid, admin, client, node, second_factor, read_only, opened_at, expires_at, proof)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        session.sid,
        session.admin,
        session.client,
        session.node,
        session.second_factor,
        session.read_only,
        session.opened_at,
        session.expires_at,
        session.proof,
    )
    await connection.execute(
        "UPDATE admins SET logged_in_at = $2 WHERE name = $1", session.admin, session.opened_at
    )
    await connection.execute(
        "DELETE FROM admin_sessions WHERE expires_at < $1::timestamptz - interval '7 days'", session.opened_at
    )


async def proof_of_session(connection: Connection, sid: bytes) -> bytes | None:
    """What the grant of a session of ours hashes to; None where there is no such session."""
    proof: bytes | None = await connection.fetchval("SELECT proof FROM admin_sessions WHERE sid = $1", sid)
    return proof


async def list_sessions(connection: Connection, now: datetime, admin: str | None) -> list[dict[str, Any]]:
    """Sessions that stand, newest first; of one admin, or of all."""
    rows = await connection.fetch(
        """
        SELECT * FROM admin_sessions
        WHERE ended_at IS NULL AND expires_at > $1 AND ($2::text IS NULL OR admin = $2)
        ORDER BY opened_at DESC, sid
        """,
        now,
        admin,
    )
    return [dict(row) for row in rows]


async def end_sessions(
    connection: Connection, *, at: datetime, by: str, sid: bytes | None = None, admin: str | None = None
) -> list[tuple[bytes, str, datetime]]:
    """End one session, or all of an admin: (sid, admin, when it would have ended) of those that stood."""
    rows = await connection.fetch(
        """
        UPDATE admin_sessions SET ended_at = $1, ended_by = $2
        WHERE ended_at IS NULL AND expires_at > $1 AND (sid = $3 OR admin = $4)
        RETURNING sid, admin, expires_at
        """,
        at,
        by,
        sid,
        admin,
    )
    return [(row["sid"], row["admin"], row["expires_at"]) for row in rows]


async def note_over(
    connection: Connection, sid: bytes, pool: bytes, *, until: datetime, now: datetime
) -> bool:
    """Remember that a paired pool's session is over; False where that was known."""
    await connection.execute("DELETE FROM admin_sessions_over WHERE expires_at <= $1", now)
    done = await connection.execute(
        "INSERT INTO admin_sessions_over (sid, pool, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        sid,
        pool,
        until,
    )
    return bool(done != "INSERT 0 0")


async def count_over(connection: Connection, pool: bytes) -> int:
    """How many sessions of a paired pool are remembered as over."""
    return int(await connection.fetchval("SELECT count(*) FROM admin_sessions_over WHERE pool = $1", pool))


# --- wrong passwords


async def read_strikes(connection: Connection, subjects: Sequence[str]) -> dict[str, Strikes]:
    """What is held against each subject."""
    rows = await connection.fetch(
        "SELECT * FROM admin_strikes WHERE subject = ANY($1) ORDER BY subject FOR UPDATE", list(subjects)
    )
    return {row["subject"]: Strikes(tuple(row["times"]), row["locked_until"]) for row in rows}


async def put_strikes(connection: Connection, subject: str, strikes: Strikes) -> None:
    """Hold something against a subject."""
    await connection.execute(
        """
        INSERT INTO admin_strikes (subject, times, locked_until) VALUES ($1, $2, $3)
        ON CONFLICT (subject) DO UPDATE SET times = excluded.times, locked_until = excluded.locked_until
        """,
        subject,
        list(strikes.times),
        strikes.locked_until,
    )


async def forget_strikes(connection: Connection, subjects: Sequence[str]) -> None:
    """Hold nothing against them any more."""
    await connection.execute("DELETE FROM admin_strikes WHERE subject = ANY($1)", list(subjects))


def aware(at: float) -> datetime:
    """Unix seconds as the store wants them."""
    return datetime.fromtimestamp(at, UTC)

"""What the pool is and shows as a whole: its licence, its branding, and revisions of its configuration."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import asyncpg

from qgate.store.database import Connection, Store
from tunnel_proto.errors import MeshError


class ChangedMeanwhileError(MeshError):
    """Somebody changed a part of the configuration while the whole was being changed."""


# --- licence ------------------------------------------------------------------------------------------------


async def licence_row(connection: Connection, *, lock: bool = False) -> dict[str, Any] | None:
    """The licence that is installed; with ``lock`` nobody else changes it until this transaction ends."""
    if lock:
        await connection.execute("LOCK TABLE licence IN SHARE ROW EXCLUSIVE MODE")
    row = await connection.fetchrow("SELECT * FROM licence")
    return dict(row) if row else None


async def put_licence(connection: Connection, token: str, *, by: str, at: datetime) -> None:
    """Install a licence in place of the one that is there."""
    await connection.execute(
        """
        INSERT INTO licence (token, installed_by, installed_at, version)
        VALUES ($1, $2, $3, extract(epoch FROM $3::timestamptz)::bigint)
        ON CONFLICT (single) DO UPDATE SET token = excluded.token, installed_by = excluded.installed_by,
            installed_at = excluded.installed_at, warned = NULL,
            version = greatest(licence.version + 1, excluded.version)
        """,
        token,
        by,
        at,
    )


async def drop_licence(connection: Connection) -> bool:
    """Remove the licence; False where there is none."""
    return await connection.execute("DELETE FROM licence") != "DELETE 0"


async def take_licence_warning(connection: Connection, version: int, days: int) -> bool:
    """Whether it falls to us to warn that so many days are left: each number once in the whole pool."""
    done = await connection.execute(
        "UPDATE licence SET warned = $2 WHERE version = $1 AND (warned IS NULL OR warned > $2)", version, days
    )
    return done != "UPDATE 0"


# --- branding -----------------------------------------------------------------------------------------------


async def branding_row(connection: Connection, *, lock: bool = False) -> dict[str, Any] | None:
    """What the pool shows of itself; with ``lock`` nobody else changes it until this transaction ends."""
    if lock:
        await connection.execute("LOCK TABLE branding IN SHARE ROW EXCLUSIVE MODE")
    row = await connection.fetchrow("SELECT * FROM branding")
    return dict(row) if row else None


async def put_branding(connection: Connection, document: dict[str, Any], *, by: str, at: datetime) -> None:
    """Show this from now on."""
    await connection.execute(
        """
        INSERT INTO branding (document, changed_by, changed_at, version)
        VALUES ($1, $2, $3, extract(epoch FROM $3::timestamptz)::bigint)
        ON CONFLICT (single) DO UPDATE SET document = excluded.document, changed_by = excluded.changed_by,
            changed_at = excluded.changed_at, version = greatest(branding.version + 1, excluded.version)
        """,
        document,
        by,
        at,
    )


# --- revisions ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def changing_configuration(store: Store) -> AsyncIterator[Connection]:
    """A transaction that sees one moment, and in which one administrator at a time changes the whole.

    ChangedMeanwhileError where somebody else changed a part of it since that moment.
    """
    try:
        async with store.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await connection.execute("LOCK TABLE config_revisions IN SHARE ROW EXCLUSIVE MODE")
            yield connection
    except (asyncpg.SerializationError, asyncpg.ForeignKeyViolationError):
        raise ChangedMeanwhileError("somebody changed a part of it meanwhile") from None


async def add_revision(
    connection: Connection,
    *,
    document: dict[str, Any],
    changes: list[dict[str, Any]],
    by: str,
    reason: str,
    at: datetime,
    reverts: int | None = None,
) -> int:
    """Keep a revision; its number. The caller is inside `changing_configuration`."""
    return int(
        await connection.fetchval(
            """
            INSERT INTO config_revisions (number, at, by, reason, document, changes, reverts)
            VALUES ((SELECT coalesce(max(number), 0) + 1 FROM config_revisions), $1, $2, $3, $4, $5, $6)
            RETURNING number
            """,
            at,
            by,
            reason,
            document,
            changes,
            reverts,
        )
    )


async def list_revisions(
    connection: Connection, *, limit: int, before: int | None = None
) -> list[dict[str, Any]]:
    """Revisions without their documents, newest first."""
    rows = await connection.fetch(
        """
        SELECT number, at, by, reason, changes, reverts FROM config_revisions
        WHERE $2::bigint IS NULL OR number < $2 ORDER BY number DESC LIMIT $1
        """,
        limit,
        before,
    )
    return [dict(row) for row in rows]


async def revision_row(connection: Connection, number: int | None) -> dict[str, Any] | None:
    """One revision, the newest for None."""
    row = await connection.fetchrow(
        "SELECT * FROM config_revisions WHERE $1::bigint IS NULL OR number = $1 ORDER BY number DESC LIMIT 1",
        number,
    )
    return dict(row) if row else None


# --- changes to what exists ---------------------------------------------------------------------------------

ROUTE_FIELDS: Final = (
    "target_session_attrs",
    "compression",
    "pool_size",
    "pool_idle_s",
    "limits",
    "allow_replication",
    "audit_detail",
)
APP_FIELDS: Final = (
    "expires_at",
    "limits",
    "sidecars",
    "read_only",
    "statement_classes",
    "replication",
    "policy",
    "failover",
)
PROVIDER_FIELDS: Final = ("isolation", "enabled", "models", "options")


async def change_fields(
    connection: Connection, table: str, name: str, fields: dict[str, Any], known: tuple[str, ...]
) -> None:
    """Replace fields of the row of that name; ``known`` are the columns that may be."""
    names = [one for one in known if one in fields]
    if not names:
        return
    columns = ", ".join(f"{one} = ${number}" for number, one in enumerate(names, 2))
    await connection.execute(
        f"UPDATE {table} SET {columns} WHERE name = $1",  # noqa: S608 - our own names
        name,
        *(fields[one] for one in names),
    )


async def bind_databases(connection: Connection, app: str, databases: list[str]) -> None:
    """Let an app use these databases and no others."""
    await connection.execute("DELETE FROM app_databases WHERE app = $1", app)
    await connection.executemany(
        "INSERT INTO app_databases (app, route) VALUES ($1, $2)", [(app, one) for one in databases]
    )

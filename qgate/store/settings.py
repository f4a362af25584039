"""Settings: what an administrator set, and every change of it; the registry has declarations and defaults."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from qgate.store.database import Connection


async def all_settings(connection: Connection) -> dict[str, Any]:
    """Values by name."""
    return {row["name"]: row["value"] for row in await connection.fetch("SELECT name, value FROM settings")}


async def list_settings(connection: Connection) -> dict[str, dict[str, Any]]:
    """Rows by name, with who changed each and when."""
    return {row["name"]: dict(row) for row in await connection.fetch("SELECT * FROM settings")}


async def setting_versions(connection: Connection) -> dict[str, dict[str, Any]]:
    """The newest change of each setting that was ever changed: `{number, at, by}` by name."""
    rows = await connection.fetch(
        "SELECT DISTINCT ON (name) name, number, at, by FROM setting_changes ORDER BY name, number DESC"
    )
    return {row["name"]: dict(row) for row in rows}


async def setting_version(connection: Connection, name: str) -> int:
    """The number of a setting's newest change, 0 for one that was never changed; others wait until we end."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('qgate setting ' || $1))", name)
    found = await connection.fetchval("SELECT max(number) FROM setting_changes WHERE name = $1", name)
    return int(found or 0)


async def setting_changes(
    connection: Connection, name: str | None, *, limit: int, before: int | None = None
) -> list[dict[str, Any]]:
    """Changes of one setting or of all, newest first, those numbered below ``before``."""
    rows = await connection.fetch(
        """
        SELECT * FROM setting_changes
        WHERE ($1::text IS NULL OR name = $1) AND ($3::bigint IS NULL OR number < $3)
        ORDER BY number DESC LIMIT $2
        """,
        name,
        limit,
        before,
    )
    return [dict(row) for row in rows]


async def put_setting(
    connection: Connection, name: str, value: Any, *, by: str, at: datetime, reason: str = ""
) -> Any:
    """Set a value; returns the one before it, None for the default."""
    before = await connection.fetchval("SELECT value FROM settings WHERE name = $1 FOR UPDATE", name)
    await connection.execute(
        """
        INSERT INTO settings (name, value, changed_by, changed_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (name) DO UPDATE SET
            value = excluded.value, changed_by = excluded.changed_by, changed_at = excluded.changed_at
        """,
        name,
        value,
        by,
        at,
    )
    await _note(connection, name, before, value, by, at, reason)
    return before


async def drop_setting(
    connection: Connection, name: str, *, by: str = "", at: datetime | None = None, reason: str = ""
) -> bool:
    """Return to the default; False where it was that already."""
    before = await connection.fetchval("DELETE FROM settings WHERE name = $1 RETURNING value", name)
    if before is None:
        return False
    if at is not None:
        await _note(connection, name, before, None, by, at, reason)
    return True


async def _note(
    connection: Connection, name: str, before: Any, after: Any, by: str, at: datetime, reason: str
) -> None:
    await connection.execute(
        "INSERT INTO setting_changes (name, at, by, before, after, reason) VALUES ($1, $2, $3, $4, $5, $6)",
        name,
        at,
        by,
        before,
        after,
        reason,
    )

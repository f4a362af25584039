"""Settings: what an administrator set; declarations and defaults are in the registry."""

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


async def put_setting(connection: Connection, name: str, value: Any, *, by: str, at: datetime) -> None:
    """Set a value."""
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


async def drop_setting(connection: Connection, name: str) -> bool:
    """Return to the default; False where it was that already."""
    return await connection.execute("DELETE FROM settings WHERE name = $1", name) != "DELETE 0"

"""What of onboarding was done that cannot be seen otherwise, and what was passed over."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from qgate.store.database import Connection


async def noted_steps(connection: Connection) -> dict[str, dict[str, Any]]:
    """Steps that were done or skipped, by name."""
    return {row["step"]: dict(row) for row in await connection.fetch("SELECT * FROM onboarding")}


async def note_step(
    connection: Connection, step: str, state: str, *, by: str, at: datetime, detail: dict[str, Any]
) -> None:
    """Keep that a step was done or skipped."""
    await connection.execute(
        """
        INSERT INTO onboarding (step, state, by, at, detail) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (step) DO UPDATE SET
            state = excluded.state, by = excluded.by, at = excluded.at, detail = excluded.detail
        """,
        step,
        state,
        by,
        at,
        detail,
    )


async def reopen_step(connection: Connection, step: str) -> None:
    """Forget that a step was done or skipped."""
    await connection.execute("DELETE FROM onboarding WHERE step = $1", step)


async def has_admins(connection: Connection) -> bool:
    """Whether somebody administers this pool."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM admins)"))

"""When automations last did something, and when peers were last seen."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from qgate.store.database import Connection


async def note_run(
    connection: Connection, name: str, *, gate: str, at: datetime, ok: bool, outcome: str
) -> None:
    """Keep what an automation did last."""
    await connection.execute(
        """
        INSERT INTO automation_runs (name, gate, at, ok, outcome) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (name) DO UPDATE SET
            gate = excluded.gate, at = excluded.at, ok = excluded.ok, outcome = excluded.outcome
        """,
        name,
        gate,
        at,
        ok,
        outcome,
    )


async def runs(connection: Connection) -> dict[str, dict[str, Any]]:
    """What each automation did last, by its name."""
    return {row["name"]: dict(row) for row in await connection.fetch("SELECT * FROM automation_runs")}


async def note_seen(connection: Connection, keys: Iterable[bytes], at: datetime) -> None:
    """These peers have a link to a gate of ours."""
    await connection.executemany(
        """
        INSERT INTO peers_seen (pool_key, seen_at) SELECT pool_key, $2 FROM peers WHERE pool_key = $1
        ON CONFLICT (pool_key) DO UPDATE SET seen_at = greatest(peers_seen.seen_at, excluded.seen_at)
        """,
        [(key, at) for key in keys],
    )


async def seen(connection: Connection) -> dict[bytes, datetime]:
    """When each peer was seen last, by key; those that never were are not in it."""
    return {
        bytes(row["pool_key"]): row["seen_at"] for row in await connection.fetch("SELECT * FROM peers_seen")
    }

"""Results that are kept for other pools, and which requests of our own have their receipt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from qgate.store.database import Connection


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One kept result; ``at`` is unix time, ``pool`` the key of the pool that asked."""

    pool: bytes
    job: str
    docket: bytes
    receipt: str
    at: float


async def add_results(connection: Connection, rows: Sequence[ResultRow]) -> None:
    """Keep results; one that is there already stays as it is."""
    await connection.execute(
        """
        INSERT INTO results (pool, job, docket, receipt, at)
        SELECT u.pool, u.job, u.docket, u.receipt, to_timestamp(u.at)
        FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::text[], $5::double precision[])
             AS u (pool, job, docket, receipt, at)
        ON CONFLICT DO NOTHING
        """,
        [row.pool for row in rows],
        [row.job for row in rows],
        [row.docket for row in rows],
        [row.receipt for row in rows],
        [row.at for row in rows],
    )


async def list_results(connection: Connection, pool: bytes, limit: int) -> list[ResultRow]:
    """The oldest results kept for a pool, oldest first."""
    rows = await connection.fetch(
        "SELECT * FROM results WHERE pool = $1 ORDER BY at, job LIMIT $2", pool, limit
    )
    return [
        ResultRow(row["pool"], row["job"], row["docket"], row["receipt"], row["at"].timestamp())
        for row in rows
    ]


async def drop_results(connection: Connection, pool: bytes, jobs: Sequence[str]) -> None:
    """They were acknowledged."""
    await connection.execute("DELETE FROM results WHERE pool = $1 AND job = ANY($2)", pool, list(jobs))


async def forget_results(connection: Connection, before: datetime) -> int:
    """Give up what nobody asked for; how many."""
    done = await connection.execute("DELETE FROM results WHERE at < $1", before)
    return int(done.split()[-1])


async def recorded(connection: Connection, requests: Sequence[str]) -> frozenset[str]:
    """Those of the requests that have their receipt."""
    rows = await connection.fetch("SELECT id FROM receipts WHERE id = ANY($1)", list(requests))
    return frozenset(row["id"] for row in rows)


async def silence_of_gates(connection: Connection) -> dict[str, float]:
    """Seconds since each gate of the pool announced itself, by the store's own clock and theirs."""
    rows = await connection.fetch("SELECT name, extract(epoch FROM now() - seen_at) AS s FROM gates")
    return {row["name"]: float(row["s"]) for row in rows}

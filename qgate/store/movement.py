"""The journal of moves and incidents, and the orders that nodes are to hear. None of it leaves the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from qgate.store.database import Connection


@dataclass(frozen=True, slots=True)
class Movement:
    """One move or incident as a node told it. ``at`` and ``heard_at`` are times of the store."""

    id: bytes
    at: datetime
    heard_at: datetime
    gate: str
    home: bytes
    node: str
    role: str
    rule: str
    source: bytes
    target: bytes
    cause: str
    ordered: str


@dataclass(frozen=True, slots=True)
class KeptOrder:
    """An order that is still good. ``nodes`` empty: for every node of ``home``."""

    number: int
    home: bytes
    nodes: frozenset[str]
    expires: float
    sealed: bytes = field(repr=False)


# --- moves --------------------------------------------------------------------------------------------------


async def add_movements(connection: Connection, movements: Sequence[Movement]) -> None:
    """Keep what nodes told; what is here already is left as it is."""
    await connection.executemany(
        """
        INSERT INTO movements
            (id, at, heard_at, gate, home, node, role, rule, source, target, cause, ordered)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (id) DO NOTHING
        """,
        [
            (
                one.id,
                one.at,
                one.heard_at,
                one.gate,
                one.home,
                one.node,
                one.role,
                one.rule,
                one.source,
                one.target,
                one.cause,
                one.ordered,
            )
            for one in movements
        ],
    )


async def known_movements(connection: Connection, ids: Sequence[bytes]) -> frozenset[bytes]:
    """Which of these moves are in the journal already."""
    rows = await connection.fetch("SELECT id FROM movements WHERE id = ANY($1::bytea[])", list(ids))
    return frozenset(row["id"] for row in rows)


async def list_movements(connection: Connection, *, limit: int, node: str | None) -> list[dict[str, Any]]:
    """The newest moves, newest first, of one node or of all."""
    rows = await connection.fetch(
        """
        SELECT * FROM movements WHERE $2::text IS NULL OR node = $2 ORDER BY at DESC, heard_at DESC LIMIT $1
        """,
        limit,
        node,
    )
    return [dict(row) for row in rows]


async def last_targets(connection: Connection, home: bytes, role: str) -> dict[str, bytes]:
    """The pool that each node of a home pool went to last, by the node's name."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT ON (node) node, target FROM movements
        WHERE home = $1 AND role = $2 AND rule NOT LIKE 'incident:%' ORDER BY node, at DESC, heard_at DESC
        """,
        home,
        role,
    )
    return {row["node"]: bytes(row["target"]) for row in rows}


async def prune_movements(connection: Connection, before: datetime) -> None:
    """Forget moves and resolved incidents of long ago, and orders that have run out."""
    await connection.execute("DELETE FROM movements WHERE heard_at < $1", before)
    await connection.execute("DELETE FROM incidents WHERE state = 'resolved' AND resolved_at < $1", before)
    await connection.execute("DELETE FROM failover_orders WHERE expires_at < $1", before)


# --- incidents ----------------------------------------------------------------------------------------------


async def open_incident(
    connection: Connection,
    *,
    kind: str,
    subject: str,
    severity: str,
    evidence: dict[str, Any],
    at: datetime,
    evidence_max: int,
) -> tuple[int, bool]:
    """Note a trouble: a new incident, or one more sighting of one that lasts. Its number, and whether new."""
    row = await connection.fetchrow(
        """
        INSERT INTO incidents (kind, subject, severity, opened_at, seen_at, evidence)
        VALUES ($1, $2, $3, $4, $4, jsonb_build_array($5::jsonb))
        ON CONFLICT (kind, subject) WHERE state <> 'resolved' DO UPDATE SET
            seen_at = greatest(incidents.seen_at, excluded.seen_at), seen = incidents.seen + 1,
            evidence = CASE WHEN jsonb_array_length(incidents.evidence) < $6
                            THEN incidents.evidence || excluded.evidence ELSE incidents.evidence END
        RETURNING id, seen
        """,
        kind,
        subject,
        severity,
        at,
        evidence,
        evidence_max,
    )
    assert row is not None
    return int(row["id"]), int(row["seen"]) == 1


async def list_incidents(connection: Connection, *, limit: int, all_: bool) -> list[dict[str, Any]]:
    """Incidents, newest first; those that are resolved only with ``all_``."""
    rows = await connection.fetch(
        "SELECT * FROM incidents WHERE $2 OR state <> 'resolved' ORDER BY id DESC LIMIT $1", limit, all_
    )
    return [dict(row) for row in rows]


async def find_incident(connection: Connection, number: int) -> dict[str, Any] | None:
    """One incident, locked for this transaction."""
    row = await connection.fetchrow("SELECT * FROM incidents WHERE id = $1 FOR UPDATE", number)
    return None if row is None else dict(row)


async def acknowledge_incident(
    connection: Connection, number: int, *, by: str, note: str, at: datetime
) -> None:
    """Somebody looks after it."""
    await connection.execute(
        """
        UPDATE incidents SET state = 'acknowledged', answered_by = $2, answered_at = $3,
            note = CASE WHEN $4 = '' THEN note ELSE $4 END WHERE id = $1
        """,
        number,
        by,
        at,
        note,
    )


async def resolve_incident(connection: Connection, number: int, *, by: str, note: str, at: datetime) -> None:
    """It is over."""
    await connection.execute(
        """
        UPDATE incidents SET state = 'resolved', resolved_at = $3, answered_by = coalesce(answered_by, $2),
            answered_at = coalesce(answered_at, $3), note = CASE WHEN $4 = '' THEN note ELSE $4 END
        WHERE id = $1
        """,
        number,
        by,
        at,
        note,
    )


async def resolve_incidents(
    connection: Connection, *, kind: str, subject: str, note: str, at: datetime
) -> list[int]:
    """A trouble is over by itself; the numbers of the incidents that it was."""
    rows = await connection.fetch(
        """
        UPDATE incidents SET state = 'resolved', resolved_at = $3, note = $4
        WHERE kind = $1 AND subject = $2 AND state <> 'resolved' RETURNING id
        """,
        kind,
        subject,
        at,
        note,
    )
    return [int(row["id"]) for row in rows]


async def take_overdue(connection: Connection, *, at: datetime, after_s: float) -> list[dict[str, Any]]:
    """Open incidents that nobody answered for ``after_s`` seconds, each once: they count as escalated now."""
    rows = await connection.fetch(
        """
        UPDATE incidents SET escalated_at = $1
        WHERE state = 'open' AND escalated_at IS NULL AND opened_at <= $2 RETURNING *
        """,
        at,
        at - timedelta(seconds=after_s),
    )
    return [dict(row) for row in rows]


async def count_overdue(connection: Connection, *, at: datetime, after_s: float) -> int:
    """How many incidents `take_overdue` would take."""
    found = await connection.fetchval(
        """
        SELECT count(*) FROM incidents WHERE state = 'open' AND escalated_at IS NULL AND opened_at <= $1
        """,
        at - timedelta(seconds=after_s),
    )
    return int(found)


# --- orders -------------------------------------------------------------------------------------------------


async def next_order(connection: Connection, now: int) -> int:
    """A number above every order of this pool, also after its store was restored."""
    await connection.execute("LOCK TABLE failover_orders IN SHARE ROW EXCLUSIVE MODE")
    newest = await connection.fetchval("SELECT max(number) FROM failover_orders")
    return max(int(newest or 0) + 1, now)


async def ordered_since(connection: Connection, verb: str, since: datetime) -> bool:
    """Whether an order with that verb was given after ``since``."""
    found = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM failover_orders WHERE verb = $1 AND issued_at > $2)", verb, since
    )
    return bool(found)


async def keep_order(
    connection: Connection,
    order: KeptOrder,
    *,
    verb: str,
    target: bytes,
    by: str,
    issued: datetime,
) -> None:
    """Let every gate of the pool know of an order."""
    await connection.execute(
        """
        INSERT INTO failover_orders
            (number, home, verb, target, nodes, ordered_by, issued_at, expires_at, sealed)
        VALUES ($1, $2, $3, $4, $5, $6, $7, to_timestamp($8), $9)
        """,
        order.number,
        order.home,
        verb,
        target,
        sorted(order.nodes),
        by,
        issued,
        order.expires,
        order.sealed,
    )


async def live_orders(connection: Connection) -> tuple[KeptOrder, ...]:
    """Orders that are still good, in the order in which they were given."""
    rows = await connection.fetch("SELECT * FROM failover_orders WHERE expires_at > now() ORDER BY number")
    return tuple(
        KeptOrder(
            row["number"],
            row["home"],
            frozenset(row["nodes"]),
            row["expires_at"].timestamp(),
            row["sealed"],
        )
        for row in rows
    )

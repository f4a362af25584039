"""Nodes: the sidecars (and later daemons, peers, administrators) whose keys the pool has certified."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from qgate.federation.pairings import announce_node_revocation
from qgate.governance.directory import Node
from qgate.store.database import Connection


async def all_nodes(connection: Connection) -> list[Node]:
    """Every node, revoked ones included, so that a revoked key is known as such."""
    rows = await connection.fetch("SELECT * FROM nodes")
    return [
        Node(
            name=row["name"],
            role=row["role"],
            serial=row["serial"],
            revoked=row["revoked_at"] is not None,
            enrolled_at=row["enrolled_at"].timestamp(),
            verify_key=row["verify_key"],
            handshake_public=row["handshake_public"],
            owner=row["owner"],
        )
        for row in rows
    ]


async def list_nodes(connection: Connection) -> list[dict[str, Any]]:
    """Rows for people, by name; a name's revoked keys follow its live one."""
    rows = await connection.fetch("SELECT * FROM nodes ORDER BY name, revoked_at NULLS FIRST, serial DESC")
    return [dict(row) for row in rows]


async def live_node(connection: Connection, name: str) -> dict[str, Any] | None:
    """The node that holds `name` now; locked against a second enrolment in this transaction."""
    row = await connection.fetchrow(
        "SELECT * FROM nodes WHERE name = $1 AND revoked_at IS NULL FOR UPDATE", name
    )
    return dict(row) if row else None


async def revoked_at(connection: Connection, handshake_public: bytes, verify_key: bytes) -> datetime | None:
    """When a node with either of these keys was revoked last; None where both stand, or nobody knows them."""
    rows = await connection.fetch(
        "SELECT revoked_at FROM nodes WHERE handshake_public = $1 OR verify_key = $2 FOR UPDATE",
        handshake_public,
        verify_key,
    )
    return max((row["revoked_at"] for row in rows if row["revoked_at"] is not None), default=None)


async def next_serial(connection: Connection) -> int:
    """A serial that no certificate of this pool has yet."""
    return int(await connection.fetchval("SELECT nextval('node_serial')"))


async def put_node(connection: Connection, node: Node, *, fingerprint: str, expires_at: datetime) -> None:
    """Add a node, or renew the one with the same keys under its new serial, which ends its revocation: the
    caller has asked `revoked_at`, and knows that this is what is wanted.
    """
    await connection.execute(
        """
        INSERT INTO nodes (handshake_public, verify_key, name, role, fingerprint, serial, enrolled_at,
        expires_at, owner) VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7), $8, $9) ON CONFLICT
        (handshake_public) DO UPDATE SET
            name = excluded.name, owner = excluded.owner, role = excluded.role, serial = excluded.serial,
            enrolled_at = excluded.enrolled_at, expires_at = excluded.expires_at, revoked_at = NULL
        """,
        node.handshake_public,
        node.verify_key,
        node.name,
        node.role,
        fingerprint,
        node.serial,
        node.enrolled_at,
        expires_at,
        node.owner,
    )


async def label_node(connection: Connection, name: str, labels: Mapping[str, str]) -> None:
    """Replace the labels of the node that holds `name`."""
    await connection.execute(
        "UPDATE nodes SET labels = $2 WHERE name = $1 AND revoked_at IS NULL", name, dict(labels)
    )


async def revoke_node(connection: Connection, name: str, at: datetime) -> bool:
    """Revoke the node that holds `name`, and let every peer hear of it; False where none does."""
    row = await connection.fetchrow(
        """
        UPDATE nodes SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL
        RETURNING handshake_public, serial, role
        """,
        name,
        at,
    )
    if row is None:
        return False
    await announce_node_revocation(connection, row["handshake_public"], row["serial"], row["role"])
    return True

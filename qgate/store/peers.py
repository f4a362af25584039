"""This pool's name, its peers, and the ceremonies by which they were paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from qgate.federation.log.digest import record_digest
from qgate.federation.peer import OwnPool, Peer, Permissions
from qgate.store.database import Connection
from tunnel_proto.enrolment import GateAddress


async def own_pool(connection: Connection) -> OwnPool:
    """What the pool calls itself; the default where nobody has named it."""
    row = await connection.fetchrow("SELECT name, kind FROM pool")
    return OwnPool() if row is None else OwnPool(row["name"], row["kind"], named=True)


async def put_own_pool(connection: Connection, name: str, kind: str, at: datetime) -> None:
    """Name the pool, or rename it."""
    await connection.execute(
        """
        INSERT INTO pool (name, kind, created_at) VALUES ($1, $2, $3)
        ON CONFLICT (single) DO UPDATE SET name = excluded.name, kind = excluded.kind
        """,
        name,
        kind,
        at,
    )


async def all_peers(connection: Connection) -> list[Peer]:
    """Every peer, revoked and unpaired ones included, in the order of failover."""
    rows = await connection.fetch("SELECT * FROM peers ORDER BY position, name, pool_key")
    return [peer_of(dict(row)) for row in rows]


async def peer_row(connection: Connection, pool_key: bytes) -> dict[str, Any] | None:
    """A peer's row, locked for this transaction."""
    row = await connection.fetchrow("SELECT * FROM peers WHERE pool_key = $1 FOR UPDATE", pool_key)
    return dict(row) if row else None


async def peer_key_named(connection: Connection, name: str) -> bytes | None:
    """The key of the peer that holds ``name``, or of the one that held it last."""
    row = await connection.fetchrow(
        """
        SELECT pool_key FROM peers WHERE name = $1
        ORDER BY state IN ('unpaired', 'revoked'), changed_at DESC LIMIT 1
        """,
        name,
    )
    return bytes(row["pool_key"]) if row else None


async def name_holder(connection: Connection, name: str) -> bytes | None:
    """The key of the peer that is called ``name`` now, None where the name is free."""
    found = await connection.fetchval(
        "SELECT pool_key FROM peers WHERE name = $1 AND state NOT IN ('unpaired', 'revoked')", name
    )
    return None if found is None else bytes(found)


async def put_peer(connection: Connection, peer: Peer, at: datetime, *, pairing: bytes | None = None) -> None:
    """Add a peer, or replace what is known of it; a new one goes to the end of the order."""
    await connection.execute(
        """
        INSERT INTO peers (pool_key, name, kind, state, level, gates, online_certificate, permissions,
            pairing, paired_at, changed_at, position)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, to_timestamp($10), $11,
            (SELECT coalesce(max(position) + 1, 0) FROM peers))
        ON CONFLICT (pool_key) DO UPDATE SET name = excluded.name, kind = excluded.kind,
            state = excluded.state, level = excluded.level, gates = excluded.gates,
            online_certificate = excluded.online_certificate, permissions = excluded.permissions,
            pairing = coalesce(excluded.pairing, peers.pairing), paired_at = excluded.paired_at,
            changed_at = excluded.changed_at
        """,
        peer.pool_key,
        peer.name,
        peer.kind,
        peer.state,
        peer.level,
        gates_json(peer.gates),
        peer.online_certificate,
        peer.permissions.to_json(),
        pairing,
        peer.paired_at,
        at,
    )


async def set_positions(connection: Connection, keys: Sequence[bytes]) -> None:
    """Put peers in this order for failover."""
    for position, key in enumerate(keys):
        await connection.execute("UPDATE peers SET position = $2 WHERE pool_key = $1", key, position)


async def note_revoked(
    connection: Connection, pool_key: bytes, last_accepted: Mapping[str, Any] | None
) -> None:
    """Keep what was accepted last of a revoked peer's log."""
    await connection.execute(
        "UPDATE peers SET last_accepted = $2 WHERE pool_key = $1",
        pool_key,
        None if last_accepted is None else dict(last_accepted),
    )


def peer_of(row: Mapping[str, Any]) -> Peer:
    """A row of the table as a peer."""
    return Peer(
        pool_key=row["pool_key"],
        name=row["name"],
        kind=row["kind"],
        state=row["state"],
        level=row["level"],
        gates=gates_of(row["gates"]),
        online_certificate=row["online_certificate"],
        position=row["position"],
        permissions=Permissions.from_json(row["permissions"]),
        paired_at=None if row["paired_at"] is None else row["paired_at"].timestamp(),
    )


def gates_json(gates: Sequence[GateAddress]) -> list[list[Any]]:
    """Addresses as the store keeps them."""
    return [[gate.name, gate.host, gate.port, gate.handshake_public.hex()] for gate in gates]


def gates_of(rows: Sequence[Sequence[Any]]) -> tuple[GateAddress, ...]:
    """What `gates_json` wrote."""
    return tuple(GateAddress(name, host, port, bytes.fromhex(key)) for name, host, port, key in rows)


# --- ceremonies


async def pairing_row(connection: Connection, pairing: bytes) -> dict[str, Any] | None:
    """A ceremony, locked for this transaction."""
    row = await connection.fetchrow("SELECT * FROM pairings WHERE id = $1 FOR UPDATE", pairing)
    return dict(row) if row else None


async def pairing_with(connection: Connection, pool_key: bytes) -> dict[str, Any] | None:
    """The newest ceremony with a peer that has not ended, locked for this transaction."""
    row = await connection.fetchrow(
        """
        SELECT * FROM pairings WHERE peer = $1 AND state <> 'ended'
        ORDER BY started_at DESC LIMIT 1 FOR UPDATE
        """,
        pool_key,
    )
    return dict(row) if row else None


async def offers_open_until(connection: Connection) -> float:
    """Until when (unix time) an offer that may be answered over the tunnel is open; 0 where none is."""
    found = await connection.fetchval(
        "SELECT max(expires_at) FROM pairings WHERE side = 'offerer' AND state = 'offered' AND online"
    )
    return 0.0 if found is None else float(found.timestamp())


async def open_pairings(connection: Connection) -> list[dict[str, Any]]:
    """Ceremonies under way, oldest first."""
    rows = await connection.fetch(
        "SELECT * FROM pairings WHERE state NOT IN ('done', 'ended') ORDER BY started_at"
    )
    return [dict(row) for row in rows]


async def add_pairing(
    connection: Connection,
    pairing: bytes,
    *,
    side: str,
    state: str,
    offer: str,
    answer: str | None,
    peer: bytes | None,
    online: bool,
    at: datetime,
    expires_at: datetime,
) -> None:
    """Begin a ceremony."""
    await connection.execute(
        """
        INSERT INTO pairings (id, side, state, offer, answer, peer, online, started_at, expires_at,
            changed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $8)
        """,
        pairing,
        side,
        state,
        offer,
        answer,
        peer,
        online,
        at,
        expires_at,
    )


async def advance_pairing(
    connection: Connection,
    pairing: bytes,
    state: str,
    at: datetime,
    *,
    peer: bytes | None = None,
    answer: str | None = None,
    confirm: str | None = None,
    finish: str | None = None,
    outcome: str = "",
) -> None:
    """Take a ceremony a step further; what is left out stays."""
    await connection.execute(
        """
        UPDATE pairings SET state = $2, changed_at = $3, peer = coalesce($4, peer),
            answer = coalesce($5, answer), confirm = coalesce($6, confirm), finish = coalesce($7, finish),
            outcome = $8
        WHERE id = $1
        """,
        pairing,
        state,
        at,
        peer,
        answer,
        confirm,
        finish,
        outcome,
    )


async def count_wrong_string(connection: Connection, pairing: bytes) -> int:
    """Note that a wrong string was typed; returns how many have been."""
    return int(
        await connection.fetchval(
            "UPDATE pairings SET typed = typed + 1 WHERE id = $1 RETURNING typed", pairing
        )
    )


async def end_pairings_with(
    connection: Connection, pool_key: bytes, at: datetime, outcome: str, *, but: bytes = b""
) -> None:
    """End every ceremony with a peer, ``but`` one."""
    await connection.execute(
        """
        UPDATE pairings SET state = 'ended', changed_at = $2, outcome = $3
        WHERE peer = $1 AND state <> 'ended' AND id <> $4
        """,
        pool_key,
        at,
        outcome,
        but,
    )


async def drop_old_pairings(connection: Connection, before: datetime) -> None:
    """Forget ceremonies that ended, or came to nothing, before a time; finished ones are kept."""
    await connection.execute("DELETE FROM pairings WHERE state <> 'done' AND expires_at < $1", before)


# --- what peers say of their pairings


async def put_foreign_pairing(
    connection: Connection, origin: bytes, peer: bytes, *, name: str, kind: str, state: str, record: bytes
) -> None:
    """Keep what ``origin`` says of its pairing with ``peer``."""
    await connection.execute(
        """
        INSERT INTO foreign_pairings (origin, peer, name, kind, state, record) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (origin, peer) DO UPDATE SET name = excluded.name, kind = excluded.kind,
            state = excluded.state, record = excluded.record
        """,
        origin,
        peer,
        name,
        kind,
        state,
        record,
    )


async def foreign_pairings(connection: Connection) -> dict[bytes, list[dict[str, Any]]]:
    """By origin: the pools that it says it is paired with, was, or has revoked."""
    found: dict[bytes, list[dict[str, Any]]] = {}
    for row in await connection.fetch("SELECT * FROM foreign_pairings ORDER BY origin, name"):
        found.setdefault(bytes(row["origin"]), []).append(dict(row))
    return found


async def drop_foreign_pairings(connection: Connection, origin: bytes) -> None:
    """Forget all that ``origin`` said."""
    await connection.execute("DELETE FROM foreign_pairings WHERE origin = $1", origin)


async def foreign_pairing_digests(connection: Connection, origin: bytes) -> dict[bytes, bytes]:
    """A digest of each record of ``origin`` by the record's id, for anti-entropy."""
    rows = await connection.fetch(
        "SELECT record, peer, name, kind, state FROM foreign_pairings WHERE origin = $1", origin
    )
    return {
        bytes(row["record"]): record_digest(
            {"pool": bytes(row["peer"]), "name": row["name"], "kind": row["kind"], "state": row["state"]}
        )
        for row in rows
    }

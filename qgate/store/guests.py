"""Guests as the store keeps them, what was published of our own nodes and apps, and the roster."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from qgate.federation.guests import GuestApp, GuestNode, HomeKey, Spare
from qgate.store.database import Connection

EXPORT_LOCK: Final = 0x6D657368_65787074
"""Advisory lock of whoever compares what was published with what is: one gate of the pool at a time."""


async def lock_exports(connection: Connection) -> None:
    """Decide alone what peers are told until this transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", EXPORT_LOCK)


# --- guests of other pools ----------------------------------------------------------------------------------


async def all_guest_nodes(connection: Connection) -> list[GuestNode]:
    """Every node that peers told of, revoked ones included."""
    rows = await connection.fetch("SELECT * FROM guest_nodes")
    return [
        GuestNode(
            row["pool"],
            row["handshake_public"],
            row["verify_key"],
            row["name"],
            row["role"],
            row["serial"],
            row["revoked"],
        )
        for row in rows
    ]


async def put_guest_node(connection: Connection, node: GuestNode, record: bytes) -> None:
    """Keep what a peer says of one of its nodes; who was revoked stays revoked under that serial."""
    await connection.execute(
        """
        INSERT INTO guest_nodes (pool, handshake_public, verify_key, name, role, serial, revoked, record)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (pool, handshake_public) DO UPDATE SET verify_key = excluded.verify_key,
            name = excluded.name, role = excluded.role, serial = excluded.serial, record = excluded.record,
            revoked = excluded.revoked OR (guest_nodes.revoked AND excluded.serial <= guest_nodes.serial)
        """,
        node.pool,
        node.handshake_public,
        node.verify_key,
        node.name,
        node.role,
        node.serial,
        node.revoked,
        record,
    )


async def all_guest_apps(connection: Connection) -> list[GuestApp]:
    """Every app that peers let come here."""
    rows = await connection.fetch("SELECT pool, name, document FROM guest_apps")
    return [_app(row["pool"], row["name"], row["document"]) for row in rows]


async def put_guest_app(connection: Connection, app: GuestApp, record: bytes) -> None:
    """Keep what a peer says of one of its apps."""
    document = {
        "databases": sorted(app.databases),
        "verifiers": [list(one) for one in app.verifiers],
        "keys": [[digest.hex(), *rest] for digest, *rest in app.keys],
        "expires": app.expires_at,
        "limits": dict(app.limits),
        "sidecars": None if app.sidecars is None else sorted(app.sidecars),
        "read_only": app.read_only,
        "classes": None if app.statement_classes is None else sorted(app.statement_classes),
        "replication": app.replication,
        "policy": app.policy,
    }
    await connection.execute(
        """
        INSERT INTO guest_apps (pool, name, document, record) VALUES ($1, $2, $3, $4)
        ON CONFLICT (pool, name) DO UPDATE SET document = excluded.document, record = excluded.record
        """,
        app.pool,
        app.name,
        document,
        record,
    )


async def drop_guest_app(connection: Connection, pool: bytes, name: str) -> None:
    """An app of a peer may not come any more."""
    await connection.execute("DELETE FROM guest_apps WHERE pool = $1 AND name = $2", pool, name)


async def put_guest_roster(connection: Connection, pool: bytes, serial: int, sealed: bytes) -> None:
    """Keep a peer's roster for its nodes that come here; an older one than is held changes nothing."""
    await connection.execute(
        """
        INSERT INTO guest_rosters (pool, serial, sealed) VALUES ($1, $2, $3)
        ON CONFLICT (pool) DO UPDATE SET serial = excluded.serial, sealed = excluded.sealed
            WHERE excluded.serial >= guest_rosters.serial
        """,
        pool,
        serial,
        sealed,
    )


async def all_guest_rosters(connection: Connection) -> dict[bytes, bytes]:
    """Peers' sealed rosters by pool."""
    return {
        row["pool"]: row["sealed"] for row in await connection.fetch("SELECT pool, sealed FROM guest_rosters")
    }


async def forget_guest_nodes(connection: Connection, pool: bytes) -> None:
    """Remove every node that a peer told of."""
    await connection.execute("DELETE FROM guest_nodes WHERE pool = $1", pool)


async def forget_guest_apps(connection: Connection, pool: bytes) -> None:
    """Remove every app that a peer told of."""
    await connection.execute("DELETE FROM guest_apps WHERE pool = $1", pool)


async def forget_guest_roster(connection: Connection, pool: bytes) -> None:
    """Remove a peer's roster."""
    await connection.execute("DELETE FROM guest_rosters WHERE pool = $1", pool)


def _app(pool: bytes, name: str, document: Mapping[str, Any]) -> GuestApp:
    return GuestApp(
        pool=pool,
        name=name,
        databases=frozenset(document["databases"]),
        verifiers=tuple((verifier, until) for verifier, until in document["verifiers"]),
        keys=tuple(
            (bytes.fromhex(digest), name, prefix, until) for digest, name, prefix, until in document["keys"]
        ),
        expires_at=document["expires"],
        limits=document["limits"],
        sidecars=None if document["sidecars"] is None else frozenset(document["sidecars"]),
        read_only=document["read_only"],
        statement_classes=None if document["classes"] is None else frozenset(document["classes"]),
        replication=document["replication"],
        policy=document["policy"],
    )


# --- what peers are told of our own -------------------------------------------------------------------------


async def own_nodes(connection: Connection, pool: bytes) -> list[GuestNode]:
    """Nodes of ours that may fail over, revoked ones included."""
    rows = await connection.fetch("SELECT * FROM nodes WHERE role IN ('client', 'daemon')")
    return [
        GuestNode(
            pool,
            row["handshake_public"],
            row["verify_key"],
            row["name"],
            row["role"],
            row["serial"],
            row["revoked_at"] is not None,
        )
        for row in rows
    ]


async def own_apps(connection: Connection, pool: bytes) -> list[GuestApp]:
    """Apps of ours that may fail over: not revoked, and not opted out."""
    rows = await connection.fetch(
        """
        SELECT a.*, ARRAY(SELECT d.route FROM app_databases d WHERE d.app = a.name) AS databases
        FROM apps a WHERE a.failover AND a.revoked_at IS NULL
        """
    )
    return [
        GuestApp(
            pool=pool,
            name=row["name"],
            databases=frozenset(row["databases"]),
            expires_at=row["expires_at"].timestamp() if row["expires_at"] else None,
            limits=row["limits"],
            sidecars=None if row["sidecars"] is None else frozenset(row["sidecars"]),
            read_only=row["read_only"],
            statement_classes=_classes(row["statement_classes"]),
            replication=row["replication"],
            policy=row["policy"],
        )
        for row in rows
    ]


def _classes(value: Sequence[str] | None) -> frozenset[str] | None:
    return None if value is None else frozenset(value)


async def own_keys(connection: Connection) -> dict[str, tuple[HomeKey, ...]]:
    """Live API keys by app."""
    found: dict[str, tuple[HomeKey, ...]] = {}
    for row in await connection.fetch("SELECT * FROM api_keys WHERE revoked_at IS NULL ORDER BY id"):
        until = row["valid_until"].timestamp() if row["valid_until"] else None
        key = HomeKey(row["digest"], row["id"], row["prefix"], until)
        found[row["app"]] = (*found.get(row["app"], ()), key)
    return found


async def add_spares(
    connection: Connection, app: str, verifiers: Sequence[str], at: datetime, *, pool: bytes | None = None
) -> None:
    """Keep verifiers of an app's password, for ``pool`` or for pools to come."""
    await connection.executemany(
        "INSERT INTO app_spares (app, verifier, pool, created_at) VALUES ($1, $2, $3, $4)",
        [(app, verifier, pool, at) for verifier in verifiers],
    )


async def end_spares(connection: Connection, app: str, until: datetime, now: datetime) -> dict[bytes, str]:
    """A rotation: spares of the old password go, those given to pools end at ``until``.

    Returns by pool the newest verifier that it holds, whose salt the new one must have.
    """
    await connection.execute(
        "DELETE FROM app_spares WHERE app = $1 AND (pool IS NULL OR valid_until <= $2)", app, now
    )
    await connection.execute(
        "UPDATE app_spares SET valid_until = least(coalesce(valid_until, $2), $2) WHERE app = $1", app, until
    )
    rows = await connection.fetch("SELECT pool, verifier FROM app_spares WHERE app = $1 ORDER BY number", app)
    return {row["pool"]: row["verifier"] for row in rows}


async def drop_spares(connection: Connection, app: str) -> None:
    """A revoked app needs none."""
    await connection.execute("DELETE FROM app_spares WHERE app = $1", app)


async def assign_spares(connection: Connection, pools: Sequence[bytes], app: str | None = None) -> int:
    """Give each app that may fail over, or ``app``, a verifier for each of ``pools``; how many lack one.

    The caller holds `lock_exports`, so that no verifier is given to two pools.
    """
    lacking = await connection.fetch(
        """
        SELECT a.name, p.pool FROM apps a CROSS JOIN unnest($1::bytea[]) AS p (pool)
        WHERE a.failover AND a.revoked_at IS NULL
          AND EXISTS (SELECT FROM app_verifiers v WHERE v.app = a.name)
          AND NOT EXISTS (SELECT FROM app_spares s WHERE s.app = a.name AND s.pool = p.pool)
          AND ($2::text IS NULL OR a.name = $2)
        """,
        list(pools),
        app,
    )
    without: set[str] = set()
    for row in lacking:
        done = await connection.execute(
            """
            UPDATE app_spares SET pool = $2 WHERE (app, number) = (
                SELECT app, number FROM app_spares WHERE app = $1 AND pool IS NULL ORDER BY number LIMIT 1)
            """,
            row["name"],
            row["pool"],
        )
        if done == "UPDATE 0":
            without.add(row["name"])
    return len(without)


async def given_spares(connection: Connection) -> dict[str, tuple[Spare, ...]]:
    """By app, the verifiers that were given to pools, newest first."""
    rows = await connection.fetch("SELECT * FROM app_spares WHERE pool IS NOT NULL ORDER BY number DESC")
    found: dict[str, tuple[Spare, ...]] = {}
    for row in rows:
        until = row["valid_until"].timestamp() if row["valid_until"] else None
        found[row["app"]] = (*found.get(row["app"], ()), Spare(row["pool"], row["verifier"], until))
    return found


async def published(connection: Connection, stream: str) -> dict[bytes, bytes]:
    """The digest of what was published last, by record."""
    rows = await connection.fetch("SELECT record, digest FROM exports WHERE stream = $1", stream)
    return {row["record"]: row["digest"] for row in rows}


async def note_published(connection: Connection, stream: str, record: bytes, digest: bytes | None) -> None:
    """Remember what was published of a record; None: that it is gone."""
    if digest is None:
        await connection.execute("DELETE FROM exports WHERE stream = $1 AND record = $2", stream, record)
        return
    await connection.execute(
        """
        INSERT INTO exports (stream, record, digest) VALUES ($1, $2, $3)
        ON CONFLICT (stream, record) DO UPDATE SET digest = excluded.digest
        """,
        stream,
        record,
        digest,
    )


# --- the roster ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class KeptRoster:
    """The pool's newest roster as it was sealed; ``expires`` in unix seconds."""

    serial: int
    digest: bytes
    expires: float
    sealed: bytes


async def kept_roster(connection: Connection) -> KeptRoster | None:
    """The newest roster, None where there never was one."""
    row = await connection.fetchrow("SELECT * FROM roster")
    if row is None:
        return None
    return KeptRoster(row["serial"], row["digest"], row["expires"].timestamp(), row["sealed"])


async def keep_roster(connection: Connection, roster: KeptRoster) -> None:
    """Put a newer roster in the old one's place."""
    await connection.execute(
        """
        INSERT INTO roster (serial, digest, expires, sealed) VALUES ($1, $2, to_timestamp($3), $4)
        ON CONFLICT (single) DO UPDATE SET serial = excluded.serial, digest = excluded.digest,
            expires = excluded.expires, sealed = excluded.sealed WHERE excluded.serial > roster.serial
        """,
        roster.serial,
        roster.digest,
        roster.expires,
        roster.sealed,
    )


async def revoke_reclaimed(connection: Connection, handshake_public: bytes) -> None:
    """A node of ours that peers know as revoked is revoked, although a restored store does not know it."""
    await connection.execute(
        "UPDATE nodes SET revoked_at = now() WHERE handshake_public = $1 AND revoked_at IS NULL",
        handshake_public,
    )


async def app_names(connection: Connection) -> list[str]:
    """Names of all apps, revoked ones included."""
    return [row["name"] for row in await connection.fetch("SELECT name FROM apps")]

"""Routes: the databases behind the gate, and the sealed passwords they are reached with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from qgate.governance.directory import Limits, Route, with_limits
from qgate.store.database import Connection

# Candidates in the order of their likelihood.
_STATES = "CASE state WHEN 'current' THEN 0 WHEN 'pending' THEN 1 ELSE 2 END"


def route_of(row: Mapping[str, Any]) -> Route:
    """A routes row as the relay sees it."""
    return Route(
        name=row["name"],
        hosts=tuple((host, port) for host, port in row["hosts"]),
        dbname=row["dbname"],
        user=row["owner_role"],
        sslmode=row["sslmode"],
        sslrootcert=row["sslrootcert"],
        sslcert=row["sslcert"],
        sslkey_secret=sslkey_name(row["name"]) if row["has_sslkey"] else None,
        target_session_attrs=row["target_session_attrs"],
        channel_binding=row["channel_binding"],
        connect_timeout_s=row["connect_timeout_s"],
        read_only_user=row["read_only_role"],
        limits=with_limits(Limits(), row["limits"]),
        compression=row["compression"],
        pool_size=row["pool_size"],
        pool_idle_s=row["pool_idle_s"],
        allow_replication=row["allow_replication"],
        audit_detail=row["audit_detail"],
    )


def sslkey_name(route: str) -> str:
    """The name of the sealed secret that holds a route's TLS client key."""
    return f"sslkey:{route}"


async def all_routes(connection: Connection) -> list[Route]:
    """Every route."""
    return [route_of(dict(row)) for row in await connection.fetch("SELECT * FROM routes")]


async def list_routes(connection: Connection) -> list[dict[str, Any]]:
    """Rows for people, by name, each with `pending_rotation`."""
    rows = await connection.fetch(
        """
        SELECT r.*, EXISTS (SELECT FROM passwords p WHERE p.route = r.name AND p.state = 'pending')
               AS pending_rotation
        FROM routes r ORDER BY r.name
        """
    )
    return [dict(row) for row in rows]


async def find_route(connection: Connection, name: str) -> dict[str, Any] | None:
    """One route's row, locked for this transaction."""
    row = await connection.fetchrow("SELECT * FROM routes WHERE name = $1 FOR UPDATE", name)
    return dict(row) if row else None


async def add_route(
    connection: Connection, route: Route, *, limits: Mapping[str, Any], embedded: bool, created_at: datetime
) -> None:
    """Add a route; asyncpg.UniqueViolationError where the name is taken."""
    await connection.execute(
        """
        INSERT INTO routes
            (name, hosts, dbname, owner_role, read_only_role, sslmode, sslrootcert, sslcert, has_sslkey,
             target_session_attrs, channel_binding, connect_timeout_s, limits, compression, pool_size,
             pool_idle_s, allow_replication, audit_detail, embedded, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
        """,
        route.name,
        [list(host) for host in route.hosts],
        route.dbname,
        route.user,
        route.read_only_user,
        route.sslmode,
        route.sslrootcert,
        route.sslcert,
        route.sslkey_secret is not None,
        route.target_session_attrs,
        route.channel_binding,
        route.connect_timeout_s,
        dict(limits),
        route.compression,
        route.pool_size,
        route.pool_idle_s,
        route.allow_replication,
        route.audit_detail,
        embedded,
        created_at,
    )


async def move_route(connection: Connection, name: str, hosts: tuple[tuple[str, int], ...]) -> None:
    """Give a route other hosts; the caller reseals its passwords in the same transaction."""
    await connection.execute("UPDATE routes SET hosts = $2 WHERE name = $1", name, [list(h) for h in hosts])


async def embedded_routes(connection: Connection) -> list[str]:
    """The names of routes that lead into the store's own server."""
    return [
        row["name"] for row in await connection.fetch("SELECT name FROM routes WHERE embedded ORDER BY name")
    ]


async def remove_route(connection: Connection, name: str) -> None:
    """Remove a route with its passwords and bindings."""
    await connection.execute("DELETE FROM routes WHERE name = $1", name)


async def all_passwords(connection: Connection) -> dict[tuple[str, bool], tuple[bytes, ...]]:
    """Sealed candidates by (route, read-only?): current, pending, previous."""
    rows = await connection.fetch(f"SELECT * FROM passwords ORDER BY route, read_only, {_STATES}")  # noqa: S608
    found: dict[tuple[str, bool], tuple[bytes, ...]] = {}
    for row in rows:
        key = (row["route"], row["read_only"])
        found[key] = (*found.get(key, ()), row["sealed"])
    return found


async def passwords_of(connection: Connection, route: str, *, read_only: bool) -> dict[str, bytes]:
    """Sealed passwords of one role of a route, by state; locked for this transaction."""
    rows = await connection.fetch(
        "SELECT state, sealed FROM passwords WHERE route = $1 AND read_only = $2 FOR UPDATE", route, read_only
    )
    return {row["state"]: row["sealed"] for row in rows}


async def put_password(
    connection: Connection, route: str, *, read_only: bool, state: str, sealed: bytes, at: datetime
) -> None:
    """Set one password."""
    await connection.execute(
        """
        INSERT INTO passwords (route, read_only, state, sealed, changed_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (route, read_only, state) DO UPDATE
            SET sealed = excluded.sealed, changed_at = excluded.changed_at
        """,
        route,
        read_only,
        state,
        sealed,
        at,
    )


async def drop_password(connection: Connection, route: str, *, read_only: bool, state: str) -> None:
    """Forget one password, if it is there."""
    await connection.execute(
        "DELETE FROM passwords WHERE route = $1 AND read_only = $2 AND state = $3", route, read_only, state
    )


async def pending_rotations(connection: Connection) -> list[tuple[str, bool]]:
    """Which (route, read-only?) have a password that was sealed and not switched to yet."""
    rows = await connection.fetch(
        "SELECT route, read_only FROM passwords WHERE state = 'pending' ORDER BY 1, 2"
    )
    return [(row["route"], row["read_only"]) for row in rows]


async def forget_previous(connection: Connection, before: datetime) -> None:
    """Drop the previous passwords that were replaced before then."""
    await connection.execute("DELETE FROM passwords WHERE state = 'previous' AND changed_at < $1", before)


async def mark_rotated(connection: Connection, route: str, at: datetime) -> None:
    """Note when a route's password last changed."""
    await connection.execute("UPDATE routes SET rotated_at = $2 WHERE name = $1", route, at)

"""Apps: pseudo-credentials as SCRAM verifiers, and what they allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from qgate.governance.directory import App, CapabilityPolicy, Limits, with_limits
from qgate.store.database import Connection

_SELECT = """
    SELECT a.*,
           ARRAY(SELECT d.route FROM app_databases d WHERE d.app = a.name ORDER BY d.route) AS databases,
           ARRAY(SELECT v.verifier FROM app_verifiers v WHERE v.app = a.name ORDER BY v.number DESC) AS
           verifiers, ARRAY(SELECT v.valid_until FROM app_verifiers v WHERE v.app = a.name ORDER BY v.number
           DESC) AS untils, (SELECT o.person FROM person_apps o WHERE o.app = a.name) AS owner
    FROM apps a
"""


def _app(row: Mapping[str, Any], defaults: Limits) -> App:
    return App(
        name=row["name"],
        verifiers=tuple(
            (verifier, until.timestamp() if until else None)
            for verifier, until in zip(row["verifiers"], row["untils"], strict=True)
        ),
        databases=frozenset(row["databases"]),
        expires_at=row["expires_at"].timestamp() if row["expires_at"] else None,
        limits=with_limits(defaults, row["limits"]),
        sidecars=None if row["sidecars"] is None else frozenset(row["sidecars"]),
        read_only=row["read_only"],
        statement_classes=None if row["statement_classes"] is None else frozenset(row["statement_classes"]),
        replication=row["replication"],
        revoked=row["revoked_at"] is not None,
        policy=None if row["policy"] is None else CapabilityPolicy.from_json(row["policy"]),
    )


async def all_apps(connection: Connection, defaults: Limits) -> list[App]:
    """Every app, revoked and expired ones included; `defaults` fill the limits that it leaves open."""
    return [_app(dict(row), defaults) for row in await connection.fetch(_SELECT)]


async def list_apps(connection: Connection) -> list[dict[str, Any]]:
    """Rows for people, by name."""
    return [dict(row) for row in await connection.fetch(_SELECT + " ORDER BY a.name")]


async def find_app(connection: Connection, name: str) -> dict[str, Any] | None:
    """One app's row, locked for this transaction."""
    row = await connection.fetchrow(_SELECT + " WHERE a.name = $1 FOR UPDATE OF a", name)
    return dict(row) if row else None


async def add_app(
    connection: Connection,
    app: App,
    *,
    limits: Mapping[str, Any],
    created_at: datetime,
    expires_at: datetime | None,
    failover: bool = True,
) -> None:
    """Add an app with its databases and first verifier; a revoked one of that name is replaced."""
    await connection.execute("DELETE FROM apps WHERE name = $1 AND revoked_at IS NOT NULL", app.name)
    await connection.execute(
        """
        INSERT INTO apps
            (name, expires_at, limits, sidecars, read_only, statement_classes, replication, created_at,
             policy, failover)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        app.name,
        expires_at,
        dict(limits),
        None if app.sidecars is None else sorted(app.sidecars),
        app.read_only,
        None if app.statement_classes is None else sorted(app.statement_classes),
        app.replication,
        created_at,
        None if app.policy is None else app.policy.as_json(),
        failover,
    )
    await connection.executemany(
        "INSERT INTO app_databases (app, route) VALUES ($1, $2)",
        [(app.name, route) for route in sorted(app.databases)],
    )
    for verifier, _ in app.verifiers:
        await add_verifier(connection, app.name, verifier, created_at)


async def put_policy(connection: Connection, name: str, policy: CapabilityPolicy | None) -> None:
    """Set what an app may ask of models."""
    await connection.execute(
        "UPDATE apps SET policy = $2 WHERE name = $1", name, None if policy is None else policy.as_json()
    )


async def add_verifier(connection: Connection, app: str, verifier: str, created_at: datetime) -> None:
    """Accept one more password, without an end."""
    await connection.execute(
        "INSERT INTO app_verifiers (app, verifier, created_at) VALUES ($1, $2, $3)", app, verifier, created_at
    )


async def end_verifiers(connection: Connection, app: str, until: datetime, now: datetime) -> None:
    """Let every verifier of `app` end at `until` at the latest, and forget those that ended before `now`."""
    await connection.execute(
        "UPDATE app_verifiers SET valid_until = least(coalesce(valid_until, $2), $2) WHERE app = $1",
        app,
        until,
    )
    await connection.execute("DELETE FROM app_verifiers WHERE app = $1 AND valid_until <= $2", app, now)


async def revoke_app(connection: Connection, name: str, at: datetime) -> bool:
    """Revoke an app and forget its verifiers; False where there is none to revoke."""
    done = await connection.execute(
        "UPDATE apps SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL", name, at
    )
    await connection.execute("DELETE FROM app_verifiers WHERE app = $1", name)
    return done != "UPDATE 0"


async def apps_of_route(connection: Connection, route: str) -> list[str]:
    """The names of live apps that are bound to `route`."""
    rows: Iterable[Any] = await connection.fetch(
        """
        SELECT d.app FROM app_databases d JOIN apps a ON a.name = d.app
        WHERE d.route = $1 AND a.revoked_at IS NULL ORDER BY d.app
        """,
        route,
    )
    return [row["app"] for row in rows]

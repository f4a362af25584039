"""Every sealed box of the store at once, for a change of the vault's key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qgate.capability.providers.catalogue import key_purpose
from qgate.governance.directory import password_purpose, secret_purpose
from qgate.store.admins import reseal_admins
from qgate.store.database import Connection
from qgate.store.people import reseal_people
from qgate.store.providers import provider_of, put_provider_key
from qgate.store.routes import all_routes


async def list_sealed(connection: Connection) -> list[dict[str, Any]]:
    """What is sealed, never the boxes: kind, name, what it is, and when it was last changed (None: unknown).

    Boxes of people, recipients and letters are counted only.
    """
    rows = await connection.fetch(
        """
        SELECT 'database' AS kind, p.route AS name,
               CASE WHEN p.read_only THEN 'read-only role' ELSE 'role' END
               || CASE WHEN p.state = 'current' THEN '' ELSE ', ' || p.state END AS what, p.changed_at
        FROM passwords p
        UNION ALL SELECT 'other', name, '', changed_at FROM secrets
        UNION ALL SELECT 'provider', name, 'key', NULL FROM providers WHERE sealed_key IS NOT NULL
        UNION ALL SELECT 'admin', name, 'second factor', NULL FROM admins WHERE second_factor IS NOT NULL
        UNION ALL SELECT 'people', 'people', count(*) || ' keys', NULL FROM person_keys HAVING count(*) > 0
        UNION ALL SELECT 'mail', 'recipients', count(*)::text, NULL FROM mail_recipients HAVING count(*) > 0
        UNION ALL SELECT 'mail', 'letters', count(*)::text, NULL FROM mail_outbox
                  WHERE sealed IS NOT NULL HAVING count(*) > 0
        ORDER BY 1, 2, 3
        """
    )
    return [dict(row) for row in rows]


async def reseal_all(connection: Connection, reseal: Callable[[bytes, str], bytes]) -> int:
    """Replace each box by `reseal(box, purpose)`; returns how many. No gate can add one meanwhile."""
    await connection.execute("LOCK TABLE routes, passwords, secrets, providers, admins IN EXCLUSIVE MODE")
    routes = {route.name: route for route in await all_routes(connection)}
    count = 0
    for row in await connection.fetch("SELECT route, read_only, state, sealed FROM passwords"):
        purpose = password_purpose(routes[row["route"]], read_only=row["read_only"])
        await connection.execute(
            "UPDATE passwords SET sealed = $4 WHERE route = $1 AND read_only = $2 AND state = $3",
            row["route"],
            row["read_only"],
            row["state"],
            reseal(row["sealed"], purpose),
        )
        count += 1
    for row in await connection.fetch("SELECT name, sealed FROM secrets"):
        await connection.execute(
            "UPDATE secrets SET sealed = $2 WHERE name = $1",
            row["name"],
            reseal(row["sealed"], secret_purpose(row["name"])),
        )
        count += 1
    for row in await connection.fetch("SELECT * FROM providers WHERE sealed_key IS NOT NULL"):
        purpose = key_purpose(provider_of(dict(row)))
        await put_provider_key(connection, row["name"], reseal(row["sealed_key"], purpose))
        count += 1
    count += await reseal_admins(connection, reseal)
    return count + await reseal_people(connection, reseal)

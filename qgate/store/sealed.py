"""Every sealed box of the store at once, for a change of the vault's key."""

from __future__ import annotations

from collections.abc import Callable

from qgate.capability.providers.catalogue import key_purpose
from qgate.governance.directory import password_purpose, secret_purpose
from qgate.store.admins import reseal_admins
from qgate.store.database import Connection
from qgate.store.people import reseal_people
from qgate.store.providers import provider_of, put_provider_key
from qgate.store.routes import all_routes


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

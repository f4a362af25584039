"""The sample database `shop` in the embedded server."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Final

import asyncpg

from qgate.store.embedded import EmbeddedPostgres

DATABASE: Final = "shop"
OWNER: Final = "shop_owner"
READER: Final = "shop_reader"
_COUNT: Final = """
    SELECT (SELECT count(*) FROM customers) + (SELECT count(*) FROM products)
         + (SELECT count(*) FROM orders) + (SELECT count(*) FROM order_items)
"""


async def set_roles(server: EmbeddedPostgres, verifiers: Mapping[str, str], *, replace: bool) -> None:
    """Make the roles of `verifiers`, by name; those that exist get the new verifier only with `replace`."""
    connection = await asyncpg.connect(server.dsn())
    try:
        for role, verifier in verifiers.items():
            known = await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role)
            if not known:
                await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{verifier}'")
            elif replace:
                await connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{verifier}'")
    finally:
        await connection.close()


async def fill(server: EmbeddedPostgres) -> int:
    """Make the database and its rows unless they are there; returns how many rows its tables hold."""
    connection = await asyncpg.connect(server.dsn())
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
            await connection.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
            await connection.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {READER}")
    finally:
        await connection.close()
    shop = await asyncpg.connect(server.dsn(DATABASE))
    try:
        async with shop.transaction():
            await shop.execute("SELECT pg_advisory_xact_lock(hashtext('sample'))")
            await shop.execute(f"SET LOCAL ROLE {OWNER}")
            if await shop.fetchval("SELECT to_regclass('public.order_items')") is None:
                sql = (
                    importlib.resources.files("qgate.store").joinpath("shop.sql").read_text(encoding="utf-8")
                )
                await shop.execute(sql)
            return int(await shop.fetchval(_COUNT))
    finally:
        await shop.close()

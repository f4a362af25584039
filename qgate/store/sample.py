"""The sample database `shop` in the embedded server."""

from __future__ import annotations

import importlib.resources
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


async def set_roles(server: EmbeddedPostgres, *, owner: str, reader: str) -> None:
    """Make the two roles, or give them new passwords; `owner` and `reader` are SCRAM verifiers, not
    passwords.
    """
    connection = await asyncpg.connect(server.dsn())
    try:
        for role, verifier in ((OWNER, owner), (READER, reader)):
            known = await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role)
            verb = "ALTER" if known else "CREATE"
            await connection.execute(f"{verb} ROLE {role} LOGIN PASSWORD '{verifier}'")
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

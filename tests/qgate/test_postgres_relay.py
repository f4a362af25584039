"""Real drivers through the gate's relay to a real PostgreSQL."""

from __future__ import annotations

import asyncio

import asyncpg
import psycopg
import pytest

from qgate.governance.directory import Route
from tests.qgate.shop import PASSWORDS, shop, upstream_cluster
from tests.qgate.wire import PASSWORD, Wire, app, wire

__all__ = ["shop", "upstream_cluster"]


async def connect(running: Wire, **more: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(running.dsn(**more), autocommit=True)


async def test_a_query_goes_there_and_back(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        async with await connect(running) as connection:
            rows = await (
                await connection.execute("SELECT id, name FROM items WHERE id < 4 ORDER BY 1")
            ).fetchall()
        assert rows == [(1, "item 1"), (2, "item 2"), (3, "item 3")]


async def test_the_pid_is_the_upstreams_own(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as connection:
        row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
        assert row == (connection.info.backend_pid,)


async def test_asyncpg_uses_prepared_statements_and_copy(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=running.port, user="web", password=PASSWORD, database="shop"
        )
        try:
            assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
            await connection.execute("CREATE TEMP TABLE t (a int, b text)")
            records = [(i, "x" * (i % 50)) for i in range(5000)]
            await connection.copy_records_to_table("t", records=records)
            assert await connection.fetchval("SELECT count(*) FROM t") == 5000
            with pytest.raises(asyncpg.PostgresSyntaxError):
                await connection.execute("SELEC 1")
            assert [tuple(r) for r in await connection.fetch("SELECT a, b FROM t ORDER BY a")] == records
        finally:
            await connection.close()
        await asyncio.sleep(0)

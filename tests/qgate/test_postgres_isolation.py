"""The worst that a pooler can do is to show one session another's rows. It is tried here with many at
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import secrets

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qgate.governance.directory import Limits, Route
from tests.qgate.shop import PASSWORDS, shop, upstream_cluster
from tests.qgate.wire import PASSWORD, Wire, app, wire

__all__ = ["shop", "upstream_cluster"]
APPS = ("web", "worker", "report")


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    sessions=st.integers(8, 20),
    pool_size=st.integers(3, 10),
    apps=st.integers(1, 3),
)
async def test_no_session_ever_sees_anothers_rows(
    shop: Route, seed: int, sessions: int, pool_size: int, apps: int
) -> None:
    """Sessions of three apps mark everything they touch and check everything they see, over few connections.

    They run plain and prepared statements, large results, COPY, transactions, errors and cancels, and leave
    in every way: politely, in the middle of a result, with a transaction open.
    """
    route = dataclasses.replace(
        shop, pool_size=pool_size, limits=Limits(queue=1000, queue_timeout_s=60.0), pool_idle_s=60.0
    )
    async with wire([app(name) for name in APPS], [route], PASSWORDS) as running:
        randoms = [random.Random(seed + i) for i in range(sessions)]
        async with asyncio.TaskGroup() as group:
            for i, chance in enumerate(randoms):
                group.create_task(_live(running, APPS[i % apps], chance))
        stats = running.front.stats
        assert stats.leases_new + stats.leases_reused == 3 * sessions


async def _live(running: Wire, user: str, chance: random.Random) -> None:
    for _ in range(3):
        mark = secrets.token_hex(8)
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            host="127.0.0.1", port=running.port, user=user, password=PASSWORD, database="shop"
        )
        assert await connection.fetchval("SELECT pg_backend_pid()") == connection.get_server_pid()
        assert await connection.fetchval("SELECT to_regclass('mine')") is None, "another lease's table"
        assert await connection.fetchval("SELECT current_setting('my.mark', true)") in {None, ""}
        await connection.execute(f"CREATE TEMP TABLE mine AS SELECT '{mark}'::text AS mark")
        await connection.execute(f"SET my.mark = '{mark}'")
        for _ in range(chance.randrange(1, 6)):
            await _act(connection, mark, chance)
        await _leave(connection, mark, chance)


async def _act(connection: asyncpg.Connection[asyncpg.Record], mark: str, chance: random.Random) -> None:
    kind = chance.randrange(7)
    if kind == 0:
        rows = await connection.fetch(
            "SELECT mark, g FROM mine, generate_series(1, $1) g", chance.randrange(500)
        )
        assert {row["mark"] for row in rows} <= {mark}
    elif kind == 1:
        assert await connection.fetchval("SELECT $1::text || current_setting('my.mark')", mark) == mark * 2
    elif kind == 2:
        assert await connection.fetchval(f"SELECT '{mark}'") == mark
    elif kind == 3:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.execute("SELECT 1/0")
    elif kind == 4:
        async with connection.transaction():
            await connection.execute("INSERT INTO mine SELECT mark FROM mine LIMIT 1")
        assert [tuple(row) for row in await connection.fetch("SELECT DISTINCT mark FROM mine")] == [(mark,)]
    elif kind == 5:
        records = [(mark,)] * chance.randrange(1, 500)
        await connection.copy_records_to_table("mine", records=records)
        assert await connection.fetchval("SELECT count(DISTINCT mark) FROM mine") == 1
    else:
        with pytest.raises((asyncio.TimeoutError, asyncpg.QueryCanceledError)):
            await connection.fetchval("SELECT pg_sleep(5)", timeout=chance.random() * 0.05 + 0.005)
        assert await connection.fetchval("SELECT mark FROM mine LIMIT 1") == mark


async def _leave(connection: asyncpg.Connection[asyncpg.Record], mark: str, chance: random.Random) -> None:
    kind = chance.randrange(4)
    if kind == 0:
        await connection.close()
    elif kind == 1:
        await connection.execute("BEGIN")
        connection.terminate()
    elif kind == 2:
        task = asyncio.create_task(
            connection.fetch("SELECT mark, repeat(mark, 50) FROM mine, generate_series(1, 2000)")
        )
        await asyncio.sleep(chance.random() * 0.01)
        connection.terminate()
        with contextlib.suppress(
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncio.CancelledError
        ):
            assert {row["mark"] for row in await task} <= {mark}
    else:
        connection.terminate()

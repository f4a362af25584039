"""What drivers and pools of other languages say to the virtual database beside their queries."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy

from tests.integration import jdbc
from tests.integration.clients import NodePostgres
from tests.kit.login import Login
from tests.qgate.test_virtual import PASSWORD, Database, database


def login(served: Database) -> Login:
    return Login("127.0.0.1", served.port, "web", PASSWORD, "qg")


@pytest.mark.parametrize("mode", ["extended", "simple", "extendedCacheEverything"])
async def test_jdbc(tmp_path: Path, mode: str) -> None:
    if reason := jdbc.missing():
        pytest.skip(reason)
    async with database(tmp_path) as served:
        said = (await asyncio.to_thread(jdbc.run, login(served), "virtual", mode)).decode().splitlines()
        assert said == [
            "valid true",
            "catalog qg",
            "schema public",
            "no keywords true",
            *["about text  7 PGobject"] * 5,
            "model smol",
            "refused 0A000",
            "valid true",
        ]


NODE = """
const { Client, Pool, types } = require('pg');
(async () => {
  const pool = new Pool({ max: 2, statement_timeout: 30000, application_name: 'node' });
  const said = [];
  for (let n = 0; n < 3; n++) {
    const text = "SELECT * FROM qg('task=summarize', $1)";
    const { rows } = await pool.query({ name: 'ask', text, values: ['a' + n] });
    said.push(rows[0].text, typeof rows[0].result, rows[0].tokens_in);
  }
  const now = await pool.query('SELECT NOW()');
  said.push(now.rows[0].now instanceof Date);
  const client = await pool.connect();
  await client.query('BEGIN');
  said.push((await client.query('SHOW models')).rows[0].name);
  await client.query('ROLLBACK');
  try { await client.query('DELETE FROM t'); } catch (error) { said.push(error.code, error.hint.length > 0); }
  said.push((await client.query('SELECT 1 AS one; SELECT $$x$$ AS two')).length);
  client.release();
  await pool.end();
  console.log(JSON.stringify(said));
})().catch((error) => { console.error(error); process.exit(1); });
"""


async def test_node_postgres(tmp_path: Path) -> None:
    if reason := NodePostgres.missing():
        pytest.skip(reason)
    script = tmp_path / "ask.js"
    script.write_text(NODE)

    def talk(served: Database) -> subprocess.CompletedProcess[str]:
        environment = login(served).environment(NODE_PATH=str(NodePostgres.modules()))
        return subprocess.run(
            ["node", str(script)], capture_output=True, text=True, env=environment, timeout=60
        )

    async with database(tmp_path) as served:
        done = await asyncio.to_thread(talk, served)
        assert done.returncode == 0, done.stderr
        asked = '"about a{}","object",7'
        rest = '[{},{},{},true,"smol","0A000",true,2]'
        assert done.stdout.strip() == rest.format(*map(asked.format, range(3)))


async def test_asyncpg_reads_what_has_a_type(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        one = await asyncpg.connect(served.url(), statement_cache_size=0)
        row = await one.fetchrow("SELECT now(), current_date, current_schemas(true), 7, true, 1.5")
        assert row is not None
        now, today, schemas, *plain = row
        assert (dt.datetime.now(dt.UTC) - now).total_seconds() < 60
        assert today == now.date()
        assert schemas == ["pg_catalog", "public"]
        assert plain == [7, True, 1.5]
        assert await one.fetchval("SELECT current_setting('server_version_num')::int") == 180000
        assert await one.fetchval("SELECT set_config('application_name', $1, false)", "x") == "x"
        assert await one.fetchval("SHOW application_name") == "x"
        assert await one.fetch("SELECT relname FROM pg_class WHERE relname = $1::text", "x") == []
        assert await one.fetchval("SELECT count(*) FROM pg_stat_activity") == 0
        assert await one.fetchval("SELECT $1::int", 7) == 7
        await one.reset()
        await one.close()


async def test_pools_that_ping_and_tools_that_look_around(tmp_path: Path) -> None:
    def talk(served: Database) -> list[Any]:
        engine = sqlalchemy.create_engine(served.url("+psycopg"), pool_pre_ping=True, pool_size=1)
        looked = sqlalchemy.inspect(engine)
        found = [looked.get_table_names(), looked.get_schema_names(), looked.has_table("x")]
        for _ in range(3):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as one:
                found.append(one.execute(sqlalchemy.text("SELECT 1")).scalar())
        engine.dispose()
        return found

    async with database(tmp_path) as served:
        assert await asyncio.to_thread(talk, served) == [[], [], False, 1, 1, 1]


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW ALL",
        "SHOW TRANSACTION ISOLATION LEVEL",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
        'SET search_path = "$user", public',
        "SET bytea_output TO 'hex'",
        "SET ROLE NONE",
        "RESET ALL",
        "DISCARD ALL",
        "DEALLOCATE ALL",
        "UNLISTEN *",
        "CLOSE ALL",
        "SELECT pg_advisory_unlock_all()",
        "SELECT inet_server_addr(), inet_server_port()",
        "SELECT pg_catalog.version(), pg_catalog.current_schemas(false)",
        "SELECT EXISTS(SELECT 1 FROM pg_extension WHERE extname = 'vector')",
        "SELECT to_regclass('public.alembic_version')",
        "",
        "-- ping",
    ],
)
async def test_small_talk(tmp_path: Path, sql: str) -> None:
    async with (
        database(tmp_path) as served,
        await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as one,
    ):
        for prepare in (False, True):
            await one.execute(sql.encode(), prepare=prepare)

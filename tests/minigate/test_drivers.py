"""Real drivers talk to a real PostgreSQL through minigate's sockets; only the tunnel is left out."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import subprocess
from typing import Any

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import pytest

from minigate.settings import ListenSettings
from minigate.startup import Wire as Spoken
from tests.kit.cluster import Cluster, bundled
from tests.minigate.conftest import KeyPair, Wire, open_wire, until
from tests.minigate.gates import BridgedGate, BridgedStream, Pool, Server

_SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' AND pid <> pg_backend_pid()"
)


def _dsn(wire: Wire, postgres: Cluster, *options: str) -> str:
    return " ".join(
        [
            f"host=127.0.0.1 port={wire.port} user={postgres.user} password={postgres.password}",
            "dbname=postgres connect_timeout=10",
            *options,
        ]
    )


@pytest.mark.parametrize("version", ["3.0", "3.2"])
async def test_psycopg_queries_and_reports_errors(bridged: Wire, postgres: Cluster, version: str) -> None:
    dsn = _dsn(bridged, postgres, f"min_protocol_version={version} max_protocol_version={version}")
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute("SELECT 1 + 1, pg_backend_pid()")).fetchone()
        assert row is not None
        assert row[0] == 2
        assert row[1] == connection.info.backend_pid
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1 / 0")
    await until(lambda: not bridged.connections.live)


async def test_asyncpg_copies_and_listens(bridged: Wire, postgres: Cluster) -> None:
    connection: Any = await asyncpg.connect(
        host="127.0.0.1",
        port=bridged.port,
        user=postgres.user,
        password=postgres.password,
        database="postgres",
        ssl=False,
    )
    try:
        await connection.execute("CREATE TEMPORARY TABLE t (n int, text text)")
        rows = [(number, "x" * 500) for number in range(5000)]
        await connection.copy_records_to_table("t", records=rows)
        assert await connection.fetchval("SELECT count(*) FROM t") == 5000
        heard: asyncio.Queue[str] = asyncio.Queue()
        await connection.add_listener("c", lambda *one: heard.put_nowait(one[3]))
        await connection.execute("NOTIFY c, 'hello'")
        assert await asyncio.wait_for(heard.get(), 60) == "hello"
    finally:
        await connection.close()


async def test_psycopg2_and_pg8000_log_in(bridged: Wire, postgres: Cluster) -> None:
    def psycopg2_one() -> object:
        with psycopg2.connect(_dsn(bridged, postgres)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            value = cursor.fetchone()
        connection.close()
        return value

    def pg8000_one() -> object:
        connection = pg8000.native.Connection(
            postgres.user,
            host="127.0.0.1",
            port=bridged.port,
            password=postgres.password,
            database="postgres",
        )
        value = connection.run("SELECT 2")
        connection.close()
        return value

    assert await asyncio.to_thread(psycopg2_one) == (1,)
    assert await asyncio.to_thread(pg8000_one) == [[2]]


async def test_psql_logs_in_by_unix_socket(tmp_path: Any, postgres: Cluster) -> None:
    make = functools.partial(BridgedGate, server=Server("127.0.0.1", postgres.port))
    listen = ListenSettings(hosts=("127.0.0.1",), port=0, unix_socket=tmp_path)
    async with open_wire(listen=listen, pool=Pool(make), up=False) as wire:
        await until(lambda: wire.uplink.available() is not None)
        result = await asyncio.to_thread(
            subprocess.run,
            [
                bundled() / "psql",
                "-XAtc",
                "SELECT 40 + 2",
                "-h",
                tmp_path,
                "-p",
                str(wire.port),
                "-U",
                postgres.user,
                "postgres",
            ],
            env={"PGPASSWORD": postgres.password},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (result.stdout, result.stderr) == ("42\n", "")
        stream = await wire.stream()
        assert stream.metadata["source"] == "unix"
        assert isinstance(stream.metadata["uid"], int)


@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
async def test_libpq_over_local_tls(key_pair: KeyPair, postgres: Cluster, negotiation: str) -> None:
    make = functools.partial(BridgedGate, server=Server("127.0.0.1", postgres.port))
    async with open_wire(pool=Pool(make), up=False, certificate=key_pair.load()) as wire:
        await until(lambda: wire.uplink.available() is not None)
        # The stand-in cannot verify channel binding, so the client is told to do without.
        dsn = _dsn(
            wire, postgres, f"sslmode=verify-full sslrootcert={key_pair.certificate} channel_binding=disable"
        ).replace("host=127.0.0.1", "host=localhost hostaddr=127.0.0.1")
        async with await psycopg.AsyncConnection.connect(f"{dsn} sslnegotiation={negotiation}") as connection:
            cursor = await connection.execute("SELECT repeat('x', 3000000)")
            row = await cursor.fetchone()
            assert row is not None
            assert len(row[0]) == 3_000_000
        metadata = (await wire.stream()).metadata
        assert metadata["tls"] is True
        assert metadata["plus"] is True
        assert metadata["cbind"] == key_pair.load().binding
        assert wire.connections.counts.recognised[Spoken.POSTGRESQL.value] == 1


async def test_cancel_ends_the_running_query(bridged: Wire, postgres: Cluster) -> None:
    async with await psycopg.AsyncConnection.connect(_dsn(bridged, postgres)) as connection:
        sleeping = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        await until(lambda: bool(postgres.scalar(_SLEEPING)))
        await connection.cancel_safe(timeout=5)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping
    assert bridged.connections.counts.cancels == 1


async def test_only_authentication_is_marked_sensitive(bridged: Wire, postgres: Cluster) -> None:
    async with await psycopg.AsyncConnection.connect(_dsn(bridged, postgres), autocommit=True) as connection:
        await connection.execute("SELECT 1")
    stream = await bridged.stream()
    assert [kind for kind, sensitive in stream.written if sensitive] == [b"p", b"p"]
    assert {kind for kind, sensitive in stream.written if not sensitive} <= {b"Q", b"P", b"X", b"B"}


async def test_a_stalled_app_stops_its_server_and_loses_nothing(bridged: Wire, postgres: Cluster) -> None:
    """COPY of 60 MB to an app that does not read: bounded memory here, and every byte in the end."""
    async with await psycopg.AsyncConnection.connect(_dsn(bridged, postgres)) as connection:
        query = "COPY (SELECT n, md5(n::text) FROM generate_series(1, 1500000) n) TO STDOUT"
        digest = hashlib.sha256()
        size = 0
        async with connection.cursor().copy(query) as copy:
            first = await copy.read()
            digest.update(first)
            size += len(first)
            stream = bridged.gate.opened[-1]
            assert isinstance(stream, BridgedStream)
            await until(lambda: stream.bridge.unread > stream.bridge.WINDOW)
            app = next(iter(bridged.connections.live))
            assert app.transport.get_write_buffer_size() < 1024 * 1024
            while data := await copy.read():
                digest.update(data)
                size += len(data)
        expected = hashlib.sha256(
            b"".join(
                b"%d\t%s\n" % (n, hashlib.md5(b"%d" % n).hexdigest().encode()) for n in range(1, 1500001)
            )
        )
        assert digest.digest() == expected.digest()
        assert stream.bridge.most_unread <= 2 * stream.bridge.WINDOW

"""Real drivers through the gate's relay to a real PostgreSQL: what each relies on, protocol feature by
feature.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from typing import Any

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import pytest

from qgate.governance.directory import Route
from tests.kit.cluster import Cluster
from tests.qgate.shop import PASSWORDS, shop, upstream_cluster
from tests.qgate.wire import PASSWORD, Wire, app, wire
from tunnel_proto import pgwire, scram

__all__ = ["shop", "upstream_cluster"]
Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def connect(running: Wire, *, autocommit: bool = True, **more: str) -> Connection:
    return await psycopg.AsyncConnection.connect(running.dsn(**more), autocommit=autocommit)


async def connect_asyncpg(running: Wire, **more: Any) -> asyncpg.Connection[asyncpg.Record]:
    found: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
        host="127.0.0.1", port=running.port, user="web", password=PASSWORD, database="shop", **more
    )
    return found


async def fetch(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(sql.encode())).fetchall()


async def test_a_query_goes_there_and_back(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as connection:
        rows = await fetch(connection, "SELECT id, name FROM items WHERE id < 4 ORDER BY 1")
        assert rows == [(1, "item 1"), (2, "item 2"), (3, "item 3")]
        assert await fetch(connection, "SELECT current_user, current_database()") == [("shop_owner", "shop")]


@pytest.mark.parametrize("version", ["3.0", "3.2"])
async def test_both_protocol_versions_keep_the_upstreams_pid(shop: Route, version: str) -> None:
    async with (
        wire([app()], [shop], PASSWORDS) as running,
        await connect(running, max_protocol_version=version) as connection,
    ):
        assert await fetch(connection, "SELECT pg_backend_pid()") == [(connection.info.backend_pid,)]
        keys = [len(session.cancel_key) for session in running.front.live]
        assert keys == [4 if version == "3.0" else 32]


async def test_application_name_says_app_and_sidecar(shop: Route) -> None:
    async with (
        wire([app()], [shop], PASSWORDS) as running,
        await connect(running, application_name="psql") as named,
        await connect(running, application_name="x" * 60) as long,
        await connect(running) as bare,
    ):
        names = [
            await fetch(one, "SELECT current_setting('application_name')") for one in (named, long, bare)
        ]
        assert names == [[("web@laptop psql",)], [("web@laptop",)], [("web@laptop",)]]


async def test_prepared_statements_and_binary_copy_with_asyncpg(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        connection = await connect_asyncpg(running)
        assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
        await connection.execute("CREATE TEMP TABLE t (a int, b text)")
        records = [(i, "x" * (i % 50)) for i in range(20_000)]
        await connection.copy_records_to_table("t", records=records)
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await connection.execute("SELEC 1")
        assert [tuple(r) for r in await connection.fetch("SELECT a, b FROM t ORDER BY a")] == records
        await connection.close()


async def test_pipeline_mode_with_an_error_in_the_middle(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as connection:
        async with connection.pipeline() as pipeline:
            good = await connection.execute("SELECT 1")
            await pipeline.sync()
            bad = await connection.execute("SELECT 1/0")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await bad.fetchone()
            await pipeline.sync()
            after = await connection.execute("SELECT 2")
            assert await good.fetchone() == (1,)
            assert await after.fetchone() == (2,)
        assert await fetch(connection, "SELECT 3") == [(3,)]


async def test_copy_in_and_out_are_byte_exact(shop: Route) -> None:
    data = b"".join(b"%d\t%s\n" % (i, hashlib.sha256(b"%d" % i).hexdigest().encode()) for i in range(50_000))
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as connection:
        await connection.execute("CREATE TEMP TABLE t (a int, b text)")
        cursor = connection.cursor()
        async with cursor.copy("COPY t FROM STDIN") as copy:
            for at in range(0, len(data), 70_001):
                await copy.write(data[at : at + 70_001])
        assert cursor.rowcount == 50_000
        async with cursor.copy("COPY (SELECT * FROM t ORDER BY a) TO STDOUT") as copy:
            back = b"".join([bytes(block) async for block in copy])
        assert back == data


@pytest.mark.parametrize("how", ["bad data", "client error"])
async def test_a_failed_copy_leaves_the_session_usable(shop: Route, how: str) -> None:
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as connection:
        await connection.execute("CREATE TEMP TABLE t (a int)")

        async def attempt() -> None:
            async with connection.cursor().copy("COPY t FROM STDIN") as copy:
                await copy.write("1\n" * 1000)
                if how == "client error":
                    raise ValueError("changed my mind")
                await copy.write("not a number\n" * 100_000)

        expected = psycopg.errors.InvalidTextRepresentation if how == "bad data" else ValueError
        with pytest.raises(expected):
            await attempt()
        assert await fetch(connection, "SELECT count(*) FROM t") == [(0,)]


async def test_listen_and_notify_between_sessions(shop: Route) -> None:
    async with (
        wire([app()], [shop], PASSWORDS) as running,
        await connect(running) as listener,
        await connect(running) as speaker,
    ):
        await listener.execute("LISTEN news")
        await speaker.execute("SELECT pg_notify('news', 'hello')")
        async for note in listener.notifies(timeout=10, stop_after=1):
            assert (note.channel, note.payload) == ("news", "hello")
            assert note.pid == speaker.info.backend_pid


async def test_notices_and_parameter_changes_arrive(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as connection:
        heard: list[str | None] = []
        connection.add_notice_handler(lambda note: heard.append(note.message_primary))
        await connection.execute("DO $$ BEGIN RAISE NOTICE 'hi there'; END $$")
        assert heard == ["hi there"]
        await connection.execute("SET TimeZone = 'Asia/Tokyo'")
        assert connection.info.parameter_status("TimeZone") == "Asia/Tokyo"


async def test_cancel_stops_the_running_statement(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        for version in ("3.0", "3.2"):
            async with await connect(running, max_protocol_version=version) as connection:
                task = asyncio.create_task(fetch(connection, "SELECT pg_sleep(60)"))
                await _until_active(running)
                await connection.cancel_safe()
                with pytest.raises(psycopg.errors.QueryCanceled):
                    await task
                assert await fetch(connection, "SELECT 1") == [(1,)]
        assert running.front.stats.leases_reused == 0  # a late cancel could hit the next lease


async def test_a_cancel_with_a_wrong_key_or_from_another_sidecar_does_nothing(shop: Route) -> None:
    async with (
        wire([app()], [shop], PASSWORDS) as running,
        await connect(running, max_protocol_version="3.2") as connection,
    ):
        task = asyncio.create_task(fetch(connection, "SELECT pg_sleep(0.3), 7"))
        await _until_active(running)
        pid, (live,) = connection.info.backend_pid, running.front.live
        for key in (bytes(32), live.cancel_key[:4], live.cancel_key + b"x"):
            await _raw_cancel(running.port, pid, key)
        running.peer.peer.name = "stranger"
        await _raw_cancel(running.port, pid, live.cancel_key)
        running.peer.peer.name = "laptop"
        assert await task == [("", 7)]


async def _raw_cancel(port: int, pid: int, key: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(pgwire.cancel_request(pid, key))
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def _until_active(running: Wire) -> None:
    while not any(session.state == "active" for session in running.front.live):
        await asyncio.sleep(0.005)


async def test_blocking_drivers_connect_and_query(shop: Route) -> None:
    def with_psycopg2(port: int) -> object:
        connection = psycopg2.connect(
            host="127.0.0.1", port=port, user="web", password=PASSWORD, dbname="shop"
        )
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT name FROM items WHERE id = %s", (5,))
                return cursor.fetchone()
        finally:
            connection.close()

    def with_pg8000(port: int) -> object:
        connection = pg8000.native.Connection(
            "web", host="127.0.0.1", port=port, password=PASSWORD, database="shop"
        )
        try:
            return connection.run("SELECT name FROM items WHERE id = :i", i=5)
        finally:
            connection.close()

    async with wire([app()], [shop], PASSWORDS) as running:
        assert await asyncio.to_thread(with_psycopg2, running.port) == ("item 5",)
        assert await asyncio.to_thread(with_pg8000, running.port) == [["item 5"]]


async def test_a_large_result_to_a_stalled_reader_holds_bounded_memory_and_arrives_whole(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        reader, writer = await _raw_session(running)
        writer.write(pgwire.query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)"))
        stream = running.streams[0]
        await stream.until(lambda: not stream.writable)
        (live,) = running.front.live
        assert live.lease is not None
        before = live.bytes_relayed
        await asyncio.sleep(0.2)
        assert live.bytes_relayed - before < 1 << 20, "the server is still being read"
        assert stream.transport is not None
        assert stream.transport.get_write_buffer_size() < 1 << 20
        total = 0
        tail = b""
        while not tail.endswith(pgwire.ready_for_query()):
            data = await reader.read(1 << 16)
            total += len(data)
            tail = (tail + data)[-6:]
        assert total > 100_000_000
        writer.close()


async def _raw_session(running: Wire) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A logged-in session spoken by hand."""

    sock = socket.create_connection(("127.0.0.1", running.port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    reader, writer = await asyncio.open_connection(sock=sock, limit=65_536)
    writer.write(pgwire.startup_packet(pgwire.PROTOCOL_3_0, {"user": "web", "database": "shop"}))
    client = scram.ScramClient(nonce="abcdefghijklmnop")
    await _expect(reader, b"R")
    writer.write(pgwire.sasl_initial_response("SCRAM-SHA-256", client.first()))
    challenge = client.challenge((await _expect(reader, b"R"))[4:])
    keys = scram.derive_keys(PASSWORD.encode(), challenge.salt, challenge.iterations)
    writer.write(pgwire.sasl_response(client.final(keys)))
    client.verify((await _expect(reader, b"R"))[4:])
    while True:
        kind, _ = await _message(reader)
        if kind == b"Z":
            return reader, writer


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def _expect(reader: asyncio.StreamReader, kind: bytes) -> bytes:
    found, payload = await _message(reader)
    assert found == kind, (found, payload)
    return payload


async def test_a_server_that_stops_reading_withholds_the_apps_credit(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        reader, writer = await _raw_session(running)
        writer.write(pgwire.query("CREATE TEMP TABLE t (a text); COPY t FROM STDIN"))
        await _until_message(reader, b"G")
        # The server's own socket is what stops: its process is stopped by a lock that COPY waits for
        # elsewhere.
        (live,) = running.front.live
        live.upstream_full()
        block = pgwire.message(b"d", b"y" * 60_000 + b"\n")
        writer.write(block * 20)
        stream = running.streams[0]
        while stream.uncredited < 64 * 1024:
            await asyncio.sleep(0.005)
        assert stream.peak_uncredited < 64 * 1024 + 256 * 1024
        live.upstream_drained()
        writer.write(pgwire.message(b"c"))
        await _until_message(reader, b"Z")
        assert stream.uncredited == 0
        writer.close()


async def _until_message(reader: asyncio.StreamReader, kind: bytes) -> bytes:
    while True:
        found, payload = await _message(reader)
        if found == kind:
            return payload


async def test_terminate_and_end_of_stream_both_end_cleanly(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        for ending in (pgwire.TERMINATE, b""):
            reader, writer = await _raw_session(running)
            writer.write(pgwire.query("SELECT 1") + ending)
            writer.write_eof()
            rest = await reader.read()
            assert rest.endswith(pgwire.ready_for_query())
            writer.close()
        closed = running.audit.of("session.close")
        assert [(event.outcome, event.count) for event in closed] == [("ok", 1), ("ok", 1)]


@pytest.mark.parametrize("junk", [b"Q\0\0\0\3", b"Q\xff\xff\xff\xff", b"d\0\0\0\0"])
async def test_an_impossible_length_is_a_protocol_violation(shop: Route, junk: bytes) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        reader, writer = await _raw_session(running)
        writer.write(junk)
        fields = pgwire.parse_report(await _expect(reader, b"E"))
        assert (fields["C"], fields["S"]) == ("08P01", "FATAL")
        assert await reader.read() == b""
        writer.close()


async def test_the_servers_fatal_takes_the_place_of_ready(shop: Route, upstream_cluster: Cluster) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        connection = await connect(running)
        pid = connection.info.backend_pid
        await asyncio.to_thread(upstream_cluster.scalar, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(psycopg.errors.AdminShutdown):
            await connection.execute("SELECT 1")
        await connection.close()
        assert running.audit.of("session.close")[-1].outcome == "57P01"


async def test_replication_needs_leave_of_app_and_route(shop: Route, upstream_cluster: Cluster) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        with pytest.raises(psycopg.OperationalError, match="replication connections are not allowed"):
            await connect(running, replication="database")
    upstream_cluster.execute("ALTER ROLE shop_owner REPLICATION")
    allowed = Route(**{f: getattr(shop, f) for f in Route.__dataclass_fields__} | {"allow_replication": True})
    async with wire([app(replication=True)], [allowed], PASSWORDS) as running:
        reader, writer = await _replication_session(running)
        writer.write(pgwire.query("IDENTIFY_SYSTEM"))
        await _until_message(reader, b"Z")
        writer.write(pgwire.query("CREATE_REPLICATION_SLOT qgate_test TEMPORARY LOGICAL test_decoding"))
        await _until_message(reader, b"Z")
        writer.write(pgwire.query("START_REPLICATION SLOT qgate_test LOGICAL 0/0"))
        await _until_message(reader, b"W")
        changes = ("CREATE TABLE r (a int)", "INSERT INTO r VALUES (1)", "DROP TABLE r")
        await asyncio.to_thread(lambda: upstream_cluster.execute(*changes, dbname="shop"))
        seen = b""
        while b"INSERT" not in seen:
            seen += await _until_message(reader, b"d")
        writer.write(pgwire.message(b"c"))
        await _until_message(reader, b"c")
        await _until_message(reader, b"Z")
        writer.write(pgwire.TERMINATE)
        assert await reader.read() == b""
        writer.close()


async def _replication_session(running: Wire) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    original = pgwire.startup_packet

    def with_replication(version: int, parameters: dict[str, str]) -> bytes:
        return original(version, {**parameters, "replication": "database"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pgwire, "startup_packet", with_replication)
        return await _raw_session(running)


async def test_sslmode_require_fails_where_the_wire_has_no_tls(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await connect_asyncpg(running, ssl="require")

"""How far and for how long: policy, limits, pooling, revocation, audit."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

import psycopg
import pytest

from qgate.governance.directory import Limits, Route, with_limits
from qgate.settings import PostgresSettings
from tests.kit.cluster import Cluster
from tests.qgate.apps import connect, fetch, logged_in, refused, settled, take
from tests.qgate.hostile import Peer, hostile
from tests.qgate.shop import PASSWORDS, shop, upstream_cluster
from tests.qgate.wire import app, wire
from tunnel_proto import pgwire
from tunnel_proto.constants import StreamCode

__all__ = ["shop", "upstream_cluster"]


# --- policy


async def test_statement_classes_keep_the_transaction_true(shop: Route) -> None:
    classes = app(statement_classes=frozenset({"select", "insert"}))
    extended = "CREATE TABLE nope AS SELECT %s::int AS a", (1,)
    async with wire([classes], [shop], PASSWORDS) as running, await connect(running) as one:
        for sql, parameters in (("CREATE TABLE nope (a int)", None), extended):
            denied = 'app "web" may not run ddl statements'
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=denied):
                await one.execute(sql.encode(), parameters)
            assert one.info.transaction_status.name == "IDLE"
            await one.execute(b"BEGIN")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await one.execute(b"DROP TABLE items")
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                await one.execute(b"SELECT 1")
            await one.execute(b"ROLLBACK")
            assert await fetch(one, "SELECT count(*) FROM items") == [(100,)]
        events = running.audit.of("denied")
        assert [event.outcome for event in events] == ["42501"] * 4
        assert "drop table items" in {event.fingerprint for event in events}


async def test_read_only_is_held_by_the_upstream_role(shop: Route) -> None:
    async with wire([app(read_only=True)], [shop], PASSWORDS) as running, await connect(running) as one:
        assert await fetch(one, "SELECT current_user, count(*) FROM items") == [("shop_reader", 100)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await one.execute(b"DELETE FROM items")
    without = dataclasses.replace(shop, read_only_user=None)
    async with wire([app(read_only=True)], [without], PASSWORDS) as running:
        assert "no read-only role" in str(await refused(running))


# --- pooling


async def test_a_connection_is_reused_only_clean_and_only_by_the_same_app(shop: Route) -> None:
    async with wire([app(), app("other")], [shop], PASSWORDS) as running:
        async with await connect(running) as one:
            pid = one.info.backend_pid
            for sql in (
                "CREATE TEMP TABLE leftover (a int)",
                "SET search_path = nowhere",
                "PREPARE p AS SELECT 1",
                "SELECT pg_advisory_lock(42)",
                "LISTEN news",
            ):
                await one.execute(sql.encode())
        await settled(running)
        async with await connect(running) as again:
            assert again.info.backend_pid == pid
            assert await fetch(again, "SELECT to_regclass('leftover')") == [(None,)]
            assert await fetch(again, "SHOW search_path") == [('"$user", public',)]
            assert await fetch(again, "SELECT count(*) FROM pg_prepared_statements") == [(0,)]
            assert await fetch(again, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
            assert await fetch(again, "SELECT count(*) FROM pg_listening_channels()") == [(0,)]
        await settled(running)
        for more in ({"user": "other"}, {"options": "-csearch_path=public"}, {"application_name": "x"}):
            async with await connect(running, **more) as stranger:
                assert stranger.info.backend_pid != pid
        assert running.front.stats.leases_reused == 1


@pytest.mark.parametrize("leaving", ["BEGIN", "COPY items TO STDOUT"])
async def test_a_connection_that_is_not_idle_is_closed(shop: Route, leaving: str) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        one = await connect(running)
        with contextlib.suppress(psycopg.Error):
            one.pgconn.send_query(leaving.encode())
            one.pgconn.flush()
        await one.close()
        await settled(running)
        await (await connect(running)).close()
        assert running.front.stats.leases_reused <= (0 if leaving == "BEGIN" else 1)


async def test_a_changed_route_retires_its_connections(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        first = await connect(running)
        running.change(routes=[dataclasses.replace(shop, pool_idle_s=100.0)])
        assert await fetch(first, "SELECT 1") == [(1,)]  # in use, it finishes on the old one
        await first.close()
        await settled(running)
        await (await connect(running)).close()
        assert running.front.stats.leases_reused == 0


async def test_an_idle_connection_that_dies_is_noticed(shop: Route, upstream_cluster: Cluster) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        one = await connect(running)
        pid = one.info.backend_pid
        await one.close()
        await settled(running)
        assert running.front.pool.counts()["shop"] == (0, 1, 0)
        await asyncio.to_thread(upstream_cluster.scalar, f"SELECT pg_terminate_backend({pid})")
        while running.front.pool.counts()["shop"] != (0, 0, 0):
            await asyncio.sleep(0.005)
        await (await connect(running)).close()


# --- limits


async def test_more_connections_than_an_app_may_have_wait_and_then_get_53300(shop: Route) -> None:
    limits = Limits(max_connections=1, queue=1, queue_timeout_s=0.2)
    async with wire([app(limits=limits)], [shop], PASSWORDS) as running, await connect(running) as one:
        results = await asyncio.gather(connect(running), connect(running), return_exceptions=True)
        assert [type(found) for found in results] == [psycopg.OperationalError] * 2
        assert 'too many connections for app "web"' in str(results[0])
        waiting = asyncio.create_task(connect(running))
        await one.close()
        await (await waiting).close()


async def test_a_full_pool_makes_room_among_idle_connections_of_others(shop: Route) -> None:
    small = dataclasses.replace(shop, pool_size=2, limits=Limits(queue_timeout_s=0.3))
    async with wire([app(), app("other")], [small], PASSWORDS) as running:
        for one in [await connect(running), await connect(running)]:
            await one.close()
        await settled(running)
        assert running.front.pool.counts()["shop"] == (0, 2, 0)
        first, second = await connect(running, user="other"), await connect(running, user="other")
        assert 'too many connections for database "shop"' in str(await refused(running))
        waiting = asyncio.create_task(connect(running))
        await first.close()
        await (await waiting).close()
        await second.close()


async def test_sessions_of_one_database_can_be_limited(shop: Route) -> None:
    narrow = dataclasses.replace(shop, limits=Limits(max_connections=1, queue=0))
    async with wire([app()], [narrow], PASSWORDS) as running, await connect(running):
        assert "too many connections" in str(await refused(running))


@pytest.mark.parametrize(
    ("limit", "sqls", "code"),
    [
        ("idle_timeout_s", ["SELECT 1"], "57P05"),
        ("idle_in_transaction_s", ["BEGIN"], "25P03"),
        ("statement_timeout_s", ["SELECT pg_sleep(60)"], "57014"),
    ],
)
async def test_time_limits(shop: Route, limit: str, sqls: list[str], code: str) -> None:
    limited = app(limits=with_limits(Limits(), {limit: 0.2}))
    async with wire([limited], [shop], PASSWORDS) as running:
        stream = await logged_in(running)
        for sql in sqls:
            stream.arrive(pgwire.query(sql))
        payload = b""
        while True:
            kind, payload = await take(stream)
            if kind == b"E":
                break
        assert pgwire.parse_report(payload)["C"] == code
        if code == "57014":
            assert "statement timeout" in pgwire.parse_report(payload)["M"]
            await take(stream, b"Z")
            stream.arrive(pgwire.query("SELECT 1"))
            await take(stream, b"T")
        else:
            await stream.until(lambda: stream.eof_written)
        stream.close()


# --- the end of a right


async def test_revoking_an_app_ends_its_live_sessions_and_no_others(shop: Route) -> None:
    async with wire([app(), app("other")], [shop], PASSWORDS) as running:
        victim, bystander = await connect(running), await connect(running, user="other")
        running.change(apps=[app(revoked=True)])
        with pytest.raises(psycopg.errors.AdminShutdown):
            await victim.execute(b"SELECT 1")
        assert await fetch(bystander, "SELECT 1") == [(1,)]
        assert "authentication failed" in str(await refused(running))
        await bystander.close()
        await victim.close()
        assert running.audit.of("session.close")[0].outcome == "57P01"


@pytest.mark.parametrize(
    "changed",
    [
        {"databases": frozenset({"elsewhere"})},
        {"sidecars": frozenset({"desktop"})},
        {"read_only": True},
        {"expires_at": 1.0},
        {"statement_classes": frozenset({"select"})},
    ],
)
async def test_narrowing_what_an_app_may_do_ends_its_sessions(shop: Route, changed: dict[str, Any]) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        stream = await logged_in(running)
        running.change(apps=[app(**changed)])
        _, payload = await take(stream, b"E")
        assert pgwire.parse_report(payload)["C"] == "57P01"
        stream.close()


async def test_an_expiring_app_is_ended_when_its_time_comes(shop: Route) -> None:
    async with wire([app(expires_at=time.time() + 0.7)], [shop], PASSWORDS) as running:
        stream = await logged_in(running)
        _, payload = await take(stream, b"E")
        assert "expired" in pgwire.parse_report(payload)["D"]
        stream.close()


async def test_revoked_in_the_middle_of_a_row_waits_for_its_end() -> None:
    released = asyncio.Event()

    async def rows(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()
        peer.send(b"D" + (1004).to_bytes(4, "big") + b"x" * 500)
        await released.wait()
        peer.send(b"x" * 500 + pgwire.message(b"C", b"SELECT 1\0") + pgwire.ready_for_query())
        await peer.reader.read()

    async with hostile(rows) as server, wire([app()], [server.route()], {}) as running:
        stream = await logged_in(running)
        stream.arrive(pgwire.query("SELECT big"))
        await stream.until(lambda: len(stream.out) == 505)
        running.change(apps=[app(revoked=True)])
        assert len(stream.out) == 505
        released.set()
        await take(stream, b"D")
        _, payload = await take(stream, b"E")
        assert pgwire.parse_report(payload)["C"] == "57P01"
        assert not stream.out
        stream.close()


async def test_an_upstream_lost_in_the_middle_of_a_row_resets_the_stream() -> None:
    async def dying(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()
        peer.send(b"D" + (1004).to_bytes(4, "big") + b"x" * 500)
        await peer.writer.drain()

    async with hostile(dying) as server, wire([app()], [server.route()], {}) as running:
        stream = await logged_in(running)
        stream.arrive(pgwire.query("SELECT big"))
        await stream.until(lambda: stream.reset_with is not None)
        assert stream.reset_with is not None
        assert (stream.reset_with[0], stream.reset_with[2]) == (StreamCode.UPSTREAM_LOST, "08006")


async def test_an_upstream_lost_between_messages_is_said_in_words() -> None:
    async def dying(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()

    async with hostile(dying) as server, wire([app()], [server.route()], {}) as running:
        stream = await logged_in(running)
        stream.arrive(pgwire.query("SELECT 1"))
        _, payload = await take(stream, b"E")
        assert pgwire.parse_report(payload)["C"] == "08006"
        stream.close()


async def test_an_upstream_that_breaks_the_protocol_ends_the_session() -> None:
    async def broken(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()
        peer.send(b"Z\0\0\0\3")
        await peer.reader.read()

    async with hostile(broken) as server, wire([app()], [server.route()], {}) as running:
        stream = await logged_in(running)
        stream.arrive(pgwire.query("SELECT 1"))
        _, payload = await take(stream, b"E")
        assert pgwire.parse_report(payload)["C"] == "08P01"
        stream.close()


async def test_an_upstream_without_backend_key_data_serves_but_cannot_be_cancelled() -> None:
    async def keyless(peer: Peer) -> None:
        await peer.log_in(key=None)
        await peer.answer()

    async with hostile(keyless) as server, wire([app()], [server.route()], {}) as running:
        stream = await logged_in(running)
        stream.arrive(pgwire.query("SELECT 1"))
        await take(stream, b"C")
        stream.close()


async def test_a_session_in_a_transaction_has_a_shorter_resume_window(shop: Route) -> None:
    settings = PostgresSettings(resume_in_transaction_s=0.1)
    async with wire([app()], [shop], PASSWORDS, settings) as running:
        idle, restored, lost = [await logged_in(running) for _ in range(3)]
        for stream in (restored, lost):
            stream.arrive(pgwire.query("BEGIN"))
            await take(stream, b"C")
            await take(stream, b"Z")
        for stream in (idle, restored, lost):
            stream.receiver.link_lost()
        restored.receiver.link_restored()
        await lost.until(lambda: lost.reset_with is not None)
        assert lost.reset_with is not None
        assert lost.reset_with[0] == StreamCode.SESSION_LOST
        assert idle.reset_with is None
        assert restored.reset_with is None
        idle.close()
        restored.close()


async def test_draining_lets_work_finish_and_tells_the_idle(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        idle, busy = await logged_in(running), await connect(running)
        work = asyncio.create_task(fetch(busy, "SELECT pg_sleep(0.5), 1"))
        drain = asyncio.create_task(running.front.drain(4.0))
        await asyncio.sleep(0)
        assert "shutting down" in str(await refused(running))
        assert await work == [("", 1)]
        _, payload = await take(idle, b"E")
        assert pgwire.parse_report(payload)["C"] == "57P01"
        idle.close()
        await busy.close()
        await drain


# --- audit


async def test_equal_statements_are_merged_and_literals_never_recorded(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as one:
        for i in range(10):
            await one.execute(f"SELECT name FROM items WHERE id = {i + 1} OR name = 'secret-{i}'".encode())
        with pytest.raises(psycopg.errors.UndefinedTable):
            await one.execute(b"SELECT 'secret' FROM missing")
        await one.execute(b"CREATE TEMP TABLE d (a int)")
        await one.close()
        await settled(running)
        events = running.audit.events
        assert running.audit.kinds().count("query") == 3
        merged = next(event for event in running.audit.of("query") if event.count == 10)
        assert merged.fingerprint == "select name from items where id = ? or name = ?"
        assert merged.rows == 10
        assert merged.bytes_up > 0
        assert merged.bytes_down > 0
        assert 0 < merged.max_duration_s <= merged.duration_s
        assert abs(merged.started_at - time.time()) < 60
        assert [event.outcome for event in running.audit.of("query")].count("42P01") == 1
        assert "secret" not in repr(events)
        assert running.audit.kinds()[0] == "session.open"
        close = running.audit.of("session.close")[0]
        assert (close.count, close.app, close.sidecar, close.database) == (12, "web", "laptop", "shop")


async def test_a_route_may_ask_for_one_entry_a_statement(shop: Route) -> None:
    detailed = dataclasses.replace(shop, audit_detail="statement")
    async with wire([app()], [detailed], PASSWORDS) as running:
        async with await connect(running) as one:
            for _ in range(5):
                await one.execute(b"SELECT 1")
        await settled(running)
        assert [event.count for event in running.audit.of("query")] == [1] * 5


async def test_waiting_entries_are_flushed_while_the_session_lives(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running, await connect(running) as one:
        await one.execute(b"SELECT 1")
        while not running.audit.of("query"):
            await asyncio.sleep(0.02)


async def test_a_fault_of_our_own_ends_one_session_and_says_so(
    shop: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        stream, bystander = await logged_in(running), await connect(running)
        (victim, _) = running.front.live
        assert victim.conversation is not None
        monkeypatch.setattr(victim.conversation, "_pending", None)
        stream.arrive(pgwire.query("SELECT 1"))
        _, payload = await take(stream, b"E")
        assert pgwire.parse_report(payload)["C"] == "XX000"
        assert await fetch(bystander, "SELECT 1") == [(1,)]
        await asyncio.gather(*running.front.pool._tasks)
        assert running.front.pool.counts()["shop"] == (1, 0, 0), "the connection of a fault is not kept"
        await bystander.close()
        stream.close()

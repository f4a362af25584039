"""The virtual database through a real minigate and a real tunnel, with real drivers."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import pytest
import sqlalchemy

from qgate.capability.work import Begun, Event, Problem, Work
from qgate.governance.directory import App, Limits
from qgate.governance.policy import CapabilityPolicy
from qgate.http.sql import SqlDesk
from qgate.postgres.front import PostgresFront
from qgate.postgres.virtual import AHEAD_MAX
from qgate.postgres.virtual_front import VirtualFront
from qgate.settings import PostgresSettings
from tests.kit.cluster import bundled
from tests.minigate.conftest import until
from tests.qgate.http_stack import ANYTHING, Stack, analysis, finished, stack, three_words, vectors
from tests.qgate.wire import SALT, MemoryAudit
from tunnel_proto import pgwire, scram
from tunnel_proto.link import PeerSession, Stream

PASSWORD = "a-password"
ROW = ["result", "text", "model", "node", "tokens_in", "tokens_out", "receipt"]


@dataclass
class Database:
    """The virtual database, reachable at ``port``."""

    stack: Stack
    front: PostgresFront
    virtual: VirtualFront
    audit: MemoryAudit

    @property
    def port(self) -> int:
        return self.stack.port

    def dsn(self, user: str = "web", database: str = "qg") -> str:
        return f"host=127.0.0.1 port={self.port} user={user} password={PASSWORD} dbname={database}"

    def url(self, driver: str = "", user: str = "web") -> str:
        return f"postgresql{driver}://{user}:{PASSWORD}@127.0.0.1:{self.port}/qg"


def sql_app(name: str = "web", policy: CapabilityPolicy | None = ANYTHING, **fields: Any) -> App:
    verifier = scram.make_verifier(PASSWORD.encode(), salt=SALT)
    return App(name=name, verifiers=((verifier, None),), databases=frozenset(), policy=policy, **fields)


@asynccontextmanager
async def database(
    tmp_path: Path, *apps: App, script: Any = analysis, **options: Any
) -> AsyncIterator[Database]:
    """A gate whose only database is the virtual one; ``options`` as of `stack`."""
    async with stack(tmp_path, *(apps or (sql_app(),)), script=script, **options) as running:
        audit = MemoryAudit()
        front = PostgresFront(
            directory=running.names, audit=audit, settings=PostgresSettings(), secret=b"s" * 32
        )
        virtual = VirtualFront(
            SqlDesk(running.desk, running.names), directory=running.names, audit=audit, message_max=1 << 20
        )
        front.virtual = virtual
        session = cast(PeerSession, SimpleNamespace(peer=SimpleNamespace(name="laptop")))
        http = running.mesh.gates[0].on_stream
        assert http is not None

        def on_stream(stream: Stream) -> None:
            match stream.kind:
                case "pg":
                    front.accept(session, stream)
                case "pg-cancel":
                    front.cancel(session, stream)
                case _:
                    http(stream)

        running.mesh.gates[0].on_stream = on_stream
        try:
            yield Database(running, front, virtual, audit)
        finally:
            await virtual.close()
            await front.close()
            assert not virtual.live
            assert not front.live


# --- drivers


async def test_psycopg(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        async with await psycopg.AsyncConnection.connect(served.dsn()) as one:
            for binary in (False, True):
                async with one.cursor(binary=binary) as cursor:
                    await cursor.execute("SELECT * FROM qg('task=summarize', %s)", ("hello wörld",))
                    row = await cursor.fetchone()
                    assert row is not None
                    assert [column.name for column in cursor.description or ()] == ROW
                    assert row[:6] == (
                        {"summary": "about hello", "sentences": []},
                        "about hello",
                        "extractive",
                        "gate",
                        7,
                        3,
                    )
            await one.commit()
            async with one.pipeline():
                cursors = [
                    await one.execute("SELECT text FROM qg(%s, %s)", ("task=summarize", w)) for w in "ab"
                ]
                assert [await cursor.fetchone() for cursor in cursors] == [("about a",), ("about b",)]
            rows = await (
                await one.execute("SELECT text FROM qg('task=summarize', %b)", (b"bytes",))
            ).fetchall()
            assert rows == [("about bytes",)]
        assert [work.source for work in served.stack.engine.seen] == ["laptop"] * 5
        await until(lambda: served.audit.kinds() == ["session.open", "session.close"])


async def test_asyncpg(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        one = await asyncpg.connect(served.url())
        assert one.get_server_pid() == await one.fetchval("SELECT pg_backend_pid()")
        row = await one.fetchrow("SELECT * FROM qg('task=summarize', $1)", "hello")
        assert row is not None
        assert list(row.keys()) == ROW
        assert json.loads(row["result"])["summary"] == "about hello"
        statement = await one.prepare("SELECT result->>'summary' AS s FROM qg($1, $2::bytea)")
        assert await statement.fetchval("task=summarize", b"raw") == "about raw"
        assert [p.name for p in statement.get_parameters()] == ["text", "bytea"]
        async with one.transaction():
            models = await one.fetch("SHOW models")
        assert models[0]["name"] == "smol"
        async with asyncpg.create_pool(served.url(), min_size=1, max_size=3) as pool:
            found = await asyncio.gather(
                *(pool.fetchval("SELECT text FROM qg('task=summarize', $1)", f"t{n}") for n in range(9))
            )
        assert found == [f"about t{n}" for n in range(9)]
        await one.close()


async def test_the_synchronous_drivers(tmp_path: Path) -> None:
    def talk(served: Database) -> None:
        with psycopg2.connect(served.dsn()) as two, two.cursor() as cursor:
            cursor.execute("SELECT text, tokens_in FROM qg('task=summarize', %s)", ("it's",))
            assert cursor.fetchall() == [("about it's", 7)]
        two.close()
        native = pg8000.native.Connection(
            "web", host="127.0.0.1", port=served.port, password=PASSWORD, database="qg"
        )
        assert native.run("SELECT text FROM qg('task=summarize', :t)", t="é") == [["about é"]]
        native.close()
        for driver in ("+psycopg", "+psycopg2", "+pg8000"):
            engine = sqlalchemy.create_engine(served.url(driver))
            with engine.connect() as one:
                query = sqlalchemy.text("SELECT text, result FROM qg('task=summarize', :t) AS q")
                assert one.execute(query, {"t": "x"}).all() == [
                    ("about x", {"summary": "about x", "sentences": []})
                ]
                one.commit()
            engine.dispose()

    async with database(tmp_path) as served:
        await asyncio.to_thread(talk, served)


def psql(served: Database, *commands: str) -> subprocess.CompletedProcess[str]:
    program = bundled() / "psql"
    options = [part for command in commands for part in ("-c", command)]
    return subprocess.run(
        [program, served.url(), "-X", "-A", "-t", *options], capture_output=True, text=True, timeout=30
    )


async def test_psql(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        found = await asyncio.to_thread(
            psql, served, "SELECT text FROM qg('task=summarize', 'abc')", "BEGIN; SHOW stats; COMMIT", "\\d"
        )
        assert found.stdout.splitlines()[0] == "about abc"
        assert "requests|1" in found.stdout
        assert found.stderr == "Did not find any relations.\n"
        refused = await asyncio.to_thread(psql, served, "DROP TABLE x")
        assert refused.returncode == 1
        assert "not supported by the virtual database" in refused.stderr
        assert "HINT:" in refused.stderr


# --- every task has one row


@pytest.mark.parametrize(
    ("script", "request_", "result", "text"),
    [
        (
            analysis,
            "qg://task=summarize;prefer=speed",
            {"summary": "about a bc", "sentences": []},
            "about a bc",
        ),
        (three_words, "task=chat;model=smol", {"text": "one two thrée"}, "one two thrée"),
        (three_words, "task=complete", {"text": "one two thrée"}, "one two thrée"),
        (vectors, "task=embed", [[0.5, 4.0]], None),
    ],
)
async def test_one_row_shape(
    tmp_path: Path, script: Any, request_: str, result: Any, text: str | None
) -> None:
    async with (
        database(tmp_path, script=script) as served,
        await psycopg.AsyncConnection.connect(served.dsn()) as one,
    ):
        cursor = await one.execute("SELECT * FROM qg(%s, 'a bc')", (request_,))
        row = await cursor.fetchone()
        assert row is not None
        assert (row[0], row[1], row[4]) == (result, text, 7)
        assert row[6] == f"rct_{served.stack.engine.seen[0].id[4:]}"


async def test_rows_in_portions_and_a_pipeline_that_fails(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        one = await asyncpg.connect(served.url())
        async with one.transaction():
            names = [row["name"] async for row in one.cursor("SHOW models", prefetch=2)]
        assert names[:2] == ["smol", "secret/model"]
        assert len(names) > 4
        await one.close()
        async with await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as two:
            async with two.pipeline() as pipeline:
                good = await two.execute("SELECT 1")
                await two.execute("SELECT * FROM nothing")
                lost = await two.execute("SELECT 2")
                with pytest.raises(psycopg.errors.UndefinedTable):
                    await pipeline.sync()
                assert await good.fetchone() == (1,)
                with pytest.raises(psycopg.Error):
                    await lost.fetchone()
            assert await (await two.execute("SELECT 3")).fetchone() == (3,)


async def test_a_message_that_is_longer_than_what_is_kept_ahead_arrives(tmp_path: Path) -> None:
    async with (
        database(tmp_path) as served,
        await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as one,
    ):
        await one.execute("SELECT * FROM qg('task=summarize', %s)", ("x" * 1_000_000,))
        assert len(served.stack.engine.seen[0].body["input"]) == 1_000_000
        (session,) = served.virtual.live
        returned: list[int] = []
        session._return = returned.append  # type: ignore[assignment,method-assign]
        sql = f"SELECT * FROM qg('task=summarize', '{'y' * 3 * AHEAD_MAX}')"
        message = pgwire.message(b"Q", sql.encode() + b"\0")
        parts = [message[at : at + AHEAD_MAX] for at in range(0, len(message), AHEAD_MAX)]
        # Two parts within one tick, as one record of the tunnel may bring them.
        session.data_received(parts[0], False)
        session.data_received(parts[1], False)
        await until(lambda: sum(returned) == 2 * AHEAD_MAX)
        for part in parts[2:]:
            session.data_received(part, False)
        await until(lambda: len(served.stack.engine.seen) == 2)
        await until(lambda: sum(returned) == len(message))


async def test_a_message_that_is_too_long_ends_the_session(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn())
        with pytest.raises(psycopg.OperationalError):
            await one.execute("SELECT * FROM qg('task=summarize', %s)", ("x" * 2_000_000,))
        await one.close()
        assert served.stack.engine.seen == []


# --- errors


async def test_errors_leave_the_session_alive_and_transactions_true(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        if work.body["input"] == "busy":
            raise Problem("all are busy", code="queue_full", retry_after_s=3, hint="come again")
        if work.body["input"] == "defect":
            raise RuntimeError("secret text")
        async for event in analysis(work):
            yield event

    async with (
        database(tmp_path, script=script) as served,
        await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as one,
    ):
        ask = "SELECT text FROM qg(%s, %s)"
        for request_, text, sqlstate, says in (
            ("task=summarise", "x", "42883", "summarize"),
            ("tusk=chat", "x", "42601", "task"),
            ("task=summarize", "busy", "53300", "come again"),
            ("task=summarize", None, "22004", "NULL"),
        ):
            with pytest.raises(psycopg.Error) as refused:
                await one.execute(ask, (request_, text))
            assert refused.value.sqlstate == sqlstate
            diagnostics = refused.value.diag
            assert says in f"{diagnostics.message_primary}{diagnostics.message_hint}"
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            await one.execute("CREATE TABLE x (a int)")
        await one.execute("BEGIN")
        with pytest.raises(psycopg.errors.UndefinedTable):
            await one.execute("SELECT * FROM items")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await one.execute("SHOW models")
        assert one.info.transaction_status.name == "INERROR"
        assert (await one.execute("COMMIT")).statusmessage == "ROLLBACK"
        assert one.info.transaction_status.name == "IDLE"
        with pytest.raises(psycopg.errors.InternalError_, match="internal error") as broken:
            await one.execute(ask, ("task=summarize", "defect"))
        assert "secret" not in str(broken.value)


async def test_cancel_and_timeouts(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("slow", "1", "box", "worker")
        started.set()
        await asyncio.Event().wait()
        yield finished(work)

    async with (
        database(tmp_path, script=script) as served,
        await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as one,
    ):
        call = asyncio.create_task(one.execute("SELECT * FROM qg('task=summarize', 'x')"))
        await started.wait()
        await one.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled, match="user request"):
            await call
        await until(lambda: len(served.stack.engine.cancelled) == 1)
        await one.execute("SET statement_timeout = 50")
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            await one.execute("SELECT * FROM qg('task=summarize', 'x')")
        await until(lambda: len(served.stack.engine.cancelled) == 2)
        await one.execute("RESET statement_timeout")
        await one.cancel_safe()  # nothing runs: nothing happens
        assert await (await one.execute("SELECT 1")).fetchone() == (1,)
        started.clear()
        leaving = asyncio.create_task(one.execute("SELECT * FROM qg('task=summarize', 'x')"))
        await started.wait()
        one.pgconn.finish()
        await until(lambda: len(served.stack.engine.cancelled) == 3)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


# --- who may come in


async def _refused(connect: Callable[[], Any], sqlstate: str) -> None:
    with pytest.raises(psycopg.OperationalError) as refused:
        await connect()
    assert sqlstate in str(refused.value)


async def test_who_may_come_in(tmp_path: Path) -> None:
    apps = (
        sql_app(limits=Limits(max_connections=1)),
        sql_app("plain", None, read_only=True),
        sql_app("narrow", CapabilityPolicy(models=("none",), tasks=frozenset({"embed"}))),
    )
    async with database(tmp_path, *apps) as served:
        connect = psycopg.AsyncConnection.connect
        await _refused(lambda: connect(served.dsn(database="other")), 'database "other" does not exist')
        await _refused(lambda: connect(served.dsn("plain")), "password authentication failed")
        await _refused(lambda: connect(served.dsn().replace(PASSWORD, "wrong")), "password authentication")
        await _refused(lambda: connect(served.dsn() + " replication=database"), "does not replicate")
        async with await connect(served.dsn("narrow")) as narrow:
            names = [row[0] for row in await (await narrow.execute("SHOW models")).fetchall()]
            assert names == ["qg://task=embed"]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await narrow.execute("SELECT * FROM qg('task=chat', 'x')")
        async with await connect(served.dsn()):
            await _refused(lambda: connect(served.dsn()), "has 1 connections already")


async def test_a_revoked_app_is_put_out(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn())
        before = served.stack.names.snapshot
        served.stack.names.replace(type(before)(apps={}, keys=before.keys))
        await until(lambda: not served.virtual.live)
        with pytest.raises(psycopg.OperationalError, match="administrator command"):
            await one.execute("SHOW models")
        await one.close()


async def test_a_drain_ends_sessions(tmp_path: Path) -> None:
    async with database(tmp_path) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True)
        await served.virtual.drain(0.1)
        with pytest.raises(psycopg.OperationalError, match="administrator command"):
            await one.execute("SHOW models")
        await one.close()
        await _refused(lambda: psycopg.AsyncConnection.connect(served.dsn()), "shutting down")

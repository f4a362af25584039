"""How long a session with the virtual database may last, and who is told of it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qgate.capability.work import Begun, Event, Work
from qgate.governance.directory import App, Limits
from qgate.governance.policy import CapabilityPolicy
from tests.minigate.conftest import until
from tests.qgate.http_stack import directory, finished
from tests.qgate.test_virtual import Database, database, sql_app


async def _ended(one: psycopg.AsyncConnection[Any], served: Database) -> psycopg.Error:
    """Wait for the gate to end the session; what it said."""
    await until(lambda: not served.virtual.live, 5)
    with pytest.raises(psycopg.Error) as gone:
        await one.execute("SELECT 1")
    await one.close()
    return gone.value


def _now(served: Database, app: App) -> None:
    """Let the directory say that the app is now so."""
    served.stack.names.replace(directory(app).snapshot)


async def test_an_idle_session_ends(tmp_path: Path) -> None:
    async with database(tmp_path, sql_app(limits=Limits(idle_timeout_s=0.2))) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True)
        assert "idle-session timeout" in str(await _ended(one, served))
        close = next(event for event in served.audit.events if event.kind == "session.close")
        assert close.outcome == "57P05"


async def test_a_transaction_that_is_forgotten_ends_the_session(tmp_path: Path) -> None:
    async with database(tmp_path, sql_app(limits=Limits(idle_in_transaction_s=0.2))) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn())
        await one.execute("SELECT 1")
        assert [session.state for session in served.virtual.live] == ["idle in transaction"]
        assert "idle-in-transaction timeout" in str(await _ended(one, served))


async def test_half_a_message_is_no_sign_of_life(tmp_path: Path) -> None:
    async with database(tmp_path, sql_app(limits=Limits(idle_timeout_s=0.3))) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True)
        os.write(one.pgconn.socket, b"Q\0\0\xff\xff")

        def drip() -> bool:
            if served.virtual.live:
                os.write(one.pgconn.socket, b"x")
            return not served.virtual.live

        await until(drip, 5)
        await one.close()


async def test_the_apps_statement_timeout_binds(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("slow", "1", "box", "worker")
        await asyncio.Event().wait()
        yield finished(work)

    app = sql_app(limits=Limits(statement_timeout_s=0.1, idle_timeout_s=30))
    async with (
        database(tmp_path, app, script=script) as served,
        await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as one,
    ):
        await one.execute("SET statement_timeout = '10s'")
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            await one.execute("SELECT * FROM qg('task=summarize', 'x')")
        assert served.stack.engine.cancelled


async def test_a_credential_that_expires_ends_its_sessions(tmp_path: Path) -> None:
    app = sql_app()
    async with database(tmp_path, app) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True)
        _now(served, dataclasses.replace(app, expires_at=time.time() + 0.3))
        assert served.virtual.live
        gone = await _ended(one, served)
        assert "has expired" in str(gone)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"revoked": True}, "was revoked"),
        ({"policy": None}, "may no longer use database"),
        ({"sidecars": frozenset({"desktop"})}, "this sidecar"),
        ({"limits": Limits(idle_timeout_s=0.1)}, "idle-session timeout"),
    ],
)
async def test_a_change_of_the_app_reaches_its_sessions(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    app = sql_app()
    async with database(tmp_path, app) as served:
        one = await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True)
        _now(served, dataclasses.replace(app, **change))
        assert says in str(await _ended(one, served))


async def test_a_change_that_leaves_it_welcome_is_taken_over(tmp_path: Path) -> None:
    app = sql_app()
    async with (
        database(tmp_path, app) as served,
        await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as one,
    ):
        _now(served, dataclasses.replace(app, policy=CapabilityPolicy(tasks=frozenset({"embed"}))))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await one.execute("SELECT * FROM qg('task=chat', 'x')")
        (session,) = served.virtual.live
        assert (session.app_name, session.database, session.sidecar) == ("web", "qg", "laptop")
        assert (session.state, session.queries, served.virtual.queries) == ("idle", 1, 1)


async def test_a_statement_that_could_not_be_recorded_does_not_run(tmp_path: Path) -> None:
    async with (
        database(tmp_path, accepting=lambda: False) as served,
        await psycopg.AsyncConnection.connect(served.dsn(), autocommit=True) as one,
    ):
        with pytest.raises(psycopg.errors.CannotConnectNow, match="cannot record"):
            await one.execute("SELECT * FROM qg('task=summarize', 'x')")
        assert served.stack.engine.seen == []
        assert await (await one.execute("SELECT 1")).fetchone() == (1,)

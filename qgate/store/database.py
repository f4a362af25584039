"""The store: a small asyncpg pool on the pool's PostgreSQL, its migrations, and its notifications.

Everything of ours is in the schema `qgate`, so that the store may share a database with others. The
connection must reach one PostgreSQL session (no transaction-mode pooler in between), because LISTEN and
advisory locks live in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import asyncpg

from tunnel_proto.errors import ConfigError, MeshError

SCHEMA = "qgate"
# Any number will do, as long as every gate takes the same one: "qgate" in ASCII.
MIGRATION_LOCK = 0x71_67_61_74_65
OLDEST_SERVER = 13

_CONNECT_TIMEOUT_S = 5.0
_STATEMENT_TIMEOUT_S = 30.0
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 2.0
_HINT = "check [store] in qgate.toml"
_MIGRATION = re.compile(r"(\d{4})_[a-z_]+\.sql")

Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)


class StoreUnavailableError(MeshError):
    """The store cannot be reached, or its disk is full; what needs it has to wait."""


# What tells that the server is away or cannot write, as opposed to a statement being wrong.
_AWAY: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg says when the server's farewell came between two statements
)


class Store:
    """A connected, migrated store. Make one with `Store.open`."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], dsn: str) -> None:
        self._pool = pool
        self._dsn = dsn

    def __repr__(self) -> str:
        return "Store()"

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        connections: int = 4,
        patience_s: float = 0.0,
        on_wait: Callable[[str], None] | None = None,
    ) -> Store:
        """Connect to `dsn`, wait up to `patience_s` seconds for a server that is away, and migrate.

        `on_wait` hears, before each further attempt, why the last one failed.
        Raises ConfigError for a DSN that can never work and StoreUnavailableError for a server that stays
        away.
        """
        deadline = asyncio.get_running_loop().time() + patience_s
        wait = _RETRY_FIRST_S
        while True:
            try:
                pool = await asyncpg.create_pool(
                    dsn,
                    min_size=1,
                    max_size=connections,
                    timeout=_CONNECT_TIMEOUT_S,
                    command_timeout=_STATEMENT_TIMEOUT_S,
                    server_settings=_session("store"),
                    init=_prepare,
                )
            except (asyncpg.ClientConfigurationError, ValueError) as error:
                raise ConfigError(f"the store's DSN cannot be used: {_reason(error)}", hint=_HINT) from None
            except _AWAY as error:
                if asyncio.get_running_loop().time() + wait >= deadline:
                    raise StoreUnavailableError(
                        f"the store cannot be reached: {_reason(error)}", hint=_HINT
                    ) from None
                if on_wait is not None:
                    on_wait(_reason(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_MOST_S)
            except asyncpg.PostgresError as error:
                raise ConfigError(f"the store refuses us: {_reason(error)}", hint=_HINT) from None
            else:
                break
        store = cls(pool, dsn)
        try:
            await store.migrate()
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close every connection; a server that does not answer is not waited for."""
        try:
            await asyncio.wait_for(self._pool.close(), _CONNECT_TIMEOUT_S)
        except _AWAY:
            self._pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for single statements; StoreUnavailableError when there is none to be had."""
        with _translated():
            async with self._pool.acquire(timeout=_CONNECT_TIMEOUT_S) as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """A connection inside a transaction; with `snapshot` every read sees one moment and nothing is
        written.
        """
        async with self.connection() as connection:
            if snapshot:
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    yield connection
            else:
                async with connection.transaction():
                    yield connection

    async def server_version(self) -> str:
        """The server's version as it says it itself; also the cheapest proof that it answers."""
        async with self.connection() as connection:
            return str(await connection.fetchval("SHOW server_version"))

    async def migrate(self) -> None:
        """Bring the schema up to date, one numbered file a transaction; gates that start together take
        turns.
        """
        async with self.connection() as connection:
            version = connection.get_server_version().major
            if version < OLDEST_SERVER:
                raise ConfigError(
                    f"the store is PostgreSQL {version}; {OLDEST_SERVER} is the oldest that will do"
                )
            await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
            try:
                await _migrate(connection)
            finally:
                await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)

    async def listen(
        self, channel: str, heard: Callable[[str], None], *, lost: Callable[[], None]
    ) -> Listener:
        """Listen on `channel` over a connection of its own; `lost` is called once when that connection
        ends.
        """
        with _translated():
            connection = await asyncpg.connect(
                self._dsn, timeout=_CONNECT_TIMEOUT_S, server_settings=_session("listener")
            )
            connection.add_termination_listener(lambda _: lost())
            try:
                await connection.add_listener(channel, lambda _c, _p, _ch, payload: heard(str(payload)))
            except BaseException:  # cancelled as well: nobody else would close it
                connection.terminate()
                raise
            return Listener(connection)


class Listener:
    """A connection that waits for notifications."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def check(self) -> None:
        """Ask the server for a sign of life; StoreUnavailableError where the connection is dead or
        half-open.
        """
        with _translated():
            await self._connection.fetchval("SELECT 1", timeout=_CONNECT_TIMEOUT_S)

    async def close(self) -> None:
        """Stop listening."""
        try:
            await self._connection.close(timeout=1.0)
        except _AWAY:
            self._connection.terminate()


def _session(part: str) -> dict[str, str]:
    return {"search_path": SCHEMA, "application_name": f"qgate {part}", "timezone": "UTC"}


async def _prepare(connection: Any) -> None:
    import json

    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads, format="text"
    )


async def _migrate(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations"
            " (number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    applied = {row["number"] for row in await connection.fetch("SELECT number FROM migrations")}
    known = migrations()
    if unknown := applied - known.keys():
        raise ConfigError(
            f"the store has migration {max(unknown)}, which this version does not know",
            hint="this gate is older than its store: install the newer version",
        )
    for number, (name, sql) in sorted(known.items()):
        if number in applied:
            continue
        async with connection.transaction():
            await connection.execute(sql)
            await connection.execute("INSERT INTO migrations (number, name) VALUES ($1, $2)", number, name)


def migrations() -> dict[int, tuple[str, str]]:
    """The migrations of this version: number → (file name, SQL)."""
    found: dict[int, tuple[str, str]] = {}
    for file in importlib.resources.files("qgate.store").joinpath("migrations").iterdir():
        if match := _MIGRATION.fullmatch(file.name):
            found[int(match[1])] = (file.name, file.read_text(encoding="utf-8"))
    return found


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except _AWAY as error:
        if isinstance(
            error, ValueError
        ):  # an argument of the wrong type is our mistake, not the server's absence
            raise
        raise StoreUnavailableError(f"the store is unavailable: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The error's first line. Server messages never quote our parameters; DSN errors may, so those are not
    shown.
    """
    if isinstance(error, asyncpg.ClientConfigurationError | ValueError):
        return "it is malformed"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]

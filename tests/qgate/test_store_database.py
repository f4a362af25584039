"""Opening the store, migrating it from several gates at once, and what it says when it is away."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from qgate.store import Store, StoreUnavailableError
from qgate.store.database import migrations
from tunnel_proto.errors import ConfigError


async def test_gates_that_start_together_migrate_once(bare_dsn: str) -> None:
    stores = await asyncio.gather(*(Store.open(bare_dsn, connections=2) for _ in range(4)))
    async with stores[0].connection() as connection:
        applied = await connection.fetch("SELECT number FROM migrations ORDER BY number")
    assert [row["number"] for row in applied] == sorted(migrations())
    await asyncio.gather(*(store.close() for store in stores))


async def test_migrations_are_numbered_without_a_gap() -> None:
    assert sorted(migrations()) == list(range(1, len(migrations()) + 1))


async def test_a_store_from_the_future_is_refused(store: Store, store_dsn: str) -> None:
    async with store.connection() as connection:
        await connection.execute("INSERT INTO migrations (number, name) VALUES (9999, 'later')")
    with pytest.raises(ConfigError, match="9999"):
        await Store.open(store_dsn)


@pytest.mark.parametrize(
    ("dsn", "error", "words"),
    [
        ("postgresql://u:hunter2@127.0.0.1:1/x", StoreUnavailableError, "cannot be reached"),
        ("not a dsn with hunter2", ConfigError, "DSN"),
        ("postgresql://u:hunter2@host:port/x", ConfigError, "DSN"),
    ],
)
async def test_a_bad_dsn_is_refused_without_its_password(
    dsn: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        await Store.open(dsn)
    assert "hunter2" not in str(refused.value)


async def test_a_wrong_password_is_refused_without_showing_it(store_dsn: str) -> None:
    user, _, rest = store_dsn.partition("@")
    wrong = user.rpartition(":")[0] + ":hunter2@" + rest
    with pytest.raises(ConfigError, match="password authentication failed") as refused:
        await Store.open(wrong)
    assert "hunter2" not in str(refused.value)


async def test_a_killed_connection_is_replaced(store: Store, store_dsn: str) -> None:
    other = await asyncpg.connect(store_dsn)

    async def killed_under_way() -> None:
        async with store.connection() as connection:
            await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            await connection.fetchval("SELECT 1")

    with pytest.raises(StoreUnavailableError):
        await killed_under_way()
    assert await store.server_version()
    await other.close()


async def test_our_own_mistake_is_not_called_an_outage(store: Store) -> None:
    with pytest.raises(asyncpg.DataError):
        async with store.connection() as connection:
            await connection.fetchval("SELECT $1::int", "text")
    with pytest.raises(asyncpg.UndefinedTableError):
        async with store.connection() as connection:
            await connection.fetchval("SELECT * FROM nothing_of_that_name")


async def test_notifications_arrive_and_a_lost_listener_is_told(store: Store, store_dsn: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    lost = asyncio.Event()
    listener = await store.listen("news", heard.put_nowait, lost=lost.set)
    other = await asyncpg.connect(store_dsn)
    await other.execute("NOTIFY news, 'hello'")
    assert await heard.get() == "hello"
    await other.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'qgate listener' AND datname = current_database()"
    )
    await asyncio.wait_for(lost.wait(), 60)
    with pytest.raises(StoreUnavailableError):
        await listener.check()
    await listener.close()
    await other.close()

"""A PostgreSQL for the gate's own tests, and a fresh store in it for each."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import asyncpg
import pytest
import uvloop

from qgate.store import Store
from qgate.store.embedded import EmbeddedPostgres
from qgate.vault import KEY_BYTES, Vault
from tests.qgate.pool import Pool


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """PostgreSQL's side of the gate is tried on the loop it runs on: its transports differ from asyncio's."""
    del config
    if item.path.name.startswith("test_postgres_"):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One server for all tests of this package."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("store") / "pg", durable=False)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def store_dsn(store_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """The DSN of an empty database of its own."""
    name = f"store_{secrets.token_hex(6)}"
    administrator = await asyncpg.connect(store_server.dsn())
    await administrator.execute(f"CREATE DATABASE {name}")
    yield store_server.dsn(name)
    await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await administrator.close()


@pytest.fixture
async def store(store_dsn: str) -> AsyncIterator[Store]:
    """An open, migrated store."""
    opened = await Store.open(store_dsn)
    yield opened
    await opened.close()


@pytest.fixture
def vault() -> Vault:
    """A vault with a key of its own."""
    return Vault((secrets.token_bytes(KEY_BYTES),))


@pytest.fixture
async def pool(store: Store, vault: Vault, store_server: EmbeddedPostgres) -> Pool:
    """Administration over the fresh store."""
    made = Pool(store, vault, store_server)
    await made.watch.refresh()
    return made

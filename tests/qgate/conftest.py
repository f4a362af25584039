"""A PostgreSQL for the gate's own tests, and a fresh store in it for each."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
import uvloop

from qgate.store import Store
from qgate.store.embedded import EmbeddedPostgres
from qgate.vault import KEY_BYTES, Vault
from tests.qgate.pool import Pool

if TYPE_CHECKING:
    import httpx

    from qgate.gate import Gate


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
    """One server for all tests of this package; what is created in it has every migration already."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("store") / "pg", durable=False)
    asyncio.run(_started(server))
    yield server
    asyncio.run(server.stop())


async def _started(server: EmbeddedPostgres) -> None:
    await server.start()
    await (await Store.open(server.dsn("template1"), connections=1)).close()


@contextlib.asynccontextmanager
async def _database(server: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    name = f"store_{secrets.token_hex(6)}"
    administrator = await asyncpg.connect(server.dsn())
    await administrator.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield server.dsn(name)
    await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await administrator.close()


@pytest.fixture
async def store_dsn(store_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """The DSN of a database of its own: migrated, and nothing in it."""
    async with _database(store_server, "template1") as dsn:
        yield dsn


@pytest.fixture
async def bare_dsn(store_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """The DSN of a database of its own that no gate has ever opened."""
    async with _database(store_server, "template0") as dsn:
        yield dsn


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


@pytest.fixture
async def gate(tmp_path: Path, store_dsn: str) -> AsyncIterator[Gate]:
    """A running gate of its own, in the folder ``gate``."""
    from tests.qgate.gates import gate_settings, make_directory, running  # most tests do without a whole gate

    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    async with running(settings) as started:
        yield started


@pytest.fixture
async def client(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    """The control API of that gate."""
    from tests.qgate.gates import control

    async with control(gate) as opened:
        yield opened

"""Rotation against a real server: what every candidate list can do at every step, and after a crash there."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from qgate.governance.directory import Directory, Route, password_purpose
from qgate.postgres.back import connect
from qgate.postgres.login import UpstreamError
from qgate.postgres.rotation import Rotation, RotationBusyError, RotationError
from qgate.store import Store
from qgate.store import routes as table
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.snapshot import read_snapshot
from qgate.vault import Vault

STEPS = ("sealed", "altered", "verified", "switched")


@dataclass
class Pool:
    """A store that knows one upstream role, whose password is in the vault."""

    store: Store
    vault: Vault
    key: Path
    dsn: str
    route: Route

    async def directory(self) -> Directory:
        return Directory(await read_snapshot(self.store), unseal=self.vault.unseal)

    async def rotation(self) -> Rotation:
        return Rotation(store=self.store, vault=self.vault, routes=await self.directory(), settle_s=0.01)

    async def log_in(self, directory: Directory | None = None) -> int:
        """Log in as the relay does; gives which candidate was taken."""
        known = directory or await self.directory()
        upstream = await connect(
            self.route, self.route.user, known.passwords(self.route, read_only=False), parameters={}
        )
        upstream.close()
        return upstream.password_index

    async def states(self) -> set[str]:
        async with self.store.transaction() as connection:
            return set(await table.passwords_of(connection, "shop", read_only=False))


@pytest.fixture
async def pool(
    store: Store, store_dsn: str, store_server: EmbeddedPostgres, tmp_path: Path
) -> AsyncIterator[Pool]:
    role, password = f"owner_{secrets.token_hex(4)}", secrets.token_hex(16)
    administrator = await asyncpg.connect(store_dsn)
    await administrator.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    database = await administrator.fetchval("SELECT current_database()")
    vault = Vault.create(tmp_path / "vault.key")
    route = Route("shop", (("127.0.0.1", store_server.port),), str(database), role, sslmode="disable")
    now = datetime.now(UTC)
    async with store.transaction() as connection:
        await table.add_route(connection, route, limits={}, embedded=False, created_at=now)
        sealed = vault.seal(password.encode(), password_purpose(route, read_only=False))
        await table.put_password(connection, "shop", read_only=False, state="current", sealed=sealed, at=now)
    yield Pool(store, vault, tmp_path / "vault.key", store_dsn, route)
    await administrator.execute(f"DROP ROLE {role}")
    await administrator.close()


async def test_the_new_password_is_the_only_one_afterwards(pool: Pool) -> None:
    before = (await pool.directory()).passwords(pool.route, read_only=False)
    assert await (await pool.rotation()).rotate("shop") == pool.route.user
    new, *others = (await pool.directory()).passwords(pool.route, read_only=False)
    assert others == list(before)
    assert await pool.log_in() == 0
    with pytest.raises(UpstreamError, match="refused the gate's credentials"):
        await connect(pool.route, pool.route.user, before, parameters={})
    assert new not in before


async def test_the_password_itself_never_reaches_the_server(
    pool: Pool, store_server: EmbeddedPostgres
) -> None:
    administrator = await asyncpg.connect(store_server.dsn())
    await administrator.execute(f"ALTER ROLE {pool.route.user} SET log_statement = 'all'")
    await administrator.close()
    await (await pool.rotation()).rotate("shop")
    log = (store_server.directory / "postgres.log").read_bytes()
    assert b"ALTER ROLE CURRENT_USER PASSWORD" in log
    for password in (await pool.directory()).passwords(pool.route, read_only=False):
        assert password not in log


@pytest.mark.parametrize("step", STEPS)
async def test_a_gate_killed_at_any_step_leaves_every_login_working(pool: Pool, step: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.qgate.rotating", str(pool.key), step, stdin=asyncio.subprocess.PIPE
    )
    await child.communicate(pool.dsn.encode() + b"\n")
    assert child.returncode == -signal.SIGKILL
    await pool.log_in()
    assert await (await pool.rotation()).heal() == []
    assert await pool.states() == {"current", "previous"}
    assert await pool.log_in() == 0


async def test_a_sibling_that_read_the_store_before_the_switch_still_logs_in(pool: Pool) -> None:
    heard: list[Directory] = []
    tried: list[int] = []
    rotation = await pool.rotation()

    async def sibling() -> None:
        while True:
            if "pending" in await pool.states() and not heard:
                heard.append(await pool.directory())
            if heard:
                tried.append(await pool.log_in(heard[0]))
            await asyncio.sleep(0)

    watching = asyncio.create_task(sibling())
    rotation._settle_s = 0.3
    await rotation.rotate("shop")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert not watching.cancelled() or tried
    assert await pool.log_in(heard[0]) == 1


async def test_routes_that_share_a_role_rotate_together(pool: Pool) -> None:
    twin = replace(pool.route, name="twin")
    (current,) = (await pool.directory()).passwords(pool.route, read_only=False)
    now = datetime.now(UTC)
    async with pool.store.transaction() as connection:
        await table.add_route(connection, twin, limits={}, embedded=False, created_at=now)
        sealed = pool.vault.seal(current, password_purpose(twin, read_only=False))
        await table.put_password(connection, "twin", read_only=False, state="current", sealed=sealed, at=now)
    await (await pool.rotation()).rotate("shop")
    directory = await pool.directory()
    assert directory.passwords(twin, read_only=False) == directory.passwords(pool.route, read_only=False)


async def test_two_gates_cannot_rotate_one_role_at_once(pool: Pool) -> None:
    first, second = await pool.rotation(), await pool.rotation()
    first._settle_s = 0.3
    running = asyncio.create_task(first.rotate("shop"))
    while "pending" not in await pool.states():
        await asyncio.sleep(0)
    with pytest.raises(RotationBusyError, match="another gate"):
        await second.rotate("shop")
    await running


async def test_an_upstream_that_is_away_changes_nothing(pool: Pool) -> None:
    away = replace(pool.route, hosts=(("127.0.0.1", 1),))
    async with pool.store.transaction() as connection:
        await table.move_route(connection, "shop", away.hosts)
        (box,) = (await table.passwords_of(connection, "shop", read_only=False)).values()
        password = pool.vault.unseal(box, password_purpose(pool.route, read_only=False))
        sealed = pool.vault.seal(password, password_purpose(away, read_only=False))
        await table.put_password(
            connection, "shop", read_only=False, state="current", sealed=sealed, at=datetime.now(UTC)
        )
    rotation = await pool.rotation()
    with pytest.raises(RotationError, match="cannot log in"):
        await rotation.rotate("shop")
    assert len(await rotation.heal()) == 1
    assert await pool.states() == {"current", "pending"}


async def test_an_unknown_database_or_role_is_named(pool: Pool) -> None:
    rotation = await pool.rotation()
    with pytest.raises(LookupError, match="no database nowhere"):
        await rotation.rotate("nowhere")
    with pytest.raises(LookupError, match="no read-only role"):
        await rotation.rotate("shop", read_only=True)

"""The directory: answers from memory, hears of every change, and outlives the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qgate.governance.apps import NewApp
from qgate.governance.databases import NewDatabase
from qgate.governance.directory import App, Directory, Limits, Route, Snapshot, password_purpose
from qgate.governance.watch import DirectoryWatch
from qgate.store import Store, StoreUnavailableError
from qgate.store.embedded import EmbeddedPostgres
from qgate.vault import KEY_BYTES, Vault, VaultError
from tests.qgate.pool import BY, Pool

SHOP = Route("shop", (("db.example", 5432),), "shop", "owner", read_only_user="reader")


def route(name: str = "shop") -> NewDatabase:
    return NewDatabase(name, "postgresql://owner@db.example/shop", password="first", check=False)


@contextlib.asynccontextmanager
async def watching(watch: DirectoryWatch) -> AsyncIterator[asyncio.Queue[frozenset[str]]]:
    """Run `watch`; what its directory's subscribers hear is put into the queue."""
    heard: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    watch.directory.subscribe(heard.put_nowait)
    running = asyncio.ensure_future(watch.run())
    async with asyncio.timeout(60):
        while not watch.fresh:
            await asyncio.sleep(0.01)
        yield heard
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def until_heard(heard: asyncio.Queue[frozenset[str]], name: str) -> None:
    async with asyncio.timeout(60):
        while name not in await heard.get():
            pass


def test_passwords_come_in_the_order_of_likelihood_and_promotion_changes_it() -> None:
    vault = Vault((bytes(KEY_BYTES),))
    purpose = password_purpose(SHOP, read_only=False)
    boxes = (vault.seal(b"current", purpose), vault.seal(b"pending", purpose))
    snapshot = Snapshot(routes={"shop": SHOP}, passwords={("shop", False): boxes})
    directory = Directory(snapshot, unseal=vault.unseal)
    promoted: list[tuple[str, bool]] = []
    directory.on_promotion(lambda name, read_only: promoted.append((name, read_only)))

    assert directory.passwords(SHOP, read_only=False) == (b"current", b"pending")
    assert directory.passwords(SHOP, read_only=True) == ()
    directory.promote(SHOP, b"pending", read_only=False)
    directory.promote(SHOP, b"pending", read_only=False)
    assert directory.passwords(SHOP, read_only=False) == (b"pending", b"current")
    assert promoted == [("shop", False)]
    # The store has switched: what was preferred is current now.
    directory.replace(Snapshot(routes={"shop": SHOP}, passwords={("shop", False): boxes[::-1]}))
    assert directory.passwords(SHOP, read_only=False) == (b"pending", b"current")


def test_a_password_does_not_open_for_another_destination() -> None:
    vault = Vault((bytes(KEY_BYTES),))
    box = vault.seal(b"secret", password_purpose(SHOP, read_only=False))
    for other in (
        Route("shop", (("evil.example", 5432),), "shop", "owner", read_only_user="reader"),
        Route("shop", SHOP.hosts, "shop", "other"),
        Route("shop", SHOP.hosts, "shop", "owner", sslmode="disable"),
        Route("shop", SHOP.hosts, "shop", "owner", sslrootcert="system"),
        Route("evil", SHOP.hosts, "shop", "owner"),
    ):
        directory = Directory(Snapshot(passwords={(other.name, False): (box,)}), unseal=vault.unseal)
        with pytest.raises(VaultError):
            directory.passwords(other, read_only=False)


def test_a_change_names_what_changed() -> None:
    directory = Directory()
    heard: list[frozenset[str]] = []
    directory.subscribe(heard.append)
    web = App("web", (("v", None),), frozenset({"shop"}))
    directory.replace(Snapshot(apps={"web": web}, settings={"a": 1}))
    directory.replace(Snapshot(apps={"web": web}, settings={"a": 1}))
    directory.replace(Snapshot(apps={"web": web}, settings={"a": 2}))
    directory.replace(Snapshot(routes={"shop": SHOP}))
    assert heard == [
        frozenset({"app:web", "setting:a"}),
        frozenset({"setting:a"}),
        frozenset({"app:web", "setting:a", "route:shop"}),
    ]


def test_secrets_are_in_no_repr() -> None:
    web = App("web", (("SCRAM-SHA-256$secret", None),), frozenset())
    snapshot = Snapshot(apps={"web": web}, passwords={("shop", False): (b"box",)}, secrets={"s": b"box"})
    assert "SCRAM" not in repr(snapshot)
    assert "box" not in repr(snapshot)


async def test_another_gates_change_is_heard_within_a_second(
    pool: Pool, store_dsn: str, vault: Vault
) -> None:
    other = await Store.open(store_dsn)
    watch = DirectoryWatch(Directory(unseal=vault.unseal), other, vault)
    async with watching(watch) as heard:
        await pool.databases.add(route(), by=BY)
        async with asyncio.timeout(1):
            await until_heard(heard, "route:shop")
        there = watch.directory.route("shop")
        assert there is not None
        assert watch.directory.passwords(there, read_only=False) == (b"first",)
        await pool.apps.create(NewApp("web", ("shop",)), by=BY)
        await until_heard(heard, "app:web")
        await pool.apps.revoke("web", by=BY)
        await until_heard(heard, "app:web")
        web = watch.directory.app("web")
        assert web is not None
        assert web.revoked
        assert web.verifiers == ()
    await other.close()


async def test_an_expiry_is_announced_at_its_time(pool: Pool) -> None:
    await pool.databases.add(route(), by=BY)
    await pool.apps.create(NewApp("web", ("shop",), expires_in_s=5), by=BY)
    async with watching(pool.watch) as heard:
        web = pool.directory.app("web")
        assert web is not None
        assert web.usable(pool.clock())
        pool.clock.now += 6
        pool.watch.look()
        await until_heard(heard, "app:web")
        assert not web.usable(pool.clock())


async def test_the_last_snapshot_serves_while_the_store_is_away(vault: Vault, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    await server.start()
    store = await Store.open(server.dsn())
    pool = Pool(store, vault)
    await pool.watch.refresh()
    await pool.databases.add(route(), by=BY)
    async with watching(pool.watch) as heard:

        def fresh() -> bool:
            return pool.watch.fresh

        await server.stop()
        async with asyncio.timeout(60):
            while fresh():
                await asyncio.sleep(0.01)
        shop = pool.directory.route("shop")
        assert shop is not None
        assert pool.directory.passwords(shop, read_only=False) == (b"first",)
        with pytest.raises(StoreUnavailableError):
            await pool.settings.set("audit.when_full", "drop", by=BY)

        await server.start()
        async with asyncio.timeout(60):
            while not fresh():
                await asyncio.sleep(0.01)
        await pool.settings.set("audit.when_full", "drop", by=BY)
        await until_heard(heard, "setting:audit.when_full")
    await store.close()
    await server.stop()


async def test_limits_that_an_app_leaves_open_come_from_the_settings(pool: Pool) -> None:
    await pool.databases.add(route(), by=BY)
    await pool.settings.set("app.queue", 7, by=BY)
    await pool.apps.create(NewApp("web", ("shop",), limits={"max_connections": 3}), by=BY)
    web = pool.directory.app("web")
    assert web is not None
    assert web.limits == Limits(max_connections=3, queue=7)

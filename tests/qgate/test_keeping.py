"""Re-keying the vault, backing the store up and restoring it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from qgate.governance.apps import NewApp
from qgate.governance.backup import Backup
from qgate.governance.problems import (
    ConflictError,
    InvalidRequestError,
)
from qgate.store import Store
from qgate.store.embedded import EmbeddedPostgres
from qgate.vault import KEY_BYTES, Vault, VaultError
from tests.qgate.pool import BY, Pool, unchecked
from tunnel_proto.enrolment import make_offer
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity

# --- vault


async def test_rekeying_reseals_everything_under_a_new_key(
    store: Store, store_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    vault = Vault.create(tmp_path / "vault.key")
    pool = Pool(store, vault, store_server)
    await pool.watch.refresh()
    await pool.databases.add(unchecked(sslcert="-----BEGIN C", sslkey="-----BEGIN K"), by=BY)
    old = vault.current_key_id
    done = await pool.rekeying.run(by=BY)
    assert (done["old_key"], done["secrets"]) == (old, 2)
    assert done["new_key"] == vault.current_key_id != old
    shop = pool.directory.route("shop")
    assert shop is not None
    assert pool.directory.passwords(shop, read_only=False) == (b"db-secret",)
    assert not (tmp_path / "vault.key.next").exists()
    assert Vault.load(tmp_path / "vault.key").current_key_id == done["new_key"]


async def test_a_rekeying_that_fails_half_way_changes_nothing(
    store: Store, store_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    vault = Vault.create(tmp_path / "vault.key")
    pool = Pool(store, vault, store_server)
    await pool.watch.refresh()
    await pool.databases.add(unchecked("a"), by=BY)
    await pool.databases.add(unchecked("b"), by=BY)
    async with store.connection() as connection:
        await connection.execute("UPDATE routes SET hosts = '[[\"evil.example\", 5432]]' WHERE name = 'b'")
    with pytest.raises(VaultError, match="route b"):
        await pool.rekeying.run(by=BY)
    after = Vault.load(tmp_path / "vault.key")
    await pool.watch.refresh()
    a = pool.directory.route("a")
    assert a is not None
    assert pool.directory.passwords(a, read_only=False) == (b"db-secret",)
    assert after.current_key_id == vault.current_key_id


async def test_a_vault_in_memory_cannot_be_rekeyed(pool: Pool) -> None:
    with pytest.raises(ConfigError, match="not in a file"):
        await pool.rekeying.run(by=BY)


# --- backup


@pytest.fixture
async def filled(pool: Pool) -> Pool:
    await pool.databases.add(unchecked(), by=BY)
    await pool.apps.create(NewApp("web", ("shop",)), by=BY)
    offer = make_offer(Identity.generate(), role="client", name="laptop", now=pool.clock())
    await pool.sidecars.enrol(offer, valid_days=None, by=BY)
    await pool.settings.set("app.queue", 5, by=BY)
    await pool.log.flush()
    await pool.log.sign()
    return pool


@pytest.fixture
async def empty_store(store_server: EmbeddedPostgres) -> AsyncIterator[Store]:
    name = f"restored_{secrets.token_hex(4)}"
    administrator = await asyncpg.connect(store_server.dsn())
    await administrator.execute(f"CREATE DATABASE {name}")
    opened = await Store.open(store_server.dsn(name))
    yield opened
    await opened.close()
    await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await administrator.close()


async def test_a_backup_restores_into_an_empty_store(
    filled: Pool, empty_store: Store, tmp_path: Path
) -> None:
    key = tmp_path / "online.key"
    key.write_text("an online key")
    path = tmp_path / "gate.backup"
    made = await filled.backups({"keys/online.key": key}).write(path, by=BY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert made["bytes"] == path.stat().st_size
    content = path.read_bytes()
    for secret in (b"db.example", b"web", b"an online key", b"laptop", b"SCRAM", b"owner"):
        assert secret not in content

    backup = Backup(path, filled.vault)
    done = await backup.restore(empty_store, tmp_path / "new")
    backup.close()
    assert done["files"] == ["keys/online.key"]
    assert (tmp_path / "new" / "keys" / "online.key").read_text() == "an online key"
    restored = Pool(empty_store, filled.vault)
    restored.signing.identity, restored.signing.certificate = filled.online, filled.certificate
    await restored.watch.refresh()
    assert restored.directory.snapshot == filled.directory.snapshot
    shop = restored.directory.route("shop")
    assert shop is not None
    assert restored.directory.passwords(shop, read_only=False) == (b"db-secret",)
    again = Pool(empty_store, filled.vault)
    again.trail._pool_key = filled.identity.verify_key
    assert (await again.trail.verify())["ok"]
    # Life goes on: serials given out after the backup are not given out again.
    laptop = make_offer(Identity.generate(), role="client", name="desktop", now=restored.clock())
    await restored.sidecars.enrol(laptop, valid_days=None, by=BY)
    await restored.apps.rotate("web", overlap_s=10, by=BY)


async def test_a_backup_replaces_nothing(filled: Pool, empty_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "gate.backup"
    await filled.backups().write(path, by=BY)
    with pytest.raises(ConflictError, match="exists"):
        await filled.backups().write(path, by=BY)
    with pytest.raises(InvalidRequestError, match="absolute"):
        await filled.backups().write(Path("relative"), by=BY)
    with pytest.raises(InvalidRequestError, match="cannot write"):
        await filled.backups().write(tmp_path / "no" / "where", by=BY)
    backup = Backup(path, filled.vault)
    with pytest.raises(ConflictError, match="not empty"):
        await backup.restore(filled.store, tmp_path)
    backup.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "append", "swap", "key", "empty", "text"])
async def test_a_damaged_backup_restores_nothing(
    filled: Pool, empty_store: Store, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "gate.backup"
    noise = tmp_path / "noise"
    noise.write_bytes(secrets.token_bytes(3 << 20))  # several chunks
    await filled.backups({"noise": noise}).write(path, by=BY)
    content = bytearray(path.read_bytes())
    header_end = content.index(b"\n") + 1
    vault = filled.vault
    if damage == "cut":
        del content[-(1 << 20) :]
    elif damage == "flip":
        content[-100] ^= 1
    elif damage == "append":
        content += content[header_end:]
    elif damage == "swap":
        size = 4 + int.from_bytes(content[header_end : header_end + 4])
        first, second = header_end, header_end + size
        content[first:second], content[second : second + size] = (
            content[second : second + size],
            content[first:second],
        )
    elif damage == "key":
        vault = Vault((bytes(KEY_BYTES),))
    elif damage == "empty":
        content.clear()
    else:
        content[:] = b"-- PostgreSQL database dump\n"
    path.write_bytes(content)

    async def restore() -> None:
        backup = Backup(path, vault)
        try:
            await backup.restore(empty_store, tmp_path / "new")
        finally:
            backup.close()

    with pytest.raises(ConfigError):
        await restore()
    assert not (tmp_path / "new").exists()
    async with empty_store.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM routes") == 0
        assert await connection.fetchval("SELECT seq FROM audit_head") == 0

"""Administration over a real store and a real database: what is kept, what is shown, what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from qgate.governance.apps import NewApp
from qgate.governance.databases import NewDatabase
from qgate.governance.directory import password_purpose
from qgate.governance.problems import (
    ConflictError,
    InvalidRequestError,
    UnknownNameError,
    UpstreamRefusedError,
)
from qgate.governance.upkeep import Upkeep
from qgate.store import Store
from qgate.store.archive import LEFT_OUT, TABLES
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.gates import announce_gate, gates_since
from qgate.store.routes import put_password
from qgate.store.sample import DATABASE, OWNER, READER
from qgate.vault import Vault
from tests.qgate.pool import BY, DAY, GATE, Pool, everything_stored, unchecked
from tunnel_proto.certificate import verify_chain
from tunnel_proto.enrolment import GateAddress, make_offer, read_bundle
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity
from tunnel_proto.scram import derive_keys, parse_verifier


@pytest.fixture
async def upstream(store_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """A database with an owner role and a reader; its DSN for the owner, password included."""
    name = f"up_{secrets.token_hex(4)}"
    administrator = await asyncpg.connect(store_server.dsn())
    await administrator.execute(f"CREATE ROLE {name}_owner LOGIN PASSWORD 'owner-secret'")
    await administrator.execute(f"CREATE ROLE {name}_reader LOGIN PASSWORD 'reader-secret'")
    await administrator.execute(f"CREATE DATABASE {name} OWNER {name}_owner")
    yield f"postgresql://{name}_owner:owner-secret@127.0.0.1:{store_server.port}/{name}"
    await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await administrator.execute(f"DROP ROLE {name}_owner, {name}_reader")
    await administrator.close()


# --- databases


async def test_a_database_is_tried_registered_shown_and_checked(pool: Pool, upstream: str) -> None:
    name = upstream.rpartition("/")[2]
    new = NewDatabase("orders", upstream, read_only_user=f"{name}_reader", read_only_password="reader-secret")
    row = await pool.databases.add(new, by=BY)
    assert (row["name"], row["dbname"], row["user"]) == ("orders", name, f"{name}_owner")
    assert row["read_only_user"] == f"{name}_reader"
    found = await pool.databases.check("orders")
    assert found["ok"]
    assert [step["name"] for step in found["steps"]] == [
        "log in",
        "query",
        "encryption",
        "log in read-only",
        "read-only role",
    ]
    assert found["auth"] == "scram-sha-256"
    assert found["server_version"].startswith("18")
    for shown in (json.dumps([row, found]), repr(new), await everything_stored(pool)):
        assert "owner-secret" not in shown
        assert "reader-secret" not in shown
    assert await pool.told() == [("database.add", "orders")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("owner-secret", "wrong-secret"), "28P01"),
        (("127.0.0.1", "127.0.0.2"), "log in"),
        ((":{port}/up_", ":{port}/no_up_"), "3D000"),
    ],
)
async def test_a_database_that_does_not_answer_is_not_registered(
    pool: Pool, upstream: str, change: tuple[str, str], words: str
) -> None:
    port = str(urlsplit(upstream).port)
    before, after = (text.replace("{port}", port) for text in change)
    with pytest.raises(UpstreamRefusedError, match=words) as refused:
        await pool.databases.add(NewDatabase("orders", upstream.replace(before, after)), by=BY)
    assert "secret" not in refused.value.message + refused.value.hint
    assert refused.value.hint
    assert "db remove" not in refused.value.hint  # there is nothing to remove
    assert await pool.databases.list() == []


async def test_a_read_only_role_that_may_write_is_found(pool: Pool, upstream: str) -> None:
    name = upstream.rpartition("/")[2]
    owner = await asyncpg.connect(upstream)
    await owner.execute(f"CREATE TABLE t (n int); GRANT INSERT ON t TO {name}_reader")
    await owner.close()
    new = NewDatabase("orders", upstream, read_only_user=f"{name}_reader", read_only_password="reader-secret")
    with pytest.raises(UpstreamRefusedError, match="may write to 1 tables"):
        await pool.databases.add(new, by=BY)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"password": "other"}, "another password"),
        ({"read_only_user": "owner"}, "another one"),
        ({"read_only_password": "x"}, "without a read-only user"),
        ({"sslcert": "-----BEGIN CERTIFICATE-----"}, "come together"),
        ({"sslrootcert": "/etc/ca.pem"}, "PEM"),
        ({"dsn": "host=a"}, "no user"),
    ],
)
async def test_what_can_never_work_is_refused(pool: Pool, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        await pool.databases.add(unchecked(**fields), by=BY)


async def test_names_are_unique_and_unknown_ones_are_said(pool: Pool) -> None:
    await pool.databases.add(unchecked(), by=BY)
    with pytest.raises(ConflictError, match="already"):
        await pool.databases.add(unchecked(), by=BY)
    with pytest.raises(UnknownNameError):
        await pool.databases.show("nothing")
    with pytest.raises(UnknownNameError):
        await pool.databases.check("nothing")
    with pytest.raises(UnknownNameError):
        await pool.databases.rotate("nothing", by=BY)
    with pytest.raises(UnknownNameError):
        await pool.databases.remove("nothing", force=True, by=BY)


async def test_a_database_in_use_is_removed_by_force_only(pool: Pool) -> None:
    await pool.databases.add(unchecked(sslcert="-----BEGIN C", sslkey="-----BEGIN K"), by=BY)
    await pool.apps.create(NewApp("web", ("shop",)), by=BY)
    with pytest.raises(ConflictError, match="web"):
        await pool.databases.remove("shop", force=False, by=BY)
    await pool.databases.remove("shop", force=True, by=BY)
    web = pool.directory.app("web")
    assert web is not None
    assert web.databases == frozenset()
    assert pool.directory.snapshot.secrets == {}


async def test_a_clients_key_is_sealed(pool: Pool) -> None:
    await pool.databases.add(unchecked(sslcert="-----BEGIN C", sslkey="-----BEGIN canary"), by=BY)
    shop = pool.directory.route("shop")
    assert shop is not None
    assert shop.sslkey_secret is not None
    assert pool.directory.secret(shop.sslkey_secret) == b"-----BEGIN canary"
    assert "canary" not in await everything_stored(pool)


async def test_a_route_that_was_pointed_elsewhere_is_found_and_its_password_stays_shut(
    pool: Pool, upstream: str
) -> None:
    await pool.databases.add(NewDatabase("orders", upstream), by=BY)
    async with pool.store.connection() as connection:
        await connection.execute("UPDATE routes SET sslmode = 'disable'")
    await pool.watch.refresh()
    found = await pool.databases.check("orders")
    assert not found["ok"]
    assert "behind the gate's back" in found["steps"][0]["detail"]
    with pytest.raises(ConflictError, match="behind the gate's back"):
        await pool.databases.rotate("orders", by=BY)


async def test_every_table_is_in_a_backup_or_made_again_at_a_start(store: Store) -> None:
    async with store.connection() as connection:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'qgate'")
    assert {row["tablename"] for row in rows} == {*TABLES, *LEFT_OUT, "migrations", "gates"}


async def test_rotation_changes_both_roles_and_counts_who_stays_on_the_old(pool: Pool, upstream: str) -> None:
    name = upstream.rpartition("/")[2]
    new = NewDatabase("orders", upstream, read_only_user=f"{name}_reader", read_only_password="reader-secret")
    await pool.databases.add(new, by=BY)
    pool.live.routes["orders"] = 3
    done = await pool.databases.rotate("orders", by=BY)
    assert (done["role"], done["sessions_on_old"]) == (f"{name}_owner", 3)
    assert done["rotated_at"]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(upstream)
    assert (await pool.databases.check("orders"))["ok"]
    orders = pool.directory.route("orders")
    assert orders is not None
    assert pool.directory.passwords(orders, read_only=False)[1] == b"owner-secret"


# --- apps


def fits(verifier: str, password: str) -> bool:
    kept = parse_verifier(verifier)
    keys = derive_keys(password.encode(), kept.salt, kept.iterations)
    return hashlib.sha256(keys.client_key).digest() == kept.stored_key


async def test_an_apps_password_is_shown_once_and_kept_as_a_verifier(pool: Pool) -> None:
    await pool.databases.add(unchecked(), by=BY)
    made = await pool.apps.create(
        NewApp("web", ("shop",), expires_in_s=60, sidecars=("laptop",), statement_classes=("select",)), by=BY
    )
    assert len(made["password"]) == 32
    assert made["app"]["state"] == "active"
    assert made["app"]["sidecars"] == ["laptop"]
    web = pool.directory.app("web")
    assert web is not None
    assert web.statement_classes == frozenset({"select"})
    assert fits(web.verifiers[0][0], made["password"])
    await pool.log.flush()
    assert made["password"] not in await everything_stored(pool)
    assert made["password"] not in json.dumps(await pool.apps.list())

    pool.clock.now += 61
    assert (await pool.apps.list())[0]["state"] == "expired"
    assert not web.usable(pool.clock())


async def test_rotation_overlaps_with_one_salt(pool: Pool) -> None:
    await pool.databases.add(unchecked(), by=BY)
    first = await pool.apps.create(NewApp("web", ("shop",)), by=BY)
    second = await pool.apps.rotate("web", overlap_s=60, by=BY)
    web = pool.directory.app("web")
    assert web is not None
    newest, oldest = web.accepted_verifiers(pool.clock())
    assert fits(newest, second["password"])
    assert fits(oldest, first["password"])
    assert parse_verifier(newest).salt == parse_verifier(oldest).salt
    assert web.accepted_verifiers(pool.clock() + 61) == (newest,)

    third = await pool.apps.rotate("web", overlap_s=0, by=BY)
    web = pool.directory.app("web")
    assert web is not None
    (only,) = web.accepted_verifiers(pool.clock())
    assert fits(only, third["password"])
    assert parse_verifier(only).salt != parse_verifier(newest).salt


async def test_a_revoked_app_is_gone_for_good_but_its_name_is_free(pool: Pool) -> None:
    await pool.databases.add(unchecked(), by=BY)
    await pool.apps.create(NewApp("web", ("shop",)), by=BY)
    pool.live.apps["web"] = 2
    assert await pool.apps.revoke("web", by=BY) == {"name": "web", "sessions_ended": 2}
    web = pool.directory.app("web")
    assert web is not None
    assert web.revoked
    assert (await pool.apps.list())[0]["state"] == "revoked"
    for again in (pool.apps.revoke("web", by=BY), pool.apps.rotate("web", overlap_s=1, by=BY)):
        with pytest.raises(UnknownNameError):
            await again
    await pool.apps.create(NewApp("web", ("shop",)), by=BY)
    with pytest.raises(ConflictError, match="already"):
        await pool.apps.create(NewApp("web", ("shop",)), by=BY)


@pytest.mark.parametrize(
    ("app", "error", "words"),
    [
        (NewApp("web", ()), InvalidRequestError, "at least one"),
        (NewApp("web", ("nothing",)), UnknownNameError, "no database nothing"),
        (NewApp("web", ("shop",), read_only=True), ConflictError, "no read-only role"),
        (NewApp("web", ("shop",), replication=True), ConflictError, "replication"),
        (NewApp("web", ("shop",), expires_in_s=0), InvalidRequestError, "expire"),
        (NewApp("web", ("shop",), statement_classes=("selekt",)), InvalidRequestError, "selekt"),
    ],
)
async def test_apps_that_make_no_sense_are_refused(
    pool: Pool, app: NewApp, error: type[Exception], words: str
) -> None:
    await pool.databases.add(unchecked(), by=BY)
    with pytest.raises(error, match=words):
        await pool.apps.create(app, by=BY)


# --- sidecars


async def test_an_app_is_changed_after_it_was_made(pool: Pool) -> None:
    for name in ("orders", "stock"):
        await pool.databases.add(unchecked(name), by=BY)
    made = await pool.apps.create(NewApp("web", ("orders",), expires_in_s=DAY, limits={"queue": 9}), by=BY)
    change = {
        "databases": ["stock", "orders", "stock"],
        "expires_in_s": None,
        "limits": {"queue": None, "idle_timeout_s": 60.0},
        "sidecars": ["app-host"],
    }
    row = await pool.apps.change("web", change, by=BY)
    assert (row["databases"], row["expires_at"]) == (["orders", "stock"], None)
    assert (row["limits"], row["sidecars"]) == ({"idle_timeout_s": 60.0}, ["app-host"])
    assert row["version"] != made["app"]["version"]
    served = pool.office.directory.app("web")
    assert served is not None
    assert served.databases == {"orders", "stock"}
    assert served.limits.idle_timeout_s == 60.0
    told = await pool.told()
    assert (await pool.apps.change("web", {"read_only": False}, by=BY))["version"] == row["version"]
    assert await pool.told() == told  # nothing was changed, so nothing is said
    row = await pool.apps.change("web", {"expires_in_s": 3600.0}, by=BY)
    assert row["expires_at"] is not None
    for refused, error in (
        ({"databases": ["none"]}, UnknownNameError),
        ({"databases": []}, InvalidRequestError),
        ({"read_only": True}, ConflictError),
        ({"replication": True}, ConflictError),
        ({"statement_classes": ["dance"]}, InvalidRequestError),
    ):
        with pytest.raises(error):
            await pool.apps.change("web", refused, by=BY)
    assert (await pool.apps.show("web"))["version"] == row["version"]
    await pool.apps.revoke("web", by=BY)
    with pytest.raises(UnknownNameError):
        await pool.apps.change("web", {"limits": {}}, by=BY)


async def test_an_offer_becomes_a_bundle_that_its_node_accepts(pool: Pool) -> None:
    laptop = Identity.generate()
    offer = make_offer(laptop, role="client", name="laptop", now=pool.clock())
    made = await pool.sidecars.enrol(offer, valid_days=30, by=BY)
    bundle = read_bundle(made["bundle"], laptop, pool_key=pool.identity.verify_key, now=pool.clock())
    assert bundle.gates == (GATE,)
    certificate = verify_chain(bundle.chain, pool_key=pool.identity.verify_key, now=pool.clock())
    node = pool.directory.node(laptop.handshake_public)
    assert node is not None
    assert (node.name, node.role, node.serial) == ("laptop", "client", certificate.serial)
    pool.live.nodes["laptop"] = "10.0.0.7"
    (row,) = await pool.sidecars.list()
    assert (row["state"], row["connected"], row["address"]) == ("active", True, "10.0.0.7")
    assert row["fingerprint"] == laptop.fingerprint == made["fingerprint"]


async def test_the_same_keys_renew_and_other_keys_need_a_revocation_first(pool: Pool) -> None:
    laptop, thief = Identity.generate(), Identity.generate()
    offers = [make_offer(who, role="client", name="laptop", now=pool.clock()) for who in (laptop, thief)]
    await pool.sidecars.enrol(offers[0], valid_days=None, by=BY)
    first = pool.directory.node(laptop.handshake_public)
    await pool.sidecars.enrol(offers[0], valid_days=None, by=BY)
    second = pool.directory.node(laptop.handshake_public)
    assert first is not None
    assert second is not None
    assert second.serial > first.serial
    with pytest.raises(ConflictError, match="another key"):
        await pool.sidecars.enrol(offers[1], valid_days=None, by=BY)
    await pool.sidecars.revoke("laptop", by=BY)
    gone = pool.directory.node(laptop.handshake_public)
    assert gone is not None
    assert gone.revoked
    await pool.sidecars.enrol(offers[1], valid_days=None, by=BY)
    gone = pool.directory.node(laptop.handshake_public)
    assert gone is not None
    assert gone.revoked
    assert [row["state"] for row in await pool.sidecars.list()] == ["active", "revoked"]
    with pytest.raises(UnknownNameError):
        await pool.sidecars.revoke("desktop", by=BY)


async def test_a_revoked_key_stays_refused_until_it_is_let_in_again(pool: Pool) -> None:
    thief = Identity.generate()
    offer = make_offer(thief, role="client", name="laptop", now=pool.clock())
    await pool.sidecars.enrol(offer, valid_days=None, by=BY)
    await pool.sidecars.revoke("laptop", by=BY)
    renamed = make_offer(thief, role="client", name="desktop", now=pool.clock())
    for again in (offer, renamed):
        with pytest.raises(ConflictError, match=r"was revoked at .* and stays refused") as refused:
            await pool.sidecars.enrol(again, valid_days=None, by=BY)
        assert refused.value.code == "revoked"
        assert "--readmit" in refused.value.hint
        node = pool.directory.node(thief.handshake_public)
        assert node is not None
        assert node.revoked
    await pool.sidecars.enrol(offer, valid_days=None, readmit=True, by=BY)
    node = pool.directory.node(thief.handshake_public)
    assert node is not None
    assert not node.revoked
    await pool.log.flush()
    rows = await pool.trail.entries(kind="admin", after=0)
    assert "revoked_at" in rows[-1]["detail"]["readmitted"]
    assert all("readmitted" not in row["detail"] for row in rows[:-1])


async def test_a_bundle_names_the_sibling_gates_that_live(pool: Pool) -> None:
    now = pool.office.now()
    sibling = GateAddress("gate-2", "two.example", 11437, bytes(32))
    async with pool.store.connection() as connection:
        await announce_gate(connection, (GATE,), now)
        await announce_gate(connection, (sibling,), now)
        await announce_gate(
            connection, (GateAddress("gate-0", "gone.example", 1, bytes(32)),), now - timedelta(days=9)
        )
    laptop = Identity.generate()
    offer = make_offer(laptop, role="client", name="laptop", now=pool.clock())
    made = await pool.sidecars.enrol(offer, valid_days=None, by=BY)
    assert read_bundle(made["bundle"], laptop).gates == (GATE, sibling)


async def test_upkeep_announces_the_gate_and_heals_when_a_login_took_the_pending_password(
    pool: Pool, upstream: str
) -> None:
    upkeep = Upkeep(pool.office, rotation=pool.rotation, trail=pool.trail, sample=pool.sample)
    await upkeep.prepare()
    async with pool.store.connection() as connection:
        assert await gates_since(connection, pool.office.now() - timedelta(days=1)) == [GATE]

    await pool.databases.add(NewDatabase("orders", upstream), by=BY)
    orders = pool.directory.route("orders")
    assert orders is not None
    running = asyncio.ensure_future(upkeep.run())
    pool.directory.on_promotion(lambda *_: promoted.set())
    promoted = asyncio.Event()
    await asyncio.sleep(0)
    # Another gate sealed a password, told the server, and died.
    box = pool.vault.seal(b"pending-secret", password_purpose(orders, read_only=False))
    async with pool.store.transaction() as connection:
        at = pool.office.now()
        await put_password(connection, "orders", read_only=False, state="pending", sealed=box, at=at)
    await pool.watch.refresh()
    pool.directory.promote(orders, b"pending-secret", read_only=False)
    assert promoted.is_set()
    async with asyncio.timeout(20):
        while (await pool.databases.show("orders"))["pending_rotation"]:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await pool.watch.refresh()
    assert pool.directory.passwords(orders, read_only=False) == (b"pending-secret", b"owner-secret")
    assert (await pool.databases.check("orders"))["ok"]


async def test_damaged_offers_and_impossible_spans_are_refused(pool: Pool) -> None:
    offer = make_offer(Identity.generate(), role="client", name="laptop", now=pool.clock())
    with pytest.raises(ConfigError, match="signature"):
        await pool.sidecars.enrol(offer.replace("laptop", "laptot"), valid_days=None, by=BY)
    with pytest.raises(InvalidRequestError, match="online key"):
        await pool.sidecars.enrol(offer, valid_days=500, by=BY)
    pool.clock.now += 200 * DAY
    made = await pool.sidecars.enrol(offer, valid_days=None, by=BY)
    assert made["name"] == "laptop"


# --- the sample


async def test_the_sample_is_made_once_and_nobody_knows_its_password(vault: Vault, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    await server.start()
    store = await Store.open(server.dsn())
    pool = Pool(store, vault, server)
    await pool.watch.refresh()
    try:
        made = await pool.sample.make(by=BY)
        assert made["database"] == DATABASE
        assert 29_000 < made["rows"] < 31_000
        assert await pool.sample.make(by=BY) == made
        assert (await pool.databases.check(DATABASE))["ok"]

        shop = await asyncpg.connect(server.dsn(DATABASE))
        owners = await shop.fetch("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert [row["tableowner"] for row in owners] == [OWNER]
        assert (
            await shop.fetchval(
                "SELECT count(*) FROM orders o WHERE total <> "
                "(SELECT sum(quantity * unit_price) FROM order_items WHERE order_id = o.id)"
            )
            == 0
        )
        assert await shop.fetchval("SELECT count(*) FROM monthly_revenue") > 20
        await shop.execute(f"SET ROLE {READER}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await shop.execute("DELETE FROM orders")
        await shop.close()

        # A restored store in a new server: the route is there, the roles and rows are not.
        superuser = await asyncpg.connect(server.dsn())
        await superuser.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        await superuser.execute(f"DROP ROLE {OWNER}, {READER}")
        await superuser.close()
        assert await pool.sample.make(by=BY) == made
        assert (await pool.databases.check(DATABASE))["ok"]

        # Tomorrow the server listens elsewhere, and the sealed passwords follow it.
        await pool.databases.rotate(DATABASE, by=BY)
        await server.stop()
        (server.directory / "port").write_text("1\n")
        await server.start()
        await store.close()
        pool = Pool(await Store.open(server.dsn()), vault, server)
        await pool.watch.refresh()
        await pool.sample.follow_server()
        assert (await pool.databases.check(DATABASE))["ok"]
    finally:
        await pool.store.close()
        await server.stop()


async def test_an_external_store_gets_no_sample(store: Store, vault: Vault) -> None:
    pool = Pool(store, vault)
    with pytest.raises(ConflictError, match="external"):
        await pool.sample.make(by=BY)
    await pool.sample.follow_server()

"""An erasure leaves nothing of a person anywhere: store, dump, archives, older backups, peers; but a
certificate.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import AsyncMock
from urllib.parse import quote

import asyncpg
import httpx
import pytest

from qgate.control import staff as control_staff
from qgate.governance.apps import NewApp
from qgate.governance.backup import Backup
from qgate.governance.problems import ConflictError, UnknownNameError
from qgate.store import Store
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.mail import all_recipients
from qgate.store.people import recipient_purpose
from qgate.vault import Vault
from tests.kit.cluster import bundled
from tests.qgate.gates import control
from tests.qgate.peering import pair, pools
from tests.qgate.pool import BY, Pool, everything_stored, unchecked
from tests.qgate.staff import ALICE, Staff, grant, names
from tunnel_proto.erasure_certificate import ErasureCertificate, check_erasure
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import fingerprint


@pytest.fixture
def staff(pool: Pool, tmp_path: Path) -> Staff:
    return Staff(pool, tmp_path)


def dumped(dsn: str) -> str:
    """What pg_dump writes of a store."""
    done = subprocess.run(
        [bundled() / "pg_dump", "--inserts", dsn], capture_output=True, check=True, timeout=60
    )
    return done.stdout.decode()


async def restored(server: EmbeddedPostgres, backup: Path, vault: Vault, folder: Path) -> Staff:
    """People over a new database that is filled from a backup."""
    name = f"restored_{folder.name}"
    administrator = await asyncpg.connect(server.dsn())
    await administrator.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await administrator.execute(f"CREATE DATABASE {name}")
    await administrator.close()
    store = await Store.open(server.dsn(name))
    opened = Backup(backup, vault)
    folder.mkdir()
    await opened.restore(store, folder)
    opened.close()
    pool = Pool(store, vault, server)
    await pool.watch.refresh()
    return Staff(pool, folder)


async def test_an_erasure_leaves_nothing_but_the_certificate(
    pool: Pool, staff: Staff, tmp_path: Path, store_server: EmbeddedPostgres, store_dsn: str
) -> None:
    person = (await staff.people.add(ALICE, by=BY))["id"]
    made = await grant(staff, person)
    await staff.mail.set_recipients([(ALICE.email, "info"), ("ops@example.org", "info")], by=BY)
    keys_before = staff.file.read_bytes()
    older, newer = tmp_path / "older.backup", tmp_path / "newer.backup"
    await pool.backups().write(older, by=BY)

    document = await staff.erasures.erase(ALICE.email, by=BY)

    signer = fingerprint(pool.identity.verify_key)
    certificate = ErasureCertificate.from_json(document)
    assert check_erasure(certificate, pool=signer, email="ALICE.zimmerwald@example.org") == signer
    assert (document["person"], document["kept"]) == (person, {})
    assert document["removed"] == {
        "apps": 1,
        "last_changes": 1,
        "mail_recipients": 1,
        "people": 1,
        "receipts": 2,
    }
    assert document["copies_until"] - document["erased_at"] == 14 * 86_400
    stored = await everything_stored(pool)
    assert names(stored + dumped(store_dsn) + await staff.audit()) == []
    assert document["salt"] not in stored
    assert made["password"] not in stored
    assert pool.directory.app(person) is None
    with pytest.raises(UnknownNameError):
        await staff.people.show(person)
    assert (await pool.trail.verify())["ok"]
    assert [row["person"] for row in await staff.erasures.list()] == [person]
    assert list(staff.keys.read().keys) == []
    await pool.backups().write(newer, by=BY)

    # Whatever is restored: what an older backup holds of the person does not open, and is erased again.
    for backup, found in ((older, (person,)), (newer, ())):
        again = await restored(store_server, backup, pool.vault, tmp_path / backup.stem)
        assert names(await everything_stored(again.pool)) == []
        assert [one["to"] for one in (await again.mail.show())["recipients"]] == ["ops@example.org"]
        assert [row["readable"] for row in await again.people.list()] == [False] * len(found)
        again.file.write_bytes(staff.file.read_bytes())
        assert await again.erasures.reapply() == found
        assert await again.people.list() == []
        assert again.pool.directory.app(person) is None
        assert [row["person"] for row in await again.erasures.list()] == [person]
        assert len(await stored_recipients(again)) == 1
        assert names(await everything_stored(again.pool) + await again.audit()) == []
        await again.pool.store.close()

    # A people.keys from before the erasure brings nobody back either.
    assert keys_before != staff.file.read_bytes()
    staff.file.write_bytes(keys_before)
    assert await staff.erasures.reapply() == ()
    assert list(staff.keys.read().keys) == []
    assert await staff.people.list() == []


async def stored_recipients(staff: Staff) -> list[str]:
    """Who is told of notifications, as it is kept."""
    async with staff.pool.store.connection() as connection:
        rows = await all_recipients(connection)
    return [staff.pool.vault.unseal(box, recipient_purpose(name)).decode() for name, box, _ in rows]


@pytest.mark.parametrize("known_first", [True, False])
async def test_a_recipient_who_is_one_of_the_people_is_kept_by_pseudonym(
    pool: Pool, staff: Staff, *, known_first: bool
) -> None:
    await staff.mail.set_up({"host": "mail.example.org", "from": "mesh@example.org"}, None, by=BY)
    person = (await staff.people.add(ALICE, by=BY))["id"] if known_first else ""
    shown = await staff.mail.tell_address(
        ALICE.email.upper().replace("EXAMPLE.ORG", "example.org"), "info", by=BY
    )
    if not known_first:
        async with pool.store.transaction() as connection:  # it waits, to an address that is nobody's yet
            assert await staff.mail.tell(connection, "info", "subject", "text", all_=False) == 1
        person = (await staff.people.add(ALICE, by=BY))["id"]
        shown = await staff.mail.show()
    assert await stored_recipients(staff) == [f"person:{person}"]
    assert [one["to"].lower() for one in shown["recipients"]] == [ALICE.email]
    async with pool.store.transaction() as connection:
        assert await staff.mail.tell(connection, "info", "subject", "text", all_=False) == 1
    assert (await staff.mail.show())["mail"]["waiting"] == 1 + (not known_first)
    await staff.people.change(person, {"email": "alice@example.com"}, by=BY)
    assert (await staff.mail.show())["recipients"] == [{"to": "alice@example.com", "severity": "info"}]
    await staff.people.change(person, {"email": ALICE.email}, by=BY)
    await staff.erasures.erase(person, by=BY)
    shown = await staff.mail.show()
    assert (shown["recipients"], shown["mail"]["waiting"]) == ([], 0)


async def test_a_lost_store_comes_back_with_its_people_where_the_keys_are_kept(
    pool: Pool, staff: Staff, tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    person = (await staff.people.add(ALICE, by=BY))["id"]
    backup = tmp_path / "backup"
    await pool.backups().write(backup, by=BY)
    again = await restored(store_server, backup, pool.vault, tmp_path / "machine")
    assert await again.erasures.reapply() == ()
    assert (await again.people.show(person))["readable"] is False
    with pytest.raises(ConflictError, match="cannot be read"):
        await again.people.change(person, {"team": "x"}, by=BY)
    again.file.write_bytes(b"QV1 spoiled")
    with pytest.raises(ConfigError, match="cannot be used"):
        await again.erasures.reapply()
    again.file.write_bytes(staff.file.read_bytes())
    assert await again.erasures.reapply() == ()
    assert (await again.people.show(person))["name"] == ALICE.name
    again.file.write_bytes(b"QV1 spoiled")  # nobody restored this store: it knows everything itself
    assert await again.erasures.reapply() == ()
    assert list(again.keys.read().keys) == [person]
    await again.pool.store.close()


async def test_what_an_administrator_wrote_elsewhere_is_said(pool: Pool, staff: Staff) -> None:
    await pool.databases.add(unchecked(), by=BY)
    await pool.apps.create(NewApp("alice.zimmerwald", ("shop",)), by=BY)
    await staff.people.add(dataclasses.replace(ALICE, apps=("alice.zimmerwald",)), by=BY)
    document = await staff.erasures.erase(ALICE.email, by=BY)
    assert set(document["kept"]) == {"audit_entries"}
    assert staff.unpublished == ["alice.zimmerwald"]


async def test_an_administrator_is_not_erased_behind_the_audits_back(staff: Staff) -> None:
    person = (await staff.people.add(dataclasses.replace(ALICE, admin="alice"), by=BY))["id"]
    with pytest.raises(ConflictError, match="is the administrator alice"):
        await staff.erasures.erase(person, by=BY)
    await staff.people.change(person, {"admin": ""}, by=BY)
    await staff.erasures.erase(person, by=BY)


async def test_a_certificate_that_was_changed_is_not_believed(pool: Pool, staff: Staff) -> None:
    person = (await staff.people.add(ALICE, by=BY))["id"]
    document = await staff.erasures.erase(person, by=BY)
    for change in ({"person": "p-other"}, {"erased_at": 1}, {"kept": {"people": 1}}, {"subject": "0" * 64}):
        with pytest.raises(AuthenticationFailed):
            check_erasure(ErasureCertificate.from_json({**document, **change}))
    with pytest.raises(AuthenticationFailed, match="another pool"):
        check_erasure(ErasureCertificate.from_json(document), pool="aaaa-bbbb")
    with pytest.raises(AuthenticationFailed, match="another address"):
        check_erasure(ErasureCertificate.from_json(document), email="bob@example.org")
    kept = await staff.erasures.certificate(person)
    with pytest.raises(AuthenticationFailed, match="does not say whom"):
        check_erasure(ErasureCertificate.from_json(kept), email=ALICE.email)
    assert check_erasure(ErasureCertificate.from_json(kept)) == fingerprint(pool.identity.verify_key)
    spoiled: list[object] = [
        None,
        [],
        {"format": "other"},
        {**document, "removed": []},
        {**document, "person": 1},
    ]
    for wrong in spoiled:
        with pytest.raises(ValueError):
            ErasureCertificate.from_json(wrong)


async def test_a_peer_forgets_what_it_was_told_of_a_persons_app(
    tmp_path: Path, store_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_staff, "KEEP_S", 0.2)
    async with pools(tmp_path, store_server, "hq", "gpu") as (hq, gpu):
        await pair(hq, gpu)
        await hq.administration.databases.add(unchecked(), by=BY)
        await hq.administration.apps.create(NewApp("alice.zimmerwald", ("shop",)), by=BY)
        staff = hq.governing.staff
        person = await staff.people.add(dataclasses.replace(ALICE, apps=("alice.zimmerwald",)), by=BY)

        async def replica(query: str) -> int:
            async with gpu.parts.store.store.connection() as connection:
                return int(await connection.fetchval(query, hq.parts.keys.pool_key))

        await until_true(lambda: replica(GUESTS), 1)
        async with control(hq) as here, control(gpu) as there:
            older = (await here.get("/logs/gpu/archive", params={"whole": "true"})).content
            document = await staff.erasures.erase(person["id"], by=BY)
            assert document["removed"]["log_entries"] == 1
            await until_true(lambda: replica(GUESTS), 0)
            await until_true(lambda: replica(PAYLOADS), 1)  # that it is gone; verifiers and policy are erased
            newer = (await here.get("/logs/gpu/archive", params={"whole": "true"})).content
            for archive in (older, newer):  # one that was written before brings nothing back
                reply = await there.put("/logs/import", content=archive)
                assert reply.status_code == 200, reply.text
                assert (await replica(GUESTS), await replica(PAYLOADS)) == (0, 1)
        # While nothing can be signed, as after a restore, it is left for later: also for the next process.
        await hq.administration.apps.create(NewApp("bob.zimmerwald", ("shop",)), by=BY)
        bob = dataclasses.replace(ALICE, email="bob@example.org", apps=("bob.zimmerwald",))
        person = await staff.people.add(bob, by=BY)
        await until_true(lambda: replica(GUESTS), 1)
        with monkeypatch.context() as waits:
            waits.setattr(hq.replication.sequencer, "settled", AsyncMock(return_value=False))
            removed = (await staff.erasures.erase(person["id"], by=BY))["removed"]
        assert "log_entries" not in removed
        staff._late = True
        await until_true(lambda: replica(GUESTS), 0)
        await until_true(lambda: replica(PAYLOADS), 2)
        assert set(document["kept"]) <= {"audit_entries", "log_entries", "outbox"}


async def test_no_byte_of_two_pools_names_who_was_erased(
    tmp_path: Path, store_server: EmbeddedPostgres, capfd: pytest.CaptureFixture[str]
) -> None:
    """Over the control API, each change under an idempotency key, as `meshctl` makes them."""
    async with pools(tmp_path, store_server, "hq", "gpu") as (hq, gpu), control(hq) as client:
        await pair(hq, gpu)

        async def asked(method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
            given = {"Idempotency-Key": secrets.token_hex(8), **headers}
            return await client.request(method, path, json=body, headers=given)

        where = quote(ALICE.email, safe="")
        details = {"name": ALICE.name, "email": ALICE.email, "team": ALICE.team, "note": ALICE.note}
        for method, path, body in (
            ("PUT", "/smtp", {"host": "127.0.0.1", "port": 1, "tls": "none", "from": "mesh@example.org"}),
            ("PUT", "/smtp/recipients", {"recipients": [{"to": ALICE.email, "severity": "info"}]}),
            ("POST", "/people", {**details, "invite": True}),
            ("PUT", f"/smtp/recipients/{where}", {"severity": "critical"}),
            ("PATCH", f"/people/{where}", {"team": "Zimmerwald's"}),
            ("POST", f"/people/{where}/invite", None),
            (
                "POST",
                "/databases",
                {"name": "shop", "dsn": "postgresql://o:p@127.0.0.1:1/shop", "check": False},
            ),
            ("POST", "/apps", {"name": "portal", "databases": ["shop"], "policy": {}}),
            ("POST", "/apps/portal/keys", None),
            ("PUT", f"/people/{where}/apps/portal", None),
            ("PUT", "/budgets/app:portal/month", {"hard": "5", "currency": "EUR"}),
            ("GET", f"/people/{where}/export", None),
            ("GET", "/people?q=zimmerwald", None),
            ("POST", "/smtp/retry", None),
        ):
            reply = await asked(method, path, body)
            assert reply.is_success, (path, reply.text)
        person = (await client.get(f"/people/{where}")).json()
        assert (person["apps"], person["state"]) == (["portal"], "invited")
        refused = await asked("POST", f"/people/{where}/disable", None, **{"Qgate-Read-Only": "1"})
        assert (refused.status_code, refused.json()["code"]) == (403, "read-only")
        assert (await asked("POST", f"/people/{where}/disable")).json()["code"] == "conflict"
        await hq.governing.staff.notifications.tell("test", "critical", "subject", ref="test")
        older = (await client.get("/logs/gpu/archive", params={"whole": "true"})).content
        assert (await asked("POST", "/backup", {"path": str(tmp_path / "older.backup")})).is_success

        certificate = (await asked("POST", f"/people/{person['id']}/erase", {"confirm": person["id"]})).json()
        assert certificate["kept"] == {}, certificate
        assert (await client.get("/smtp")).json()["recipients"] == []
        await hq.parts.audit.flush()
        newer = (await client.get("/logs/gpu/archive", params={"whole": "true"})).content
        stores = [dumped(one.settings.store.dsn) for one in (hq, gpu)]
        files = [one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()]
        assert len(files) > 5
        said = "".join(capfd.readouterr())
        held = "\n".join([*stores, said, *(one.decode("latin-1") for one in (older, newer, *files))])
        assert names(held) == []
        assert certificate["salt"] not in held
        assert person["id"] in stores[0]  # the pseudonym, in the audit and on the certificate


@pytest.mark.parametrize("kind", ["text", "json", "jsonb", "bytea", "text[]", "varchar(99)"])
async def test_a_name_is_found_in_a_column_of_any_kind(store_dsn: str, pool: Pool, kind: str) -> None:
    """What the other tests look with sees what is there."""
    value = {"json": '{"a": "%s"}', "jsonb": '["%s"]', "text[]": "{%s}"}.get(kind, "%s") % ALICE.email
    async with pool.store.connection() as connection:
        await connection.execute(f"CREATE TABLE planted (it {kind})")
        if kind == "bytea":
            await connection.execute("INSERT INTO planted VALUES ($1)", value.encode())
        else:
            await connection.execute(f"INSERT INTO planted VALUES ('{value}')")
    assert names(dumped(store_dsn)) == ["zimmerwald"]


GUESTS = "SELECT count(*) FROM guest_apps WHERE pool = $1"
PAYLOADS = "SELECT count(*) FROM log_entries WHERE origin = $1 AND stream = 'guests' AND payload IS NOT NULL"


async def until_true(look: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Wait until ``look()`` gives ``wanted``."""
    async with asyncio.timeout(60):
        while await look() != wanted:
            await asyncio.sleep(0.05)

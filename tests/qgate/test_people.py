"""People: what is sealed, what is theirs, what they get, and the archive of what is held about them."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import pytest

from qgate.governance.apps import NewApp
from qgate.governance.people import NewPerson
from qgate.governance.problems import ChangedError, ConflictError, InvalidRequestError, UnknownNameError
from qgate.governance.rekeying import Rekeying
from qgate.store.database import Connection
from qgate.vault import Vault
from tests.qgate.pool import BY, Pool, everything_stored, unchecked
from tests.qgate.staff import ALICE, Staff, grant, names


@pytest.fixture
def staff(pool: Pool, tmp_path: Path) -> Staff:
    return Staff(pool, tmp_path)


def ends(pool: Pool) -> dict[str, float | None]:
    """When apps end."""
    return {app.name: app.expires_at for name in ("web", "batch") if (app := pool.directory.app(name))}


async def test_a_person_is_known_by_a_pseudonym_and_sealed(pool: Pool, staff: Staff) -> None:
    added = await staff.people.add(ALICE, by=BY)
    assert added["id"].startswith("p-")
    assert (added["name"], added["email"], added["state"]) == (ALICE.name, ALICE.email, "active")
    assert await staff.people.show("Alice.Zimmerwald@EXAMPLE.org") == await staff.people.show(added["id"])
    assert names(await everything_stored(pool)) == []
    assert names(await staff.audit()) == []
    assert await pool.told() == [("people.add", added["id"])]
    assert names(staff.file.read_bytes().decode("latin-1")) == []
    assert staff.file.stat().st_mode & 0o777 == 0o600


async def test_an_address_is_one_persons(staff: Staff) -> None:
    first = await staff.people.add(ALICE, by=BY)
    with pytest.raises(ConflictError, match=first["id"]):
        await staff.people.add(dataclasses.replace(ALICE, email=ALICE.email.upper()), by=BY)
    bob = await staff.people.add(NewPerson("Bob", "bob@example.org"), by=BY)
    with pytest.raises(ConflictError, match=first["id"]):
        await staff.people.change(bob["id"], {"email": ALICE.email}, by=BY)
    with pytest.raises(UnknownNameError):
        await staff.people.show("p-nobody")
    with pytest.raises(ConflictError, match="mail is not set up"):
        await staff.people.add(NewPerson("Carl", "carl@example.org"), invite=True, by=BY)


@pytest.mark.parametrize(
    "wrong",
    [
        NewPerson("", "x@example.org"),
        NewPerson("x\ny", "x@example.org"),
        NewPerson("x", "x@@example.org"),
        NewPerson("x", "x@example.org", admin="not a name"),
        NewPerson("x", "x@example.org", note="\0"),
    ],
)
async def test_what_nobody_can_be_is_refused(staff: Staff, wrong: NewPerson) -> None:
    with pytest.raises(InvalidRequestError):
        await staff.people.add(wrong, by=BY)
    assert await staff.people.list() == []


async def test_a_change_names_the_version_that_it_saw(staff: Staff) -> None:
    person = await staff.people.add(ALICE, by=BY)
    changed = await staff.people.change(person["id"], {"team": "sales"}, expected=person["version"], by=BY)
    assert (changed["team"], changed["note"], changed["version"]) == ("sales", ALICE.note, 2)
    with pytest.raises(ChangedError, match=f"changed by {BY}"):
        await staff.people.disable(person["id"], expected=person["version"], by=BY)


async def test_a_disabled_persons_apps_end_and_go_on(pool: Pool, staff: Staff) -> None:
    await pool.databases.add(unchecked(), by=BY)
    await pool.apps.create(NewApp("web", ("shop",), expires_in_s=1000.0), by=BY)
    await pool.apps.create(NewApp("batch", ("shop",)), by=BY)
    alice = await staff.people.add(dataclasses.replace(ALICE, apps=("web", "batch")), by=BY)
    bob = await staff.people.add(NewPerson("Bob", "bob@example.org"), by=BY)
    with pytest.raises(ConflictError, match=f"web is {alice['id']}'s"):
        await staff.people.own(bob["id"], "web", by=BY)
    before = ends(pool)
    await staff.people.disable(alice["id"], by=BY)
    assert ends(pool) == {"web": pool.clock.now, "batch": pool.clock.now}
    shown = await staff.people.enable(alice["id"], by=BY)
    assert (shown["state"], shown["apps"]) == ("active", ["batch", "web"])
    assert {row["name"]: row["owner"] for row in await pool.apps.list()} == dict.fromkeys(
        ("web", "batch"), alice["id"]
    )
    assert ends(pool) == before
    assert (await staff.people.disown(alice["id"], "web", by=BY))["apps"] == ["batch"]
    with pytest.raises(UnknownNameError, match="has no app web"):
        await staff.people.disown(alice["id"], "web", by=BY)


async def test_a_list_is_searched_by_what_identifies_people(staff: Staff) -> None:
    for number in range(3):
        await staff.people.add(NewPerson(f"Person {number}", f"p{number}@example.org"), by=BY)
    await staff.people.add(ALICE, by=BY)
    assert [row["name"] for row in await staff.people.list()][:2] == [ALICE.name, "Person 0"]
    assert [row["email"] for row in await staff.people.list(q="P1@exam")] == ["p1@example.org"]
    assert await staff.people.list(state="disabled") == []


async def test_rekeying_takes_people_along(pool: Pool, tmp_path: Path) -> None:
    pool.office = dataclasses.replace(pool.office, vault=Vault.create(tmp_path / "vault.key"))
    staff = Staff(pool, tmp_path)
    person = await staff.people.add(ALICE, by=BY)
    await staff.mail.set_recipients([("ops@example.org", "info")], by=BY)
    await Rekeying(pool.office).run(by=BY)
    assert await staff.keys.keep()
    fresh = Staff(pool, tmp_path)
    assert (await fresh.people.show(person["id"]))["name"] == ALICE.name
    assert (await fresh.mail.show())["recipients"] == [{"to": "ops@example.org", "severity": "info"}]
    assert list(fresh.keys.read().keys) == [person["id"]]


async def test_an_archive_holds_everything(pool: Pool, staff: Staff) -> None:
    person = (await staff.people.add(ALICE, by=BY))["id"]
    made = await grant(staff, person)
    name, pieces = await staff.archives.make(ALICE.email, by=BY)
    content = b"".join([piece async for piece in pieces])
    assert name == person
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {one: archive.read(one).decode() for one in archive.namelist()}
    assert json.loads(files["person.json"])["email"] == ALICE.email
    assert json.loads(files["person.json"])["app_details"][0]["policy"]["models"] == ["*"]
    assert [json.loads(line)["n"] for line in files["receipts.ndjson"].splitlines()] == [1, 2]
    told = [json.loads(line)["detail"]["what"] for line in files["audit.ndjson"].splitlines()]
    assert told == ["people.add", "app.create", "people.active", "people.export"]
    assert [key["prefix"] for key in json.loads(files["keys.json"])] == [made["api_key"][:10]]
    assert made["api_key"] not in str(files)
    assert made["password"] not in str(files)
    assert ("people.export", person) in await pool.told()


async def test_a_licence_without_a_seat_lets_nobody_in(staff: Staff, pool: Pool) -> None:
    async def full(connection: Connection) -> None:
        if await staff.people.seats(connection) >= 1:
            raise ConflictError("all 1 seats of the licence are taken")

    staff.people.refuse_seat = full
    alice = await staff.people.add(ALICE, by=BY)
    bob = NewPerson("Bob", "bob@example.org")
    with pytest.raises(ConflictError, match="seats"):
        await staff.people.add(bob, by=BY)
    await staff.people.disable(alice["id"], by=BY)
    await staff.people.add(bob, by=BY)
    with pytest.raises(ConflictError, match="seats"):
        await staff.people.enable(alice["id"], by=BY)
    async with pool.store.transaction() as connection:
        await staff.people.enter(connection, NewPerson("C", "c@d.e"), state="pending", source="signup", by=BY)

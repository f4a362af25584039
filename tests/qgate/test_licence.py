"""The pool's licence: what counts, when it ends, what ends with it, and that nothing else does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qgate.governance.licence import Licences, RefusedLicenceError, SeatsError, standing_of, warning_due
from qgate.governance.problems import ChangedError, ConflictError, UnknownNameError
from qgate.store.database import Connection
from tests.qgate.gates import control, gate_settings, make_directory, running
from tests.qgate.licences import KEY, SEED, VENDOR, licence, trusting
from tests.qgate.pool import BY, DAY, Pool
from tunnel_proto.identity import fingerprint
from tunnel_proto.licence import Claims, encode, read, thumbprint


@pytest.fixture
async def licences(pool: Pool) -> Licences:
    await trusting(pool)
    return Licences(pool.office, pool=pool.identity.verify_key)


def claims(not_before: int = 0, expires_at: int = 100 * DAY) -> Claims:
    return Claims("ACME", "Example Ltd", "L-1", 0, not_before, expires_at, 3, ("white-label",))


@pytest.mark.parametrize(
    ("day", "state", "seats", "features"),
    [
        (-1, "not-yet", 0, 0),
        (0, "valid", 3, 1),
        (99, "valid", 3, 1),
        (100, "grace", 3, 1),
        (113, "grace", 3, 1),
        (114, "expired", 0, 0),
        (9999, "expired", 0, 0),
    ],
)
def test_it_stands_by_the_time(day: int, state: str, seats: int, features: int) -> None:
    found = standing_of(claims(), now=day * DAY, grace_s=14 * DAY)
    assert (found.state, found.seats, len(found.features)) == (state, seats, features)


def test_it_is_warned_of_at_30_7_and_1_days_and_at_its_end() -> None:
    due = {day: warning_due(claims(), day * DAY) for day in (-1, 0, 69, 70, 92, 93, 98, 99, 100, 500)}
    assert due == {-1: None, 0: None, 69: None, 70: 30, 92: 30, 93: 7, 98: 7, 99: 1, 100: 0, 500: 0}


async def test_it_is_installed_shown_replaced_and_removed(pool: Pool, licences: Licences) -> None:
    without = await licences.show()
    assert (without["state"], without["ends"]) == ("none", [])
    plain = await licences.install(licence(pool.clock.now, features=()), by=BY)
    assert plain["ends"] == ["new accounts of administrators and people"]
    shown = await licences.install(licence(pool.clock.now), by=BY)
    assert shown["ends"][1:] == ["white-label: the name of the product is not shown beside the pool's own"]
    assert (shown["state"], shown["licensee"], shown["seats"], shown["vendor"]) == (
        "valid",
        "Example Ltd",
        3,
        "acme",
    )
    assert await licences.gives("white-label")
    longer = await licences.install(licence(pool.clock.now, ends=500, id_="L-2"), by=BY)
    assert longer["id"] == "L-2"
    assert longer["version"] > shown["version"]
    with pytest.raises(ConflictError, match="before the one that is in force"):
        await licences.install(licence(pool.clock.now, ends=10), by=BY)
    with pytest.raises(ConflictError, match="would be gone until then"):
        await licences.install(licence(pool.clock.now, begins=10, ends=900), by=BY)
    assert (await licences.install(licence(pool.clock.now, ends=10), force=True, by=BY))["days_left"] == 10
    assert (await licences.remove(by=BY))["state"] == "none"
    with pytest.raises(UnknownNameError):
        await licences.remove(by=BY)
    told = [what for what, _ in await pool.told() if what.startswith("licence.")]
    assert told == [*["licence.install"] * 4, "licence.remove"]


async def test_what_does_not_count_is_refused_with_its_reason(pool: Pool, licences: Licences) -> None:
    now = pool.clock.now
    good = licence(now)
    for token, reason in (
        (licence(now, begins=-400, ends=-20), "expired"),
        (licence(now, seed=bytes(32)), "unknown-key"),
        (licence(now, pool="aaaa-bbbb"), "pool"),
        (good[:-4] + "AAAA", "signature"),
        ("x" * 20_000, "huge"),
        ("not a licence", "malformed"),
        (encode(b'{"alg":"none"}') + "." + good.split(".")[1] + ".", "algorithm"),
    ):
        for attempt in (licences.install(token, by=BY), licences.install(token, force=True, by=BY)):
            with pytest.raises(RefusedLicenceError) as refused:
                await attempt
            assert refused.value.reason == reason
    assert (await licences.show())["state"] == "none"
    own = licence(now, pool=fingerprint(pool.identity.verify_key))
    assert (await licences.install(own, by=BY))["state"] == "valid"


async def test_one_that_begins_later_may_wait_where_none_is_in_force(pool: Pool, licences: Licences) -> None:
    assert (await licences.install(licence(pool.clock.now, begins=5), by=BY))["state"] == "not-yet"
    assert not await licences.gives("white-label")
    pool.clock.now += 6 * DAY
    assert await licences.gives("white-label")


async def test_seats_bound_new_accounts_only(pool: Pool, licences: Licences) -> None:
    used = 2

    async def count(connection: Connection) -> int:
        del connection
        return used

    async def seat() -> None:
        async with pool.store.transaction() as connection:
            await licences.refuse_seat(connection)

    licences.seats_used.append(count)
    await seat()  # without a licence any number
    await licences.install(licence(pool.clock.now, ends=10, seats=3), by=BY)
    await seat()
    used = 3
    with pytest.raises(SeatsError, match="all 3 seats"):
        await seat()
    used = 0
    pool.clock.now += 12 * DAY
    await seat()  # the days of grace
    pool.clock.now += 13 * DAY
    with pytest.raises(SeatsError, match="has ended"):
        await seat()
    await licences.remove(by=BY)
    await seat()


async def test_a_key_that_is_trusted_no_more_ends_its_licences(pool: Pool, licences: Licences) -> None:
    await licences.install(licence(pool.clock.now), by=BY)
    await pool.settings.reset("licence.vendors", by=BY)
    shown = await licences.show()
    assert (shown["state"], "no vendor's key" in shown["problem"]) == ("invalid", True)
    await pool.settings.set("licence.vendors", "nonsense", by=BY)
    assert (await licences.show())["state"] == "invalid"


async def test_what_was_changed_in_the_store_does_not_count(pool: Pool, licences: Licences) -> None:
    await licences.install(licence(pool.clock.now, seats=3), by=BY)
    async with pool.store.connection() as connection:
        await connection.execute("UPDATE licence SET token = overlay(token placing 'AAAA' from 120)")
    assert (await licences.show())["state"] == "invalid"


async def test_each_warning_is_given_once_in_the_pool(pool: Pool, licences: Licences) -> None:
    heard: list[tuple[str, str]] = []

    async def hear(severity: str, text: str) -> None:
        heard.append((severity, text))

    sibling = Licences(pool.office, pool=pool.identity.verify_key)
    licences.notices.append(hear)
    sibling.notices.append(hear)
    await licences.install(licence(pool.clock.now, ends=40), by=BY)
    for _ in range(45):
        await asyncio.gather(licences.look(), sibling.look())
        pool.clock.now += DAY
    assert [severity for severity, _ in heard] == ["warning", "warning", "critical", "critical"]
    assert ["within 30" in heard[0][1], "within 7" in heard[1][1], "ended" in heard[3][1]] == [True] * 3
    await licences.install(licence(pool.clock.now, ends=20), by=BY)
    assert "within 30" in await licences.look()


async def test_of_two_who_saw_the_same_one_installs(pool: Pool, licences: Licences) -> None:
    first = await licences.install(licence(pool.clock.now), expected=0, by="alice")
    with pytest.raises(ChangedError, match="alice installed one"):
        await licences.install(licence(pool.clock.now, ends=500), expected=0, by="bob")
    with pytest.raises(ChangedError):
        await licences.remove(expected=0, by="bob")
    await licences.remove(expected=first["version"], by="bob")


async def test_over_the_control_api(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        now = gate.administration.office.clock()
        token = licence(now)
        refused = await client.put("/licence", json={"token": token})
        assert (refused.status_code, refused.json()["code"]) == (422, "licence")
        assert "licence.vendors" in refused.json()["next"]
        assert (await client.put("/settings/licence.vendors", json={"value": VENDOR})).status_code == 200
        shown = await client.post("/licence/verify", json={"token": token})
        assert shown.json()["state"] == "valid"
        assert (await client.get("/licence")).json()["state"] == "none"
        done = await client.put("/licence", json={"token": token}, headers={"If-Match": '"0"'})
        assert (done.status_code, done.json()["state"]) == (200, "valid")
        assert done.headers["ETag"] == f'"{done.json()["version"]}"'
        stale = await client.delete("/licence", headers={"If-Match": '"0"'})
        assert (stale.status_code, stale.json()["code"]) == (412, "changed")
        assert (await client.delete("/licence", headers={"If-Match": "now"})).status_code == 400
        assert (await client.put("/licence", json={"token": "x" * 20_000})).status_code == 422
        assert (await client.delete("/licence")).json()["state"] == "none"


def test_the_vendor_of_tests_is_who_it_says() -> None:
    found = read(licence(1e9), {"acme": KEY})
    assert found.kid == thumbprint(KEY)
    assert SEED != KEY

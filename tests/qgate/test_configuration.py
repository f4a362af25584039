"""The configuration as one document: applied at once or not at all, kept, reverted; no secret in it."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.capability.finops.prices import PriceTable
from qgate.capability.providers.catalogue import ProviderModel
from qgate.control.configuration import Document
from qgate.federation.peer import Peer
from qgate.governance.apps import NewApp
from qgate.governance.budgets import Budgets
from qgate.governance.config_document import SHAPES, Change, compare, effective, etag
from qgate.governance.config_sections import SECTIONS
from qgate.governance.configuration import BETWEEN, Configuration, owner_only
from qgate.governance.policy import CapabilityPolicy
from qgate.governance.problems import (
    AdministrationError,
    ChangedError,
    ConflictError,
    UnknownNameError,
)
from qgate.governance.providers import NewProvider, Providers
from qgate.store.peers import put_peer
from tests.qgate.gates import control, gate_settings, make_directory, running
from tests.qgate.pool import BY, Pool, unchecked

ENTRIES = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 2) | st.dictionaries(st.sampled_from("xy"), st.integers(0, 2))
)
SOME = st.dictionaries(st.sampled_from([shape.name for shape in SHAPES]), ENTRIES)


@given(SOME, SOME)
def test_what_is_applied_differs_no_more(current: dict[str, Any], wanted: dict[str, Any]) -> None:
    after = copy.deepcopy(current)
    for one in effective(compare(current, wanted)):
        if one.effect == "set":
            after.setdefault(one.section, {})[one.name] = one.after
        else:
            del after[one.section][one.name]
    assert effective(compare(after, wanted)) == []


@given(SOME)
def test_a_document_does_nothing_to_itself(document: dict[str, Any]) -> None:
    assert compare(document, document) == []
    assert etag(document) == etag(json.loads(json.dumps(document)))


def test_every_section_has_a_shape_and_a_place_in_the_body() -> None:
    assert [shape.name for shape in SHAPES] == list(SECTIONS)
    assert set(SECTIONS) < set(Document.model_fields)


def test_trust_and_programs_that_run_are_for_owners() -> None:
    def change(section: str, name: str) -> list[Change]:
        return [Change(section, name, "set", None, 1)]

    assert owner_only(change("pools", "hq"))
    assert owner_only(change("settings", "incident.hook"))
    assert owner_only(change("settings", "licence.vendors"))
    assert not owner_only(change("settings", "app.queue"))
    assert not owner_only([Change("pools", "hq", "keep", {}, None)])


@pytest.fixture
async def configuration(pool: Pool) -> Configuration:
    """A pool with one of everything."""
    await pool.databases.add(unchecked(), by=BY)
    await pool.apps.create(NewApp("web", ("shop",), policy=CapabilityPolicy(models=("tiny",))), by=BY)
    providers = Providers(pool.office, PriceTable.load())
    await providers.add(
        NewProvider("cloud", "openai", key="provider-secret", models=(ProviderModel("gpt"),), check=False),
        by=BY,
    )
    await providers.set_alias("fast", "gpt", by=BY)
    await providers.set_price(
        "gpt", input=Decimal("1.50"), output=Decimal(2), cached=None, currency="USD", source="", by=BY
    )
    await Budgets(pool.office).set("app", "web", "month", soft=None, hard=Decimal(50), currency=None, by=BY)
    await pool.settings.set("app.queue", 7, by=BY)
    peer = Peer(b"\7" * 32, "hq", level=1, paired_at=1.0, online_certificate=pool.certificate)
    async with pool.store.transaction() as connection:
        await put_peer(connection, peer, pool.office.now())
    await pool.watch.refresh()
    return Configuration(pool.office)


async def test_it_is_exported_whole_and_without_secrets(configuration: Configuration) -> None:
    document = await configuration.export()
    assert {name: list(document[name]) for name in SECTIONS} == {
        "settings": ["app.queue"],
        "branding": [],
        "aliases": ["fast"],
        "prices": ["gpt"],
        "budgets": ["app:web/month"],
        "databases": ["shop"],
        "providers": ["cloud"],
        "apps": ["web"],
        "pools": ["hq"],
    }
    text = json.dumps(document)
    for secret in ("db-secret", "provider-secret", "SCRAM", "qg_"):
        assert secret not in text
    given_ = Document.model_validate(document).given()
    assert (await configuration.diff(given_))["changes"] == []


async def test_a_change_of_everything_is_applied_at_once(pool: Pool, configuration: Configuration) -> None:
    document = copy.deepcopy(await configuration.export())
    document["settings"] = {"schedule.queue": 9}
    document["branding"] = {"name": "Example AI"}
    document["aliases"]["slow"] = "qg://task=chat"
    document["prices"]["gpt"]["input"] = 3
    document["budgets"] = {"pool/day": {"hard": "10.00", "currency": "USD"}}
    document["databases"]["shop"] |= {"pool_size": 5, "limits": {"queue": 3}}
    document["providers"]["cloud"] |= {"enabled": False, "max_concurrent": 2}
    document["apps"]["web"] |= {"policy": None, "read_only": False, "sidecars": ["laptop"]}
    body = Document.model_validate(document).given()
    preview = await configuration.diff(body)
    done = await configuration.apply(body, by="alice", reason="spring cleaning")
    assert done["changes"] == preview["changes"]
    assert len(done["changes"]) == 10
    assert (done["revision"], done["kept"]) == (2, [])
    directory = pool.directory
    assert (directory.setting("schedule.queue"), directory.setting("app.queue")) == (9, 100)
    assert directory.alias("slow") == "qg://task=chat"
    assert directory.prices()["gpt"].input == 3
    assert list(directory.budgets()) == ["pool/day"]
    route, app = directory.route("shop"), directory.app("web")
    assert route is not None
    assert app is not None
    assert (route.pool_size, route.limits.queue) == (5, 3)
    assert (app.policy, app.sidecars, app.databases) == (None, frozenset({"laptop"}), frozenset({"shop"}))
    assert not directory.providers()["cloud"].enabled
    assert (await configuration.export())["branding"] == {"name": "Example AI"}
    again = await configuration.apply({**body, "etag": done["etag"]}, by=BY)
    assert (again["revision"], again["changes"]) == (None, [])
    rows = await configuration.history()
    assert [(row["revision"], row["by"], row["reason"]) for row in rows] == [
        (2, "alice", "spring cleaning"),
        (1, "-", "as it was at first"),
    ]
    changes = await pool.settings.history("schedule.queue")
    assert [(row["by"], row["reason"]) for row in changes] == [("alice", "spring cleaning")]
    assert ("configuration.apply", "2") in await pool.told()


@pytest.mark.parametrize(
    ("section", "entries", "words"),
    [
        ("settings", {"app.queue": -1}, "at least 0"),
        ("settings", {"app.queu": 1}, "no setting"),
        ("aliases", {"a": "b", "b": "c"}, "an alias itself"),
        ("aliases", {"qg://chat": "gpt"}, "plain name"),
        ("aliases", {"x": "qg://nonsense?x=y"}, ""),
        ("budgets", {"app:nobody/month": {"hard": 1}}, "no app nobody"),
        ("budgets", {"pool/month": {}}, "needs a soft limit"),
        ("budgets", {"pool/century": {"hard": 1}}, "is no budget"),
        ("budgets", {"pool/day": {"soft": 2, "hard": 1}}, "above its hard one"),
        ("prices", {"new": {"input": 1}}, "needs an input"),
        ("apps", {"web": {"databases": ["nowhere"]}}, "no database nowhere"),
        ("apps", {"web": {"databases": [], "policy": None}}, "needs a database"),
        ("apps", {"web": {"read_only": True}}, "no read-only role"),
        ("apps", {"web": {"replication": True}}, "does not allow replication"),
        ("apps", {"web": {"statement_classes": ["magic"]}}, "no statement class"),
        ("apps", {"web": {"expires_at": "tomorrow"}}, "is no time"),
        ("apps", {"web": {"policy": {"tasks": ["juggle"]}}}, "no task"),
        ("apps", {"new": {"databases": ["shop"]}}, "meshctl app create"),
        ("databases", {"shop": {"hosts": [["evil.example", 5432]]}}, "its secret is bound to it"),
        ("databases", {"new": {"pool_size": 5}}, "meshctl db add"),
        ("providers", {"cloud": {"url": "https://evil.example"}}, "its secret is bound to it"),
        ("pools", {"stranger": {"level": 4}}, "meshctl pool pair"),
        ("branding", {"name": "\x1b[2J"}, "no character that is shown"),
    ],
)
async def test_one_wrong_entry_leaves_all_as_it_was(
    configuration: Configuration, section: str, entries: dict[str, Any], words: str
) -> None:
    before = await configuration.export()
    wanted: dict[str, Any] = {"settings": {"schedule.queue": 8}, "aliases": {"fast": "other"}}
    wanted[section] = {**wanted.get(section, {}), **entries}
    with pytest.raises(AdministrationError) as refused:
        await configuration.apply(Document.model_validate(wanted).given(), by=BY)
    assert words in f"{refused.value.message} {refused.value.hint}"
    assert await configuration.export() == before
    assert await configuration.history() == []


async def test_what_holds_a_secret_is_kept_though_the_document_lacks_it(
    configuration: Configuration,
) -> None:
    empty: dict[str, Any] = {name: {} for name in SECTIONS}
    done = await configuration.apply(empty, by=BY)
    assert done["kept"] == ["databases/shop", "providers/cloud", "apps/web", "pools/hq"]
    document = await configuration.export()
    assert [bool(document[name]) for name in SECTIONS] == [False] * 5 + [True] * 4
    assert (await configuration.apply({}, by=BY))["revision"] is None


async def test_a_document_that_is_out_of_date_is_refused(pool: Pool, configuration: Configuration) -> None:
    document = await configuration.export()
    await pool.settings.set("app.queue", 8, by="bob")
    wanted = {**document, "settings": {"app.queue": 9}}
    with pytest.raises(ChangedError, match="since this document was exported"):
        await configuration.apply(wanted, by=BY)
    assert (await configuration.apply(wanted, force=True, by=BY))["revision"] == 2


async def test_of_two_at_once_one_is_told(configuration: Configuration) -> None:
    seen = (await configuration.export())["etag"]
    done = await asyncio.gather(
        *(
            configuration.apply({"etag": seen, "settings": {"app.queue": 10 + who}}, by=str(who))
            for who in range(3)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(one, ChangedError) for one in done) == 2
    assert sum(isinstance(one, dict) for one in done) == 1


async def test_it_goes_back_to_what_it_was(pool: Pool, configuration: Configuration) -> None:
    first = await configuration.export()
    await configuration.apply({"settings": {"app.queue": 8}, "budgets": {}}, by=BY)
    await pool.settings.set("app.queue", 9, by="bob")  # by a single command
    await configuration.apply({"aliases": {}}, by=BY)
    rows = await configuration.history()
    assert [(row["revision"], row["reason"]) for row in rows] == [
        (4, ""),
        (3, BETWEEN),
        (2, ""),
        (1, "as it was at first"),
    ]
    assert rows[1]["changes"][0]["after"] == 9
    done = await configuration.revert(1, by=BY)
    assert done["revision"] == 5
    now = await configuration.export()
    assert {name: now[name] for name in SECTIONS} == {name: first[name] for name in SECTIONS}
    assert (await configuration.history())[0]["reverts"] == 1
    await configuration.revert(4, by=BY)
    shown = await configuration.show(4)
    assert shown["document"]["settings"] == {"app.queue": 9}
    assert (await configuration.export())["settings"] == {"app.queue": 9}
    with pytest.raises(UnknownNameError):
        await configuration.revert(99, by=BY)


async def test_going_back_leaves_alone_what_was_made_or_removed_since(
    pool: Pool, configuration: Configuration
) -> None:
    await configuration.apply({"settings": {"app.queue": 8}}, by=BY)
    await pool.apps.create(NewApp("late", ("shop",)), by=BY)
    await pool.apps.revoke("web", by=BY)
    done = await configuration.revert(1, by=BY)
    assert [one["name"] for one in done["refused"]] == ["web"]
    assert done["kept"] == ["apps/late"]
    assert (await configuration.export())["settings"] == {"app.queue": 7}


async def test_who_may_not_is_refused_before_anything_is_written(configuration: Configuration) -> None:
    def allow(changes: Sequence[Change]) -> None:
        if owner_only(changes):
            raise ConflictError("for owners only")

    before = await configuration.export()
    for wanted in (
        {"settings": {"incident.hook": "/bin/sh"}},
        {"settings": {"app.queue": 8}, "pools": {"hq": {"level": 4}}},
    ):
        with pytest.raises(ConflictError, match="owners"):
            await configuration.apply(wanted, by=BY, allow=allow)
    assert await configuration.export() == before


async def test_trust_is_changed_and_told(pool: Pool, configuration: Configuration) -> None:
    done = await configuration.apply({"pools": {"hq": {"level": 3}}}, by=BY)
    assert done["changes"][0]["fields"] == {"level": [1, 3]}
    peer = pool.directory.peer_named("hq")
    assert peer is not None
    assert peer.level == 3


async def test_over_the_control_api(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        document = (await client.get("/configuration")).json()
        document["settings"]["app.queue"] = 12
        seen = (await client.post("/configuration/diff", json=document)).json()
        assert [one["name"] for one in seen["changes"]] == ["app.queue"]
        done = await client.post("/configuration/apply", json={"document": document, "reason": "more"})
        assert (done.status_code, done.json()["revision"]) == (200, 2), done.text
        stale = await client.post("/configuration/apply", json={"document": document | {"settings": {}}})
        assert (stale.status_code, stale.json()["code"]) == (412, "changed")
        strange: tuple[dict[str, Any], ...] = (
            {"format": 2},
            {"settings": {"app.queue": [1]}},
            {"apps": {"../x": {}}},
            {"surprise": {}},
            {"databases": {"x": {"password": "p"}}},
            {"settings": None, "pools": {"hq": {"level": 9}}},
            {"settings": {"app.queue": "x" * 5000}},
        )
        for wrong in strange:
            refused = await client.post("/configuration/diff", json=wrong)
            assert refused.status_code == 422, wrong
        rows = (await client.get("/configuration/revisions")).json()["items"]
        assert [row["revision"] for row in rows] == [2, 1]
        back = await client.post("/configuration/revisions/1/revert")
        assert (back.status_code, back.json()["revision"]) == (200, 3)
        assert (await client.get("/settings/app.queue")).json()["value"] == 100
        assert (await client.get("/configuration/revisions/9")).status_code == 404

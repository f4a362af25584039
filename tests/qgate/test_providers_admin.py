"""Registering model APIs: tried first, their keys sealed, their prices and aliases kept."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from qgate.capability.finops.prices import PriceTable
from qgate.capability.providers.catalogue import ProviderModel, key_purpose
from qgate.capability.providers.offers import offers
from qgate.governance.problems import (
    AdministrationError,
    ConflictError,
    InvalidRequestError,
    UnknownNameError,
    UpstreamRefusedError,
)
from qgate.governance.providers import NewProvider, Providers
from qgate.vault import VaultError
from tests.qgate.calling import KEY
from tests.qgate.model_api import Exchange, ModelApi, answer
from tests.qgate.pool import BY, Pool, everything_stored

LISTED = {
    "object": "list",
    "data": [
        {"id": "big"},
        {"id": "text-embedding-3"},
        {"id": "whisper-1"},
        {"id": 5},
        {"nothing": 1},
        {"id": "local-8b", "max_model_len": 8192},
    ],
}


def nouns(pool: Pool) -> Providers:
    return Providers(pool.office, PriceTable.load())


async def test_a_provider_is_asked_for_its_models_and_its_key_is_sealed(pool: Pool) -> None:
    providers = nouns(pool)
    async with ModelApi(answer(LISTED)) as api:
        row = await providers.add(NewProvider("acme", "openai", api.url, KEY), by=BY)
        assert api.seen[0].headers["authorization"] == f"Bearer {KEY}"
        assert api.seen[0].path == "/v1/models"
    assert [(one["name"], one["kinds"], one["context"]) for one in row["models"]] == [
        ("big", ["chat"], 0),
        ("text-embedding-3", ["embedding"], 0),
        ("local-8b", ["chat"], 8192),
    ]
    assert (row["has_key"], row["isolation"], row["unpriced"]) == (True, "shared", 3)
    stored = await everything_stored(pool)
    await pool.log.flush()
    assert KEY not in stored + repr(row) + str(await pool.trail.entries(kind="admin", after=0))
    held = pool.directory.providers()["acme"]
    assert held.sealed_key is not None
    assert pool.directory.open_key(held.sealed_key, key_purpose(held)) == KEY.encode()
    assert KEY not in repr(pool.directory.snapshot)
    offered = offers([held], PriceTable.load(), {})
    assert (offered[0].provider, offered[0].model, offered[0].local) == ("acme", "big", False)


async def test_a_key_stays_good_over_a_change_of_the_vaults_key(pool: Pool, tmp_path: Any) -> None:
    from qgate.vault import Vault

    pool.vault = Vault.create(tmp_path / "vault.key")
    pool = Pool(pool.store, pool.vault)
    await pool.watch.refresh()
    await nouns(pool).add(
        NewProvider("acme", "openai", "https://api.example/v1", KEY, (ProviderModel("big"),), check=False),
        by=BY,
    )
    assert (await pool.rekeying.run(by=BY))["secrets"] == 1
    held = pool.directory.providers()["acme"]
    assert held.sealed_key is not None
    assert pool.directory.open_key(held.sealed_key, key_purpose(held)) == KEY.encode()


async def test_a_key_cannot_be_pointed_elsewhere_behind_the_gates_back(pool: Pool) -> None:
    await nouns(pool).add(
        NewProvider("acme", "openai", "https://api.example/v1", KEY, (ProviderModel("big"),), check=False),
        by=BY,
    )
    async with pool.store.connection() as connection:
        await connection.execute("UPDATE providers SET url = 'https://evil.example/v1'")
    await pool.watch.refresh()
    held = pool.directory.providers()["acme"]
    assert held.sealed_key is not None
    with pytest.raises(VaultError):
        pool.directory.open_key(held.sealed_key, key_purpose(held))
    checked = await nouns(pool).check("acme", by=BY)
    assert checked["steps"][0]["name"] == "open the sealed key"


@pytest.mark.parametrize(
    ("document", "status", "said"),
    [
        ({"error": {"message": f"bad key {KEY}"}}, 401, "refuses the key"),
        (b"<html>", 200, "cannot be used"),
        ({"data": "many"}, 200, "no data"),
        (b"", 301, "redirect"),
        (b"", 500, "failed"),
    ],
)
async def test_a_failed_trial_is_told_now(pool: Pool, document: Any, status: int, said: str) -> None:
    async with ModelApi(answer(document, status)) as api:
        with pytest.raises(UpstreamRefusedError, match=said) as caught:
            await nouns(pool).add(NewProvider("acme", "openai", api.url, KEY), by=BY)
    assert KEY not in caught.value.message
    assert caught.value.hint
    assert await nouns(pool).list() == []


async def test_nobody_there_is_told_now(pool: Pool) -> None:
    async with ModelApi() as api:
        gone = api.url
    with pytest.raises(UpstreamRefusedError, match="cannot be reached: Connection refused"):
        await nouns(pool).add(NewProvider("acme", "openai", gone, KEY), by=BY)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "smoke"}, "no kind 'smoke'"),
        ({"url": "ftp://x"}, "no URL of an API"),
        ({"url": "https://user:pw@x/v1"}, "holds a credential"),
        ({"url": "http://api.example/v1"}, "not sent over plain http"),
        ({"url": "https://x/v1?key=1"}, "neither a query"),
        ({"url": "https://[::1/v1"}, "no URL"),
        ({"key": "two words"}, "no API key"),
        ({"key": "line\nbreak"}, "no API key"),
        ({"key": "schlüssel"}, "no API key"),
        ({"isolation": "total"}, "must be one of"),
        ({"url": None, "local": True}, "needs its URL"),
        ({"models": ()}, "names no model"),
        ({"models": (ProviderModel("x", frozenset({"smell"})),)}, "cannot be of the kind smell"),
    ],
)
async def test_what_can_never_work_is_refused(pool: Pool, fields: dict[str, Any], said: str) -> None:
    given = {
        "kind": "openai",
        "url": "https://api.example/v1",
        "key": KEY,
        "models": (ProviderModel("big"),),
    }
    with pytest.raises(InvalidRequestError, match=said) as caught:
        await nouns(pool).add(NewProvider("acme", check=False, **{**given, **fields}), by=BY)
    assert "two words" not in caught.value.message


async def test_a_provider_from_first_to_last(pool: Pool) -> None:
    providers = nouns(pool)
    listed = [dict(one) for one in ({"id": "a"}, {"id": "b"})]

    async def reply(exchange: Exchange) -> None:
        await answer({"data": listed})(exchange)

    async with ModelApi(reply) as api:
        new = NewProvider("local", "openai", api.url, None, (ProviderModel("a", context=9),), local=True)
        row = await providers.add(new, by=BY)
        assert (row["isolation"], row["local"], row["has_key"], row["unpriced"]) == ("none", True, False, 0)
        with pytest.raises(ConflictError, match="already"):
            await providers.add(new, by=BY)
        assert "authorization" not in api.seen[0].headers
        assert (await providers.check("local", by=BY))["models"] == ["a", "b"]
        models = (await providers.show("local"))["models"]
        assert [(one["name"], one["context"]) for one in models] == [("a", 9), ("b", 0)]
        assert (await providers.set_key("local", KEY, check=True, by=BY))["has_key"]
        assert api.seen[-1].headers["authorization"] == f"Bearer {KEY}"
    assert not (await providers.check("local", by=BY))["ok"]
    await providers.remove("local", by=BY)
    for gone in (providers.remove("local", by=BY), providers.check("local", by=BY)):
        with pytest.raises(UnknownNameError):
            await gone


async def test_prices_of_ones_own_go_first(pool: Pool) -> None:
    providers = nouns(pool)
    shipped = next(row for row in await providers.prices() if row["model"] == "gpt-4o")
    assert not shipped["own"]
    await providers.set_price(
        "gpt-4o",
        input=Decimal("1.5"),
        output=Decimal(2),
        cached=None,
        currency=None,
        source="contract",
        by=BY,
    )
    row = next(row for row in await providers.prices() if row["model"] == "gpt-4o")
    assert (row["own"], row["input"], row["source"]) == (True, "1.5", "contract")
    assert pool.directory.prices()["gpt-4o"].input == Decimal("1.5")
    await providers.drop_price("gpt-4o", by=BY)
    assert next(row for row in await providers.prices() if row["model"] == "gpt-4o") == shipped
    with pytest.raises(UnknownNameError):
        await providers.drop_price("gpt-4o", by=BY)


async def test_an_alias_leads_to_a_model_and_not_to_another_alias(pool: Pool) -> None:
    providers = nouns(pool)
    await providers.set_alias("best", "big", by=BY)
    await providers.set_alias("quick", "qg://task=chat;prefer=speed", by=BY)
    assert (pool.directory.alias("best"), pool.directory.alias("other")) == ("big", None)
    for name, target in (("x", "best"), ("x", "x"), ("qg://task=chat", "big"), ("x", "qg://task=sing")):
        with pytest.raises(AdministrationError):
            await providers.set_alias(name, target, by=BY)
    assert [row["name"] for row in await providers.aliases()] == ["best", "quick"]
    await providers.drop_alias("best", by=BY)
    with pytest.raises(UnknownNameError):
        await providers.drop_alias("best", by=BY)

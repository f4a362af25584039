"""Providers, prices, budgets, receipts, policies and keys over the control API."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import httpx
import pytest

from qgate.capability.receipts import Receipts
from qgate.capability.work import Outcome, Usage
from qgate.gate import Gate
from tests.qgate.calling import KEY
from tests.qgate.model_api import ModelApi, answer
from tests.qgate.spending import work
from tunnel_proto.receipt import check_receipt


async def test_an_app_for_models_only_and_its_keys(client: httpx.AsyncClient) -> None:
    body = {"name": "chat", "policy": {"models": ["qwen*"], "requests_per_minute": 5, "team": "red"}}
    created = (await client.post("/apps", json=body)).json()
    assert created["app"]["databases"] == []
    assert created["app"]["policy"]["models"] == ["qwen*"]
    assert created["api_key"].startswith("qg_")
    assert created["api_key"] not in (await client.get("/apps")).text
    key = (await client.post("/apps/chat/keys", json={"expires_in_s": 60})).json()
    listed = (await client.get("/apps/chat/keys")).json()["items"]
    assert [row["prefix"] for row in listed] == [created["api_key"][:10], key["prefix"]]
    assert key["api_key"] not in str(listed)
    assert (await client.delete(f"/apps/chat/keys/{key['id']}")).json() == {"app": "chat", "id": key["id"]}
    assert (await client.delete(f"/apps/chat/keys/{key['id']}")).status_code == 404
    patched = await client.patch("/apps/chat/policy", json={"data": "local-only"})
    assert patched.json()["policy"]["data"] == "local-only"
    assert patched.json()["policy"]["team"] == "red"
    assert (await client.get("/apps/chat/policy")).json() == patched.json()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"models": []}, "policy.models"),
        ({"tasks": ["fly"]}, "no task"),
        ({"requests_per_minute": 0}, "policy.requests_per_minute must be 1 or more"),
        ({"rpm": 5}, "policy.rpm"),
        ({"data": "moon"}, "policy.data"),
    ],
)
async def test_a_bad_policy_is_refused_in_words(
    client: httpx.AsyncClient, policy: dict[str, Any], said: str
) -> None:
    reply = await client.post("/apps", json={"name": "chat", "policy": policy})
    assert reply.status_code == 422
    assert said in reply.json()["detail"]


async def test_a_provider_with_prices_and_a_budget(gate: Gate, client: httpx.AsyncClient) -> None:
    async with ModelApi(answer({"data": [{"id": "big"}, {"id": "gpt-4o"}]})) as api:
        body = {"name": "acme", "kind": "openai", "url": api.url, "key": KEY}
        added = await client.post("/providers", json=body)
        assert added.status_code == 201, added.text
        assert KEY not in added.text
        assert added.json()["unpriced"] == 1
        assert (await client.post("/providers", json=body)).status_code == 409
        assert (await client.post("/providers/acme/check")).json()["models"] == ["big", "gpt-4o"]
        assert (await client.put("/providers/acme/key", json={"key": KEY + "2"})).status_code == 200
        assert api.seen[-1].headers["authorization"].endswith(KEY + "2")
    priced = await client.put("/prices/acme/big", json={"input": "0.15", "output": 0.6, "source": "contract"})
    assert (priced.json()["input"], priced.json()["output"]) == ("0.15", "0.6")
    assert (await client.get("/providers/acme")).json()["unpriced"] == 0
    assert gate.parts.directory.prices()["acme/big"].input == Decimal("0.15")
    assert (await client.delete("/prices/acme/big")).status_code == 204

    put = await client.put("/budgets/provider:acme/month", json={"hard": "12.50", "soft": 10})
    assert put.status_code == 200, put.text
    assert (put.json()["hard"], put.json()["left"]) == ("12.5", "12.5")
    await client.put("/budgets/pool/day", json={"hard": 3})
    assert [row["id"] for row in (await client.get("/budgets")).json()["items"]] == [
        "pool/day",
        "provider:acme/month",
    ]
    shown = (await client.get("/budgets/provider:acme/month")).json()
    assert (shown["history"], shown["shifts"]) == ([], [])
    assert (await client.get("/budgets/shifts")).json() == {"items": []}
    bad: dict[str, Any]
    for path, bad in (
        ("/budgets/galaxy:x/day", {"hard": 1}),
        ("/budgets/pool/year", {"hard": 1}),
        ("/budgets/pool/day", {"hard": -1}),
        ("/budgets/pool/day", {"hard": "a lot"}),
        ("/budgets/pool/day", {}),
        ("/budgets/pool/day", {"hard": 1, "soft": 2}),
    ):
        assert (await client.put(path, json=bad)).status_code == 422, path
    assert (await client.put("/budgets/app:nobody/day", json={"hard": 1})).status_code == 404
    assert (await client.delete("/budgets/pool/day")).status_code == 204
    assert (await client.delete("/providers/acme")).status_code == 204
    assert (await client.get("/providers")).json()["items"] == []


async def test_a_refused_provider_does_not_echo_its_key(client: httpx.AsyncClient) -> None:
    body = {"name": "acme", "kind": "openai", "url": "http://api.example/v1", "key": KEY}
    for more in ({}, {"surprise": KEY}, {"models": KEY}, {"key": KEY + " x"}):
        reply = await client.post("/providers", json=body | more)
        assert reply.status_code == 422
        assert KEY not in reply.text


async def test_aliases(client: httpx.AsyncClient) -> None:
    assert (await client.put("/aliases/best", json={"target": "qwen3"})).status_code == 200
    assert (await client.put("/aliases/x", json={"target": "qg://task=nonsense"})).status_code == 422
    assert [row["target"] for row in (await client.get("/aliases")).json()["items"]] == ["qwen3"]
    assert (await client.delete("/aliases/best")).status_code == 204


async def test_receipts_of_every_app(gate: Gate, client: httpx.AsyncClient) -> None:
    receipts = Receipts(
        gate.parts.store.store,
        gate="gate-1",
        online=gate.parts.online,
        pool_key=gate.parts.keys.pool_key,
    )
    made = receipts.issue(work(), outcome=Outcome("ok", "stop", Usage(1, 2), (), time.time(), time.time()))
    await receipts.flush()
    listed = (await client.get("/receipts", params={"app": "web"})).json()["items"]
    assert [one["id"] for one in listed] == [made.id]
    assert (await client.get("/receipts", params={"app": "other"})).json()["items"] == []
    shown = (await client.get(f"/receipts/{made.id}")).json()
    pool = (await client.get("/key")).json()["pool"]["fingerprint"]
    assert check_receipt(shown, pool=pool).id == made.id
    assert (await client.get("/receipts/req_x")).status_code == 404
    for outcome in ("ok", "rate_limited"):
        ended = Outcome(outcome, "stop", Usage(10, 5), (), time.time(), time.time())
        receipts.issue(work(), outcome=ended)
    await receipts.flush()
    used = (await client.get("/usage")).json()
    (row,) = used["items"]
    assert (row["name"], row["requests"], row["failed"]) == ("web", 3, 1)
    assert (row["tokens_in"], row["tokens_out"]) == (21, 12)
    assert used["by"] == "app"
    assert [one["name"] for one in (await client.get("/usage?by=task")).json()["items"]] == ["chat"]
    later = str(time.time() + 60)
    assert (await client.get("/usage", params={"since": later, "by": "day"})).json()["items"] == []
    assert (await client.get("/usage?by=person")).status_code == 422


async def test_the_vault_says_what_it_seals_and_nothing_of_it(client: httpx.AsyncClient) -> None:
    added = {
        "name": "acme",
        "kind": "openai",
        "url": "http://127.0.0.1:9/v1",
        "key": "sk-hush",
        "models": [{"name": "m"}],
        "check": False,
    }
    assert (await client.post("/providers", json=added)).status_code == 201
    reply = await client.get("/vault", params={"kind": "provider"})
    assert [(one["name"], one["what"]) for one in reply.json()["items"]] == [("acme", "key")]
    assert reply.json()["key"]
    assert "hush" not in reply.text


async def test_the_description_names_the_replies(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"BudgetReply", "ProviderReply", "PriceReply", "CheckReply"} <= document["components"][
        "schemas"
    ].keys()


async def test_old_receipts_and_periods_are_forgotten(gate: Gate, client: httpx.AsyncClient) -> None:
    await client.put("/budgets/pool/day", json={"hard": 3})
    async with gate.parts.store.store.connection() as connection:
        for days in (1, 500):
            await connection.execute(
                "INSERT INTO budget_periods VALUES ('pool/day', now() - make_interval(days => $1),"
                " now() - make_interval(days => $1), 0)",
                days,
            )
            await connection.execute(
                "INSERT INTO receipts (id, at, app, document)"
                " VALUES ($1, now() - make_interval(days => $2), 'web', '{}')",
                f"req_{days}",
                days,
            )
        await gate.upkeep._forget()
        assert await connection.fetchval("SELECT array_agg(id) FROM receipts") == ["req_1"]
        assert await connection.fetchval("SELECT count(*) FROM budget_periods") == 1

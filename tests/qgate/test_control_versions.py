"""Changes that name what they saw: two administrators at once, and what the audit says of both."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from qgate.gate import Gate
from qgate.governance.versions import difference, version_of

DATABASE: dict[str, Any] = {
    "name": "shop",
    "dsn": "postgresql://owner:canary@127.0.0.1:1/shop",
    "check": False,
}
PROVIDER: dict[str, Any] = {
    "name": "gpu",
    "kind": "openai",
    "url": "http://127.0.0.1:1/v1",
    "local": True,
    "check": False,
    "models": [{"name": "m", "kinds": ["chat"]}],
}


async def make(client: httpx.AsyncClient) -> None:
    made: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/databases", DATABASE),
        ("/apps", {"name": "web", "databases": ["shop"], "policy": {}}),
        ("/providers", PROVIDER),
    )
    for path, body in made:
        reply = await client.post(path, json=body)
        assert reply.status_code == 201, reply.text
    for path, body in (
        ("/budgets/pool/month", {"hard": "5", "currency": "EUR"}),
        ("/aliases/fast", {"target": "m"}),
        ("/prices/m", {"input": "1", "output": "2"}),
        ("/pool", {"name": "hq"}),
        ("/smtp", {"host": "mail.example.org", "from": "mesh@example.org"}),
    ):
        reply = await client.put(path, json=body)
        assert reply.status_code == 200, reply.text


CHANGES: list[tuple[str, str, str, dict[str, Any] | None]] = [
    ("/apps/web", "PATCH", "/apps/web/policy", {"max_tokens": 7}),
    ("/apps/web/policy", "PATCH", "/apps/web/policy", {"share": 9}),
    ("/apps/web", "PATCH", "/apps/web", {"limits": {"queue": 3}}),
    ("/budgets/pool/month", "PUT", "/budgets/pool/month", {"hard": "6", "currency": "EUR"}),
    ("/aliases/fast", "PUT", "/aliases/fast", {"target": "other"}),
    ("/pool", "PUT", "/pool", {"name": "main"}),
    ("/smtp", "PUT", "/smtp", {"port": 2525}),
    ("/smtp", "PUT", "/smtp", {"user": "mesh", "password": "canary"}),
    ("/smtp", "PUT", "/smtp/recipients", {"recipients": [{"to": "ops@example.org"}]}),
    ("/smtp", "PUT", "/smtp/recipients/ops%40example.org", {"severity": "info"}),
    ("/smtp", "DELETE", "/smtp/recipients/ops%40example.org", None),
    ("/providers/gpu", "DELETE", "/providers/gpu", None),
    ("/aliases/fast", "DELETE", "/aliases/fast", None),
    ("/budgets/pool/month", "DELETE", "/budgets/pool/month", None),
    ("/apps/web", "DELETE", "/apps/web", None),
    ("/databases/shop", "DELETE", "/databases/shop?force=true", None),
]


async def test_every_kind_refuses_a_change_of_what_was_not_seen(client: httpx.AsyncClient) -> None:
    await make(client)
    for look, method, path, body in CHANGES:
        shown = await client.get(look)
        tag = shown.headers["etag"]
        assert tag == f'"{shown.json()["version"]}"'
        stale = await client.request(method, path, json=body, headers={"If-Match": '"1"'})
        assert (stale.status_code, stale.json()["code"]) == (412, "changed"), path
        assert "uid=" in stale.json()["detail"]
        made = await client.request(method, path, json=body, headers={"If-Match": tag})
        assert made.is_success, made.text
        if body is not None:
            assert (await client.get(look)).headers["etag"] == made.headers["etag"] != tag
        gone = await client.request(method, path, json=body, headers={"If-Match": tag})
        assert gone.status_code in {404, 412}, (path, gone.text)  # a revoked app is told as such
    # without a version the last writer wins
    assert (await client.put("/aliases/fast", json={"target": "x"})).is_success
    assert (await client.delete("/aliases/fast", headers={"If-Match": "no"})).status_code == 400


async def test_of_two_who_saw_the_same_one_wins_and_the_other_hears_of_it(
    client: httpx.AsyncClient,
) -> None:
    await make(client)
    for number in range(5):
        tag = (await client.get("/aliases/fast")).headers["etag"]
        replies = await asyncio.gather(
            *(
                client.put("/aliases/fast", json={"target": f"t{number}{who}"}, headers={"If-Match": tag})
                for who in "abcd"
            )
        )
        codes = sorted(one.status_code for one in replies)
        assert codes == [200, 412, 412, 412]
        lost = next(one for one in replies if one.status_code == 412)
        assert "changed it at" in lost.json()["detail"]
        assert "alias.set: target" in lost.json()["detail"]


async def test_the_audit_holds_before_and_after_without_secrets(
    gate: Gate, client: httpx.AsyncClient
) -> None:
    await make(client)
    await client.patch("/apps/web/policy", json={"max_tokens": 7}, headers={"X-Request-Id": "mine-1"})
    await client.delete("/aliases/fast")
    await gate.parts.audit.flush()
    reply = (await client.get("/audit?kind=admin&limit=1000")).json()
    found = {(one["detail"]["what"], one["detail"]["name"]): one["detail"] for one in reply["items"]}
    assert found["app.policy", "web"]["after"]["policy"]["max_tokens"] == 7
    assert set(found["app.policy", "web"]["before"]) == {"policy"}
    assert found["alias.drop", "fast"]["before"] == {"name": "fast", "target": "m"}
    assert found["database.add", "shop"]["after"]["dbname"] == "shop"
    assert found["pool.name", "hq"]["after"]["name"] == "hq"
    assert "canary" not in str(reply)
    newest = (await client.get("/audit?q=alias.drop&limit=1")).json()
    assert newest["items"][0]["detail"]["what"] == "alias.drop"
    before = newest["items"][0]["seq"]
    older = (await client.get(f"/audit?before={before}&limit=1")).json()["items"]
    assert older[0]["seq"] == before - 1


async def test_lists_are_paged_filtered_and_sorted(client: httpx.AsyncClient) -> None:
    await make(client)
    for number in range(5):
        await client.put(f"/aliases/a{number}", json={"target": f"m{number % 2}"})
    page = (await client.get("/aliases?limit=2&sort=-name")).json()
    assert ([one["name"] for one in page["items"]], page["total"]) == (["fast", "a4"], 6)
    page = (await client.get("/aliases", params={"limit": 2, "sort": "-name", "after": page["next"]})).json()
    assert [one["name"] for one in page["items"]] == ["a3", "a2"]
    assert (await client.get("/aliases?q=m1")).json()["total"] == 2
    assert (await client.get("/settings?group=nothing")).json()["items"] == []
    assert (await client.get("/providers?local=true")).json()["total"] == 1
    assert (await client.get("/apps?databases=shop&state=active")).json()["total"] == 1
    refused = await client.get("/apps?colour=red")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid")
    assert "state" in refused.json()["next"]
    for path in ("databases", "apps", "sidecars", "budgets", "pools", "workers", "models", "incidents"):
        reply = (await client.get(f"/{path}")).json()
        assert {"items", "next", "total"} <= set(reply), path


def test_versions_follow_what_is_configured_and_nothing_else() -> None:
    row = {"name": "a", "target": "m", "changed_at": "now"}
    assert version_of("alias", row) == version_of("alias", {**row, "changed_at": "later"})
    assert version_of("alias", row) != version_of("alias", {**row, "target": "n"})
    assert version_of("alias", row) != version_of("budget", row)
    assert difference("alias", row, {**row, "target": "n"}) == {
        "before": {"target": "m"},
        "after": {"target": "n"},
    }
    assert difference("alias", None, row) == {"after": {"name": "a", "target": "m"}}
    assert difference("alias", row, None) == {"before": {"name": "a", "target": "m"}}

"""The API section over a real gate, PostgreSQL and a model API: apps, keys, databases, money, receipts."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest

from tests.kit.cluster import Cluster
from tests.kit.mesh import Mesh
from tests.kit.model_server import running_apis
from tests.qgate.model_api import ModelApi
from tests.tui.conftest import Open
from tests.tui.outcome import audited, eventually
from tests.tui.terminal import MESHCTL


@pytest.fixture(scope="module")
def upstream() -> Iterator[Cluster]:
    """A real PostgreSQL with a database and its owner."""
    with Cluster() as cluster:
        cluster.create_role("shop_owner", password="open sesame")
        cluster.create_database("shop", owner="shop_owner")
        yield cluster


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A real gate and a sidecar."""
    with Mesh() as found:
        found.wait_linked()
        yield found


def rows(mesh: Mesh, path: str) -> dict[str, dict[str, Any]]:
    """A list of the control API by name."""
    return {str(row.get("name") or row.get("id")): row for row in mesh.control.items(path)}


def printed(mesh: Mesh, *words: str) -> Any:
    """What a command prints as JSON."""
    argv = [str(MESHCTL), *words, "-o", "json", "--socket", str(mesh.gate.directory / "admin.sock")]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout)


def asked(mesh: Mesh, key: str) -> int:
    """The status of a chat request that an app sends through its sidecar."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    request = Request(
        f"http://127.0.0.1:{mesh.sidecar.port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code


def selected(mesh: Mesh, user: str, password: str) -> Any:
    """What the database says to an app that comes through the sidecar."""
    with psycopg.connect(
        host="127.0.0.1",
        port=mesh.sidecar.port,
        user=user,
        password=password,
        dbname="shop",
        sslmode="disable",
    ) as connection:
        return connection.execute("SELECT current_user").fetchone()


async def test_a_database_and_an_app_that_reaches_it(visit_mesh: Open, mesh: Mesh, upstream: Cluster) -> None:
    async with visit_mesh("api") as at:
        await at.sees("No apps. Press a to make one", "No apps")
        await at.press("2")
        await at.sees("No databases. Press a to register one")
        await at.press("a")
        await at.sees("Register a database")
        await at.type("shop")
        await at.press("enter")
        await at.type(f":{upstream.port}")
        await at.press("enter", "enter")
        await at.type("shop_owner")
        await at.press("enter")
        await at.type("wrong")
        await at.press("ctrl+s")
        await at.sees("Register a database", "password authentication failed")
        await at.press("down", "down", "down", "down", *["backspace"] * 5)
        await at.type("open sesame")
        assert "sesame" not in at.text()
        await at.press("ctrl+s")
        await at.told("The database is registered.")
        await at.sees("shop", "shop_owner")
        await at.press("t")
        await at.sees("› Check", "PASSED", "server version")
        await at.press("escape", "o")
        await at.sees("Give the role of shop a new password?", "= meshctl secret rotate shop")
        await at.press("y")
        await at.told("The password of shop is new")
        await at.press("1", "a")
        await at.sees("Make an app", "Name *", "= meshctl app create", "ctrl+s send")
        await at.type("web")
        await at.press("enter")
        await at.type("shop")
        await at.press("ctrl+s")
        await at.sees("This is shown once", "1  password", "URL (shop)", "1 to 2 copy one")
        await at.press("1")
        await at.told("Copied:")
        password = at.room.clipboard
        await at.press("escape")
        await at.sees("web", "active")
        assert password not in at.text()
        assert await asyncio.to_thread(selected, mesh, "web", password) == ("shop_owner",)
        await at.press("3")
        await at.sees("database", "shop", "role")
        await at.press("2", "delete")
        await at.sees("Forget a database")
        await at.press("ctrl+s")
        await at.sees("Type shop to go on", "DELETE /databases/shop")
        await at.type("shop")
        await at.press("enter")
        await at.sees("Forget a database", "--force")
        await at.press("escape")
    assert rows(mesh, "/apps")["web"]["databases"] == ["shop"]
    assert audited(mesh, "database.add")["name"] == "shop"
    assert audited(mesh, "database.rotate")
    assert audited(mesh, "app.create")["name"] == "web"


async def test_a_key_its_scopes_a_budget_and_what_was_used(visit_mesh: Open, mesh: Mesh) -> None:
    api = ModelApi()
    with running_apis(api):
        async with visit_mesh("api", size=(120, 40)) as at:
            await at.press("5", "a")
            await at.sees("Register a model API")
            await at.type("acme")
            await at.press("enter", "enter")
            await at.type(api.url)
            await at.press("enter")
            await at.type("sk-secret")
            await at.press("enter")
            await at.type("tiny")
            await at.press("enter")
            await at.press("right", *["enter"] * 3, "right", "ctrl+s")
            await at.told("The provider is registered.")
            await at.sees("acme", "sealed")
            await at.press("1", "a")
            await at.sees("Make an app")
            await at.type("bot")
            await at.press("enter", "enter")
            await at.type("tiny")
            await at.press("ctrl+s")
            await at.sees("OPENAI_API_KEY", "OPENAI_BASE_URL")
            await at.press("3")
            key = at.room.clipboard
            assert key.startswith("qg_")
            await at.press("escape")
            await at.sees("bot", "tiny")
            assert await asyncio.to_thread(asked, mesh, key) == 200
            await at.type("/bot")
            await at.press("enter", "e")
            await at.sees("What it may ask of models: bot", "PATCH /apps/bot/policy")
            await at.press(*["backspace"] * 4)
            await at.type("other*")
            await at.press("ctrl+s")
            await at.told("The scopes of bot are changed.")
            await eventually(lambda: asked(mesh, key) in {403, 404}, "a refusal")
            await at.press("u")
            await at.press("y")
            await at.told("Taken back: Scopes")
            assert rows(mesh, "/apps")["bot"]["policy"]["models"] == ["tiny"]
            await at.press("b")
            await at.sees("What it may spend: bot")
            await at.press("enter")
            await at.type("25")
            await at.press("ctrl+s")
            await at.told("The budget of bot is set.")
            await at.press("enter")
            await at.sees("API › bot", "qg_", "active")
            await at.press("delete")
            prefix = key[:10]
            await at.sees(f"Type {prefix} to go on")
            await at.type(prefix)
            await at.press("enter")
            await at.told(f"{prefix} is revoked.")
            await eventually(lambda: asked(mesh, key) == 401, "a refused key")
            await at.press("escape")
            await at.type(":budgets")
            await at.press("enter")
            await at.sees("app:bot/month", "25")
            await at.press("delete", "y")
            await at.told("app:bot/month is lifted.")
            assert not mesh.control.items("/budgets")
            await at.press("u", "y")
            await eventually(lambda: "app:bot/month" in rows(mesh, "/budgets"), "the budget again")
            await at.press("8")
            await at.sees("bot", "REQUESTS")
            await at.press("e")
            await at.sees("by model", "tiny")
            await at.press("9")
            await at.sees("tiny", "ok")
            await at.press("v")
            await at.told("is genuine: the pool signed it")
            await at.press("enter")
            await at.sees("tokens")
    (used,) = printed(mesh, "receipt", "usage", "--by", "model")
    assert (used["name"], used["requests"]) == ("tiny", 1)
    assert [one["name"] for one in printed(mesh, "secret", "list") if one["kind"] == "provider"] == ["acme"]
    assert audited(mesh, "provider.add")["name"] == "acme"
    for what in ("app.policy", "app.key.revoke", "budget.set"):
        assert audited(mesh, what)


async def test_a_sidecar_is_looked_at_and_an_app_revoked(visit_mesh: Open, mesh: Mesh) -> None:
    mesh.add_database("kept", "postgresql://nobody:x@127.0.0.1:9/kept", check=False)
    mesh.control.post("/apps", {"name": "old", "databases": ["kept"], "policy": {"models": ["*"]}})
    async with visit_mesh("overview", size=(120, 40)) as at:
        await at.sees("w Workers", "o Sidecars")
        await at.press("o")
        await at.sees("app-host", "sidecar", "active")
        await at.press("v")
        await at.sees("app-host: Tunnels", "RTT")
        await at.press("escape", "1")
        await at.type("/old")
        await at.press("enter", "w")
        await at.sees("What it may use: old", "PATCH /apps/old", "read-write")
        await at.press("ctrl+s")
        await at.sees("Nothing is changed yet.")
        await at.press("enter")
        await at.type("30d")
        await at.press(*["enter"] * 5)
        await at.type("7")
        await at.sees("meshctl app set old --expires 30d --queue 7")
        await at.press("ctrl+s")
        await at.told("What old may use is changed.")
        changed = rows(mesh, "/apps")["old"]
        assert (changed["limits"], changed["databases"]) == ({"queue": 7}, ["kept"])
        assert changed["expires_at"]
        await at.press("u", "y")
        await at.told("Taken back: Change")
        assert rows(mesh, "/apps")["old"]["expires_at"] is None
        assert audited(mesh, "app.change")["name"] == "old"
        await at.press("p")
        await at.sees("Let old ask for no model any more?")
        await at.press("y")
        await at.told("old may ask for no model.")
        await at.until(lambda: "*" not in at.text(), "the app without models")
        await at.press("p")
        await at.told("It may ask for no model as it is.")
        await at.press("delete")
        await at.type("old")
        await at.press("enter")
        await at.told("old is revoked.")
        await at.press("o")
        await at.told("It is revoked.")
    assert rows(mesh, "/apps")["old"]["state"] == "revoked"
    assert audited(mesh, "app.revoke")["name"] == "old"

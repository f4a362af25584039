"""The control API: who may call, what a call answers, and how a refusal reads."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest
from fastapi import FastAPI, Request

from qgate.control.local import LocalServer
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import Sidecar
from tunnel_proto.errors import ConfigError, MeshError


@pytest.fixture
async def shop_dsn(store_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """A database with an owner of its own, as an administrator would register it."""
    administrator = await asyncpg.connect(store_server.dsn())
    await administrator.execute("CREATE ROLE control_owner LOGIN PASSWORD 'canary-owner'")
    await administrator.execute("CREATE DATABASE control_shop OWNER control_owner")
    yield f"postgresql://control_owner:canary-owner@127.0.0.1:{store_server.port}/control_shop"
    await administrator.execute("DROP DATABASE control_shop WITH (FORCE)")
    await administrator.execute("DROP ROLE control_owner")
    await administrator.close()


# --- the socket


async def test_the_socket_is_private_from_its_first_moment(gate: Gate) -> None:
    mode = stat.S_IMODE(gate.files.control_socket.stat().st_mode)
    assert mode == 0o600


async def test_the_caller_is_who_the_kernel_says(tmp_path: Path) -> None:
    application = FastAPI()

    @application.get("/")
    async def who(request: Request) -> list[Any]:
        assert request.client is not None
        return [request.client.host, request.client.port]

    path = tmp_path / ("a" * 120) / "admin.sock"  # longer than sockaddr_un holds
    path.parent.mkdir()
    server = LocalServer(application, path)
    await server.start()
    try:
        os.symlink(path.parent, tmp_path / "s")
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "s" / "admin.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/")).json() == [f"uid={os.geteuid()}", os.getpid()]
        with pytest.raises(MeshError, match="a gate already listens on"):
            await LocalServer(application, path).start()
    finally:
        await server.close()
    assert not path.exists()


async def test_another_user_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = LocalServer(FastAPI(), tmp_path / "admin.sock")
    await server.start()
    monkeypatch.setattr("qgate.control.local.peer_of", lambda _transport: (4711, 65534))
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/")
    finally:
        await server.close()


async def test_what_a_killed_gate_left_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = LocalServer(FastAPI(), path)
    await server.start()
    await server.close()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is not a socket"):
        await LocalServer(FastAPI(), path).start()
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot make the control socket"):
        await LocalServer(FastAPI(), tmp_path / "none" / "admin.sock").start()


# --- databases and apps


async def test_from_a_database_to_an_app_and_back(client: httpx.AsyncClient, shop_dsn: str) -> None:
    added = await client.post("/databases", json={"name": "shop", "dsn": shop_dsn, "limits": {"queue": 7}})
    assert added.status_code == 201, added.text
    assert "canary" not in added.text
    assert (await client.get("/databases/shop")).json()["limits"]["queue"] == 7
    checked = (await client.post("/databases/shop/check")).json()
    assert checked["ok"], checked
    created = (await client.post("/apps", json={"name": "web", "databases": ["shop"]})).json()
    assert created["app"]["state"] == "active"
    assert len(created["password"]) >= 24
    rotated = (await client.post("/apps/web/rotate", json={"overlap_s": 60})).json()
    assert rotated["password"] != created["password"]
    assert (await client.get("/apps")).json()["items"][0]["verifiers"] == 2
    bound = await client.delete("/databases/shop")
    assert (bound.status_code, bound.json()["code"]) == (409, "conflict")
    assert "--force" in bound.json()["next"]
    assert (await client.delete("/apps/web")).json() == {"name": "web", "sessions_ended": 0}
    assert (await client.delete("/databases/shop", params={"force": True})).status_code == 204
    assert (await client.get("/databases")).json()["items"] == []


async def test_changes_are_audited_with_who_made_them(gate: Gate, client: httpx.AsyncClient) -> None:
    await client.put("/settings/app.queue", json={"value": 5})
    await gate.parts.audit.flush()
    entries = (await client.get("/audit", params={"kind": "admin"})).json()["items"]
    detail = entries[-1]["detail"]
    assert detail.pop("request").startswith("req-")
    assert detail == {
        "what": "setting.set",
        "name": "app.queue",
        "by": f"uid={os.geteuid()}",
        "value": 5,
        "before": 100,
        "after": 5,
    }


# --- refusals


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/databases/none", None, 404, "not-found"),
        ("DELETE", "/apps/none", None, 404, "not-found"),
        ("DELETE", "/sidecars/none", None, 404, "not-found"),
        ("GET", "/elsewhere", None, 404, "not-found"),
        ("PATCH", "/apps", None, 405, "method-not-allowed"),
        ("POST", "/apps", {"name": "web"}, 422, "invalid"),
        ("POST", "/apps", {"name": "../x", "databases": ["a"]}, 422, "invalid"),
        ("POST", "/apps", {"name": "web", "databases": ["none"]}, 404, "not-found"),
        ("POST", "/sidecars", {"offer": "{}"}, 422, "invalid"),
        ("POST", "/databases", {"name": "d", "dsn": "mysql://h"}, 422, "invalid"),
        ("POST", "/sample", {}, 409, "conflict"),
        ("PUT", "/settings/app.queue", {"value": -1}, 422, "invalid"),
        ("PUT", "/settings/app.queues", {"value": 1}, 404, "not-found"),
        ("PUT", "/settings/listen.port", {"value": 1}, 409, "conflict"),
        ("POST", "/backup", {"path": "relative"}, 422, "invalid"),
        ("POST", "/backup", {"path": "/nonexistent/backup"}, 422, "invalid"),
    ],
)
async def test_refusals_are_problem_documents(
    client: httpx.AsyncClient, method: str, path: str, body: Any, status: int, code: str
) -> None:
    reply = await client.request(method, path, json=body)
    document = reply.json()
    assert (reply.status_code, document["code"]) == (status, code), document
    assert reply.headers["content-type"] == "application/problem+json"
    assert document["status"] == status
    assert document["detail"]
    assert set(document) == {"type", "title", "status", "detail", "code", "next"}


async def test_no_refusal_repeats_a_secret(client: httpx.AsyncClient, shop_dsn: str) -> None:
    for body in (
        {"name": "d", "dsn": shop_dsn.replace("canary-owner", "canary-wrong")},
        {"name": "d", "dsn": "postgresql://u:canary-1@h:port/d"},
        {"name": "d", "dsn": 5, "password": ["canary-2"]},
        {"name": "d", "dsn": shop_dsn, "password": "canary-3"},
        {"name": "d", "dsn": shop_dsn, "sslkey": "canary-4"},
        {"name": "d", "dsn": f"postgresql://u:{quote('canary-5@x')}@127.0.0.1:1/d", "canary-6": 1},
    ):
        reply = await client.post("/databases", json=body)
        assert reply.status_code >= 400
        assert "canary-" not in reply.text.replace("canary-6", ""), reply.text
    broken = await client.post("/apps", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["code"]) == (422, "invalid")


# --- audit


async def test_the_audit_is_streamed_exported_and_verified(gate: Gate, client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/audit/stream", params={"after": 0}) as stream:
        lines = stream.aiter_lines()
        assert json.loads(await anext(lines))["kind"] == "gate.start"
        await client.put("/settings/app.queue", json={"value": 6})
        async with asyncio.timeout(60):
            assert json.loads(await anext(lines))["detail"]["what"] == "setting.set"
    exported = (await client.get("/audit/export")).text.splitlines()
    assert json.loads(exported[0])["seq"] == 1
    assert json.loads(exported[-1])["head"]["seq"] == len(exported) - 1
    verified = (await client.post("/audit/verify")).json()
    assert (verified["ok"], verified["entries"]) == (True, len(exported) - 1)
    assert (await client.get("/audit/head")).json()["seq"] == verified["head"]["seq"]


async def test_settings_show_where_each_value_comes_from(gate: Gate, client: httpx.AsyncClient) -> None:
    rows = {row["name"]: row for row in (await client.get("/settings")).json()["items"]}
    assert rows["app.queue"]["source"] == "default"
    assert (rows["listen.port"]["source"], rows["listen.port"]["value"]) == ("file", gate.port)
    assert rows["store.dsn"]["value"] == "********"
    await client.put("/settings/app.queue", json={"value": "9"})
    assert (await client.get("/settings/app.queue")).json()["source"] == "database"
    assert (await client.delete("/settings/app.queue")).json()["value"] == rows["app.queue"]["default"]
    assert (await client.get("/settings/drain_timeout_s")).json()["restart_needed"] is False


async def test_a_backup_is_private_whole_and_never_overwrites(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await Sidecar("laptop").enrol(client)
    target = tmp_path / "backup"
    reply = await client.post("/backup", json={"path": str(target)})
    assert reply.status_code == 201, reply.text
    assert (reply.json()["path"], reply.json()["bytes"]) == (str(target), target.stat().st_size)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    before = target.read_bytes()
    again = await client.post("/backup", json={"path": str(target)})
    assert (again.status_code, target.read_bytes()) == (409, before)
    assert list(tmp_path.glob(".*")) == []


async def test_the_description_for_tools_names_every_call(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for call in (
        "status",
        "databases/{name}/rotate",
        "apps",
        "sidecars/{name}",
        "audit/stream",
        "vault/rekey",
    ):
        assert f"/control/v1/{call}" in paths
    for operations in paths.values():
        for operation in operations.values():
            assert operation["description"]


async def test_the_vault_is_rekeyed_through_the_api(
    gate: Gate, client: httpx.AsyncClient, shop_dsn: str
) -> None:
    await client.post("/databases", json={"name": "shop", "dsn": shop_dsn})
    reply = (await client.post("/vault/rekey")).json()
    assert reply["old_key"] != reply["new_key"]
    assert reply["secrets"] == 1
    route = gate.parts.directory.route("shop")
    assert route is not None
    assert gate.parts.directory.passwords(route, read_only=False) == (b"canary-owner",)

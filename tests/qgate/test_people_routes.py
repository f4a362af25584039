"""The routes of people, mail, notifications and sign-up: whatever comes is answered, never by a defect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from qgate.gate import Gate
from tests.qgate.gates import control, gate_settings, make_directory, running

ODD = ("\0", "p-nobody", "a" * 5000, "a@b", "é", "../people", "p-nobody\n", "\ud7ff", "null")
READS = ("/people/{}", "/people/{}/export", "/erasures/{}")
ORDERS = (
    "/people/{}/invite",
    "/people/{}/disable",
    "/people/{}/enable",
    "/signup/requests/{}/approve",
    "/signup/requests/{}/reject",
)
BODIES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/people", {"name": "\0", "email": "a@b"}),
    ("POST", "/people", {"name": "A", "email": "a@b.c", "apps": ["\0"]}),
    ("POST", "/people", {"name": "A", "email": "a@b.c", "apps": ["nothing"]}),
    ("POST", "/people", {"name": "A", "email": "a@b.c", "invite": True}),
    ("POST", "/people", []),
    ("POST", "/notifications/read", {"ids": [2**70]}),
    ("POST", "/notifications/clear", {"ids": ["x"]}),
    ("PUT", "/smtp", {"host": "\0"}),
    ("PUT", "/smtp", {"port": 2**70}),
    ("PUT", "/smtp", {"timeout_s": 1e308}),
    ("PUT", "/smtp", {"password": "x"}),
    ("PUT", "/smtp", {"from": "a@b\r\nBcc: c@d"}),
    ("PUT", "/smtp/recipients", {"recipients": [{"to": "\0@b"}]}),
    ("POST", "/smtp/test", {"to": "x"}),
    ("POST", "/people/p-nobody/erase", {"confirm": "\0"}),
)


@pytest.fixture
async def client(tmp_path: Path, store_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    gate: Gate
    async with running(settings) as gate, control(gate) as client:
        yield client


async def test_nonsense_is_refused_in_words(client: httpx.AsyncClient) -> None:
    calls: list[tuple[str, str, Any]] = [
        *(("GET", path.format(quote(odd, safe="")), None) for path in READS for odd in ODD),
        *(("POST", path.format(quote(odd, safe="")), None) for path in ORDERS for odd in ODD),
        *(("PUT", f"/people/p-nobody/apps/{quote(odd, safe='')}", None) for odd in ODD),
        *(("DELETE", f"/people/p-nobody/apps/{quote(odd, safe='')}", None) for odd in ODD),
        ("GET", "/notifications?kind=%00", None),
        ("GET", "/notifications?after=0", None),
        ("GET", "/notifications?severity=loud", None),
        ("GET", "/people?sort=nothing&after=x", None),
        ("GET", "/people?colour=red", None),
        *BODIES,
    ]
    for method, path, body in calls:
        reply = await client.request(method, path, json=body)
        assert 400 <= reply.status_code < 500, (method, path, reply.text)
        assert reply.json()["code"] not in {"", "defect"}, (method, path)
        assert reply.json()["detail"]


async def test_empty_lists_are_pages(client: httpx.AsyncClient) -> None:
    for path in ("/people", "/erasures", "/signup/requests", "/smtp/mail"):
        assert (await client.get(path)).json() == {"items": [], "next": None, "total": 0}
    assert (await client.get("/notifications")).json() == {"items": [], "next": None, "total": 0, "unread": 0}
    assert (await client.get("/signup")).json()["open"] is False
    shown = (await client.get("/smtp")).json()
    assert (shown["ready"], shown["password"]) == (False, "not needed")
    assert (await client.put("/smtp/recipients", json={"recipients": [{"to": "a@b.c"}]})).status_code == 200


async def test_recipients_are_told_one_by_one(client: httpx.AsyncClient) -> None:
    told = await client.put("/smtp/recipients/ops@example.org", json={"severity": "critical"})
    assert told.json()["recipients"] == [{"to": "ops@example.org", "severity": "critical"}]
    again = await client.put("/smtp/recipients/OPS@example.org", json={})
    assert again.json()["recipients"] == [{"to": "OPS@example.org", "severity": "warning"}]
    for path, body in (("no-address", {}), ("a@b.c", {"severity": "loud"})):
        assert (await client.put(f"/smtp/recipients/{path}", json=body)).status_code == 422
    gone = await client.delete("/smtp/recipients/ops@example.org")
    assert gone.json()["recipients"] == []
    missing = await client.delete("/smtp/recipients/ops@example.org")
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")

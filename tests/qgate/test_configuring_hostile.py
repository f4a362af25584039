"""Hostile values over the control API of a whole gate: refused in words, never a defect of ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.qgate.gates import control, gate_settings, make_directory, running

STRANGE: tuple[Any, ...] = ("a\0b", "\ud800", "", "x" * 10_000, None, -1, 10**40, 1e308, [], {}, [[]], True)


@pytest.fixture
async def client(tmp_path: Path, store_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as opened:
        yield opened


def _bodies(value: Any) -> list[tuple[str, str, Any]]:
    """Each field of each body that was written for configuring, with a strange value in it."""
    drain = {"what": "drain", "in_s": 1}
    return [
        ("PUT", "/settings/incident.hook", {"value": value}),
        ("PUT", "/settings/app.queue", {"value": value}),
        ("PUT", "/licence", {"token": value}),
        ("POST", "/licence/verify", {"token": value}),
        *(
            ("PATCH", "/branding", {name: value})
            for name in ("name", "logo", "colours", "support", "white_label")
        ),
        ("PATCH", "/branding", {"logo": [value]}),
        ("PATCH", "/branding", {"colours": {"primary": value}}),
        *(
            ("POST", "/orders", {**drain, name: value})
            for name in ("what", "at", "in_s", "reason", "arguments")
        ),
        ("POST", "/orders", {**drain, "arguments": {"worker": value}}),
        (
            "POST",
            "/orders",
            {"what": "failover", "arguments": {"pool": value, "nodes": [value], "verb": value}},
        ),
        ("POST", "/orders", {"what": "mode", "arguments": {"mode": value}, "in_s": 5, "reason": value}),
        ("PUT", "/automations/balancer", {"on": value}),
        ("PUT", "/onboarding/pair", {"state": value}),
        ("POST", "/configuration/apply", {"document": {"settings": {}}, "reason": value}),
        *(
            ("POST", "/configuration/apply", {"document": {section: value}})
            for section in ("format", "etag", "settings", "branding", "aliases", "apps", "pools")
        ),
        ("POST", "/configuration/apply", {"document": {"settings": {"app.queue": value}}, "force": True}),
        ("POST", "/configuration/apply", {"document": {"settings": {"incident.hook": value}}, "force": True}),
        ("POST", "/configuration/apply", {"document": {"aliases": {"x": value}}, "force": True}),
        ("POST", "/configuration/apply", {"document": {"aliases": {str(value): "gpt"}}, "force": True}),
        ("POST", "/configuration/apply", {"document": {"prices": {"m": {"input": value}}}, "force": True}),
        ("POST", "/configuration/apply", {"document": {"budgets": {"pool/day": {"hard": value}}}}),
        ("POST", "/configuration/apply", {"document": {"budgets": {str(value): {"hard": 1}}}}),
    ]


@pytest.mark.parametrize("value", STRANGE, ids=[repr(one)[:20] for one in STRANGE])
async def test_strange_values_are_refused_or_taken(client: httpx.AsyncClient, value: Any) -> None:
    for method, path, body in _bodies(value):
        headers = {"Content-Type": "application/json"}
        reply = await client.request(method, path, content=json.dumps(body), headers=headers)
        assert reply.status_code < 500, (method, path, str(body)[:100], reply.text)
        if reply.status_code >= 400:
            assert reply.json()["detail"], (method, path)


@pytest.mark.parametrize(
    "path",
    [
        "/settings/%00",
        "/settings/history?name=%00",
        "/settings/history?limit=0",
        "/settings/history?before=99999999999999999999",
        "/orders/0",
        "/orders/99999999999999999999",
        "/orders/4611686018427387904",
        "/orders?before=-1",
        "/automations/%00",
        "/configuration/revisions/99999999999999999999",
        "/configuration/revisions/4611686018427387904",
        "/configuration/revisions?limit=100000",
    ],
)
async def test_strange_paths_are_refused(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path)
    assert 400 <= reply.status_code < 500, reply.text


async def test_a_reason_cannot_hold_what_the_store_cannot(client: httpx.AsyncClient) -> None:
    reply = await client.put("/settings/app.queue?reason=a%00b", json={"value": 1})
    assert reply.status_code == 422
    assert (await client.get("/settings/app.queue")).json()["value"] == 100

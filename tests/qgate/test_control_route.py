"""`route explain` over the control API and on the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from qgate.gate import Gate
from tests.qgate.capability import model, provided, report
from tests.qgate.gates import control, gate_settings, make_directory, running


@pytest.fixture
async def gate(tmp_path: Path, store_dsn: str) -> AsyncIterator[Gate]:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    async with running(settings) as gate:
        inventory = gate.capabilities.inventory
        inventory.workers_changed("w1", report("w1", model()), 0.0)
        inventory.workers_changed("w2", report("w2", model(state="stored", load_s=9.0)), 0.0)
        inventory.providers_changed([provided(quality=0.9)])
        yield gate


@pytest.fixture
async def client(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    async with control(gate) as client:
        yield client


async def test_every_candidate_is_explained(client: httpx.AsyncClient) -> None:
    asked = {"request": "qg://task=chat;prefer=speed;data=local-only", "input_tokens": 100}
    answer = await client.post("/route/explain", json=asked)
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    assert reply["chosen"] == {"node": "w1", "kind": "worker", "model": "small"}
    assert reply["input_tokens"] == 100
    verdicts = {item["node"]: item["verdict"] for item in reply["items"]}
    assert verdicts["w1"] == "chosen"
    assert verdicts["w2"] == "possible"
    assert verdicts["cloud"] == "refused"
    cloud = next(item for item in reply["items"] if item["node"] == "cloud")
    assert cloud["reasons"] == ["content would leave the company, and data=local-only"]
    assert cloud["price"] == pytest.approx(500e-6)
    assert reply["weights"]["time"] == 4.0
    assert reply["problem"] is None
    scores = [item["score"] for item in reply["items"] if item["verdict"] != "refused"]
    assert scores == sorted(scores)


async def test_an_apps_policy_is_looked_at(client: httpx.AsyncClient) -> None:
    body = {"name": "web", "databases": [], "policy": {"models": ["small"]}}
    assert (await client.post("/apps", json=body)).status_code == 201
    reply = (await client.post("/route/explain", json={"request": "task=chat", "app": "web"})).json()
    cloud = next(item for item in reply["items"] if item["node"] == "cloud")
    assert cloud["reasons"] == ["the app's policy does not allow it"]


async def test_what_would_be_refused_says_how(client: httpx.AsyncClient) -> None:
    asked = {"request": "task=chat;worker=w9"}
    reply = (await client.post("/route/explain", json=asked)).json()
    assert reply["chosen"] is None
    assert reply["problem"]["code"] == "no_candidate"
    assert {item["verdict"] for item in reply["items"]} == {"refused"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"request": "task=chatt"}, 400, "request_syntax"),
        ({"request": "task=chat", "app": "nobody"}, 404, "not-found"),
        ({"request": ""}, 422, "invalid"),
        ({"request": "task=chat", "input_tokens": -1}, 422, "invalid"),
        ({"request": "task=chat", "more": 1}, 422, "invalid"),
    ],
)
async def test_a_bad_question_is_refused(
    client: httpx.AsyncClient, body: dict[str, object], status: int, code: str
) -> None:
    answer = await client.post("/route/explain", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_the_command_line_shows_it(gate: Gate) -> None:
    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshctl", "route", "explain", *arguments),
            *("--socket", str(gate.files.control_socket)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()
        return said.decode()

    table = await run("task=chat;prefer=speed")
    assert "VERDICT" in table
    assert "chosen" in table
    assert "load 9.0 s" in table
    assert "score = 4 x seconds" in table
    assert json.loads(await run("small", "-o", "json"))["chosen"]["node"] == "w1"
    assert "chosen:" in await run("small", "-o", "yaml")

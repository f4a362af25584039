"""A whole gate with a provider behind it: policy, budget, receipt and failures as a client meets them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from qgate.gate import Gate
from tests.qgate.calling import KEY
from tests.qgate.model_api import USAGE, Exchange, ModelApi, answer, chat, events, piece
from tunnel_proto.receipt import check_receipt

ASK = {"model": "big", "messages": [{"role": "user", "content": "canary-zebra"}], "max_tokens": 10}


@pytest.fixture
async def surface(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    """/v1 on the control socket, as `meshctl ask` uses it."""
    transport = httpx.AsyncHTTPTransport(uds=str(gate.files.control_socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1", timeout=20) as client:
        yield client


async def register(client: httpx.AsyncClient, api: ModelApi, **more: Any) -> None:
    models = [{"name": "big"}]
    body = {"name": "acme", "kind": "openai", "url": api.url, "key": KEY, "models": models, "check": False}
    added = await client.post("/providers", json=body | more)
    assert added.status_code == 201, added.text
    assert (await client.put("/prices/big", json={"input": 1, "output": 1})).status_code == 200


async def test_an_answer_with_its_receipt(
    gate: Gate, client: httpx.AsyncClient, surface: httpx.AsyncClient
) -> None:
    async with ModelApi(answer(chat())) as api:
        await register(client, api)
        await client.put("/budgets/pool/month", json={"hard": 1})
        reply = await surface.post("/chat/completions", json=ASK)
        assert reply.status_code == 200, reply.text
        body = reply.json()
        receipt = body["qgate"]["receipt"]
        pool = (await client.get("/key")).json()["pool"]["fingerprint"]
        assert check_receipt(receipt, pool=pool).id == reply.headers["x-qgate-receipt"]
        assert (receipt["price"], receipt["tokens_in"], receipt["tokens_out"]) == ("0.00001", 7, 3)
        assert receipt["nodes"][0]["node"] == "acme"
        assert "canary" not in json.dumps(receipt)
        assert api.seen[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in reply.text
        again = await surface.get(f"/receipts/{receipt['id']}")
        assert again.json() == receipt
        await gate.capabilities.ledger.flush()
        assert (await client.get("/budgets/pool/month")).json()["spent"] == "0.00001"


async def test_a_budget_that_is_spent_refuses_in_words(
    client: httpx.AsyncClient, surface: httpx.AsyncClient
) -> None:
    async with ModelApi(answer(chat())) as api:
        await register(client, api)
        await client.put("/budgets/provider:acme/day", json={"hard": "0.000001"})
        reply = await surface.post("/chat/completions", json=ASK)
        assert reply.status_code in {402, 422}, reply.text
        assert "provider:acme/day" in reply.text
        assert api.seen == []


async def test_a_stream_that_breaks_off_is_an_error_and_is_paid_for(
    gate: Gate, client: httpx.AsyncClient, surface: httpx.AsyncClient
) -> None:
    async def reply(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(b"data: " + json.dumps(piece("half")).encode() + b"\n\n")
        await asyncio.sleep(0)
        exchange.reset()

    async with ModelApi(reply) as api:
        await register(client, api)
        await client.put("/budgets/pool/month", json={"hard": 1})
        told = ""
        with contextlib.suppress(httpx.RemoteProtocolError):  # nor does HTTP say that it ended well
            async with surface.stream("POST", "/chat/completions", json=ASK | {"stream": True}) as reply_:
                async for text in reply_.aiter_text():
                    told += text
        assert "half" in told
        assert "stream_interrupted" in told
        assert "[DONE]" not in told
        assert '"finish_reason":"stop"' not in told.replace(" ", "")
        await gate.capabilities.ledger.flush()
        spent = Decimal((await client.get("/budgets/pool/month")).json()["spent"])
        assert spent > Decimal("0.0005")  # all that was set aside: nobody knows


async def test_a_stream_with_its_receipt(client: httpx.AsyncClient, surface: httpx.AsyncClient) -> None:
    reply = events(piece("Hello"), piece(" there"), piece(finish="stop"), USAGE)
    async with ModelApi(reply) as api:
        await register(client, api)
        told = await surface.post("/chat/completions", json=ASK | {"stream": True})
        lines = [line[6:] for line in told.text.split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        receipts = [one["qgate"]["receipt"] for one in map(json.loads, lines[:-1]) if "qgate" in one]
        assert len(receipts) == 1
        assert receipts[0]["id"] == told.headers["x-qgate-receipt"]
        assert receipts[0]["tokens_out"] == 3


@pytest.mark.parametrize(("status", "expected"), [(401, {502}), (400, {400}), (429, {429, 502, 503})])
async def test_a_refusal_reaches_the_client_in_openais_shape(
    client: httpx.AsyncClient, surface: httpx.AsyncClient, status: int, expected: set[int]
) -> None:
    said = {"error": {"message": f"no {KEY}", "type": "x"}}
    async with ModelApi(answer(said, status, retry_after="3")) as api:
        await register(client, api)
        reply = await surface.post("/chat/completions", json=ASK)
        assert reply.status_code in expected, reply.text
        assert KEY not in reply.text
        assert set(reply.json()["error"]) >= {"message", "type", "code", "param"}

"""The official SDK, its strict validation on, through a whole gate to a provider that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import openai
import pydantic
import pytest

from qgate.gate import Gate
from qgate.governance.audit import AuditEvent
from tests.minigate.conftest import until
from tests.qgate.calling import KEY
from tests.qgate.gates import control
from tests.qgate.model_api import USAGE, Exchange, ModelApi, Reply, answer, chat, events, piece

HELLO: Any = [{"role": "user", "content": "hello"}]
FUNCTION_TOOL = {"name": "weather", "parameters": {"type": "object"}}
TOOLS: Any = [{"type": "function", "function": FUNCTION_TOOL}]
FUNCTION = {"name": "weather", "arguments": '{"city":"Ulm"}'}


async def as_nobody(request: httpx.Request) -> None:
    """Leave out the key that the SDK insists on: on the control socket the socket says who asks."""
    del request.headers["Authorization"]


@asynccontextmanager
async def asking(
    gate: Gate, reply: Reply, **options: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, ModelApi]]:
    """An SDK at a gate whose one model, `big`, is a provider's that answers with ``reply``."""
    socket = httpx.AsyncHTTPTransport(uds=str(gate.files.control_socket))
    async with ModelApi(reply) as api, control(gate) as administrator:
        body = {"name": "acme", "kind": "openai", "url": api.url, "key": KEY, "models": [{"name": "big"}]}
        assert (await administrator.post("/providers", json=body | {"check": False})).status_code == 201
        await administrator.put("/prices/big", json={"input": 1, "output": 1})
        options = {"_strict_response_validation": True, "max_retries": 0, "timeout": 20} | options
        async with openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key="none",
            http_client=cast(
                "Any", httpx.AsyncClient(transport=socket, event_hooks={"request": [as_nobody]})
            ),
            **options,
        ) as sdk:
            yield sdk, api


async def test_a_tool_call_and_its_answer(gate: Gate) -> None:
    called = chat("")
    call = {"id": "call_1", "type": "function", "function": FUNCTION}
    called["choices"][0] |= {
        "message": {"role": "assistant", "content": None, "tool_calls": [call]},
        "finish_reason": "tool_calls",
    }
    async with asking(gate, answer(called)) as (sdk, api):
        first = await sdk.chat.completions.create(
            model="big", messages=HELLO, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
        )
        assert first.choices[0].finish_reason == "tool_calls"
        message = first.choices[0].message
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.arguments == FUNCTION["arguments"]  # type: ignore[union-attr]
        sent = api.seen[0].json
        assert (sent["tools"], sent["tool_choice"]) == (TOOLS, "required")
        assert sent["parallel_tool_calls"] is False
        result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
        turns: Any = [*HELLO, message.model_dump(exclude_none=True), result]
        await sdk.chat.completions.create(model="big", messages=turns, tools=TOOLS)
        assert api.seen[1].json["messages"][1]["tool_calls"] == [call]
        assert api.seen[1].json["messages"][2] == result
        flat: Any = [{"type": "function", **FUNCTION_TOOL, "strict": False}]
        whole = await sdk.responses.create(model="big", input="x", tools=flat)
        assert [one.type for one in whole.output] == ["function_call"]


async def test_a_streamed_tool_call(gate: Gate) -> None:
    begun = {"index": 0, "id": "call_1", "type": "function", "function": FUNCTION | {"arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"city":', '"Ulm"}')]
    reply = events(
        piece(role="assistant", tool_calls=[begun]),
        *(piece(tool_calls=[part]) for part in parts),
        piece(finish="tool_calls"),
        USAGE,
    )
    async with (
        asking(gate, reply) as (sdk, _),
        sdk.chat.completions.stream(model="big", messages=HELLO, tools=TOOLS) as stream,
    ):
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    (made,) = final.choices[0].message.tool_calls or []
    assert made.function.arguments == FUNCTION["arguments"]


class City(pydantic.BaseModel):
    """What is asked for."""

    name: str
    people: int


async def test_structured_output_is_asked_for_as_the_sdk_asks_for_it(gate: Gate) -> None:
    async with asking(gate, answer(chat('{"name": "Ulm", "people": 126000}'))) as (sdk, api):
        found = await sdk.chat.completions.parse(model="big", messages=HELLO, response_format=City)
        assert found.choices[0].message.parsed == City(name="Ulm", people=126_000)
        sent = api.seen[0].json["response_format"]
        assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
        response = await sdk.responses.parse(model="big", input="x", text_format=City)
        assert response.output_parsed == City(name="Ulm", people=126_000)
        assert api.seen[1].json["response_format"]["json_schema"]["schema"] == sent["json_schema"]["schema"]


ERRORS: list[tuple[int, dict[str, Any], type[openai.APIStatusError]]] = [
    (400, {"message": "no such field", "code": "unknown_field"}, openai.BadRequestError),
    (400, {"message": "too long", "code": "context_length_exceeded"}, openai.BadRequestError),
    (429, {"message": "slow down"}, openai.RateLimitError),
]


async def test_errors_are_the_sdks_own(gate: Gate) -> None:
    async with asking(gate, answer(chat())) as (sdk, api):
        for status, said, raised in ERRORS:
            api.reply = answer({"error": said}, status, retry_after="3")
            with pytest.raises(raised) as refused:
                await sdk.chat.completions.create(model="big", messages=HELLO, stream=status == 400)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        asked = len(api.seen)
        with pytest.raises(openai.APIStatusError) as waits:  # it is left in peace for as long as it said
            await sdk.chat.completions.create(model="big", messages=HELLO, stream=True)
        assert waits.value.status_code in {429, 503}
        assert 1 <= int(waits.value.response.headers["retry-after"]) <= 3
        assert len(api.seen) == asked


async def test_a_provider_that_fails(gate: Gate) -> None:
    async with asking(gate, answer({"error": {"message": "oops"}}, 500)) as (sdk, _):
        with pytest.raises(openai.InternalServerError) as failed:
            await sdk.chat.completions.create(model="big", messages=HELLO)
        assert failed.value.status_code == 502


async def test_a_budget_that_is_spent(gate: Gate) -> None:
    async with asking(gate, answer(chat())) as (sdk, api), control(gate) as administrator:
        await administrator.put("/budgets/pool/month", json={"hard": "0.000001"})
        with pytest.raises(openai.APIStatusError, match="pool") as refused:
            await sdk.chat.completions.create(model="big", messages=HELLO)
        assert refused.value.status_code == 402
        assert refused.value.code == "budget_exceeded"
        assert api.seen == []


async def test_a_full_audit_queue_lets_no_request_in(gate: Gate) -> None:
    async with asking(gate, answer(chat())) as (sdk, api), control(gate) as administrator:
        for name, value in (("audit.queue_max", 1000), ("audit.batch_interval_s", 5)):
            assert (await administrator.put(f"/settings/{name}", json={"value": value})).status_code == 200
        audit = gate.parts.audit
        while audit.accepting:
            audit.record(AuditEvent("query", app="web", database="shop"))
        with pytest.raises(openai.InternalServerError, match="cannot record") as refused:
            await sdk.chat.completions.create(model="big", messages=HELLO)
        assert (refused.value.status_code, refused.value.code) == (503, "audit_full")
        assert refused.value.response.headers["retry-after"] == "5"
        assert api.seen == []
        await audit.flush()
        await sdk.chat.completions.create(model="big", messages=HELLO)
        assert len(api.seen) == 1


async def test_a_client_that_leaves_ends_the_providers_work_too(gate: Gate) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(b"data: " + pydantic.TypeAdapter(Any).dump_json(piece("one ")) + b"\n\n")
        await exchange.closed.wait()

    async with asking(gate, endless) as (sdk, api):
        stream = await sdk.chat.completions.create(model="big", messages=HELLO, stream=True)
        await anext(aiter(stream))
        assert gate.capabilities.engine.figures.in_flight == 1
        await stream.close()
        async with asyncio.timeout(10):
            await api.seen[0].closed.wait()
            await until(lambda: gate.capabilities.engine.figures.in_flight == 0)

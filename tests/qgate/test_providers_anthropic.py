"""Anthropic's Messages API, asked and answered in OpenAI's words, over real sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qgate.capability.providers.anthropic_request import message_request
from qgate.capability.providers.dialect import UntranslatableError
from qgate.capability.work import Usage
from tests.qgate.calling import KEY, calling
from tests.qgate.model_api import Exchange, ModelApi, answer
from tests.qgate.spending import work

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather", "parameters": {"type": "object"}},
}
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


def asked(*messages: Any, **body: Any) -> dict[str, Any]:
    made, _ = message_request(
        {"messages": messages or ({"role": "user", "content": "hi"},), **body},
        model="claude-x",
        max_tokens=100,
        stream=False,
    )
    return made


def stream(*told: dict[str, Any], end: bool = True) -> Any:
    async def reply(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream; charset=utf-8")
        for event in told:
            await exchange.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        if end:
            await exchange.end()
        else:
            exchange.cut()

    return reply


def start(**usage: int) -> dict[str, Any]:
    given = {"input_tokens": 10, "output_tokens": 1, **usage}
    return {"type": "message_start", "message": {"id": "m", "model": "claude-x-2026", "usage": given}}


def block(index: int, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index: int, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": content}


def ending(reason: str, tokens: int = 9) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": tokens}},
        {"type": "message_stop"},
    )


# --- the way there


def test_system_texts_stand_apart_and_neighbours_become_one_turn() -> None:
    made = asked(
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    )
    assert made["system"] == "be brief\n\nbe kind"
    assert made["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
    ]
    assert (made["model"], made["max_tokens"], made["stream"]) == ("claude-x", 100, False)


def test_sampling_fields_and_stops() -> None:
    made = asked(temperature=1.7, top_p=0.5, stop="END", seed=4, presence_penalty=1, user="u1")
    assert (made["temperature"], made["top_p"], made["stop_sequences"]) == (1.0, 0.5, ["END"])
    assert made["metadata"] == {"user_id": "u1"}
    assert not {"seed", "presence_penalty", "stop"} & made.keys()
    assert asked(stop=["a", "b"])["stop_sequences"] == ["a", "b"]


def test_tools_their_calls_and_their_results() -> None:
    made = asked(
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "user", "content": "thanks"},
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert made["tools"] == [
        {"name": "weather", "description": "Weather", "input_schema": {"type": "object"}}
    ]
    assert made["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert made["messages"][1]["content"] == [
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ulm"}}
    ]
    assert [part["type"] for part in made["messages"][2]["content"]] == ["tool_result", "text"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
    ],
)
def test_tool_choices(choice: Any, expected: dict[str, Any]) -> None:
    assert asked(tools=[TOOL], tool_choice=choice)["tool_choice"] == expected


def test_images_travel_in_the_request_or_by_their_address() -> None:
    images = [
        {"type": "image_url", "image_url": {"url": url}}
        for url in ("data:image/png;base64,AAA", "https://x/y")
    ]
    made = asked({"role": "user", "content": images})
    assert [part["source"]["type"] for part in made["messages"][0]["content"]] == ["base64", "url"]


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"logprobs": True},
        {"messages": "hello"},
        {"messages": [{"role": "narrator", "content": "x"}]},
        {"messages": []},
        {"messages": [5]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}
            ]
        },
        {"tools": [{"type": "web_search"}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}},
        {"tools": [TOOL], "response_format": {"type": "json_object"}},
    ],
)
def test_what_it_has_no_words_for_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(UntranslatableError):
        asked(**{"messages": [{"role": "user", "content": "x"}], **body}) if "messages" not in body else (
            message_request(body, model="m", max_tokens=1, stream=False)
        )


# --- the way back


async def test_a_whole_answer() -> None:
    document = {
        "type": "message",
        "model": "claude-x-2026",
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "It is "},
            {"type": "text", "text": "sunny."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}},
        ],
        "stop_reason": "tool_use",
        "usage": {
            "input_tokens": 5,
            "cache_read_input_tokens": 3,
            "cache_creation_input_tokens": 2,
            "output_tokens": 4,
        },
    }
    async with ModelApi(answer(document)) as api, calling(api.url, kind="anthropic") as caller:
        ear = await caller.run(work(body={"messages": [{"role": "user", "content": "x"}]}), max_tokens=9)
        assert (ear.reason, ear.usage, ear.version) == ("tool_calls", Usage(10, 4, 3, 7), "claude-x-2026")
        assert ear.raw is not None
        made = json.loads(ear.raw)
        message = made["choices"][0]["message"]
        assert (made["object"], message["content"]) == ("chat.completion", "It is sunny.")
        assert message["reasoning_content"] == "hm"
        assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Ulm"}
        assert made["usage"]["total_tokens"] == 14
        sent = api.seen[0]
        assert (sent.path, sent.headers["x-api-key"]) == ("/v1/messages", KEY)
        assert sent.headers["anthropic-version"] == "2023-06-01"
        assert "authorization" not in sent.headers
        assert sent.json["max_tokens"] == 9


async def test_a_stream() -> None:
    told = (
        start(cache_read_input_tokens=4),
        {"type": "ping"},
        block(0, type="text", text=""),
        delta(0, type="text_delta", text="Grüße "),
        delta(0, type="text_delta", text="dir"),
        {"type": "content_block_stop", "index": 0},
        block(1, type="tool_use", id="t1", name="weather"),
        delta(1, type="input_json_delta", partial_json='{"ci'),
        delta(1, type="input_json_delta", partial_json='ty": 1}'),
        {"type": "something_of_tomorrow"},
        *ending("tool_use"),
    )
    body = {"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": True}}
    async with ModelApi(stream(*told)) as api, calling(api.url, kind="anthropic") as caller:
        ear = await caller.run(work(body=body, stream=True))
        assert (ear.text, ear.reason, ear.usage) == ("Grüße dir", "tool_calls", Usage(14, 9, 4, 10))
        raws = [json.loads(chunk.raw or b"") for chunk in ear.chunks]
        assert {raw["object"] for raw in raws} == {"chat.completion.chunk"}
        assert len({raw["id"] for raw in raws}) == 1
        pieces = [
            call["function"]["arguments"]
            for raw in raws
            for choice in raw["choices"]
            for call in choice["delta"].get("tool_calls", ())
        ]
        assert "".join(pieces) == '{"city": 1}'
        assert raws[-2]["choices"][0]["finish_reason"] == "tool_calls"
        assert raws[-1]["usage"]["prompt_tokens"] == 14


async def test_a_schema_comes_back_as_text() -> None:
    told = (
        start(),
        block(0, type="tool_use", id="t", name="answer"),
        delta(0, type="input_json_delta", partial_json='{"n": 3}'),
        *ending("tool_use"),
    )
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": wanted}
    async with ModelApi(stream(*told)) as api, calling(api.url, kind="anthropic") as caller:
        ear = await caller.run(work(body=body, stream=True))
        assert (ear.text, ear.reason) == ('{"n": 3}', "stop")
        assert api.seen[0].json["tools"][0]["input_schema"] == SCHEMA
        assert api.seen[0].json["tool_choice"]["name"] == "answer"
    document = {
        "content": [{"type": "tool_use", "id": "t", "name": "answer", "input": {"n": 3}}],
        "stop_reason": "tool_use",
    }
    async with ModelApi(answer(document)) as api, calling(api.url, kind="anthropic") as caller:
        ear = await caller.run(work(body=body), max_tokens=50)
        assert json.loads(ear.raw or b"")["choices"][0]["message"]["content"] == '{"n": 3}'
        assert ear.usage.completion_tokens == 50  # it did not say, so the most is assumed


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("refusal", "content_filter"),
        ("of_tomorrow", "stop"),
    ],
)
async def test_stop_reasons(reason: str, expected: str) -> None:
    async with (
        ModelApi(stream(start(), *ending(reason))) as api,
        calling(api.url, kind="anthropic") as caller,
    ):
        assert (await caller.run(work(stream=True))).reason == expected


@pytest.mark.parametrize("last", [0, 1, 2, 3])
@pytest.mark.parametrize("end", [True, False])
async def test_a_cut_stream_is_an_error(last: int, *, end: bool) -> None:
    told = (start(), block(0, type="text", text="a"), ending("end_turn")[0])
    async with (
        ModelApi(stream(*told[:last], end=end)) as api,
        calling(api.url, kind="anthropic") as caller,
    ):
        failure = await caller.fails(work(stream=True))
        assert failure.code in {"stream_interrupted", "unavailable"}


@pytest.mark.parametrize(
    "event",
    [
        {"type": "message_start"},
        {"type": "content_block_delta", "index": 0},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 5}},
        {
            "type": "content_block_delta",
            "index": 7,
            "delta": {"type": "input_json_delta", "partial_json": ""},
        },
        {"type": "content_block_start", "index": "x", "content_block": {}},
    ],
)
async def test_garbage_is_the_providers_fault(event: dict[str, Any]) -> None:
    async with ModelApi(stream(event)) as api, calling(api.url, kind="anthropic") as caller:
        assert (await caller.fails(work(stream=True))).code == "invalid_response"


async def test_its_errors_are_understood() -> None:
    told = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    async with ModelApi(stream(start(), told)) as api, calling(api.url, kind="anthropic") as caller:
        failure = await caller.fails(work(stream=True))
        assert (failure.code, failure.status) == ("stream_interrupted", 529)
    async with ModelApi(answer(told, 529)) as api, calling(api.url, kind="anthropic") as caller:
        failure = await caller.fails(work())
        assert (failure.code, failure.retriable, failure.status) == ("provider_error", True, 529)


async def test_it_is_asked_for_chats_only() -> None:
    async with ModelApi() as api, calling(api.url, kind="anthropic") as caller:
        for kind in ("completion", "embedding"):
            failure = await caller.fails(work(kind=kind, body={"input": "x"}))
            assert (failure.code, failure.retriable) == ("unsupported", True)
        assert api.seen == []

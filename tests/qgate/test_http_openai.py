"""The official SDK against a real minigate and a real tunnel, with its strict validation of answers on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from qgate.capability.work import Begun, Chunk, Event, Moved, Problem, Work
from qgate.control.local import LocalServer
from qgate.governance.policy import CapabilityPolicy
from qgate.http.application import Application, Beside
from qgate.settings import HttpSettings
from tests.minigate.conftest import until
from tests.qgate.http_stack import (
    KEY,
    MODELLESS_KEY,
    OTHER_KEY,
    FakeEngine,
    Stack,
    analysis,
    app,
    desk,
    directory,
    finished,
    stack,
    vectors,
)

HELLO: Any = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def client(running: Stack, key: str = KEY, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    """A strict SDK client without retries."""
    options = {"_strict_response_validation": True, "max_retries": 0, "timeout": 20} | options
    async with AsyncOpenAI(base_url=running.url, api_key=key, **options) as made:
        yield made


async def test_a_chat(tmp_path: Path) -> None:
    async with stack(tmp_path) as running, client(running) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="smol", messages=HELLO, seed=3)
        found = raw.parse()
        assert found.choices[0].message.content == "one two thrée"
        assert found.choices[0].finish_reason == "stop"
        assert found.model == "smol"
        assert found.usage is not None
        assert found.usage.total_tokens == 10
        work = running.engine.seen[0]
        assert raw.headers["x-qgate-node"] == "box"
        assert raw.headers["x-qgate-receipt"] == f"rct_{work.id[4:]}"
        assert raw.headers["x-request-id"] == work.id
        mesh = (found.model_extra or {})["qgate"]
        assert mesh["receipt"] == {"id": f"rct_{work.id[4:]}", "app": "web"}
        assert mesh["node"] == "box"
        assert (work.kind, work.request.task, work.request.model) == ("chat", "chat", "smol")
        assert (work.request.seed, work.source, work.app.name) == (3, "laptop", "web")


async def test_a_streamed_chat_with_usage(tmp_path: Path) -> None:
    async with stack(tmp_path) as running, client(running) as sdk:
        stream = await sdk.chat.completions.create(
            model="smol", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "one two thrée"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        assert len({chunk.id for chunk in chunks}) == 1
        assert any("qgate" in (chunk.model_extra or {}) for chunk in chunks)


async def test_without_usage_every_chunk_has_a_choice(tmp_path: Path) -> None:
    async with stack(tmp_path) as running, client(running) as sdk:
        stream = await sdk.chat.completions.create(model="smol", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
        assert all(chunk.choices for chunk in chunks)
        assert "receipt" in (chunks[-1].model_extra or {})["qgate"]


async def test_the_synchronous_client(tmp_path: Path) -> None:
    def talk(url: str) -> list[str]:
        with OpenAI(base_url=url, api_key=KEY, _strict_response_validation=True, max_retries=0) as sdk:
            whole = sdk.chat.completions.create(model="smol", messages=HELLO)
            stream = sdk.chat.completions.create(model="smol", messages=HELLO, stream=True)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            names = [model.id for model in sdk.models.list()]
            return [whole.choices[0].message.content or "", streamed, *names]

    async with stack(tmp_path) as running:
        said = await asyncio.to_thread(talk, running.url)
        assert said[:2] == ["one two thrée"] * 2
        assert "smol" in said


async def test_completions(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        async with client(running) as sdk:
            whole = await sdk.completions.create(model="smol", prompt="Once")
            assert whole.choices[0].text == "one two thrée"
        # Its type of a streamed choice has no null finish_reason, of which OpenAI's own streams are full.
        async with client(running, _strict_response_validation=False) as sdk:
            stream = await sdk.completions.create(model="smol", prompt=["Once"], stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two thrée"
        assert [work.body["prompt"] for work in running.engine.seen] == ["Once", "Once"]


async def test_log_probabilities_of_a_completion(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        for word in ("a ", "bc"):
            top = [{"token": word, "logprob": -0.5, "bytes": None}]
            said = {"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": top}
            yield Chunk(text=word, ids=(1,), logprobs={"content": [said]})
        yield finished(work)

    told = {
        "tokens": ["a ", "bc"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a ": -0.5}, {"bc": -0.5}],
        "text_offset": [0, 2],
    }
    async with stack(tmp_path, script=script) as running:
        async with client(running) as sdk:
            whole = await sdk.completions.create(model="smol", prompt="x", logprobs=1)
            assert whole.choices[0].logprobs is not None
            assert whole.choices[0].logprobs.model_dump() == told
        async with client(running, _strict_response_validation=False) as sdk:
            stream = await sdk.completions.create(model="smol", prompt="x", logprobs=1, stream=True)
            found = [one.choices[0].logprobs async for one in stream]
            assert [one.text_offset for one in found if one is not None] == [[0], [2]]


async def test_embeddings_as_floats_and_as_base64(tmp_path: Path) -> None:
    async with stack(tmp_path, script=vectors) as running:
        async with client(running) as sdk:
            found = await sdk.embeddings.create(model="e", input=["a", "bcd"], encoding_format="float")
            assert [one.embedding for one in found.data] == [[0.5, 1.0], [0.5, 3.0]]
            with pytest.raises(openai.BadRequestError, match="2 dimensions and cannot make 3"):
                await sdk.embeddings.create(model="e", input="a", encoding_format="float", dimensions=3)
        # The SDK asks for base64 by default and checks before it decodes: its strict mode cannot be used.
        async with client(running, _strict_response_validation=False) as sdk:
            found = await sdk.embeddings.create(model="e", input="abc")
            assert found.data[0].embedding == [0.5, 3.0]


async def test_vectors_may_come_as_bytes(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("e", "1", "box", "worker")
        yield finished(work, result=[bytes.fromhex("0000003f 00004040")])

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        found = await sdk.embeddings.create(model="e", input="a", encoding_format="float")
        assert found.data[0].embedding == [0.5, 3.0]


async def test_responses(tmp_path: Path) -> None:
    async with stack(tmp_path) as running, client(running) as sdk:
        whole = await sdk.responses.create(
            model="smol", instructions="be brief", input="hello", max_output_tokens=9, store=False
        )
        assert whole.output_text == "one two thrée"
        assert whole.status == "completed"
        assert whole.usage is not None
        assert whole.usage.output_tokens == 3
        work = running.engine.seen[0]
        assert [message["role"] for message in work.body["messages"]] == ["system", "user"]
        assert work.request.max_tokens == 9
        assert "max_output_tokens" not in work.body
        stream = await sdk.responses.create(model="smol", input=HELLO, stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == (
            "one two thrée"
        )
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == "one two thrée"


@pytest.mark.parametrize(
    "fields", [{"store": True}, {"previous_response_id": "resp_1"}, {"background": True}], ids=str
)
async def test_responses_keep_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    async with stack(tmp_path) as running, client(running) as sdk:
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.responses.create(model="smol", input="x", **fields)
        assert refused.value.code == "unsupported"
        assert refused.value.param == next(iter(fields))
        assert running.engine.seen == []


async def test_tools_pass_through_both_ways(tmp_path: Path) -> None:
    tools: Any = [{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}]

    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        function = {"name": "sum", "arguments": ""}
        yield Chunk(
            delta={"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
        )
        for piece in ('{"a":', "1}"):
            yield Chunk(delta={"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        yield finished(work, "tool_calls")

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        whole = await sdk.chat.completions.create(model="smol", messages=HELLO, tools=tools)
        (call,) = whole.choices[0].message.tool_calls or []
        assert (call.id, call.function.name, call.function.arguments) == ("c1", "sum", '{"a":1}')  # type: ignore[union-attr]
        assert whole.choices[0].finish_reason == "tool_calls"
        assert running.engine.seen[0].body["tools"] == tools
        stream = await sdk.chat.completions.create(model="smol", messages=HELLO, tools=tools, stream=True)
        pieces = [one async for one in stream]
        found = [
            c.function.arguments for p in pieces for c in p.choices[0].delta.tool_calls or [] if c.function
        ]
        assert "".join(one or "" for one in found) == '{"a":1}'
        flat: Any = [{"type": "function", "name": "sum", "parameters": {"type": "object"}, "strict": False}]
        answer = await sdk.responses.create(model="smol", input="x", tools=flat)
        assert [one.type for one in answer.output] == ["function_call"]
        events = [
            e async for e in await sdk.responses.create(model="smol", input="x", tools=flat, stream=True)
        ]
        assert [event.type.removeprefix("response.") for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
        last = events[-1]
        assert last.type == "response.completed"
        assert [one.type for one in last.response.output] == ["function_call"]


async def test_a_providers_chunks_pass_through_and_the_receipt_joins_the_last(tmp_path: Path) -> None:
    frame = (
        '{"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt","extra":[1],"choices":[%s]%s}'
    )
    choice = '{"index":0,"delta":{"content":%s},"finish_reason":%s}'

    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("gpt", "gpt-1", "cloud", "provider")
        if not work.stream:
            message = '{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hey"}}'
            body = '{"id":"c","object":"chat.completion","created":1,"model":"gpt","x":1,"choices":[%s]} '
            yield finished(work, raw=(body % message).encode())
            return
        for text in ('"a"', '"b"'):
            yield Chunk(raw=(frame % (choice % (text, "null"), "")).encode())
        yield Chunk(raw=(frame % (choice % ('""', '"stop"'), "")).encode())
        usage = ',"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}'
        yield Chunk(raw=(frame % ("", usage)).encode())
        yield finished(work)

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        for include in (False, True):
            options: Any = {"stream_options": {"include_usage": True}} if include else {}
            stream = await sdk.chat.completions.create(model="gpt", messages=HELLO, stream=True, **options)
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "ab"
            assert all((chunk.model_extra or {})["extra"] == [1] for chunk in chunks)
            assert "qgate" in (chunks[-1].model_extra or {})
            assert (chunks[-1].usage is not None) == include
        whole = await sdk.chat.completions.create(model="gpt", messages=HELLO)
        assert whole.choices[0].message.content == "hey"
        assert set(whole.model_extra or {}) == {"x", "qgate"}
        answer = await sdk.responses.create(model="gpt", input="x")
        assert answer.output_text == "hey"
        events = [event async for event in await sdk.responses.create(model="gpt", input="x", stream=True)]
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == "ab"


async def test_a_task_in_place_of_a_model(tmp_path: Path) -> None:
    aliases = {"brief": "qg://task=summarize;words=5"}
    async with stack(tmp_path, script=analysis, aliases=aliases) as running, client(running) as sdk:
        found = await sdk.chat.completions.create(model="qg://task=summarize", messages=HELLO)
        assert found.choices[0].message.content == "about hello"
        stream = await sdk.chat.completions.create(model="brief", messages=HELLO, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "about hello"
        first, second = running.engine.seen
        assert (first.kind, first.body["input"]) == ("analysis", "hello")
        assert second.request.words == 5
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.chat.completions.create(model="qg://task=sumarize", messages=HELLO)
        assert refused.value.code == "unknown_task"
        assert refused.value.param == "model"
        assert "summarize" in refused.value.message
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
            await sdk.chat.completions.create(model="qg://task=embed", messages=HELLO)


async def test_models_and_who_may_see_them(tmp_path: Path) -> None:
    async with stack(tmp_path, aliases={"small": "smol", "hidden": "secret/model"}) as running:
        async with client(running) as sdk:
            names = [model.id async for model in await sdk.models.list()]
            assert {"smol", "secret/model", "small", "hidden", "qg://task=summarize"} <= set(names)
            assert (await sdk.models.retrieve("secret/model")).owned_by == "cloud"
        async with client(running, OTHER_KEY) as sdk:
            names = [model.id async for model in await sdk.models.list()]
            assert "smol" in names
            assert not {"secret/model", "hidden"} & set(names)
            for name in ("secret/model", "nothing"):
                with pytest.raises(openai.NotFoundError) as missing:
                    await sdk.models.retrieve(name)
                assert missing.value.code == "model_not_found"
                with pytest.raises(openai.NotFoundError):
                    await sdk.chat.completions.create(model="secret/model", messages=HELLO)
        async with client(running, MODELLESS_KEY) as sdk:
            with pytest.raises(openai.PermissionDeniedError, match="may not ask for models"):
                await sdk.chat.completions.create(model="smol", messages=HELLO)


@pytest.mark.parametrize("key", ["qg_" + "x" * 43, "sk-else", "é" * 10, ""])
async def test_an_unknown_key(tmp_path: Path, key: str) -> None:
    async with stack(tmp_path) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        writer.write((head + "Connection: close\r\n\r\n").encode("latin-1"))
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_api_key"


async def test_a_revoked_app_and_a_wrong_sidecar(tmp_path: Path) -> None:
    gone, elsewhere = app(revoked=True), app("away", sidecars=frozenset({"desktop"}))
    async with stack(tmp_path, gone, elsewhere) as running:
        async with client(running) as sdk:
            with pytest.raises(openai.AuthenticationError):
                await sdk.models.list()
        async with client(running, OTHER_KEY) as sdk:
            with pytest.raises(openai.PermissionDeniedError, match="sidecar"):
                await sdk.models.list()


async def test_rates(tmp_path: Path) -> None:
    slow = app(policy=CapabilityPolicy(requests_per_minute=2))
    async with stack(tmp_path, slow) as running, client(running) as sdk:
        for _ in range(2):
            await sdk.chat.completions.create(model="smol", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as refused:
            await sdk.chat.completions.create(model="smol", messages=HELLO)
        assert int(refused.value.response.headers["retry-after"]) > 0


# --- what goes wrong


async def test_nothing_runs_that_cannot_be_recorded(tmp_path: Path) -> None:
    room = [False]
    async with stack(tmp_path, accepting=lambda: room[0]) as running, client(running) as sdk:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as refused:
                await sdk.chat.completions.create(model="smol", messages=HELLO, stream=stream)
            assert (refused.value.status_code, refused.value.code) == (503, "audit_full")
            assert refused.value.response.headers["retry-after"] == "5"
        assert running.engine.seen == []
        assert "smol" in [model.id async for model in await sdk.models.list()]
        room[0] = True
        await sdk.chat.completions.create(model="smol", messages=HELLO)
        assert len(running.engine.seen) == 1


async def test_the_end_of_a_stream_names_the_node_that_finished(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        yield Chunk(text="half ")
        yield Moved("box", "shed", "crashed")
        yield Chunk(text="whole")
        yield finished(work)

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="smol", messages=HELLO, stream=True)
        assert raw.headers["x-qgate-node"] == "box"
        chunks = [chunk async for chunk in raw.parse()]
        mesh = (chunks[-1].model_extra or {})["qgate"]
        assert mesh["node"] == "shed"
        assert mesh["route"] == [{"from": "box", "to": "shed", "how": "exact", "reason": "crashed"}]
        whole = await sdk.chat.completions.with_raw_response.create(model="smol", messages=HELLO)
        assert whole.headers["x-qgate-node"] == "shed"


async def _drain(stream: Any, said: list[Any]) -> None:
    async for chunk in stream:
        said.append(chunk)  # noqa: PERF401 - what came before an error counts


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cold_load_that_lasts(tmp_path: Path, stream: bool) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        if work.id:
            raise Problem(
                "the model is being loaded",
                code="model_loading",
                retry_after_s=7.2,
                detail={"state": "loading", "progress": 0.4},
            )
        yield Begun("smol", "1", "box", "worker")

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        with pytest.raises(openai.InternalServerError) as refused:
            await sdk.chat.completions.create(model="smol", messages=HELLO, stream=stream)
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"] == "8"
        assert refused.value.body["detail"] == {"state": "loading", "progress": 0.4}  # type: ignore[index]


async def test_a_failure_in_mid_stream_is_an_error_and_no_clean_end(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        yield Chunk(text="half")
        raise Problem("the provider broke off", code="stream_interrupted")

    async with stack(tmp_path, script=script) as running:
        async with client(running) as sdk:
            stream = await sdk.chat.completions.create(model="smol", messages=HELLO, stream=True)
            said: list[Any] = []
            with pytest.raises(openai.APIError, match="broke off"):
                await _drain(stream, said)
            assert [chunk.choices[0].delta.content for chunk in said] == ["", "half"]
            events = await sdk.responses.create(model="smol", input="x", stream=True)
            with pytest.raises(openai.APIError, match="broke off"):
                await _drain(events, [])
        body = json.dumps({"model": "smol", "messages": HELLO, "stream": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        assert b'data: {"error":{' in answer
        assert b"[DONE]" not in answer
        assert not answer.endswith(b"0\r\n\r\n")


async def test_a_failure_before_the_first_token_keeps_its_status(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        yield Moved("box", "shed", "crashed")
        raise Problem("too long", code="context_length_exceeded", param="messages")

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.chat.completions.create(model="smol", messages=HELLO, stream=True)
        assert refused.value.code == "context_length_exceeded"


async def test_a_defect_is_told_without_its_words(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        if work.id:
            raise KeyError(work.body["messages"][0]["content"])
        yield Begun("smol", "1", "box", "worker")

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        with pytest.raises(openai.InternalServerError) as refused:
            await sdk.chat.completions.create(model="smol", messages=HELLO)
        assert "hello" not in refused.value.message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels(tmp_path: Path, stream: bool) -> None:
    started = asyncio.Event()

    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        yield Chunk(text="first")
        started.set()
        await asyncio.Event().wait()

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        create: Any = sdk.chat.completions.create
        call = asyncio.create_task(create(model="smol", messages=HELLO, stream=stream))
        await started.wait()
        if stream:
            answer = await call
            await anext(aiter(answer))
            await answer.close()
        else:
            call.cancel()
        await until(lambda: running.engine.cancelled == [running.engine.seen[0].id])
        assert running.engine.running == 0
        await asyncio.gather(call, return_exceptions=True)


async def test_a_long_silence_is_filled_with_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgate.http.running.HEARTBEAT_S", 0.05)
    go = asyncio.Event()

    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        await go.wait()
        yield Chunk(text="late")
        yield finished(work)

    async with stack(tmp_path, script=script) as running, client(running) as sdk:
        async with sdk.chat.completions.with_streaming_response.create(
            model="smol", messages=HELLO, stream=True
        ) as answer:
            lines = answer.iter_lines()
            assert await anext(lines) == ": waiting"
            go.set()
            rest = [line async for line in lines]
        assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
        assert any('"late"' in line for line in rest)


async def test_receipts_are_found_by_their_app_only(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        running.receipts.kept["rct_1"] = ("web", {"id": "rct_1", "signature": "s"})
        async with client(running) as sdk:
            found = await sdk.get("/receipts/rct_1", cast_to=object)
            assert found == {"id": "rct_1", "signature": "s"}
        async with client(running, OTHER_KEY) as sdk:
            with pytest.raises(openai.NotFoundError):
                await sdk.get("/receipts/rct_1", cast_to=object)


async def test_the_control_socket_needs_no_key(tmp_path: Path) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    engine = FakeEngine()
    administrator = app("admin")
    made = desk(engine, directory())
    server = LocalServer(
        Beside(Application(made, HttpSettings(), principal=administrator), other), tmp_path / "admin.sock"
    )
    await server.start()
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asking:
        reply = await asking.post("/v1/chat/completions", json={"model": "smol", "messages": HELLO})
        assert reply.json()["choices"][0]["message"]["content"] == "one two thrée"
        assert engine.seen[0].app is administrator
        assert (await asking.get("/control/v1/status")).status_code == 418
    await server.close()


async def test_many_at_once(tmp_path: Path) -> None:
    async with stack(tmp_path) as running, client(running) as sdk:

        async def one(number: int) -> str:
            stream = await sdk.chat.completions.create(
                model="smol", messages=[{"role": "user", "content": str(number)}], stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(one(n) for n in range(40))) == ["one two thrée"] * 40
        assert sorted(int(work.body["messages"][0]["content"]) for work in running.engine.seen) == list(
            range(40)
        )

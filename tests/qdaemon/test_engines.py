"""Servers beside the daemon: found, asked, used, and survived when they misbehave."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from qdaemon.catalogue import Catalogue
from qdaemon.interrogation import Interrogation, read_key
from qdaemon.runtimes.http_engine import EngineError, Server
from qdaemon.settings import DiscoverySettings, EngineSettings
from tests.qdaemon.gate import Line, mesh
from tests.qdaemon.servers import DIGEST, Ollama, Scripted, Vllm, serving
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import ConfigError
from tunnel_proto.messages import JobDone, JobFailed, JobRefused, JobStart, JobTokens, JobVectors, Sampling

CHAT = ({"role": "user", "content": "hello"},)


def looking(*ports: int) -> DiscoverySettings:
    return DiscoverySettings(enabled=True, ports=ports, every_s=3600)


async def failed(line: Line) -> JobFailed:
    end = await line.ended()
    assert isinstance(end, JobFailed), end
    return end


async def test_a_vllm_is_found_by_its_port_and_answers_with_all_it_says(tmp_path: Path) -> None:
    async with serving(Vllm()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        model = await one.gate.until_model("Qwen/Qwen3-8B")
        assert (model.engine, model.state, model.context) == ("openai", "external", 32768)
        assert model.engine_build == "vllm 0.11.0"
        assert model.isolation == "declared-none"
        body = {"model": "qg://x", "stream": False, "n": 1, "messages": [], "custom_field": {"deep": [1]}}
        job = one.gate.job(
            JobStart(
                "job-1",
                "Qwen/Qwen3-8B",
                "chat",
                messages=CHAT,
                sampling=Sampling(max_tokens=7, temperature=0.5, stop=("x",)),
                response_format='{"type": "object"}',
                body=body,
            )
        )
        end = await job.ended()
        assert isinstance(end, JobDone)
        assert job.text() == "Hello"
        assert (end.usage.prompt_tokens, end.usage.cached_tokens, end.usage.evaluated_tokens) == (9, 4, 5)
        (delta,) = [m.delta for m in job.said if isinstance(m, JobTokens) and m.delta]
        assert delta["tool_calls"][0]["id"] == "c1"
        sent = server.bodies[-1]
        assert sent["custom_field"] == {"deep": [1]}, "unknown fields pass through"
        assert sent["model"] == "Qwen/Qwen3-8B"
        assert (sent["stream"], sent["max_tokens"], sent["stop"]) == (True, 7, ["x"])
        assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
        assert "n" not in sent


async def test_embeddings_come_in_the_order_of_their_texts(tmp_path: Path) -> None:
    async with serving(Vllm()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        await one.gate.until_model("Qwen/Qwen3-8B")
        job = one.gate.job(JobStart("e", "Qwen/Qwen3-8B", "embedding", inputs=("a", "b")))
        assert isinstance(await job.ended(), JobDone)
        vectors = job.first(JobVectors)
        assert vectors is not None
        assert [struct.unpack("<2f", one) for one in vectors.vectors] == [(1.0, 2.0), (3.0, 4.5)]


async def test_an_ollama_is_found_and_spoken_to_in_its_own_way(tmp_path: Path) -> None:
    async with serving(Ollama()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        model = await one.gate.until_model("qwen3:8b")
        assert (model.sha256, model.quant, model.context) == (DIGEST, "Q4_K_M", 40_960)
        assert (model.engine, model.params) == ("ollama", 8_190_735_360)
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
        parts = ({"role": "user", "content": [{"type": "text", "text": "hi"}, image]},)
        job = one.gate.job(
            JobStart("o", "qwen3:8b", "chat", messages=parts, sampling=Sampling(max_tokens=2, seed=4))
        )
        end = await job.ended()
        assert isinstance(end, JobDone)
        assert (job.text(), end.finish_reason, end.usage.completion_tokens) == ("Hello", "length", 2)
        sent = server.bodies[-1]
        assert sent["options"] == {"num_predict": 2, "seed": 4}
        assert sent["messages"] == [{"role": "user", "content": "hi", "images": ["QUJD"]}]
        job = one.gate.job(JobStart("v", "qwen3:8b", "embedding", inputs=("a",)))
        assert isinstance(await job.ended(), JobDone)


async def test_a_dedicated_request_does_not_go_where_isolation_was_not_promised(tmp_path: Path) -> None:
    async with serving(Vllm()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        await one.gate.until_model("Qwen/Qwen3-8B")
        job = one.gate.job(JobStart("d", "Qwen/Qwen3-8B", "chat", messages=CHAT, isolation="dedicated"))
        end = await job.ended()
        assert isinstance(end, JobRefused)
        assert end.code == "isolation_unavailable"


Case = tuple[Any, str, bool, str]


def saying(server: Scripted, *lines: str | bytes, cut: bool = False) -> Any:
    """An endpoint that answers with these lines."""

    async def serve(request: web.Request) -> web.StreamResponse:
        return await server.lines(request, list(lines), cut=cut)

    return serve


def refusing(status: int, said: Any = None, **headers: str) -> Any:
    """An endpoint that answers with this status."""

    async def serve(_request: web.Request) -> web.StreamResponse:
        return web.json_response(said or {}, status=status, headers=headers)

    return serve


GARBAGE: dict[str, str | bytes] = {
    "not JSON": "{not json",
    "a list": "[1]",
    "not UTF-8": b'{"choices": [{"delta": {"content": "\xff\xfe"}}]}',
    "half a surrogate pair": '{"choices": [{"delta": {"content": "\\ud83d"}}]}',
    "a number that is none": '{"choices": [{"delta": {"x": NaN}}]}',
    "a number beyond all": '{"choices": [{"delta": {"x": 1e999}}]}',
    "a level too many": '{"choices": [{"delta": {"x": ' + "[" * 60 + "]" * 60 + "}}]}",
    "levels without end": "[" * 100_000,
    "an event without end": "x" * (5 << 20),
}


def misbehaving(server: Scripted) -> dict[str, Case]:
    """What the chat endpoint does: then code, whether another may try, whose fault."""
    event = '{"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}'
    error = 'data: {"error": {"message": "secret prompt"}}'
    bad = {"error": {"message": "your prompt 'secret prompt' is bad", "param": "top_p"}}
    return {
        **{
            name: (saying(server, _data(text)), "engine_garbage", True, "node")
            for name, text in GARBAGE.items()
        },
        "half a stream": (saying(server, f"data: {event}", "", cut=True), "engine_lost", True, "node"),
        "half an event": (saying(server, f"data: {event[:40]}"), "engine_garbage", True, "node"),
        "a stream without an end": (saying(server, f"data: {event}", ""), "engine_lost", True, "node"),
        "no stream at all": (saying(server, '{"choices": []}'), "engine_lost", True, "node"),
        "an error inside": (saying(server, f"data: {event}", error), "engine_failed", True, "node"),
        "no room": (refusing(429), "busy", True, "node"),
        "not ready": (refusing(503), "busy", True, "node"),
        "another key": (refusing(401), "engine_key", True, "node"),
        "the model is gone": (refusing(404), "model_not_found", True, "node"),
        "a bad request": (refusing(400, bad), "invalid_request", False, "request"),
        "too large": (refusing(413), "payload_too_large", False, "request"),
        "a redirection": (refusing(302, Location="http://127.0.0.1:1/"), "engine_failed", True, "node"),
        "a failure": (refusing(500, bad), "engine_failed", True, "node"),
    }


def _data(text: str | bytes) -> bytes:
    return b"data: " + (text.encode() if isinstance(text, str) else text)


async def test_whatever_an_engine_does_wrong_ends_in_a_failure_that_repeats_nothing(tmp_path: Path) -> None:
    async with serving(Vllm()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        await one.gate.until_model("Qwen/Qwen3-8B")
        for number, (name, case) in enumerate(misbehaving(server).items()):
            serve, code, retriable, blame = case
            server.replace["/v1/chat/completions"] = serve
            end = await failed(one.gate.job(JobStart(f"j{number}", "Qwen/Qwen3-8B", "chat", messages=CHAT)))
            assert (end.code, end.retriable, end.blame) == (code, retriable, blame), name
            assert "secret" not in end.message
        del server.replace["/v1/chat/completions"]
        job = one.gate.job(JobStart("last", "Qwen/Qwen3-8B", "chat", messages=CHAT))
        assert isinstance(await job.ended(), JobDone)


async def test_whatever_an_ollama_does_wrong_ends_in_a_failure_too(tmp_path: Path) -> None:
    event = '{"message": {"content": "x"}, "done": false}'
    async with serving(Ollama()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        await one.gate.until_model("qwen3:8b")
        cases: dict[str, tuple[Any, str]] = {
            **{name: (saying(server, text), "engine_garbage") for name, text in GARBAGE.items()},
            "half a stream": (saying(server, event, cut=True), "engine_lost"),
            "a stream without an end": (saying(server, event), "engine_lost"),
            "an error inside": (saying(server, event, '{"error": "secret prompt"}'), "engine_failed"),
            "the model is gone": (refusing(404, {"error": "model 'secret' not found"}), "model_not_found"),
            "no room": (refusing(503), "busy"),
        }
        for number, (name, (serve, code)) in enumerate(cases.items()):
            server.replace["/api/chat"] = serve
            end = await failed(one.gate.job(JobStart(f"j{number}", "qwen3:8b", "chat", messages=CHAT)))
            assert (end.code, end.retriable) == (code, True), name
            assert "secret" not in end.message
        odd = ['{"message": 7, "response": 5}', '{"message": {"content": 5, "tool_calls": "no"}}']
        last = '{"done": true, "done_reason": ["x"], "eval_count": -4, "prompt_eval_duration": 1.5}'
        server.replace["/api/chat"] = saying(server, *odd, last)
        end_of_odd = await one.gate.job(JobStart("odd", "qwen3:8b", "chat", messages=CHAT)).ended()
        assert isinstance(end_of_odd, JobDone)
        assert end_of_odd.usage.completion_tokens == 0


@pytest.mark.parametrize(
    "answer",
    [
        {"data": []},
        {"data": [{"index": 0, "embedding": ["1", "2"]}]},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0, "embedding": "not base64"}]},
        {"data": [{"index": 0, "embedding": "AAAAAAA="}]},
        {"data": [{"index": 0, "embedding": 7}]},
        {"data": [{"index": 0, "embedding": [1e300]}]},
        {"data": "x"},
        ["x"],
    ],
)
async def test_embeddings_that_are_none_are_not_passed_on(tmp_path: Path, answer: Any) -> None:
    async with serving(Vllm()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        await one.gate.until_model("Qwen/Qwen3-8B")
        server.replace["/v1/embeddings"] = refusing(200, answer)
        end = await failed(one.gate.job(JobStart("e", "Qwen/Qwen3-8B", "embedding", inputs=("a",))))
        assert end.code == "engine_garbage"


async def test_an_engine_that_says_nothing_is_given_up() -> None:
    async with serving(Vllm()) as server:
        waiting = asyncio.Event()

        async def silent(_request: web.Request) -> web.StreamResponse:
            await waiting.wait()
            raise AssertionError

        async def stalls(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'data: {"choices": []}\n')
            await waiting.wait()
            raise AssertionError

        peer = Server(server.url, silence_s=0.2)
        for serve in (silent, stalls):
            server.replace["/x"] = serve
            with pytest.raises(EngineError) as caught:
                [line async for line in peer.lines("/x", {})]
            assert caught.value.code == "engine_lost"
        await peer.close()


LISTS: dict[str, Any] = {
    "/v1/models": {
        "data": [
            {"id": "good"},
            {"id": "has spaces"},
            {"id": "x" * 500},
            {"id": "big", "max_model_len": 1 << 80, "meta": {"size": -1, "n_params": 1e9}},
            {"id": "odd", "meta": [], "max_model_len": "many"},
            {"id": None},
            7,
        ]
    },
    "/api/tags": {
        "models": [
            {"name": "good"},
            {"name": "odd", "details": 5, "size": "big", "digest": 7},
            {"name": "worse", "details": {"family": ["x"], "quantization_level": {"a": 1}}},
            {"name": ""},
            {},
        ]
    },
    "/api/show": {"model_info": {"general.architecture": ["llama"]}, "capabilities": "all"},
}


@pytest.mark.parametrize("server", [Vllm, Ollama])
async def test_an_engine_that_lies_about_its_models_cannot_end_a_report(
    tmp_path: Path, server: type[Scripted]
) -> None:
    async with serving(server()) as lying:
        for path, answer in LISTS.items():
            lying.replace[path] = refusing(200, answer)
        async with mesh(tmp_path, discovery=looking(lying.port)) as one:
            await one.gate.until_model("good")
            await one.gate.until_model("odd")
            assert one.gate.model("has spaces") is None


async def test_a_cancelled_job_hangs_up_at_the_engine(tmp_path: Path) -> None:
    async with serving(Vllm()) as server, mesh(tmp_path, discovery=looking(server.port)) as one:
        await one.gate.until_model("Qwen/Qwen3-8B")
        event = '{"choices": [{"index": 0, "delta": {"content": "x"}}]}'
        server.replace["/v1/chat/completions"] = lambda request: server.endless(request, f"data: {event}")
        job = one.gate.job(JobStart("c", "Qwen/Qwen3-8B", "chat", messages=CHAT))
        await job.heard(JobTokens)
        assert job.stream is not None
        job.stream.reset(StreamCode.CANCELLED, "gone")
        await server.gone.wait()
        late = one.gate.job(JobStart("d", "Qwen/Qwen3-8B", "chat", messages=CHAT, deadline_s=0.2))
        assert (await failed(late)).code == "deadline_exceeded"


async def test_an_engine_that_goes_away_is_said_to_be_down_and_comes_back(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-local\n")
    async with serving(Vllm()) as server:
        engine = EngineSettings(url=server.url, name="rack", key_file=key, isolation="wiped", slots=9)
        async with mesh(tmp_path, engines=(engine,)) as one:
            model = await one.gate.until_model("Qwen/Qwen3-8B")
            assert (model.isolation, model.slots) == ("declared-wiped", 9)
            assert server.headers[-1]["Authorization"] == "Bearer sk-local"

            async def broken(_request: web.Request) -> web.StreamResponse:
                return web.Response(status=500)

            server.replace["/v1/models"] = broken
            answer = await one.gate.ask("interrogate")
            assert answer.ok
            (rack,) = [run for run in answer.result["runtimes"] if run["name"] == "rack"]
            assert (rack["state"], answer.result["models"]) == ("down", [])
            assert one.gate.model("Qwen/Qwen3-8B") is None
            del server.replace["/v1/models"]
            assert (await one.gate.ask("interrogate")).result["models"] == ["Qwen/Qwen3-8B"]


async def test_a_server_that_was_only_found_is_forgotten_when_it_stays_away() -> None:
    catalogue = Catalogue()
    async with serving(Ollama()) as server:
        looker = Interrogation(looking(server.port), (), catalogue, lambda: None)
        await looker.look()
        assert len(catalogue.models) == 1
    for _ in range(3):
        await looker.look()
    assert not catalogue.models
    assert not catalogue.runtimes
    await looker.close()


async def test_something_else_on_a_known_port_is_left_alone() -> None:
    catalogue = Catalogue()
    async with serving(Scripted()) as server:
        looker = Interrogation(looking(server.port, 1, 11438), (), catalogue, lambda: None)
        await looker.look()
        assert not catalogue.runtimes
        assert not any(head.get("Host", "").endswith(":11438") for head in server.headers)
        await looker.close()


def test_a_key_file_that_holds_no_key_is_said(tmp_path: Path) -> None:
    engine = EngineSettings(url="http://127.0.0.1:1", key_file=tmp_path / "key")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(engine)
    (tmp_path / "key").write_text("one\ntwo")
    with pytest.raises(ConfigError, match="does not hold one key") as caught:
        read_key(engine)
    assert "one\ntwo" not in caught.value.message

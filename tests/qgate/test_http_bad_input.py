"""Requests that no SDK would send, as bytes, through a real minigate and a real tunnel."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from qgate.capability.work import Begun, Chunk, Event, Work
from qgate.http.bodies import VALUES_MAX
from qgate.http.protocol import Patience
from qgate.settings import HttpSettings
from tests.minigate.conftest import until
from tests.qgate.http_stack import KEY, Stack, analysis, finished, stack, vectors

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"model": "smol", "messages": [{"role": "user", "content": "hi"}]}


async def ask(
    running: Stack, body: bytes = b"", path: str = CHAT, method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send one request on a connection of its own; gives status, headers and body."""
    fields = {"Host": "localhost", "Authorization": f"Bearer {KEY}", "Content-Length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items() if v), "Connection: close"]
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    head, _, said = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return int(first.split(" ")[1]), found, said


def error_of(said: bytes) -> dict[str, Any]:
    """The error, in OpenAI's shape, or in Ollama's, which has its text under ``error``."""
    whole = json.loads(said)
    error: dict[str, Any] = whole if isinstance(whole["error"], str) else whole["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    return error


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b'{"model": NaN}', "NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"model": "\xff\xfe"}', "not UTF-8: byte 11"),
        (b'{"model": "\\ud800"}', "surrogate"),
        ('{"model": "x"}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": 1}\n{"b": 2}', "not JSON"),
    ],
)
async def test_what_is_no_json(tmp_path: Path, body: bytes, says: str) -> None:
    async with stack(tmp_path) as running:
        status, _, said = await ask(running, body)
        assert status == 400
        error = error_of(said)
        assert error["code"] == "invalid_json"
        assert says in error["message"]
        assert running.engine.seen == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"model": ""}, "model"),
    ({"model": "m" * 300}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"stop": [1]}, "stop"),
    ({"stop": ["x"] * 50}, "stop"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 99}, "top_logprobs"),
    ({"tools": {}}, "tools"),
    ({"tool_choice": 1}, "tool_choice"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"model": "qg://task=chat;max_tokens=0"}, "model"),
    ({"model": "qg://"}, "model"),
]


async def test_wrong_fields_are_named(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        for change, param in WRONG:
            status, _, said = await ask(running, json.dumps(GOOD | change).encode())
            assert status == 400, change
            assert error_of(said)["param"] == param, change
        assert running.engine.seen == []


async def test_wrong_fields_of_the_other_endpoints(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        for path, body, param in (
            ("/v1/completions", {"model": "m"}, "prompt"),
            ("/v1/completions", {"model": "m", "prompt": ["a", "b"]}, "prompt"),
            ("/v1/completions", {"model": "m", "prompt": [1, 2]}, "prompt"),
            ("/v1/completions", {"model": "m", "prompt": "a", "echo": True}, "echo"),
            ("/v1/completions", {"model": "m", "prompt": "a", "best_of": 3}, "best_of"),
            ("/v1/embeddings", {"model": "m", "input": []}, "input"),
            ("/v1/embeddings", {"model": "m", "input": [""]}, "input"),
            ("/v1/embeddings", {"model": "m", "input": [[1, 2]]}, "input"),
            ("/v1/embeddings", {"model": "m", "input": ["x"] * 2049}, "input"),
            ("/v1/embeddings", {"model": "m", "input": "x", "encoding_format": "hex"}, "encoding_format"),
            ("/v1/responses", {"model": "m", "input": []}, "input"),
            ("/v1/responses", {"model": "m", "input": [{"type": "image"}]}, "input[0].type"),
            ("/v1/responses", {"model": "m", "input": "x", "tools": [{"type": "web_search"}]}, "tools[0]"),
            ("/api/chat", {"model": "m"}, "messages"),
            ("/api/generate", {"model": "m"}, "prompt"),
        ):
            status, _, said = await ask(running, json.dumps(body).encode(), path)
            assert status == 400, (path, body)
            assert error_of(said)["param"] == param, (path, body)
        assert running.engine.seen == []


async def test_unknown_fields_pass_through(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        status, _, _ = await ask(running, json.dumps(GOOD | {"x_new": {"a": [1]}}).encode())
        assert status == 200
        assert running.engine.seen[0].body["x_new"] == {"a": [1]}


async def test_paths_and_methods(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        for method, path, status, code in (
            ("GET", "/", 404, "not_found"),
            ("GET", "/v1", 404, "not_found"),
            ("GET", "/control/v1/status", 404, "not_found"),
            ("POST", "/v1/audio/speech", 404, "not_found"),
            ("GET", CHAT, 405, "method_not_allowed"),
            ("DELETE", "/v1/models/smol", 405, "method_not_allowed"),
            ("GET", "/v1/models/none", 404, "model_not_found"),
            ("GET", "/v1/receipts/../../etc", 404, "not_found"),
        ):
            found, headers, said = await ask(running, path=path, method=method)
            assert (found, error_of(said)["code"]) == (status, code), path
            assert ("allow" in headers) == (status == 405)


# --- length


async def test_a_long_body_is_refused_by_its_length_before_it_is_read(tmp_path: Path) -> None:
    async with stack(tmp_path, settings=HttpSettings(max_body=100_000)) as running:
        status, headers, said = await ask(running, b"", Content_Length=str(100_000_000))
        assert status == 413
        assert error_of(said)["code"] == "payload_too_large"
        assert headers["connection"] == "close"


async def test_expecting_clients_never_send_a_body_that_is_too_long(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        status, _, _ = await ask(running, Content_Length="99999999", Expect="100-continue")
        assert status == 413


async def test_a_prompt_of_100_mb_is_refused_early_and_not_kept(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        block = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        began, sent = time.monotonic(), 0
        try:
            for _ in range(100):
                writer.write(block)
                await writer.drain()
                sent += 1
            async with asyncio.timeout(60):
                answer = await reader.read()
        except ConnectionResetError:  # cut while it still wrote
            answer = b""
        assert time.monotonic() - began < 20
        assert sent < 100 or b" 413 " in answer
        writer.close()
        await until(lambda: not running.mesh.sidecar.connections.live)
        assert running.engine.seen == []
        assert running.front.live == 0


# --- who asks from where


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:11438", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:11438", 200),
        ("gate.example", 200),
        ("gate.example:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:11438", 403),
        ("", 403),
    ],
)
async def test_dns_rebinding(tmp_path: Path, host: str, status: int) -> None:
    async with stack(tmp_path, settings=HttpSettings(hosts=("gate.example",))) as running:
        found, _, said = await ask(running, path="/v1/models", method="GET", Host=host)
        assert found == status
        if status == 403:
            assert error_of(said)["code"] == "misdirected"


async def test_web_pages_of_other_origins(tmp_path: Path) -> None:
    page = "https://app.example"
    async with stack(tmp_path, settings=HttpSettings(origins=(page,))) as running:
        status, _, said = await ask(running, path="/v1/models", method="GET", Origin="https://evil.example")
        assert (status, error_of(said)["code"]) == (403, "permission_denied")
        status, headers, _ = await ask(running, path="/v1/models", method="GET", Origin=page)
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        status, headers, _ = await ask(
            running, path=CHAT, method="OPTIONS", Origin=page, Authorization="", Content_Length=""
        )
        assert status == 204
        assert "POST" in headers["access-control-allow-methods"]


async def test_a_body_of_very_many_values_is_not_even_read(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        many = b'{"a":[' + b"1," * (3 * VALUES_MAX) + b"1]}"
        status, _, said = await ask(running, many)
        assert (status, error_of(said)["code"]) == (413, "payload_too_large")
        long = {**GOOD, "messages": [{"role": "user", "content": "a" * (4 * VALUES_MAX)}]}
        status, _, _ = await ask(running, json.dumps(long).encode())
        assert status == 200


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_slow_request_through_the_tunnel_is_told_408(tmp_path: Path, part: str) -> None:
    async with stack(tmp_path, patience=Patience(head_s=0.2, body_s=0.2)) as running:
        begun = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        text = begun if part == "head" else begun + 'Content-Length: 500\r\n\r\n{"model": '
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(text.encode())
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        error = error_of(answer.partition(b"\r\n\r\n")[2])
        assert (error["code"], part in error["message"]) == ("request_timeout", True)
        await until(lambda: running.front.live == 0)
        assert running.engine.seen == []


# --- Ollama


async def test_ollamas_api(tmp_path: Path) -> None:
    async with stack(tmp_path) as running:
        body = {"model": "smol", "messages": GOOD["messages"], "options": {"num_predict": 5, "seed": 1}}
        status, _, said = await ask(running, json.dumps(body).encode(), "/api/chat")
        lines = [json.loads(line) for line in _dechunked(said).splitlines()]
        assert status == 200
        assert "".join(line["message"]["content"] for line in lines) == "one two thrée"
        assert [line["done"] for line in lines] == [False] * 3 + [True]
        assert lines[-1]["eval_count"] == 3
        assert running.engine.seen[0].request.max_tokens == 5
        generate = {"model": "smol", "prompt": "x", "stream": False, "system": "s"}
        status, _, said = await ask(running, json.dumps(generate).encode(), "/api/generate")
        assert json.loads(said)["response"] == "one two thrée"
        status, _, said = await ask(running, path="/api/tags", method="GET")
        assert json.loads(said)["models"][0]["name"] == "smol"
        status, _, said = await ask(running, b'{"model":"smol"}', "/api/show")
        assert json.loads(said)["model_info"] == {"general.context_length": 2048}
        running.engine.script = analysis
        ask_for = {"model": "qg://task=summarize", "prompt": "some text", "stream": True}
        status, _, said = await ask(running, json.dumps(ask_for).encode(), "/api/generate")
        assert "about some" in _dechunked(said)


async def test_ollamas_tools_and_images(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("smol", "1", "box", "worker")
        function = {"name": "add", "arguments": '{"a": 1}'}
        yield Chunk(delta={"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]})
        yield finished(work, "tool_calls")

    async with stack(tmp_path, script=script) as running:
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": "2+3?", "images": ["/9j/AAAA", "iVBORw0K"]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
            },
            {"role": "tool", "tool_name": "add", "content": "5"},
        ]
        body = {"model": "smol", "messages": turns, "stream": False}
        status, _, said = await ask(running, json.dumps(body).encode(), "/api/chat")
        assert status == 200
        call = {"function": {"name": "add", "arguments": {"a": 1}}}
        assert json.loads(said)["message"]["tool_calls"] == [call]
        user, assistant, tool = running.engine.seen[0].body["messages"]
        assert [part["type"] for part in user["content"]] == ["text", "image_url", "image_url"]
        assert user["content"][1]["image_url"]["url"] == "data:image/jpeg;base64,/9j/AAAA"
        assert assistant["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
        assert tool["tool_call_id"] == assistant["tool_calls"][0]["id"]
        for name, wrong in (("tool_calls", [{"function": {}}]), ("images", "x"), ("images", [3])):
            spoilt = {**body, "messages": [{"role": "assistant", "content": "", name: wrong}]}
            status, _, said = await ask(running, json.dumps(spoilt).encode(), "/api/chat")
            assert (status, error_of(said)["code"]) == (400, "invalid_request")


async def test_the_rest_of_ollamas_api(tmp_path: Path) -> None:
    async with stack(tmp_path, script=vectors) as running:
        body = b'{"model": "e", "prompt": "abc"}'
        _, _, said = await ask(running, body, "/api/embeddings")
        assert json.loads(said)["embedding"] == [0.5, 3.0]
        _, _, said = await ask(running, b'{"model": "e", "input": ["a", "bc"]}', "/api/embed")
        assert json.loads(said)["embeddings"] == [[0.5, 1.0], [0.5, 2.0]]
        _, _, said = await ask(running, path="/api/ps", method="GET")
        assert [one["name"] for one in json.loads(said)["models"]] == ["smol"]
        status, _, said = await ask(running, b"{}", "/api/pull")
        assert status == 404
        assert "meshctl model" in json.loads(said)["error"]


async def test_vectors_of_a_provider(tmp_path: Path) -> None:
    async def script(work: Work) -> AsyncGenerator[Event, None]:
        yield Begun("e", "1", "cloud", "provider")
        data: list[dict[str, Any]] = [{"embedding": [1.0, 2.0]}, {"embedding": "AACAPwAAAEA="}]
        raw = b"{}" if work.body["input"] == ["bad"] else json.dumps({"data": data}).encode()
        yield finished(work, raw=raw)

    async with stack(tmp_path, script=script) as running:
        _, _, said = await ask(running, b'{"model": "e", "input": ["a", "b"]}', "/api/embed")
        assert json.loads(said)["embeddings"] == [[1.0, 2.0]] * 2
        status, _, said = await ask(running, b'{"model": "e", "input": ["bad"]}', "/api/embed")
        assert (status, error_of(said)["code"]) == (502, "invalid_response")


def _dechunked(said: bytes) -> str:
    out = b""
    while said:
        size, _, said = said.partition(b"\r\n")
        length = int(size, 16)
        out, said = out + said[:length], said[length + 2 :]
    return out.decode()

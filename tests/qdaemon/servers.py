"""Real local HTTP servers that speak as Ollama and vLLM do, and misbehave where a test asks for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]
DIGEST = "ab" * 32


class Scripted:
    """A server whose answers a test may replace; it keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.replace: dict[str, Serve] = {}
        self.gone = asyncio.Event()  # a client hung up in the middle
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def dispatch(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        if request.method == "POST":
            self.bodies.append(await request.json())
        if (replacement := self.replace.get(request.path)) is not None:
            return await replacement(request)
        route = getattr(self, "do_" + request.path.strip("/").replace("/", "_"), None)
        if route is None:
            return web.json_response({"error": "not found"}, status=404)
        answer: web.StreamResponse = await route(request)
        return answer

    async def lines(
        self, request: web.Request, lines: Sequence[str | bytes], *, cut: bool = False
    ) -> web.StreamResponse:
        """Send these lines; with ``cut`` drop the connection instead of ending."""
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write((line.encode() if isinstance(line, str) else line) + b"\n")
        if cut:
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write_eof()
        return response

    async def endless(self, request: web.Request, line: str) -> web.StreamResponse:
        """Send a line again and again until the client hangs up."""
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(line.encode() + b"\n")
                await asyncio.sleep(0.005)
        except ConnectionError:
            self.gone.set()
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return response


class Vllm(Scripted):
    """As vLLM answers."""

    async def do_version(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "0.11.0"})

    async def do_v1_models(self, _request: web.Request) -> web.StreamResponse:
        models = [{"id": "Qwen/Qwen3-8B", "object": "model", "max_model_len": 32768}, {"id": 7}, "x"]
        return web.json_response({"object": "list", "data": models})

    async def do_v1_chat_completions(self, request: web.Request) -> web.StreamResponse:
        deltas = [
            {"role": "assistant", "content": ""},
            {"content": "Hel"},
            {"content": "lo"},
            {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}]},
        ]
        events: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
        ]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
        events.append({"choices": [], "usage": usage})
        lines = [line for event in events for line in (f"data: {json.dumps(event)}", "")]
        return await self.lines(request, [": hello", *lines, "data: [DONE]", ""])

    async def do_v1_embeddings(self, _request: web.Request) -> web.StreamResponse:
        data = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1, 2]}]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 3}})


class Ollama(Scripted):
    """As Ollama answers."""

    async def do_api_version(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "0.12.6"})

    async def do_api_tags(self, _request: web.Request) -> web.StreamResponse:
        model = {
            "name": "qwen3:8b",
            "digest": DIGEST,
            "size": 5_200_000_000,
            "details": {"family": "qwen3", "quantization_level": "Q4_K_M"},
        }
        return web.json_response({"models": [model]})

    async def do_api_show(self, _request: web.Request) -> web.StreamResponse:
        info = {
            "general.architecture": "qwen3",
            "general.parameter_count": 8_190_735_360,
            "qwen3.context_length": 40_960,
        }
        return web.json_response({"model_info": info, "capabilities": ["completion", "tools"]})

    async def do_api_chat(self, request: web.Request) -> web.StreamResponse:
        events: list[dict[str, Any]] = [
            {"message": {"role": "assistant", "content": "Hel"}, "done": False},
            {"message": {"role": "assistant", "content": "lo"}, "done": False},
            {
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": "length",
                "prompt_eval_count": 9,
                "eval_count": 2,
                "prompt_eval_duration": 1_000_000_000,
                "eval_duration": 500_000_000,
            },
        ]
        return await self.lines(request, [json.dumps(event) for event in events])

    async def do_api_embed(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"embeddings": [[1.0, 2.0]], "prompt_eval_count": 3})


@asynccontextmanager
async def serving(server: Scripted) -> AsyncIterator[Scripted]:
    """Run it on a free loopback port."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.dispatch)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    server.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield server
    finally:
        await runner.cleanup()

"""Ollama: its models with their digests, and jobs through its own API.

Ollama keeps the KV cache of a model between requests whoever sent them (it always asks its engine to cache
the prompt), so its level is "declared-none": a client that shares a prefix with an earlier one is answered
sooner. Policy decides who may use it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Final

from qdaemon.runtimes.http_engine import EngineError, HttpEngine, HttpJob, Server, parsed, parsed_event
from qdaemon.runtimes.llama.job import Timing, Usage
from qdaemon.runtimes.openai_compatible import vector_of
from tunnel_proto.messages import ModelState

MODELS_MAX: Final = 1000
SHOWN_MAX: Final = 200
"""Models whose details are asked for; each is a request of its own."""

_OPTIONS: Final = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repeat_penalty",
}
_FINISH: Final = {"stop": "stop", "length": "length", "load": "stop", "unload": "stop"}
_HEX: Final = frozenset("0123456789abcdef")


class OllamaEngine(HttpEngine):
    """One Ollama."""

    kind = "ollama"

    def __init__(self, server: Server, *, name: str, isolation: str = "none", slots: int = 4) -> None:
        super().__init__(server, name=name, isolation=isolation, slots=slots)
        self._details: dict[str, Mapping[str, Any]] = {}  # by digest: these never change

    async def interrogate(self) -> list[ModelState]:
        """Its models as they are now. Raises `EngineError` where it is no Ollama."""
        version = await self.server.get("/api/version")
        if not isinstance(version, dict) or not isinstance(version.get("version"), str):
            raise EngineError("engine_garbage", "this is no Ollama")
        self.build = f"ollama {version['version']}"[:256]
        tags = await self.server.get("/api/tags")
        listed = tags.get("models") if isinstance(tags, dict) else None
        if not isinstance(listed, list):
            raise EngineError("engine_garbage", "GET /api/tags did not list models")
        named = [one for one in listed[:MODELS_MAX] if isinstance(one, dict) and type(one.get("name")) is str]
        return [await self._model(one) for one in named]

    # --- looking

    async def _model(self, one: Mapping[str, Any]) -> ModelState:
        digest = str(one.get("digest", "")).removeprefix("sha256:").lower()
        digest = digest if len(digest) == 64 and set(digest) <= _HEX else ""
        shown = self._details.get(digest)
        if shown is None and len(self._details) < SHOWN_MAX:
            try:
                answer = await self.server.ask("/api/show", {"model": one["name"]})
            except EngineError:
                answer = {}
            shown = answer if isinstance(answer, dict) else {}
            if digest:
                self._details[digest] = shown
        shown = shown or {}
        details = _object(one.get("details"))
        info = _object(shown.get("model_info"))
        arch = str(info.get("general.architecture") or details.get("family") or "")[:64]
        able = shown.get("capabilities")
        able = able if isinstance(able, list) else ["completion"]
        kinds: tuple[str, ...] = ("chat", "completion", "embedding")
        if "embedding" in able and "completion" not in able:
            kinds = ("embedding",)
        return ModelState(
            name=one["name"][:200],
            sha256=digest,
            family=str(details.get("family") or arch)[:256],
            quant=_word(details.get("quantization_level")),
            size=_count(one.get("size")),
            arch=arch if arch.replace("-", "").replace("_", "").isalnum() else "",
            params=_count(info.get("general.parameter_count")),
            context_train=_count(info.get(f"{arch}.context_length")),
            context=_count(info.get(f"{arch}.context_length")),
            kinds=kinds,
            engine="ollama",
            engine_build=self.build,
            state="external",
            isolation=self.isolation,
            slots=self.slots,
        )

    # --- jobs

    async def _run(self, job: HttpJob) -> None:
        start = job.start
        options = {
            theirs: value
            for ours, theirs in _OPTIONS.items()
            if (value := getattr(start.sampling, ours)) is not None
        }
        if start.sampling.stop:
            options["stop"] = list(start.sampling.stop)
        body: dict[str, Any] = {"model": start.model, "options": options}
        if start.response_format is not None:
            body["format"] = (
                "json" if start.response_format == "json" else parsed_schema(start.response_format)
            )
        match start.kind:
            case "embedding":
                await self._embed(job, {"model": start.model, "input": list(start.inputs or ())})
            case "chat":
                body["messages"] = [_message(one) for one in start.messages or ()]
                if start.tools:
                    body["tools"] = list(start.tools)
                await self._stream(job, "/api/chat", body)
            case _:
                if not isinstance(start.prompt, str):
                    raise EngineError(
                        "unsupported", "Ollama takes no token ids", retriable=True, blame="node"
                    )
                await self._stream(job, "/api/generate", {**body, "prompt": start.prompt, "raw": True})

    async def _stream(self, job: HttpJob, path: str, body: dict[str, Any]) -> None:
        called = False
        async with contextlib.aclosing(self.server.lines(path, {**body, "stream": True})) as lines:
            async for line in lines:
                await job.turn()
                if not line.strip():
                    continue
                event = parsed_event(line)
                message = _object(event.get("message"))
                text = message.get("content") if message else event.get("response")
                if isinstance(text, str) and text:
                    job.sink.tokens((), text, None)
                if calls := message.get("tool_calls"):
                    called = True
                    job.sink.delta({"tool_calls": _tool_calls(calls)})
                if event.get("done") is True:
                    reason = _FINISH.get(str(event.get("done_reason", "stop")), "stop")
                    job.sink.done("tool_calls" if called else reason, _usage(event), _timing(event))
                    return
        raise EngineError("engine_lost", "the engine's stream ended before its answer did")

    async def _embed(self, job: HttpJob, body: dict[str, Any]) -> None:
        answer = await self.server.ask("/api/embed", body, seconds=600.0)
        vectors = answer.get("embeddings") if isinstance(answer, dict) else None
        if not isinstance(vectors, list) or len(vectors) != len(body["input"]):
            raise EngineError("engine_garbage", "the engine did not return one embedding for each text")
        job.sink.vectors([vector_of(one) for one in vectors])
        job.sink.done("stop", _usage(answer), _timing(answer))


def parsed_schema(text: str) -> Any:
    """A JSON schema as Ollama takes it. Raises `EngineError`."""
    try:
        return parsed(text.encode())
    except EngineError:
        raise EngineError(
            "invalid_request", "the answer's schema is not JSON", retriable=False, blame="request"
        ) from None


def _message(one: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's message as Ollama's: parts joined, images as base64 of their own."""
    message = {name: one[name] for name in ("role", "tool_calls", "tool_name") if name in one}
    content = one.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        content = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
        urls = [
            _object(part.get("image_url")).get("url", "") for part in parts if part.get("type") == "image_url"
        ]
        if images := [
            url.partition(",")[2] for url in urls if isinstance(url, str) and url.startswith("data:")
        ]:
            message["images"] = images
    message["content"] = content if isinstance(content, str) else ""
    return message


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Ollama's tool calls as OpenAI's: arguments are text there."""
    found = []
    for index, call in enumerate(calls if isinstance(calls, list) else []):
        function = _object(_object(call).get("function"))
        arguments = json.dumps(function.get("arguments", {}), ensure_ascii=False)
        found.append(
            {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": str(function.get("name", "")), "arguments": arguments},
            }
        )
    return found


def _usage(event: Mapping[str, Any]) -> Usage:
    prompt = _count(event.get("prompt_eval_count"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_count(event.get("eval_count")),
        evaluated_tokens=prompt,
    )


def _timing(event: Mapping[str, Any]) -> Timing:
    """Ollama counts in nanoseconds."""
    return Timing(
        prefill_s=_count(event.get("prompt_eval_duration")) / 1e9,
        decode_s=_count(event.get("eval_duration")) / 1e9,
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value.replace("_", "").isalnum() and len(value) < 64 else ""


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 62 else 0

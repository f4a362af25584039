"""Servers that speak OpenAI's API: vLLM, llama-server, LM Studio, SGLang and others, found and used.

Which of them it is shows in paths that only one has; what is not known of a model stays unknown. Their
isolation is what the configuration declares: none of them can be asked.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qdaemon.runtimes.engine import Sink
from qdaemon.runtimes.http_engine import EngineError, HttpEngine, HttpJob, parsed_event
from qdaemon.runtimes.llama.job import Timing, Usage
from tunnel_proto.messages import VECTOR_MAX, JobStart, ModelState

MODELS_MAX: Final = 1000
FINISH: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_SAMPLING: Final = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class OpenAiEngine(HttpEngine):
    """One such server."""

    kind = "openai"

    async def interrogate(self) -> list[ModelState]:
        """Its models as they are now. Raises `EngineError` where it is not such a server."""
        document = await self.server.get("/v1/models")
        listed = document.get("data") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise EngineError("engine_garbage", "GET /v1/models did not list models")
        self.build = await self._brand()
        return [self._model(one) for one in listed[:MODELS_MAX] if isinstance(one, dict) and _named(one)]

    # --- looking

    async def _brand(self) -> str:
        """Which server it is: each has a path that the others lack."""
        try:
            version = await self.server.get("/version")
            if isinstance(version, dict) and isinstance(version.get("version"), str):
                return f"vllm {version['version']}"[:256]
        except EngineError:
            pass
        try:
            props = await self.server.get("/props")
            if isinstance(props, dict) and "default_generation_settings" in props:
                return f"llama-server {props.get('build_info', '')}".strip()[:256]
        except EngineError:
            pass
        return "openai-compatible"

    def _model(self, one: Mapping[str, Any]) -> ModelState:
        context = one.get("max_model_len") or one.get("context_length") or 0
        meta = one.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        name = str(one["id"])
        embeds = "embed" in name.lower() or one.get("type") == "embeddings"
        return ModelState(
            name=name,
            family=name.rpartition("/")[2][:256],
            size=_count(meta.get("size")),
            params=_count(meta.get("n_params")),
            context_train=_count(meta.get("n_ctx_train")),
            context=_count(context),
            kinds=("embedding",) if embeds else ("chat", "completion", "embedding"),
            engine="openai",
            engine_build=self.build,
            state="external",
            isolation=self.isolation,
            slots=self.slots,
        )

    # --- jobs

    async def _run(self, job: HttpJob) -> None:
        match job.start.kind:
            case "embedding":
                await self._embed(job)
            case "chat":
                await self._stream(job, "/v1/chat/completions", chat_body(job.start))
            case _:
                await self._stream(job, "/v1/completions", completion_body(job.start))

    async def _stream(self, job: HttpJob, path: str, body: dict[str, Any]) -> None:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        finish, usage, ended = "", Usage(), False
        async with contextlib.aclosing(self.server.lines(path, body)) as lines:
            async for line in lines:
                await job.turn()
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    ended = True
                    break
                event = parsed_event(data)
                if isinstance(event.get("usage"), dict):
                    usage = usage_of(event["usage"])
                for choice in _objects(event.get("choices"))[:1]:
                    _tell(job.sink, choice)
                    if isinstance(choice.get("finish_reason"), str):
                        finish = choice["finish_reason"]
        if not finish or not (ended or usage.prompt_tokens):
            raise EngineError("engine_lost", "the engine's stream ended before its answer did")
        job.sink.done(finish if finish in FINISH else "stop", usage, Timing())

    async def _embed(self, job: HttpJob) -> None:
        start = job.start
        inputs = list(start.inputs or ())
        answer = await self.server.ask(
            "/v1/embeddings",
            {**_body(start), "model": start.model, "input": inputs, "encoding_format": "float"},
            seconds=600.0,
        )
        data = sorted(
            _objects(answer.get("data") if isinstance(answer, dict) else None),
            key=lambda one: _count(one.get("index")),
        )
        if len(data) != len(inputs):
            raise EngineError("engine_garbage", f"{len(inputs)} texts gave {len(data)} embeddings")
        job.sink.vectors([vector_of(one.get("embedding")) for one in data])
        job.sink.done("stop", usage_of(answer.get("usage")), Timing())


def chat_body(start: JobStart) -> dict[str, Any]:
    """The request as the server gets it: the client's own object, with what this mesh decided put in."""
    body = {**_body(start), "model": start.model, "messages": list(start.messages or ())}
    if start.tools:
        body["tools"] = list(start.tools)
    if start.tool_choice is not None:
        body["tool_choice"] = start.tool_choice
    _put_sampling(body, start)
    return body


def completion_body(start: JobStart) -> dict[str, Any]:
    """The same for a text to continue."""
    prompt = start.prompt if isinstance(start.prompt, str) else list(start.prompt or ())
    body = {**_body(start), "model": start.model, "prompt": prompt}
    _put_sampling(body, start)
    return body


def usage_of(usage: Any) -> Usage:
    """Token counts, nought where the engine does not say."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    prompt = _count(usage.get("prompt_tokens"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=cached,
        evaluated_tokens=max(0, prompt - cached),
    )


def vector_of(value: Any) -> bytes:
    """An embedding as little-endian 32-bit floats. Raises `EngineError`."""
    try:
        if isinstance(value, str):
            data = base64.b64decode(value, validate=True)
            value = struct.unpack(f"<{len(data) // 4}f", data)
        vector = struct.pack(f"<{len(value)}f", *value)
        if not 0 < len(vector) <= VECTOR_MAX or not all(map(math.isfinite, value)):
            raise ValueError("no vector")
    except (TypeError, ValueError, struct.error, binascii.Error, OverflowError):
        raise EngineError("engine_garbage", "the engine sent an embedding that is not numbers") from None
    return vector


def _body(start: JobStart) -> dict[str, Any]:
    dropped = {"stream", "stream_options", "model", "n", "store", "previous_response_id", "metadata", "user"}
    return {name: value for name, value in (start.body or {}).items() if name not in dropped}


def _put_sampling(body: dict[str, Any], start: JobStart) -> None:
    sampling = start.sampling
    for name in _SAMPLING:
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    if sampling.max_tokens is not None:
        body.pop("max_completion_tokens", None)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if start.response_format is None:
        return
    if start.response_format == "json":
        body["response_format"] = {"type": "json_object"}
        return
    try:
        schema = json.loads(start.response_format)
    except ValueError:
        raise EngineError(
            "invalid_request", "the answer's schema is not JSON", retriable=False, blame="request"
        ) from None
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _tell(sink: Sink, choice: Mapping[str, Any]) -> None:
    """One event's news, as text where it is only text."""
    if isinstance(choice.get("text"), str):
        sink.tokens((), choice["text"], None)
        return
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return
    content = delta.get("content")
    more = {name: value for name, value in delta.items() if name not in {"role", "content"} and value}
    if more:
        sink.delta({**more, "content": content} if content else more)
    elif isinstance(content, str) and content:
        sink.tokens((), content, None)


def _objects(value: Any) -> Sequence[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _named(one: Mapping[str, Any]) -> bool:
    return isinstance(one.get("id"), str) and 0 < len(one["id"]) <= 200


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 62 else 0

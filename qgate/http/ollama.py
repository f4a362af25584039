"""Ollama's API for the clients that speak nothing else: its bodies become chat requests, events its lines.

Source: docs/api.md of github.com/ollama/ollama. Only what maps onto a capability is here; models are pulled,
copied and removed with `meshctl model`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from qgate.capability.work import Chunk, Problem
from qgate.governance.directory import App
from qgate.http.bodies import refuse
from qgate.http.chat import as_floats
from qgate.http.desk import Desk, ModelCard
from qgate.http.exchange import dumps, error_object
from qgate.http.intake import model_not_found
from qgate.http.models import cards
from qgate.http.running import Answer, delta_of

VERSION: Final = {"version": "0.12.0"}
"""The version of Ollama whose API this is; clients compare it with what they need."""

_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "repeat_penalty")
_PENALTIES: Final = ("frequency_penalty", "presence_penalty")


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """POST /api/chat as a chat request."""
    chat = _options(body)
    chat["messages"] = body.get("messages")
    if body.get("tools"):
        chat["tools"] = body["tools"]
    return chat


def generate_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """POST /api/generate as a chat request: the model's own template is applied, as Ollama does."""
    for name in ("raw", "context", "images", "suffix"):
        if body.get(name):
            refuse(f"{name} is not supported", name, code="unsupported")
    prompt, system = body.get("prompt"), body.get("system")
    if not isinstance(prompt, str) or not prompt:
        refuse("prompt must be text", "prompt")
    chat = _options(body)
    chat["messages"] = [{"role": "user", "content": prompt}]
    if system:
        chat["messages"].insert(0, {"role": "system", "content": system})
    return chat


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    options = body.get("options") or {}
    if not isinstance(options, dict):
        refuse("options must be an object", "options")
    chat: dict[str, Any] = {"model": body.get("model"), "stream": body.get("stream", True)}
    for name in (*_SAMPLING, *_PENALTIES):
        if options.get(name) is not None:
            chat[name] = options[name]
    longest = options.get("num_predict")
    if isinstance(longest, int) and longest > 0:
        chat["max_tokens"] = longest
    wanted = body.get("format")
    if wanted == "json":
        chat["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, dict):
        schema = {"name": "answer", "schema": wanted}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif wanted:
        refuse("format must be json or a JSON schema", "format")
    return chat


class ChatFace:
    """/api/chat: one JSON object a line."""

    content_type = b"application/x-ndjson"

    def __init__(self, wall: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._clock = clock
        self._began = clock()
        self._wrote = False

    def whole(self, answer: Answer) -> bytes:
        """One object with everything."""
        return dumps(self._last(answer, answer.text, answer.tool_calls))

    def opening(self, answer: Answer) -> bytes:
        """Nothing comes before the first piece."""
        return b""

    def piece(self, answer: Answer, chunk: Chunk) -> bytes:
        """A line."""
        delta = delta_of(chunk.raw) if chunk.raw is not None else chunk.delta
        text = chunk.text
        if delta:
            if chunk.raw is not None:
                answer.deltas.append(delta)
            content = delta.get("content")
            text = content if isinstance(content, str) else text
        if not text:
            return b""
        self._wrote = True
        return dumps({**self._head(answer), **self._said(text, []), "done": False}) + b"\n"

    def closing(self, answer: Answer) -> bytes:
        """The line that says ``done``."""
        text = "" if self._wrote else answer.text
        return dumps(self._last(answer, text, answer.tool_calls)) + b"\n"

    def failing(self, problem: Problem) -> bytes:
        """An object with ``error``."""
        return dumps({"error": error_object(problem)["error"]["message"]}) + b"\n"

    def _head(self, answer: Answer) -> dict[str, Any]:
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat().replace("+00:00", "Z")
        return {"model": answer.model, "created_at": at}

    def _said(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [{"function": call["function"]} for call in calls]
        return {"message": message}

    def _last(self, answer: Answer, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        usage = answer.end.usage
        return {
            **self._head(answer),
            **self._said(text, calls),
            "done": True,
            "done_reason": "length" if answer.finish_reason == "length" else "stop",
            "total_duration": int((self._clock() - self._began) * 1e9),
            "prompt_eval_count": usage.prompt_tokens,
            "eval_count": usage.completion_tokens,
            "qgate": answer.mesh(),
        }


class GenerateFace(ChatFace):
    """/api/generate: the same lines, with ``response`` for ``message``."""

    def _said(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"response": text}


class EmbedFace:
    """/api/embed."""

    def whole(self, answer: Answer) -> bytes:
        """Vectors as lists of floats."""
        finished = answer.end
        vectors = finished.result if isinstance(finished.result, list) else []
        return dumps(
            {
                "model": answer.model,
                "embeddings": [list(as_floats(vector)) for vector in vectors],
                "prompt_eval_count": finished.usage.prompt_tokens,
                "qgate": answer.mesh(),
            }
        )


def tags(desk: Desk, app: App) -> dict[str, Any]:
    """GET /api/tags."""
    return {"models": [_tag(card) for card in cards(desk, app)]}


def show(desk: Desk, app: App, body: Mapping[str, Any]) -> dict[str, Any]:
    """POST /api/show."""
    name = body.get("model") or body.get("name")
    if not isinstance(name, str):
        refuse("model must be a model's name", "model")
    found = next((card for card in cards(desk, app) if card.name == name), None)
    if found is None:
        raise model_not_found(name[:200])
    able = {"chat": "completion", "completion": "completion", "embedding": "embedding"}
    return {
        "details": _details(found),
        "model_info": {"general.context_length": found.context} if found.context else {},
        "capabilities": sorted({able[kind] for kind in found.kinds if kind in able}),
    }


def _tag(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "model": card.name,
        "modified_at": datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z"),
        "size": card.size,
        "digest": card.version,
        "details": _details(card),
    }


def _details(card: ModelCard) -> dict[str, Any]:
    return {
        "format": "gguf",
        "family": card.family,
        "families": [card.family] if card.family else [],
        "parameter_size": f"{card.parameters / 1e6:.0f}M" if card.parameters else "",
        "quantization_level": card.quant,
    }

"""Ollama's API for the clients that speak nothing else: its bodies become chat requests, events its lines.

Source: docs/api.md of github.com/ollama/ollama. Only what maps onto a capability is here; models are pulled,
copied and removed with `meshctl model`. What differs from OpenAI's is translated: a call's arguments are an
object, images stand beside the text, and a tool's answer names its tool, not its call.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from qgate.capability.work import Chunk, Problem
from qgate.governance.directory import App
from qgate.http.bodies import refuse
from qgate.http.chat import vectors_of
from qgate.http.desk import Desk, ModelCard
from qgate.http.exchange import dumps, error_object
from qgate.http.intake import model_not_found
from qgate.http.models import cards
from qgate.http.running import Answer, delta_of

VERSION: Final = {"version": "0.12.0"}
"""The version of Ollama whose API this is; clients compare it with what they need."""

_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "repeat_penalty")
_PENALTIES: Final = ("frequency_penalty", "presence_penalty")
_IMAGES: Final = {"/9j/": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp"}
"""What base64 of an image begins with, by its kind."""


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """POST /api/chat as a chat request."""
    chat = _options(body)
    given = body.get("messages")
    chat["messages"] = _messages(given) if isinstance(given, list) else given
    if body.get("tools"):
        chat["tools"] = body["tools"]
    return chat


def _messages(given: list[Any]) -> list[Any]:
    """Messages as OpenAI says them; what is no message is left to `bodies.check_chat`."""
    told: list[Any] = []
    asked: list[tuple[str, str]] = []  # calls without an answer yet: name and id
    for at, message in enumerate(given):
        if not isinstance(message, dict):
            told.append(message)
            continue
        one = {name: message[name] for name in ("role", "content", "name") if message.get(name) is not None}
        if message.get("images"):
            one["content"] = _with_images(one.get("content"), message["images"], f"messages[{at}].images")
        calls = message.get("tool_calls")
        if calls:
            one["tool_calls"] = [
                _call(call, f"call_{at}_{number}", f"messages[{at}].tool_calls[{number}]")
                for number, call in enumerate(calls if isinstance(calls, list) else [calls])
            ]
            asked += [(call["function"]["name"], call["id"]) for call in one["tool_calls"]]
        if one.get("role") == "tool":
            name = message.get("tool_name") or message.get("name")
            found = next((pair for pair in asked if name in {None, pair[0]}), None)
            if found is not None:
                asked.remove(found)
                one["tool_call_id"] = found[1]
        told.append(one)
    return told


def _call(call: object, call_id: str, param: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        refuse(f"{param} must have a function with a name", param)
    arguments = function.get("arguments")
    spelt = arguments if isinstance(arguments, str) else dumps(arguments or {}).decode()
    return {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": spelt}}


def _with_images(text: object, images: object, param: str) -> list[dict[str, Any]]:
    if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        refuse(f"{param} must be a list of images in base64", param)
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for one in images:
        kind = next((kind for start, kind in _IMAGES.items() if one.startswith(start)), "png")
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{one}"}})
    return parts


def generate_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """POST /api/generate as a chat request: the model's own template is applied, as Ollama does."""
    for name in ("raw", "context", "images", "suffix"):
        if body.get(name):
            refuse(f"{name} is not supported", name, code="unsupported")
    prompt, system = body.get("prompt"), body.get("system")
    if not isinstance(prompt, str) or not prompt:
        refuse("prompt must be text", "prompt", hint="a model is loaded when it is asked for something")
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
        self._first: float | None = None
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
        if self._first is None:
            self._first = self._clock()
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
            message["tool_calls"] = [_called(call["function"]) for call in calls]
        return {"message": message}

    def _last(self, answer: Answer, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        usage = answer.end.usage
        now = self._clock()
        first = self._began if self._first is None else self._first  # not streamed: nobody saw it
        return {
            **self._head(answer),
            **self._said(text, calls),
            "done": True,
            "done_reason": "length" if answer.finish_reason == "length" else "stop",
            "total_duration": int((now - self._began) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int((first - self._began) * 1e9),
            "eval_count": usage.completion_tokens,
            "eval_duration": int((now - first) * 1e9),
            "qgate": answer.mesh(),
        }


def _called(function: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object; text that is none is kept beside it, not lost."""
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"arguments": function["arguments"]}
    return {"function": {"name": function["name"], "arguments": arguments}}


class GenerateFace(ChatFace):
    """/api/generate: the same lines, with ``response`` for ``message``."""

    def _said(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"response": text}


class EmbedFace:
    """/api/embed, and /api/embeddings, which came before it: one text, one vector."""

    def __init__(self, *, single: bool = False) -> None:
        self._single = single

    def whole(self, answer: Answer) -> bytes:
        """Vectors as lists of floats."""
        finished = answer.end
        vectors = [list(vector) for vector in vectors_of(finished)]
        if self._single:
            return dumps({"embedding": vectors[0] if vectors else [], "qgate": answer.mesh()})
        return dumps(
            {
                "model": answer.model,
                "embeddings": vectors,
                "prompt_eval_count": finished.usage.prompt_tokens,
                "qgate": answer.mesh(),
            }
        )


def tags(desk: Desk, app: App) -> dict[str, Any]:
    """GET /api/tags."""
    return {"models": [_tag(card) for card in cards(desk, app)]}


def running(desk: Desk, app: App) -> dict[str, Any]:
    """GET /api/ps: the models that are in memory somewhere."""
    return {"models": [_tag(card) for card in cards(desk, app) if card.state in {"resident", "external"}]}


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

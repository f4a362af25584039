"""A chat in OpenAI's words → a request of Anthropic's Messages API. Pure.

What the API has no words for is refused where leaving it out would change what comes back (several answers,
log probabilities, audio); `seed`, `logit_bias` and the two penalties only nudge and are left out.
A JSON schema becomes a tool that must be called, whose input is then the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from qgate.capability.providers.dialect import UntranslatableError

ANSWER_TOOL: Final = "answer"
"""The tool that stands for a JSON schema."""

_DATA_URL: Final = re.compile(r"data:(image/[a-z.+-]+);base64,(.*)", re.ASCII | re.DOTALL)
_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}


def message_request(
    body: Mapping[str, Any], *, model: str, max_tokens: int, stream: bool
) -> tuple[dict[str, Any], bool]:
    """The request, and whether its answer comes as a call of `ANSWER_TOOL`.

    UntranslatableError for what the API cannot be asked for.
    """
    _refuse(body)
    system, messages = _conversation(body.get("messages"))
    made: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "stream": stream,
    }
    if system:
        made["system"] = "\n\n".join(system)
    if _number(body.get("temperature")):
        made["temperature"] = min(max(float(body["temperature"]), 0.0), 1.0)  # OpenAI's goes up to 2
    for name in ("top_p", "top_k"):
        if _number(body.get(name)):
            made[name] = body[name]
    if body.get("stop"):
        stop = body["stop"]
        made["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    if isinstance(body.get("user"), str):
        made["metadata"] = {"user_id": body["user"]}
    tools = _tools(body.get("tools"))
    if tools:
        made["tools"] = tools
        if choice := _choice(body):
            made["tool_choice"] = choice
    schema = _schema(body.get("response_format"))
    if schema is None:
        return made, False
    if tools:
        raise UntranslatableError("this API takes either tools or a JSON schema, not both")
    made["tools"] = [{"name": ANSWER_TOOL, "description": "Give the answer.", "input_schema": schema}]
    made["tool_choice"] = {"type": "tool", "name": ANSWER_TOOL, "disable_parallel_tool_use": True}
    return made, True


def _refuse(body: Mapping[str, Any]) -> None:
    if body.get("n") not in {None, 1}:
        raise UntranslatableError("this API gives one answer, so n must be 1")
    if body.get("logprobs") or body.get("top_logprobs"):
        raise UntranslatableError("this API gives no log probabilities")
    if "audio" in (body.get("modalities") or ()):
        raise UntranslatableError("this API gives no audio")


def _conversation(messages: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """System texts, and the turns. Neighbours of one role become one turn, as the API wants it."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    if not isinstance(messages, list | tuple):
        raise UntranslatableError("messages is no list")
    for message in messages:
        if not isinstance(message, Mapping):
            raise UntranslatableError("a message is no object")
        role = message.get("role")
        if role in {"system", "developer"}:
            system.append(_plain(message.get("content")))
            continue
        if role == "assistant":
            blocks = _assistant(message)
        elif role == "tool":
            role = "user"
            blocks = [_tool_result(message)]
        elif role == "user":
            blocks = _blocks(message.get("content"))
        else:
            raise UntranslatableError(f"this API has no role {str(role)[:40]!r}")
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise UntranslatableError("there is no message of a user")
    return [text for text in system if text], turns


def _assistant(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    blocks = _blocks(message.get("content"))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        try:
            given = json.loads(function.get("arguments") or "{}")
        except ValueError:
            raise UntranslatableError("the arguments of a tool call are not JSON") from None
        blocks.append(
            {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given}
        )
    return blocks


def _tool_result(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "tool_result",
        "tool_use_id": message.get("tool_call_id"),
        "content": _blocks(message.get("content")),
    }


def _blocks(content: Any) -> list[dict[str, Any]]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Iterable) or isinstance(content, Mapping):
        raise UntranslatableError("a message's content is neither text nor a list")
    return [_part(part) for part in content]


def _part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return {"type": "text", "text": part.get("text") or ""}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal") or ""}
    if kind == "image_url":
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, Mapping) else given
        if isinstance(url, str) and (found := _DATA_URL.fullmatch(url)):
            source = {"type": "base64", "media_type": found[1], "data": found[2]}
        elif isinstance(url, str) and url.startswith("https://"):
            source = {"type": "url", "url": url}
        else:
            raise UntranslatableError("an image must be a data: or https: URL")
        return {"type": "image", "source": source}
    raise UntranslatableError(f"this API takes no content of the type {str(kind)[:40]!r}")


def _plain(content: Any) -> str:
    return "".join(block.get("text", "") for block in _blocks(content))


def _tools(tools: Any) -> list[dict[str, Any]]:
    made = []
    for tool in tools or ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise UntranslatableError("only tools of the type function can be passed on")
        one = {"name": function.get("name"), "input_schema": function.get("parameters") or {"type": "object"}}
        if function.get("description"):
            one["description"] = function["description"]
        made.append(one)
    return made


def _choice(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("tool_choice")
    choice: dict[str, Any] = {}
    if isinstance(given, str) and given in _CHOICES:
        choice = {"type": _CHOICES[given]}
    elif isinstance(given, Mapping):
        choice = {"type": "tool", "name": (given.get("function") or {}).get("name")}
    if body.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return choice


def _schema(wanted: Any) -> dict[str, Any] | None:
    """The schema that the answer must follow; None where plain text will do."""
    if not isinstance(wanted, Mapping) or wanted.get("type") in {None, "text"}:
        return None
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    schema = (wanted.get("json_schema") or {}).get("schema")
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        raise UntranslatableError("for this API a JSON schema must describe an object")
    return dict(schema)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

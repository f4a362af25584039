"""/v1/responses: OpenAI's newer API, stateless. Its body becomes a chat's, a chat's events become its own.

What would need a memory of earlier requests (``store``, ``previous_response_id``, ``conversation``) and the
tools that OpenAI runs itself are refused with a clear error; everything else passes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from qgate.capability.work import Chunk, Problem, Usage
from qgate.http.bodies import check_format, refuse
from qgate.http.exchange import EVENTS, dumps, error_object
from qgate.http.running import Answer, delta_of, merged_tool_calls

_STATEFUL: Final = ("previous_response_id", "conversation", "prompt")
_TAKEN: Final = frozenset(
    {
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "store",
        "background",
        "include",
        "metadata",
        "truncation",
        "reasoning",
        "max_tool_calls",
        *_STATEFUL,
    }
)
_PARTS: Final = frozenset({"input_text", "output_text", "text"})


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that a response request means. Raises `Problem` for what cannot be meant here."""
    if body.get("store"):
        _stateless("store", "send store: false; nothing is kept here")
    if body.get("background"):
        _stateless("background", "wait for the answer, or stream it")
    for name in _STATEFUL:
        if body.get(name) is not None:
            _stateless(name, "send the whole conversation as input")
    chat = {name: value for name, value in body.items() if name not in _TAKEN}
    chat["messages"] = _messages(body)
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            refuse("tools must be a list of objects", "tools")
        if tools:
            chat["tools"] = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            refuse("tool_choice may name a function only", "tool_choice", code="unsupported")
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif choice is not None and tools:
        chat["tool_choice"] = choice
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    text = body.get("text")
    if text is not None:
        if not isinstance(text, dict):
            refuse("text must be an object", "text")
        chat.update(_format(text.get("format")))
    return chat


def _stateless(param: str, hint: str) -> NoReturn:
    refuse(
        f"{param} is not supported: this endpoint keeps nothing between two requests",
        param,
        code="unsupported",
        hint=hint,
    )


def _format(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, dict) and given.get("type") == "json_schema" and "schema" in given:
        given = {"type": "json_schema", "json_schema": {k: v for k, v in given.items() if k != "type"}}
    check_format(given, "text.format")
    return {"response_format": given}


def _tool(tool: object, param: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        refuse(f"{param}: only tools of the type function are served here", param, code="unsupported")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            refuse("instructions must be text", "instructions")
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        refuse("input must be text or a list of items", "input")
    for at, item in enumerate(given):
        messages.append(_message(item, f"input[{at}]"))
    return messages


def _message(item: object, param: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        refuse(f"{param} must be an object", param)
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind != "message":
        refuse(f"{param}.type is not served here", f"{param}.type", code="unsupported")
    return {"role": item.get("role"), "content": _content(item.get("content"), param)}


def _content(content: object, param: str) -> object:
    if not isinstance(content, list):
        return content
    parts: list[object] = []
    for part in content:
        if isinstance(part, dict) and part.get("type") in _PARTS:
            parts.append({"type": "text", "text": part.get("text")})
        elif isinstance(part, dict) and part.get("type") == "input_image":
            parts.append({"type": "image_url", "image_url": {"url": part.get("image_url")}})
        else:
            refuse(f"{param}.content holds a part that is not served here", param, code="unsupported")
    if all(isinstance(part, dict) and part.get("type") == "text" for part in parts) and len(parts) == 1:
        return parts[0]["text"]  # type: ignore[index]
    return parts


class ResponseFace:
    """A `response` object, whole or as that API's events."""

    content_type = EVENTS

    def __init__(self, body: Mapping[str, Any], created: int) -> None:
        self._body = body
        self._created = created
        self._number = 0
        self._texts: list[str] = []
        self._deltas: list[Mapping[str, Any]] = []

    # --- whole

    def whole(self, answer: Answer) -> bytes:
        """A complete `response`."""
        output = self._output(answer, answer.text, answer.tool_calls)
        return dumps(self._document(answer, output, answer.end.usage))

    # --- streamed

    def opening(self, answer: Answer) -> bytes:
        """The response as it begins; its message begins with its first text, for there may be none."""
        response = self._document(answer, [], None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _message_begins(self, answer: Answer) -> bytes:
        item = self._text_item(answer, "", "in_progress")
        part = {"item_id": item["id"], "output_index": 0, "content_index": 0, "part": _part("")}
        added = self._event("response.output_item.added", output_index=0, item={**item, "content": []})
        return added + self._event("response.content_part.added", **part)

    def piece(self, answer: Answer, chunk: Chunk) -> bytes:
        """More text; pieces of tool calls are kept until they are whole."""
        delta = delta_of(chunk.raw) if chunk.raw is not None else chunk.delta
        text = chunk.text
        if delta:
            if delta.get("tool_calls"):
                self._deltas.append(delta)
            content = delta.get("content")
            text = content if isinstance(content, str) else text
        if not text:
            return b""
        begins = b"" if self._texts else self._message_begins(answer)
        self._texts.append(text)
        return begins + self._event(
            "response.output_text.delta",
            item_id=self._item_id(answer, "msg"),
            output_index=0,
            content_index=0,
            delta=text,
            logprobs=[],
        )

    def closing(self, answer: Answer) -> bytes:
        """What is whole now, and the complete response."""
        out = b"" if self._texts or self._deltas else self.piece(answer, Chunk(text=answer.text))
        text = "".join(self._texts)
        output = self._output(answer, text, merged_tool_calls(self._deltas))
        for at, item in enumerate(output):
            ends = self._message_ends if item["type"] == "message" else self._call_comes
            out += ends(answer, item, at)
        response = self._document(answer, output, answer.end.usage)
        name = "response.incomplete" if response["status"] == "incomplete" else "response.completed"
        return out + self._event(name, response=response)

    def _message_ends(self, answer: Answer, item: dict[str, Any], at: int) -> bytes:
        text = item["content"][0]["text"]
        place = {"item_id": item["id"], "output_index": at, "content_index": 0}
        return (
            (b"" if self._texts else self._message_begins(answer))
            + self._event("response.output_text.done", **place, text=text, logprobs=[])
            + self._event("response.content_part.done", **place, part=_part(text))
            + self._event("response.output_item.done", output_index=at, item=item)
        )

    def _call_comes(self, answer: Answer, call: dict[str, Any], at: int) -> bytes:
        del answer
        place = {"item_id": call["id"], "output_index": at}
        told = {"name": call["name"], "arguments": call["arguments"]}
        begun = {**call, "arguments": "", "status": "in_progress"}
        return (
            self._event("response.output_item.added", output_index=at, item=begun)
            + self._event("response.function_call_arguments.delta", **place, delta=call["arguments"])
            + self._event("response.function_call_arguments.done", **place, **told)
            + self._event("response.output_item.done", output_index=at, item=call)
        )

    def failing(self, problem: Problem) -> bytes:
        """An error event; no response.completed follows."""
        error = error_object(problem)["error"]
        said = {name: error[name] for name in ("code", "message", "param")}
        return self._event("error", **said, error=error)  # SDKs raise what is under ``error``

    # --- parts

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        data = dumps({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _item_id(self, answer: Answer, prefix: str) -> str:
        return f"{prefix}_{answer.work.id.removeprefix('req_')}"

    def _text_item(self, answer: Answer, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id(answer, "msg"),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_part(text)],
        }

    def _call_items(self, answer: Answer, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{self._item_id(answer, 'fc')}_{at}",
                "type": "function_call",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
                "status": "completed",
            }
            for at, call in enumerate(calls)
        ]

    def _output(self, answer: Answer, text: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        items = self._call_items(answer, calls)
        if text or not items:
            items.insert(0, self._text_item(answer, text, "completed"))
        return items

    def _document(self, answer: Answer, output: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        body = self._body
        done = usage is not None
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}
        why = cut.get(answer.finish_reason) if done else None
        document: dict[str, Any] = {
            "id": self._item_id(answer, "resp"),
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if not done else "incomplete" if why else "completed",
            "error": None,
            "incomplete_details": {"reason": why} if why else None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": answer.model,
            "output": output,
            "parallel_tool_calls": bool(body.get("parallel_tool_calls", True)),
            "previous_response_id": None,
            "store": False,
            "temperature": body.get("temperature"),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [_shown(tool) for tool in body.get("tools") or ()],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }
        if done:
            document["qgate"] = answer.mesh()
        return document


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"strict": None, "parameters": None, **tool}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

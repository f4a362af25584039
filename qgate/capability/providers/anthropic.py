"""Anthropic's Messages API for requests in OpenAI's words: the events and the body of an answer. Pure.

https://docs.anthropic.com/en/api/messages and .../messages-streaming; the request's way there is
`anthropic_request`. An answer comes back in OpenAI's shape, so that a client need not know where it ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from qgate.capability.providers.anthropic_request import ANSWER_TOOL, message_request
from qgate.capability.providers.catalogue import Provider, ProviderModel
from qgate.capability.providers.dialect import (
    Call,
    Dialect,
    InvalidAnswerError,
    Piece,
    StreamedError,
    UntranslatableError,
    whole,
)
from qgate.capability.work import Attempt, Chunk, Usage

VERSION: Final = "2023-06-01"
FINISH: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class AnthropicDialect(Dialect):
    """One call of the Messages API."""

    def __init__(self, attempt: Attempt, provider: Provider) -> None:
        super().__init__(attempt, provider)
        self._reason: str | None = None
        self._prompt: Mapping[str, Any] = {}
        self._completion: int | None = None
        self._blocks: dict[int, str] = {}
        self._tools: dict[int, int] = {}
        self._as_text = False
        self._said = 0
        self._id = "chatcmpl-" + attempt.work.id.removeprefix("req_")
        self._created = int(attempt.work.received_at)

    def call(self, key: str) -> Call:
        """What is sent."""
        work = self.attempt.work
        if work.kind != "chat":
            raise UntranslatableError(f"{self.provider.name} answers chats, not a {work.kind}")
        body, self._as_text = message_request(
            work.body,
            model=self.model,
            max_tokens=self.most,
            stream=work.stream,
        )
        headers = {"anthropic-version": VERSION, **({"x-api-key": key} if key else {})}
        return Call(endpoint(self.provider.url, "messages"), headers, body)

    # --- a stream

    def event(self, name: str, data: bytes) -> Piece | None:
        """One event of the stream, as a chunk in OpenAI's shape."""
        del name  # each event says its type itself
        document = whole(data)
        kind = document.get("type")
        if kind == "error":
            raise StreamedError(document.get("error"))
        if kind == "message_start":
            return self._started(_object(document, "message"))
        if kind == "content_block_start":
            return self._block(_index(document), _object(document, "content_block"))
        if kind == "content_block_delta":
            return self._delta(_index(document), _object(document, "delta"))
        if kind == "message_delta":
            return self._ending(_object(document, "delta"), document.get("usage"))
        if kind == "message_stop":
            self.complete = True
            return self._usage_chunk()
        return None  # ping, content_block_stop, and what the API may add

    def ended(self) -> tuple[str, Usage] | None:
        """How the stream ended; None before `message_stop`."""
        if not self.complete or self._reason is None:
            return None
        return self._reason, self._usage()

    def _started(self, message: Mapping[str, Any]) -> Piece:
        if isinstance(message.get("model"), str):
            self.version = message["model"]
        usage = message.get("usage")
        self._prompt = usage if isinstance(usage, dict) else {}
        return self._chunk({"role": "assistant", "content": ""})

    def _block(self, index: int, block: Mapping[str, Any]) -> Piece | None:
        kind = str(block.get("type"))
        if kind == "tool_use" and self._as_text:
            kind = "text"
        self._blocks[index] = kind
        if kind == "text":
            text = block.get("text")
            return self._text(text) if isinstance(text, str) and text else None
        if kind == "tool_use":
            number = self._tools[index] = len(self._tools)
            function = {"name": str(block.get("name") or ""), "arguments": ""}
            call = {"index": number, "id": str(block.get("id") or ""), "type": "function"}
            return self._chunk({"tool_calls": [{**call, "function": function}]})
        return None

    def _delta(self, index: int, delta: Mapping[str, Any]) -> Piece | None:
        kind = delta.get("type")
        if kind == "text_delta":
            return self._text(_text(delta, "text"))
        if kind == "input_json_delta":
            piece = _text(delta, "partial_json")
            if self._blocks.get(index) == "text":
                return self._text(piece)
            if index not in self._tools:
                raise InvalidAnswerError("a piece of a tool call comes before its begin")
            self._said += len(piece.encode("utf-8", "surrogatepass"))
            call = {"index": self._tools[index], "function": {"arguments": piece}}
            return self._chunk({"tool_calls": [call]})
        if kind == "thinking_delta":
            piece = _text(delta, "thinking")
            self._said += len(piece.encode("utf-8", "surrogatepass"))
            return self._chunk({"reasoning_content": piece})
        return None  # signatures and citations have no place in OpenAI's shape

    def _ending(self, delta: Mapping[str, Any], usage: Any) -> Piece | None:
        if isinstance(usage, dict):
            self._completion = _count(usage.get("output_tokens"))
            self._prompt = {**self._prompt, **{k: v for k, v in usage.items() if k != "output_tokens"}}
        reason = delta.get("stop_reason")
        if not isinstance(reason, str):
            return None
        self._reason = self._finish(reason)
        return self._chunk({}, finish=self._reason)

    def _usage_chunk(self) -> Piece | None:
        options = self.attempt.work.body.get("stream_options")
        if not (isinstance(options, Mapping) and options.get("include_usage")):
            return None
        document = {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": _openai_usage(self._usage()),
        }
        return Piece(Chunk(raw=_bytes(document)))

    def _text(self, text: str) -> Piece:
        self._said += len(text.encode("utf-8", "surrogatepass"))
        return self._chunk({"content": text}, text=text)

    def _chunk(self, delta: dict[str, Any], *, text: str = "", finish: str | None = None) -> Piece:
        document = {
            **self._head("chat.completion.chunk"),
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        }
        return Piece(Chunk(text=text, delta=delta, raw=_bytes(document)))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.version}

    def _usage(self) -> Usage:
        bound = self.most_used(self._said)
        prompt, cached = _prompt(self._prompt)
        completion = bound.completion_tokens if self._completion is None else self._completion
        if not self._prompt:
            prompt = bound.prompt_tokens
        return Usage(prompt, completion, cached, prompt - cached)

    def _finish(self, reason: str) -> str:
        if self._as_text and reason == "tool_use":
            return "stop"
        return FINISH.get(reason, "stop")

    # --- a whole answer

    def answer(self, body: bytes) -> tuple[str, Usage, Any]:
        """Read a message that was not streamed."""
        document = self._read(body)
        usage = document.get("usage")
        if isinstance(usage, dict):
            prompt, cached = _prompt(usage)
            used = Usage(prompt, _count(usage.get("output_tokens")), cached, prompt - cached)
        else:
            used = self.most_used(len(body))
        reason = document.get("stop_reason")
        return self._finish(reason if isinstance(reason, str) else "end_turn"), used, None

    def whole_answer(self, body: bytes) -> bytes:
        """The message as a `chat.completion`."""
        reason, usage, _ = self.answer(body)
        text: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for block in self._read(body)["content"]:
            kind = block.get("type")
            if kind == "text":
                text.append(_text(block, "text"))
            elif kind == "tool_use" and block.get("name") == ANSWER_TOOL and self._as_text:
                text.append(json.dumps(block.get("input"), ensure_ascii=False))
            elif kind == "tool_use":
                function = {
                    "name": str(block.get("name") or ""),
                    "arguments": json.dumps(block.get("input") or {}, ensure_ascii=False),
                }
                calls.append({"id": str(block.get("id") or ""), "type": "function", "function": function})
            elif kind == "thinking":
                thoughts.append(_text(block, "thinking"))
        message: dict[str, Any] = {"role": "assistant", "content": "".join(text) if text else None}
        message["refusal"] = None
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return _bytes({**self._head("chat.completion"), "choices": [choice], "usage": _openai_usage(usage)})

    def _read(self, body: bytes) -> dict[str, Any]:
        document = whole(body)
        if document.get("type") == "error":
            raise StreamedError(document.get("error"))
        content = document.get("content")
        if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
            raise InvalidAnswerError("it has no content")
        if isinstance(document.get("model"), str):
            self.version = document["model"]
        return document


def endpoint(url: str, what: str) -> str:
    """The address of one of the API's calls; `url` may or may not end with /v1."""
    return f"{url}/{what}" if url.endswith("/v1") else f"{url}/v1/{what}"


def models_of(document: Any) -> list[ProviderModel]:
    """The models that GET /v1/models names."""
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise InvalidAnswerError("the list of models has no data")
    return [
        ProviderModel(
            one["id"],
            context=_count(one.get("max_input_tokens")),
            max_output=_count(one.get("max_tokens")),
        )
        for one in data
        if isinstance(one, dict) and isinstance(one.get("id"), str) and 0 < len(one["id"]) <= 200
    ]


def _prompt(usage: Mapping[str, Any]) -> tuple[int, int]:
    """All tokens of the prompt, and those among them that were kept: the API counts the three apart."""
    cached = _count(usage.get("cache_read_input_tokens"))
    written = _count(usage.get("cache_creation_input_tokens"))
    return _count(usage.get("input_tokens")) + cached + written, cached


def _openai_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    if not isinstance(value, dict):
        raise InvalidAnswerError(f"an event has no {name}")
    return value


def _index(document: Mapping[str, Any]) -> int:
    index = document.get("index")
    if not isinstance(index, int) or isinstance(index, bool):
        raise InvalidAnswerError("an event names no block")
    return index


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise InvalidAnswerError(f"an event has no {name}")
    return value


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")

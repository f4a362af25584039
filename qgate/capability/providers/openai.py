"""The OpenAI-compatible dialect: requests pass as they are but for the model's name and a bound. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

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

PATHS: Final[Mapping[str, str]] = {
    "chat": "/chat/completions",
    "completion": "/completions",
    "embedding": "/embeddings",
}
_DONE: Final = b"[DONE]"
_NOT_FOR_TEXT: Final = (
    "audio",
    "dall-e",
    "image",
    "moderation",
    "realtime",
    "rerank",
    "sora",
    "transcribe",
    "tts",
    "whisper",
)
_SURCHARGED: Final = ("audio", "prediction", "web_search_options")
_OWN_HOSTS: Final = ("api.openai.com", ".openai.azure.com")


class OpenAIDialect(Dialect):
    """One call of an OpenAI-compatible API."""

    def __init__(self, attempt: Attempt, provider: Provider) -> None:
        super().__init__(attempt, provider)
        options = attempt.work.body.get("stream_options")
        self._usage_wanted = isinstance(options, Mapping) and bool(options.get("include_usage"))
        self._finished: str | None = None
        self._usage: Usage | None = None
        self._said = 0

    def call(self, key: str) -> Call:
        """What is sent."""
        work = self.attempt.work
        body = dict(work.body)
        body["model"] = self.model
        refuse_surcharges(body)
        if work.kind != "embedding":
            bound(body, self.most, modern=work.kind == "chat" and is_openai(self.provider.url))
        if work.kind != "embedding":
            body["stream"] = work.stream
            if work.stream:
                # Without it nobody is told what the answer cost.
                given = body.get("stream_options")
                body["stream_options"] = {
                    **(given if isinstance(given, Mapping) else {}),
                    "include_usage": True,
                }
            else:
                body.pop("stream_options", None)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return Call(self.provider.url + PATHS[work.kind], headers, body)

    def event(self, name: str, data: bytes) -> Piece | None:
        """One event of the stream."""
        del name
        if data == _DONE:
            self.complete = True
            return None
        document = whole(data)
        if document.get("error"):
            raise StreamedError(document["error"])
        if isinstance(document.get("model"), str):
            self.version = document["model"]
        if isinstance(document.get("usage"), dict):
            self._usage = usage_of(document["usage"])
        choices = document.get("choices")
        if not isinstance(choices, list):
            raise InvalidAnswerError("a chunk has no list of choices")
        text, delta = "", None
        for choice in choices:
            if not isinstance(choice, dict):
                raise InvalidAnswerError("a choice is no object")
            if isinstance(choice.get("finish_reason"), str) and choice.get("index", 0) in {0, None}:
                self._finished = choice["finish_reason"]
            given = choice.get("delta")
            piece = given.get("content") if isinstance(given, dict) else choice.get("text")
            if isinstance(given, dict):
                self._said += sum(_size(value) for value in given.values())
                delta = given if delta is None else delta
            elif isinstance(piece, str):
                self._said += _size(piece)
            if isinstance(piece, str):
                text = text or piece
        if not choices and not self._usage_wanted:
            return None
        return Piece(Chunk(text=text, delta=delta, raw=data))

    def ended(self) -> tuple[str, Usage] | None:
        """How the stream ended; None where its end was not reached.

        Some servers leave `[DONE]` out; a finish reason and an orderly end of the body say as much.
        """
        if self._finished is None:
            return None
        return self._finished, self._usage or self.most_used(self._said)

    def answer(self, body: bytes) -> tuple[str, Usage, Any]:
        """Read an answer that was not streamed: why it ended, what it used, an embedding's vectors."""
        document = whole(body)
        if document.get("error"):
            raise StreamedError(document["error"])
        if isinstance(document.get("model"), str):
            self.version = document["model"]
        given = document.get("usage")
        if self.attempt.work.kind == "embedding":
            data = document.get("data")
            if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
                raise InvalidAnswerError("it has no list of embeddings")
            usage = usage_of(given) if isinstance(given, dict) else self.most_used(0)
            return "stop", usage, [one.get("embedding") for one in data]
        choices = document.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise InvalidAnswerError("it has no choices")
        reason = choices[0].get("finish_reason")
        usage = usage_of(given) if isinstance(given, dict) else self.most_used(len(body))
        return (reason if isinstance(reason, str) else "stop"), usage, None


def bound(body: dict[str, Any], most: int, *, modern: bool) -> None:
    """Let `body` ask for at most `most` tokens, under every name that it uses: a server may heed either."""
    given = [name for name in ("max_completion_tokens", "max_tokens") if name in body]
    for name in given or ["max_completion_tokens" if modern else "max_tokens"]:
        body[name] = most


def refuse_surcharges(body: Mapping[str, Any]) -> None:
    """UntranslatableError for what is charged beside the tokens: no reservation would hold it."""
    named = [name for name in _SURCHARGED if body.get(name)]
    if body.get("service_tier") == "priority":
        named.append("service_tier")
    if named:
        raise UntranslatableError(f"{named[0]} costs more than the price of its tokens")


def is_openai(url: str) -> bool:
    """Whether OpenAI itself answers there: its newer models refuse `max_tokens`."""
    host = urlsplit(url).hostname or ""
    return any(host == own or (own.startswith(".") and host.endswith(own)) for own in _OWN_HOSTS)


def usage_of(given: Mapping[str, Any]) -> Usage:
    """OpenAI's usage object. What is no count is 0."""
    details = given.get("prompt_tokens_details")
    prompt = _count(given.get("prompt_tokens"))
    cached = min(prompt, _count(details.get("cached_tokens")) if isinstance(details, Mapping) else 0)
    return Usage(prompt, _count(given.get("completion_tokens")), cached, prompt - cached)


def models_of(document: Any) -> list[ProviderModel]:
    """The models that GET /models names, without those that are not for text."""
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise InvalidAnswerError("the list of models has no data")
    found = []
    for one in data:
        name = one.get("id") if isinstance(one, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= 200:
            continue
        lowered = name.lower()
        if any(word in lowered for word in _NOT_FOR_TEXT):
            continue
        kinds = frozenset({"embedding"}) if "embed" in lowered else frozenset({"chat"})
        found.append(ProviderModel(name, kinds, context=_count(one.get("max_model_len"))))
    return found


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return 0 if value is None else len(json.dumps(value))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

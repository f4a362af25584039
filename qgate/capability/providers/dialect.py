"""What the executor needs of an API's dialect. Pure: a dialect builds requests and reads answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qgate.capability.finops.bounds import answer_bound, prompt_bound
from qgate.capability.providers.catalogue import Provider
from qgate.capability.work import Attempt, Chunk, Usage
from tunnel_proto.errors import MeshError


class InvalidAnswerError(ValueError):
    """An answer is not what the API promises; the message says what is wrong and quotes nothing of it."""


class StreamedError(Exception):
    """The API told of an error in an answer whose status said that all was well."""

    def __init__(self, error: Any) -> None:
        super().__init__("an error within an answer")
        self.error = error


class UntranslatableError(MeshError):
    """The request asks for something that this API has no words for."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. `headers` hold the key."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event gives to the client."""

    chunk: Chunk


class Dialect(ABC):
    """One attempt in an API's words: the request, then its events or its body.

    `complete` becomes true when the stream's own end was seen; `version` is the model as the API names it;
    `most` is the most tokens that the answer may have.
    """

    def __init__(self, attempt: Attempt, provider: Provider) -> None:
        self.attempt = attempt
        self.provider = provider
        self.model = attempt.candidate.version or attempt.candidate.model
        self.version = self.model
        self.complete = False
        policy = attempt.work.app.policy
        # What was reserved: the same function of the same facts.
        self.most = answer_bound(
            attempt.work.body,
            attempt.work.request.max_tokens,
            policy.max_tokens if policy is not None else None,
            attempt.max_tokens,
        )

    @abstractmethod
    def call(self, key: str) -> Call:
        """What is sent. UntranslatableError where the API cannot be asked for it."""

    @abstractmethod
    def event(self, name: str, data: bytes) -> Piece | None:
        """One event of the stream. Raises InvalidAnswerError and StreamedError."""

    @abstractmethod
    def ended(self) -> tuple[str, Usage] | None:
        """The finish reason and the usage once the stream is over; None where it was cut short."""

    @abstractmethod
    def answer(self, body: bytes) -> tuple[str, Usage, Any]:
        """Finish reason, usage and result of an answer that was not streamed. Raises like `event`."""

    def whole_answer(self, body: bytes) -> bytes:
        """The body in OpenAI's words."""
        return body

    def most_used(self, said: int) -> Usage:
        """The most that an answer of `said` bytes can have used, where the API does not say what it did."""
        prompt = prompt_bound(self.attempt.work.body)
        return Usage(prompt, min(said, self.most), 0, prompt)


def whole(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises InvalidAnswerError."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidAnswerError("it is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidAnswerError("it is no JSON object")
    return document

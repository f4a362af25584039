"""What goes to a worker process and comes back: frames of msgpack over a socket pair, both ways in batches.

A frame is a big-endian u32 length and a msgpack array. To the worker:
``[[number, task, options, texts], ...]``; from it: ``[[number, outcome, value], ...]`` with the outcome "ok"
(value: the result), "unsuited" (value: [message, hint]) or "failed" (value: the exception's class). The
first frame from it is ``[[0, "ready", version]]``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import msgpack

from qgate.capability.nlp.unsuited import Unsuited

ENGINE_VERSION: Final = "1"
FRAME_MAX: Final = 256 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")

READY: Final = "ready"
OK: Final = "ok"
UNSUITED: Final = "unsuited"
FAILED: Final = "failed"

Run = Callable[[list[str], Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One request as a worker sees it: a task of `TASK_NAMES`, options by key of the request, texts."""

    task: str
    texts: tuple[str, ...] = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Characters of the texts."""
        return sum(map(len, self.texts))


def pack(message: list[Any]) -> bytes:
    """One frame. A lone surrogate, which no UTF-8 holds, must have been refused before."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Bytes to messages, as they arrive."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """The messages that ``data`` completes. Raises ValueError for what is no frame."""
        self._held += data
        at = 0
        while len(self._held) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._held, at)
            if size > FRAME_MAX:
                raise ValueError("a frame is longer than any of ours")
            end = at + _LENGTH.size + size
            if len(self._held) < end:
                break
            message = msgpack.unpackb(
                memoryview(self._held)[at + _LENGTH.size : end], raw=False, strict_map_key=False
            )
            if not isinstance(message, list):
                raise ValueError("a frame holds no list")
            yield message
            at = end
        del self._held[:at]


def perform(task: str, options: Mapping[str, Any], texts: list[str]) -> Any:
    """Do one job. For embed a list of float32 bytes; else one text's result, or a list of them."""
    if task == "embed":
        from qgate.capability.nlp.vectors import embed

        return embed(texts)
    if task == "similarity":
        from qgate.capability.nlp.vectors import similarity

        return similarity(texts)
    single = _SINGLE.get(task)
    if single is None:
        raise Unsuited(f"the gate's own engine has no task {task!r}")
    return [single(text, options) for text in texts]


def _summarize(text: str, options: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.summary import summarize

    return summarize(
        text,
        sentences=options.get("sentences"),
        most_words=options.get("words"),
        language=options.get("language"),
    )


def _keywords(text: str, options: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.keywords import keywords

    return keywords(text, language=options.get("language"))


def _language(text: str, _: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.language import language

    return language(text)


def _sentiment(text: str, _: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.sentiment import sentiment

    return sentiment(text)


def _entities(text: str, options: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.entities import entities

    return entities(text, language=options.get("language"))


def _redact(text: str, options: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.redaction import redact

    return redact(text, language=options.get("language"))


def _classify(text: str, options: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.classification import classify

    return classify(text, list(options.get("labels", ())))


def _sentences(text: str, _: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.counts import sentences

    return sentences(text)


def _tokens(text: str, _: Mapping[str, Any]) -> Any:
    from qgate.capability.nlp.counts import tokens

    return tokens(text)


_SINGLE: Final[Mapping[str, Callable[[str, Mapping[str, Any]], Any]]] = MappingProxyType(
    {
        "summarize": _summarize,
        "keywords": _keywords,
        "language": _language,
        "sentiment": _sentiment,
        "entities": _entities,
        "redact": _redact,
        "classify": _classify,
        "sentences": _sentences,
        "tokens": _tokens,
    }
)
TASK_NAMES: Final = frozenset(_SINGLE) | {"embed", "similarity"}

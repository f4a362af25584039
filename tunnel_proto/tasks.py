"""The tasks that a `qg://` request may name: which keys mean something for each, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_PLACEMENT: Final = frozenset(
    {"task", "prefer", "model", "deadline", "budget", "pool", "worker", "data", "isolation"}
)
"""Where and when to run: good for every task."""
_GENERATION: Final = frozenset({"max_tokens", "temperature", "seed", "reuse", "move"})
"""How a model writes: good where a model may do the task by writing."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of work.

    ``kind`` is how the work travels: "chat", "completion", "embedding" or "analysis". ``keys`` are those of a
    request that mean something for it, ``required`` those it cannot do without. ``result`` is a line about
    what comes back; ``instruction`` is the system prompt that a chat model gets when a model does the task,
    with ``{language}``, ``{labels}``, ``{length}`` and ``{schema}`` to be filled from the request.
    """

    name: str
    kind: str
    keys: frozenset[str]
    result: str
    instruction: str = ""
    required: frozenset[str] = frozenset()


def _task(
    name: str,
    kind: str,
    result: str,
    instruction: str = "",
    *,
    own: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    writes: bool = True,
) -> Task:
    keys = _PLACEMENT | frozenset(own) | frozenset(required) | (_GENERATION if writes else frozenset())
    return Task(name, kind, keys, result, instruction, frozenset(required))


_ALL: Final = (
    _task("chat", "chat", "the model's answer as text", own=("language", "schema")),
    _task("complete", "completion", "the text that follows the prompt", own=("language", "schema")),
    _task("embed", "embedding", "one vector of floats per text", own=("language",), writes=False),
    _task(
        "summarize",
        "analysis",
        "{summary, sentences: [{text, start, end, score}]}",
        "Summarize the user's text in {length}. Answer in {language} with the summary and nothing else.",
        own=("language", "sentences", "words"),
    ),
    _task(
        "keywords",
        "analysis",
        "{keywords: [{text, score, count, spans}]}",
        "List the ten key phrases of the user's text, the most telling first, one a line and nothing else.",
        own=("language",),
    ),
    _task(
        "language",
        "analysis",
        "{language, candidates: [{language, score}]}",
        "Answer with the BCP 47 tag of the language that the user's text is written in and nothing else.",
    ),
    _task(
        "sentiment",
        "analysis",
        "{label, score, positive, neutral, negative}",
        "Answer with one word for the sentiment of the user's text: positive, neutral or negative.",
        own=("language",),
    ),
    _task(
        "entities",
        "analysis",
        "{entities: [{type, text, start, end, value}]}",
        "List the named entities of the user's text as a JSON array of objects with type and text.",
        own=("language",),
    ),
    _task(
        "redact",
        "analysis",
        "{text, redactions: [{type, placeholder, start, end}]}",
        "Repeat the user's text, with every piece of personal data replaced by its kind in square brackets.",
        own=("language",),
    ),
    _task(
        "classify",
        "analysis",
        "{label, scores: [{label, score}]}",
        "Which one of these labels fits the user's text best: {labels}? Answer with the label only.",
        own=("language",),
        required=("labels",),
    ),
    _task("similarity", "analysis", "{pairs: [{a, b, score}]}", own=("language",), writes=False),
    _task("sentences", "analysis", "{sentences: [{text, start, end}]}", own=("language",), writes=False),
    _task("tokens", "analysis", "{words, characters, bytes, ...}", own=("language",), writes=False),
    _task(
        "translate",
        "analysis",
        "{text}",
        "Translate the user's text into {language}. Answer with the translation and nothing else.",
        required=("language",),
    ),
    _task(
        "extract",
        "analysis",
        "a JSON value that fits the schema",
        "Extract from the user's text what this JSON schema describes, as one JSON value and nothing else: "
        "{schema}",
        own=("language",),
        required=("schema",),
    ),
)

TASKS: Final[Mapping[str, Task]] = MappingProxyType({task.name: task for task in _ALL})
"""Every task by its name, in the order that documents list them."""

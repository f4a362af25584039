"""Reads a request for the gate's own engine: the texts to work on, and what it could not obey. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qgate.capability.nlp.catalogue import LANGUAGES, QUALITY
from qgate.capability.nlp.jobs import Job
from qgate.capability.nlp.vectors_shape import DIMENSIONS, TEXTS_MAX
from qgate.capability.work import Work
from tunnel_proto.request import CapabilityRequest

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_MODEL_ONLY: Final = (
    "tools",
    "functions",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "stop",
    "audio",
    "prediction",
)
_CHOICES: Final = ("tool_choice", "function_call")
_PLAIN: Final = frozenset(
    [
        "model",
        "messages",
        "input",
        "prompt",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "seed",
        "user",
        "store",
        "metadata",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
    ]
)
"""Fields in which nothing can be asked that the engine could not obey."""
_INSTRUCTING: Final = frozenset({"system", "developer"})
_ANSWERING: Final = frozenset({"assistant", "tool", "function"})


class Unreadable(Exception):  # noqa: N818 - reads as what it is
    """A body with no text for this engine; the message holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A request as the engine reads it: its texts and their bytes in UTF-8, and why it cannot be taken."""

    texts: tuple[str, ...] = field(default=(), repr=False)
    sizes: tuple[int, ...] = ()
    bars: tuple[str, ...] = ()


def read(work: Work, *, input_max: int) -> Reading:
    """Read a request once; each of ``bars`` is a clause, and there is none where the engine can take it."""
    request, body = work.request, work.body
    found: list[str] = []
    if request.task not in QUALITY:
        found.append(f"it does not do the task {request.task}")
    if request.schema is not None:
        found.append("the request has a JSON schema")
    known = LANGUAGES.get(request.task)
    if known is not None and request.language is not None and request.language[:2] not in known:
        found.append(f"it does {request.task} in {', '.join(sorted(known))} only")
    found += _unobeyable(body)
    try:
        texts = texts_of(body)
    except Unreadable as error:
        return Reading(bars=(*found, str(error)))
    sizes = tuple([len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts])
    if (size := sum(sizes)) > input_max:
        found.append(f"the text has {size} bytes, and {input_max} are its most (nlp.input_max)")
    return Reading(texts, sizes, tuple(found))


def texts_of(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a request: of a chat its one user message, else its prompt or input.

    Raises `Unreadable` where there is none, or where it is no well-formed text.
    """
    if "messages" in body:
        texts = _of_messages(body["messages"])
    else:
        texts = _listed(body.get("input", body.get("prompt")))
    if not texts:
        raise Unreadable("there is no text to work on")
    if len(texts) > TEXTS_MAX:
        raise Unreadable(f"there are {len(texts)} texts, and {TEXTS_MAX} are its most")
    for text in texts:
        if not text.isascii() and _SURROGATE.search(text):
            raise Unreadable("the text holds half a character (a lone surrogate)")
    if all(not text or text.isspace() for text in texts):
        raise Unreadable("the text is empty")
    return texts


def job_of(request: CapabilityRequest, reading: Reading) -> Job:
    """What a worker is given for a request."""
    options: dict[str, Any] = {}
    if request.sentences is not None:
        options["sentences"] = request.sentences
    if request.words is not None:
        options["words"] = request.words
    if request.language is not None:
        options["language"] = request.language
    if request.labels:
        options["labels"] = list(request.labels)
    return Job(request.task, reading.texts, options)


def is_list(work: Work) -> bool:
    """Whether the request gave a list of texts, and so gets a list of results."""
    return "messages" not in work.body and not isinstance(
        work.body.get("input", work.body.get("prompt")), str
    )


def speaks(work: Work) -> bool:
    """Whether the answer is wanted as text: in a chat or a completion."""
    return work.kind in {"chat", "completion"} or "messages" in work.body or "prompt" in work.body


def _unobeyable(body: Mapping[str, Any]) -> Iterator[str]:
    messages = body.get("messages")
    if isinstance(messages, list | tuple):
        roles = [one.get("role", "user") if isinstance(one, Mapping) else "?" for one in messages]
        instructed = sum(role in _INSTRUCTING for role in roles)
        if instructed:
            yield "the request has a system prompt"
        if len(roles) - instructed > 1:
            yield "the request has several turns"
        elif roles and roles[-1] in _ANSWERING:
            yield "the request has no turn of the user at its end"
    if _PLAIN.issuperset(body):
        return
    if body.get("instructions"):
        yield "the request has instructions"
    for key in _MODEL_ONLY:
        if body.get(key):
            yield f"the request has {key}"
    for key in _CHOICES:
        if body.get(key) not in {None, "none", "auto"}:
            yield f"the request has {key}"
    form = body.get("response_format")
    if isinstance(form, Mapping) and form.get("type", "text") != "text":
        yield "the request has a response_format"
    if body.get("n", 1) not in {1, None}:
        yield "the request wants several answers (n)"
    if body.get("dimensions") not in {None, DIMENSIONS}:
        yield f"its vectors have {DIMENSIONS} dimensions"


def _of_messages(messages: Any) -> tuple[str, ...]:
    if not isinstance(messages, list | tuple):
        raise Unreadable("messages is not a list")
    users = [one for one in messages if isinstance(one, Mapping) and one.get("role", "user") == "user"]
    if not users:
        raise Unreadable("there is no message of the user")
    content = users[-1].get("content")
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list | tuple):
        raise Unreadable("the message has no text")
    parts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind not in {"text", "input_text"} or not isinstance(text, str):
            raise Unreadable("the message has a part that is no text")
        parts.append(text)
    return ("\n\n".join(parts),) if parts else ()


def _listed(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple):
        if all(isinstance(one, str) for one in value):
            return tuple(value)
        raise Unreadable("the input is token ids or something else that is no text")
    raise Unreadable("there is no text to work on")

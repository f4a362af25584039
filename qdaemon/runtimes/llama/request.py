"""A request as it reaches the child: text with its control tokens marked, sampling, a proved grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from qdaemon.runtimes.llama.frames import Frame
from qdaemon.runtimes.llama.job import JobProblem, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """What the child runs. ``taint`` is the character that keeps a client's words from being control tokens.

    ``templated`` says that ``text`` came out of a chat template: control tokens without a taint mean
    themselves. ``seed`` is always given; the parent draws one where the client named none.
    """

    job: str
    app: str
    kind: str
    text: str
    inputs: tuple[str, ...]
    templated: bool
    taint: str
    emitted: tuple[int, ...]
    sampling: Sampling
    seed: int
    grammar: str
    reuse: bool


class Vocabulary(Protocol):
    """What of a model is needed to cut a text into tokens."""

    n_vocab: int
    bos: int
    add_bos: bool

    def tokenize(self, text: str, *, special: bool = False, add_special: bool = False) -> list[int]: ...


class Controls:
    """Control tokens of a vocabulary: id and white-space rule by text, and a pattern that finds them."""

    def __init__(self, tokens: Sequence[tuple[int, str, bool, bool]]) -> None:
        self._by_text = {text: (token, lstrip, rstrip) for token, text, lstrip, rstrip in tokens}
        longest = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest))) if longest else None

    def tokens(self, request: Request, vocabulary: Vocabulary) -> list[int]:
        """Ids of the request's text: only what the template itself wrote becomes a control token."""
        if not request.templated:
            return vocabulary.tokenize(request.text, add_special=True)
        ids: list[int] = []
        at = 0
        strip_next = False
        for found in self._pattern.finditer(request.text) if self._pattern else ():
            token, lstrip, rstrip = self._by_text[found[0]]
            plain = request.text[at : found.start()]
            ids += self._plain(plain, request.taint, vocabulary, before=strip_next, after=lstrip)
            ids.append(token)
            at, strip_next = found.end(), rstrip
        ids += self._plain(request.text[at:], request.taint, vocabulary, before=strip_next, after=False)
        if vocabulary.add_bos and ids[:1] != [vocabulary.bos]:
            ids.insert(0, vocabulary.bos)
        return ids

    @staticmethod
    def _plain(text: str, taint: str, vocabulary: Vocabulary, *, before: bool, after: bool) -> list[int]:
        if before:
            text = text.lstrip()
        if after:
            text = text.rstrip()
        if taint:
            text = text.replace(taint, "")
        return vocabulary.tokenize(text) if text else []


_SAMPLING = frozenset(field.name for field in fields(Sampling))


def encoded(request: Request) -> Frame:
    """The frame that starts ``request``."""
    sampling = {name: getattr(request.sampling, name) for name in _SAMPLING}
    sampling["logit_bias"] = list(request.sampling.logit_bias.items())
    frame: Frame = {"t": "run", "sampling": sampling}
    for name in Request.__slots__:
        if name != "sampling":
            frame[name] = getattr(request, name)
    return frame


def decoded(frame: Frame) -> Request:
    """The request of a "run" frame."""
    sampling: dict[str, Any] = dict(frame["sampling"])
    sampling["stop"] = tuple(sampling["stop"])
    sampling["logit_bias"] = dict(sampling["logit_bias"])
    values = {name: frame[name] for name in Request.__slots__ if name != "sampling"}
    values["inputs"], values["emitted"] = tuple(values["inputs"]), tuple(values["emitted"])
    return Request(sampling=Sampling(**sampling), **values)


def fits(count: int, *, size: int, emitted: int) -> None:
    """JobProblem where a prompt of ``count`` tokens and what was emitted leave no room for an answer."""
    if count == 0:
        raise JobProblem("empty_prompt", "the prompt is empty", hint="send at least one character")
    if count + emitted >= size:
        raise JobProblem(
            "context_length_exceeded",
            f"the prompt has {count} tokens{f' and {emitted} of an answer' if emitted else ''}; "
            f"this model is loaded for {size} with the answer",
            hint="shorten it, or load the model with a larger context",
        )

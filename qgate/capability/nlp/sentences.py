"""Sentences of a text as spans of its characters, in time that grows with its length and no faster.

Ends of sentences are found by one expression without backtracking. Whether a full stop ends one is plain for
most words; nupunkt's model is asked about the rest (abbreviations, initials, numbers), a short window at a
time, because some inputs cost it the square of their length. Its memory of past decisions is dropped after
each text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from qgate.capability.nlp.words import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SENTENCE_MAX: Final = 4000
"""Characters after which a sentence is cut at a blank, so that no text is one sentence of a megabyte."""

_CLOSERS: Final = "\"'”’»)\\]}›"
# It begins with a set of characters, so that the expression engine can skip to the next candidate at once.
_BREAK: Final = re.compile(
    r"[\n.!?…。！？｡．](?:"
    r"(?<=\n)(?:(?P<blank>[ \t\r]*+\n\s*+)|(?P<item>[ \t]*+(?=(?:[-*•–]|[0-9]{1,3}[.)])[ \t])))"
    rf"|(?<=[.!?…])(?P<stop>[.!?…]*+)[{_CLOSERS}]*+"
    rf"|(?<=[。！？｡．])(?P<wide>[。！？｡．]*+[」』”’）】》{_CLOSERS}]*+))"
)
_SOLID: Final = re.compile(r"\S")
_OPENERS: Final = "\"'“‘«([{¿¡-–—*_"
_RIGHT: Final = "\"'”’»)]}"
_TITLES: Final = frozenset(
    {"Capt", "Col", "Dr", "Gen", "Gov", "Hon", "Lt", "Mr", "Mrs", "Ms", "Prof", "Rev", "Sen", "Sgt"}
)
"""Before a name, where their stop ends nothing."""
_WINDOW: Final = 60  # characters on either side of a stop that the model sees
_NEXT: Final = 24
ASKED_MAX: Final = 1000
"""Different stops of one text that the model is asked about; the rest is judged by its list alone."""


def spans(text: str) -> list[tuple[int, int]]:
    """The sentences of ``text`` in order, without the blanks between them; empty for a text of blanks."""
    found: list[tuple[int, int]] = []
    size = len(text)
    start = _solid(text, 0)
    judge = _Judge(text)
    for match in _BREAK.finditer(text):
        end = match.end()
        if end <= start:
            continue
        kind = match.lastgroup
        following = end
        if kind == "stop":
            if end < size:
                if not text[end].isspace():
                    continue
                following = end + 1
            if following < size and text[following].isspace():
                following = _solid(text, following)
            if not judge.ends(start, match.start(), match.end("stop"), end, following):
                continue
            if end - start <= SENTENCE_MAX:
                found.append((start, end))
                start = following
                continue
        elif kind != "wide":
            end = match.start()
        found += _cut(text, start, end)
        start = _solid(text, match.end())
    found += _cut(text, start, size)
    judge.forget()
    return found


class _Judge:
    """Says which stops of one text end a sentence."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._informal = text[:1000].islower()  # no capital could show where a sentence begins
        self._abbreviations = _abbreviations()
        self._known: dict[str, bool] = {}

    def ends(self, start: int, stop: int, stopped: int, end: int, following: int) -> bool:
        """Whether the stop from ``stop`` to ``stopped`` (closers to ``end``) ends what began at ``start``.

        ``following`` is the first place behind it that is not blank.
        """
        text = self._text
        if following >= len(text):
            return True
        first = text[following]
        while first in _OPENERS and following + 1 < len(text) and following < end + 8:
            following += 1
            first = text[following]
        lower = first.islower()
        if text[stopped - 1] in "!?":
            return not lower or self._informal
        if stopped - stop > 1 or text[stop] == "…":  # an ellipsis
            return first.isupper()
        word = text[max(start, stop - _WINDOW) : stop].rpartition(" ")[2].lstrip(_OPENERS).rstrip(_RIGHT)
        plain = len(word) > 1 and word.isalpha() and word[1:].islower()
        known = plain and word.lower() not in self._abbreviations
        if lower:
            return known and self._informal
        if word in _TITLES and first.isupper():
            return False
        if known or not word:
            return True
        if word.isdigit() and len(word) > 1 and stop - len(word) > start and first.isupper():
            return True
        return self._ask(word, start, end, following)

    def _ask(self, word: str, start: int, end: int, following: int) -> bool:
        key = f"{word} {self._text[end : following + _NEXT].split(None, 1)[0][:_NEXT]}"
        verdict = self._known.get(key)
        if verdict is None:
            if len(self._known) >= ASKED_MAX:
                return word.lower() not in self._abbreviations
            verdict = self._known[key] = _model_says(self._text, start, end)
        return verdict

    def forget(self) -> None:
        """Leave nothing of the text in the model's memory."""
        if self._known:
            model = _model()
            model.clear_decision_cache()  # which only marks them as out of date, until the next question
            list(model.span_tokenize("."))
            for clear in _of_each_word():
                clear()


def _model_says(text: str, start: int, end: int) -> bool:
    """nupunkt's verdict on the stop before ``end``, from a window around it."""
    left = max(start, end - _WINDOW)
    if left > start:
        blank = text.find(" ", left, end)
        left = blank + 1 if blank >= 0 else left
    window = text[left : end + _WINDOW]
    at = end - left
    for _, stop in _model().span_tokenize(window):
        if abs(stop - at) <= 1 or window[min(stop, at) : max(stop, at)].isspace():
            return True
        if stop > at:
            return False
    return False


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end > start and text[end - 1].isspace():
        end -= 1
    while end - start > SENTENCE_MAX:
        at = text.rfind(" ", start + SENTENCE_MAX // 2, start + SENTENCE_MAX)
        at = start + SENTENCE_MAX if at < 0 else at
        stop = at
        while stop > start and text[stop - 1].isspace():
            stop -= 1
        if stop > start:
            yield (start, stop)
        start = min(end, _solid(text, at))
    if end > start:
        yield (start, end)


def _solid(text: str, at: int) -> int:
    """The first place from ``at`` that is not blank."""
    found = _SOLID.search(text, at)
    return len(text) if found is None else found.start()


@lru_cache(maxsize=1)
def _model() -> Any:
    from nupunkt import load_default_model

    return load_default_model()


@lru_cache(maxsize=1)
def _of_each_word() -> tuple[Callable[[], None], ...]:
    """What clears nupunkt's memory of each word that it has met; it offers nothing of its own for that."""
    from nupunkt.core import tokens

    memories = (one.cache_clear for one in vars(tokens).values() if hasattr(one, "cache_clear"))
    return (tokens._derived_cache.clear, *memories)


@lru_cache(maxsize=1)
def _abbreviations() -> frozenset[str]:
    known: frozenset[str] = _model().abbreviations
    # Its list has some of the commonest words, which stood before a stop in what it learned from.
    return known - {word for word in listed("stopwords.txt")["en"] if len(word) > 2}

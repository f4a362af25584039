"""What `/` finds: words, their inverse, and labels. Pure.

gpu fast        both words, each in some cell, or scattered through the first one
!gpu            rows without it
-l site=lyon    rows whose label or field says so; several by commas
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshctl.tui.declare import Record, at


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as it was typed, taken apart."""

    text: str = ""
    words: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    inverse: bool = False

    def __bool__(self) -> bool:
        return bool(self.words or self.labels)

    def matches(self, cells: Sequence[str], record: Record) -> bool:
        """Whether a row is shown: its cells as they are drawn, the first of which is its name."""
        if not self:
            return True
        found = all(_labelled(record, key, value) for key, value in self.labels) and all(
            _found(word, cells) for word in self.words
        )
        return found is not self.inverse

    def query(self, *, labels: Collection[str] | None = None) -> dict[str, str] | None:
        """The same as the control API's query; None where it has no words for it (the inverse of several).

        ``labels``: the fields of records that have labels; every other key is one of these labels.
        """
        if self.inverse and len(self.words) + len(self.labels) > 1:
            return None
        sign = "!" if self.inverse else ""
        asked = {"q": sign + " ".join(self.words)} if self.words else {}
        for key, value in self.labels:
            name = key if labels is None or key.partition(".")[0] in labels else f"labels.{key}"
            there = sign + value if value else ("" if self.inverse else "!")  # "!": anything but nothing
            asked[name] = there
        return asked


def parse(text: str) -> Filter:
    """Take a filter apart; anything that was typed means something."""
    rest = text.strip()
    inverse = rest.startswith("!")
    if inverse:
        rest = rest[1:].strip()
    words: list[str] = []
    labels: list[tuple[str, str]] = []
    parts = iter(rest.split())
    for part in parts:
        if part == "-l":
            labels += [_pair(one) for one in next(parts, "").split(",") if one]
        else:
            words.append(part.casefold())
    return Filter(text.strip(), tuple(words), tuple(labels), inverse and bool(words or labels))


def scattered(word: str, text: str) -> bool:
    """Whether the letters of ``word`` come in ``text`` in that order."""
    letters = iter(text)
    return all(letter in letters for letter in word)


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _found(word: str, cells: Sequence[str]) -> bool:
    folded = [cell.casefold() for cell in cells]
    return any(word in cell for cell in folded) or bool(folded and scattered(word, folded[0]))


def _labelled(record: Record, key: str, value: str) -> bool:
    labels = record.get("labels")
    held: Any = labels.get(key) if isinstance(labels, Mapping) and key in labels else at(record, key)
    if held is None:
        return False
    if isinstance(held, list | tuple):
        return any(str(one) == value for one in held)
    if isinstance(held, bool):
        return value.lower() in ({"true", "yes"} if held else {"false", "no"})
    return not value or str(held) == value

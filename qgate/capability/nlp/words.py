"""Words of a text: where they are, which of them carry meaning, and their stems.

Scripts that put no blanks between words (Chinese, Japanese, Thai) are cut into pairs of characters, which
serves comparison and ranking; it is no word segmentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_DATA: Final = Path(__file__).with_name("data")
_SAMPLE: Final = 120  # words that are looked at to tell the language of a text's small words
WORD_MAX: Final = 64
"""Characters of a word that count; what is longer is not a word that another text repeats."""


ROOT: Final = 6

_LOWERED: Final = bytes(
    ord(chr(one).lower()) if chr(one).isalnum() or one == 0x27 else 0x20 for one in range(128)
) + bytes(128)
"""ASCII → the same in lower case where it belongs to a word, else a blank."""


def words(text: str) -> list[str]:
    """Lower-case words of ``text``, in order; an unspaced script as overlapping pairs."""
    if text.isascii():
        text = text.encode("ascii").translate(_LOWERED).decode("ascii")
        return _WORD.findall(text) if "'" in text else text.split()
    found = _WORD.findall(text.lower())
    if _UNSPACED.search(text) is None:
        return found
    cut: list[str] = []
    for word in found:
        if len(word) > 2 and _UNSPACED.search(word):
            cut += [word[at : at + 2] for at in range(len(word) - 1)]
        else:
            cut.append(word)
    return cut


def words_within(text: str, parts: Iterable[tuple[int, int]]) -> list[list[str]]:
    """The words of each part of ``text`` (from, to), as `words` gives them."""
    if not text.isascii():
        return [words(text[start:end]) for start, end in parts]
    text = text.encode("ascii").translate(_LOWERED).decode("ascii")
    if "'" not in text:
        return [text[start:end].split() for start, end in parts]
    found = []
    for start, end in parts:
        part = text[start:end]
        found.append(_WORD.findall(part) if "'" in part else part.split())
    return found


def spans(text: str) -> list[tuple[int, int]]:
    """Where the words of ``text`` are, as they stand there."""
    return [found.span() for found in _WORD.finditer(text)]


@lru_cache(maxsize=8)
def listed(name: str) -> dict[str, frozenset[str]]:
    """A file of the data folder whose lines are ``key: word word ...``."""
    lines = (_DATA / name).read_text(encoding="utf-8").splitlines()
    return {key: frozenset(rest.split()) for key, _, rest in (line.partition(":") for line in lines)}


def small_words(found: Sequence[str], language: str | None = None) -> frozenset[str]:
    """The stopwords for a text of these words: those of ``language``, else of the language that fits best.

    A text that no known language fits has none; rarity within the text then has to tell its words apart.
    """
    table = listed("stopwords.txt")
    if language is not None:
        return table.get(language.partition("-")[0], frozenset())
    sample = frozenset(found[:_SAMPLE])
    counts = dict.fromkeys(table, 0)
    known = _small_in()
    for word in known.keys() & sample:
        for one in known[word]:
            counts[one] += 1
    best = max(counts, key=counts.__getitem__)
    return table[best] if counts[best] * 12 >= len(sample) else frozenset()


@lru_cache(maxsize=1)
def _small_in() -> dict[str, tuple[str, ...]]:
    """In which languages a word is a small one."""
    table = listed("stopwords.txt")
    every = frozenset[str]().union(*table.values())
    return {word: tuple(one for one in table if word in table[one]) for word in every}


def stem(word: str) -> str:
    """A light English stem (plural, -ing, -ed, -ly): enough to match a word's forms."""
    size = len(word)
    if size < 5 or not word.isascii():
        return word[:-1] if size == 4 and word.endswith("s") and word[2] not in "sui" else word[:WORD_MAX]
    word = word.removesuffix("'s")
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith("sses"):
        word = word[:-2]
    elif word.endswith("s") and word[-2] not in "sui":
        word = word[:-1]
    if word.endswith("ing") and len(word) > 6:
        word = _undoubled(word[:-3])
    elif word.endswith("ed") and len(word) > 5:
        word = _undoubled(word[:-2])
    elif word.endswith("ly") and len(word) > 5:
        word = word[:-2]
    if word.endswith("e") and len(word) > 4:
        word = word[:-1]
    return word[:WORD_MAX]


def roots(found: Iterable[str], small: frozenset[str]) -> list[str]:
    """The words that are not ``small``, cut to `ROOT` characters, short ones without a plural's "s".

    Cutting matches the forms of a word in every inflecting language at no cost (McNamee and others 2009 found
    it as good as stemming for retrieval). Single characters are left out.
    """
    return [
        word[:ROOT] if len(word) > ROOT else word.rstrip("s") or word
        for word in found
        if word not in small and len(word) > 1
    ]


def _undoubled(word: str) -> str:
    return word[:-1] if word[-1] == word[-2] and word[-1] not in "lsz" else word

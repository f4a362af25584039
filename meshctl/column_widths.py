"""How wide a table's columns are where there is not room for all of it. Pure.

Names, numbers, addresses and keys are read and copied whole, so a column is never narrower than its longest
word, and one of numbers never narrower than its longest number with its unit. Only a word so long that no
terminal would have room for the table is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from meshctl.view import Table

WORD_MAX: Final = 24
"""A longer word may be folded where nothing else helps: a path, a fingerprint, and no URL."""

FOLDED_COLUMNS_MAX: Final = 6
"""Where there are more columns than these, words are not folded: a card a row is easier to read."""

Measure = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Widths:
    """A width for each column, in cells, and the blanks between two."""

    columns: tuple[int, ...]
    gap: int


def widths(table: Table, room: int, measure: Measure = len) -> Widths | None:
    """The widths of ``table`` on a terminal of ``room`` cells; None where it cannot be drawn in that room."""
    natural = tuple(max(measure(line) for line in _lines(table, i)) for i in range(len(table.columns)))
    words = tuple(max(measure(word) for word in _words(table, i)) for i in range(len(table.columns)))
    numbers = tuple(
        max(word, *map(measure, _lines(table, i)[1:]), 0) if i in table.right else word
        for i, word in enumerate(words)
    )
    folded = tuple(
        max(min(measure(word), WORD_MAX) if "://" not in word else measure(word) for word in _words(table, i))
        for i in range(len(table.columns))
    )
    attempts = [(numbers, 2), (numbers, 1), (words, 1)]
    if len(table.columns) <= FOLDED_COLUMNS_MAX:
        attempts.append((folded, 1))
    for least, gap in attempts:
        inner = room - gap * (len(natural) - 1)
        if sum(least) <= inner:
            return Widths(_shrunk(natural, least, inner), gap)
    return None


def _shrunk(natural: Sequence[int], least: Sequence[int], inner: int) -> tuple[int, ...]:
    """Take from the widest that can give, cell by cell, until the columns fit in ``inner``."""
    now = list(natural)
    for _ in range(sum(natural) - inner):
        widest = max((i for i in range(len(now)) if now[i] > least[i]), key=lambda i: now[i])
        now[widest] -= 1
    return tuple(now)


def _lines(table: Table, index: int) -> list[str]:
    """The heading, then every line of every cell."""
    return [table.columns[index], *(line for row in table.rows for line in row[index].split("\n"))]


def _words(table: Table, index: int) -> list[str]:
    return ["", *(word for line in _lines(table, index) for word in line.split())]

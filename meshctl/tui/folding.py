"""Lines that are wider than the screen, folded under where their last part begins. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len

from meshctl.tui.pager import Line, plain

LEAST: Final = 20
"""Columns below which folding says less than scrolling aside."""


def folded(lines: Sequence[Line], width: int) -> list[Line]:
    """The lines, none wider than ``width`` where that can be: their last piece goes on below itself."""
    result: list[Line] = []
    for line in lines:
        result += _folded(line, width) if cell_len(plain(line)) > width else [line]
    return result


def _folded(line: Line, width: int) -> list[Line]:
    while len(line) > 1 and not line[-1][0].strip():
        line = line[:-1]
    *before, (text, role) = line
    start = cell_len(plain(tuple(before)))
    text = text.rstrip()
    if width - start < LEAST or start + cell_len(text) <= width:
        return [(*before, (text, role))]
    first, *rest = _cut(text, width - start)
    return [(*before, (first, role)), *(((" " * start, ""), (one, role)) for one in rest)]


def _cut(text: str, width: int) -> list[str]:
    """Pieces of at most ``width`` cells, cut between words where there are any."""
    letters = width if cell_len(text) == len(text) else width // 2  # a letter may take two cells
    return textwrap.wrap(text, letters, break_on_hyphens=False) or [""]

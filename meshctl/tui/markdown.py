"""Markdown as lines for a pager, at a width: headings, paragraphs, lists, tables, code. Pure.

What our own documents use, and nothing else of CommonMark; what is not understood is shown as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.cells import cell_len

from meshctl.manual import plain
from meshctl.tui.layout import clean
from meshctl.tui.pager import Line, Piece

WIDEST: Final = 110
"""Cells of a line of prose at most: longer ones are hard to read."""
NARROWEST: Final = 12
"""Cells that a table's column keeps."""

_HEADING: Final = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
_FENCE: Final = re.compile(r"\s*(```|~~~)")
_ITEM: Final = re.compile(r"(\s*)([-*+]|\d+\.)\s+(.*)")
_RULE: Final = re.compile(r"\|?[\s:|-]*-{3,}[\s:|-]*\|?$")
_LINK: Final = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")
_SPAN: Final = re.compile(r"(`[^`]+`|\*\*[^*]+\*\*)")


@dataclass(slots=True)
class Laid:
    """A document as lines; ``places`` gives the line on which a line of the source begins."""

    lines: list[Line] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)

    def place(self, source: int) -> int:
        """Where a line of the source is seen, or what stands before it."""
        before = [number for number in self.places if number <= source]
        return self.places[max(before)] if before else 0


def lay_out(text: str, width: int) -> Laid:
    """A document in lines of at most ``width`` cells; code is not broken."""
    laid = Laid()
    width = max(20, min(width, WIDEST))
    rows = text.splitlines()
    number = 0
    while number < len(rows):
        end = _end(rows, number)
        block = [clean(row) for row in rows[number:end]]
        laid.places.update(dict.fromkeys(range(number, end), len(laid.lines)))
        if _is_table(rows, number):
            _table(laid, block, number, width)
        else:
            laid.lines += _block(block, width)
        number = end
    return laid


def _end(rows: Sequence[str], start: int) -> int:
    """The line after the block that begins at ``start``."""
    first = rows[start]
    if _FENCE.match(first):
        return next((n + 1 for n in range(start + 1, len(rows)) if _FENCE.match(rows[n])), len(rows))
    if not first.strip() or _HEADING.match(first) or first.startswith("    "):
        return start + 1
    end = start + 1
    table = _is_table(rows, start)
    while end < len(rows) and rows[end].strip():
        row = rows[end]
        other = row.lstrip().startswith("|") != table
        if other or _HEADING.match(row) or _FENCE.match(row) or (not table and _ITEM.match(row)):
            break
        end += 1
    return end


def _is_table(rows: Sequence[str], at: int) -> bool:
    return (
        rows[at].lstrip().startswith("|") and at + 1 < len(rows) and bool(_RULE.match(rows[at + 1].strip()))
    )


def _block(block: Sequence[str], width: int) -> Iterator[Line]:
    first = block[0]
    if _FENCE.match(first):
        yield from ((("    " + row, "key"),) for row in block[1:] if not _FENCE.match(row))
    elif not first.strip():
        yield ()
    elif match := _HEADING.match(first):
        yield ((plain(match[2]), "title"),)
    elif first.startswith("    "):
        yield ((first, "key"),)
    elif match := _ITEM.match(first):
        hang = len(match[1]) + len(match[2]) + 1
        words = _words(" ".join([match[3], *(row.strip() for row in block[1:])]))
        for index, line in enumerate(_wrapped(words, width - hang)):
            lead = f"{match[1]}{match[2]} " if index == 0 else " " * hang
            yield ((lead, "muted"), *line)
    else:
        yield from _wrapped(_words(" ".join(row.strip() for row in block)), width)


def _words(text: str) -> list[Piece]:
    """The words of a line of markdown, each with what it is; code stays one word where it is short."""
    text = _LINK.sub(r"\1", text)
    found: list[Piece] = []
    glue = False
    for part in _SPAN.split(text):
        role, inner = "", part
        if part.startswith("`") and part.endswith("`") and len(part) > 2:
            role, inner = "busy", part[1:-1]
        elif part.startswith("**") and part.endswith("**") and len(part) > 4:
            role, inner = "title", part[2:-2].replace("`", "")
        words = inner.split(" ")
        for index, word in enumerate(words):
            if index == 0 and glue and found and word:
                before, kind = found[-1]
                found[-1] = (before + word, kind or role)
            elif word:
                found.append((word, role))
        glue = bool(inner) and not inner.endswith(" ")
    return found


def _wrapped(words: Sequence[Piece], width: int) -> Iterator[Line]:
    line: list[Piece] = []
    used = 0
    for word, role in words:
        size = cell_len(word)
        if line and used + 1 + size > width:
            yield tuple(line)
            line, used = [], 0
        if line:
            same = line[-1][1] == role
            line.append((" ", role if same else ""))
            used += 1
        line.append((word, role))
        used += size
    if line:
        yield tuple(line)


def _cells(row: str) -> list[str]:
    inner = row.strip().removeprefix("|").removesuffix("|")
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", inner)]


def _table(laid: Laid, block: Sequence[str], start: int, width: int) -> None:
    """A table whose cells are broken where it would not fit."""
    rows = [(n, _cells(row)) for n, row in enumerate(block) if n != 1]
    count = max(len(cells) for _, cells in rows)
    widths = _widths([cells for _, cells in rows], count, width - 2 * (count - 1))
    for n, cells in rows:
        laid.places[start + n] = len(laid.lines)
        if n == 0 and not any(cells):
            continue
        parts = [list(_wrapped(_words(cell), widths[i])) or [()] for i, cell in enumerate(cells)]
        for index in range(max(len(part) for part in parts)):
            line: list[Piece] = []
            for i, part in enumerate(parts):
                pieces: Line = part[index] if index < len(part) else ()
                line += [(text, "key" if n == 0 else role) for text, role in pieces]
                space = widths[i] - sum(cell_len(text) for text, _ in pieces)
                line.append((" " * (max(0, space) + 2), ""))
            laid.lines.append(tuple(line))


def _widths(rows: Sequence[Sequence[str]], count: int, room: int) -> list[int]:
    """Widths of columns within ``room``: the widest gives first."""
    widths = [
        max((cell_len(plain(row[i])) for row in rows if i < len(row)), default=0) or 1 for i in range(count)
    ]
    while sum(widths) > room and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths

"""Records as lines for a pager: as a person reads them, as YAML, as JSON. Pure."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from rich.cells import cell_len

from meshctl import view
from meshctl.render import Output, machine_text
from meshctl.tui.declare import state_of
from meshctl.tui.pager import Line
from meshctl.tui.words import Catalogue

ENGLISH: Final = Catalogue()
BYTES: Final = frozenset({"memory", "memory_available", "vram", "vram_used", "size", "bytes", "disk_free"})
"""Fields of records that are bytes."""
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


class Form(StrEnum):
    """The forms that a record is shown in."""

    PERSON = "described"
    YAML = "yaml"
    JSON = "json"


def clean(text: str) -> str:
    """A text from elsewhere without anything that a terminal would obey or that turns lines around."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if char in "\t\n" else char
        for char in text
        if char in "\t\n" or unicodedata.category(char) not in _UNSEEN
    )


def warning(problem: str, width: int) -> list[Line]:
    """Why something is not current, with what to do, over as many lines as that takes."""
    return [((one, "warn"),) for one in textwrap.wrap(f"! {clean(problem)}", max(20, width))]


def lines_of(
    value: Any, tables: Sequence[view.Table], form: Form, catalogue: Catalogue = ENGLISH
) -> list[Line]:
    """A record in one of the forms; ``tables`` is how a person reads it, in the language of ``catalogue``."""
    if form is Form.PERSON:
        return described(tables, catalogue)
    text = machine_text(value, Output.YAML if form is Form.YAML else Output.JSON)
    return [_coloured(clean(line)) for line in text.splitlines()]


def described(tables: Sequence[view.Table], catalogue: Catalogue = ENGLISH) -> list[Line]:
    """Tables below each other, their columns aligned."""
    lines: list[Line] = []
    for table in tables:
        if lines:
            lines.append(())
        if table.title:
            lines.append(((clean(catalogue.label(table.title)), "title"),))
        heads = any(table.columns)
        rows = [[clean(cell) for cell in _told(table, row, catalogue)] for row in table.rows]
        columns = [clean(catalogue.heading(name)) for name in table.columns]
        widths = [
            max([cell_len(columns[index]), *(cell_len(row[index]) for row in rows)])
            for index in range(len(columns))
        ]
        if heads:
            lines.append(
                tuple(
                    (_padded(name, widths[i], i in table.right) + "  ", "key")
                    for i, name in enumerate(columns)
                )
            )
        lines += [
            tuple(_cell(cell, widths[i], i, i in table.right, heads, was[i]) for i, cell in enumerate(row))
            for row, was in zip(rows, table.rows, strict=True)
        ]
    return lines


def card(record: Any) -> list[view.Table]:
    """Any record as name and value, where nobody said how it reads."""
    if not isinstance(record, dict):
        return [view.Table(("",), ((view.text(record),),))]
    return [view.card({key: _measured(key, one) for key, one in record.items()})]


def _measured(key: str, value: Any) -> Any:
    if key.endswith(("_at", "_until")) or key in {"not_after", "not_before"}:
        return view.moment(value)
    if isinstance(value, int) and key in BYTES:
        return view.size(value)
    return value


def _told(table: view.Table, row: Sequence[str], catalogue: Catalogue) -> list[str]:
    if any(table.columns):
        return [catalogue.fact(name, cell) for name, cell in zip(table.columns, row, strict=True)]
    if len(row) == 1:
        return [catalogue.shown(row[0])]
    name, *rest = row
    return [catalogue.label(name), *(catalogue.fact(name, cell) for cell in rest)]


def _cell(cell: str, width: int, index: int, right: bool, heads: bool, english: str) -> tuple[str, str]:
    text = _padded(cell, width, right) + "  "
    if not heads and index == 0:
        return text, "key"
    state = state_of(english)
    return text, str(state) if state is not None else ""


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * max(0, width - cell_len(text))
    return space + text if right else text + space


def _coloured(line: str) -> Line:
    head, colon, rest = line.partition(":")
    if colon and (not rest or rest[0] == " "):
        return ((head + colon, "key"), (rest, ""))
    return ((line, ""),)

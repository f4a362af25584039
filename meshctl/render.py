"""Put replies on stdout as a table, JSON or YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from meshctl.column_widths import Widths, widths
from meshctl.terminal import note, printable
from meshctl.view import Table

if TYPE_CHECKING:
    from rich.console import Console


class Output(StrEnum):
    """How a command prints what it got."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def emit(value: Any, tables: Table | Sequence[Table], output: Output, *, empty: str = "") -> None:
    """Print ``value`` as JSON or YAML, or ``tables`` (its view) for a person.

    An empty list prints ``[]``, so that nothing is never mistaken for a failure; ``empty`` is said to a
    person instead, on standard error, where it was given.
    """
    if output is Output.TABLE:
        shown = [tables] if isinstance(tables, Table) else list(tables)
        if value == []:
            note(empty) if empty else write("[]")
        else:
            for index, table in enumerate(shown):
                print_table(table, gap=index > 0)
    else:
        write(machine_text(value, output))


def tell(message: str, value: Any, output: Output) -> None:
    """Say to a person what was done; print the gate's reply ``value`` for a program."""
    if output is Output.TABLE:
        note(message)
    else:
        emit(value, [], output)


def machine_text(value: Any, output: Output) -> str:
    """``value`` as text that a program reads; keys keep the gate's order."""
    if output is Output.YAML:
        import yaml

        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).removesuffix("\n")
    return json.dumps(value, indent=2, ensure_ascii=False)


def write(text: str) -> None:
    """One text on stdout, flushed so that a pipe sees it now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_table(table: Table, *, gap: bool = False) -> None:
    """A table for a person: rich on a terminal, aligned plain columns into a pipe.

    On a terminal too narrow for its words each row becomes a card, as with psql's ``\\x auto``.
    """
    if gap:
        write("")
    if not sys.stdout.isatty():
        write(plain(table))
        return
    from rich.cells import cell_len
    from rich.console import Console

    console = Console(highlight=False)
    if table.title:  # rich would fold it to the width of the columns
        write(table.title)
    if table.columns == ("", ""):
        _print_card(table.rows, console)
    elif (fitting := widths(table, console.width, cell_len)) is not None:
        _print_columns(table, fitting, console)
    else:
        for index, row in enumerate(table.rows):
            if index:
                write("")
            cells = zip(table.columns, row, strict=True)
            _print_card([(column, cell) for column, cell in cells if cell != "-"], console)


def _print_columns(table: Table, fitting: Widths, console: Console) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, fitting.gap, 0, 0))
    drawn.show_header = any(table.columns)
    for index, (column, width) in enumerate(zip(table.columns, fitting.columns, strict=True)):
        drawn.add_column(
            column, justify="right" if index in table.right else "left", overflow="fold", width=width
        )
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell), style=STYLES.get(cell, "")) for cell in row))
    console.print(drawn)


def _print_card(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    """Name and value, a line each. A value with a word too long for its room is left to the terminal's own
    wrapping: what is copied from there has no line ends in it.
    """
    from rich.cells import cell_len
    from rich.text import Text

    label_width = max((cell_len(label) for label, _ in rows), default=0)
    room = console.width - label_width - 2
    for label, value in rows:
        head = label + " " * (label_width - cell_len(label) + 2)
        shown = Text(printable(value), style=STYLES.get(value, ""))
        whole = any(cell_len(word) > room for word in shown.plain.split())
        for line in shown.split("\n") if whole else shown.wrap(console, room):
            line.rstrip()
            console.print(Text(head).append_text(line), soft_wrap=True)
            head = " " * len(head)


STYLES = {
    "PASSED": "green",
    "FAILED": "bold red",
    "WARNING": "yellow",
    "active": "green",
    "up": "green",
    "revoked": "red",
    "expired": "yellow",
}


def plain(table: Table) -> str:
    """Columns padded with spaces, nothing cut, no colour: greppable and stable."""
    lines = [table.columns, *table.rows] if any(table.columns) else list(table.rows)
    cells = [[" ".join(printable(cell).split("\n")) for cell in line] for line in lines]
    widths = [max((len(line[i]) for line in cells), default=0) for i in range(len(table.columns))]
    text = [table.title] if table.title else []
    for line in cells:
        padded = [
            cell.rjust(widths[i]) if i in table.right else cell.ljust(widths[i])
            for i, cell in enumerate(line)
        ]
        text.append("  ".join(padded).rstrip())
    return "\n".join(text)

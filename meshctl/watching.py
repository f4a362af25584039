"""Look at something again and again, and print it when it has changed: what ``--watch`` does.

A watch outlives the gate that it looks at. Where a context has another pool, the next look goes there (the
gate's ``moved`` says so); where nobody answers, that is said once, and looking goes on until somebody does.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from meshctl.errors import UnreachableError
from meshctl.render import Output, emit, machine_text, plain
from meshctl.terminal import note
from meshctl.view import Table

EVERY_S: Final = 1.0
CLEAR: Final = "\x1b[H\x1b[2J"
"""Cursor home, erase the screen (ECMA-48, CUP and ED)."""

Shown = tuple[Any, Table | Sequence[Table]]
"""What a look found, and its view for a person; as `meshctl.render.emit` takes them."""


def watch(
    look: Callable[[], Shown],
    output: Output,
    *,
    every_s: float = EVERY_S,
    empty: str = "",
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Print what ``look`` gives at first and after each change, until Ctrl-C.

    On a terminal a table takes the place of the one before; elsewhere, and as JSON or YAML, each is printed
    below the last. Errors other than of reaching a gate end the watch: they are the answer.
    """
    last: str | None = None
    away = False
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                value, tables = look()
            except UnreachableError as error:
                if not away:
                    note(f"{error.message} Looking again every {every_s:g} s; Ctrl-C ends it.")
                away = True
            else:
                seen = _text(value, tables, output)
                if away or seen != last:
                    _draw(value, tables, output, first=last is None, empty=empty)
                last, away = seen, False
            sleep(every_s)


def _text(value: Any, tables: Table | Sequence[Table], output: Output) -> str:
    """What would be printed, to compare: a figure that nobody is shown is no change."""
    if output is not Output.TABLE:
        return machine_text(value, output)
    return "\n".join(plain(one) for one in ([tables] if isinstance(tables, Table) else tables))


def _draw(value: Any, tables: Table | Sequence[Table], output: Output, *, first: bool, empty: str) -> None:
    if output is Output.TABLE:
        if sys.stdout.isatty():
            sys.stdout.write(CLEAR)
        elif not first:
            sys.stdout.write("\n")
    emit(value, tables, output, empty=empty)

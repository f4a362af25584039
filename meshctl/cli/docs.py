"""`meshctl docs`: the documents of this version, without a network."""

from __future__ import annotations

from typing import Annotated

import typer

from meshctl import manual, view
from meshctl.cli import options
from meshctl.render import Output, emit, write

commands = options.group("The documents of this version: listed, read, searched; no network is needed.")

PAGES = (view.Column("PAGE", "page"), view.Column("TITLE", "title"))
PLACES = (
    view.Column("PAGE", "page"),
    view.Column("LINE", "line", right=True),
    view.Column("UNDER", "heading"),
    view.Column("TEXT", "text"),
)


@commands.command("list")
def list_(output: options.Format = Output.TABLE) -> None:
    """List the pages."""
    rows = [{"page": one.name, "title": one.title} for one in manual.pages()]
    emit(rows, view.table(rows, PAGES), output)


@commands.command("show")
def show(
    page: Annotated[str, typer.Argument(metavar="PAGE", help="Such as failover, or tunnel.md.")],
    output: options.Format = Output.TABLE,
) -> None:
    """Print a page, in markdown."""
    found = manual.page(page)
    if output is Output.TABLE:
        write(found.text.rstrip())
    else:
        emit({"page": found.name, "title": found.title, "text": found.text}, [], output)


@commands.command("search")
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORD", help="All of them, in any case.")],
    output: options.Format = Output.TABLE,
) -> None:
    """Find the lines that hold these words; headings first."""
    rows = [
        {"page": one.page, "line": one.line + 1, "heading": one.heading, "text": one.text}
        for one in manual.search(" ".join(words), manual.pages())
    ]
    emit(rows, view.table(rows, PLACES), output, empty="Nothing holds all of these words.")

"""`meshctl tui`: the control room on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from meshctl.cli import options
from meshctl.client import Gate
from meshctl.errors import CommandError, UsageError
from meshctl.near_names import suggestion

INSTALL = "pip install 'qgate-mesh[tui]'"


def tui(
    section: Annotated[
        str,
        typer.Option(
            "--section",
            metavar="NAME",
            help="Where to begin, such as workers; without it the overview, in a fresh pool the first steps.",
            show_default=False,
        ),
    ] = "",
    theme: Annotated[
        str | None,
        typer.Option(
            "--theme", metavar="NAME", help="dark, light, colour-blind or mono.", show_default=False
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="en or fr.", show_default=False)
    ] = None,
    ascii_only: Annotated[
        bool | None, typer.Option("--ascii/--no-ascii", help="Draw nothing but ASCII.", show_default=False)
    ] = None,
    mouse: Annotated[
        bool | None, typer.Option("--mouse/--no-mouse", help="Use the mouse.", show_default=False)
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Open the control room: every section, live, on this terminal.

    What is chosen here by option or key (theme, language, ASCII, mouse) is kept for the next time.
    """
    refuse_terminal()
    refuse_names(section, theme, language)
    gate = options.connect(gate_dir, socket)
    chosen = {"theme": theme, "language": language, "ascii_only": ascii_only, "mouse": mouse}
    run(gate, _where(gate_dir, gate), section, {key: one for key, one in chosen.items() if one is not None})


def refuse_terminal() -> None:
    """Raise UsageError where there is no terminal that can be drawn on, with what to do instead."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "The control room needs a terminal, and there is none here.",
            hint="every command does the same in a script: meshctl --help",
        )
    from rich.console import Console

    if Console().is_dumb_terminal:
        raise UsageError(
            "This terminal (TERM=dumb) cannot be drawn on.",
            hint="set TERM to what the terminal is, such as xterm-256color; or use meshctl status --watch",
        )


def refuse_names(section: str, theme: str | None, language: str | None) -> None:
    """Raise UsageError for a section, a theme or a language that there is not, with those that there are."""
    try:
        from meshctl.tui import sections, words
        from meshctl.tui.branded import POOL_THEME
        from meshctl.tui.themes import THEMES
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    if section and sections.named(section) is None:
        raise _unknown("section", section, (entry.id for entry in sections.present()))
    themes = (*(one.name for one in THEMES), POOL_THEME)
    if theme is not None and theme not in themes:
        raise _unknown("theme", theme, themes)
    if language is not None and language not in words.languages():
        raise _unknown("language", language, words.languages())


def _unknown(what: str, given: str, there: Iterable[str]) -> UsageError:
    names = tuple(there)
    hint = suggestion(given, names, "") or f"choose from {', '.join(names)}"
    return UsageError(f'There is no {what} "{given}".', hint=hint)


def _missing(error: ModuleNotFoundError) -> Exception:
    """What to raise for a module that is not there: only the screen's own library may be left out."""
    if error.name is None or not error.name.startswith("textual"):
        return error
    return CommandError("The control room is not installed.", hint=INSTALL)


def run(gate: Gate, where: str, section: str, chosen: dict[str, object]) -> None:
    """Open the screen; where a person chose another context in it, open it again there, at what they saw."""
    try:
        from meshctl.tui import preferences
        from meshctl.tui.context_screen import LOCAL
        from meshctl.tui.room import Launch, Room
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    file = preferences.place()
    home = gate if where == LOCAL else options.local_gate()
    while True:
        liked = preferences.load(file).changed(**chosen)
        room = Room(Launch(gate, where, liked, file, section, at_home=home is not None))
        following = room.run(mouse=liked.mouse)
        if not following:
            return
        if following == LOCAL and home is not None and LOCAL not in options.context_names(LOCAL):
            gate, where = home, LOCAL
        else:
            gate, where = options.over_context(following), following
        section = room.picture


def _where(gate_dir: Path | None, gate: Gate) -> str:
    if isinstance(gate_dir, options.ContextName):
        return str(gate_dir)
    context = getattr(gate.dialler, "context", None)
    return str(context.name) if context is not None else "local"

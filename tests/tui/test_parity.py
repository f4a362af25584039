"""What the control API lets be changed can be changed here and by command; what cannot is listed."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import typer

from meshctl.__main__ import app
from meshctl.tui import sections
from meshctl.tui.declare import Action
from tests.tui.spoken import METHODS, OPEN, Operation, same, spoken

ROOT: Final = Path(__file__).resolve().parents[2]
PREFIX: Final = "/control/v1"

NOT_ON_THE_SCREEN: Final[Mapping[Operation, str]] = {
    ("POST", "/backup"): "writes a file at the gate's own path; meshctl gate backup, from a timer",
    ("POST", "/drain"): "ends the gate that the screen is on; meshctl gate drain beside a service manager",
    ("POST", "/session/setup-token"): "printed for somebody else, before there is anybody to log in",
    ("POST", "/session/token"): "asked for by the connection itself, each time its token ends",
    ("PUT", "/smtp/recipients"): "recipients come and go one by one with the settings of SMTP",
}
"""Changes without an action. It should shrink."""

NOT_BY_COMMAND: Final[Mapping[Operation, str]] = {
    ("PUT", "/models/upload"): "meshctl model add streams it, by a path that is put together as it runs",
    ("PUT", "/logs/import"): "meshctl pool log import does, the same way",
}
"""Changes without a command that can be read from the source. It should not grow."""


def changes() -> set[Operation]:
    """Every change that the published description names."""
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    return {
        (method.upper(), same(path.removeprefix(PREFIX)))
        for path, methods in paths.items()
        for method in methods
        if method.upper() in METHODS
    }


def lacking(said: Iterable[Operation]) -> set[Operation]:
    """Changes that nobody asks for. What is open in a path may stand for any word, two in a row for more; a
    budget's id holds a slash.
    """
    patterns = [
        (method, re.compile(re.escape(path).replace(r"\{\}\{\}", ".*").replace(r"\{\}", "[^/]+")))
        for method, path in said
    ]
    return {
        (method, path)
        for method, path in changes()
        if not any(
            (one == method and pattern.fullmatch(re.sub(r"^(/budgets/\{\})/\{\}$", r"\1", path)))
            or (one == method and pattern.fullmatch(path))
            for one, pattern in patterns
        )
    }


def test_every_change_is_on_the_screen_or_says_why_not() -> None:
    missing = lacking(spoken(ROOT / "meshctl" / "tui"))
    assert missing == set(NOT_ON_THE_SCREEN), missing ^ set(NOT_ON_THE_SCREEN)


def test_every_change_has_a_command_or_says_why_not() -> None:
    missing = lacking(spoken(ROOT / "meshctl", without="tui/"))
    assert missing == set(NOT_BY_COMMAND), missing ^ set(NOT_BY_COMMAND)


def test_nothing_is_asked_for_that_the_gate_does_not_know() -> None:
    known = [(method, re.compile(re.escape(path).replace(r"\{\}", ".+"))) for method, path in changes()]
    unknown = {
        (method, path): home
        for (method, path), home in spoken(ROOT / "meshctl" / "tui").items()
        if path.count(OPEN) < 2 and not path.endswith(OPEN)
        if not any(one == method and pattern.fullmatch(path) for one, pattern in known)
    }
    assert not unknown


def every_action() -> list[Action]:
    """Those of panes that are drilled into as well: all that any module declares."""
    for entry in sections.present():
        sections.load(entry)
    found = {one.id: one for one in gc.get_objects() if isinstance(one, Action)}
    return [found[name] for name in sorted(found)]


def commands() -> Any:
    """The tree of commands, groups as mappings, commands as None."""

    def tree(command: Any) -> Any:
        inner = getattr(command, "commands", None)
        return None if inner is None else {name: tree(one) for name, one in inner.items()}

    return tree(typer.main.get_command(app))


def test_the_command_of_every_action_is_there() -> None:
    tree = commands()
    missing = {one.id: one.cli for one in every_action() if not there(one.cli, tree)}
    assert not missing


def there(command: str, tree: Any) -> bool:
    """Whether the words of a command lead somewhere."""
    first, *words = command.split()
    level = tree
    for word in words:
        if level is None or word.startswith("-"):  # arguments and options of a command
            break
        if word not in level:
            return False
        level = level[word]
    return first == "meshctl"

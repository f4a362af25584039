"""What every section declares: keys of one meaning, words in every language, commands that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from meshctl.__main__ import app
from meshctl.tui import keys, sections
from meshctl.tui.declare import TOPICS, Action, Confirm, Role, Section
from qgate.control.access import OPERATIONS

PRESENT = [sections.load(entry) for entry in sections.present()]


def actions() -> Iterator[tuple[Section, Action]]:
    for section in PRESENT:
        for action in section.actions():
            yield section, action


def test_every_section_has_a_key_of_its_own() -> None:
    assert len(sections.ENTRIES) == 17
    found = [entry.key for entry in sections.ENTRIES]
    assert len(set(found)) == 17
    assert all(key.isupper() and key not in keys.RESERVED for key in found)
    assert all(
        entry.id == section.id and entry.title == section.title
        for entry, section in zip(sections.present(), PRESENT, strict=True)
    )
    assert sections.named("workers") is not None
    assert sections.named("migr") is not None
    assert sections.named("") is None


@pytest.mark.parametrize("section", PRESENT, ids=lambda one: one.id)
def test_a_pane_has_each_key_once_and_none_of_the_screens_own(section: Section) -> None:
    assert section.about
    assert len({pane.id for pane in section.panes}) == len(section.panes)
    for pane in section.panes:
        taken = [action.key for action in pane.actions]
        taken += [switch.key for switch in getattr(pane, "switches", ())]
        assert len(taken) == len(set(taken)), pane.id
        assert not set(taken) & keys.RESERVED, pane.id
        assert not any(len(key) == 1 and key.isupper() for key in taken), pane.id
        assert pane.topic in {"", *TOPICS}, pane.id


@pytest.mark.parametrize("section", PRESENT, ids=lambda one: one.id)
def test_what_cannot_be_undone_is_asked_about(section: Section) -> None:
    for action in section.actions():
        if action.method == "DELETE" and action.opens is None and action.undo is None:
            assert action.confirm is Confirm.NAME, action.id


def commands() -> dict[str, Any]:
    def tree(command: Any) -> dict[str, Any]:
        return {name: tree(one) for name, one in (getattr(command, "commands", None) or {}).items()}

    return tree(typer.main.get_command(app))


@pytest.mark.parametrize("section", PRESENT, ids=lambda one: one.id)
def test_every_action_has_a_command_that_does_the_same(section: Section) -> None:
    tree = commands()
    said = [(pane.id, pane.cli) for pane in section.panes]
    said += [(action.id, action.cli) for action in section.actions()]
    for name, command in said:
        assert command.startswith("meshctl "), name
        level = tree
        for word in command.split()[1:]:
            if not level or not re.fullmatch(r"[a-z][a-z-]*", word):
                break
            assert word in level, f"{name}: there is no command {command}"
            level = level[word]


@pytest.mark.parametrize("section", PRESENT, ids=lambda one: one.id)
def test_every_action_asks_for_the_role_that_the_gate_wants(section: Section) -> None:
    """The gate decides; a screen that says otherwise would refuse what may be done, or offer what may not."""

    def same(template: str) -> str:
        return re.sub(r"\{[^}]*\}", "{}", template)

    table = {(method, same(path)): role for (method, path), role in OPERATIONS.items()}
    for action in section.actions():
        default = "viewer" if action.method == "GET" else "admin"
        wanted = table.get((action.method, same(action.path)), default)
        assert action.role == Role(str(getattr(wanted, "value", wanted)).lower()), action.id

"""Where `:` and ctrl+p lead: sections and their panes, rows by name, themes, languages, contexts, actions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from meshctl.tui import sections, words
from meshctl.tui.bars import shown_key
from meshctl.tui.context_screen import go_over
from meshctl.tui.table import TableView
from meshctl.tui.themes import THEMES
from meshctl.tui.typed_ahead import MOVING

if TYPE_CHECKING:
    from meshctl.tui.declare import Action, Section
    from meshctl.tui.pane import PaneView
    from meshctl.tui.room import Room


def destinations(room: Room) -> list[str]:
    """Everything that completes after `:`, sections first."""
    found: list[str] = []
    for entry in sections.present():
        found += [entry.id, *entry.aliases]
    pane = room.pane
    if isinstance(pane, TableView):
        section = room.section
        assert section is not None
        found += [
            f"{section.section.id} {pane.name_of(record)}" for record in list(pane.records.values())[:200]
        ]
    found += [f"theme {theme.name}" for theme in THEMES]
    found += [f"language {language}" for language in words.languages()]
    return [
        *found,
        "ascii on",
        "ascii off",
        "context",
        *(["context local"] if room.launch.at_home else []),
        "help",
        "quit",
    ]


async def go(room: Room, line: str) -> None:
    """Go where a line says: a section, a row of it (``workers gpu-1``), or what it asks for."""
    word, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    match word:
        case "q" | "quit" | "exit":
            room.exit()
        case "theme":
            room.use_theme(rest)
        case "language" | "lang":
            room.use_language(rest)
        case "ascii":
            room.use_ascii(rest != "off")
        case "help":
            room.action_help()
        case "context" | "ctx":
            if rest:
                await go_over(room, rest)
            else:
                room.action_contexts()
        case _:
            await _section(room, line, word, rest)


async def _section(room: Room, line: str, word: str, rest: str) -> None:
    whole = sections.named(line)
    entry = whole or sections.named(word)
    if entry is None:
        near = difflib.get_close_matches(word.casefold(), destinations(room), 1)
        also = room.say("Did you mean :{name}?", name=near[0]) if near else room.say("tab completes names")
        room.warn(f"{room.say('There is no section {name}.', name=word)} {also}")
        return
    section = sections.load(entry)
    await room.show_section(entry.id, pane=_pane(section, line if whole else word))
    if rest and whole is None:
        await _row(room, rest)


def _pane(section: Section, word: str) -> int | None:
    """The pane that an alias such as ``:databases`` means, None for the one that is in front."""
    wanted = word.strip().casefold()
    for number, pane in enumerate(section.panes):
        if wanted in {pane.id, pane.title.casefold()} and wanted != section.id:
            return number
    return None


async def _row(room: Room, name: str) -> None:
    pane = room.pane
    if not isinstance(pane, TableView):
        if pane is not None:
            pane.open_named(name)
        return
    if not pane.loaded:
        await pane.load()
    found = next((key for key, record in pane.records.items() if pane.name_of(record) == name), None)
    if found is None:
        pane.narrow(name)
    else:
        pane.narrow("")
        pane.choose(found)
        pane.open_chosen()


def commands(room: Room) -> Iterator[SystemCommand]:
    """What ctrl+p finds: what can be done here and in the other panes of the section, sections, and how all
    is shown.
    """
    say = room.say
    section, pane = room.section, room.pane
    if pane is not None:
        yield from _doable(room, pane)
    others = [
        (number, other)
        for number, other in enumerate(section.section.panes if section is not None else ())
        if pane is not None and other is not pane.pane
    ]
    for number, other in others:
        here = {one.id for one in pane.actions()} if pane is not None else set()
        for action in other.actions:
            if action.id not in here:
                yield SystemCommand(
                    f"{say(other.title)}: {say(action.label)}",
                    action.cli,
                    lambda number=number, one=action: room.run_worker(
                        _elsewhere(room, number, one), group=MOVING
                    ),
                )
    for number, other in others:
        yield SystemCommand(
            say(other.title),
            say("Go to this pane ({number})", number=number + 1),
            lambda number=number: room.action_pane(number),
        )
    for entry in sections.present():
        yield SystemCommand(
            say(entry.title),
            say("Go to this section ({key})", key=entry.key),
            lambda name=entry.id: room.action_section(name),
        )
    for theme in THEMES:
        yield SystemCommand(
            say("Theme: {name}", name=theme.name),
            say("Colours"),
            lambda name=theme.name: room.use_theme(name),
        )
    for language in words.languages():
        yield SystemCommand(
            say("Language: {name}", name=language),
            say("Words"),
            lambda name=language: room.use_language(name),
        )
    yield SystemCommand(
        say("Draw ASCII only"), say("Lines and marks"), lambda: room.use_ascii(not room.ascii_only)
    )
    yield SystemCommand(say("Contexts"), say("Other gates and pools"), room.action_contexts)
    yield SystemCommand(say("Audit"), say("Its tail, as it grows"), room.action_audit)
    yield SystemCommand(say("Take back"), say("The newest change"), room.action_undo)
    yield SystemCommand(say("Export"), say("What is shown, into a file"), room.action_export)
    yield SystemCommand(say("Screenshot"), say("A picture as SVG"), room.action_shot)
    yield SystemCommand(say("Help"), say("The keys of this screen"), room.action_help)
    yield SystemCommand(say("Quit"), say("End"), room.exit)


def _doable(room: Room, pane: PaneView) -> Iterator[SystemCommand]:
    records = pane.chosen()
    for action in pane.actions():
        why = room.acting.reason(action, records)
        note = room.say("not now: {why}", why=why) if why else action.said(records)
        label = f"{room.say(action.label)}   {shown_key(action.key)}"
        yield SystemCommand(label, note, lambda one=action: room.perform(one))


async def _elsewhere(room: Room, number: int, action: Action) -> None:
    """To the pane of an action; done at once only where it needs no row, for nobody has chosen one there."""
    if room.section is None:
        return
    await room.section.go(number)
    room.refresh_bars()
    if action.row:
        room.tell(room.say("{key} does that to the row under the cursor.", key=shown_key(action.key)))
    else:
        room.perform(action)

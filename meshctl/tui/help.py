"""The keys of the screen that is in front."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType

from meshctl.tui import keys, sections
from meshctl.tui.bars import shown_key
from meshctl.tui.confirm import TextScreen

if TYPE_CHECKING:
    from meshctl.tui.room import Room


class HelpScreen(TextScreen):
    """The keys, and the way to the section's page of the documents."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("K,o", "manual", show=False)]

    def __init__(self, title: str, lines: list[tuple[str, str]], *, page: str) -> None:
        super().__init__(title, lines)
        self.page = page

    def action_manual(self) -> None:
        """Read the page, over the section."""
        from meshctl.tui.screens.documentation import open_page

        self.dismiss(None)
        if self.page:
            open_page(self.room, self.page)


def help_screen(room: Room) -> HelpScreen:
    """The section's own keys first, each with the command that does the same; then those of everywhere."""
    say = room.say
    lines: list[tuple[str, str]] = []
    section, pane = room.section, room.pane
    if section is not None and section.section.about:
        lines += [("", say(section.section.about))]
    page = section.section.page if section is not None else ""
    if page:
        lines += [("K", say("Read about it: {page}", page=page))]
    if pane is not None:
        for action in pane.actions():
            lines.append((say(shown_key(action.key)), f"{say(action.label)}   = {action.cli}"))
        lines += [(say(shown_key(key)), say(label)) for key, label in pane.hints()]
    lines += [("", ""), ("", say("Everywhere"))]
    lines += [(say(key), say(label)) for key, label in keys.EVERYWHERE]
    lines += [("", ""), ("", say("Sections"))]
    lines += [(entry.key, say(entry.title)) for entry in sections.present()]
    title = say(section.section.title) if section is not None else say("Help")
    return HelpScreen(title, lines, page=page)

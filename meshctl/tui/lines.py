"""What the lines at the top and the bottom say: put together from the room, drawn by its bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshctl.tui.bars import Bar, Hint, crumbs, footer, header, shown_key
from meshctl.tui.feed import Link

if TYPE_CHECKING:
    from textual.screen import Screen

    from meshctl.tui.room import Room


class Lines:
    """The header, the breadcrumbs and the footer of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def draw(self, screen: Screen[object]) -> None:
        """Draw them again, where they changed. Raises NoMatches before they are there."""
        room, say = self._room, self._room.say
        top, line, keys = (screen.query_one(f"#{name}", Bar) for name in ("top", "crumbs", "keys"))
        width = room.size.width - 2
        place = room.launch.gate.place
        where = f"{room.launch.where}@{place}" if place else room.launch.where
        top.tell(
            header(
                room.brand,
                f"{room.pool} {where}".strip(),
                room.principal.label,
                say(str(room.principal.role)),
                read_only=say("read-only") if room.principal.read_only else "",
                link=room.standing.link,
                note=self._link_note(),
                width=width,
            )
        )
        section = room.section
        if section is not None:
            trail = (say(section.section.title), *section.trail)
            panes = [say(pane.title) for pane in section.section.panes]
            separator = ">" if room.ascii_only else "›"
            line.tell(crumbs(trail, panes, section.number, separator=separator, width=width))
        keys.tell(footer(self._hints(), self._always(), width))

    def _link_note(self) -> str:
        room = self._room
        note = room.say(str(room.standing.link))
        if room.standing.link in {Link.AWAY, Link.REFUSED}:
            note += f" {room.silence_s:.0f} s"
        return note

    def _hints(self) -> list[Hint]:
        room, say = self._room, self._room.say
        hints = [Hint("...", room.under_way)] if room.under_way else []
        pane = room.pane
        if pane is not None:
            records = pane.chosen()
            actions = [
                Hint(say(shown_key(one.key)), say(one.label), room.acting.reason(one, records))
                for one in pane.actions()
            ]
            hints += sorted(actions, key=lambda hint: bool(hint.why))
            hints += [Hint(say(shown_key(key)), say(label)) for key, label in pane.hints()]
        return hints

    def _always(self) -> list[Hint]:
        room, say = self._room, self._room.say
        narrows = room.pane is not None and room.pane.narrows
        return [
            *([Hint("/", say("filter"))] if narrows else []),
            Hint(":", say("go")),
            Hint(".", say("all")),
            Hint("?", say("help")),
        ]

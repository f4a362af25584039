"""What ctrl+p finds, by its name or by the command that does the same: what can be done here comes first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider, SearchIcon
from textual.markup import escape

from meshctl.tui import jumping

if TYPE_CHECKING:
    from textual.app import SystemCommand

    from meshctl.tui.room import Room

BY_NOTE: Final = 0.5
"""What the note of a command counts beside its name."""

LATER: Final = 0.002
"""How much less a command counts than the one before it: what is done here comes before what is elsewhere."""


class Palette(CommandPalette):
    """The palette in ASCII where that is wanted, and without a picture whose width terminals disagree on."""

    def on_mount(self) -> None:
        """Draw the sign."""
        self.query_one(SearchIcon).icon = ">"


class RoomCommands(Provider):
    """The commands of `meshctl.tui.jumping`, in their order; a search looks into name and note."""

    def _commands(self) -> Iterator[SystemCommand]:
        return jumping.commands(cast("Room", self.app))

    async def discover(self) -> Hits:
        """All of them, as long as nothing is typed."""
        for one in self._commands():
            yield DiscoveryHit(escape(one.title), one.callback, text=one.title, help=escape(one.help))

    async def search(self, query: str) -> Hits:
        """Those that match, the best first."""
        matcher = self.matcher(query)
        for number, one in enumerate(self._commands()):
            found = matcher.match(one.title) * max(0.1, 1 - LATER * number)
            if found > 0:
                yield Hit(found, matcher.highlight(one.title), one.callback, one.title, escape(one.help))
            elif query.casefold() in one.help.casefold():
                score = BY_NOTE * len(query) / len(one.help)
                yield Hit(score, escape(one.title), one.callback, one.title, escape(one.help))

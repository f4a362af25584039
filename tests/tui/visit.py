"""A person at the control room, for tests: presses keys, reads the screen, waits for what is to come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from textual import events
from textual.keys import _character_to_key
from textual.pilot import Pilot

from meshctl.tui.room import Launch, Room

PATIENCE_S: Final = 30.0
"""How long anything may take on a machine with too much to do."""

NAMES: Final = {
    " ": "space",
    ":": "colon",
    "/": "slash",
    "=": "equals_sign",
    "-": "minus",
    "!": "exclamation_mark",
    ".": "full_stop",
    "_": "underscore",
    "#": "number_sign",
}
"""What Textual calls the keys of these characters."""


class Visit:
    """The screen and the keyboard."""

    def __init__(self, room: Room, pilot: Pilot[str]) -> None:
        self.room = room
        self.pilot = pilot
        self._said: dict[str, str] = {}

    def text(self) -> str:
        """What the screen shows, line by line, without what is blank at the right."""
        screen = self.room.screen
        lines = screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other, each when the process has done what the one before it began."""
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Type a text as fast as it comes from a terminal that pastes, but for its last character."""
        for char in text[:-1]:
            self._send(char)
        await self.pilot.press(*text[-1:])

    def _send(self, char: str) -> None:
        event = events.Key(char if char.isalnum() else _character_to_key(char), char)
        event.set_sender(self.room)
        driver = self.room._driver
        assert driver is not None
        driver.send_message(event)

    async def until(self, condition: Callable[[], bool], what: str = "the screen") -> None:
        """Wait until something is so; fails with the screen as it is then."""
        end = time.monotonic() + PATIENCE_S
        while self.toasts() is None or not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come:\n{self.text()}\nsaid: {self.toasts()}")
            await asyncio.sleep(0.01)
            await self.pilot.pause()

    async def sees(self, *texts: str) -> None:
        """Wait until the screen shows these texts."""
        await self.until(lambda: all(text in self.text() for text in texts), ", ".join(texts))

    async def sees_no(self, text: str) -> None:
        """Wait until the screen does not show a text."""
        await self.until(lambda: text not in self.text(), f"no {text}")

    def toasts(self) -> list[str]:
        """What was said in passing, as far as somebody looked."""
        self._said |= {one.identity: one.message for one in self.room._notifications}
        return list(self._said.values())

    async def told(self, text: str) -> None:
        """Wait until something was said in passing."""
        await self.until(lambda: any(text in one for one in self.toasts()), f"the word {text!r}")


@asynccontextmanager
async def visiting(launch: Launch, *, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Visit]:
    """Open the control room without a terminal."""
    room = Room(launch)
    async with room.run_test(size=size) as pilot:
        yield Visit(room, pilot)

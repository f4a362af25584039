"""One of several values, chosen by arrows, space or first letter; needs neither a list nor line drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Choice(Widget, can_focus=True):
    """``values`` in their order; ``value`` is the one chosen, "" where none is yet. ``called``: what they are
    called on the screen, where that is something else.
    """

    DEFAULT_CSS: ClassVar[str] = """
    Choice { height: 1; width: 1fr; padding: 0 1; background: $surface; }
    Choice:focus { background: $primary 35%; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,space,l", "turn(1)", show=False),
        Binding("left,h", "turn(-1)", show=False),
    ]

    value: reactive[str] = reactive("")

    class Changed(Message):
        """Another value was chosen."""

    def __init__(self, values: Sequence[str], value: str, called: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.values = tuple(values)
        self.called = called or {}
        self.set_reactive(Choice.value, value)

    def render(self) -> str:
        """The value between arrows, and how many others there are."""
        place = (
            f"  {self.values.index(self.value) + 1}/{len(self.values)}" if self.value in self.values else ""
        )
        return f"< {self._called(self.value) or '-'} >{place}".replace("[", r"\[")

    def _called(self, value: str) -> str:
        return self.called.get(value, value)

    def action_turn(self, by: int) -> None:
        """The next or the previous value."""
        if self.values:
            here = self.values.index(self.value) if self.value in self.values else (-1 if by > 0 else 0)
            self.value = self.values[(here + by) % len(self.values)]
            self.post_message(self.Changed())

    def on_key(self, event: events.Key) -> None:
        """A letter goes to the next value that begins with it."""
        if event.character is None or not event.character.isalnum():
            return
        here = self.values.index(self.value) if self.value in self.values else -1
        order = [*self.values[here + 1 :], *self.values[: here + 1]]
        letter = event.character.casefold()
        found = next((one for one in order if self._called(one).casefold().startswith(letter)), None)
        if found is not None:
            event.stop()
            self.value = found
            self.post_message(self.Changed())

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.action_turn(1)

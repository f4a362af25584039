"""The line for `:` and `/`: what is typed there, its history, and its completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.suggester import SuggestFromList
from textual.widgets import Input

if TYPE_CHECKING:
    from textual import events

HISTORY = 100


class Prompt(Input):
    """Hidden until it is asked for; ``typed`` hears of each letter, ``done`` of the end, None for escape."""

    DEFAULT_CSS: ClassVar[str] = """
    Prompt { height: 1; border: none; padding: 0 1; background: $panel; }
    Prompt:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", show=False),
        Binding("up", "recall(-1)", show=False),
        Binding("down", "recall(1)", show=False),
        Binding("tab", "complete", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="prompt", select_on_focus=False)
        self.sign = ""
        self.asked = False
        self.history: dict[str, list[str]] = {}
        self._typed: Callable[[str], None] = _ignore
        self._done: Callable[[str | None], None] = lambda _text: None
        self._words: Sequence[str] = ()
        self._at = 0

    def on_mount(self) -> None:
        """Not seen before it is asked for."""
        self.display = False

    def ask(
        self,
        sign: str,
        *,
        given: str = "",
        words: Sequence[str] = (),
        typed: Callable[[str], None] | None = None,
        done: Callable[[str | None], None],
    ) -> None:
        """Ask for a line; ``words`` complete it."""
        self.sign = sign
        self._typed, self._done, self._words = typed or _ignore, done, words
        self._at = len(self.history.setdefault(sign, []))
        self.suggester = SuggestFromList(words, case_sensitive=False) if words else None
        with self.prevent(Input.Changed):
            self.value = sign + given
        self.cursor_position = len(self.value)
        self.asked = self.display = True
        self.screen.set_focus(self)  # now: the letters that were typed after the sign come here

    @property
    def line(self) -> str:
        """What was typed after the sign."""
        return self.value.removeprefix(self.sign)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Tell of each letter; taking the sign away ends it."""
        event.stop()
        if not self.asked:
            return
        if not self.value.startswith(self.sign):
            self.action_give_up()
        else:
            self._typed(self.line)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The end, with what was typed."""
        event.stop()
        line = self.line.strip()
        kept = self.history[self.sign]
        if line and (not kept or kept[-1] != line):
            kept.append(line)
            del kept[:-HISTORY]
        self._close(line)

    def action_give_up(self) -> None:
        """The end, with nothing."""
        self._close(None)

    def _close(self, line: str | None) -> None:
        self.asked = self.display = False
        self._done(line)

    def action_recall(self, by: int) -> None:
        """An older or newer line."""
        kept = self.history[self.sign]
        self._at = max(0, min(len(kept), self._at + by))
        self.value = self.sign + (kept[self._at] if self._at < len(kept) else "")
        self.cursor_position = len(self.value)

    def action_complete(self) -> None:
        """The first word that begins like this."""
        typed = self.value.casefold()
        found = next((word for word in self._words if word.casefold().startswith(typed)), None)
        if found is not None:
            self.value = found
            self.cursor_position = len(found)

    def _on_blur(self, event: events.Blur) -> None:
        super()._on_blur(event)
        if self.asked and self.screen.is_current and self.app.app_focus:
            self.action_give_up()


def _ignore(_text: str) -> None:
    return

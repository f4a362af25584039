"""Questions before something is done, and what is shown once after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from meshctl.tui.declare import Call

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.tui.room import Room

LISTED = 8
"""Requests listed in a question; the rest is counted."""


class Modal(ModalScreen[object]):
    """A box over the screen. Escape leaves it with nothing."""

    DEFAULT_CSS: ClassVar[str] = """
    Modal { align: center middle; }
    Modal > .modal--box {
        width: 76; max-width: 96%; height: auto; max-height: 90%; padding: 0 2; border: round $primary;
        background: $panel;
    }
    Modal.-grave > .modal--box { border: round $error; }
    Modal .modal--title { text-style: bold; height: auto; }
    Modal .modal--muted { color: $text-muted; height: auto; }
    Modal .modal--bad { color: $text-error; height: auto; }
    Modal .modal--code { color: $text-accent; height: auto; }
    Modal VerticalScroll { height: auto; max-height: 16; }
    Modal Input { border: none; height: 1; padding: 0 1; background: $surface; }
    Modal Input:focus { border: none; background: $primary 35%; }
    Modal.-plain > .modal--box { border: ascii $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False)]

    @property
    def room(self) -> Room:
        """The application."""
        return cast("Room", self.app)

    def say(self, text: str, **values: object) -> str:
        """A text in the person's language."""
        return self.room.say(text, **values)

    def action_leave(self) -> None:
        """Nothing was decided."""
        self.dismiss(None)

    def on_mount(self) -> None:
        """Draw with ASCII where that is wanted."""
        self.set_class(self.room.ascii_only, "-plain")


def told(*parts: str, classes: str) -> Static:
    """Lines of plain text; nothing in them is markup."""
    return Static(Content("\n".join(parts)), classes=classes)


class ConfirmScreen(Modal):
    """Yes or no; True for yes. With ``name`` it has to be typed: what follows cannot be undone."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", show=False),
        Binding("n", "leave", show=False),
        Binding("q", "leave", show=False),
    ]

    def __init__(
        self, question: str, calls: Sequence[Call], *, name: str = "", plan: str = "", undoable: bool = False
    ) -> None:
        super().__init__()
        self.question = question
        self.calls = calls
        self.wanted = name
        self.plan = plan
        self.undoable = undoable
        self.set_class(bool(name), "-grave")

    def compose(self) -> ComposeResult:
        """The question, the requests and commands, and how to answer."""
        with Vertical(classes="modal--box"):
            yield told(self.question, classes="modal--title")
            if self.plan:
                yield told(self.plan, classes="modal--muted")
            with VerticalScroll(can_focus=False):
                for call in self.calls[:LISTED]:
                    yield told(f"{call.method} {call.path}", classes="modal--muted")
                    if call.cli:
                        yield told(f"= {call.cli}", classes="modal--code")
                if (more := len(self.calls) - LISTED) > 0:
                    yield told(self.say("and {count} more", count=more), classes="modal--muted")
            if self.wanted:
                yield told(
                    self.say("This cannot be undone. Type {name} to go on.", name=self.wanted),
                    classes="modal--bad",
                )
                yield Input()
                yield told(self.say("enter go on   esc cancel"), classes="modal--muted")
            else:
                last = self.say("u takes it back afterwards") if self.undoable else ""
                yield told(f"{self.say('y yes   n no')}   {last}".rstrip(), classes="modal--muted")

    def action_yes(self) -> None:
        """Yes, where nothing has to be typed."""
        if not self.wanted:
            self.dismiss(True)

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        if event.value.strip() == self.wanted:
            self.dismiss(True)
        else:
            self.room.warn(self.say("That is not {name}; nothing was done.", name=self.wanted))
            event.input.value = ""


class OnceScreen(Modal):
    """What is shown once: secrets of an answer, to be copied now; each of ``parts`` by a digit of its own.

    Nothing but escape closes it: whoever presses enter once more than was asked for loses nothing.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "copy", show=False),
        *(Binding(str(number), f"copy_part({number - 1})", show=False) for number in range(1, 10)),
    ]

    def __init__(self, title: str, text: str, parts: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__()
        self.heading = title
        self.text = text
        self.parts = parts[:9]

    def compose(self) -> ComposeResult:
        """The text, and how to copy it."""
        with Vertical(classes="modal--box"):
            yield told(self.heading, classes="modal--title")
            yield told(self.say("This is shown once and kept nowhere: copy it now."), classes="modal--bad")
            with VerticalScroll():
                for number, (name, value) in enumerate(self.parts):
                    yield told(f"{number + 1}  {name}", classes="modal--muted")
                    yield told(f"   {value}", classes="modal--code")
                if not self.parts:
                    yield told(self.text, classes="modal--code")
            digits = self.say("1 to {last} copy one", last=len(self.parts)) + "   " if self.parts else ""
            yield told(f"{digits}{self.say('c copy   esc close')}", classes="modal--muted")

    def action_copy_part(self, number: int) -> None:
        """One of the parts to the terminal's clipboard."""
        if number < len(self.parts):
            self.room.copy(self.parts[number][1])

    def action_copy(self) -> None:
        """To the terminal's clipboard."""
        self.room.copy(self.text)


class TextScreen(Modal):
    """A text to be read and closed, such as the keys of this screen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,q,question_mark", "leave", show=False)]

    def __init__(self, title: str, lines: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.heading = title
        self.lines = lines

    def compose(self) -> ComposeResult:
        """Keys at the left, what they do at the right."""
        width = max((len(left) for left, _ in self.lines), default=0)
        with Vertical(classes="modal--box"):
            yield told(self.heading, classes="modal--title")
            with VerticalScroll():
                for left, right in self.lines:
                    style = "modal--muted" if left else "modal--title"
                    yield told(f"{left.ljust(width)}  {right}" if left else right, classes=style)
            yield told(self.say("esc close"), classes="modal--muted")

"""Everything that can be done in the pane in front, in one list, with the reason where something cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from meshctl.tui.bars import shown_key
from meshctl.tui.confirm import Modal, told

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.tui.pane import PaneView
    from meshctl.tui.room import Room


class ActionMenu(Modal):
    """Ends with the chosen action, or None."""

    DEFAULT_CSS: ClassVar[str] = """
    ActionMenu OptionList { border: none; background: $panel; height: auto; max-height: 18; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor(1)", show=False),
        Binding("k", "cursor(-1)", show=False),
        Binding("q,full_stop", "leave", show=False),
    ]

    def __init__(self, room: Room, pane: PaneView) -> None:
        super().__init__()
        self.records = records = pane.chosen()
        self.offered = [(action, room.acting.reason(action, records)) for action in pane.actions()]

    def compose(self) -> ComposeResult:
        """A line an action."""
        with Vertical(classes="modal--box"):
            yield told(self.say("What can be done here"), classes="modal--title")
            if not self.offered:
                yield told(self.say("Nothing: this is for looking."), classes="modal--muted")
            yield OptionList(*(self._option(n) for n in range(len(self.offered))))
            yield told(self.say("enter do it   esc close"), classes="modal--muted")

    def _option(self, number: int) -> Option:
        action, why = self.offered[number]
        label = f"{self.say(shown_key(action.key)):>5}  {self.say(action.label)}"
        note = why or f"= {action.said(self.records)}"
        text = Content.assemble(label, (f"   {note}", "$text-muted"))
        return Option(text, id=str(number))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Do it, or say why not."""
        action, why = self.offered[event.option_index]
        if why:
            self.room.warn(why)
        else:
            self.dismiss(action)

    def on_key(self, event: events.Key) -> None:
        """The actions' own keys work here too."""
        for action, why in self.offered:
            if event.key == action.key:
                event.stop()
                if why:
                    self.room.warn(why)
                else:
                    self.dismiss(action)
                return

    def action_cursor(self, by: int) -> None:
        """Up or down as in vi."""
        options = self.query_one(OptionList)
        if by > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

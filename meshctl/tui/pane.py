"""What every pane on the screen has in common: its actions, what is chosen in it, when it looks again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.css.query import NoMatches
from textual.widget import Widget

from meshctl.tui.declare import CHANGES, Action, CardPane, OwnPane, Pane, Record, TablePane, named
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.room import Room


class PaneView(Widget):
    """A pane's widget. Subclasses fill `compose`, `load` and, where they have records, `chosen`.

    ``crumb`` is its name in the breadcrumbs. Only the pane in front hears of news (`told`).
    """

    DEFAULT_CSS: ClassVar[str] = "PaneView { width: 1fr; height: 1fr; }"

    narrows: ClassVar[bool] = False
    """Whether `/` finds something here."""

    def __init__(self, pane: Pane, *, crumb: str = "") -> None:
        super().__init__()
        self.pane = pane
        self.crumb = crumb
        self.problem = ""
        """Why what is shown is not current; "" while it is."""
        self._loading = False
        self._again = False

    @property
    def room(self) -> Room:
        """The application."""
        return cast("Room", self.app)

    def say(self, text: str, **values: object) -> str:
        """A text in the person's language."""
        return self.room.say(text, **values)

    # --- what others ask

    def actions(self) -> Sequence[Action]:
        """What can be done here."""
        return self.pane.actions

    def chosen(self) -> Sequence[Record]:
        """The records that an action would be about: those marked, else the one under the cursor."""
        return ()

    def front(self) -> Record | None:
        """The record under the cursor."""
        chosen = self.chosen()
        return chosen[0] if chosen else None

    def hints(self) -> Sequence[tuple[str, str]]:
        """Keys of its own for the footer, with their labels."""
        return ()

    def extract(self) -> tuple[str, str]:
        """What `c` copies and `x` exports: a name for it, and the text."""
        return self.crumb or self.pane.id, ""

    def open_named(self, name: str) -> None:
        """Open what has this name, in panes that are no list of the control API."""

    async def load(self) -> None:
        """Ask the gate and show the answer. Raises MeshError."""

    def listens(self, topic: str, data: Any) -> bool:
        """Whether news concern this pane."""
        if topic == CHANGES and self.pane.about:
            return data is None or named(data, self.pane.about)
        return bool(topic) and topic == self.pane.topic

    def told(self, topic: str, data: Any) -> None:
        """News that concern it; ``data`` None means that it may be worth asking."""
        del topic, data
        self.reload()

    async def anew(self, record: Record) -> Record | None:
        """A record as it is at the gate now; None where this pane cannot say. Raises MeshError."""
        del record
        return None

    def resume(self) -> None:
        """It came to the front: shown as it was left, then asked for."""
        self.call_after_refresh(self.reload)

    def narrow(self, text: str) -> None:
        """Show only what `/` finds, or go there."""

    def leave(self) -> bool:
        """Escape was pressed: whether there was something to leave in here first."""
        return False

    # --- what subclasses use

    def reload(self) -> None:
        """Ask the gate again; while a question is under way, once more after it."""
        if self._loading:
            self._again = True
        elif self.is_attached:
            self._loading = True
            self.run_worker(self._loaded(), group="load")

    async def _loaded(self) -> None:
        try:
            while True:
                self._again = False
                await self._load_once()
                if not self._again:
                    return
        except NoMatches:
            if self.is_attached and self.display:
                raise
            # it was left while the gate answered: what the answer would be written into is gone
        finally:
            self._loading = False

    async def _load_once(self) -> None:
        try:
            await self.load()
        except MeshError as error:
            self._fail(error)
        else:
            if self.problem:
                self.problem = ""
                self.became_current()

    def _fail(self, error: MeshError) -> None:
        said = self.room.catalogue.problem
        hint = f"  ({said(error.hint)})" if error.hint else ""
        self.problem = f"{said(error.message)}{hint}"
        self.became_stale()

    def became_stale(self) -> None:
        """It could not be loaded; `problem` says why."""

    def became_current(self) -> None:
        """It could be loaded again."""


def view_of(pane: Pane, *, crumb: str = "") -> PaneView:
    """The widget of a pane."""
    from meshctl.tui.card import CardView
    from meshctl.tui.table import TableView

    match pane:
        case TablePane():
            return TableView(pane, crumb=crumb)
        case CardPane():
            return CardView(pane, crumb=crumb)
        case OwnPane():
            view = pane.build(pane)
            view.crumb = crumb
            return view

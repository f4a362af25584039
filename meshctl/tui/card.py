"""One object of the control API as a pane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshctl.tui.declare import CardPane, Record
from meshctl.tui.describe import DocumentView


class CardView(DocumentView):
    """The view of a `CardPane`."""

    def __init__(self, pane: CardPane, *, crumb: str = "") -> None:
        super().__init__(pane, crumb=crumb)
        self.card = pane

    def on_mount(self) -> None:
        """Look again from time to time where no topic tells."""
        super().on_mount()
        if self.card.every and not self.card.topic:
            self.set_interval(self.card.every, self._on_time)

    def _on_time(self) -> None:
        if self.room.in_front(self) and self.room.app_focus:
            self.reload()

    def tables_of(self, document: Any) -> Sequence[Any]:
        """As its section lays it out."""
        return self.card.tables(document)

    async def load(self) -> None:
        """Ask for it."""
        self.document = await self.room.desk.get(self.card.path)
        self.show()
        self.room.refresh_bars()

    async def anew(self, record: Record) -> Record | None:
        """The object, asked for again."""
        del record
        await self.load()
        return self.document if isinstance(self.document, Mapping) else None

    def chosen(self) -> Sequence[Record]:
        """The object itself."""
        return (self.document,) if isinstance(self.document, Mapping) else ()

"""All of one record: as a person reads it, as YAML, as JSON; kept current while it is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual.css.query import NoMatches
from textual.widgets import Static

from meshctl.tui.declare import Record, TablePane, at, filled
from meshctl.tui.fields import t
from meshctl.tui.folding import folded
from meshctl.tui.layout import Form, card, clean, lines_of
from meshctl.tui.pager import Line, Pager, text_of
from meshctl.tui.pane import PaneView

if TYPE_CHECKING:
    from textual.app import ComposeResult


class DocumentView(PaneView):
    """Something in a pager, in three forms. Subclasses give `document` and `tables_of`."""

    DEFAULT_CSS: ClassVar[str] = """
    DocumentView > .document--line { height: 1; padding: 0 1; color: $text-muted; background: $surface; }
    DocumentView > .document--line.-stale { color: $text-warning; }
    """

    narrows = True
    form: Form = Form.PERSON
    document: Any = None
    whole: Sequence[Line] = ()
    """The lines before they were folded to the screen's width: what is copied."""

    def compose(self) -> ComposeResult:
        """The text, and a line that says in which form."""
        yield Pager()
        yield Static(classes="document--line")

    def on_mount(self) -> None:
        """Show what is known already."""
        self.show()

    def on_resize(self) -> None:
        """Another width."""
        if self.whole:
            self.spread(self.whole)

    def spread(self, lines: Sequence[Line]) -> None:
        """Show these lines; what is for a person is folded where it is wider than the screen."""
        self.whole = lines
        try:
            pager = self.pager
        except NoMatches:  # it is being left
            return
        width = pager.size.width
        pager.fill(folded(lines, width) if width and self.form is Form.PERSON else lines)

    @property
    def pager(self) -> Pager:
        """The text."""
        return self.query_one(Pager)

    def tables_of(self, document: Any) -> Sequence[Any]:
        """How a person reads it."""
        return card(document)

    def show(self) -> None:
        """Lay it out in the form that was chosen."""
        try:
            line = self.query_one(".document--line", Static)
        except NoMatches:  # before it is there, and while it is being left
            return
        if self.document is not None:
            tables = self.tables_of(self.document) if self.form is Form.PERSON else ()
            self.spread(lines_of(self.document, tables, self.form, self.room.catalogue))
        line.set_class(bool(self.problem), "-stale")
        line.update(clean(self.problem) if self.problem else self.say(str(self.form)))

    def as_form(self, form: Form) -> None:
        """Show it in another form, or again for a person."""
        self.form = Form.PERSON if form is self.form else form
        self.show()

    def hints(self) -> Sequence[tuple[str, str]]:
        """The other forms."""
        return (("y", t("YAML")), ("J", t("JSON")), ("x", t("export")))

    def narrow(self, text: str) -> None:
        """Search in it."""
        self.pager.seek(text)

    def leave(self) -> bool:
        """The search first."""
        if self.pager.sought:
            self.pager.seek("")
            return True
        return False

    def extract(self) -> tuple[str, str]:
        """The text as it is shown."""
        return self.crumb or self.pane.id, text_of(self.whole) + "\n"

    def became_stale(self) -> None:
        """Say why."""
        self.show()

    def became_current(self) -> None:
        """Say so."""
        self.show()


class AnswerView(DocumentView):
    """What the gate answered to an action, as the action lays it out."""

    laid_out: Callable[[Any], Sequence[Any]] | None = None

    def tables_of(self, document: Any) -> Sequence[Any]:
        """As the action says."""
        return self.laid_out(document) if self.laid_out is not None else card(document)


class DescribeView(DocumentView):
    """One record of a table; the table's actions are about it."""

    def __init__(self, pane: TablePane, record: Record, *, crumb: str) -> None:
        super().__init__(pane, crumb=crumb)
        self.table = pane
        self.record = record
        self.document = record

    def tables_of(self, document: Any) -> Sequence[Any]:
        """As the table's section lays it out."""
        return self.table.tables(document) if self.table.tables is not None else card(document)

    async def load(self) -> None:
        """Ask for all of it; where it has no path of its own, find it in the list."""
        if self.table.one:
            self.document = await self.room.desk.get(filled(self.table.one, self.record))
            self.record = {**self.record, **self.document} if isinstance(self.document, dict) else self.record
        else:
            reply = await self.room.desk.get(self.table.path, self.table.query)
            mine = at(self.record, self.table.key)
            found = next((one for one in self.table.items(reply) if at(one, self.table.key) == mine), None)
            if found is not None:
                self.document = self.record = found
        self.show()
        self.room.refresh_bars()

    async def anew(self, record: Record) -> Record | None:
        """This record, asked for again."""
        del record
        await self.load()
        return self.record

    def chosen(self) -> Sequence[Record]:
        """This record."""
        return (self.record,)

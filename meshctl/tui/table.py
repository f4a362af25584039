"""A list of the control API as a table: filter, order, marks, description, and paging at the gate.

Up to a page (1,000 rows) everything is here and filtering and sorting too; where the gate has more, it does
both, and this holds one page at a time, whatever the length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on
from textual.content import Content
from textual.widgets import Static

from meshctl.tui import filtering
from meshctl.tui.declare import Column, Record, Switch, TablePane, at, state_of
from meshctl.tui.describe import DescribeView
from meshctl.tui.filtering import Filter
from meshctl.tui.grid import Grid, Heading, Row
from meshctl.tui.layout import Form, clean
from meshctl.tui.pane import PaneView, view_of

if TYPE_CHECKING:
    from textual.app import ComposeResult

PAGE: Final = 1000
_NUMBERS: Final = re.compile(r"([0-9]{1,18})")
WIDE: Final = 140
"""Columns from which there is room for every text in its own column."""


class TableView(PaneView):
    """The view of a `TablePane`."""

    DEFAULT_CSS: ClassVar[str] = """
    TableView > .table--line { height: 1; padding: 0 1; color: $text-muted; background: $surface; }
    TableView > .table--line.-stale { color: $text-warning; }
    TableView > .table--line.-whole { height: auto; max-height: 4; }
    """

    narrows = True

    def __init__(self, pane: TablePane, *, crumb: str = "") -> None:
        super().__init__(pane, crumb=crumb)
        self.table = pane
        self.filter = Filter()
        self.order = ""
        self.descending = False
        self.switch: Switch | None = None
        self.records: dict[str, Record] = {}
        self.shown: tuple[Column, ...] = ()
        self.total: int | None = None
        self.loaded = False
        self._rows: dict[str, Row] = {}
        self._next: str | None = None
        self._pages: list[str | None] = [None]
        self._fields: set[str] = set()
        self._counted = False
        self._large = False
        self._land_last = False
        self._below = ""
        if pane.sort:
            self.order, self.descending = pane.sort.lstrip("-"), pane.sort.startswith("-")

    def compose(self) -> ComposeResult:
        """The grid, and a line that says what is seen of how much."""
        yield Grid(ascii_only=self.room.ascii_only)
        yield Static(classes="table--line")

    def on_mount(self) -> None:
        """Lay the columns out."""
        self._lay_out()
        if self.table.every:
            self.set_interval(self.table.every, self._on_time)

    def _on_time(self) -> None:
        searches = self.table.back and bool(self.filter)  # the gate would walk far back each time
        if self.room.in_front(self) and self.room.app_focus and not searches:
            self.reload()

    def on_resize(self) -> None:
        """Another width may have room for other columns."""
        if self.shown != self._fitting():
            self._lay_out()
            self._show()

    @property
    def grid(self) -> Grid:
        """The rows."""
        return self.query_one(Grid)

    @property
    def paged(self) -> bool:
        """Whether the gate has more than is here, or had before it was asked for a part."""
        return self._large or self._beside

    @property
    def _beside(self) -> bool:
        return self._next is not None or len(self._pages) > 1

    # --- loading

    def _query(self) -> dict[str, object]:
        query: dict[str, object] = {"limit": PAGE, **self.table.query}
        if self.switch is not None:
            query |= self.switch.query
        if self._pages[-1] is not None:
            query["before" if self.table.back else "after"] = self._pages[-1]
        if self.paged:
            query |= self._asked() or {}
            if self.order and not self.table.back and self._known(self.order):
                query["sort"] = f"-{self.order}" if self.descending else self.order
        return query

    def _asked(self) -> dict[str, str] | None:
        """What the gate is asked by, instead of filtering here; None where it cannot be."""
        if self.filter.inverse and not self._counted:
            return None
        return self.filter.query(labels=self._fields if "labels" in self._fields else None)

    def _known(self, key: str) -> bool:
        """Whether the gate has this field, or only the table that was made of what it has."""
        return key.partition(".")[0] in self._fields or key in self._fields

    async def load(self) -> None:
        """Ask for the page that is shown."""
        narrowed = self.paged and bool(self.filter) and self._asked() is not None
        self._take(await self.room.desk.get(self.table.path, self._query()), narrowed=narrowed)

    def told(self, topic: str, data: Any) -> None:
        """News: the whole list or what changed of it, where the feed carries that; else ask."""
        if isinstance(data, Mapping) and "gone" in data:
            self._amend(data)
            return
        whole = isinstance(data, Mapping) and "items" in data and not (data.get("next") or data.get("more"))
        if whole and not self.paged and not self.table.query and self.switch is None:
            self._take(data)
        else:
            self.reload()

    def _amend(self, news: Mapping[str, Any]) -> None:
        """Rows that changed and rows that went; ask where there are new ones, or too many."""
        unknown = bool(news.get("more"))
        for change in news["items"]:
            key = str(at(change, self.table.key))
            if (record := self.records.get(key)) is None:
                unknown = True
                continue
            amended = self.table.amend(record, change)
            if amended != record:
                self.records[key] = amended
                self._rows.pop(key, None)
        for key in news["gone"]:
            if self.records.pop(key, None) is not None:
                self._rows.pop(key, None)
                unknown = True
        if self.loaded:
            self._show()
            self.room.refresh_bars()
        if (unknown and not self.paged) or not self.loaded:
            self.reload()

    def _take(self, reply: Any, *, narrowed: bool = False) -> None:
        records = self.table.items(reply)
        for record in records[:50]:
            self._fields.update(record)
        before = self.records
        self.records = {}
        seen: Counter[str] = Counter()
        for record in records:
            key = str(at(record, self.table.key))
            seen[key] += 1
            if seen[key] > 1:  # whatever the gate says is seen: two of one name are two rows
                key = f"{key}#{seen[key]}"
            old = before.get(key)
            self.records[key] = old if old == record and old is not None else record
        self._rows = {
            key: row for key, row in self._rows.items() if self.records.get(key) is before.get(key, ...)
        }
        self._next, self.total = None, len(records)
        self._counted = isinstance(reply, Mapping) and isinstance(reply.get("total"), int)
        following = "previous" if self.table.back else "next"
        if isinstance(reply, Mapping) and reply.get(following):
            self._next = str(reply[following])
        if not narrowed:
            self._large = self._beside
        if self._beside and self._counted:  # what is whole here is counted here: the audit's total is of all
            self.total = reply["total"]
        self.loaded = True
        self._show()
        if self._land_last:
            self._land_last = False
            self.grid.action_last()
        self.room.refresh_bars()

    # --- showing

    def _fitting(self) -> tuple[Column, ...]:
        width = self.size.width or self.room.size.width
        return tuple(one for one in self.table.columns if one.least <= width)

    def _lay_out(self) -> None:
        self.shown = self._fitting()
        self._rows = {}
        self.grid.columns(self._headings())

    def _headings(self) -> list[Heading]:
        marks = ("v", "^") if self.room.ascii_only else ("▼", "▲")
        return [
            Heading(
                self.room.catalogue.heading(one.heading, one.key)
                + (f" {marks[not self.descending]}" if one.key == self.order else ""),
                one.right,
                one.most,
            )
            for one in self.shown
        ]

    def _row(self, key: str, record: Record) -> Row:
        if (row := self._rows.get(key)) is None:
            flat = self.table.flat(record) if self.table.flat is not None else record
            row = self._rows[key] = Row(
                key,
                tuple(clean(self._told(one, flat)) for one in self.shown),
                tuple(state_of(at(flat, one.key)) if one.state else None for one in self.shown),
            )
        return row

    def _told(self, column: Column, flat: Record) -> str:
        return self.room.catalogue.cell(
            column.cell(flat), at(flat, column.key), words=column.words, counts=column.counts
        )

    def _show(self) -> None:
        if not self.is_mounted:
            return
        rows = [self._row(key, record) for key, record in self.records.items()]
        if self.filter and not (self.paged and self._asked() is not None):
            rows = [row for row in rows if self.filter.matches(row.cells, self.records[row.key])]
        if self.order and (not self.paged or self.table.back or not self._known(self.order)):
            rows = self._sorted(rows)
        self.grid.fill(rows)
        self._tell()

    def _sorted(self, rows: list[Row]) -> list[Row]:
        flat = self.table.flat

        def value(row: Row) -> tuple[int, float, list[str | int]]:
            record = self.records[row.key]
            found = at(flat(record) if flat is not None else record, self.order)
            if isinstance(found, bool | int | float):
                return (0, float(found), [])
            return (1, 0.0, natural(str(found)))

        known = [row for row in rows if at(self._flat(row), self.order) is not None]
        unknown = [row for row in rows if at(self._flat(row), self.order) is None]
        return sorted(known, key=value, reverse=self.descending) + unknown

    def _flat(self, row: Row) -> Record:
        record = self.records[row.key]
        return self.table.flat(record) if self.table.flat is not None else record

    def _tell(self) -> None:
        line = self.query_one(".table--line", Static)
        line.set_class(bool(self.problem), "-stale")
        if self.problem:
            self._say_below(clean(self.problem))
            return
        if not self.loaded:
            self._say_below(self.say("loading ..."))
            return
        seen = len(self.grid.rows)
        if not self.records and not self.filter:
            text = self.say(self.table.empty) if self.table.empty else self.say("nothing here")
            self._say_below(text, whole=True)
            return
        first = (len(self._pages) - 1) * int(self.table.query.get("limit") or PAGE)
        parts = [
            self.say("{first} to {last} of {total}", first=first + 1, last=first + seen, total=self.total)
            if self._beside
            else self.say("{seen} of {total}", seen=seen, total=self.total)
        ]
        if self.filter:
            here = self.paged and self._asked() is None
            parts.append(f"/{self.filter.text}" + (" " + self.say("(in this page)") if here else ""))
            if not seen:
                parts.append(self.say("esc takes the filter away"))
        if self.grid.marked:
            parts.append(self.say("{count} marked", count=len(self.grid.marked)))
        if self.switch is not None:
            parts.append(self.say(self.switch.label))
        if self.table.says and self.size.width < WIDE and (record := self.front()) is not None:
            parts.append(self.room.catalogue.shown(str(at(record, self.table.says) or "")))
        self._say_below(clean("  ".join(parts)))

    def _say_below(self, text: str, *, whole: bool = False) -> None:
        """Only where it says something else: the whole screen is laid out anew for one. ``whole``: in as many
        lines as it takes.
        """
        if text != self._below:
            self._below = text
            line = self.query_one(".table--line", Static)
            wide = whole or line.has_class("-whole")
            line.set_class(whole, "-whole")
            line.update(Content(text), layout=wide)

    def became_stale(self) -> None:
        """Say why on the line below the rows."""
        self._tell()

    def became_current(self) -> None:
        """Say what is seen again."""
        self._tell()

    # --- what others ask

    async def anew(self, record: Record) -> Record | None:
        """The row of a record, asked for again."""
        await self.load()
        return self.records.get(str(at(record, self.table.key)))

    def chosen(self) -> Sequence[Record]:
        """The marked records, else the one under the cursor."""
        if not self.is_mounted:
            return ()
        grid = self.grid
        if grid.marked:
            return [self.records[row.key] for row in grid.rows if row.key in grid.marked]
        key = grid.cursor_key
        return [self.records[key]] if key is not None and key in self.records else ()

    def front(self) -> Record | None:
        """The record under the cursor."""
        key = self.grid.cursor_key if self.is_mounted else None
        return self.records.get(key) if key is not None else None

    def hints(self) -> Sequence[tuple[str, str]]:
        """Its switches."""
        return tuple((one.key, one.label) for one in self.table.switches)

    def extract(self) -> tuple[str, str]:
        """The rows that are seen, as comma-separated values; for programs, so as commands print them."""
        import csv
        import io

        into = io.StringIO()
        writer = csv.writer(into, lineterminator="\n")
        writer.writerow([one.heading for one in self.shown])
        flat = (self._flat(row) for row in self.grid.rows)
        writer.writerows([clean(one.cell(row)) for one in self.shown] for row in flat)
        return self.table.id, into.getvalue()

    def machine(self) -> list[Record]:
        """The records that are seen, whole."""
        return [self.records[row.key] for row in self.grid.rows]

    def leave(self) -> bool:
        """Marks first, then the filter."""
        if self.grid.marked:
            self.grid.unmark()
            return True
        if self.filter:
            self.narrow("")
            return True
        return False

    def choose(self, key: str) -> bool:
        """Put the cursor on a record; whether it is there."""
        for number, row in enumerate(self.grid.rows):
            if row.key == key:
                self.grid.go(number)
                return True
        return False

    # --- filter, order, switches, pages

    def narrow(self, text: str) -> None:
        """Show what the filter finds."""
        self.filter = filtering.parse(text)
        if self.paged and self._asked() is not None:
            self.grid.go(0)
            self._restart()
        else:
            self._show()
        self.room.refresh_bars()

    def sort_by(self, key: str) -> None:
        """Order by a column; the same one again turns around."""
        self.descending = not self.descending if key == self.order else False
        self.order = key
        self.grid.relabel(self._headings())
        if self.paged:
            self._restart()
        else:
            self._show()

    def next_order(self, by: int) -> None:
        """Order by the column beside."""
        keys = [one.key for one in self.shown]
        here = keys.index(self.order) if self.order in keys else (-1 if by > 0 else 0)
        self.sort_by(keys[(here + by) % len(keys)])

    def turn(self) -> None:
        """The other direction."""
        if self.order:
            self.sort_by(self.order)

    def press(self, key: str) -> bool:
        """One of its switches; whether there is one."""
        for one in self.table.switches:
            if one.key == key:
                self.switch = None if self.switch is one else one
                self._restart()
                return True
        return False

    def _restart(self) -> None:
        self._pages = [None]
        self.reload()

    @on(Grid.Past)
    def _past(self, event: Grid.Past) -> None:
        event.stop()
        if event.direction > 0 and self._next is not None:
            self._pages.append(self._next)
            self.grid.go(0)
            self.reload()
        elif event.direction < 0 and len(self._pages) > 1:
            self._pages.pop()
            self._land_last = True
            self.reload()

    @on(Grid.Sorted)
    def _clicked(self, event: Grid.Sorted) -> None:
        event.stop()
        self.sort_by(self.shown[event.column].key)

    @on(Grid.Moved)
    @on(Grid.Marked)
    def _changed(self) -> None:
        self._tell()
        self.room.refresh_bars()

    @on(Grid.Opened)
    def open_chosen(self) -> None:
        """Drill into the record under the cursor, or describe it."""
        record = self.front()
        if record is None:
            return
        if self.table.drill is not None:
            pane = self.table.drill(record)
            self.room.descend(view_of(pane, crumb=self.name_of(record)))
        else:
            self.describe(record)

    def describe(self, record: Record, form: Form = Form.PERSON) -> None:
        """Show all of a record."""
        view = DescribeView(self.table, record, crumb=self.name_of(record))
        view.form = form
        self.room.descend(view)

    def mark_all(self) -> None:
        """Mark every row that is seen, or none where all are."""
        keys = {row.key for row in self.grid.rows}
        if keys <= self.grid.marked:
            self.grid.unmark()
        else:
            self.grid.mark(keys)

    def name_of(self, record: Record) -> str:
        """What a record is called."""
        return clean(str(at(record, self.table.name) or at(record, self.table.key)))


def natural(text: str) -> list[str | int]:
    """What a text is sorted by, so that gpu-2 comes before gpu-10: words and numbers by turns."""
    return [int(part) if number % 2 else part for number, part in enumerate(_NUMBERS.split(text.casefold()))]

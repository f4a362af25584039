"""A table that draws only the lines that are seen, and again only those that changed.

The heading stays; the cursor stays on its record however the rows move. Rows are text: what they mean is the
business of whoever fills it (`meshctl.tui.table`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from meshctl.tui.declare import State

GAP: Final = 2
GUTTER: Final = 2
MARKS: Final[Mapping[State, str]] = {
    State.GOOD: "●",
    State.BUSY: "◆",
    State.WARN: "▲",
    State.BAD: "✖",
    State.OFF: "○",
}
ASCII_MARKS: Final[Mapping[State, str]] = {
    State.GOOD: "*",
    State.BUSY: "+",
    State.WARN: "!",
    State.BAD: "x",
    State.OFF: "o",
}


@dataclass(frozen=True, slots=True)
class Heading:
    """A column as it is drawn: ``most`` is its largest width in cells."""

    text: str
    right: bool = False
    most: int = 48


@dataclass(frozen=True, slots=True)
class Row:
    """A line: its record's identity, a text a column, and the states of those that have one."""

    key: str
    cells: tuple[str, ...]
    states: tuple[State | None, ...]


class Grid(ScrollView, can_focus=True):
    """Rows under headings, a cursor, and marks."""

    DEFAULT_CSS: ClassVar[str] = """
    Grid { height: 1fr; background: $background; scrollbar-size-horizontal: 0; }
    Grid > .grid--heading { color: $text-muted; text-style: bold; background: $background; }
    Grid > .grid--cursor { background: $primary 35%; text-style: bold; }
    Grid > .grid--idle { background: $surface; }
    Grid > .grid--marked { text-style: bold; color: $accent; }
    Grid > .grid--good { color: $text-success; }
    Grid > .grid--busy { color: $text-primary; }
    Grid > .grid--warn { color: $text-warning; }
    Grid > .grid--bad { color: $text-error; text-style: bold; }
    Grid > .grid--off { color: $text-muted; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "grid--heading",
        "grid--cursor",
        "grid--idle",
        "grid--marked",
        *(f"grid--{state}" for state in State),
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("pagedown,ctrl+f", "page(1)", show=False),
        Binding("pageup,ctrl+b", "page(-1)", show=False),
        Binding("ctrl+d", "half(1)", show=False),
        Binding("ctrl+u", "half(-1)", show=False),
        Binding("home,g", "first", show=False),
        Binding("end,G", "last", show=False),
        Binding("left,h", "aside(-8)", show=False),
        Binding("right,l", "aside(8)", show=False),
        Binding("space", "mark", show=False),
        Binding("enter", "open", show=False),
    ]

    class Moved(Message):
        """The cursor is on another row."""

    class Opened(Message):
        """The row under the cursor is to be opened."""

    class Marked(Message):
        """The marks changed."""

    class Past(Message):
        """The cursor was moved past the last row (1) or the first (-1)."""

        def __init__(self, direction: int) -> None:
            super().__init__()
            self.direction = direction

    class Sorted(Message):
        """A heading was clicked."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__()
        self.ascii_only = ascii_only
        self.rows: Sequence[Row] = ()
        self.cursor = 0
        self.marked: set[str] = set()
        self._headings: tuple[Heading, ...] = ()
        self._widths: list[int] = []
        self._wanted: list[int] = []

    # --- filling

    def columns(self, headings: Iterable[Heading]) -> None:
        """Set the columns; the rows are to be set again."""
        self._headings = tuple(headings)
        self._wanted = [cell_len(heading.text) for heading in self._headings]
        self._widths = list(self._wanted)
        self.rows = ()
        self._extent()
        self.refresh()

    def fill(self, rows: Sequence[Row]) -> None:
        """Set the rows; only lines that differ are drawn again, and the cursor stays with its record."""
        before, here = self.rows, self.cursor_key
        self.rows = rows
        if [row.key for row in before] != [row.key for row in rows]:
            self._relocate(here)
        wider = self._widen(before, rows)
        if len(before) != len(rows) or wider:
            self._extent()
            self.refresh()
            return
        for number, (old, new) in enumerate(zip(before, rows, strict=True)):
            if old is not new and old != new:
                self.refresh_line(number + 1)

    def relabel(self, headings: Iterable[Heading]) -> None:
        """Other words in the headings, such as the mark of the order; the columns stay."""
        self._headings = tuple(headings)
        self._wanted = [
            max(width, cell_len(heading.text))
            for width, heading in zip(self._wanted, self._headings, strict=True)
        ]
        self._widths = self._shared()
        self._extent()
        self.refresh()

    def _relocate(self, key: str | None) -> None:
        last = max(0, len(self.rows) - 1)
        self.cursor = min(self.cursor, last)
        if key is not None:
            self.cursor = next((n for n, row in enumerate(self.rows) if row.key == key), self.cursor)
        keys = {row.key for row in self.rows}
        if not self.marked <= keys:
            self.marked &= keys
            self.post_message(self.Marked())
        self.refresh()
        self.call_after_refresh(self._into_view)
        if self.cursor_key != key:
            self.post_message(self.Moved())

    def _widen(self, before: Sequence[Row], rows: Sequence[Row]) -> bool:
        known = {id(row) for row in before}
        wanted = self._wanted
        for row in rows:
            if id(row) in known:
                continue
            for index, cell in enumerate(row.cells):
                width = len(cell) if cell.isascii() else cell_len(cell)
                if row.states[index] is not None:
                    width += 2
                wanted[index] = max(wanted[index], width)
        widths = self._shared()
        changed = widths != self._widths
        self._widths = widths
        return changed

    def _shared(self) -> list[int]:
        """The columns' widths: each as much as it may have at most, and what is left from left to right."""
        widths = [
            min(width, max(heading.most, cell_len(heading.text)))
            for width, heading in zip(self._wanted, self._headings, strict=True)
        ]
        left = self.size.width - GUTTER - GAP * len(widths) - sum(widths)
        for index, width in enumerate(self._wanted):
            more = min(width - widths[index], max(0, left))
            widths[index] += more
            left -= more
        return widths

    def on_resize(self) -> None:
        """Another width: there is more room for what was cut, or less."""
        if (widths := self._shared()) != self._widths:
            self._widths = widths
            self._extent()
            self.refresh()

    def _extent(self) -> None:
        width = GUTTER + sum(self._widths) + GAP * max(0, len(self._widths) - 1)
        self.virtual_size = Size(width, len(self.rows) + 1)

    # --- where it stands

    @property
    def cursor_key(self) -> str | None:
        """The identity of the record under the cursor."""
        return self.rows[self.cursor].key if self.cursor < len(self.rows) else None

    def go(self, row: int) -> None:
        """Put the cursor on a row."""
        row = max(0, min(row, len(self.rows) - 1))
        if row != self.cursor:
            before, self.cursor = self.cursor, row
            self.refresh_line(before + 1)
            self.refresh_line(row + 1)
            self.post_message(self.Moved())
        self._into_view()

    def _into_view(self) -> None:
        height = self.scrollable_content_region.height
        if height < 2:
            return
        top = round(self.scroll_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False)
        elif self.cursor > top + height - 2:
            self.scroll_to(y=self.cursor - height + 2, animate=False)

    # --- drawing

    def render_line(self, y: int) -> Strip:
        """One line of the screen: the heading, then rows."""
        left, top = self.scroll_offset
        width = self.size.width
        base = self.rich_style
        if y == 0:
            style = base + self.get_component_rich_style("grid--heading", partial=True)
            cells = tuple(heading.text for heading in self._headings)
            strip = self._line("", cells, None, style)
        else:
            number = top + y - 1
            if number >= len(self.rows):
                return Strip.blank(width, base)
            row = self.rows[number]
            style = base
            marked = row.key in self.marked
            if marked:
                style += self.get_component_rich_style("grid--marked", partial=True)
            here = number == self.cursor
            if here:
                which = "grid--cursor" if self.has_focus else "grid--idle"
                style += self.get_component_rich_style(which, partial=True)
            point = (">" if self.ascii_only else "▸") if here else ""
            strip = self._line(("+" if marked else "") + point, row.cells, row.states, style)
        return strip.crop_extend(left, left + width, style)

    def _line(
        self, gutter: str, cells: Sequence[str], states: Sequence[State | None] | None, style: Style
    ) -> Strip:
        marks = ASCII_MARKS if self.ascii_only else MARKS
        segments = [Segment(gutter.ljust(GUTTER), style)]
        last = len(cells) - 1
        for index, cell in enumerate(cells):
            own = style
            if states is not None and (state := states[index]) is not None:
                cell = f"{marks[state]} {cell}"
                own = style + self.get_component_rich_style(f"grid--{state}", partial=True)
            segments.append(Segment(_fitted(cell, self._widths[index], self._headings[index].right), own))
            if index < last:
                segments.append(Segment(" " * GAP, style))
        return Strip(segments)

    def _on_focus(self, event: events.Focus) -> None:
        super()._on_focus(event)
        self.refresh_line(self.cursor + 1)

    def _on_blur(self, event: events.Blur) -> None:
        super()._on_blur(event)
        self.refresh_line(self.cursor + 1)

    # --- keys and mouse

    def action_move(self, by: int) -> None:
        """Up or down; past the ends others may have more."""
        goal = self.cursor + by
        if not 0 <= goal < len(self.rows):
            self.post_message(self.Past(by))
        self.go(goal)

    def action_page(self, by: int) -> None:
        """A page up or down."""
        self.action_move_far(by * max(1, self.scrollable_content_region.height - 2))

    def action_half(self, by: int) -> None:
        """Half a page up or down."""
        self.action_move_far(by * max(1, self.scrollable_content_region.height // 2 - 1))

    def action_move_far(self, by: int) -> None:
        """Many rows at once, to the end before past it."""
        end = len(self.rows) - 1 if by > 0 else 0
        if self.cursor == end:
            self.post_message(self.Past(1 if by > 0 else -1))
        self.go(self.cursor + by)

    def action_first(self) -> None:
        """To the first row."""
        self.go(0)

    def action_last(self) -> None:
        """To the last row."""
        self.go(len(self.rows) - 1)

    def action_aside(self, by: int) -> None:
        """Scroll sideways."""
        self.scroll_to(x=max(0, self.scroll_x + by), animate=False)

    def action_mark(self) -> None:
        """Mark the row, or not, and go to the next."""
        if (key := self.cursor_key) is None:
            return
        self.marked ^= {key}
        self.refresh_line(self.cursor + 1)
        self.post_message(self.Marked())
        self.go(self.cursor + 1)

    def mark(self, keys: Iterable[str]) -> None:
        """Mark these rows too."""
        self.marked |= set(keys)
        self.refresh()
        self.post_message(self.Marked())

    def unmark(self) -> None:
        """Take every mark away."""
        self.marked.clear()
        self.refresh()
        self.post_message(self.Marked())

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self.cursor_key is not None:
            self.post_message(self.Opened())

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            self._click_heading(offset.x + self.scroll_offset.x)
            return
        number = self.scroll_offset.y + offset.y - 1
        if number < len(self.rows):
            self.go(number)
            if event.chain == 2:
                self.action_open()

    def _click_heading(self, x: int) -> None:
        edge = GUTTER
        for index, width in enumerate(self._widths):
            edge += width + GAP
            if x < edge:
                self.post_message(self.Sorted(index))
                return

    def refresh_line(self, y: int) -> None:
        """Draw a line again if it is seen; 0 is the heading."""
        on_screen = y - self.scroll_offset.y if y else 0
        if 0 <= on_screen < self.size.height:
            self.refresh(Region(0, on_screen, self.size.width, 1))


def _fitted(text: str, width: int, right: bool) -> str:
    """``text`` in exactly ``width`` cells; what does not fit is cut with a dot."""
    length = len(text) if text.isascii() else cell_len(text)
    if length == width:
        return text
    if length < width:
        space = " " * (width - length)
        return space + text if right else text + space
    return set_cell_size(text, max(0, width - 1)) + ("." if width else "")

"""Text that is scrolled, searched, copied and exported; only the lines that are seen are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

Piece = tuple[str, str]
"""A text and what it is: "", "title", "key", "muted", "add", "remove", or a state."""
Line = tuple[Piece, ...]

ROLES = ("title", "key", "muted", "good", "busy", "warn", "bad", "off", "add", "remove")


def plain(line: Line) -> str:
    """A line's text."""
    return "".join(text for text, _ in line)


def text_of(lines: Sequence[Line]) -> str:
    """Lines as one text, without what is blank at the right."""
    return "\n".join(plain(line).rstrip() for line in lines)


class Pager(ScrollView, can_focus=True):
    """Lines of text, with a search."""

    DEFAULT_CSS: ClassVar[str] = """
    Pager { height: 1fr; background: $background; padding: 0 1; scrollbar-size-horizontal: 0; }
    Pager > .pager--title { text-style: bold; color: $text-primary; }
    Pager > .pager--key { color: $text-muted; }
    Pager > .pager--muted { color: $text-muted; }
    Pager > .pager--good { color: $text-success; }
    Pager > .pager--add { color: $text-success; }
    Pager > .pager--busy { color: $text-primary; }
    Pager > .pager--warn { color: $text-warning; }
    Pager > .pager--bad { color: $text-error; text-style: bold; }
    Pager > .pager--remove { color: $text-error; }
    Pager > .pager--off { color: $text-muted; }
    Pager > .pager--found { background: $warning; color: $background; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"pager--found", *(f"pager--{role}" for role in ROLES)}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "by(1)", show=False),
        Binding("up,k", "by(-1)", show=False),
        Binding("pagedown,ctrl+f,space", "page(1)", show=False),
        Binding("pageup,ctrl+b", "page(-1)", show=False),
        Binding("ctrl+d", "half(1)", show=False),
        Binding("ctrl+u", "half(-1)", show=False),
        Binding("home,g", "top", show=False),
        Binding("end,G", "bottom", show=False),
        Binding("left,h", "aside(-8)", show=False),
        Binding("right,l", "aside(8)", show=False),
        Binding("n", "find(1)", show=False),
        Binding("N", "find(-1)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.lines: Sequence[Line] = ()
        self.sought = ""

    def fill(self, lines: Sequence[Line]) -> None:
        """Show other text; where it is scrolled to stays."""
        before, self.lines = self.lines, lines
        if before == lines:
            return
        width = max((cell_len(plain(line)) for line in lines), default=0)
        self.virtual_size = Size(width, len(lines))
        self.refresh()

    def text(self) -> str:
        """All of it."""
        return text_of(self.lines)

    def seek(self, text: str) -> bool:
        """Go to the first line from here that holds ``text``; whether there is one."""
        self.sought = text.casefold()
        self.refresh()
        return bool(text) and self._go(range(len(self.lines)), round(self.scroll_y))

    def action_find(self, direction: int) -> None:
        """To the next or the previous line that was sought."""
        count = len(self.lines)
        if self.sought and count:
            here = round(self.scroll_y)
            order = range(count) if direction > 0 else range(0, -count, -1)
            self._go(order, here + direction)

    def _go(self, order: range, start: int) -> bool:
        count = len(self.lines)
        for step in order:
            number = (start + step) % count
            if self.sought in plain(self.lines[number]).casefold():
                self.scroll_to(y=number, animate=False)
                return True
        return False

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        left, top = self.scroll_offset
        width = self.size.width
        base = self.rich_style
        number = top + y
        if number >= len(self.lines):
            return Strip.blank(width, base)
        segments = [Segment(text, self._style(role, base)) for text, role in self.lines[number]]
        strip = Strip(segments)
        if self.sought and self.sought in plain(self.lines[number]).casefold():
            strip = self._found(strip)
        return strip.crop_extend(left, left + width, base)

    def _style(self, role: str, base: Style) -> Style:
        return base + self.get_component_rich_style(f"pager--{role}", partial=True) if role else base

    def _found(self, strip: Strip) -> Strip:
        style = self.get_component_rich_style("pager--found", partial=True)
        text = strip.text
        start = text.casefold().find(self.sought)
        begin, end = cell_len(text[:start]), cell_len(text[: start + len(self.sought)])
        parts = strip.divide([begin, end, strip.cell_length])
        return Strip.join([parts[0], parts[1].apply_style(style), *parts[2:]])

    def action_by(self, lines: int) -> None:
        """Some lines up or down."""
        self.scroll_to(y=self.scroll_y + lines, animate=False)

    def action_page(self, by: int) -> None:
        """A page up or down."""
        self.action_by(by * max(1, self.size.height - 1))

    def action_half(self, by: int) -> None:
        """Half a page up or down."""
        self.action_by(by * max(1, self.size.height // 2))

    def action_top(self) -> None:
        """To the beginning."""
        self.scroll_to(y=0, animate=False)

    def action_bottom(self) -> None:
        """To the end."""
        self.scroll_to(y=len(self.lines), animate=False)

    def action_aside(self, by: int) -> None:
        """Scroll sideways."""
        self.scroll_to(x=max(0, self.scroll_x + by), animate=False)

"""Documentation: every page of this version, read, searched and linked without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from meshctl import manual
from meshctl.errors import UsageError
from meshctl.tui.confirm import Modal, told
from meshctl.tui.data import in_thread
from meshctl.tui.declare import Action, OwnPane, Record, Role, Section
from meshctl.tui.fields import t
from meshctl.tui.grid import Grid, Heading, Row
from meshctl.tui.markdown import Laid, lay_out
from meshctl.tui.pager import Pager
from meshctl.tui.pane import PaneView

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.tui.room import Room

SHOW: Final = "meshctl docs show {name}"


class Leads(Modal):
    """A list to choose a line of: ends with its number, or None."""

    DEFAULT_CSS: ClassVar[str] = """
    Leads OptionList { border: none; background: $panel; height: auto; max-height: 16; padding: 0; }
    """

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        super().__init__()
        self.heading = title
        self.lines = lines

    def compose(self) -> ComposeResult:
        """The lines."""
        with Vertical(classes="modal--box"):
            yield told(self.heading, classes="modal--title")
            yield OptionList(
                *(Option(line, id=str(number)) for number, line in enumerate(self.lines)), markup=False
            )
            yield told(self.say("enter go there   esc close"), classes="modal--muted")

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)


class PageView(PaneView):
    """One page; ``line`` of its source is where it begins, ``sought`` is searched for."""

    DEFAULT_CSS: ClassVar[str] = "PageView > Pager { padding: 0 2; }"
    narrows = True

    def __init__(self, page: manual.Page, *, line: int = 0, sought: str = "") -> None:
        super().__init__(PAGE, crumb=page.name)
        self.page = page
        self._line = line
        self._sought = sought
        self._laid = Laid()

    def compose(self) -> ComposeResult:
        """One text."""
        yield Pager()

    @property
    def pager(self) -> Pager:
        """The text."""
        return self.query_one(Pager)

    def on_resize(self) -> None:
        """Lay it out for this width, and stay at the same line of the source."""
        if not self.size.width:
            return
        top = round(self.pager.scroll_y)
        if self._laid.lines:
            self._line = max((n for n, at in self._laid.places.items() if at <= top), default=0)
        self._laid = lay_out(self.page.text, self.size.width - 6)
        self.pager.fill(self._laid.lines)
        if self._sought:
            self.pager.sought, self._sought = self._sought.casefold(), ""
        self.go(self._line)

    def go(self, line: int) -> None:
        """To a line of the source."""
        self._line = line
        goal = self._laid.place(line)
        self.call_after_refresh(self.pager.scroll_to, y=goal, animate=False)

    def chosen(self) -> Sequence[Record]:
        """The page."""
        return ({"name": self.page.name},)

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
        """The page in markdown."""
        return self.page.name, self.page.text

    def open_named(self, name: str) -> None:
        """Another page, over this one."""
        open_page(self.room, name)

    async def contents(self) -> None:
        """Choose a heading and go there."""
        headings = self.page.headings()
        lines = ["  " * (depth - 1) + text for _, depth, text in headings]
        chosen = await self.room.push_screen_wait(Leads(self.say("Contents"), lines))
        if isinstance(chosen, int):
            self.go(headings[chosen][0])

    async def follow(self) -> None:
        """Choose a link and open its page over this one."""
        links = [link for link in self.page.links() if link.page != self.page.name]
        if not links:
            self.room.warn(self.say("This page leads nowhere else."))
            return
        lines = [f"{link.text}   {link.page}{'#' + link.anchor if link.anchor else ''}" for link in links]
        chosen = await self.room.push_screen_wait(Leads(self.say("Links"), lines))
        if not isinstance(chosen, int):
            return
        link = links[chosen]
        if not link.page:
            self.go(self.page.heading_of(link.anchor) or 0)
        else:
            open_page(self.room, link.page, anchor=link.anchor)


def open_page(room: Room, name: str, *, anchor: str = "", line: int = 0, sought: str = "") -> None:
    """Put a page over what is in front; escape leads back there."""
    try:
        page = manual.page(name)
    except UsageError as error:
        room.fail(error)
        return
    if anchor:
        line = page.heading_of(anchor) or 0
    room.descend(PageView(page, line=line, sought=sought))


class PagesView(PaneView):
    """All pages; `/` lists every line that holds all of the words."""

    DEFAULT_CSS: ClassVar[str] = """
    PagesView > .pages--line { height: 1; padding: 0 1; color: $text-muted; background: $surface; }
    """
    narrows = True

    def __init__(self, pane: OwnPane) -> None:
        super().__init__(pane)
        self.pages: Sequence[manual.Page] = ()
        self.sought = ""
        self._places: Mapping[str, manual.Place] = {}

    def compose(self) -> ComposeResult:
        """The rows, and how many they are."""
        yield Grid(ascii_only=self.room.ascii_only)
        yield Static(classes="pages--line")

    @property
    def grid(self) -> Grid:
        """The rows."""
        return self.query_one(Grid)

    async def load(self) -> None:
        """Read them once."""
        if not self.pages:
            self.pages = await in_thread(manual.pages)
            self._show()
            self.room.refresh_bars()

    def _show(self) -> None:
        if not self.sought:
            self._places = {one.name: manual.Place(one.name, 0, one.title, one.title) for one in self.pages}
            headings = [Heading(self.say("PAGE")), Heading(self.say("TITLE"), most=80)]
            rows = [Row(one.name, (one.name, one.title), (None, None)) for one in self.pages]
            line = self.say("{count} pages", count=len(rows))
        else:
            found = manual.search(self.sought, self.pages)
            self._places = {f"{one.page}:{one.line}": one for one in found}
            headings = [Heading(self.say("PAGE"), most=24), Heading(self.say("TEXT"), most=200)]
            rows = [Row(key, (one.page, one.text), (None, None)) for key, one in self._places.items()]
            line = self.say("{count} lines hold: {words}", count=len(rows), words=self.sought)
        self.grid.columns(headings)
        self.grid.fill(rows)
        self.query_one(".pages--line", Static).update(line)

    def narrow(self, text: str) -> None:
        """Search in all pages."""
        if text != self.sought:
            self.sought = text
            self._show()
            self.grid.go(0)

    def leave(self) -> bool:
        """The search first."""
        if self.sought:
            self.narrow("")
            return True
        return False

    def chosen(self) -> Sequence[Record]:
        """The page under the cursor."""
        place = self._places.get(self.grid.cursor_key or "")
        return () if place is None else ({"name": place.page, "line": place.line},)

    def extract(self) -> tuple[str, str]:
        """What is listed."""
        return "documentation", "\n".join("  ".join(row.cells) for row in self.grid.rows) + "\n"

    def open_named(self, name: str) -> None:
        """A page that was asked for by name."""
        open_page(self.room, name)

    @on(Grid.Moved)
    def _moved(self) -> None:
        self.room.refresh_bars()

    @on(Grid.Opened)
    def _opened(self) -> None:
        if (front := self.front()) is not None:
            open_page(self.room, front["name"], line=int(front["line"]), sought=self.sought)


def _contents(room: Room, _records: Any) -> None:
    if isinstance(view := room.pane, PageView):
        room.run_worker(view.contents(), group="act")


def _follow(room: Room, _records: Any) -> None:
    if isinstance(view := room.pane, PageView):
        room.run_worker(view.follow(), group="act")


READ: Final = Action(
    "docs.read",
    "o",
    t("Read"),
    "GET",
    "",
    SHOW,
    Role.VIEWER,
    opens=lambda room, records: open_page(room, str(records[0]["name"])),
    bulk=False,
)
CONTENTS: Final = Action(
    "docs.contents", "t", t("Contents"), "GET", "", SHOW, Role.VIEWER, opens=_contents, bulk=False
)
FOLLOW: Final = Action(
    "docs.follow", "f", t("Follow a link"), "GET", "", SHOW, Role.VIEWER, opens=_follow, bulk=False
)

PAGE: Final = OwnPane("page", t("Page"), PagesView, (CONTENTS, FOLLOW), cli=SHOW)

SECTION: Final = Section(
    "documentation",
    "Documentation",
    "K",
    (OwnPane("pages", t("Pages"), PagesView, (READ,), cli="meshctl docs list"),),
    about=t("Every page of this version, without a network; / searches in all of them."),
    page="tui.md",
)

"""The tail of the audit, as it grows: the newest entries, asked for once a second while it is seen."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.widgets import Static

from meshctl import view
from meshctl.tui.declare import OwnPane
from meshctl.tui.layout import clean
from meshctl.tui.pager import Line, Pager, plain
from meshctl.tui.pane import PaneView

if TYPE_CHECKING:
    from textual.app import ComposeResult

LINES: Final = 2000
"""Lines that are kept; older ones are in the audit."""
AT_ONCE: Final = 200
EVERY_S: Final = 1.0


class TailView(PaneView):
    """Follows the end until somebody scrolls up; `G` follows again."""

    DEFAULT_CSS: ClassVar[str] = (
        "TailView > Static { height: 1; padding: 0 1; color: $text-muted; background: $surface; }"
    )

    narrows = True

    def __init__(self, pane: OwnPane) -> None:
        super().__init__(pane, crumb="audit")
        self._lines: deque[Line] = deque(maxlen=LINES)
        self._last: int | None = None
        self._wanted = ""

    def compose(self) -> ComposeResult:
        """The lines, and how many there are."""
        yield Pager()
        yield Static()

    def on_mount(self) -> None:
        """Look each second, while it is in front."""
        self.set_interval(EVERY_S, self._on_time)

    def _on_time(self) -> None:
        if self.room.in_front(self) and self.room.app_focus:
            self.reload()

    async def load(self) -> None:
        """Ask for what came after the last one; where much came, the newest of it."""
        query: dict[str, object] = {"limit": AT_ONCE}
        if self._last is not None:
            query["after"] = self._last
        reply = await self.room.desk.get("/audit", query)
        items = reply.get("items", [])
        for item in items:
            self._last = max(self._last or 0, int(item["seq"]))
            self._lines.append(line_of(item))
        if items or not self._lines:
            self._show()

    def _show(self) -> None:
        pager = self.query_one(Pager)
        follows = pager.scroll_y >= pager.max_scroll_y - 1
        pager.fill([one for one in self._lines if self._wanted in plain(one).casefold()])
        if follows:
            self.call_after_refresh(pager.action_bottom)
        shown = len(pager.lines)
        self.query_one(Static).update(
            clean(self.problem) or self.say("{count} entries  G follows", count=shown)
        )

    def narrow(self, text: str) -> None:
        """Only the entries that hold this text."""
        self._wanted = text.casefold()
        self._show()

    def leave(self) -> bool:
        """The filter first."""
        if self._wanted:
            self.narrow("")
            return True
        return False

    def extract(self) -> tuple[str, str]:
        """The lines that are seen."""
        return "audit", self.query_one(Pager).text() + "\n"

    def became_stale(self) -> None:
        """Say why."""
        self._show()

    def became_current(self) -> None:
        """Say so."""
        self._show()


def line_of(entry: dict[str, Any]) -> Line:
    """An audit entry as a line."""
    row = view.audit([entry]).rows[0]
    seq, at, kind, app, sidecar, database, outcome, count, _rows, what = (clean(cell) for cell in row)
    where = "/".join(part for part in (app, sidecar, database) if part != "-")
    bad = outcome not in {"-", "ok"}
    times = f" x{count}" if count not in {"-", "1"} else ""
    return (
        (f"{seq:>8} {at} ", "muted"),
        (f"{kind:<14} ", "key"),
        (f"{where} " if where else "", ""),
        (f"{outcome} " if bad else "", "warn"),
        (f"{what}{times}", ""),
    )


AUDIT_PANE: Final = OwnPane("audit", "Audit", TailView, cli="meshctl audit tail --follow")

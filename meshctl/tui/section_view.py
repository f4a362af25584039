"""A section on the screen: its panes, and what was drilled into below them."""

from __future__ import annotations

from typing import ClassVar

from textual.widget import Widget

from meshctl.tui.declare import Section
from meshctl.tui.grid import Grid
from meshctl.tui.pager import Pager
from meshctl.tui.pane import PaneView, view_of


class SectionView(Widget):
    """One pane in front; below it the way back. Panes that were left stay as they were."""

    DEFAULT_CSS: ClassVar[str] = (
        "SectionView { width: 1fr; height: 1fr; } SectionView > .-behind { display: none; }"
    )

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.section = section
        self.number = 0
        self._roots: dict[int, PaneView] = {}
        self._above: list[PaneView] = []

    @property
    def front(self) -> PaneView | None:
        """The pane that is seen."""
        return self._above[-1] if self._above else self._roots.get(self.number)

    @property
    def trail(self) -> tuple[str, ...]:
        """The names of what was drilled into."""
        return tuple(view.crumb for view in self._above)

    async def on_mount(self) -> None:
        """The first pane."""
        await self.go(0)

    async def go(self, number: int) -> None:
        """To a pane of this section, from the top."""
        if not 0 <= number < len(self.section.panes):
            return
        while self._above:
            await self._above.pop().remove()
        self.number = number
        if number not in self._roots:
            self._roots[number] = view_of(self.section.panes[number])
            await self.mount(self._roots[number])
        self._in_front()

    async def descend(self, view: PaneView) -> None:
        """Into something, with a way back."""
        self._above.append(view)
        await self.mount(view)
        self._in_front()

    async def ascend(self) -> bool:
        """Back up; whether there was anything to go up from."""
        if not self._above:
            return False
        await self._above.pop().remove()
        self._in_front()
        return True

    def _in_front(self) -> None:
        front = self.front
        for view in (*self._roots.values(), *self._above):
            view.set_class(view is not front, "-behind")
        if front is not None:
            self.settle(front)
            front.resume()

    def settle(self, view: PaneView) -> None:
        """Give the keyboard to a pane."""
        for kind in (Grid, Pager):
            for widget in view.query(kind):
                self.screen.set_focus(widget, scroll_visible=False)
                return
        self.screen.set_focus(view, scroll_visible=False)

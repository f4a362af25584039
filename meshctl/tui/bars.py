"""The lines at the top and the bottom: where we are, as whom, and which keys apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from textual.content import Content
from textual.widgets import Static

from meshctl.tui.feed import Link

LINK_STYLE = {
    Link.LIVE: "$text-success",
    Link.POLLING: "$text-primary",
    Link.CONNECTING: "$text-muted",
    Link.AWAY: "$text-error bold",
    Link.REFUSED: "$text-error bold",
}


class Bar(Static):
    """A line that is drawn again only when it says something else."""

    DEFAULT_CSS: ClassVar[str] = """
    Bar { height: 1; width: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #top { background: $primary 20%; }
    #crumbs { background: $surface; }
    #keys { background: $panel; }
    """

    _said: Content | None = None

    def tell(self, content: Content) -> None:
        """Show this."""
        if self._said is None or content.markup != self._said.markup:
            self._said = content
            self.update(content, layout=False)  # one line stays one line


@dataclass(frozen=True, slots=True)
class Hint:
    """A key in the footer; ``why`` it does not work now, "" where it does."""

    key: str
    label: str
    why: str = ""


def header(
    brand: str, where: str, who: str, role: str, *, read_only: str, link: Link, note: str, width: int
) -> Content:
    """Pool and place at the left, principal and the feed's state at the right."""
    left = [(brand, "bold"), ("  ", ""), (where, "")]
    right = [(who, ""), (" ", ""), (role, "bold")]
    if read_only:
        right += [("  ", ""), (read_only, "$text-warning bold")]
    right += [("  ", ""), (note, LINK_STYLE[link])]
    used = sum(cell_len(text) for text, _ in (*left, *right))
    return Content.assemble(*left, " " * max(1, width - used), *right)


def crumbs(
    trail: Sequence[str], panes: Sequence[str], chosen: int, *, separator: str, width: int = 0
) -> Content:
    """Where we are, and the panes beside; as much of the others' names as ``width`` has room for."""
    parts: list[str | tuple[str, str]] = []
    trail = _shortened(trail, width - 4 * len(panes) - 16) if width else trail
    for index, one in enumerate(trail):
        if index:
            parts.append((f" {separator} ", "$text-muted"))
        parts.append((one, "bold" if index == len(trail) - 1 else ""))
    if len(panes) > 1:
        parts.append("  ")
        beside = sum(map(cell_len, trail)) + 3 * len(trail) - 1  # what is between them, and the gap
        names = [f" {index + 1} {one} " for index, one in enumerate(panes)]
        letters = max(map(len, panes)) + 1
        while width and letters and sum(map(cell_len, names)) - names[-1].endswith(" ") + beside > width:
            letters -= 1  # at first it is only the blanks between them that go
            names = [
                f" {index + 1} {one} " if index == chosen else f"{index + 1} {one[:letters]}".rstrip() + " "
                for index, one in enumerate(panes)
            ]
        parts += [(one, "reverse" if index == chosen else "$text-muted") for index, one in enumerate(names)]
    return Content.assemble(*parts)


def _shortened(trail: Sequence[str], width: int) -> Sequence[str]:
    """The last name is cut where all of them are wider than ``width``."""
    *before, last = trail
    room = max(12, width - sum(cell_len(one) + 3 for one in before))
    return trail if cell_len(last) <= room else (*before, f"{set_cell_size(last, room - 3).rstrip()}...")


def footer(hints: Sequence[Hint], always: Sequence[Hint], width: int) -> Content:
    """As many keys as fit beside those that are ``always`` there; those that do not apply are faint, and the
    first of them says why if there is room.
    """
    parts: list[str | tuple[str, str]] = []
    width -= sum(cell_len(hint.key) + cell_len(hint.label) + 3 for hint in always)
    used = 0
    explained = False
    for hint in hints:
        why = f" ({hint.why})" if hint.why and not explained and width >= 110 else ""
        size = cell_len(hint.key) + 1 + cell_len(hint.label) + cell_len(why) + 2
        if used + size > width + 2:
            break
        used += size
        if hint.why:
            explained = True
            parts += [(f"{hint.key} {hint.label}{why}", "$text-disabled"), "  "]
        else:
            parts += [(hint.key, "$text-accent bold"), f" {hint.label}  "]
    for index, hint in enumerate(always):
        gap = "  " if index + 1 < len(always) else ""  # blanks at the end would count as what is cut
        parts += [(hint.key, "$text-accent bold"), f" {hint.label}{gap}"]
    return Content.assemble(*parts)


def shown_key(key: str) -> str:
    """A key as people write it."""
    names = {"delete": "del", "insert": "ins", "plus": "+", "minus": "-", "equals_sign": "="}
    return names.get(key, key.replace("ctrl+", "^"))

"""Lines for a screen that is too narrow: what is folded or cut loses nothing that was needed."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from meshctl.tui.bars import crumbs
from meshctl.tui.folding import folded
from meshctl.tui.pager import Line, plain


def words(lines: list[Line]) -> list[str]:
    """All words, in order."""
    return " ".join(plain(line) for line in lines).split()


def test_a_value_goes_on_below_itself() -> None:
    line: Line = (("problem  ", "key"), ("it cannot be reached, and nobody knows why", "bad"))
    found = folded([line], 32)
    assert [plain(one) for one in found] == [
        "problem  it cannot be reached,",
        "         and nobody knows why",
    ]
    assert found[1][-1] == ("and nobody knows why", "bad")


def test_what_fits_stays_and_blank_cells_at_the_end_do_not_count() -> None:
    fits: Line = (("a", "key"), ("b" * 20, ""))
    blank: Line = (("name  ", "key"), ("one two three four five six", ""), (" " * 30, ""))
    assert folded([fits, ()], 21) == [fits, ()]
    assert [plain(one) for one in folded([blank], 26)] == ["name  one two three four", "      five six"]


def test_a_word_without_an_end_and_wide_letters() -> None:
    long: Line = (("key  ", "key"), ("x" * 100, ""))
    wide: Line = (("李小龍" * 20, ""),)
    for line in (long, wide):
        found = folded([line], 30)
        assert all(cell_len(plain(one)) <= 30 for one in found)
        assert "".join(words(found)) == "".join(words([line]))


def test_where_there_is_no_room_it_is_scrolled_aside() -> None:
    line: Line = (("k" * 25, "key"), ("a b c d e f g h i j k l", ""))
    assert folded([line], 30) == [line]


@pytest.mark.parametrize("width", [78, 118])
@pytest.mark.parametrize(
    "name", ["orders", "The licence of Example Ltd ends within 30 days; meshctl license show", "李小龍" * 30]
)
def test_breadcrumbs_cut_the_name_before_the_panes(width: int, name: str) -> None:
    panes = ("Mail server", "Recipients", "Mail", "Notifications")
    line = crumbs(("SMTP", name), panes, 3, separator="›", width=width)
    assert line.cell_length <= width + 1
    assert "4 Notifications" in line.plain
    assert all(f"{number} " in line.plain for number in range(1, 5))
    assert (name in line.plain) == (name == "orders" or (width == 118 and name.isascii()))


def test_panes_lose_their_blanks_before_their_letters() -> None:
    panes = ("Requests", "Switch", "Rules", "People", "Erased", "Admins", "Sessions")
    line = crumbs(("Sign-up",), panes, 3, separator="›", width=78)
    assert all(one in line.plain for one in panes)

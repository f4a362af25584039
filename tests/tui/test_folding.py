"""Lines that are folded to a screen's width: nothing of them is lost, and the rest is left alone."""

from __future__ import annotations

from rich.cells import cell_len

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

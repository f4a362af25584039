"""Tables on narrow terminals: what is read and copied whole is drawn whole."""

from __future__ import annotations

from typing import Final

import pytest

from meshctl.column_widths import Widths, widths
from meshctl.render import print_table
from meshctl.view import Table, card

LINKS: Final = Table(
    ("NODE", "ADDRESS", "APP BYTES", "WHAT"),
    (("web1", "127.0.0.1:51670", "93.8 MiB", "one two three"), ("gpu", "-", "6 B", "-")),
    frozenset({2}),
)
DSN: Final = "postgresql://shopfront:KftcfWby7y2mbmDud3vyzvOeiSIGAhok@localhost:11438/orders"


def drawn(
    table: Table, room: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a terminal of that width gets."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for name, value in {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(room)}.items():
        monkeypatch.setenv(name, value)
    print_table(table)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("room", "wanted"),
    [
        (80, Widths((4, 15, 9, 13), 2)),
        (46, Widths((4, 15, 9, 12), 2)),
        (39, Widths((4, 15, 8, 6), 2)),  # the heading wraps, and no number from its unit
        (35, Widths((4, 15, 8, 5), 1)),
        (32, Widths((4, 15, 5, 5), 1)),
        (31, None),
    ],
)
def test_no_word_is_cut(room: int, wanted: Widths | None) -> None:
    assert widths(LINKS, room) == wanted


def test_of_few_columns_a_path_is_folded_and_an_address_is_not() -> None:
    def table(word: str) -> Table:
        return Table(("CHECK", "DETAIL"), (("key file", word),))

    assert widths(table("/a" * 30), 40) == Widths((8, 31), 1)
    assert widths(table(DSN), 40) is None


def test_what_is_copied_from_a_card_has_no_line_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = card({"try": f"psql '{DSN}'", "note": "a password that is new at each start"})
    assert drawn(shown, 40, monkeypatch, capsys).splitlines() == [
        f"try   psql '{DSN}'",
        "note  a password that is new at each",
        "      start",
    ]


def test_where_there_is_no_room_a_row_is_a_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drawn(LINKS, 28, monkeypatch, capsys).splitlines() == [
        "NODE       web1",
        "ADDRESS    127.0.0.1:51670",
        "APP BYTES  93.8 MiB",
        "WHAT       one two three",
        "",
        "NODE       gpu",
        "APP BYTES  6 B",
    ]

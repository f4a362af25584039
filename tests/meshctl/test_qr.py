"""QR codes in text: the drawing says what the modules say, at the sizes that a terminal has."""

from __future__ import annotations

import re

import pytest

from meshctl import qr
from meshctl.errors import UsageError

ADDRESS = f"otpauth://totp/hq%20north%3Aalice?secret={'A2B3' * 8}&issuer=hq%20north"
FINDER = ("1111111", "1000001", "1011101", "1011101", "1011101", "1000001", "1111111")
HALVES = {"█": "11", "▀": "10", "▄": "01", " ": "00"}


def read(lines: list[str], *, dark: str) -> list[str]:
    """The rows of modules that a drawing shows, dark ones as "1"."""
    rows = []
    for line in lines:
        pairs = [HALVES[char] for char in line]
        rows += ["".join("01"[(pair[half] == "1") == (dark == "ink")] for pair in pairs) for half in (0, 1)]
    return rows


@pytest.mark.parametrize("dark", ["ink", "paper"])
def test_a_drawing_says_what_the_modules_say(dark: str) -> None:
    rows = qr.modules(ADDRESS)
    wanted = ["".join("01"[one] for one in row) for row in rows]
    drawn = read(qr.in_halves(rows, dark=dark == "ink"), dark=dark)
    assert drawn[: len(wanted)] == wanted
    assert drawn[len(wanted) :] == ["0" * len(rows[0])]  # an odd number of rows: one more is light
    for left, top in ((2, 2), (len(rows) - 9, 2), (2, len(rows) - 9)):
        assert tuple(row[left : left + 7] for row in wanted[top : top + 7]) == FINDER
    assert all("1" not in row for row in (*wanted[:2], *wanted[-2:]))
    assert all("1" not in row[:2] + row[-2:] for row in wanted)


def test_the_address_of_a_second_factor_goes_into_24_lines() -> None:
    assert len(qr.in_halves(qr.modules(ADDRESS))) == 21


def test_it_is_written_where_it_fits_and_else_says_what_it_wants() -> None:
    with pytest.raises(UsageError, match="41 x 21"):
        qr.on_terminal(ADDRESS, columns=40, lines=24, colour=True)
    with pytest.raises(UsageError, match="41 x 21"):
        qr.on_terminal(ADDRESS, columns=80, lines=20, colour=False)
    plain = qr.on_terminal(ADDRESS, columns=80, lines=24, colour=False)
    coloured = qr.on_terminal(ADDRESS, columns=80, lines=24, colour=True)
    assert "\x1b" not in plain
    assert read(re.sub(r"\x1b\[[0-9;]*m", "", coloured).split("\n"), dark="ink") == read(
        plain.split("\n"), dark="paper"
    )


def test_what_is_too_long_for_one_is_said() -> None:
    with pytest.raises(UsageError, match="too long"):
        qr.modules("x" * 3000)

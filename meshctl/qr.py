"""QR codes in text: two rows of modules a line in half blocks.

The library that computes the modules is imported when one is wanted, so that no other command pays for it.
"""

from __future__ import annotations

from typing import Final

from meshctl.errors import UsageError

MARGIN: Final = 2
"""Light modules around it. ISO/IEC 18004 wants four; cameras take two, and 24 lines have no room for more."""

Modules = tuple[tuple[bool, ...], ...]
"""Rows of modules with their margin; True is dark."""

_HALVES: Final = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}


def modules(text: str, *, margin: int = MARGIN) -> Modules:
    """The QR code of a text, with its margin. UsageError where the text is too long for one."""
    import segno

    try:
        code = segno.make_qr(text, error="l", boost_error=False)
    except segno.DataOverflowError as error:
        raise UsageError("The text is too long for a QR code.") from error
    return tuple(tuple(bool(one) for one in row) for row in code.matrix_iter(border=margin))


def in_halves(rows: Modules, *, dark: bool = True) -> list[str]:
    """Lines of half blocks in which what is ``dark`` (else what is light) is ink; as wide as the code."""
    padded = [*rows, (False,) * len(rows[0])] if len(rows) % 2 else list(rows)
    return [
        "".join(_HALVES[upper == dark, lower == dark] for upper, lower in zip(*pair, strict=True))
        for pair in zip(padded[::2], padded[1::2], strict=True)
    ]


def on_terminal(text: str, *, columns: int, lines: int, colour: bool) -> str:
    """What is written to a terminal of that size; UsageError, which says the size, where it is too small.

    With ``colour`` dark is black on white whatever the terminal's own colours are; without, the light modules
    are ink, which is right on a dark background.
    """
    rows = modules(text)
    width, height = len(rows[0]), (len(rows) + 1) // 2
    if width > columns or height > lines:
        raise UsageError(f"Its QR code needs a terminal of {width} x {height}.")
    if colour:
        return "\n".join(f"\x1b[30;107m{line}\x1b[0m" for line in in_halves(rows))
    return "\n".join(in_halves(rows, dark=False))

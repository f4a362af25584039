"""Small pictures of numbers, as text: sparklines and bars, with a form for terminals that have ASCII only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.-:=+*#"


def sparkline(values: Sequence[float | None], width: int, *, ascii_only: bool = False) -> str:
    """The last ``width`` values, a character each, scaled from zero to the largest; a gap for None."""
    marks = ASCII if ascii_only else BLOCKS
    shown = list(values)[-width:] if width > 0 else []
    top = max((value for value in shown if value is not None), default=0.0)
    text = "".join(
        " "
        if value is None
        else marks[0]
        if top <= 0
        else marks[min(len(marks) - 1, int(max(0.0, value) / top * len(marks)))]
        for value in shown
    )
    return text.rjust(width)


def area(values: Sequence[float | None], width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    """The last ``width`` values as ``height`` lines, the uppermost first, scaled from zero to the largest."""
    marks = ASCII if ascii_only else BLOCKS
    shown = list(values)[-width:] if width > 0 else []
    top = max((value for value in shown if value is not None), default=0.0)
    steps = len(marks)
    levels = [
        0 if value is None or top <= 0 else round(max(0.0, value) / top * height * steps) for value in shown
    ]
    lines = []
    for row in range(height - 1, -1, -1):
        base = row * steps
        ground = marks[0] if row == 0 else " "
        text = "".join(ground if level <= base else marks[min(level - base, steps) - 1] for level in levels)
        lines.append(text.rjust(width))
    return lines


def bar(share: float | None, width: int, *, ascii_only: bool = False) -> str:
    """A part of one as a bar; nothing known is an empty one."""
    full, rest = ("#", ".") if ascii_only else ("█", "░")
    filled = 0 if share is None else round(min(1.0, max(0.0, share)) * width)
    return full * filled + rest * (width - filled)

"""How numbers, sizes, durations and moments are written in a language. Pure.

What commands print is the form that is read: `12345`, `1.5 GiB`, `3d 4h`, `25%`, `2027-01-31 02:00:00Z`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

NARROW: Final = "\u202f"
"""A narrow space at which no line is broken: it groups digits and stands before units in French."""

GROUPED_FROM: Final = 5
"""Digits of a whole number from which they are grouped; a year, a port or a count of four is read at once."""

_NUMBER: Final = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?"
_BYTES: Final = r"(?:[KMGT]i?)?B(?:/s)?"
_SHORT: Final = r"ms|tok/s|[dhms]|%|x"
_UNIT: Final = rf" {_BYTES}| ?(?:{_SHORT})"
"""Bytes stand after a space; "8B" is what a model is called."""
_FIGURE: Final = re.compile(
    rf"(?P<number>{_NUMBER})(?:(?P<space> ?)(?P<unit>(?<= ){_BYTES}|{_SHORT}|[kM])(?![\w%]))?"
)
_WHOLE: Final = re.compile(rf"{_NUMBER}(?:{_UNIT})?(?:(?:[ /,+]| / ){_NUMBER}(?:{_UNIT})?)*")
_COUNT: Final = re.compile(r"\d{1,3}(?:,\d{3})+")
_UNITED: Final = re.compile(rf"{_NUMBER}(?:{_UNIT})(?:(?: | / ){_NUMBER}(?:{_UNIT}))*")
_AT: Final = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?:[ T](?P<time>\d\d:\d\d(?::\d\d)?)(?P<zone>Z|\+00:00)?)?"
)


@dataclass(frozen=True, slots=True)
class Figures:
    """``decimal`` and ``group`` stand in numbers, ``space`` before a unit (None: as it was); ``date`` has
    places for year, month and day; ``units`` are those that are called otherwise.
    """

    decimal: str = "."
    group: str = ""
    space: str | None = None
    date: str = "{year}-{month}-{day}"
    units: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def told(self, text: str, *, grouped: bool = False) -> str:
        """Every figure in a text that holds nothing else; ``grouped``: long numbers are counts, no names."""
        if _AT.fullmatch(text):
            return self.moment(text)
        return _FIGURE.sub(lambda found: self._one(found, grouped), text)

    def whole(self, text: str, *, bare: bool = False) -> str | None:
        """A text that is a figure with its unit, or a moment, and nothing else; None for any other one.

        ``bare`` takes numbers without a unit too; a version looks like one.
        """
        if _AT.fullmatch(text):
            return self.moment(text)
        if (_WHOLE if bare else _UNITED).fullmatch(text) or _COUNT.fullmatch(text):
            return self.told(text, grouped=bare)
        return None

    def moment(self, text: str) -> str:
        """A date, with a time or without."""
        found = _AT.fullmatch(text)
        if found is None:
            return text
        date = self.date.format(year=found["year"], month=found["month"], day=found["day"])
        return f"{date} {found['time']}{'Z' if found['zone'] else ''}" if found["time"] else date

    def of(self, value: float) -> str:
        """A number that fills a place of a text."""
        return self.told(f"{value:g}" if isinstance(value, float) else str(value), grouped=True)

    def typed(self, text: str) -> str:
        """A number as somebody types it, in the form that requests take."""
        if self.decimal != ".":
            text = text.replace(self.decimal, ".")
        return re.sub(r"(?<=\d)[\s\u00a0\u202f](?=\d{3}\b)", "", text)

    def plain(self) -> Figures:
        """These in ASCII."""
        return Figures(
            self.decimal,
            self.group.replace(NARROW, " "),
            None if self.space is None else self.space.replace(NARROW, " "),
            self.date,
            self.units,
        )

    def _one(self, found: re.Match[str], grouped: bool) -> str:
        number, unit = found["number"].replace(",", ""), found["unit"]
        sign = number[: number[0] in "+-"]
        whole, point, rest = number.removeprefix(sign).partition(".")
        if grouped or unit or "," in found["number"]:
            whole = self._grouped(whole, had="," in found["number"])
        text = sign + whole + (self.decimal + rest if point else "")
        if not unit:
            return text
        space = found["space"] if self.space is None or unit == "x" else self.space
        return f"{text}{space}{self.units.get(unit, unit)}"

    def _grouped(self, digits: str, *, had: bool) -> str:
        mark = self.group or ("," if had else "")
        if not mark or (len(digits) < GROUPED_FROM and not had):
            return digits
        first = len(digits) % 3
        parts = [digits[:first]] if first else []
        parts += [digits[at : at + 3] for at in range(first, len(digits), 3)]
        return mark.join(parts)


def figures(given: Mapping[str, Any]) -> Figures:
    """What the table ``figures`` of a language says; English where it says nothing."""
    own = Figures()
    return Figures(
        str(given.get("decimal", own.decimal)),
        str(given.get("group", own.group)),
        given.get("space", own.space),
        str(given.get("date", own.date)),
        MappingProxyType({str(key): str(unit) for key, unit in (given.get("units") or {}).items()}),
    )

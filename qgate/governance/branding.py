"""What a pool shows of itself on terminals: a name, a logo made of text, colours, and whom to ask. Pure.

Whatever is shown on somebody else's terminal is refused where it could do more than be shown: control
characters, escape sequences, marks that turn the direction of text, characters that stack or take no cell.
Colours are refused where text in them could not be read (WCAG 2.2, 1.4.3 and 1.4.11).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from qgate.governance.problems import InvalidRequestError

NAME_MAX: Final = 40
SUPPORT_MAX: Final = 120
LOGO_WIDTH: Final = 60
LOGO_HEIGHT: Final = 12
PRODUCT: Final = "qgate-mesh"

COLOURS: Final[Mapping[str, str]] = {
    "background": "#101418",
    "surface": "#1a2027",
    "foreground": "#e6e9ec",
    "primary": "#4ea1ff",
    "secondary": "#9a8cff",
    "accent": "#2dd4bf",
    "success": "#3fb950",
    "warning": "#e3b341",
    "error": "#ff7b72",
}
"""Tokens of a theme with what they are where nothing else was set."""

TEXT_CONTRAST: Final = 4.5
"""Least ratio of text to what it stands on (WCAG 2.2, success criterion 1.4.3, level AA)."""
PART_CONTRAST: Final = 3.0
"""Least ratio of anything else that must be told apart (1.4.11)."""

PAIRS: Final = (
    ("foreground", "background", TEXT_CONTRAST),
    ("foreground", "surface", TEXT_CONTRAST),
    *((token, "background", PART_CONTRAST) for token in ("primary", "secondary", "accent")),
    *((token, "background", PART_CONTRAST) for token in ("success", "warning", "error")),
)
"""What is shown on what, and how far apart it must be."""

_HEX: Final = re.compile(r"#[0-9a-f]{6}", re.ASCII)
_STACKING: Final = frozenset({"Mn", "Me", "Mc"})
_UNSHOWN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class BrandingError(InvalidRequestError):
    """Something that cannot be shown; ``field`` is the field that it was meant for."""

    code = "branding"

    def __init__(self, message: str, field_name: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field_name


@dataclass(frozen=True, slots=True)
class Branding:
    """What is shown. ``logo`` are its lines; ``colours`` what differs from `COLOURS`.

    ``white_label`` leaves out the product's name; it takes a licence.
    """

    name: str = ""
    logo: tuple[str, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    support: str = ""
    white_label: bool = False

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Branding:
        """Read and check a document; keys left out are empty. BrandingError."""
        known = {one.name for one in fields(cls)}
        if unknown := document.keys() - known:
            raise BrandingError(f"there is nothing called {min(unknown)!r} to show", str(min(unknown)))
        white_label = document.get("white_label", False)
        if not isinstance(white_label, bool):
            raise BrandingError("white_label is true or false", "white_label")
        return cls(
            name=_line(document.get("name", ""), "name", NAME_MAX),
            logo=_logo(document.get("logo", ())),
            colours=_colours(document.get("colours", {})),
            support=_line(document.get("support", ""), "support", SUPPORT_MAX),
            white_label=white_label,
        )

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "name": self.name,
            "logo": list(self.logo),
            "colours": dict(self.colours),
            "support": self.support,
            "white_label": self.white_label,
        }

    @property
    def theme(self) -> dict[str, str]:
        """Every token's colour."""
        return {**COLOURS, **self.colours}

    def title(self, *, white_label: bool) -> str:
        """The name as it is shown; the product's beside it, but where ``white_label`` holds."""
        if not self.name:
            return PRODUCT
        return self.name if white_label and self.white_label else f"{self.name} ({PRODUCT})"


def cells(text: str) -> int:
    """How many cells of a terminal a text takes (UAX #11: wide and full-width characters take two)."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours "#rrggbb", 1 to 21 (WCAG 2.2)."""
    bright, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def contrasts(theme: Mapping[str, str]) -> list[dict[str, Any]]:
    """How far apart each pair of a theme is: `{token, on, ratio, least, ok}`."""
    return [
        {
            "token": token,
            "on": ground,
            "ratio": round(ratio := contrast(theme[token], theme[ground]), 2),
            "least": least,
            "ok": ratio >= least,
        }
        for token, ground, least in PAIRS
    ]


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _line(value: Any, name: str, most: int) -> str:
    if not isinstance(value, str):
        raise BrandingError(f"{name} is text", name)
    line = unicodedata.normalize("NFC", value).strip()
    if cells(line) > most:
        raise BrandingError(f"{name} takes {cells(line)} cells, and {most} are what fits", name)
    _refuse_unshown(line, name)
    return line


def _logo(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.splitlines()
    if not isinstance(value, list | tuple) or not all(isinstance(line, str) for line in value):
        raise BrandingError("a logo is lines of text", "logo")
    lines = [unicodedata.normalize("NFC", line).rstrip() for line in value[: 10 * LOGO_HEIGHT]]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    widest = max(map(cells, lines), default=0)
    if len(lines) > LOGO_HEIGHT or widest > LOGO_WIDTH:
        raise BrandingError(
            f"a logo takes at most {LOGO_WIDTH} by {LOGO_HEIGHT} cells, and this is {widest} by {len(lines)}",
            "logo",
        )
    for line in lines:
        _refuse_unshown(line, "logo")
    return tuple(lines)


def _refuse_unshown(text: str, name: str) -> None:
    for one in text:
        kind = unicodedata.category(one)
        if kind in _UNSHOWN or (kind == "Zs" and one != " "):
            raise BrandingError(
                f"{name} holds U+{ord(one):04X}, which is no character that is shown",
                name,
                hint="plain text only: no colours, no escape sequences, no tabs",
            )
        if kind in _STACKING:
            raise BrandingError(f"{name} holds U+{ord(one):04X}, a mark that takes no cell of its own", name)


def _colours(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise BrandingError("colours are named: primary, background ...", "colours")
    found = {}
    for token, colour in value.items():
        if token not in COLOURS:
            raise BrandingError(
                f"there is no colour {str(token)[:40]!r}",
                "colours",
                hint=f"choose from {', '.join(COLOURS)}",
            )
        if not isinstance(colour, str) or not _HEX.fullmatch(colour.lower()):
            raise BrandingError(f"{token} must be a colour like {COLOURS[token]}", "colours")
        found[token] = colour.lower()
    for pair in contrasts({**COLOURS, **found}):
        if not pair["ok"] and (pair["token"] in found or pair["on"] in found):
            raise BrandingError(
                f"{pair['token']} on {pair['on']} has a contrast of {pair['ratio']}:1, "
                f"and {pair['least']}:1 is the least that can be read",
                "colours",
                hint="choose a lighter or a darker one; meshctl branding preview shows all",
            )
    return found

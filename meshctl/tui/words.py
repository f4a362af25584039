"""The words on the screen, in the person's language.

The English text is the key. A language is a folder of TOML files under ``locale``, one a section, each line
"English" = "translation"; a text without a line is shown in English.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from types import MappingProxyType
from typing import Final

ENGLISH: Final = "en"

SPOKEN: Final = (
    *("viewer", "operator", "admin", "owner"),
    *("connecting", "live", "polling", "away", "refused"),
    *("described", "yaml", "json"),
)
"""Words that come as values: roles, how the feed stands, the forms of a description."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One language's texts."""

    language: str = ENGLISH
    texts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def say(self, text: str, **values: object) -> str:
        """A text in this language, with ``values`` in its places."""
        found = self.texts.get(text, text)
        return found.format(**values) if values else found


def languages() -> tuple[str, ...]:
    """The languages there are, English first."""
    folder = files("meshctl.tui") / "locale"
    found = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("_"))
    return (ENGLISH, *found)


def catalogue(language: str) -> Catalogue:
    """The texts of a language; English for one that there is not."""
    folder = files("meshctl.tui") / "locale" / language
    if language == ENGLISH or not folder.is_dir():
        return Catalogue()
    texts: dict[str, str] = {}
    for one in sorted(folder.iterdir(), key=lambda item: item.name):
        if one.name.endswith(".toml"):
            texts |= tomllib.loads(one.read_text(encoding="utf-8"))
    return Catalogue(language, MappingProxyType(texts))

"""A language that nobody speaks: every text of the catalogue with its letters changed.

What is drawn in plain letters while it is spoken is data, or was never given to the catalogue.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pytest

from meshctl.tui import words
from meshctl.tui.data import Desk
from meshctl.tui.words import Catalogue, put_together
from tests.tui.messages import ROOT

NAME: Final = "pseudo"
_LETTERS: Final = str.maketrans(
    string.ascii_letters, "ȧƀƈḓḗƒɠħīĵķŀḿƞǿƥɋřşŧŭṽẇẋẏẑȦƁƇḒḖƑƓĦĪĴĶĿḾȠǾƤɊŘŞŦŬṼẆẊẎẐ", "ß"
)
WORD: Final = re.compile(r"[A-Za-z]{3,}")
_COMMAND: Final = re.compile(
    r"=? ?\bmeshctl [^\u2502|]*|\b(?:GET|POST|PUT|PATCH|DELETE) /\S*|/[\w./{}-]+|\b\w+(?:[._-]\w+)+\b"
)
"""Commands, requests, paths and dotted names, which are the same in every language."""


def changed(text: str) -> str:
    """A text in that language; its places stay."""
    parts = []
    for before, name, spec, _ in string.Formatter().parse(text):
        parts.append(before.translate(_LETTERS).replace("{", "{{").replace("}", "}}") if before else "")
        if name is not None:
            parts.append("{" + name + (f":{spec}" if spec and spec != "n" else "") + "}")
    return "".join(parts)


def documents(language: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files of a language by their names."""
    for path in sorted((ROOT / "locale" / language).glob("*.toml")):
        yield path.name, tomllib.loads(path.read_text(encoding="utf-8"))


def pseudo() -> Catalogue:
    """Everything that French has, changed."""
    found: list[Mapping[str, Any]] = []
    for _, document in documents("fr"):
        made: dict[str, Any] = {}
        for key, value in document.items():
            if key == "figures":
                made[key] = {
                    **{name: one for name, one in value.items() if name != "units"},
                    "units": {name: changed(name) for name in value["units"]},
                }
            elif isinstance(value, Mapping):
                made[key] = {name: changed(name.partition("@")[0]) for name in value}
            else:
                made[key] = changed(key)
        found.append(made)
    return put_together(NAME, found)


def speak(patch: pytest.MonkeyPatch) -> Catalogue:
    """Make it a language of the control room."""
    made, real = pseudo(), words.catalogue

    def catalogue(language: str, *, ascii_only: bool = False) -> Catalogue:
        return made if language == NAME else real(language, ascii_only=ascii_only)

    patch.setattr(words, "catalogue", catalogue)
    return made


class Heard:
    """Every word that a gate says, as keys or as values; those that are ours are left out."""

    def __init__(self, catalogue: Catalogue, patch: pytest.MonkeyPatch) -> None:
        self._ours = {key.casefold() for key in catalogue.values}
        self.words: set[str] = set()
        get, send = Desk.get, Desk.send

        async def heard_get(desk: Desk, path: str, query: Mapping[str, object] | None = None) -> Any:
            reply = await get(desk, path, query)
            self.take(reply)
            return reply

        async def heard_send(desk: Desk, call: Any) -> Any:
            reply = await send(desk, call)
            self.take(reply)
            return reply

        patch.setattr(Desk, "get", heard_get)
        patch.setattr(Desk, "send", heard_send)

    def take(self, value: Any) -> None:
        """Remember what an answer says."""
        if isinstance(value, Mapping):
            for one in value.values():
                self.take(one)
        elif isinstance(value, list):
            for one in value:
                self.take(one)
        elif isinstance(value, str) and value.casefold() not in self._ours:
            self.words.update(word.casefold() for word in WORD.findall(value))

    def unknown(self, text: str, *, besides: Iterable[str] = ()) -> list[str]:
        """Words of a screen that neither the gate said nor the catalogue has, each with its line."""
        known = self.words | {one.casefold() for one in besides}
        found = []
        for line in text.splitlines():
            for word in WORD.finditer(_COMMAND.sub(" ", line)):
                cut = word.string[word.end() : word.end() + 1] == "."
                folded = word[0].casefold()
                if folded not in known and not (cut and any(one.startswith(folded) for one in known)):
                    found.append(f"{word[0]}  ({' '.join(line.split())})")
        return found

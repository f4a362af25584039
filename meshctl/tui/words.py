"""The words on the screen, in the person's language.

The English text is the key. A language is a folder of TOML files under ``locale``, one a section, each line
"English" = "translation"; a text without a line is shown in English. Tables of a file hold what is no whole
text of a screen: ``heading`` of columns, ``label`` of cards, ``value`` of fields that are enumerated,
``phrase`` of what commands print too, with places ("{used} of {all}"), ``problem`` of errors, which may have
places as well, and ``figures`` (`meshctl.tui.figures`).
"""

from __future__ import annotations

import re
import string
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

from meshctl.tui.fields import FieldError
from meshctl.tui.figures import Figures, figures
from tunnel_proto.errors import MeshError

ENGLISH: Final = "en"

SPOKEN: Final = (
    *("viewer", "operator", "admin", "owner"),
    *("connecting", "live", "polling", "away", "refused"),
    *("described", "yaml", "json"),
)
"""Words that come as values: roles, how the feed stands, the forms of a description."""

TABLES: Final = ("heading", "label", "value", "phrase", "problem")
"""Tables of a language's file beside its texts."""

ENUMERATED: Final = frozenset(
    {
        *(
            "state",
            "kind",
            "role",
            "severity",
            "level",
            "trust",
            "link",
            "health",
            "verdict",
            "result",
            "mode",
        ),
        *("side", "source", "switch", "outcome", "last_outcome", "rule", "how", "read", "from_severity"),
        *("target_session", "isolation", "key", "mail", "password", "master", "said", "heard", "local"),
        *("check", "unit", "automatic", "next", "description", "what_it_does", "what", "section", "group"),
        *("sign-up", "mail_domains_that_may", "written_by", "to_replace_it"),
    }
)
"""Fields, and what they are called in lists, whose values are words of ours and not somebody's names."""

SEVERAL: Final = "?"
"""Begins what a translation adds where a place is more than one: "{count} ligne{count:?s}"."""

VERSIONS: Final = frozenset({"version", "build", "driver", "cuda", "name", "id", "server version"})
"""Names of values in a description that look like a number with decimals and are none."""

LONGEST: Final = 400
"""Characters of a text that is looked at for a phrase."""

_PAIR: Final = re.compile(r"(?:(?<=^)|(?<=, ))(?P<name>[a-z_]+)=(?P<value>(?:yes|no)(?=,|$))?")
_DECIMAL: Final = re.compile(r"-?\d+\.\d+")
_PAIRS: Final = re.compile(r"[a-z_]+=[^=]*(?:, [a-z_]+=[^=]*)*")
_PLAIN: Final = str.maketrans(
    {"\u202f": " ", "\u00a0": " ", "’": "'", "«": '"', "»": '"', "…": "...", "–": "-", "œ": "oe", "Œ": "OE"}
)


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


def enumerated(name: str) -> bool:
    """Whether a field, a heading or a label names something whose values are words of ours."""
    return name.rpartition(".")[2].casefold().replace(" ", "_") in ENUMERATED


@dataclass(frozen=True, slots=True)
class Phrase:
    """A text with places, to be found in one where they are filled; in ``{count:n}`` stands a number."""

    pattern: re.Pattern[str]
    translated: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One language's texts."""

    language: str = ENGLISH
    texts: Mapping[str, str] = field(default_factory=_empty)
    headings: Mapping[str, str] = field(default_factory=_empty)
    labels: Mapping[str, str] = field(default_factory=_empty)
    values: Mapping[str, str] = field(default_factory=_empty)
    phrases: Sequence[Phrase] = ()
    problems: Sequence[Phrase] = ()
    figures: Figures = field(default_factory=Figures)

    def say(self, text: str, **values: object) -> str:
        """A text in this language, with ``values`` in its places; numbers among them as it writes them."""
        if self.language == ENGLISH:
            return text.format(**values) if values else text
        found = self.texts.get(text)
        if found is None and not values:
            known = self.value(text)
            found = self.shown(text) if known == text else known
        found = text if found is None else found
        return _Filled(self).format(found, **values) if values else found

    def heading(self, text: str, key: str = "") -> str:
        """The heading of a column; where a word means several things, "AT@pool" is that of the field."""
        found = self.headings.get(f"{text}@{key}") or self.headings.get(text)
        return found or self.texts.get(text, text)

    def label(self, text: str) -> str:
        """The name of a value in a card, or of a card."""
        return self.labels.get(text) or self.texts.get(text) or self.shown(text)

    def value(self, text: str) -> str:
        """A word of an enumeration; one that is not known stays."""
        found = self.values.get(text)
        if found is None and text.isupper():
            found = self.values.get(text.lower(), text).upper()
        return text if found is None else found

    def choices(self, values: Sequence[str]) -> Mapping[str, str]:
        """What values are called that one is chosen of; where any is not ours, all are data."""
        if not all(one in self.values for one in values if one):
            return {}
        return {one: self.values.get(one, one) for one in values}

    def shown(self, text: str) -> str:
        """A text that may be one of ours with its places filled, or a figure; anything else stays."""
        if self.language == ENGLISH or not text:
            return text
        found = self.texts.get(text)
        if found is None and len(text) <= LONGEST:
            found = self.figures.whole(text)
            if found is None:
                found = self._phrase(text)
        return text if found is None else found

    def problem(self, text: str) -> str:
        """What is wrong, or what to do next, as a gate or a command said it; what stands in a place of it may
        be such a text again.
        """
        if self.language == ENGLISH or not text:
            return text
        known = self.texts.get(text)
        for one in self.problems if known is None else ():
            if (found := one.pattern.fullmatch(text)) is not None:
                parts = found.groupdict().items()
                places = {name: self._within(part) if len(part) < len(text) else part for name, part in parts}
                return _Filled(self).format(one.translated, **places)
        return self.shown(text) if known is None else known

    def told(self, error: MeshError, between: str = "\n") -> str:
        """An error in this language, with its next step where it knows one."""
        if isinstance(error, FieldError):
            return self.say(error.message, **error.values)
        return between.join(self.problem(text) for text in (error.message, error.hint) if text)

    def _within(self, text: str) -> str:
        found = self.problem(text) if " " in text else text
        return self._place(text) if found == text else found

    def cell(self, text: str, value: Any, *, words: bool, counts: bool) -> str:
        """A cell of a list: ``value`` as its column shows it. ``words``: an enumeration; ``counts``: an
        amount, no name that happens to be a number.
        """
        if self.language == ENGLISH or text in {"", "-"}:
            return text
        if value is None or isinstance(value, bool | int | float):
            known = self.value(text)
            if known != text:
                return known
            if self.figures.whole(text, bare=True) is not None:
                return self.figures.told(text, grouped=counts)
            return self._phrase(text) or text
        if words:
            if isinstance(value, list | tuple):
                return ", ".join(self.value(one) for one in text.split(", "))
            known = self.value(text)
            return known if known != text else self.shown(text)
        if isinstance(value, str):
            found = self.figures.whole(text, bare=counts)
            return text if found is None else found
        return self.pairs(text) if isinstance(value, Mapping) else text

    def pairs(self, text: str) -> str:
        """A table in one line, "count=2, this=yes": what its fields are called."""

        def one(found: re.Match[str]) -> str:
            value = found["value"]
            return f"{self.label(found['name'].replace('_', ' '))}={self.value(value) if value else ''}"

        return _PAIR.sub(one, text)

    def fact(self, name: str, text: str) -> str:
        """A value of a card, or of a list in a description, beside its name in English."""
        if self.language == ENGLISH or text in {"", "-"}:
            return text
        if not name:
            return self.label(text)
        if text in {"yes", "no", "PASSED", "FAILED", "WARNING"} or enumerated(name):
            known = self.value(text)
            if known != text:
                return known
        if name != "labels" and _PAIRS.fullmatch(text):
            return self.pairs(text)
        if _DECIMAL.fullmatch(text) and name.casefold() not in VERSIONS:
            return self.figures.told(text)
        return self.shown(text) if " " in text else self.figures.whole(text) or text

    def _phrase(self, text: str) -> str | None:
        for one in self.phrases:
            if (found := one.pattern.fullmatch(text)) is not None:
                places = {name: self._place(part) for name, part in found.groupdict().items()}
                return _Filled(self).format(one.translated, **places)
        return None

    def _place(self, text: str) -> str:
        known = self.texts.get(text) or self.value(text)
        if known != text:
            return known
        figure = self.figures.whole(text, bare=True)
        return text if figure is None else figure


def _several(value: Any) -> bool:
    digits = re.sub(r"\D", "", str(value))
    return bool(digits) and int(digits) > 1


class _Filled(string.Formatter):
    """Fills places; numbers and our own words are written as the language does."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def format_field(self, value: Any, format_spec: str) -> str:
        """A value in its place."""
        if format_spec.startswith(SEVERAL):
            return format_spec.removeprefix(SEVERAL) if _several(value) else ""
        if isinstance(value, StrEnum):
            return self._catalogue.texts.get(value.value) or self._catalogue.value(value.value)
        if isinstance(value, bool):
            return self._catalogue.value("yes" if value else "no")
        if isinstance(value, int | float):
            if not format_spec:
                return self._catalogue.figures.of(value)
            return self._catalogue.figures.told(format(value, format_spec), grouped=True)
        text = format(value, format_spec)
        if isinstance(value, str):
            figure = self._catalogue.figures.whole(text)
            return text if figure is None else figure
        return text


def languages() -> tuple[str, ...]:
    """The languages there are, English first."""
    folder = files("meshctl.tui") / "locale"
    found = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("_"))
    return (ENGLISH, *found)


def catalogue(language: str, *, ascii_only: bool = False) -> Catalogue:
    """The texts of a language; English for one that there is not. ``ascii_only``: without accents."""
    folder = files("meshctl.tui") / "locale" / language
    if language == ENGLISH or not folder.is_dir():
        return Catalogue()
    found = [
        tomllib.loads(one.read_text(encoding="utf-8"))
        for one in sorted(folder.iterdir(), key=lambda item: item.name)
        if one.name.endswith(".toml")
    ]
    return put_together(language, found, ascii_only=ascii_only)


def put_together(language: str, found: Sequence[Mapping[str, Any]], *, ascii_only: bool = False) -> Catalogue:
    """One catalogue from the documents of its files."""
    texts: dict[str, str] = {}
    tables: dict[str, dict[str, str]] = {name: {} for name in TABLES}
    numbers: dict[str, Any] = {}
    for document in found:
        for key, value in document.items():
            if key in tables and isinstance(value, Mapping):
                tables[key] |= value
            elif key == "figures" and isinstance(value, Mapping):
                numbers |= value
            else:
                texts[key] = str(value)
    if ascii_only:
        texts = {key: plain(text) for key, text in texts.items()}
        tables = {name: {key: plain(text) for key, text in one.items()} for name, one in tables.items()}
    written = figures(numbers)
    return Catalogue(
        language,
        MappingProxyType(texts),
        MappingProxyType(tables["heading"]),
        MappingProxyType(tables["label"]),
        MappingProxyType(tables["value"]),
        _phrases(tables["phrase"]),
        _phrases(tables["problem"]),
        written.plain() if ascii_only else written,
    )


def _phrases(table: Mapping[str, str]) -> tuple[Phrase, ...]:
    return tuple(Phrase(_pattern(text), translated) for text, translated in table.items())


def plain(text: str) -> str:
    """A text in ASCII: without accents, with the plain form of what has one."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return "".join(char for char in apart if char.isascii())


def _pattern(text: str) -> re.Pattern[str]:
    parts: list[str] = []
    known: set[str] = set()
    for before, name, spec, _conversion in string.Formatter().parse(text):
        parts.append(re.escape(before))
        if name:
            inside = r"\d[\d.,]*" if spec == "n" else ".+?"
            parts.append(f"(?P={name})" if name in known else f"(?P<{name}>{inside})")
            known.add(name)
    return re.compile("".join(parts), re.DOTALL)

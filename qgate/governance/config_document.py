"""The configuration of a pool as one document, and how two of them differ. Pure.

    {"format": 1, "pool": "berlin", "etag": "5f0c…", "settings": {…}, "apps": {"web": {…}}, …}

A section is an object by name. A section that a document leaves out stays as it is; so does a field that an
entry leaves out. A name that a section leaves out goes back to its default where nothing secret hangs on it
(settings, aliases, prices, budgets), and is kept where it does (databases, apps, providers, pools): those are
neither made nor removed by a document, for it holds no secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

FORMAT: Final = 1
HEAD: Final = ("format", "pool", "etag", "exported_at")
"""Keys of a document beside its sections; only the format and the etag are looked at."""

Entries: TypeAlias = Mapping[str, Any]
Document: TypeAlias = Mapping[str, Entries]

Effect = Literal["set", "reset", "keep", "refuse"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a document may do with a section.

    ``loose`` entries are made and removed by it. ``fixed`` fields are what a secret is bound to. ``instead``
    is the command that does what a document cannot.
    """

    name: str
    loose: bool
    fixed: tuple[str, ...] = ()
    instead: str = ""


SHAPES: Final = (
    Shape("settings", loose=True),
    Shape("branding", loose=True),
    Shape("aliases", loose=True),
    Shape("prices", loose=True),
    Shape("budgets", loose=True),
    Shape(
        "databases",
        loose=False,
        fixed=("hosts", "dbname", "user", "read_only_user", "sslmode"),
        instead="meshctl db add, meshctl db remove",
    ),
    Shape(
        "providers",
        loose=False,
        fixed=("kind", "url", "local"),
        instead="meshctl provider add, meshctl provider remove",
    ),
    Shape("apps", loose=False, instead="meshctl app create, meshctl app revoke"),
    Shape("pools", loose=False, fixed=("fingerprint",), instead="meshctl pool pair, meshctl pool unpair"),
)
"""All sections, in the order in which they are applied."""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry that differs. ``fields`` are those that do, for entries that are objects."""

    section: str
    name: str
    effect: Effect
    before: Any
    after: Any
    problem: str = ""

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """The fields that differ: before and after."""
        if not isinstance(self.before, Mapping) or not isinstance(self.after, Mapping):
            return {}
        names = [*self.before, *(name for name in self.after if name not in self.before)]
        return {
            name: (self.before.get(name), self.after.get(name))
            for name in names
            if self.before.get(name) != self.after.get(name)
        }

    def as_json(self) -> dict[str, Any]:
        """For replies, the audit and revisions."""
        return {
            "section": self.section,
            "name": self.name,
            "effect": self.effect,
            "before": self.before,
            "after": self.after,
            "fields": {name: list(pair) for name, pair in self.fields.items()},
            "problem": self.problem,
        }


def compare(current: Document, wanted: Document) -> list[Change]:
    """What ``wanted`` would do to ``current``; entries that stay as they are are left out.

    Both hold plain JSON in the form in which sections are exported. The effects "keep" and "refuse" change
    nothing.
    """
    found = []
    for shape in SHAPES:
        if shape.name in wanted:
            found += _entries(shape, current.get(shape.name, {}), wanted[shape.name])
    return found


def _entries(shape: Shape, current: Entries, wanted: Entries) -> list[Change]:
    found = []
    for name in sorted(current.keys() | wanted.keys()):
        before = current.get(name)
        if name not in wanted:
            effect: Effect = "reset" if shape.loose else "keep"
            found.append(Change(shape.name, name, effect, before, None))
            continue
        after = wanted[name]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            after = {**before, **after}
        if after == before:
            continue
        problem = _problem(shape, name, before, after, known=name in current)
        found.append(Change(shape.name, name, "refuse" if problem else "set", before, after, problem))
    return found


def _problem(shape: Shape, name: str, before: Any, after: Any, *, known: bool) -> str:
    if shape.loose:
        return ""
    if not known:
        return f"{name} is not there, and a document makes none of its kind: {shape.instead}"
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return f"{name} is no object"
    moved = [one for one in shape.fixed if before.get(one) != after.get(one)]
    if moved:
        return f"{', '.join(moved)} of {name} cannot change, for its secret is bound to it: {shape.instead}"
    return ""


def etag(document: Document) -> str:
    """A short name of everything that the sections say: 16 hexadecimal digits of a SHA-256."""
    sections = {shape.name: document.get(shape.name, {}) for shape in SHAPES}
    text = json.dumps(sections, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def effective(changes: Sequence[Change]) -> list[Change]:
    """Those that change something."""
    return [one for one in changes if one.effect in {"set", "reset"}]

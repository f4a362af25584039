"""The documents of this version, without a network: listed, read, searched.

A wheel has them beside this module (`setup.py` puts them there); in a checkout they are the folder ``docs``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshctl.errors import CommandError, UsageError

FOLDER: Final = "manual"
REFERENCE: Final = frozenset({"cli", "settings"})
"""Pages that are made from the programs: they hold every word, and are found last."""
FOUND_MAX: Final = 200
"""Places that a search gives at most."""

_HEADING: Final = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
_FENCE: Final = re.compile(r"\s*(```|~~~)")
_LINK: Final = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")
_COMMENT: Final = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Link:
    """A link to another page or to a heading; ``anchor`` "" for the whole page, ``page`` "" for this one."""

    text: str
    page: str
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One document: its name ("failover", "decisions/scram"), its first heading, and its markdown."""

    name: str
    title: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Its lines, from 0."""
        return self.text.splitlines()

    def headings(self) -> list[tuple[int, int, str]]:
        """Line, depth (1 to 6) and text of every heading outside code."""
        return [
            (number, len(match[1]), plain(match[2]))
            for number, line in _prose(self.lines)
            if (match := _HEADING.match(line))
        ]

    def heading_of(self, anchor: str) -> int | None:
        """The line of the heading that an anchor means, as GitHub makes them; None where there is none."""
        seen: dict[str, int] = {}
        for number, _, text in self.headings():
            slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            count = seen[slug] = seen.get(slug, -1) + 1
            if (f"{slug}-{count}" if count else slug) == anchor:
                return number
        return None

    def links(self) -> list[Link]:
        """Links to other pages and headings, each once; addresses on the network are left out."""
        found: dict[tuple[str, str], Link] = {}
        for _, line in _prose(self.lines):
            for text, target in _LINK.findall(line):
                path, _, anchor = target.partition("#")
                if re.match(r"[a-z]+:", target) or (path and not path.endswith(".md")):
                    continue
                page = _relative(self.name, path) if path else ""
                found.setdefault((page, anchor), Link(plain(text), page, anchor))
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Place:
    """A line that was found: its page, its number from 0, the heading above it, and what it says."""

    page: str
    line: int
    heading: str
    text: str


def pages(folder: Path | None = None) -> tuple[Page, ...]:
    """Every page, by name; decisions last. CommandError where this installation has none."""
    folder = folder or _folder()
    found = [
        _read(folder, path) for path in sorted(folder.rglob("*.md")) if not path.name.startswith((".", "_"))
    ]
    return tuple(sorted(found, key=lambda page: ("/" in page.name, page.name)))


def page(name: str, folder: Path | None = None) -> Page:
    """One page, by its name or that of its file. UsageError with the nearest name for one there is not."""
    wanted = name.strip().removesuffix(".md").removeprefix("docs/").casefold()
    every = pages(folder)
    for one in every:
        if wanted in {one.name.casefold(), one.name.rpartition("/")[2].casefold(), one.title.casefold()}:
            return one
    import difflib

    names = [one.name for one in every]
    near = difflib.get_close_matches(wanted, names, 3, 0.5) or names[:8]
    raise UsageError(f'There is no page "{name}".', hint=f"choose from {', '.join(near)}; meshctl docs list")


def search(text: str, every: Sequence[Page]) -> list[Place]:
    """Lines that hold every word of ``text`` in any case; titles first, then headings."""
    words = text.casefold().split()
    if not words:
        return []
    ranked: list[tuple[int, int, Place]] = []
    for order, one in enumerate(every):
        heading = one.title
        for number, line in enumerate(one.lines):
            said = plain(line)
            match = _HEADING.match(line)
            if match:
                heading = plain(match[2])
            if not all(word in said.casefold() for word in words):
                continue
            rank = (0 if match and len(match[1]) == 1 else 1 if match else 2) + 3 * (one.name in REFERENCE)
            ranked.append((rank, order, Place(one.name, number, heading, said.lstrip("# ").strip("| "))))
    return [place for _, _, place in sorted(ranked, key=lambda one: one[:2])][:FOUND_MAX]


def plain(text: str) -> str:
    """A line of markdown without its marks for code, weight and links."""
    return _LINK.sub(r"\1", text).replace("**", "").replace("`", "")


def _folder() -> Path:
    own = Path(__file__).resolve().parent
    for folder in (own / FOLDER, own.parent / "docs"):
        if (folder / "architecture.md").is_file():
            return folder
    raise CommandError(
        "This installation came without its documents.", hint="install the wheel again, or read them online"
    )


def _read(folder: Path, path: Path) -> Page:
    text = _COMMENT.sub("", path.read_text(encoding="utf-8"))
    name = path.relative_to(folder).with_suffix("").as_posix()
    title = next((plain(match[2]) for line in text.splitlines() if (match := _HEADING.match(line))), name)
    return Page(name, title, text)


def _relative(name: str, target: str) -> str:
    parts = name.split("/")[:-1]
    for part in target.removesuffix(".md").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _prose(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    fenced = False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line

"""All sections: what they are called, the one key of each, and the module that declares it.

A module of `meshctl.tui.screens` is imported when its section is first shown; it has a `SECTION`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from meshctl.tui.declare import Section


@dataclass(frozen=True, slots=True)
class Entry:
    """A section before it is loaded; ``aliases`` are other words for ``:``."""

    id: str
    title: str
    key: str
    aliases: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module that declares it."""
        return f"meshctl.tui.screens.{self.id.replace('-', '_')}"


ENTRIES: Final = (
    Entry("overview", "Overview", "O", ("home", "audit")),
    Entry("topology", "Topology", "T", ("graph",)),
    Entry("workers", "Workers", "W", ("gpus",)),
    Entry("models", "LLM models", "L", ("llm", "fit", "names", "catalogue")),
    Entry(
        "api",
        "API",
        "A",
        (
            *("apps", "keys", "databases", "secrets", "vault", "sidecars", "providers", "prices"),
            *("budgets", "usage", "receipts"),
        ),
    ),
    Entry("federation", "Federation", "F", ("pools", "pairing")),
    Entry("distribution", "Distribution", "D", ("replication", "logs", "blobs")),
    Entry("cluster-workers", "Cluster workers", "C", ("offload",)),
    Entry("incidents", "Incidents & Migrations", "I", ("migrations", "failover", "orders")),
    Entry("configuration", "Cluster config", "E", ("config", "revisions")),
    Entry("branding", "Branding", "B", ("brand",)),
    Entry("onboarding", "Onboarding", "U", ("setup", "first-boot")),
    Entry("licence", "License", "R", ("license", "seats")),
    Entry("documentation", "Documentation", "K", ("docs", "manual")),
    Entry("settings", "Advanced settings", "S", ("advanced",)),
    Entry("smtp", "SMTP", "M", ("mail", "notifications")),
    Entry("signup", "Sign-up", "P", ("sign-up", "people", "employees", "admins")),
)


def present() -> tuple[Entry, ...]:
    """The sections whose modules are there."""
    return tuple(entry for entry in ENTRIES if find_spec(entry.module) is not None)


def load(entry: Entry) -> Section:
    """A section, imported now."""
    section = import_module(entry.module).SECTION
    assert isinstance(section, Section), entry.module
    assert (section.id, section.key) == (entry.id, entry.key), entry.module
    return section


def named(word: str) -> Entry | None:
    """The section that a word means: its id, its title, an alias, or the beginning of one."""
    wanted = word.strip().casefold()
    if not wanted:
        return None
    there = present()
    for entry in there:
        if wanted in {entry.id, entry.title.casefold(), *entry.aliases}:
            return entry
    for entry in there:
        if any(name.startswith(wanted) for name in (entry.id, entry.title.casefold(), *entry.aliases)):
            return entry
    return None

"""Replies about moves and incidents → rows for a person. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshctl.view import Column, Table, card, moment, table

NODES = (
    Column("node", "node"),
    Column("role", "role"),
    Column("home", "home"),
    Column("at", "target"),
    Column("mode", "mode"),
    Column("pinned", "pinned"),
    Column("roster", "serial", right=True),
    Column("streams", "streams", right=True),
    Column("address", "address"),
    Column("refused", "refused"),
)
TARGETS = (
    Column("fails over to", "pool"),
    Column("level", "level", right=True),
    Column("gates", "gates", right=True),
)
HISTORY = (
    Column("at", "at", moment),
    Column("node", "node"),
    Column("home", "home"),
    Column("rule", "rule"),
    Column("from", "from"),
    Column("to", "to"),
    Column("cause", "cause"),
    Column("by", "by"),
)
INCIDENTS = (
    Column("id", "id", right=True),
    Column("state", "state"),
    Column("severity", "severity"),
    Column("kind", "kind"),
    Column("about", "subject"),
    Column("seen", "seen", right=True),
    Column("opened", "opened_at", moment),
    Column("last seen", "seen_at", moment),
    Column("escalated", "escalated_at", moment),
    Column("answered by", "answered_by"),
)
INCIDENT_CARD = (
    *INCIDENTS,
    Column("answered", "answered_at", moment),
    Column("resolved", "resolved_at", moment),
    Column("note", "note"),
)
EVIDENCE = (Column("at", "at", moment), Column("seen by", "who"), Column("saw", "saw"))


def status(reply: Mapping[str, Any]) -> list[Table]:
    """Mode and order of pools, then the nodes that are connected."""
    shown = card(
        reply,
        (
            Column("pool", "pool"),
            Column("mode", "mode"),
            Column("guests from", "guests_from"),
            Column("apps without a verifier", "apps_without_verifier"),
        ),
    )
    return [
        shown,
        *([table(reply["targets"], TARGETS)] if reply["targets"] else []),
        *([table(reply["nodes"], NODES)] if reply["nodes"] else []),
    ]


def incident(row: Mapping[str, Any]) -> list[Table]:
    """One incident and what was seen of it."""
    seen = [
        {
            "at": one.get("at"),
            "who": one.get("node") or one.get("gate"),
            "saw": one.get("saw") or ", ".join(f"{k}={v}" for k, v in one.items() if k not in {"at", "gate"}),
        }
        for one in row.get("evidence", ())
    ]
    return [card(row, INCIDENT_CARD), *([table(seen, EVIDENCE)] if seen else [])]


def incidents(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Incidents, newest first."""
    return table(rows, INCIDENTS)


def history(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Moves, newest first."""
    return table(rows, HISTORY)

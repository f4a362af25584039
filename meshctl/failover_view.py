"""Replies about moves and incidents → rows for a person. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meshctl.view import Column, Table, card, moment, table

NODES = (
    Column("NODE", "node"),
    Column("ROLE", "role"),
    Column("HOME", "home"),
    Column("AT", "target"),
    Column("MODE", "mode"),
    Column("PINNED", "pinned"),
    Column("ROSTER", "serial", right=True),
    Column("STREAMS", "streams", right=True),
    Column("ADDRESS", "address"),
    Column("REFUSED", "refused"),
)
TARGETS = (
    Column("FAILS OVER TO", "pool"),
    Column("LEVEL", "level", right=True),
    Column("GATES", "gates", right=True),
)
HISTORY = (
    Column("AT", "at", moment),
    Column("NODE", "node"),
    Column("HOME", "home"),
    Column("RULE", "rule"),
    Column("FROM", "from"),
    Column("TO", "to"),
    Column("CAUSE", "cause"),
    Column("BY", "by"),
)
INCIDENTS = (
    Column("ID", "id", right=True),
    Column("STATE", "state"),
    Column("SEVERITY", "severity"),
    Column("KIND", "kind"),
    Column("ABOUT", "subject"),
    Column("SEEN", "seen", right=True),
    Column("OPENED", "opened_at", moment),
    Column("LAST SEEN", "seen_at", moment),
    Column("ESCALATED", "escalated_at", moment),
    Column("ANSWERED BY", "answered_by"),
)
INCIDENT_CARD = (
    *(replace(one, heading=one.heading.lower()) for one in INCIDENTS),
    Column("answered", "answered_at", moment),
    Column("resolved", "resolved_at", moment),
    Column("note", "note"),
)
EVIDENCE = (Column("AT", "at", moment), Column("SEEN BY", "who"), Column("SAW", "saw"))


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

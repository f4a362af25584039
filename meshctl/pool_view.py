"""Pools, peers and pairings as rows for a person. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshctl import view
from meshctl.view import Column, Table

LEVELS = (
    ("none", "holds a tunnel, is seen in the list"),
    ("observe", "health, inventory, heartbeats"),
    ("compute", "sends and takes jobs, lends workers, stands in when we fail"),
    ("knowledge", "searches documents, shares the catalogue of models"),
    ("full", "keeps sealed memories, its admins are honoured here"),
)
"""The levels 0 to 4: name, and what each adds."""


def level(value: Any) -> str:
    """A level as its number and name."""
    return f"{value} {LEVELS[value][0]}" if isinstance(value, int) and 0 <= value < len(LEVELS) else "-"


def ago(value: Any) -> str:
    """Seconds since something happened."""
    return "-" if value is None else "now" if value < 1.5 else f"{view.span(value)} ago"


def heads(value: Any) -> str:
    """How far another pool's log, and ours at it, have come."""
    if not isinstance(value, Mapping) or not value:
        return "-"
    return ", ".join(f"{name} {seq}" for name, seq in sorted(value.items()))


PEER_COLUMNS = (
    Column("NAME", "name"),
    Column("KIND", "kind"),
    Column("STATE", "state"),
    Column("TRUST", "level", level),
    Column("LINK", "link"),
    Column("RTT", "rtt_s", view.milliseconds, right=True),
    Column("HEALTH", "health"),
    Column("HEARD", "heard_s", ago),
    Column("LOG", "heads", heads),
    Column("PAIRED WITH", "paired_with"),
    Column("FINGERPRINT", "fingerprint"),
    Column("PROBLEM", "problem"),
)

PEER_CARD = (
    Column("name", "name"),
    Column("kind", "kind"),
    Column("state", "state"),
    Column("trust", "level", level),
    Column("fingerprint", "fingerprint"),
    Column("paired", "paired_at", view.moment),
    Column("order of failover", "position"),
    Column("gates", "gates", view.hosts),
    Column("may send it", "may_send"),
    Column("may get from it", "may_receive"),
    Column("its admins are here", "permissions.admin_role"),
    Column("link", "link"),
    Column("round trip", "rtt_s", view.milliseconds),
    Column("health", "health"),
    Column("heard", "heard_s", ago),
    Column("log", "heads", heads),
    Column("says it is paired with", "paired_with"),
    Column("problem", "problem"),
)

PAIRING_COLUMNS = (
    Column("PAIRING", "id", lambda value: str(value)[:16]),
    Column("SIDE", "side"),
    Column("STATE", "state"),
    Column("WITH", "peer.name"),
    Column("FINGERPRINT", "peer.fingerprint"),
    Column("EXPIRES", "expires_at", view.moment),
)


def pools(own: Mapping[str, Any], peers: list[dict[str, Any]]) -> list[Table]:
    """`meshctl pool list`: this pool, its peers, and what is under way."""
    shown = [
        view.card(
            {
                "this pool": own.get("name") if own.get("named") else "has no name yet: meshctl pool init",
                "kind": own.get("kind"),
                "fingerprint": own.get("fingerprint"),
            }
        )
    ]
    if peers:
        shown.append(view.table(peers, PEER_COLUMNS))
    if pending := own.get("pairings"):
        shown.append(view.table(pending, PAIRING_COLUMNS, title="pairings under way"))
    return shown

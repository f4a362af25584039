"""A licence for a person: how it stands, what it gives, what ends with it, and what never does. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from meshctl import view

SOON_DAYS: Final = 30
"""Days before its end from which a licence is worth a warning."""

CARD: Final = (
    view.Column("state", "state"),
    view.Column("problem", "problem"),
    view.Column("licensee", "licensee"),
    view.Column("vendor", "vendor"),
    view.Column("id", "id"),
    view.Column("features", "features"),
    view.Column("seats", "seats"),
    view.Column("seats used", "seats_used"),
    view.Column("begins", "not_before", view.moment),
    view.Column("ends", "expires_at", view.moment),
    view.Column("days left", "days_left"),
    view.Column("grace until", "grace_ends_at", view.moment),
    view.Column("for the pool", "pool"),
    view.Column("installed by", "installed_by"),
    view.Column("ends with it", "ends"),
)

NEVER: Final = (
    "queries, requests to models, failover, replication",
    "accounts that exist, and all that they may do",
)
WITHOUT: Final = (
    "everything works, and any number of accounts can be added",
    "a licence adds what only a vendor can give, such as white-label, and has so many seats",
    "whose licences count here: the setting licence.vendors; then: meshctl license install FILE",
)


def licence_card(row: Mapping[str, Any]) -> view.Table:
    """The fields that say something, a line each."""
    return view.card(row, [one for one in CARD if row.get(one.key) or one.key in {"state", "seats_used"}])


def warnings(row: Mapping[str, Any]) -> list[str]:
    """What an administrator should do something about, in words."""
    found: list[str] = []
    days, state = row.get("days_left"), row.get("state")
    if state == "grace":
        found.append(f"It has ended; what it gives goes on until {view.moment(row.get('grace_ends_at'))}.")
    elif state == "valid" and isinstance(days, int) and days <= SOON_DAYS:
        found.append(f"It ends in {days} day{'' if days == 1 else 's'}: ask its vendor for the next one.")
    seats, used = row.get("seats"), row.get("seats_used")
    if isinstance(seats, int) and isinstance(used, int) and state in {"valid", "grace"} and used >= seats:
        found.append("Every seat is taken: no account can be added until one is disabled.")
    if unknown := row.get("unknown_features"):
        found.append(f"This version knows nothing of: {', '.join(unknown)}.")
    return found


def licence(row: Mapping[str, Any]) -> list[view.Table]:
    """The whole of it on a screen."""
    card = {**row}
    seats, used = row.get("seats"), row.get("seats_used")
    if row.get("state") not in {None, "none"} and used is not None:
        card["seats_used"] = f"{used} of {seats}" if seats is not None else f"{used} of any number"
        card.pop("seats", None)
    card.pop("ends", None)
    tables = [_said("Warnings", found)] if (found := warnings(row)) else []
    tables.append(licence_card(card))
    if ends := row.get("ends"):
        tables.append(_said("What ends with it", ends))
        tables.append(_said("What never does", NEVER))
    if row.get("state") == "none":
        tables.append(_said("Without a licence", WITHOUT))
    return tables


def _said(title: str, lines: Sequence[str]) -> view.Table:
    return view.Table(("",), tuple((str(one),) for one in lines), title=title)

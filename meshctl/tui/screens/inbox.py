"""The inbox: what somebody should know, until it is put away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from meshctl import people_view, view
from meshctl.tui import jumping
from meshctl.tui.declare import Action, Confirm, Record, Role, Switch, TablePane, columns_of
from meshctl.tui.fields import t

if TYPE_CHECKING:
    from meshctl.tui.room import Room

SECTIONS: Final[Mapping[str, str]] = {
    "incident": "incidents",
    "budget": "budgets",
    "worker": "workers",
    "sidecar": "sidecars",
    "audit": "audit",
    "license": "licence",
    "key": "federation",
    "pool": "federation",
    "smtp": "smtp",
    "signup": "signup",
    "people": "people",
    "admin": "admins",
    "app": "apps",
    "settings": "settings",
}
"""Where a command's noun is shown here, as `:` spells it."""


def place_of(notification: Record) -> str:
    """Where its next command leads here, as a line for `:`; "" where that is nowhere."""
    words = str(notification.get("next") or "").split()
    if len(words) < 2 or words[0] != "meshctl":
        return ""
    section = "admins" if notification.get("kind") == "lock-out" else SECTIONS.get(words[1], "")
    number = words[3] if words[1] == "incident" and len(words) > 3 else ""
    return f"{section} {number}".strip() if section else ""


def _nowhere(notification: Record) -> str:
    return "" if place_of(notification) else t("It leads nowhere from here.")


def _go(room: Room, records: Sequence[Record]) -> None:
    room.run_worker(jumping.go(room, place_of(records[0])), group="move")


def _is_read(notification: Record) -> str:
    return t("You have read it.") if notification.get("read_at") else ""


def _is_cleared(notification: Record) -> str:
    return t("It was put away.") if notification.get("cleared_at") else ""


def _one(notification: Record, _values: Any) -> dict[str, list[int]]:
    return {"ids": [int(notification["id"])]}


def letter(notification: Record) -> list[view.Table]:
    """A notification as one reads it."""
    head = {
        "subject": notification.get("subject"),
        "severity": notification.get("severity"),
        "kind": notification.get("kind"),
        "at": view.moment(notification.get("created_at")),
        "read": view.moment(notification.get("read_at")),
        "put away": view.moment(notification.get("cleared_at")),
        "next": notification.get("next"),
    }
    body = str(notification.get("body") or "").strip()
    lines = tuple((line,) for line in body.splitlines())
    return [view.card(head), *([view.Table(("",), lines, title="text")] if lines else [])]


ACTIONS: Final = (
    Action(
        "notification.read",
        "v",
        t("Read"),
        "POST",
        "/notifications/read",
        "meshctl notification read {id}",
        Role.VIEWER,
        body=_one,
        against=_is_read,
        done=t("{name} is read; for others it is not."),
        name="subject",
    ),
    Action(
        "notification.clear",
        "delete",
        t("Put away"),
        "POST",
        "/notifications/clear",
        "meshctl notification clear {id}",
        Role.OPERATOR,
        body=_one,
        against=_is_cleared,
        confirm=Confirm.ASK,
        question=t("Put {name} away, for everybody?"),
        done=t("{name} is put away."),
        name="subject",
    ),
    Action(
        "notification.place",
        "t",
        t("Go there"),
        "GET",
        "/notifications",
        "meshctl notification list",
        Role.VIEWER,
        against=_nowhere,
        opens=_go,
        bulk=False,
        name="subject",
    ),
    Action(
        "notification.read-all",
        "w",
        t("Read all"),
        "POST",
        "/notifications/read",
        "meshctl notification read --all",
        Role.VIEWER,
        done=t("All are read."),
        row=False,
    ),
    Action(
        "notification.clear-all",
        "z",
        t("Put all away"),
        "POST",
        "/notifications/clear",
        "meshctl notification clear --all",
        Role.OPERATOR,
        confirm=Confirm.ASK,
        question=t("Put everything away, for everybody?"),
        done=t("The inbox is empty."),
        row=False,
    ),
)

INBOX: Final = TablePane(
    "notifications",
    t("Notifications"),
    "/notifications",
    columns_of(
        people_view.NOTIFICATION_COLUMNS,
        id={"least": 120},
        severity={"state": True},
        created_at={"least": 100},
        subject={"most": 70},
        next={"least": 130, "most": 40},
    ),
    ACTIONS,
    key="id",
    name="subject",
    about=("notification",),
    every=10.0,
    tables=letter,
    switches=(
        Switch("o", t("only unread ones"), {"unread": "true"}),
        Switch("p", t("also what was put away"), {"cleared": "true"}),
    ),
    cli="meshctl notification list",
    empty=t("The inbox is empty: nothing that somebody should know."),
)

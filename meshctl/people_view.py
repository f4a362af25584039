"""Replies about people, mail, sign-up and notifications → rows for a person. Pure."""

from __future__ import annotations

from typing import Any

from meshctl import view
from meshctl.view import Column, Record, Table

PEOPLE_COLUMNS = (
    Column("ID", "id"),
    Column("NAME", "name"),
    Column("EMAIL", "email"),
    Column("TEAM", "team"),
    Column("STATE", "state"),
    Column("APPS", "apps"),
    Column("CREATED", "created_at", view.moment),
)
APP_COLUMNS = (
    Column("APP", "name"),
    Column("DATABASES", "databases"),
    Column("MODELS", "policy.models"),
    Column("EXPIRES", "expires_at", view.moment),
    Column("REVOKED", "revoked"),
)
ERASURE_COLUMNS = (
    Column("PERSON", "person"),
    Column("ERASED", "erased_at", view.moment),
    Column("COPIES UNTIL", "certificate.copies_until", view.moment),
    Column("STILL NAMED IN", "certificate.kept"),
)
REQUEST_COLUMNS = (
    Column("ID", "id"),
    Column("NAME", "name"),
    Column("EMAIL", "email"),
    Column("TEAM", "team"),
    Column("ASKED", "created_at", view.moment),
)
RECIPIENT_COLUMNS = (Column("TOLD", "to"), Column("FROM SEVERITY", "severity"))
MAIL_COLUMNS = (
    Column("MAIL", "id"),
    Column("KIND", "kind"),
    Column("PERSON", "person"),
    Column("STATE", "state"),
    Column("TRIES", "attempts", right=True),
    Column("NEXT", "next_at", view.moment),
    Column("SAID", "said"),
)
NOTIFICATION_COLUMNS = (
    Column("ID", "id", right=True),
    Column("AT", "created_at", view.moment),
    Column("SEVERITY", "severity"),
    Column("READ", "read_at", lambda at: "yes" if at else "no"),
    Column("SUBJECT", "subject"),
    Column("NEXT", "next"),
)

_PERSON_CARD = ("id", "name", "email", "team", "note", "admin", "state", "confirmed", "source")
_SMTP_CARD = (
    "ready",
    "host",
    "port",
    "tls",
    "ca_file",
    "user",
    "password",
    "from",
    "timeout_s",
    "give_up_hours",
)


def person(row: Record) -> list[Table]:
    """One person, and their apps."""
    shown: dict[str, Any] = {key: row.get(key) for key in _PERSON_CARD}
    if not row.get("readable", True):
        shown["name"] = "unreadable: this pool does not have their key"
    shown["created"] = view.moment(row.get("created_at"))
    if row.get("code_expires_at"):
        shown["code good until"] = view.moment(row["code_expires_at"])
    tables = [view.card(shown)]
    if apps := row.get("app_details"):
        tables.append(view.table(apps, APP_COLUMNS, title="apps"))
    return tables


def smtp(row: Record) -> list[Table]:
    """How mail is sent, and who is told."""
    shown = {key.replace("_", " "): row.get(key) for key in _SMTP_CARD}
    following = (
        "meshctl smtp set --host HOST --from ADDRESS"
        if not row.get("ready")
        else "meshctl smtp set --password"
        if row.get("password") in {"missing", "for another server"}
        else ""
    )
    tables = [view.card({**shown, "mail": row.get("mail"), **({"next": following} if following else {})})]
    if recipients := row.get("recipients"):
        tables.append(view.table(recipients, RECIPIENT_COLUMNS, title="notifications"))
    return tables


def certificate(row: Record, *, signer: str) -> Table:
    """What a certificate of an erasure says."""
    return view.card(
        {
            "result": "PASSED",
            "person": row.get("person"),
            "erased": view.moment(row.get("erased_at")),
            "signed by pool": signer,
            "removed": row.get("removed"),
            "still named in": row.get("kept"),
            "older copies gone by": view.moment(row.get("copies_until")),
        }
    )

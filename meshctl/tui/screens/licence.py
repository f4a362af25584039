"""License: what the pool's licence gives and until when; verify one, install it, remove it."""

from __future__ import annotations

from typing import Any, Final

from meshctl.errors import UsageError
from meshctl.licence_view import licence, licence_card
from meshctl.render import plain
from meshctl.tui.declare import Action, Call, CardPane, Confirm, Record, Result, Role, Section
from meshctl.tui.fields import Field, Form, Kind, Values, readable, t
from tunnel_proto.licence import TOKEN_MAX

PATH: Final = "/licence"

FILE: Final = Field(
    "file",
    t("File"),
    Kind.FILE,
    option="",
    help=t("it can be dropped here"),
    choices=(".licence", ".jwt", ".txt"),
)
PASTED: Final = Field("token", t("or the licence itself"), help=t("pasted; one line"))


def token_of(values: Values) -> str:
    """The licence that was named or pasted. Raises UsageError."""
    if pasted := str(values.get("token") or "").strip():
        return pasted
    if not values.get("file"):
        raise UsageError("Name the file of a licence, or paste the licence.")
    path = readable(str(values["file"]))
    if path.stat().st_size > 2 * TOKEN_MAX:
        raise UsageError(f"{path} is too large for a licence.", hint="a licence has less than 8 KiB")
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a licence: it is no text.") from None


def _verification(_row: Record, values: Values) -> Call:
    return Call("POST", "/licence/verify", {"token": token_of(values)})


def _planned(reply: Any) -> str:
    return plain(licence_card(reply))


def _none_there(row: Record) -> str:
    return t("No licence is installed.") if row.get("state") == "none" else ""


VERIFY: Final = Action(
    "licence.verify",
    "v",
    t("Verify"),
    "POST",
    "/licence/verify",
    "meshctl license verify",
    Role.VIEWER,
    form=Form(t("How a licence would stand here"), (FILE, PASTED), t("Nothing is changed.")),
    body=lambda _row, values: {"token": token_of(values)},
    result=Result.DESCRIBE,
    answer=lambda reply: [licence_card(reply)],
    row=False,
)
INSTALL: Final = Action(
    "licence.install",
    "i",
    t("Install"),
    "PUT",
    PATH,
    "meshctl license install",
    Role.OWNER,
    form=Form(
        t("Install a licence"),
        (
            FILE,
            PASTED,
            Field(
                "force",
                t("Replace at once"),
                Kind.BOOL,
                default=False,
                option="--force",
                help=t("even if it begins later or ends sooner"),
            ),
        ),
        t("What it says is shown next, before anything is changed."),
    ),
    body=lambda _row, values: {"token": token_of(values), "force": bool(values.get("force"))},
    ahead=_verification,
    planned=_planned,
    confirm=Confirm.ASK,
    question=t("Install this licence?"),
    done=t("The licence is installed."),
)
REMOVE: Final = Action(
    "licence.remove",
    "delete",
    t("Remove"),
    "DELETE",
    PATH,
    "meshctl license remove",
    Role.OWNER,
    confirm=Confirm.NAME,
    question=t("Remove the licence of {name}? Its features go, and so does the bound on accounts."),
    against=_none_there,
    name="licensee",
    done=t("The licence is removed."),
)

SECTION: Final = Section(
    "licence",
    "License",
    "R",
    (
        CardPane(
            "licence",
            t("License"),
            PATH,
            licence,
            (INSTALL, VERIFY, REMOVE),
            about=("licence",),
            every=30.0,
            cli="meshctl license show",
        ),
    ),
    about=t("What the licence gives, its seats, when it ends, and what ends with it: never the data path."),
    page="licence.md",
)

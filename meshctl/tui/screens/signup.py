"""Sign-up: who asks for an account and under which rules, everybody who has one, and the administrators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from meshctl import people_view, view
from meshctl.tui.declare import (
    Action,
    Call,
    CardPane,
    Column,
    Confirm,
    Record,
    Section,
    TablePane,
    columns_of,
)
from meshctl.tui.fields import Field, Form, Kind, Values, t
from meshctl.tui.screens.admins import ADMINS, SESSIONS
from meshctl.tui.screens.people import ERASED, PEOPLE
from meshctl.tui.screens.settings import COLUMNS, HISTORY, RESET, SET, declared

SWITCH: Final = "/settings/signup.enabled"

ANSWERS: Final = (
    Action(
        "signup.approve",
        "a",
        t("Approve"),
        "POST",
        "/signup/requests/{id}/approve",
        "meshctl signup approve {id}",
        confirm=Confirm.ASK,
        question=t("Let {name} in? They are mailed a code for their key."),
        done=t("{name} is mailed a code for their key."),
        name="email",
    ),
    Action(
        "signup.reject",
        "delete",
        t("Reject"),
        "POST",
        "/signup/requests/{id}/reject",
        "meshctl signup reject {id}",
        form=Form(
            t("Turn away"),
            (Field("silent", t("Silently"), Kind.BOOL, default=False, option="--silent"),),
            t("What they entered is removed; they may ask again. They are told by mail, or not."),
        ),
        body=lambda _person, values: {"tell": not values.get("silent")},
        confirm=Confirm.ASK,
        question=t("Turn {name} away? What they entered is removed for good."),
        done=t("{name} is turned away."),
        name="email",
    ),
)


def _switched(enabled: bool) -> Any:
    def call(_signup: Record, _values: Values, _reply: Any) -> Call:
        command = f"meshctl signup settings {'--on' if enabled else '--off'}"
        return Call("PUT", SWITCH, {"value": enabled}, cli=command, label=t("Self-sign-up"))

    return call


def switch(reply: Any) -> Sequence[view.Table]:
    """Whether strangers may ask, why not, and what becomes of those who do."""
    opened, enabled = reply.get("open"), reply.get("enabled")
    state = "on" if opened else ("waiting" if enabled else "off")
    following = (
        f"{reply['waiting']} wait for an answer: meshctl signup list"
        if reply.get("waiting")
        else "mail is not set up, so nobody can sign up: meshctl smtp set --host HOST --from ADDRESS"
        if enabled and not opened
        else ""
    )
    head = {"sign-up": state, "waiting": reply.get("waiting"), **({"next": following} if following else {})}
    domains = reply.get("domains") or "any"
    automatic = reply.get("automatic_domains") or "none: everybody waits for an answer"
    rules = {
        "mail domains that may": domains,
        "let in at once": automatic,
        **{
            key.replace("_", " "): value
            for key, value in reply.items()
            if key not in {"enabled", "open", "waiting", "domains", "automatic_domains"}
        },
    }
    return (view.card(head), view.card(rules, title="rules"))


STANDING: Final = (
    Action(
        "signup.open",
        "o",
        t("Open"),
        "PUT",
        SWITCH,
        "meshctl signup settings --on",
        body=lambda _signup, _values: {"value": True},
        against=lambda signup: t("It is open already.") if signup.get("enabled") else "",
        confirm=Confirm.ASK,
        question=t("May people ask for an account themselves?"),
        undo=_switched(False),
        done=t("People may ask for an account."),
    ),
    Action(
        "signup.close",
        "z",
        t("Close"),
        "PUT",
        SWITCH,
        "meshctl signup settings --off",
        body=lambda _signup, _values: {"value": False},
        against=lambda signup: "" if signup.get("enabled") else t("It is closed already."),
        undo=_switched(True),
        done=t("Nobody may ask any more; who waits goes on waiting."),
    ),
)


def rules(reply: Any) -> list[Record]:
    """The settings of sign-up."""
    return [row for row in declared(reply) if str(row["name"]).startswith("signup.")]


SECTION: Final = Section(
    "signup",
    "Sign-up",
    "P",
    (
        TablePane(
            "requests",
            t("Requests"),
            "/signup/requests",
            (
                *columns_of(people_view.REQUEST_COLUMNS, id={"least": 120}, created_at={"least": 90}),
                Column("CHANGED BY", "changed_by", least=130),
            ),
            ANSWERS,
            key="id",
            name="email",
            about=("signup", "people"),
            every=15.0,
            one="/people/{id}",
            tables=people_view.person,
            sort="created_at",
            cli="meshctl signup list",
            empty=t("Nobody waits for an answer. The second pane says whether people may ask."),
        ),
        CardPane(
            "switch",
            t("Switch"),
            "/signup",
            switch,
            STANDING,
            about=("setting", "signup", "smtp"),
            every=15.0,
            cli="meshctl signup settings",
        ),
        TablePane(
            "rules",
            t("Rules"),
            "/settings",
            COLUMNS,
            (SET, RESET, HISTORY),
            about=("setting",),
            items=rules,
            sort="name",
            says="description",
            cli="meshctl signup settings",
        ),
        PEOPLE,
        ERASED,
        ADMINS,
        SESSIONS,
    ),
    about=t("Who may use this pool: sign-up and its queue, people and their rights, admins and sessions."),
    page="people.md",
)

"""People: who may use this pool, what is theirs, and their rights over it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from meshctl import people_view, view
from meshctl.tui.declare import (
    Action,
    Call,
    Column,
    Confirm,
    Record,
    Result,
    Role,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.fields import Amendment, Field, Form, Kind, Known, Values, t
from meshctl.tui.screens.person_files import EMAIL, POOL, certificate_of, erase, export, verdict

if TYPE_CHECKING:
    from meshctl.tui.room import Room

PERSON: Final = "/people/{id}"
APP: Final = "/people/{id}/apps/{app}"
DETAILS: Final = ("name", "email", "team", "note", "admin")


def _person(record: Record | None = None) -> tuple[Field, ...]:
    """What is known of a person; of somebody new where there is no record."""
    of = record or {}
    return (
        Field("email", t("Address"), default=of.get("email"), required=True, option="--email" if of else ""),
        Field("name", t("Name"), default=of.get("name"), required=True, option="--name"),
        Field("team", t("Team"), default=of.get("team"), option="--team"),
        Field("note", t("Note"), Kind.LONG, default=of.get("note"), option="--note"),
    )


ADMIN: Final = "admin"
APPS: Final = Field(
    "apps", t("Apps"), Kind.LIST, option="--app", help=t("that are theirs, with commas"), known=Known.APPS
)


def _admin(record: Record | None = None) -> Field:
    default = (record or {}).get(ADMIN)
    return Field(
        ADMIN, t("Admin"), default=default, option="--admin", help=t("their account, where they have one")
    )


def changes(person: Record, values: Values) -> dict[str, Any]:
    """What is not as it was; a text that was taken away is empty."""
    return {name: values.get(name) or "" for name in DETAILS if (values.get(name) or "") != person.get(name)}


def _before(person: Record, values: Values, _reply: Any) -> Call | None:
    body = {name: person.get(name) or "" for name in changes(person, values)}
    if not body:
        return None
    words = " ".join(f"--{name} {shlex.quote(value)}" for name, value in body.items())
    command = filled("meshctl people change {id}", person, plain=True)
    return Call("PATCH", filled(PERSON, person), body, cli=f"{command} {words}", label=t("Change"))


def _back(verb: str, label: str) -> Any:
    def call(person: Record, _values: Values, _reply: Any) -> Call:
        command = filled(f"meshctl people {verb} {{id}}", person, plain=True)
        return Call("POST", filled(f"{PERSON}/{verb}", person), {}, cli=command, label=label)

    return call


def _owned(method: str, verb: str) -> Any:
    def call(person: Record, values: Values, _reply: Any) -> Call:
        both = {**person, **values}
        command = filled(f"meshctl people {verb} {{id}} {{app}}", both, plain=True)
        body: dict[str, str] | None = {} if method == "PUT" else None
        return Call(method, filled(APP, both), body, cli=command, label=t("Apps"))

    return call


def _unless(states: Sequence[str], why: str) -> Any:
    return lambda person: "" if person.get("state") in states else why


def _unreadable(person: Record) -> str:
    return (
        "" if person.get("readable", True) else t("Who they are cannot be read: this pool lacks their key.")
    )


def _without_apps(person: Record) -> str:
    return "" if person.get("apps") else t("No app is theirs.")


def _export(room: Room, records: Sequence[Record]) -> None:
    room.run_worker(export(room, records[0]), group="act")


def _erase(room: Room, records: Sequence[Record]) -> None:
    room.run_worker(erase(room, records[0]), group="act")


ACTIONS: Final = (
    Action(
        "people.add",
        "a",
        t("Add"),
        "POST",
        "/people",
        "meshctl people add",
        form=Form(
            t("Add a person"),
            (*_person(), _admin(), APPS),
            t("They are active at once. To have them make their own key, invite them."),
        ),
        done=t("They may use this pool."),
        row=False,
    ),
    Action(
        "people.invite-new",
        "i",
        t("Invite"),
        "POST",
        "/people",
        "meshctl people invite",
        form=Form(t("Invite somebody"), _person(), t("They are mailed a code that is good for a week.")),
        body=lambda _record, values: {
            **{name: value for name, value in values.items() if value is not None},
            "invite": True,
        },
        done=t("They are mailed a code that is good for a week."),
        row=False,
    ),
    Action(
        "people.invite",
        "w",
        t("Invite again"),
        "POST",
        "/people/{id}/invite",
        "meshctl people invite {id}",
        against=_unless(("invited", "pending"), t("They are in already.")),
        confirm=Confirm.ASK,
        question=t("Mail {name} another code?"),
        done=t("{name} is mailed another code."),
    ),
    Action(
        "people.change",
        "e",
        t("Change"),
        "PATCH",
        PERSON,
        "meshctl people change {id}",
        form=lambda person: Amendment(t("Change"), (*_person(person), _admin(person))),
        body=changes,
        against=_unreadable,
        undo=_before,
        done=t("{name} is changed."),
        bulk=False,
    ),
    Action(
        "people.disable",
        "t",
        t("Disable"),
        "POST",
        "/people/{id}/disable",
        "meshctl people disable {id}",
        against=_unless(("active",), t("They are not active.")),
        confirm=Confirm.ASK,
        question=t("Disable {name}? Their apps stop working at once."),
        undo=_back("enable", t("Disable")),
        done=t("{name} is disabled."),
    ),
    Action(
        "people.enable",
        "z",
        t("Enable"),
        "POST",
        "/people/{id}/enable",
        "meshctl people enable {id}",
        against=_unless(("disabled",), t("They are not disabled.")),
        undo=_back("disable", t("Enable")),
        done=t("{name} is enabled."),
    ),
    Action(
        "people.own",
        "o",
        t("Give an app"),
        "PUT",
        APP,
        "meshctl people own {id}",
        form=Form(
            t("Whose app it is"), (Field("app", t("App"), required=True, option="", known=Known.APPS),)
        ),
        body=lambda _person, _values: {},
        undo=_owned("DELETE", "disown"),
        done=t("The app is theirs: {name}."),
        bulk=False,
    ),
    Action(
        "people.disown",
        "b",
        t("Take an app"),
        "DELETE",
        APP,
        "meshctl people disown {id}",
        form=lambda person: Form(
            t("Let an app be nobody's"),
            (
                Field(
                    "app",
                    t("App"),
                    Kind.CHOICE,
                    default=next(iter(person.get("apps") or ()), None),
                    choices=tuple(person.get("apps") or ()),
                    required=True,
                    option="",
                ),
            ),
            t("It goes on."),
        ),
        body=lambda _person, _values: None,
        against=_without_apps,
        undo=_owned("PUT", "own"),
        done=t("The app is nobody's now."),
        bulk=False,
    ),
    Action(
        "people.export",
        "v",
        t("Their data"),
        "GET",
        "/people/{id}/export",
        "meshctl people export {id}",
        Role.ADMIN,
        opens=_export,
        bulk=False,
    ),
    Action(
        "people.erase",
        "delete",
        t("Erase"),
        "POST",
        "/people/{id}/erase",
        "meshctl people erase {id}",
        Role.OWNER,
        confirm=Confirm.NAME,
        opens=_erase,
        bulk=False,
    ),
)

PEOPLE: Final = TablePane(
    "people",
    t("People"),
    "/people",
    columns_of(
        people_view.PEOPLE_COLUMNS,
        id={"least": 110},
        name={"most": 26},
        email={"most": 32},
        team={"least": 100, "most": 20},
        apps={"least": 120, "most": 30},
        created_at={"least": 150},
    ),
    ACTIONS,
    key="id",
    name="name",
    about=("people", "signup"),
    every=30.0,
    one=PERSON,
    tables=people_view.person,
    sort="name",
    cli="meshctl people list",
    empty=t("There is nobody. Press a to add a person, or i to invite one."),
)


def _certified(row: Record) -> list[view.Table]:
    document = row.get("certificate") or row
    return [
        view.card(
            {
                "person": document.get("person"),
                "erased": view.moment(document.get("erased_at")),
                "removed": document.get("removed"),
                "still named in": document.get("kept"),
                "older copies gone by": view.moment(document.get("copies_until")),
            }
        ),
        view.card({"signature": document.get("signature")}, title="certificate"),
    ]


def _verify(room: Room, records: Sequence[Record]) -> None:
    del records
    room.run_worker(verdict(room), group="act")


VERIFY: Final = Action(
    "people.verify-certificate",
    "v",
    t("Check a certificate"),
    "GET",
    "/erasures",
    "meshctl people verify-certificate",
    Role.VIEWER,
    form=Form(t("Check a certificate"), (certificate_of(), POOL, EMAIL)),
    result=Result.DESCRIBE,
    opens=_verify,
    row=False,
)

ERASED: Final = TablePane(
    "erasures",
    t("Erased"),
    "/erasures",
    (
        *columns_of(people_view.ERASURE_COLUMNS[:3], **{"certificate.copies_until": {"least": 90}}),
        Column("STILL NAMED IN", "certificate.kept", least=60),
    ),
    (VERIFY,),
    key="person",
    name="person",
    about=("people",),
    every=60.0,
    one="/erasures/{person}",
    tables=_certified,
    cli="meshctl people erasures",
    empty=t("Nobody was erased."),
)

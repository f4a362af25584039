"""Administrators: accounts, roles, second factors, the keys that they log in from, and their sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from meshctl import view
from meshctl.admin_view import ADMIN_COLUMNS, KEY_COLUMNS, SESSION_COLUMNS
from meshctl.tui.declare import (
    Action,
    Call,
    Confirm,
    Record,
    Result,
    Role,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.fields import Field, Form, Kind, Values, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.offers import fingerprint, offer_form, offered
from meshctl.tui.second_factor import SecretScreen
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.room import Room

ADMIN: Final = "/admins/{name}"
FACTOR: Final = "/admins/{name}/second-factor"
LOCKED: Final = "locked"
ROLES: Final = tuple(str(role) for role in Role)

CURRENT: Final = Field(
    "current",
    t("Present password"),
    Kind.SECRET,
    option="--current-file",
    help=t("for your own account; an owner needs none for others"),
)


def _role_field(role: str, *, option: str) -> Field:
    return Field(
        "role",
        t("Role"),
        Kind.CHOICE,
        default=role,
        required=True,
        choices=ROLES,
        option=option,
        help=t("each may do what those before it may"),
    )


def _role_back(admin: Record, _values: Values, _reply: Any) -> Call:
    command = filled("meshctl admin role {name} {role}", admin, plain=True)
    return Call("PATCH", filled(ADMIN, admin), {"role": admin["role"]}, cli=command, label=t("Role"))


def _standing(disabled: bool, label: str) -> Any:
    def call(admin: Record, _values: Values, _reply: Any) -> Call:
        verb = "disable" if disabled else "enable"
        command = filled(f"meshctl admin {verb} {{name}}", admin, plain=True)
        return Call("PATCH", filled(ADMIN, admin), {"disabled": disabled}, cli=command, label=label)

    return call


def _no_factor(admin: Record) -> str:
    return "" if admin.get("second_factor") else t("There is no second factor.")


def _begin(room: Room, records: Sequence[Record]) -> None:
    room.run_worker(begin(room, records[0]), group="act")


CODE: Final = Form(
    t("Code"),
    (Field("code", t("Code"), required=True, pattern=r"\d{3} ?\d{3}", help=t("that the app shows now")),),
    t("It counts from the first right code on; without one, nothing has changed."),
)


REPLACE: Final = Form(
    t("Second factor"), (CURRENT,), t("The present one counts until a code proves the new one")
)


async def begin(room: Room, admin: Record) -> None:
    """A new second factor: its secret, shown once, then a code that proves that it arrived."""
    command = filled("meshctl admin second-factor {name}", admin, plain=True)
    present: dict[str, Any] = {}
    if admin.get("second_factor"):  # only who knows the password may put another in its place
        screen = FormScreen(REPLACE, title=f"{room.say('Second factor')}: {admin['name']}")
        given = await room.push_screen_wait(screen)
        if not isinstance(given, dict):
            return
        present = {"current": given["current"]} if given.get("current") else {}
    try:
        made = await room.desk.send(Call("POST", filled(FACTOR, admin), present, cli=command))
    except MeshError as error:
        room.fail(error)
        return
    labels = (room.say("Secret"), room.say("Address"))
    shown = SecretScreen(f"{room.say('Second factor')}: {admin['name']}", made["secret"], made["uri"], labels)
    await room.push_screen_wait(shown)
    problem = ""
    while True:
        screen = FormScreen(
            CODE,
            title=f"{room.say('Second factor')}: {admin['name']}",
            problem=problem,
            preview=lambda _values: Call("PUT", filled(FACTOR, admin), cli=f"{command} --code-file -"),
        )
        answer = await room.push_screen_wait(screen)
        if not isinstance(answer, dict):
            room.warn(room.say("Nothing has changed: the new second factor does not count."))
            return
        code = str(answer["code"]).replace(" ", "")
        try:
            await room.desk.send(Call("PUT", filled(FACTOR, admin), {"code": code} | present))
        except MeshError as error:
            problem = room.catalogue.told(error)
        else:
            room.tell(room.say("{name} needs a code at log-in from now on.", name=admin["name"]))
            if room.pane is not None:
                room.pane.reload()
            return


ACTIONS: Final = (
    Action(
        "admin.create",
        "a",
        t("Add"),
        "POST",
        "/admins",
        "meshctl admin create",
        Role.OWNER,
        form=Form(
            t("Add an admin"),
            (
                Field("name", t("Name"), required=True, option=""),
                _role_field("admin", option="--role"),
                Field("password", t("Password"), Kind.SECRET, required=True, option="--password-file"),
            ),
            t("Then let them have a key on their machine: meshctl context offer there, e here."),
        ),
        done=t("They may log in."),
        row=False,
    ),
    Action(
        "admin.role",
        "o",
        t("Role"),
        "PATCH",
        ADMIN,
        "meshctl admin role {name}",
        Role.OWNER,
        form=lambda admin: Form(t("Role"), (_role_field(str(admin.get("role") or "admin"), option=""),)),
        undo=_role_back,
        done=t("{name} has another role; open sessions have it at once."),
    ),
    Action(
        "admin.disable",
        "t",
        t("Disable"),
        "PATCH",
        ADMIN,
        "meshctl admin disable {name}",
        Role.OWNER,
        body=lambda _admin, _values: {"disabled": True},
        against=lambda admin: "" if admin.get("state") == "active" else t("They are disabled already."),
        confirm=Confirm.ASK,
        question=t("Disable {name}? Their sessions end, here and at paired pools."),
        undo=_standing(False, t("Disable")),
        done=t("{name} is disabled."),
    ),
    Action(
        "admin.enable",
        "z",
        t("Enable"),
        "PATCH",
        ADMIN,
        "meshctl admin enable {name}",
        Role.OWNER,
        body=lambda _admin, _values: {"disabled": False},
        against=lambda admin: t("They are not disabled.") if admin.get("state") == "active" else "",
        undo=_standing(True, t("Enable")),
        done=t("{name} is enabled."),
    ),
    Action(
        "admin.unlock",
        "w",
        t("Unlock"),
        "POST",
        "/admins/{name}/unlock",
        "meshctl admin unlock {name}",
        Role.OWNER,
        against=lambda admin: "" if admin.get("locked_until") else t("They are not locked out."),
        done=t("{name} may try again."),
    ),
    Action(
        "admin.password",
        "p",
        t("Password"),
        "PUT",
        "/admins/{name}/password",
        "meshctl admin password {name}",
        Role.VIEWER,
        form=Form(
            t("Set a password"),
            (
                CURRENT,
                Field("password", t("New password"), Kind.SECRET, required=True, option="--password-file"),
            ),
            t("All their sessions end."),
        ),
        done=t("The password of {name} is set."),
        bulk=False,
    ),
    Action(
        "admin.second-factor",
        "f",
        t("Second factor"),
        "POST",
        FACTOR,
        "meshctl admin second-factor {name}",
        Role.VIEWER,
        opens=_begin,
        bulk=False,
    ),
    Action(
        "admin.second-factor-off",
        "b",
        t("Without second factor"),
        "DELETE",
        FACTOR,
        "meshctl admin second-factor {name} --off",
        Role.VIEWER,
        form=Form(t("The password alone does again"), (CURRENT,)),
        body=lambda _admin, values: {"current": values["current"]} if values.get("current") else None,
        against=_no_factor,
        confirm=Confirm.NAME,
        question=t("Let {name} log in with the password alone?"),
        done=t("{name} logs in with the password alone."),
        bulk=False,
    ),
    Action(
        "admin.enroll",
        "e",
        t("Enroll a key"),
        "POST",
        "/admins/{name}/keys",
        "meshctl admin enroll --admin {name}",
        Role.OWNER,
        form=offer_form(t("Enroll a key")),
        body=offered("admin"),
        plan=fingerprint,
        confirm=Confirm.ASK,
        question=t("Is that the fingerprint which their machine showed?"),
        result=Result.ONCE,
        bulk=False,
    ),
    Action(
        "admin.remove",
        "delete",
        t("Remove"),
        "DELETE",
        ADMIN,
        "meshctl admin remove {name}",
        Role.OWNER,
        confirm=Confirm.NAME,
        question=t("Remove {name} with their keys and sessions?"),
        done=t("{name} is removed."),
    ),
)


def account(admin: Record) -> list[view.Table]:
    """An account as one reads it."""
    return [
        view.card(
            {key: view.moment(one) if key.endswith(("_at", "_until")) else one for key, one in admin.items()}
        )
    ]


def seen(admin: Record) -> Record:
    """An account with its lock-out as its state, so that no width hides it."""
    locked = admin.get("locked_until") and admin.get("state") == "active"
    return {**admin, "state": LOCKED} if locked else admin


def keys_of(admin: Record) -> TablePane:
    """The client keys of an admin."""
    name = str(admin["name"])
    path = filled("/admins/{name}/keys", admin)
    revoke = Action(
        "admin.revoke",
        "delete",
        t("Revoke"),
        "DELETE",
        "/admins/{owner}/keys/{name}",
        "meshctl admin revoke {owner} {name}",
        Role.OWNER,
        confirm=Confirm.NAME,
        question=t("Revoke the key {name}? Its sessions end at once."),
        against=lambda key: t("It is revoked already.") if key.get("state") == "revoked" else "",
        done=t("The key {name} is revoked."),
    )
    return TablePane(
        "keys",
        t("Keys"),
        path,
        columns_of(KEY_COLUMNS, fingerprint={"least": 110, "most": 40}, connected={"least": 70}),
        (revoke,),
        about=("node", "admin"),
        every=15.0,
        items=lambda reply: [{**one, "owner": name} for one in reply.get("items", ())],
        cli=f"meshctl admin show {name}",
        empty=t("They have no key yet. On their machine: meshctl context offer"),
    )


ADMINS: Final = TablePane(
    "admins",
    t("Admins"),
    "/admins",
    columns_of(
        ADMIN_COLUMNS,
        name={"most": 24},
        second_factor={"least": 70},
        locked_until={"least": 130},
        created_at={"least": 150},
        logged_in_at={"least": 95},
    ),
    ACTIONS,
    about=("admins", "admin"),
    every=15.0,
    one=ADMIN,
    tables=account,
    flat=seen,
    drill=keys_of,
    sort="name",
    cli="meshctl admin list",
    empty=t("No admins: whoever owns the gate's socket is one. Press a to add the first owner."),
)

SESSIONS: Final = TablePane(
    "sessions",
    t("Sessions"),
    "/sessions",
    columns_of(
        SESSION_COLUMNS,
        session={"least": 140},
        second_factor={"least": 100},
        read_only={"least": 110},
        opened_at={"least": 120},
    ),
    (
        Action(
            "admin.session-end",
            "delete",
            t("End"),
            "DELETE",
            "/sessions/{session}",
            "meshctl admin sessions --end {session}",
            confirm=Confirm.NAME,
            question=t("End the session of {name}, here and wherever it is honoured?"),
            done=t("The session of {name} is over."),
            name="admin",
        ),
    ),
    key="session",
    name="admin",
    about=("admins", "admin", "session"),
    every=15.0,
    cli="meshctl admin sessions",
    empty=t("Nobody is logged in."),
)

"""Databases behind the gate, what the vault seals, and the sidecars by which apps come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from meshctl import view
from meshctl.dsn import dsn_of
from meshctl.tui.declare import (
    Action,
    Column,
    Confirm,
    Record,
    Result,
    Role,
    Switch,
    TablePane,
    columns_of,
)
from meshctl.tui.fields import Field, Form, Kind, Values, readable, t
from meshctl.tui.offers import ROLES, fingerprint, offer_form, offered
from meshctl.tui.pane import view_of

if TYPE_CHECKING:
    from meshctl.tui.room import Room

ROTATE_S: Final = 180.0
CHECK_S: Final = 60.0
SSLMODES: Final = ("prefer", "require", "verify-ca", "verify-full", "disable")
TARGETS: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")

ADD: Final = Form(
    t("Register a database"),
    (
        Field("name", t("Name"), required=True, option="", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"),
        Field(
            "host",
            t("Server"),
            Kind.LIST,
            default=["localhost"],
            required=True,
            option="--host",
            help=t("HOST or HOST:PORT, several with commas"),
        ),
        Field("dbname", t("Database there"), option="--dbname", help=t("empty: the name")),
        Field("user", t("Role"), required=True, option="--user"),
        Field("password", t("Password"), Kind.SECRET, option="--password-file", help=t("the vault keeps it")),
        Field("sslmode", t("TLS"), Kind.CHOICE, default=SSLMODES[0], choices=SSLMODES, option="--sslmode"),
        Field("sslrootcert", t("Authorities"), Kind.FILE, option="--sslrootcert", help=t("PEM")),
        Field(
            "target",
            t("Session"),
            Kind.CHOICE,
            default=TARGETS[0],
            choices=TARGETS,
            option="--target-session-attrs",
        ),
        Field("read_only_user", t("Read-only role"), option="--read-only-user"),
        Field("read_only_password", t("Its password"), Kind.SECRET, option="--read-only-password-file"),
        Field(
            "pool_size",
            t("Connections"),
            Kind.INTEGER,
            minimum=1,
            maximum=10_000,
            option="--pool-size",
            help=t("upstream, at one time"),
        ),
        Field(
            "compression",
            t("Compression"),
            Kind.CHOICE,
            default="auto",
            choices=("auto", "off", "long"),
            option="--compression",
        ),
        Field("no_check", t("Without a check"), Kind.BOOL, default=False, option="--no-check"),
    ),
    t("The gate logs in once to check, then seals the password in its vault."),
)
KEPT: Final = ("password", "read_only_user", "read_only_password", "pool_size", "compression")


def _database(_record: Record, values: Values) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": values["name"],
        "dsn": dsn_of(
            values["host"],
            values["user"],
            values.get("dbname") or values["name"],
            values.get("sslmode"),
            None if values.get("target") == TARGETS[0] else values.get("target"),
        ),
        "check": not values.get("no_check"),
        **{name: values[name] for name in KEPT if values.get(name) is not None},
    }
    if file := values.get("sslrootcert"):
        body["sslrootcert"] = readable(file).read_text(encoding="utf-8", errors="replace")
    return body


def steps_of(reply: Any) -> list[view.Table]:
    """What a check found, step by step."""
    facts = {
        name.replace("_", " "): reply[name]
        for name in ("server_version", "tls", "auth", "latency_ms", "models")
        if reply.get(name)
    }
    return [view.steps(reply.get("steps") or []), *([view.card(facts)] if facts else [])]


CHECK: Final = Action(
    "database.check",
    "t",
    t("Check"),
    "POST",
    "/databases/{name}/check",
    "meshctl db check {name}",
    Role.OPERATOR,
    result=Result.DESCRIBE,
    answer=steps_of,
    timeout_s=CHECK_S,
    bulk=False,
)
ROTATE: Final = Action(
    "secret.rotate",
    "o",
    t("Rotate"),
    "POST",
    "/databases/{name}/rotate",
    "meshctl secret rotate {name}",
    confirm=Confirm.ASK,
    question=t("Give the role of {name} a new password? Sessions in use go on; no client notices."),
    done=t("The password of {name} is new; only the vault knows it."),
    timeout_s=ROTATE_S,
)

DATABASES: Final = TablePane(
    "databases",
    t("Databases"),
    "/databases",
    columns_of(
        view.DATABASE_COLUMNS,
        hosts={"most": 30},
        user={"least": 70},
        sslmode={"least": 90},
        compression={"least": 110},
        pool_size={"least": 90},
        rotated_at={"least": 100},
    ),
    (
        Action(
            "database.add",
            "a",
            t("Add"),
            "POST",
            "/databases",
            "meshctl db add",
            form=ADD,
            body=_database,
            row=False,
            done=t("The database is registered. Next: an app that may use it (1, then a)."),
            timeout_s=CHECK_S,
        ),
        CHECK,
        ROTATE,
        Action(
            "database.remove",
            "delete",
            t("Remove"),
            "DELETE",
            "/databases/{name}",
            "meshctl db remove {name}",
            form=Form(
                t("Forget a database"),
                (
                    Field(
                        "force",
                        t("Also where apps are bound to it"),
                        Kind.BOOL,
                        default=False,
                        option="--force",
                    ),
                ),
                t("The database itself is not touched; its sealed password is gone."),
            ),
            query=("force",),
            confirm=Confirm.NAME,
            done=t("{name} is removed."),
        ),
    ),
    about=("route",),
    one="/databases/{name}",
    tables=lambda one: [view.card(one, view.DATABASE_CARD)],
    sort="name",
    cli="meshctl db list",
    empty=t("No databases. Press a to register one; apps then reach it without knowing its password."),
)


def _rotatable(secret: Record) -> str:
    if secret.get("kind") == "database":
        return ""
    if secret.get("kind") == "provider":
        return t("Its owner makes provider keys: e takes the new one over.")
    return t("Only databases' passwords are made here.")


def _of_provider(secret: Record) -> str:
    return "" if secret.get("kind") == "provider" else t("That is no provider's key.")


KEY_FIELD: Final = Field(
    "key", t("Key"), Kind.SECRET, required=True, option="--key-file", help=t("the vault keeps it")
)
CHECK_FIELD: Final = Field(
    "check", t("Try it first"), Kind.BOOL, default=True, help=t("the provider is asked for its models")
)
PROVIDER_KEY: Final = Action(
    "provider.key",
    "e",
    t("New key"),
    "PUT",
    "/providers/{name}/key",
    "meshctl provider key {name}",
    form=Form(t("Replace its key"), (KEY_FIELD, CHECK_FIELD)),
    done=t("The key of {name} is replaced."),
    timeout_s=CHECK_S,
    bulk=False,
)


def _provider_key() -> Action:
    from dataclasses import replace

    return replace(PROVIDER_KEY, against=_of_provider)


def _rotate() -> Action:
    from dataclasses import replace

    return replace(ROTATE, against=_rotatable)


SECRETS: Final = TablePane(
    "secrets",
    t("Secrets"),
    "/vault",
    columns_of(view.SECRET_COLUMNS),
    (
        _rotate(),
        _provider_key(),
        Action(
            "vault.rekey",
            "v",
            t("Re-key"),
            "POST",
            "/vault/rekey",
            "meshctl gate rekey",
            Role.OWNER,
            confirm=Confirm.ASK,
            question=t("Seal every secret under a new master key? Older backups then need the older key."),
            done=t("The vault is sealed under a new key."),
            timeout_s=600.0,
            row=False,
        ),
    ),
    key="id",
    about=("route", "provider", "admins"),
    every=15.0,
    cli="meshctl secret list",
    empty=t("The vault is empty. It fills with databases' passwords and providers' keys."),
)


def _bundle(reply: Any) -> list[view.Table]:
    return [view.card({name: reply[name] for name in ("name", "fingerprint", "bundle") if name in reply})]


def _apps_of(room: Room, records: Sequence[Record]) -> None:
    """The tunnel sessions of this node, as the gate sees them."""
    name = records[0]["name"]
    pane = TablePane(
        "links",
        t("Tunnels"),
        "/status",
        columns_of(view.SESSION_COLUMNS, address={"least": 100}, ratio={"least": 110}, resumes={"least": 90}),
        key="node",
        name="node",
        every=2.0,
        items=lambda reply: [one for one in reply.get("sessions", ()) if one.get("node") == name],
        flat=_carried,
        tables=lambda one: [view.card(one)],
        cli="meshctl status",
        empty=t("It is not connected to this gate."),
    )
    room.descend(view_of(pane, crumb=f"{name}: {room.say(pane.title)}"))


def _carried(session: Record) -> dict[str, Any]:
    plain = (session.get("bytes_app_in") or 0) + (session.get("bytes_app_out") or 0)
    wire = (session.get("bytes_wire_in") or 0) + (session.get("bytes_wire_out") or 0)
    return {**session, "app": plain, "wire": wire, "ratio": view.ratio(plain, wire)}


def noun(role: Any) -> str:
    """What commands call a node of this role."""
    return ROLES.get(str(role), view.text(role))


def _gone(node: Record) -> str:
    return t("It is revoked.") if node.get("state") == "revoked" else ""


SIDECARS: Final = TablePane(
    "sidecars",
    t("Sidecars"),
    "/sidecars",
    (
        Column("NAME", "name", most=26),
        Column("ROLE", "role", noun, least=60),
        Column("STATE", "state", state=True),
        Column("CONNECTED", "connected"),
        Column("ADDRESS", "address", least=90),
        Column("EXPIRES", "expires_at", view.moment),
        Column("FINGERPRINT", "fingerprint", least=120),
    ),
    (
        Action(
            "sidecar.enroll",
            "a",
            t("Enroll"),
            "POST",
            "/sidecars",
            "meshctl sidecar enroll",
            form=offer_form(t("Enroll a sidecar")),
            body=offered("client"),
            plan=fingerprint,
            confirm=Confirm.ASK,
            question=t("Is that the fingerprint which the sidecar's host showed?"),
            row=False,
            result=Result.ONCE,
            answer=_bundle,
        ),
        Action(
            "sidecar.bundle",
            "b",
            t("Bundle"),
            "POST",
            "/sidecars/{name}/bundle",
            "meshctl sidecar bundle {name}",
            against=_gone,
            result=Result.ONCE,
            answer=_bundle,
            bulk=False,
        ),
        Action(
            "sidecar.links",
            "v",
            t("Tunnels"),
            "GET",
            "/status",
            "meshctl status",
            Role.VIEWER,
            opens=_apps_of,
            bulk=False,
        ),
        Action(
            "sidecar.revoke",
            "delete",
            t("Revoke"),
            "DELETE",
            "/sidecars/{name}",
            "meshctl sidecar revoke {name}",
            against=_gone,
            confirm=Confirm.NAME,
            question=t("Revoke {name}? Its tunnel and every session in it end at once."),
            done=t("{name} is revoked."),
        ),
    ),
    about=("node",),
    every=5.0,
    switches=(
        Switch("o", t("sidecars only"), {"role": "client"}),
        Switch("e", t("connected only"), {"connected": "true"}),
    ),
    sort="name",
    cli="meshctl sidecar list",
    empty=t("No sidecars. Next, where apps run: meshctl sidecar offer --name NAME; then a here."),
)

"""Apps: who may ask for what, by which keys, within which limits, and what they used."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from meshctl import finops_view, view
from meshctl.drivers import Credential, openai_settings, port_beside
from meshctl.errors import UsageError
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
from meshctl.tui.fields import Field, Form, Kind, Known, Values, body_of, t
from meshctl.tui.pane import view_of
from meshctl.tui.screens.app_terms import LIMIT_FIELDS, change_of

if TYPE_CHECKING:
    from meshctl.tui.room import Room

APP: Final = "/apps/{name}"
POLICY: Final = "/apps/{name}/policy"
KEYS: Final = "/apps/{name}/keys"


def scopes(policy: Record) -> tuple[Field, ...]:
    """What an app may ask of models, as fields that begin with what it may now."""
    local = policy.get("data") == "local-only"
    return (
        Field(
            "models",
            t("Models"),
            Kind.LIST,
            default=policy.get("models"),
            option="--models",
            help=t("patterns, as qwen*; empty: none"),
            known=Known.REQUESTS,
        ),
        Field(
            "tasks",
            t("Tasks"),
            Kind.LIST,
            default=policy.get("tasks"),
            option="--tasks",
            help=t("chat, embed ...; empty: any"),
        ),
        Field(
            "local",
            t("Local only"),
            Kind.BOOL,
            default=local,
            option="--local-only",
            help=t("content stays on machines of the company"),
        ),
        Field(
            "providers",
            t("Providers"),
            Kind.LIST,
            default=policy.get("providers"),
            option="--provider",
            help=t("empty: any"),
            known=Known.PROVIDERS,
        ),
        Field(
            "requests_per_minute",
            t("Requests a minute"),
            Kind.INTEGER,
            default=policy.get("requests_per_minute"),
            minimum=1,
            maximum=10_000_000,
            option="--rpm",
        ),
        Field(
            "tokens_per_minute",
            t("Tokens a minute"),
            Kind.INTEGER,
            default=policy.get("tokens_per_minute"),
            minimum=1,
            maximum=10_000_000_000,
            option="--tpm",
        ),
        Field(
            "max_tokens",
            t("Tokens of an answer"),
            Kind.INTEGER,
            default=policy.get("max_tokens"),
            minimum=1,
            maximum=10_000_000,
            option="--max-tokens",
        ),
        Field(
            "share",
            t("Share"),
            Kind.INTEGER,
            default=policy.get("share"),
            minimum=1,
            maximum=1000,
            option="--share",
            help=t("its weight where several wait; 1"),
        ),
        Field("team", t("Team"), default=policy.get("team"), option="--team"),
        Field(
            "isolation",
            t("Isolation"),
            Kind.CHOICE,
            default=policy.get("isolation"),
            choices=("shared", "dedicated"),
            option="--isolation",
        ),
    )


SCOPES: Final = tuple(one.name for one in scopes({}))
BOUNDS: Final = ("tasks", "providers", "requests_per_minute", "tokens_per_minute", "max_tokens", "team")


def policy_of(values: Values) -> dict[str, Any]:
    """All of a policy from its fields: what is empty is no bound."""
    return {
        "models": values.get("models") or ["*"],
        "data": "local-only" if values.get("local") else "any",
        "share": values.get("share") or 1,
        "isolation": values.get("isolation") or "shared",
        **{name: values.get(name) for name in BOUNDS},
    }


def _new(_record: Record, values: Values) -> dict[str, Any]:
    own = [one for one in NEW.fields if one.name not in SCOPES and one.name != "databases"]
    body = body_of(own, values) | {"databases": values.get("databases") or []}
    if not body.get("read_only"):
        body.pop("read_only", None)
    asked = any(values.get(name) for name in (*BOUNDS, "models", "local"))
    if asked:
        body["policy"] = {name: one for name, one in policy_of(values).items() if one is not None}
    if not asked and not body["databases"]:
        raise UsageError("An app needs a database, or models.", hint="databases: shop   or models: *")
    return body


NEW: Final = Form(
    t("Make an app"),
    (
        Field("name", t("Name"), required=True, option="", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"),
        Field(
            "databases",
            t("Databases"),
            Kind.LIST,
            option="--db",
            help=t("with commas"),
            known=Known.DATABASES,
        ),
        *scopes({}),
        Field("expires_in_s", t("Expires in"), Kind.DURATION, option="--expires-in", help=t("empty: never")),
        Field(
            "sidecars", t("Sidecars"), Kind.LIST, option="--sidecar", help=t("only through these; empty: any")
        ),
        Field("read_only", t("Read-only"), Kind.BOOL, default=False, option="--read-only"),
        *LIMIT_FIELDS,
    ),
    t("Its password and its key are shown once, after this."),
)


def secrets_of(where: Path, reply: Any) -> list[view.Table]:
    """What is shown once of a new app, a new password or a new key: each to be copied alone. ``where`` is the
    gate's socket: beside a dev stack's lies its sidecar's port.
    """
    shown: dict[str, str] = {}
    port = port_beside(where)
    app = reply.get("app")
    if password := reply.get("password"):
        shown["password"] = password
    if key := reply.get("api_key"):
        shown |= openai_settings(key, "localhost", port)
    if password and isinstance(app, dict):
        for database in (*app.get("databases", ()), *(("qg",) if app.get("policy") else ())):
            shown[f"URL ({database})"] = Credential(app["name"], password, database, port=port).url()
    if reply.get("old_valid_until"):
        shown["old password until"] = view.moment(reply["old_valid_until"])
    if reply.get("valid_until"):
        shown["until"] = view.moment(reply["valid_until"])
    return [view.Table(("", ""), tuple(shown.items()))]


def _revoked(app: Record) -> str:
    return t("It is revoked.") if app.get("state") == "revoked" else ""


def _no_models(app: Record) -> str:
    if why := _revoked(app):
        return why
    if not app.get("policy"):
        return t("It may ask for no model as it is.")
    return "" if app.get("databases") else t("It has no database: nothing would be left of it.")


def _policy_back(app: Record, _values: Values, _reply: Any) -> Call:
    name, before = str(app["name"]), app.get("policy")
    path = filled(POLICY, app)
    if before is None:
        return Call("DELETE", path, cli=f"meshctl app policy {name} --remove", label=t("Scopes"))
    kept = {**dict.fromkeys(BOUNDS), **before}
    models = " ".join(f"--models {shlex.quote(one)}" for one in kept["models"])
    return Call("PATCH", path, kept, cli=f"meshctl app policy {name} {models}", label=t("Scopes"))


def _budget(app: Record, values: Values) -> dict[str, Any]:
    del app
    return {name: values[name] for name in ("hard", "soft", "currency") if values.get(name) is not None}


def _opens(pane: Callable[[Record], TablePane]) -> Callable[[Room, Sequence[Record]], None]:
    def open_it(room: Room, records: Sequence[Record]) -> None:
        found = pane(records[0])
        room.descend(view_of(found, crumb=f"{records[0]['name']}: {room.say(found.title)}"))

    return open_it


def receipts_of(app: Record) -> TablePane:
    """The receipts of one app."""
    return TablePane(
        "receipts",
        t("Receipts"),
        "/receipts",
        RECEIPT_COLUMNS,
        key="id",
        name="id",
        every=5.0,
        query={"app": app["name"]},
        one="/receipts/{id}",
        tables=lambda one: [finops_view.receipt(one)],
        cli=f"meshctl receipt list --app {app['name']}",
        empty=t("It has asked for nothing yet."),
    )


def usage_of(app: Record) -> TablePane:
    """What one app used, by model."""
    return TablePane(
        "usage",
        t("Usage"),
        "/usage",
        columns_of(finops_view.USAGE_COLUMNS, tokens_out={"least": 70}, last_at={"least": 100}),
        key="id",
        every=30.0,
        query={"app": app["name"], "by": "model"},
        cli=f"meshctl receipt usage --app {app['name']} --by model",
        empty=t("It has asked for nothing yet."),
    )


RECEIPT_COLUMNS: Final = (
    Column("TIME", "ended_at", view.moment),
    Column("APP", "app", least=60),
    Column("TASK", "task", least=90),
    Column("MODEL", "model", most=28),
    Column("NODES", "nodes", lambda nodes: view.text([one.get("node") for one in nodes or ()]), least=130),
    Column("IN", "tokens_in", right=True),
    Column("OUT", "tokens_out", right=True),
    Column("MS", "duration_ms", right=True, least=100),
    Column("PRICE", "price", right=True),
    Column("OUTCOME", "outcome", state=True),
    Column("ID", "id", least=150),
)


def keys_of(app: Record) -> TablePane:
    """The keys of one app."""
    name = str(app["name"])
    path = f"/apps/{quote(name, safe='')}/keys"
    return TablePane(
        "keys",
        t("Keys"),
        path,
        columns_of(view.KEY_COLUMNS),
        (
            Action(
                "app.key.create",
                "a",
                t("New key"),
                "POST",
                path,
                f"meshctl app key create {name}",
                form=KEY_FORM,
                row=False,
                result=Result.ONCE,
                once=secrets_of,
            ),
            Action(
                "app.key.revoke",
                "delete",
                t("Revoke"),
                "DELETE",
                f"/apps/{quote(name, safe='')}/keys/{{id}}",
                f"meshctl app key revoke {name} {{id}}",
                against=_revoked,
                confirm=Confirm.NAME,
                question=t("Refuse the key {name} from now on, at every gate?"),
                name="prefix",
                done=t("{name} is revoked."),
            ),
        ),
        key="id",
        name="prefix",
        about=("key", "app"),
        cli=f"meshctl app key list {name}",
        empty=t("No keys. Press a to make one for the OpenAI-compatible API."),
    )


KEY_FORM: Final = Form(
    t("Make a key"),
    (Field("expires_in_s", t("Expires in"), Kind.DURATION, option="--expires-in", help=t("empty: never")),),
    t("It is shown once, after this."),
)

ACTIONS: Final = (
    Action(
        "app.create",
        "a",
        t("New app"),
        "POST",
        "/apps",
        "meshctl app create",
        form=NEW,
        body=_new,
        row=False,
        result=Result.ONCE,
        once=secrets_of,
    ),
    Action(
        "app.policy",
        "e",
        t("Scopes"),
        "PATCH",
        POLICY,
        "meshctl app policy {name}",
        form=lambda app: Form(t("What it may ask of models"), scopes(app.get("policy") or {})),
        body=lambda _, values: policy_of(values),
        against=_revoked,
        undo=_policy_back,
        done=t("The scopes of {name} are changed."),
        bulk=False,
    ),
    change_of(_revoked),
    Action(
        "app.key.create",
        "i",
        t("New key"),
        "POST",
        KEYS,
        "meshctl app key create {name}",
        form=KEY_FORM,
        against=_revoked,
        result=Result.ONCE,
        once=secrets_of,
        bulk=False,
    ),
    Action(
        "app.rotate",
        "o",
        t("New password"),
        "POST",
        "/apps/{name}/rotate",
        "meshctl app rotate {name}",
        form=Form(
            t("Give it a new password"),
            (
                Field(
                    "overlap_s",
                    t("Overlap"),
                    Kind.DURATION,
                    option="--overlap",
                    help=t("how long the old one works beside it"),
                ),
            ),
            t("It is shown once, after this."),
        ),
        against=_revoked,
        result=Result.ONCE,
        once=secrets_of,
        bulk=False,
    ),
    Action(
        "app.usage",
        "f",
        t("Usage"),
        "GET",
        "/usage",
        "meshctl receipt usage --by model --app {name}",
        Role.VIEWER,
        opens=_opens(usage_of),
        bulk=False,
    ),
    Action(
        "app.receipts",
        "v",
        t("Receipts"),
        "GET",
        "/receipts",
        "meshctl receipt list --app {name}",
        Role.VIEWER,
        opens=_opens(receipts_of),
        bulk=False,
    ),
    Action(
        "app.budget",
        "b",
        t("Budget"),
        "PUT",
        "/budgets/app:{name}/{period}",
        "meshctl budget set app:{name}/{period}",
        form=Form(
            t("What it may spend"),
            (
                Field(
                    "period",
                    t("Period"),
                    Kind.CHOICE,
                    default="month",
                    choices=("hour", "day", "week", "month"),
                    required=True,
                ),
                Field("hard", t("Never more than"), pattern=r"\d+(\.\d+)?", option="--hard"),
                Field(
                    "soft",
                    t("Local models from"),
                    pattern=r"\d+(\.\d+)?",
                    option="--soft",
                    help=t("from here on local models are preferred"),
                ),
            ),
        ),
        body=_budget,
        against=_revoked,
        done=t("The budget of {name} is set."),
        versioned=False,
        bulk=False,
    ),
    Action(
        "app.policy.remove",
        "p",
        t("No models"),
        "DELETE",
        POLICY,
        "meshctl app policy {name} --remove",
        against=_no_models,
        confirm=Confirm.ASK,
        question=t("Let {name} ask for no model any more? Its databases stay."),
        undo=_policy_back,
        done=t("{name} may ask for no model."),
    ),
    Action(
        "app.revoke",
        "delete",
        t("Revoke"),
        "DELETE",
        APP,
        "meshctl app revoke {name}",
        against=_revoked,
        confirm=Confirm.NAME,
        question=t("Revoke {name} for good? Its live sessions end at once."),
        done=t("{name} is revoked."),
    ),
)


def _rate(policy: Any) -> str:
    found = policy or {}
    rates = [
        f"{found[key]}/{unit}"
        for key, unit in (("requests_per_minute", "min"), ("tokens_per_minute", "tok/min"))
        if found.get(key)
    ]
    return " ".join(rates) or "-"


def _data(policy: Any) -> str:
    return str((policy or {}).get("data") or "-")


PANE: Final = TablePane(
    "apps",
    t("Apps"),
    "/apps",
    (
        Column("NAME", "name", most=26),
        Column("STATE", "state", state=True),
        Column("DATABASES", "databases", most=24),
        Column("MODELS", "policy.models", most=24),
        Column("SESSIONS", "sessions", right=True, least=70),
        Column("LIMITS", "policy", _rate, least=100),
        Column("DATA", "policy", _data, least=120),
        Column("TEAM", "policy.team", least=130),
        Column("OWNER", "owner", least=140),
        Column("READ-ONLY", "read_only", least=150),
        Column("EXPIRES", "expires_at", view.moment, least=110),
        Column("CREATED", "created_at", view.moment, least=170),
    ),
    ACTIONS,
    about=("app", "key"),
    one="/apps/{name}",
    tables=view.app,
    drill=keys_of,
    sort="name",
    cli="meshctl app list",
    empty=t("No apps. Press a to make one: it gets a password, a key, and only what you let it."),
)

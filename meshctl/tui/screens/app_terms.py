"""What an app may use, changed after it was made: databases, limits, sidecars, end, access."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, Final

from meshctl.moments import moment_of
from meshctl.tui.declare import Action, Call, Record, filled
from meshctl.tui.fields import Amendment, Field, FieldError, Form, Kind, Known, Values, seconds, t

APP: Final = "/apps/{name}"
READ_ONLY: Final = "read-only"
READ_WRITE: Final = "read-write"
LIMIT_FIELDS: Final = (
    Field(
        "limits.max_connections",
        t("Connections"),
        Kind.INTEGER,
        minimum=1,
        maximum=100_000,
        option="--max-connections",
    ),
    Field("limits.queue", t("Queue"), Kind.INTEGER, minimum=0, maximum=100_000, option="--queue"),
    Field("limits.queue_timeout_s", t("Wait at most"), Kind.DURATION, option="--queue-timeout"),
    Field("limits.statement_timeout_s", t("Statement at most"), Kind.DURATION, option="--statement-timeout"),
    Field("limits.idle_timeout_s", t("Idle at most"), Kind.DURATION, option="--idle-timeout"),
    Field(
        "limits.idle_in_transaction_s",
        t("Idle in transaction"),
        Kind.DURATION,
        option="--idle-in-transaction",
    ),
)
LIMITS: Final = tuple(one.name.removeprefix("limits.") for one in LIMIT_FIELDS)


def terms_form(app: Record) -> Form:
    """What it may use now, to be written over."""
    held = app.get("limits") or {}
    limits = tuple(
        Field(
            one.name,
            one.label,
            one.kind,
            default=held.get(name),
            minimum=one.minimum,
            maximum=one.maximum,
            option=one.option,
            help=t("empty: the gate's default") if name == LIMITS[0] else "",
        )
        for name, one in zip(LIMITS, LIMIT_FIELDS, strict=True)
    )
    return Amendment(
        t("What it may use"),
        (
            Field(
                "databases",
                t("Databases"),
                Kind.LIST,
                default=app.get("databases") or None,
                option="--db",
                help=t("with commas"),
                known=Known.DATABASES,
            ),
            Field(
                "expires",
                t("Expires"),
                default=app.get("expires_at"),
                option="--expires",
                help=t("30d from now, 2027-01-31; empty: never"),
            ),
            Field(
                "sidecars",
                t("Sidecars"),
                Kind.LIST,
                default=app.get("sidecars"),
                option="--sidecar",
                help=t("only through these; empty: any"),
                known=Known.SIDECARS,
            ),
            Field(
                "access",
                t("Access"),
                Kind.CHOICE,
                default=READ_ONLY if app.get("read_only") else READ_WRITE,
                choices=(READ_WRITE, READ_ONLY),
                required=True,
                option="--access",
            ),
            Field(
                "classes",
                t("Statements"),
                Kind.LIST,
                default=app.get("statement_classes"),
                option="--allow",
                help=t("only these classes; empty: any"),
            ),
            *limits,
        ),
        t("Live sessions obey at once; those that may not go on are ended."),
    )


def terms_changed(app: Record, values: Values) -> dict[str, Any]:
    """What of it is another one now. FieldError where that is nothing, or the end is no time."""
    body: dict[str, Any] = {}
    for name, field in (
        ("databases", "databases"),
        ("sidecars", "sidecars"),
        ("classes", "statement_classes"),
    ):
        held, now = app.get(field) or None, values.get(name) or None
        if (sorted(held) if held else None) != (sorted(now) if now else None):
            body[field] = now if field != "databases" else now or []
    if (values.get("access") == READ_ONLY) != bool(app.get("read_only")):
        body["read_only"] = values.get("access") == READ_ONLY
    if (end := values.get("expires") or None) != app.get("expires_at"):
        body |= _end(end)
    held = app.get("limits") or {}
    limits = {name: values.get(f"limits.{name}") for name in LIMITS}
    if changed := {name: value for name, value in limits.items() if value != held.get(name)}:
        body["limits"] = changed
    if not body:
        raise FieldError(t("Nothing is changed yet."))
    return body


def _end(text: str | None) -> dict[str, Any]:
    if text is None:
        return {"expires_at": None}
    try:
        at = moment_of(text)
    except ValueError:
        raise FieldError(t("There is no such day or hour: {text}"), text=text) from None
    if at is not None:
        return {"expires_at": at}
    lasts = seconds(text)
    if not lasts:
        raise FieldError(t("At least {bound}."), bound="1s")
    return {"expires_in_s": lasts}


def _as_it_was(app: Record, _values: Values, _reply: Any) -> Call:
    held = app.get("limits") or {}
    databases = list(app.get("databases") or ())
    body = {
        "databases": databases,
        "expires_at": app.get("expires_at"),
        "sidecars": app.get("sidecars"),
        "read_only": bool(app.get("read_only")),
        "statement_classes": app.get("statement_classes"),
        "limits": {name: held.get(name) for name in LIMITS},
    }
    words = [
        *(word for one in databases for word in ("--db", shlex.quote(str(one)))),
        *("--expires", str(app.get("expires_at") or "never")),
        *("--access", READ_ONLY if app.get("read_only") else READ_WRITE),
        *(f"{one.option} {held.get(name, 'none')}" for name, one in zip(LIMITS, LIMIT_FIELDS, strict=True)),
    ]
    return Call(
        "PATCH",
        filled(APP, app),
        body,
        cli=f"meshctl app set {app['name']} {' '.join(words)}",
        label=t("Change"),
    )


def change_of(against: Callable[[Record], str]) -> Action:
    """The action; ``against`` says of which apps it cannot be done."""
    return Action(
        "app.change",
        "w",
        t("Change"),
        "PATCH",
        APP,
        "meshctl app set {name}",
        form=terms_form,
        body=terms_changed,
        against=against,
        undo=_as_it_was,
        done=t("What {name} may use is changed."),
        bulk=False,
    )

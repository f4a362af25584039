"""What is to be done at a time, and what the pool does unasked: two panes of Incidents & Migrations."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from meshctl import view
from meshctl.errors import UsageError
from meshctl.tui.declare import (
    Action,
    Call,
    Column,
    Confirm,
    Record,
    Result,
    Role,
    Switch,
    TablePane,
    filled,
)
from meshctl.tui.fields import Field, Form, Kind, Known, Values, t

ARGUMENTS: Final = {
    "failover": ("verb", "pool", "of", "nodes"),
    "drain": ("worker",),
    "undrain": ("worker",),
    "mode": ("mode",),
}
"""What each kind of order takes (`meshctl order add --help`)."""


def _over(order: Record) -> str:
    return "" if order.get("state") == "waiting" else t("It has begun, or is over.")


def _moment(values: Values) -> dict[str, float]:
    """A span goes as it is: it begins when the gate hears of it, not while somebody still reads the plan."""
    at, in_s = values.get("at"), values.get("in_s")
    if (at is None) == (in_s is None):
        raise UsageError("When?", hint="one of the two: a time, or a span from now")
    if at is None:
        return {"in_s": float(in_s or 0.0)}
    try:
        moment = datetime.fromisoformat(str(at))
    except ValueError:
        raise UsageError(f'"{at}" is no time.', hint="write it as 2027-01-31T02:00") from None
    return {"at": (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()}


def _ordered(_record: Record, values: Values) -> dict[str, Any]:
    what = str(values["what"])
    given = {name: values[name] for name in ARGUMENTS[what] if values.get(name)}
    return {
        "what": what,
        "arguments": given,
        "reason": values.get("reason") or "",
        **_moment(values),
    }


def _again(order: Record, _values: Values, _reply: Any) -> Call:
    kept: dict[str, Any] = {
        name: order.get(name) or default for name, default in (("arguments", {}), ("reason", ""))
    }
    at = datetime.fromisoformat(str(order["at"])).timestamp()
    body = {"what": order["what"], "at": at, **kept}
    command = f"meshctl order add {order['what']} --at {order['at']}"
    return Call("POST", "/orders", body, cli=command, label=t("Cancel"))


def _planned(reply: Any) -> str:
    said = " ".join(f"{key}={value}" for key, value in (reply.get("arguments") or {}).items())
    return f"{reply.get('at')}: {reply.get('what')} {said}\n{reply.get('problem') or ''}".strip()


def _arguments(value: Any) -> str:
    given = value if isinstance(value, Mapping) else {}
    return " ".join(f"{key}={one}" for key, one in given.items() if one) or "-"


ADD: Final = Action(
    "order.add",
    "a",
    t("Schedule"),
    "POST",
    "/orders",
    "meshctl order add",
    Role.OPERATOR,
    form=Form(
        t("Have something done at a time"),
        (
            Field(
                "what",
                t("What"),
                Kind.CHOICE,
                default="drain",
                choices=tuple(ARGUMENTS),
                required=True,
                option="",
            ),
            Field("in_s", t("In"), Kind.DURATION, minimum=0, option="--in", help="90s, 15m, 12h"),
            Field("at", t("Or at"), option="--at", help=t("2027-01-31T02:00, UTC unless it says more")),
            Field(
                "worker", t("Worker"), option="--worker", help=t("for drain and undrain"), known=Known.WORKERS
            ),
            Field(
                "verb",
                t("Verb"),
                Kind.CHOICE,
                choices=("move", "back", "reassign"),
                option="--verb",
                help=t("for failover"),
            ),
            Field("pool", t("To pool"), option="--to", help=t("for failover"), known=Known.POOLS),
            Field("of", t("Of pool"), option="--of", help=t("for failover"), known=Known.POOLS),
            Field("nodes", t("Nodes"), Kind.LIST, option="--node", help=t("for failover"), known=Known.NODES),
            Field(
                "mode",
                t("Mode"),
                Kind.CHOICE,
                choices=("auto", "manual"),
                option="--mode",
                help=t("for mode"),
            ),
            Field("reason", t("Reason"), option="--reason"),
        ),
        t("One gate of the pool does it, once; where none can in time, it is missed, and an incident."),
    ),
    body=_ordered,
    dry={"dry_run": True},
    planned=_planned,
    confirm=Confirm.ASK,
    undo=lambda _row, _values, reply: Call(
        "DELETE",
        f"/orders/{reply['number']}",
        cli=f"meshctl order cancel {reply['number']}",
        label=t("Schedule"),
    ),
    row=False,
    done=t("It is scheduled."),
)
CANCEL: Final = Action(
    "order.cancel",
    "delete",
    t("Cancel"),
    "DELETE",
    "/orders/{number}",
    "meshctl order cancel {number}",
    Role.OPERATOR,
    against=_over,
    confirm=Confirm.ASK,
    undo=_again,
    question=t("Cancel order {name}?"),
    done=t("Order {name} is cancelled."),
    name="number",
)

ORDERS_PANE: Final = TablePane(
    "orders",
    t("Scheduled"),
    "/orders",
    (
        Column("ORDER", "number", right=True),
        Column("AT", "at", view.moment),
        Column("WHAT", "what"),
        Column("ARGUMENTS", "arguments", _arguments),
        Column("STATE", "state", state=True),
        Column("BY", "by", least=90),
        Column("REASON", "reason", least=110),
        Column("OUTCOME", "outcome", least=100),
    ),
    (ADD, CANCEL),
    key="number",
    name="number",
    about=("order",),
    every=2.0,
    one="/orders/{number}",
    switches=(Switch("o", t("also those that are over"), {"all": "true"}),),
    cli="meshctl order list",
    empty=t("No order is to come. Press a to give one."),
)


def _back(record: Record, _values: Values, _reply: Any) -> Call:
    on = bool(record.get("on"))
    return Call(
        "PUT",
        filled("/automations/{name}", record),
        {"on": on},
        cli=f"meshctl automation {'on' if on else 'off'} {record['name']}",
        label=t("Switch"),
    )


def _switches(on: bool) -> Action:
    word = "on" if on else "off"
    return Action(
        f"automation.{word}",
        "t" if on else "f",
        t("Turn on") if on else t("Turn off"),
        "PUT",
        "/automations/{name}",
        f"meshctl automation {word} {{name}}",
        body=lambda _record, _values: {"on": on},
        against=lambda record: (
            ""
            if bool(record.get("on")) is not on
            else t("It is on already.")
            if on
            else t("It is off already.")
        ),
        undo=_back,
        done=t("{name} is on.") if on else t("{name} is off."),
    )


RUN: Final = Action(
    "automation.run",
    "e",
    t("Run now"),
    "POST",
    "/automations/{name}/run",
    "meshctl automation run {name}",
    against=lambda record: "" if record.get("by_hand") else t("It runs by itself, and not by hand."),
    ahead=lambda record, _values: Call("GET", filled("/automations/{name}", record)),
    planned=lambda reply: "\n".join(str(line) for line in reply.get("would") or ()) or "-",
    confirm=Confirm.ASK,
    result=Result.DESCRIBE,
    bulk=False,
    timeout_s=120.0,
)
WOULD: Final = Action(
    "automation.would",
    "w",
    t("What it would do"),
    "GET",
    "/automations/{name}",
    "meshctl automation run {name} --dry-run",
    Role.VIEWER,
    result=Result.DESCRIBE,
    bulk=False,
)

AUTOMATIONS_PANE: Final = TablePane(
    "automations",
    t("Automations"),
    "/automations",
    (
        Column("NAME", "name"),
        Column("ON", "switch", state=True),
        Column("LOOKED", "looked_at", view.moment, least=110),
        Column("NEXT", "next_at", view.moment, least=130),
        Column("DID LAST", "last_run_at", view.moment),
        Column("OUTCOME", "last_outcome", least=100),
        Column("WHAT IT DOES", "description", most=90),
    ),
    (_switches(True), _switches(False), WOULD, RUN),
    about=("setting", "automation"),
    flat=lambda record: {**record, "switch": "on" if record.get("on") else "off"},
    one="/automations/{name}",
    cli="meshctl automation list",
    empty=t("This gate has no automations."),
)

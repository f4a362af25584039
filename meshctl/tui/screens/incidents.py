"""Incidents and migrations: what went wrong, who looks after it, where nodes went, and sending them there."""

from __future__ import annotations

from typing import Any, Final

from meshctl import failover_view, route_view
from meshctl.tui.declare import (
    Action,
    Call,
    CardPane,
    Confirm,
    Record,
    Result,
    Role,
    Section,
    Switch,
    TablePane,
    columns_of,
)
from meshctl.tui.fields import Field, Form, Kind, Known, Values, t
from meshctl.tui.screens.scheduled import AUTOMATIONS_PANE, ORDERS_PANE
from meshctl.tui.screens.workers import planned

NOTE: Final = (Field("note", t("Note"), Kind.LONG, option="--note"),)


def _open(incident: Record) -> str:
    return t("It is over.") if incident.get("state") == "resolved" else ""


def _unanswered(incident: Record) -> str:
    return _open(incident) or (t("Somebody looks after it.") if incident.get("state") != "open" else "")


ANSWERS: Final = (
    Action(
        "incident.ack",
        "a",
        t("Look after it"),
        "POST",
        "/incidents/{id}/ack",
        "meshctl incident ack {id}",
        Role.OPERATOR,
        form=Form(t("Look after it"), NOTE, t("It is not escalated then.")),
        against=_unanswered,
        done=t("Incident {name} is acknowledged."),
        name="id",
    ),
    Action(
        "incident.resolve",
        "e",
        t("It is over"),
        "POST",
        "/incidents/{id}/resolve",
        "meshctl incident resolve {id}",
        Role.OPERATOR,
        form=Form(t("It is over"), NOTE, t("The same trouble would be a new incident.")),
        against=_open,
        confirm=Confirm.ASK,
        question=t("Close incident {name}? It cannot be opened again."),
        done=t("Incident {name} is resolved."),
        name="id",
    ),
)


def _order(verb: str, node: str = "") -> Any:
    def body(record: Record, values: Values) -> dict[str, Any]:
        nodes = [str(record[node])] if node else list(values.get("nodes") or ())
        return {
            "verb": verb,
            "nodes": nodes,
            **({"pool": values["pool"]} if values.get("pool") else {}),
            **({"of": values["of"]} if values.get("of") else {}),
        }

    return body


def _mode_back(was: Record, _values: Values, reply: Any) -> Call | None:
    before = (reply or {}).get("was") or was.get("mode")
    if not before:
        return None
    body = {"mode": before}
    return Call("PUT", "/failover/mode", body, cli=f"meshctl failover {before}", label=t("Mode"))


def _mode_said(reply: Any) -> str:
    where = ", ".join(reply.get("targets") or ()) or "-"
    return f"{reply.get('was')} -> {reply.get('mode')}  ({where})"


def _nodes(reply: Record) -> list[Record]:
    """Nodes by their home too: each pool names its own."""
    return [{**one, "id": f"{one['home']}/{one['node']}"} for one in reply.get("nodes", ())]


NODES: Final = Field(
    "nodes",
    t("Nodes"),
    Kind.LIST,
    option="--node",
    help=t("with commas; empty: all of them"),
    known=Known.NODES,
)
OF: Final = Field("of", t("Of pool"), option="--of", help=t("empty: ours"), known=Known.POOLS)

ORDERS: Final = (
    Action(
        "failover.mode",
        "o",
        t("Mode"),
        "PUT",
        "/failover/mode",
        "meshctl failover",
        form=lambda record: Form(
            t("How nodes move"),
            (
                Field(
                    "mode",
                    t("Mode"),
                    Kind.CHOICE,
                    default=record.get("mode") or "auto",
                    choices=("auto", "manual"),
                    required=True,
                    option="",
                ),
            ),
            t("auto: at once when their pool is dead; manual: only by order."),
        ),
        dry={"dry_run": True},
        planned=_mode_said,
        confirm=Confirm.ASK,
        undo=_mode_back,
        done=t("The mode is changed."),
        row=False,
    ),
    Action(
        "failover.to",
        "t",
        t("Send nodes"),
        "POST",
        "/failover/orders",
        "meshctl failover to",
        Role.OPERATOR,
        form=Form(
            t("Send nodes to a pool"),
            (Field("pool", t("Pool"), required=True, option="", known=Known.POOLS), NODES, OF),
            t("What would move is shown first."),
        ),
        body=_order("move"),
        dry={"dry_run": True},
        planned=planned,
        confirm=Confirm.ASK,
        row=False,
        done=t("They go there."),
    ),
    Action(
        "failover.back",
        "b",
        t("Send home"),
        "POST",
        "/failover/orders",
        "meshctl failover back",
        Role.OPERATOR,
        form=Form(t("Send nodes home"), (NODES, OF), t("What would move is shown first.")),
        body=_order("back"),
        dry={"dry_run": True},
        planned=planned,
        confirm=Confirm.ASK,
        row=False,
        done=t("They go home."),
    ),
)


EXPLAIN: Final = Action(
    "route.explain",
    "w",
    t("Why there?"),
    "POST",
    "/route/explain",
    "meshctl route explain",
    Role.VIEWER,
    form=Form(
        t("Why would a request go where it would go?"),
        (
            Field(
                "request",
                t("Request"),
                default="qg://task=chat",
                required=True,
                option="",
                help=t("a model, an alias or qg://..."),
                known=Known.REQUESTS,
            ),
            Field("app", t("App"), option="--app", help=t("empty: as an administrator"), known=Known.APPS),
            Field("input_tokens", t("Tokens"), Kind.INTEGER, minimum=0, option="--tokens"),
        ),
    ),
    result=Result.DESCRIBE,
    answer=route_view.explained,
    row=False,
)


INCIDENTS: Final = columns_of(
    failover_view.INCIDENTS,
    severity={"state": True},
    seen={"least": 100},
    opened_at={"least": 100},
    escalated_at={"least": 140},
    answered_by={"least": 120},
)

SECTION: Final = Section(
    "incidents",
    "Incidents & Migrations",
    "I",
    (
        TablePane(
            "incidents",
            t("Incidents"),
            "/incidents",
            INCIDENTS,
            (*ANSWERS, EXPLAIN),
            key="id",
            name="id",
            topic="incidents",
            one="/incidents/{id}",
            tables=failover_view.incident,
            switches=(Switch("o", t("also those that are over"), {"all": "true"}),),
            cli="meshctl incident list",
            empty=t("No incidents: nothing is wrong that this pool knows of."),
        ),
        TablePane(
            "moves",
            t("Moves"),
            "/failover/history",
            columns_of(failover_view.HISTORY, home={"least": 100}, cause={"least": 90}, by={"least": 120}),
            ORDERS,
            key="at",
            name="node",
            every=2.0,
            cli="meshctl failover history",
            empty=t("No node has moved yet. Press t to send one to another pool."),
        ),
        TablePane(
            "nodes",
            t("Nodes"),
            "/failover",
            columns_of(
                failover_view.NODES,
                role={"least": 90},
                serial={"least": 110},
                address={"least": 130},
                refused={"least": 120},
            ),
            ORDERS,
            key="id",
            name="node",
            every=2.0,
            items=_nodes,
            cli="meshctl failover status",
            empty=t("No node is connected to this gate. Next, enroll one: :sidecars or W, then a."),
        ),
        CardPane(
            "failover",
            t("Order of pools"),
            "/failover",
            lambda reply: failover_view.status({**reply, "nodes": ()}),
            (*ORDERS, EXPLAIN),
            every=5.0,
            cli="meshctl failover status",
        ),
        ORDERS_PANE,
        AUTOMATIONS_PANE,
    ),
    about=t(
        "What went wrong and who looks after it; where nodes went, by which rule, and sending them there."
    ),
    page="failover.md",
)

"""Workers: machines that run models, what they do now, and sending work away from them."""

from __future__ import annotations

from typing import Any, Final

from meshctl import worker_view
from meshctl.errors import UsageError
from meshctl.tui.declare import (
    Action,
    Call,
    Column,
    Confirm,
    Record,
    Result,
    Role,
    Section,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.fields import Field, Form, Kind, Known, Values, t
from meshctl.tui.offers import fingerprint, offer_form, offered

DRAIN: Final = "/workers/{name}/drain"
UNDRAIN: Final = "/workers/{name}/undrain"
LABELS: Final = "/workers/{name}/labels"


def _away(worker: Record) -> str:
    return "" if worker.get("connected") else t("It is not connected.")


def _foreign(worker: Record) -> str:
    return t("It is another pool's.") if "/" in str(worker["name"]) else ""


def _undrain(worker: Record, _values: Values, _reply: Any) -> Call:
    command = filled("meshctl worker undrain {name}", worker, plain=True)
    return Call("POST", filled(UNDRAIN, worker), cli=command, label=t("Drain"))


def _drain(worker: Record, _values: Values, _reply: Any) -> Call:
    command = filled("meshctl worker drain {name}", worker, plain=True)
    return Call("POST", filled(DRAIN, worker), cli=command, label=t("Undrain"))


def _order(worker: Record, values: Values) -> dict[str, Any]:
    of, _, own = str(worker["name"]).rpartition("/")
    pool = values.get("pool")
    return {"verb": "move" if pool else "back", "pool": pool, "of": of or None, "nodes": [own]}


def _home(worker: Record, values: Values, _reply: Any) -> Call | None:
    if not values.get("pool"):
        return None
    command = filled("meshctl worker move {name}", worker, plain=True)
    return Call("POST", "/failover/orders", _order(worker, {}), cli=command, label=t("Move"))


def planned(reply: Any) -> str:
    """What an order would move, and where to."""
    moving = ", ".join(reply.get("moving") or ()) or "-"
    return f"{moving} -> {reply.get('to')}"


def _amended(worker: Record, change: Record) -> Record:
    """The feed's row has the load flat; a worker has it nested."""
    load = {
        **(worker.get("load") or {}),
        "cpu": change.get("cpu"),
        "memory_available": change.get("memory_available"),
    }
    kept = ("state", "draining", "jobs_running", "jobs_queued", "slots")
    return {**worker, **{key: change[key] for key in kept if key in change}, "load": load}


def changed_labels(worker: Record, values: Values) -> dict[str, str]:
    """A worker's labels after what was typed: key=value sets one, key- takes it away."""
    labels = dict(worker.get("labels") or {})
    for change in values.get("labels") or ():
        key, equals, value = str(change).partition("=")
        if equals and key:
            labels[key] = value
        elif str(change).endswith("-") and len(str(change)) > 1:
            labels.pop(str(change)[:-1], None)
        else:
            raise UsageError(f'"{change}" is no label.', hint="write key=value, or key- to take it away")
    return labels


def _labels_back(worker: Record, values: Values, _reply: Any) -> Call:
    before, after = dict(worker.get("labels") or {}), changed_labels(worker, values)
    words = [f"{key}={value}" for key, value in before.items() if after.get(key) != value]
    words += [f"{key}-" for key in after if key not in before]
    command = " ".join(["meshctl worker label", str(worker["name"]), *words])
    return Call("PUT", filled(LABELS, worker), {"labels": before}, cli=command, label=t("Label"))


ACTIONS: Final = (
    Action(
        "worker.drain",
        "t",
        t("Drain"),
        "POST",
        DRAIN,
        "meshctl worker drain {name}",
        Role.OPERATOR,
        against=lambda worker: _away(worker) or (t("It drains already.") if worker.get("draining") else ""),
        undo=_undrain,
        done=t("{name} takes no more jobs."),
    ),
    Action(
        "worker.undrain",
        "z",
        t("Undrain"),
        "POST",
        UNDRAIN,
        "meshctl worker undrain {name}",
        Role.OPERATOR,
        against=lambda worker: _away(worker) or ("" if worker.get("draining") else t("It does not drain.")),
        undo=_drain,
        done=t("{name} takes jobs again."),
    ),
    Action(
        "worker.move",
        "v",
        t("Move"),
        "POST",
        "/failover/orders",
        "meshctl worker move {name}",
        Role.OPERATOR,
        form=Form(
            t("Move to a paired pool"),
            (Field("pool", t("Pool"), help=t("empty: home again"), option="", known=Known.POOLS),),
            t("It stays there until it is ordered back or that pool is dead."),
        ),
        body=_order,
        dry={"dry_run": True},
        planned=planned,
        confirm=Confirm.ASK,
        undo=_home,
        done=t("{name} goes there."),
    ),
    Action(
        "worker.label",
        "b",
        t("Label"),
        "PUT",
        LABELS,
        "meshctl worker label {name}",
        Role.OPERATOR,
        form=Form(
            t("Label"),
            (
                Field(
                    "labels",
                    t("Labels"),
                    Kind.LIST,
                    required=True,
                    help=t("site=lyon sets one, site- takes it away; several with commas"),
                    option="",
                ),
            ),
            t("/-l site=lyon finds those that have it."),
        ),
        body=lambda worker, values: {"labels": changed_labels(worker, values)},
        against=lambda worker: t("It is another pool's.") if "labels" not in worker else "",
        version="labels_version",
        undo=_labels_back,
        done=t("{name} is labelled."),
    ),
    Action(
        "worker.probe",
        "p",
        t("Probe"),
        "POST",
        "/workers/{name}/probe",
        "meshctl worker probe {name}",
        Role.OPERATOR,
        against=_away,
        result=Result.DESCRIBE,
        timeout_s=120.0,
    ),
    Action(
        "worker.interrogate",
        "i",
        t("Find engines"),
        "POST",
        "/workers/{name}/interrogate",
        "meshctl worker interrogate {name}",
        Role.OPERATOR,
        against=_away,
        result=Result.DESCRIBE,
        timeout_s=120.0,
    ),
    Action(
        "worker.revoke",
        "delete",
        t("Revoke"),
        "DELETE",
        "/sidecars/{name}",
        "meshctl worker revoke {name}",
        against=_foreign,
        confirm=Confirm.NAME,
        question=t("Revoke {name}? Its tunnel ends at once and its jobs go elsewhere."),
        done=t("{name} is revoked."),
    ),
    Action(
        "worker.enroll",
        "a",
        t("Enroll"),
        "POST",
        "/sidecars",
        "meshctl worker enroll",
        form=offer_form(t("Enroll a worker")),
        body=offered("daemon"),
        plan=fingerprint,
        confirm=Confirm.ASK,
        question=t("Is that the fingerprint which the worker's host showed?"),
        row=False,
        result=Result.ONCE,
    ),
)

SECTION: Final = Section(
    "workers",
    "Workers",
    "W",
    (
        TablePane(
            "workers",
            t("Workers"),
            "/workers",
            (
                *columns_of(
                    worker_view.TOP_COLUMNS,
                    load={"least": 120},
                    free={"least": 70},
                    swap={"least": 160},
                    disk_io={"least": 140},
                    net_io={"least": 120},
                    heat={"least": 100},
                    power={"least": 130},
                    vram_used={"least": 90},
                    resident={"least": 90, "most": 40},
                ),
                Column("LABELS", "labels", worker_view.labels, least=110),
            ),
            ACTIONS,
            topic="workers",
            about=("node",),
            every=5.0,
            flat=worker_view.flat,
            amend=_amended,
            one="/workers/{name}",
            tables=worker_view.worker,
            sort="name",
            cli="meshctl worker top",
            empty=t("No workers. Next, on a machine that should be one: meshctl worker offer --name NAME"),
        ),
        TablePane(
            "hardware",
            t("Hardware"),
            "/workers",
            columns_of(
                worker_view.LIST_COLUMNS,
                cpu={"least": 110, "most": 34},
                threads={"least": 100},
                bandwidth={"least": 90},
                resident={"least": 130},
                labels={"least": 140},
            ),
            ACTIONS,
            topic="workers",
            about=("node",),
            flat=worker_view.flat,
            amend=_amended,
            one="/workers/{name}",
            tables=worker_view.worker,
            sort="name",
            cli="meshctl worker list",
            empty=t("No workers. Next, on a machine that should be one: meshctl worker offer --name NAME"),
        ),
    ),
    about=t("Machines that run models: what they do now, and sending work away from them."),
    page="qdaemon.md",
)

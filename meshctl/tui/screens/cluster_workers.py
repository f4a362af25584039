"""Cluster workers: the workers of all pools in one list, what other pools offer, and calling workers over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from meshctl import cluster_view, replication_view, view
from meshctl.tui import jumping
from meshctl.tui.declare import (
    Action,
    Call,
    CardPane,
    Column,
    Confirm,
    Pane,
    Record,
    Role,
    Section,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.fields import Field, Form, Known, Values, t
from meshctl.tui.screens.workers import DRAIN, UNDRAIN, planned

if TYPE_CHECKING:
    from meshctl.tui.room import Room

ORDERS: Final = "/failover/orders"
CONNECTED: Final = frozenset({"present", "draining"})
FOREIGN: Final = t("It is another pool's: go there with ctrl+o.")


def _silent(worker: Record) -> str:
    if worker.get("missing"):
        return t("That pool does not answer.")
    return "" if worker.get("state") in CONNECTED else t("It is not connected.")


def _not_ours(worker: Record) -> str:
    return _silent(worker) or ("" if worker.get("pool") == worker.get("here") else FOREIGN)


def _ours(worker: Record) -> str:
    return _silent(worker) or (t("It is ours.") if worker.get("pool") == worker.get("here") else "")


def _drains(worker: Record) -> str:
    return _not_ours(worker) or (t("It drains already.") if worker.get("draining") else "")


def _serves(worker: Record) -> str:
    return _not_ours(worker) or ("" if worker.get("draining") else t("It does not drain."))


def _order(worker: Record, pool: str | None) -> dict[str, Any]:
    """The body of an order: to ``pool``, None for home."""
    own = worker.get("pool") == worker.get("here")
    return {
        "verb": "move" if pool else "back",
        **({"pool": pool} if pool else {}),
        **({} if own else {"of": worker["pool"]}),
        "nodes": [worker["name"]],
    }


def _here_again(worker: Record, _values: Values, _reply: Any) -> Call:
    """Home again, for one that was called over or sent away."""
    own = worker.get("pool") == worker.get("here")
    name = worker["name"] if own else f"{worker['pool']}/{worker['name']}"
    return Call("POST", ORDERS, _order(worker, None), cli=f"meshctl worker move {name}", label=t("Move"))


def _other(path: str, command: str, label: str) -> Any:
    def call(worker: Record, _values: Values, _reply: Any) -> Call:
        return Call("POST", filled(path, worker), cli=filled(command, worker, plain=True), label=label)

    return call


def _to_pool(room: Room, workers: Sequence[Record]) -> None:
    room.run_worker(jumping.go(room, f"federation {workers[0]['pool']}"), group="move")


POOL: Final = Action(
    "cluster.trust",
    "e",
    t("Its pool, and trust"),
    "GET",
    "/pools/{pool}",
    "meshctl pool show {pool}",
    Role.VIEWER,
    against=lambda row: t("It is ours.") if row.get("pool") == row.get("here") else "",
    opens=_to_pool,
    bulk=False,
    name="pool",
)
ACTIONS: Final = (
    Action(
        "cluster.call",
        "a",
        t("Call here"),
        "POST",
        ORDERS,
        "meshctl worker move {pool}/{name} {here}",
        Role.OPERATOR,
        body=lambda worker, values: _order(worker, str(worker["here"])),
        dry={"dry_run": True},
        planned=planned,
        against=_ours,
        confirm=Confirm.ASK,
        question=t("Call {name} here? It stays until it is sent home."),
        undo=_here_again,
        done=t("{name} comes here."),
    ),
    Action(
        "cluster.move",
        "v",
        t("Move"),
        "POST",
        ORDERS,
        "meshctl worker move {name}",
        Role.OPERATOR,
        form=Form(
            t("Move to a paired pool"),
            (Field("pool", t("Pool"), required=True, option="", known=Known.POOLS),),
            t("It stays there until it is ordered back or that pool is dead."),
        ),
        body=lambda worker, values: _order(worker, values.get("pool")),
        dry={"dry_run": True},
        planned=planned,
        against=_not_ours,
        confirm=Confirm.ASK,
        undo=_here_again,
        done=t("{name} goes there."),
    ),
    Action(
        "cluster.home",
        "b",
        t("Send home"),
        "POST",
        ORDERS,
        "meshctl worker move {pool}/{name}",
        Role.OPERATOR,
        body=lambda worker, values: _order(worker, None),
        dry={"dry_run": True},
        planned=planned,
        against=lambda worker: t("That pool does not answer.") if worker.get("missing") else "",
        confirm=Confirm.ASK,
        done=t("{name} goes home."),
    ),
    Action(
        "cluster.drain",
        "t",
        t("Drain"),
        "POST",
        DRAIN,
        "meshctl worker drain {name}",
        Role.OPERATOR,
        against=_drains,
        undo=_other(UNDRAIN, "meshctl worker undrain {name}", t("Drain")),
        done=t("{name} takes no more jobs."),
    ),
    Action(
        "cluster.undrain",
        "z",
        t("Undrain"),
        "POST",
        UNDRAIN,
        "meshctl worker undrain {name}",
        Role.OPERATOR,
        against=_serves,
        undo=_other(DRAIN, "meshctl worker drain {name}", t("Undrain")),
        done=t("{name} takes jobs again."),
    ),
    POOL,
)


def _placed(reply: Any) -> list[dict[str, Any]]:
    """Rows of all pools, each with the name of the pool that we are at; a silent one has only its reason."""
    return [
        {**row, "here": reply.get("own", ""), **({"name": ""} if row.get("missing") else {})}
        for row in cluster_view.with_missing(reply)
    ]


def _inside(pool: Record) -> Pane:
    """What a peer vouches for: its workers and the speeds that it measured; of our own pool, the overview."""
    if pool.get("pool") == pool.get("here"):
        return CardPane("inside", t("Workers"), "/overview", _glance, every=5.0, cli="meshctl status")
    return CardPane(
        "inside",
        t("Workers"),
        f"/attested/{quote(str(pool['pool']), safe='')}",
        replication_view.attested,
        every=5.0,
        cli=f"meshctl pool workers {pool['pool']}",
    )


def _glance(overview: Any) -> list[view.Table]:
    return [view.card(overview.get("workers") or {})]


PROBLEM: Final = Column("PROBLEM", "reason", most=60)
"""Why a pool does not answer."""

SECTION: Final = Section(
    "cluster-workers",
    "Cluster workers",
    "C",
    (
        TablePane(
            "workers",
            t("Workers"),
            "/cluster/workers",
            (
                *columns_of(
                    cluster_view.WORKER_COLUMNS,
                    cpu={"least": 76},
                    memory_available={"least": 90},
                    memory={"least": 130},
                    gpus={"least": 100, "most": 24},
                    vram_used={"least": 110},
                    vram={"least": 110},
                    models={"least": 120},
                    resident={"least": 120, "most": 30},
                    seen_at={"least": 160},
                ),
                PROBLEM,
            ),
            ACTIONS,
            key="id",
            every=3.0,
            items=_placed,
            flat=cluster_view.worker,
            cli="meshctl cluster workers",
            empty=t(
                "No pool has a worker. Next, on a machine with room for one: meshctl worker offer --name NAME"
            ),
        ),
        TablePane(
            "offload",
            t("Offload"),
            "/workers",
            columns_of(
                cluster_view.OFFER_COLUMNS,
                state={"state": True},
                model_count={"least": 90},
                resident={"least": 100, "most": 40},
                price_input={"least": 76},
                price_output={"least": 110},
                currency={"least": 110},
            ),
            (POOL,),
            key="name",
            name="pool",
            every=2.0,
            items=lambda reply: [{**row, "jobs": cluster_view.jobs(row)} for row in reply.get("pools", ())],
            cli="meshctl worker list",
            empty=t("No pool offers its workers. Both sides need trust 2 (compute): Federation, t."),
        ),
        TablePane(
            "pools",
            t("Pools"),
            "/cluster/overview",
            (
                *columns_of(
                    cluster_view.OVERVIEW_COLUMNS,
                    state={"state": True},
                    gates={"least": 90},
                    vram={"least": 90},
                    requests_s={"least": 76},
                    errors_s={"least": 110},
                    version={"least": 120},
                ),
                PROBLEM,
            ),
            (POOL,),
            key="id",
            name="pool",
            every=3.0,
            items=_placed,
            flat=cluster_view.overview,
            drill=_inside,
            cli="meshctl cluster overview",
        ),
    ),
    about=t("The workers of all pools: what they do now, what other pools offer, and calling workers over."),
    page="federation.md",
)

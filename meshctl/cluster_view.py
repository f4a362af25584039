"""All pools in one view, and the pool as a graph, as rows for a person. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshctl import view
from meshctl.pool_view import level
from meshctl.view import Column, Record, Table
from meshctl.worker_view import share


def _detail(value: Any) -> str:
    """What a node says of itself, without what is empty and what other columns say."""
    said = {name: one for name, one in (value or {}).items() if one not in (None, "", {}) and name != "this"}
    if isinstance(said.get("rtt_s"), float):
        said["rtt"] = view.milliseconds(said.pop("rtt_s"))
    return view.text(said)


NODE_COLUMNS = (
    Column("KIND", "kind"),
    Column("NAME", "label"),
    Column("STATE", "state"),
    Column("POOL", "pool"),
    Column("COUNT", "count", right=True),
    Column("DETAIL", "detail", _detail),
)

EDGE_COLUMNS = (
    Column("FROM", "from"),
    Column("TO", "to"),
    Column("KIND", "kind"),
    Column("STATE", "state"),
    Column("RATE", "rate", right=True),
)

WORKER_COLUMNS = (
    Column("POOL", "pool"),
    Column("WORKER", "name"),
    Column("STATE", "state"),
    Column("JOBS", "jobs", right=True),
    Column("CPU", "cpu", share, right=True),
    Column("FREE", "memory_available", view.size, right=True),
    Column("MEMORY", "memory", view.size, right=True),
    Column("GPUS", "gpus"),
    Column("VRAM", "vram_used", view.size, right=True),
    Column("OF", "vram", view.size, right=True),
    Column("MODELS", "models", right=True),
    Column("LOADED", "resident"),
    Column("SEEN", "seen_at", view.moment),
)

OVERVIEW_COLUMNS = (
    Column("POOL", "pool"),
    Column("STATE", "state"),
    Column("GATES", "gates", right=True),
    Column("WORKERS", "serving"),
    Column("JOBS", "jobs"),
    Column("VRAM", "vram"),
    Column("REQUESTS/S", "requests_s", right=True),
    Column("TOKENS/S", "tokens_s", right=True),
    Column("ERRORS/S", "errors_s", right=True),
    Column("INCIDENTS", "open", right=True),
    Column("VERSION", "version"),
)

SEEN_COLUMNS = (
    Column("AT", "pool"),
    Column("SEES", "name"),
    Column("KIND", "kind"),
    Column("STATE", "state"),
    Column("TRUST", "level", level),
    Column("LINK", "link"),
    Column("HEALTH", "health"),
    Column("RTT", "rtt_s", view.milliseconds, right=True),
    Column("FINGERPRINT", "fingerprint"),
)

LOG_COLUMNS = (
    Column("AT", "pool"),
    Column("OF", "of"),
    Column("STATE", "state"),
    Column("LAST", "seq", right=True),
    Column("ENTRIES", "entries", right=True),
    Column("HELD", "held", right=True),
    Column("BEHIND", "behind", right=True),
    Column("HEARD", "heard_at", view.moment),
    Column("PROBLEM", "problem"),
)

INCIDENT_COLUMNS = (
    Column("POOL", "pool"),
    Column("NUMBER", "number", right=True),
    Column("STATE", "state"),
    Column("SEVERITY", "severity"),
    Column("KIND", "kind"),
    Column("SUBJECT", "subject"),
    Column("SEEN", "seen", right=True),
    Column("OPENED", "opened_at", view.moment),
)

MISSING_COLUMNS = (
    Column("MISSING", "pool"),
    Column("WHY", "reason"),
    Column("NEXT", "next"),
)

OFFER_COLUMNS = (
    Column("POOL", "pool"),
    Column("STATE", "state"),
    Column("CONNECTED", "connected"),
    Column("WORKERS", "workers", right=True),
    Column("JOBS", "jobs", right=True),
    Column("MODELS", "model_count", right=True),
    Column("LOADED", "resident"),
    Column("PRICE IN", "price_input", right=True),
    Column("PRICE OUT", "price_output", right=True),
    Column("CURRENCY", "currency"),
)


def jobs(row: Record) -> str:
    """Running of slots, and those that wait."""
    return f"{row.get('jobs_running') or 0}/{row.get('slots') or 0}+{row.get('jobs_queued') or 0}"


def worker(row: Record) -> dict[str, Any]:
    """A worker of any pool as a line; a pool that did not answer has nothing but its reason."""
    if row.get("missing"):
        return dict(row)
    draining = row.get("draining") and row.get("state") == "present"
    return {
        **row,
        "jobs": jobs(row),
        "state": "draining" if draining else row.get("state"),
        "vram": row.get("vram") or None,
        "vram_used": row.get("vram_used") if row.get("vram") else None,
    }


def overview(row: Record) -> dict[str, Any]:
    """A pool at a glance as a line."""
    if row.get("missing"):
        return dict(row)
    workers: Mapping[str, Any] = row.get("workers") or {}
    vram = workers.get("vram") or 0
    return {
        **row,
        "serving": f"{workers.get('serving', 0)}/{workers.get('total', 0)}",
        "jobs": jobs(workers),
        "vram": f"{view.size(workers.get('vram_used') or 0)} / {view.size(vram)}" if vram else None,
        "open": (row.get("incidents") or {}).get("open"),
    }


def missing(reply: Record) -> list[Table]:
    """Pools that did not answer, and why; nothing where all did."""
    gone = reply.get("missing") or []
    return [view.table(gone, MISSING_COLUMNS)] if gone else []


def with_missing(reply: Any) -> list[dict[str, Any]]:
    """Rows of a list over all pools, those that did not answer at their end with the reason."""
    rows = [dict(row) for row in reply.get("items") or ()]
    return rows + [
        {
            "id": f"{one['pool']}/",
            "pool": one["pool"],
            "name": one.get("reason"),
            "state": "away",
            "missing": True,
            **{name: one.get(name) for name in ("code", "reason", "next")},
        }
        for one in reply.get("missing") or ()
    ]


def topology(reply: Record, *, lines: bool) -> Table:
    """`meshctl topology`: the nodes, or the lines between them."""
    return view.table(reply["edges"], EDGE_COLUMNS) if lines else view.table(reply["nodes"], NODE_COLUMNS)


def history(reply: Record) -> Table:
    """`meshctl topology --history`: how many nodes were in each state at each moment."""
    states = ("ok", "busy", "draining", "suspect", "away", "gone")
    rows = []
    for frame in reply.get("items") or ():
        counts = dict.fromkeys(states, 0)
        for node in frame["nodes"]:
            counts[node["state"]] = counts.get(node["state"], 0) + 1
        rows.append({"at": frame["at"], **counts})
    columns = [Column("AT", "at", view.moment), *(Column(one.upper(), one, right=True) for one in states)]
    return view.table(rows, columns)

"""Workers and models → rows for a person. Pure: no printing, no clock, no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshctl.view import Column, Record, Table, card, moment, size, table


def rate(value: Any) -> str:
    """Bytes a second."""
    return "-" if not value else f"{size(value)}/s"


def decimal_rate(value: Any) -> str:
    """Bytes a second in powers of ten, as memory and buses are sold."""
    return "-" if not value else f"{float(value) / 1e9:.1f} GB/s"


def speed(value: Any) -> str:
    """Tokens a second."""
    return "-" if not value else f"{float(value):.1f}"


def share(value: Any) -> str:
    """A part of one as percent."""
    return "-" if value is None else f"{float(value) * 100:.0f}%"


def load(value: Any) -> str:
    """Processes that run or want to, on average."""
    return "-" if value is None else f"{float(value):.1f}"


def short(value: Any) -> str:
    """The first digits of a hash, as NAME@SHA takes them."""
    return str(value)[:12] if value else "-"


def flat(worker: Record) -> dict[str, Any]:
    """A worker's line: its nested parts made flat."""
    hardware: Mapping[str, Any] = worker.get("hardware") or {}
    here = worker.get("connected", True)
    load: Mapping[str, Any] = (worker.get("load") or {}) if here else {}  # what it last said is not so now
    gpus = hardware.get("gpus") or []
    busy = [gpu.get("utilisation") for gpu in load.get("gpus") or []]
    used = sum(gpu.get("vram_used") or 0 for gpu in load.get("gpus") or [])
    return {
        **worker,
        "cpu": hardware.get("cpu"),
        "threads": hardware.get("threads"),
        "memory": hardware.get("memory"),
        "bandwidth": hardware.get("memory_bandwidth"),
        "gpu": ", ".join(sorted({gpu.get("name", "?") for gpu in gpus})) or None,
        "gpus": len(gpus),
        "vram": sum(gpu.get("vram") or 0 for gpu in gpus) or None,
        "vram_used": used if gpus and here else None,
        "gpu_busy": max((one for one in busy if one is not None), default=None),
        "heat": max((one.get("temperature") or 0 for one in load.get("gpus") or []), default=None),
        "power": sum(one.get("power") or 0 for one in load.get("gpus") or []) or None,
        "cpu_busy": load.get("cpu"),
        "load": load.get("load_1m"),
        "free": load.get("memory_available"),
        "swap": load.get("swap_used"),
        "disk_free": load.get("disk_free"),
        "disk_io": (load.get("disk_read") or 0) + (load.get("disk_written") or 0) if here else None,
        "net_io": (load.get("net_received") or 0) + (load.get("net_sent") or 0) if here else None,
        "jobs": f"{worker.get('jobs_running', 0)}/{worker.get('slots', 0)}+{worker.get('jobs_queued', 0)}"
        if worker.get("connected")
        else None,
    }


def labels(value: Any) -> str:
    """Labels as a command takes them: "rack=b2 site=lyon"."""
    given = value if isinstance(value, Mapping) else {}
    return " ".join(f"{key}={one}" if one else str(key) for key, one in sorted(given.items())) or "-"


LIST_COLUMNS = (
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("CPU", "cpu"),
    Column("THREADS", "threads", right=True),
    Column("MEMORY", "memory", size, right=True),
    Column("BANDWIDTH", "bandwidth", decimal_rate, right=True),
    Column("GPU", "gpu"),
    Column("VRAM", "vram", size, right=True),
    Column("MODELS", "model_count", right=True),
    Column("LOADED", "resident"),
    Column("JOBS", "jobs", right=True),
    Column("LABELS", "labels", labels),
)

TOP_COLUMNS = (
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("CPU", "cpu_busy", share, right=True),
    Column("LOAD", "load", load, right=True),
    Column("FREE", "free", size, right=True),
    Column("SWAP", "swap", size, right=True),
    Column("DISK", "disk_io", rate, right=True),
    Column("NET", "net_io", rate, right=True),
    Column("GPU", "gpu_busy", share, right=True),
    Column("VRAM", "vram_used", size, right=True),
    Column("HEAT", "heat", right=True),
    Column("WATT", "power", right=True),
    Column("JOBS", "jobs", right=True),
    Column("LOADED", "resident"),
)

MODEL_COLUMNS = (
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("ENGINE", "engine"),
    Column("FAMILY", "family"),
    Column("QUANT", "quant"),
    Column("SIZE", "size", size, right=True),
    Column("KINDS", "kinds"),
    Column("SHA-256", "sha256", short),
    Column("WORKERS", "at"),
)

PLACE_COLUMNS = (
    Column("WORKER", "worker"),
    Column("STATE", "state"),
    Column("PINNED", "pinned"),
    Column("CONTEXT", "context", right=True),
    Column("SLOTS", "slots", right=True),
    Column("NEEDS", "memory_needed", size, right=True),
    Column("USES", "memory_used", size, right=True),
    Column("TOK/S", "tps_measured", speed, right=True),
    Column("PREDICTED", "tps_predicted", speed, right=True),
    Column("RUNNING", "running", right=True),
    Column("QUEUED", "queued", right=True),
    Column("ISOLATION", "isolation"),
    Column("PROBLEM", "problem"),
)

HELD_COLUMNS = (Column("MODEL", "name"), *PLACE_COLUMNS[1:])

FIT_COLUMNS = (
    Column("", "mark"),
    Column("MODEL", "name"),
    Column("QUANT", "quant"),
    Column("STORED", "stored"),
    Column("SIZE", "size", size, right=True),
    Column("NEEDS", "memory", size, right=True),
    Column("FITS", "fits"),
    Column("ON GPU", "gpu_layers", right=True),
    Column("PREDICTED", "predicted", speed, right=True),
    Column("MEASURED", "measured", speed, right=True),
    Column("LOSS", "loss", right=True),
    Column("WHY NOT", "reason"),
)

GPU_COLUMNS = (
    Column("GPU", "index", right=True),
    Column("NAME", "name"),
    Column("VRAM", "vram", size, right=True),
    Column("BANDWIDTH", "bandwidth", decimal_rate, right=True),
    Column("PCIE", "pcie"),
    Column("BUS", "bus", decimal_rate, right=True),
    Column("DRIVER", "driver"),
    Column("CUDA", "cuda"),
    Column("PROBLEM", "problem"),
)

RUNTIME_COLUMNS = (
    Column("ENGINE", "name"),
    Column("STATE", "state"),
    Column("BUILD", "build"),
    Column("URL", "url"),
    Column("ISOLATION", "isolation"),
    Column("MODELS", "models", right=True),
    Column("PROBLEM", "problem"),
)


def workers(rows: Iterable[Record]) -> Table:
    """`meshctl worker list`."""
    return table([flat(row) for row in rows], LIST_COLUMNS)


def top(rows: Iterable[Record]) -> Table:
    """`meshctl worker top`: one line a worker, what it does now."""
    return table([flat(row) for row in rows if row.get("connected")], TOP_COLUMNS)


def worker(one: Record) -> list[Table]:
    """`meshctl worker show`: the machine, its GPUs, engines and models."""
    shown = flat(one)
    hardware: Mapping[str, Any] = one.get("hardware") or {}
    facts = {
        "name": one.get("name"),
        "state": one.get("state"),
        "address": one.get("address"),
        "version": one.get("version"),
        "seen": moment(one.get("seen_at")),
        "certificate ends": one.get("expires_at"),
        "cpu": shown["cpu"],
        "cores / threads": f"{hardware.get('cores', '-')} / {hardware.get('threads', '-')}",
        "cpu features": " ".join(hardware.get("cpu_flags") or []) or None,
        "memory": f"{size(shown['memory'])}, {size(shown['free'])} free",
        "memory bandwidth": f"{decimal_rate(shown['bandwidth'])}, "
        f"{decimal_rate(hardware.get('memory_bandwidth_one'))} by one thread",
        "measured": hardware.get("measured_at")
        and f"{moment(hardware['measured_at'])}, {share(hardware.get('measured_beside') or 0.0)} of the "
        "processors in other use",
        "swap in use": size(shown["swap"]),
        "disk free": size(shown["disk_free"]),
        "network cards": ", ".join(
            f"{nic['name']} {decimal_rate(nic.get('speed'))}" for nic in hardware.get("nics") or []
        ),
        "system": hardware.get("system"),
        "gpu problem": hardware.get("gpu_problem"),
        "jobs": shown["jobs"],
    }
    tables = [card({key: value for key, value in facts.items() if value})]
    if gpus := hardware.get("gpus"):
        cards = [
            {**gpu, "pcie": f"{gpu.get('pcie_generation') or '?'} x{gpu.get('pcie_width') or '?'}"}
            for gpu in gpus
        ]
        tables.append(table(cards, GPU_COLUMNS))
    if runtimes := one.get("runtimes"):
        tables.append(table(runtimes, RUNTIME_COLUMNS))
    if models := one.get("models"):
        tables.append(table(models, HELD_COLUMNS))
    return tables


def engines(rows: Iterable[Record]) -> Table:
    """`meshctl worker interrogate`."""
    return table(rows, RUNTIME_COLUMNS)


def models(rows: Iterable[Record]) -> Table:
    """`meshctl model list`."""
    flat = [{**row, "at": [one["worker"] for one in row.get("workers", ())]} for row in rows]
    return table(flat, MODEL_COLUMNS)


def model(row: Record) -> list[Table]:
    """`meshctl model show`: the model, and its state at each worker."""
    facts = {
        "name": row.get("name"),
        "sha256": row.get("sha256"),
        "family": row.get("family"),
        "quantization": row.get("quant"),
        "size": size(row.get("size")),
        "parameters": row.get("params"),
        "kinds": row.get("kinds"),
        "engine": row.get("engine"),
    }
    return [card(facts), table(row.get("workers", ()), PLACE_COLUMNS)]


def fits(items: Iterable[Record]) -> list[Table]:
    """`meshctl model fit`: one table a worker."""
    tables = []
    for item in items:
        if not item.get("ok"):
            continue
        result: Mapping[str, Any] = item["result"]
        rows = [{**row, "mark": "*" if row["name"] == result.get("best") else ""} for row in result["rows"]]
        title = (
            f"{item['worker']}: {result['family']}, {result['slots']} x {result['context']} tokens, "
            f"{decimal_rate(result['bandwidth'])} with {result['threads']} threads"
        )
        tables.append(table(rows, FIT_COLUMNS, title))
    return tables

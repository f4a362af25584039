"""What `meshctl worker list|show|top` make of a worker's report."""

from __future__ import annotations

import dataclasses
from typing import Any

from meshctl import worker_view
from meshctl.view import Table
from qdaemon.hardware.nvml import Gpus
from tests.qdaemon.fake_nvml import H100, PARTITIONED, FakeNvml
from tunnel_proto.messages import Hardware, Load, RuntimeState

GPUS = Gpus(FakeNvml([H100, PARTITIONED]))
HARDWARE = Hardware(
    cpu="EPYC",
    cores=8,
    threads=16,
    memory=64 << 30,
    memory_bandwidth=81.24e9,
    memory_bandwidth_one=40.1e9,
    measured_at=1_790_000_000.0,
    measured_beside=0.034,
    gpus=GPUS.facts(),
)


def worker(**changes: Any) -> dict[str, Any]:
    """A worker as the control API shows it."""
    load = Load(cpu=0.5, load_1m=1.5, memory_available=8 << 30, disk_free=1 << 40, gpus=GPUS.load())
    found: dict[str, Any] = {
        "name": "gpu1",
        "state": "present",
        "connected": True,
        "jobs_running": 2,
        "jobs_queued": 1,
        "slots": 4,
        "model_count": 3,
        "resident": ["a"],
        "hardware": dataclasses.asdict(HARDWARE),
        "load": dataclasses.asdict(load),
        "runtimes": [dataclasses.asdict(RuntimeState("llama", "llama", build="llama-cpp-python 0.3.36"))],
        "models": [],
    }
    return found | changes


def rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def facts_of(shown: dict[str, Any]) -> dict[str, str]:
    return {row[0]: row[1] for row in worker_view.worker(shown)[0].rows}


def test_a_list_has_a_line_for_each_worker() -> None:
    there, never = rows(worker_view.workers([worker(), {"name": "new", "state": "never connected"}]))
    assert there["BANDWIDTH"] == "81.2 GB/s"
    assert there["JOBS"] == "2/4+1"
    assert "NVIDIA H100 80GB HBM3" in there["GPU"]
    assert (never["NAME"], never["MEMORY"], never["JOBS"]) == ("new", "-", "-")


def test_a_worker_is_shown_with_when_it_was_measured_and_beside_what() -> None:
    facts = facts_of(worker())
    assert facts["memory bandwidth"] == "81.2 GB/s, 40.1 GB/s by one thread"
    assert facts["measured"] == "2026-09-21 14:13:20Z, 3% of the processors in other use"
    unmeasured = worker(hardware=dataclasses.asdict(dataclasses.replace(HARDWARE, measured_at=0.0)))
    assert "measured" not in facts_of(unmeasured)


def test_a_gpus_bus_is_generation_times_width() -> None:
    whole, large, small = rows(worker_view.worker(worker())[1])
    assert (whole["PCIE"], whole["BUS"], whole["BANDWIDTH"]) == ("5 x16", "63.0 GB/s", "3352.3 GB/s")
    assert [one["BUS"] for one in (large, small)] == ["63.0 GB/s"] * 2
    assert [one["VRAM"] for one in (whole, large, small)] == ["79.6 GiB", "39.8 GiB", "10.0 GiB"]


def test_top_shows_what_connected_workers_do_now() -> None:
    (one,) = rows(worker_view.top([worker(), worker(name="gone", connected=False)]))
    assert (one["CPU"], one["GPU"], one["HEAT"], one["LOAD"]) == ("50%", "37%", "41", "1.5")

"""What qdaemon counts, as Prometheus metrics and as the JSON of /status; read only when somebody asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client import Metric

    from qdaemon.inventory import Inventory
    from qdaemon.residency import Residency
    from qdaemon.uplink import Uplink

_STATES = ("idle", "connecting", "up", "lost", "draining", "closed")


class QdaemonCollector(Collector):
    """Turns the state of one daemon into metric families at each scrape. Names of models are labels."""

    def __init__(self, inventory: Inventory, uplink: Uplink) -> None:
        self._inventory = inventory
        self._uplink = uplink

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read at registration

    def collect(self) -> Iterable[Metric]:
        inventory = self._inventory
        jobs, load, hardware = inventory.jobs, inventory.load, inventory.hardware
        counts = jobs.counts
        for name, text, value in (
            ("qdaemon_jobs_running", "Jobs that run now.", jobs.running),
            ("qdaemon_jobs_queued", "Jobs that wait.", jobs.queued),
            ("qdaemon_job_slots", "Jobs that could run at once.", jobs.slots),
            ("qdaemon_draining", "1 while no jobs are taken.", jobs.draining),
            ("qdaemon_cpu_busy_ratio", "Share of the processors' time in use.", load.cpu),
            ("qdaemon_memory_available_bytes", "Memory that may be taken.", load.memory_available),
            ("qdaemon_disk_free_bytes", "Room where models are stored.", load.disk_free),
            ("qdaemon_memory_bandwidth_bytes_per_second", "As measured.", hardware.memory_bandwidth),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        yield _counter("qdaemon_jobs_done", "Jobs done, by finish reason.", "reason", counts.done)
        yield _counter("qdaemon_jobs_failed", "Jobs failed, by code.", "code", counts.failed)
        yield _counter("qdaemon_jobs_refused", "Jobs refused at admission, by code.", "code", counts.refused)
        for name, text, value in (
            ("qdaemon_jobs_cancelled", "Jobs whose sender went away.", counts.cancelled),
            ("qdaemon_prompt_tokens", "Tokens of prompts of jobs done.", counts.prompt_tokens),
            ("qdaemon_completion_tokens", "Tokens of answers of jobs done.", counts.completion_tokens),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield from self._models()
        yield from self._gpus()
        state = GaugeMetricFamily("qdaemon_gate_state", "1 for a gate's state.", labels=["gate", "state"])
        for link in self._uplink.links:
            current = link.client.state if link.client is not None else "idle"
            for one in _STATES:
                state.add_metric([link.gate.name, one], float(one == current))
        yield state

    def _models(self) -> Iterable[Metric]:
        resident = GaugeMetricFamily("qdaemon_model_resident", "1 where it is in memory.", labels=["model"])
        memory = GaugeMetricFamily("qdaemon_model_memory_bytes", "Memory it uses.", labels=["model"])
        speed = GaugeMetricFamily(
            "qdaemon_model_decode_tokens_per_second", "Averaged over its jobs.", labels=["model"]
        )
        for name, model in self._inventory.catalogue.states().items():
            resident.add_metric([name], float(model.state in {"resident", "external"}))
            memory.add_metric([name], float(model.memory_used))
            speed.add_metric([name], model.tps_measured)
        return (resident, memory, speed)

    def _gpus(self) -> Iterable[Metric]:
        used = GaugeMetricFamily("qdaemon_gpu_memory_used_bytes", "Memory in use.", labels=["gpu"])
        busy = GaugeMetricFamily("qdaemon_gpu_busy_ratio", "Share of time a kernel ran.", labels=["gpu"])
        heat = GaugeMetricFamily("qdaemon_gpu_temperature_celsius", "Of its chip.", labels=["gpu"])
        power = GaugeMetricFamily("qdaemon_gpu_power_watts", "Drawn now.", labels=["gpu"])
        for gpu in self._inventory.load.gpus:
            label = [str(gpu.index)]
            used.add_metric(label, float(gpu.vram_used))
            for family, value in ((busy, gpu.utilisation), (heat, gpu.temperature), (power, gpu.power)):
                if value is not None:
                    family.add_metric(label, value)
        return (used, busy, heat, power)


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def status(inventory: Inventory, uplink: Uplink, residency: Residency, *, started: float) -> dict[str, Any]:
    """The document of /status. ``started`` is in unix seconds."""
    return {
        "name": inventory.worker,
        "version": inventory.version,
        "started": started,
        "report": dataclasses.asdict(inventory.full()),
        "pools": [
            {
                "pool": uplink.where.name(pool),
                "home": pool == uplink.where.state.home,
                "used": pool == uplink.where.target,
                "sight": uplink.where.state.sight(pool).word,
                "cause": uplink.where.state.sight(pool).cause,
            }
            for pool in uplink.where.state.order
        ],
        "gates": [
            {
                "pool": uplink.where.name(link.pool),
                "gate": link.gate.name,
                "address": f"{link.gate.host}:{link.gate.port}",
                "state": link.client.state if link.client is not None else "idle",
                "cause": link.client.last_error if link.client is not None else "",
                "streams": len(link.client.streams) if link.client is not None else 0,
                "rtt_s": link.client.stats.rtt_s if link.client is not None else 0.0,
            }
            for link in uplink.links
        ],
        "memory": residency.status(),
        "totals": {
            "done": sum(inventory.jobs.counts.done.values()),
            "failed": sum(inventory.jobs.counts.failed.values()),
            "refused": sum(inventory.jobs.counts.refused.values()),
            "cancelled": inventory.jobs.counts.cancelled,
        },
    }

"""What a screen looks at, put together: overview, graph, all pools, and the stream of what changes.

A sample is taken each second and a frame every five, though nobody looks: that is where the past in the
pictures comes from. A frame that takes long (a pool of thousands of nodes) is taken more rarely, so that all
of it stays below `SHARE_MAX` of a core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from qgate.control import cluster, live, overview, topology
from qgate.control.live import ChangesTopic, DocumentTopic, Live, RowsTopic
from qgate.control.whereabouts import Whereabouts

if TYPE_CHECKING:
    from fastapi import APIRouter

    from qgate.capability.workers import WorkerView
    from qgate.gate import Gate

SHARE_MAX: Final = 0.002

INCIDENTS_S: Final = 2.0
INCIDENTS_SHOWN: Final = 100
POOLS_S: Final = 2.0


class Watching:
    """Made with the gate; `live` takes further topics of others."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.whereabouts = Whereabouts(gate)
        self.overview = overview.Overview(gate, self.whereabouts)
        self.topology = topology.Topology(gate, lambda: self.overview.gates, self.whereabouts.views)
        self.cluster = cluster.Cluster(gate, self.overview, self.whereabouts)
        self.live = Live()
        self._changes = ChangesTopic()
        self.live.topic("overview", DocumentTopic(self.overview.document))
        self.live.topic("topology", DocumentTopic(self._graph))
        self.live.topic("incidents", DocumentTopic(self._incidents, every_s=INCIDENTS_S))
        self.live.topic("pools", DocumentTopic(self._pools, every_s=POOLS_S))
        self.live.topic("workers", RowsTopic(self._workers, self._workers_in_sum, self.whereabouts.read))
        self.live.topic("changes", self._changes)
        gate.parts.directory.subscribe(self._changes.changed)

    def routers(self) -> tuple[APIRouter, ...]:
        """Their routes."""
        return (
            *overview.routers(self.overview),
            *topology.routers(self.topology, self._gate.administration.office.clock, self.overview.read),
            *cluster.routers(self.cluster),
            *live.routers(self.live),
        )

    async def open(self, stack: AsyncExitStack) -> None:
        """Make ready; ``stack`` ends the streams."""
        stack.callback(self.live.close)

    async def run(self) -> None:
        """Sample, draw and tell, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sample(), name="samples")
            tasks.create_task(self.live.run(), name="live")

    async def _sample(self) -> None:
        frame_at = 0.0
        while True:
            now = time.monotonic()
            self.overview.sample(now)
            if now >= frame_at:
                began = time.thread_time()
                self.topology.frame(now)
                took = time.thread_time() - began
                frame_at = now + max(topology.FRAME_S - 0.5, took / SHARE_MAX)
            await asyncio.sleep(overview.SAMPLE_S)

    # --- topics

    async def _graph(self) -> Mapping[str, Any]:
        await self.overview.read()
        shown = self.topology.graph(topology.COLLAPSE).collapsed(topology.COLLAPSE).shown()
        return {"nodes": shown["nodes"], "edges": shown["edges"]}

    async def _incidents(self) -> Mapping[str, Any]:
        found = await self._gate.movement.journal.incidents(limit=INCIDENTS_SHOWN + 1, all_=False)
        return {"items": found[:INCIDENTS_SHOWN], "more": max(0, len(found) - INCIDENTS_SHOWN)}

    async def _pools(self) -> Mapping[str, Any]:
        return {"items": await self._gate.administration.pools.list()}

    def _workers(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, view in self.whereabouts.views().items():
            yield name, worker_row(view)

    def _workers_in_sum(self) -> Mapping[str, Any]:
        return {"workers": overview.workers_in_sum(self.whereabouts.views())}


def worker_row(view: WorkerView) -> dict[str, Any]:
    """What changes about a worker."""
    return {
        "name": view.name,
        "state": view.state,
        "draining": view.draining,
        "jobs_running": view.jobs_running,
        "jobs_queued": view.jobs_queued,
        "slots": view.slots,
        "cpu": view.load.cpu,
        "memory_available": view.load.memory_available,
        "vram_used": sum(one.vram_used for one in view.load.gpus),
        "loading": {one.model: one.share for one in view.loading.values()},
    }

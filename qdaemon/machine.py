"""The machine under a worker: read, measured and checked, and put into the inventory.

Whatever reads `/proc`, NVML or the disk blocks for milliseconds (a measurement for a second or two), so it
runs in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from qdaemon.catalogue import Catalogue
from qdaemon.hardware.measurement import due
from qdaemon.hardware.probe import Probe, same_hardware
from qdaemon.inventory import Inventory
from qdaemon.models.store import ModelStore
from qdaemon.runtimes.llama import confinement
from qdaemon.self_check import Condition, checks
from qdaemon.settings import QdaemonSettings
from tunnel_proto.messages import Hardware, RuntimeState

log = structlog.get_logger()

LOOK_EVERY_S: Final = 60.0
"""How often GPUs, network cards and what may be wrong are looked at again."""


@dataclass(eq=False, slots=True)
class Machine:
    """Keeps the inventory's `load` and `hardware` true; ``changed`` hears of other hardware.

    ``offloads``: llama.cpp was built for GPUs.
    """

    settings: QdaemonSettings
    catalogue: Catalogue
    store: ModelStore
    probe: Probe
    inventory: Inventory
    offloads: bool
    changed: Callable[[Hardware], None]
    _looked_at: float = 0.0

    async def start(self) -> None:
        """Read all of it for the first time."""
        await self.read_load()
        await self.look()

    async def read_load(self) -> None:
        """Read what the machine does now."""
        self.inventory.load = await _in_thread(self.probe.load)

    async def look_if_due(self) -> None:
        """Look again where that was long ago."""
        if asyncio.get_running_loop().time() - self._looked_at > LOOK_EVERY_S:
            await self.look()

    async def look(self) -> None:
        """Read what the machine is, and what is wrong with it."""
        self._looked_at = asyncio.get_running_loop().time()
        hardware = await _in_thread(self._described, tuple(self.catalogue.runtimes.values()))
        if not same_hardware(self.inventory.hardware, hardware):
            self.inventory.hardware = hardware
            self.changed(hardware)

    def measurement_due(self, jobs: int) -> bool:
        """Whether to `measure` now; ``jobs`` are in this worker."""
        return self.settings.probe.bandwidth and due(
            self.probe.measured,
            tried=self.probe.tried,
            now=time.time(),
            busy=self.inventory.load.cpu,
            jobs=jobs,
        )

    async def measure(self) -> Hardware:
        """Measure the memory's bandwidth; the machine as it is known then."""
        problem = await _in_thread(self.probe.measure, self.settings.probe.bandwidth_mib)
        if problem:
            log.warning("memory bandwidth not measured", cause=problem)
        await self.look()
        hardware = self.inventory.hardware
        log.info(
            "measured",
            memory_bandwidth=hardware.memory_bandwidth,
            beside=round(hardware.measured_beside, 2),
            gpus=len(hardware.gpus),
        )
        return hardware

    async def measure_on_demand(self) -> Hardware:
        """The same, with GPUs looked for afresh."""
        await _in_thread(self.probe.reopen_gpus)
        return await self.measure()

    def accelerator(self) -> tuple[int, float]:
        """Free bytes of the GPUs together, and the slowest one's bandwidth; nought without an engine."""
        if not self.offloads:
            return 0, 0.0
        gpus = {gpu.index: gpu for gpu in self.inventory.hardware.gpus if not gpu.problem}
        used = {load.index: load.vram_used for load in self.inventory.load.gpus}
        free = sum(max(0, gpu.vram - used.get(index, 0)) for index, gpu in gpus.items())
        return free, min((gpu.bandwidth for gpu in gpus.values()), default=0.0)

    def close(self) -> None:
        self.probe.close()

    def _described(self, engines: Sequence[RuntimeState]) -> Hardware:
        hardware = self.probe.hardware()
        settings = self.settings
        up = [one for one in engines if one.state == "up"]
        condition = Condition(
            lock_wanted=settings.llama.lock_memory,
            lock_problem=confinement.unlockable(),
            swap=self.probe.swap(),
            core_dumps=confinement.core_dumps(),
            folder=settings.model_folder,
            folder_problem=self.store.problem(),
            disk_free=self.inventory.load.disk_free,
            disk_reserve=settings.models.disk_reserve,
            engine="".join(one.build for one in up if one.name == "llama"),
            engines_up=sum(one.name != "llama" for one in up),
            offloads=self.offloads,
        )
        return replace(hardware, checks=checks(condition, hardware))


async def _in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)

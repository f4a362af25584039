"""The machine under a worker: measured again once it is quiet, and told only when it has changed."""

from __future__ import annotations

from pathlib import Path

from qdaemon.catalogue import Catalogue
from qdaemon.hardware.bandwidth import Bandwidth
from qdaemon.hardware.measurement import Measurement
from qdaemon.hardware.probe import Probe
from qdaemon.inventory import Inventory
from qdaemon.jobs import Jobs
from qdaemon.machine import Machine
from qdaemon.models.store import ModelStore
from qdaemon.residency import Residency
from qdaemon.settings import ModelSettings, QdaemonSettings
from tunnel_proto.messages import Hardware, Load, RuntimeState


class Scripted(Probe):
    """A probe whose measurements a test chooses."""

    def __init__(self, folder: Path) -> None:
        super().__init__(threads=1, folder=folder, gpus=None)
        self.next = Measurement(Bandwidth(9.7e9, 9.7e9, 1), 1_000.0, 0.9)
        self.busy = 0.9

    def measure(self, mebibytes: int) -> str:
        assert mebibytes == 128
        self.measured = self.next
        return ""

    def load(self) -> Load:
        return Load(cpu=self.busy, disk_free=5 << 30)


def made(tmp_path: Path, heard: list[Hardware]) -> tuple[Machine, Scripted]:
    settings = QdaemonSettings(state_dir=tmp_path, models=ModelSettings(disk_reserve=1 << 30))
    catalogue, probe = Catalogue(), Scripted(tmp_path)
    catalogue.runtimes["llama"] = RuntimeState("llama", "llama", build="llama-cpp-python 0.3.36")
    store = ModelStore(settings.model_folder)
    store.open()
    residency = Residency(
        runtime=None,
        store=store,
        catalogue=catalogue,
        settings=settings,
        memory_available=probe.memory_available,
        changed=lambda: None,
    )
    jobs = Jobs(catalogue, residency, settings.jobs, lambda: None)
    inventory = Inventory(worker="w", version="1", catalogue=catalogue, jobs=jobs)
    machine = Machine(settings, catalogue, store, probe, inventory, offloads=False, changed=heard.append)
    return machine, probe


async def test_a_busy_measurement_is_mended_once_the_machine_is_quiet(tmp_path: Path) -> None:
    heard: list[Hardware] = []
    machine, probe = made(tmp_path, heard)
    await machine.start()
    assert machine.inventory.hardware.memory_bandwidth == 0
    hardware = await machine.measure()
    assert (hardware.memory_bandwidth, hardware.measured_beside) == (9.7e9, 0.9)
    assert not machine.measurement_due(0), "it is busy still"
    probe.busy = 0.02
    await machine.read_load()
    assert not machine.measurement_due(1), "a job runs"
    assert machine.measurement_due(0)
    probe.next = Measurement(Bandwidth(38e9, 38e9, 1), 2_000.0, 0.02)
    assert (await machine.measure()).memory_bandwidth == 38e9
    assert heard[-1].memory_bandwidth == 38e9


async def test_what_it_finds_wrong_is_told_when_it_changes_and_not_otherwise(tmp_path: Path) -> None:
    heard: list[Hardware] = []
    machine, _ = made(tmp_path, heard)
    await machine.start()
    assert {one.name: one.verdict for one in heard[-1].checks}["llama.cpp"] == "passed"
    count = len(heard)
    await machine.look()
    await machine.look_if_due()
    assert len(heard) == count
    machine.catalogue.runtimes["llama"] = RuntimeState("llama", "llama", state="missing")
    await machine.look()
    assert {one.name: one.verdict for one in heard[-1].checks}["llama.cpp"] == "failed"
    machine.close()

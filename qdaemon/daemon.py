"""One running qdaemon: models, engines, jobs, hardware and uplink, started, reloaded and drained as one."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry

from qdaemon.catalogue import Catalogue
from qdaemon.enrolment import node
from qdaemon.hardware.nvml import Gpus
from qdaemon.hardware.probe import Probe
from qdaemon.interrogation import Interrogation
from qdaemon.inventory import Inventory
from qdaemon.job_stream import JobStream
from qdaemon.jobs import Jobs
from qdaemon.machine import Machine
from qdaemon.metrics import QdaemonCollector, status
from qdaemon.models.gguf_facts import ModelFileError
from qdaemon.models.store import Entry, ModelStore
from qdaemon.orders import DRAINED_FILE, Orders
from qdaemon.readings import Reading
from qdaemon.residency import Residency, ResidencyError
from qdaemon.runtimes.engine import Runtime
from qdaemon.settings import QdaemonSettings
from qdaemon.uplink import Uplink
from qdaemon.uploads import Upload
from tunnel_proto.blob_messages import KIND_BLOB_READ
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import MeshError
from tunnel_proto.failover import Ready
from tunnel_proto.link import Stream
from tunnel_proto.messages import KIND_BLOB, KIND_JOB, Answer, Ask, Hardware, RuntimeState
from tunnel_proto.monitor import Monitor
from tunnel_proto.movement import KIND_ROSTER
from tunnel_proto.node import Node
from tunnel_proto.node_directory import Enrolment

log = structlog.get_logger()

CLOSE_S: Final = 2.0
TIDY_S: Final = 3600.0


class Daemon:
    """A qdaemon inside a running event loop. ``runtime`` stands in for llama.cpp in tests."""

    def __init__(
        self, settings: QdaemonSettings, enrolment: Enrolment, *, runtime: Runtime | None = None
    ) -> None:
        """Prepare; raises `ConfigError` for a mark file or an engine's key that cannot be used."""
        loop = asyncio.get_running_loop()
        self.loop = loop
        self._settings = settings
        self.node = Node(
            node(settings.state_dir),
            enrolment,
            tunnel=settings.tunnel,
            reach=settings.gate,
            act=self._act,
            on_stream=self._stream_opened,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uploads: set[Upload] = set()
        self._readings: set[Reading] = set()
        self.fault: asyncio.Future[BaseException] = loop.create_future()
        probe = Probe(
            threads=settings.llama.threads,
            folder=settings.model_folder,
            gpus=Gpus() if settings.probe.gpus else None,
        )
        self.catalogue = Catalogue()
        self.store = ModelStore(settings.model_folder, disk_reserve=settings.models.disk_reserve)
        self.residency = Residency(
            runtime=None,
            store=self.store,
            catalogue=self.catalogue,
            settings=settings,
            memory_available=probe.memory_available,
            changed=self._changed,
        )
        self.jobs = Jobs(self.catalogue, self.residency, settings.jobs, self._changed)
        self.jobs.draining = (settings.state_dir / DRAINED_FILE).exists()
        self.residency.ready = self.jobs.pump
        self._make_runtime(runtime)
        self.inventory = Inventory(
            worker=self.node.bundle.name, version=program_version(), catalogue=self.catalogue, jobs=self.jobs
        )
        self.machine = Machine(
            settings=settings,
            catalogue=self.catalogue,
            store=self.store,
            probe=probe,
            inventory=self.inventory,
            offloads=engine_offloads(),
            changed=self._hardware_changed,
        )
        self.residency.accelerator = self.machine.accelerator
        self.uplink = Uplink(
            connect=self.node.connect,
            inventory=self.inventory,
            on_ask=self._asked,
            loop=loop,
            where=self.node.where,
            on_watch=lambda: self.node.retune(self.uplink.clients()),
        )
        self.residency.announce = self.uplink.progress
        self.interrogation = Interrogation(
            settings.discovery, settings.engines, self.catalogue, self._changed
        )
        self.interrogation.configure()
        self.orders = Orders(
            store=self.store,
            catalogue=self.catalogue,
            residency=self.residency,
            jobs=self.jobs,
            settings=settings,
            refresh=self.refresh,
            probe=self.machine.measure_on_demand,
            interrogate=self.interrogation.look,
        )
        registry = CollectorRegistry()
        registry.register(QdaemonCollector(self.inventory, self.uplink))
        started = time.time()
        self.monitor = Monitor(
            registry,
            self._problems,
            status=lambda: status(self.inventory, self.uplink, self.residency, started=started),
        )

    async def start(self) -> None:
        """Open the store, read this machine and begin to connect; raises `MeshError` where a port is taken.

        Waits for no gate, and for no measurement.
        """
        metrics = self._settings.metrics
        if metrics.enabled:
            await self.monitor.start(metrics.host, metrics.port)
        await self._in_thread(self.store.open)
        await self._take_entries()
        await self.machine.start()
        self._keep(self.residency.run())
        self._keep(self._beat())
        self._keep(self._tidy())
        self._keep(self._begin())
        self.uplink.open(self.node.bundle.chain, self.node.bundle.roster)
        self.node.start()
        log.info(
            "started",
            worker=self.node.bundle.name,
            models=len(self.catalogue.models),
            metrics_port=self.monitor.port or None,
        )

    async def reload(self, settings: QdaemonSettings) -> None:
        """Apply what can change at run time: bundle, drain time, reserves, waits; and read the store again.

        All is read before anything is changed; raises `ConfigError` and goes on as before otherwise.
        """
        self.node.reload()
        before = self._settings
        self._settings = replace(
            before,
            drain_s=settings.drain_s,
            models=replace(
                before.models,
                disk_reserve=settings.models.disk_reserve,
                memory_reserve=settings.models.memory_reserve,
                ttl_s=settings.models.ttl_s,
                patience_s=settings.models.patience_s,
            ),
            jobs=replace(
                before.jobs,
                queue=settings.jobs.queue,
                queue_app=settings.jobs.queue_app,
                wait_s=settings.jobs.wait_s,
            ),
        )
        self.store.disk_reserve = settings.models.disk_reserve
        self.residency.settings = self.orders.settings = self.machine.settings = self._settings
        self.jobs.settings = self._settings.jobs
        bundle = self.node.bundle
        self.uplink.configure(bundle.gates, bundle.chain)
        await self.refresh()
        log.info("reloaded", gates=[gate.name for gate in bundle.gates])

    async def refresh(self) -> None:
        """Take the store as it is now."""
        await self._take_entries()
        await self._read_facts()

    async def drain(self) -> None:
        """Take no more jobs, hand back those that wait, let those that run finish for ``drain_s``."""
        await self.jobs.drain(self._settings.drain_s)

    async def close(self) -> None:
        """End what is left, at once; safe after `drain` and without it."""
        await self.jobs.close()
        for reading in list(self._readings):
            reading.task.cancel()
        for upload in list(self._uploads):
            upload.task.cancel()
        await self.uplink.close(CLOSE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.residency.close()
        await self.interrogation.close()
        await self.monitor.close()
        self.machine.close()
        self.node.close()

    # --- models

    async def _take_entries(self) -> None:
        came, gone = self.catalogue.set_stored(await self._in_thread(self.store.entries))
        for model in gone:
            if model.child is not None:
                self._keep(model.child.unload(0.0, force=True))
        for model in came:
            model.facts = await self._in_thread(self.store.facts.cached, model.sha256)
        for model in self.catalogue.stored():
            self.residency.describe(model)
        self._changed()

    async def _read_facts(self) -> None:
        """Read what is not known yet, one file at a time: each may take seconds of a core."""
        for model in self.catalogue.stored():
            if model.facts is None and not model.problem:
                try:
                    model.facts = await self.store.facts.of(self.store.path(model.sha256), model.sha256)
                except ModelFileError as error:
                    model.state, model.problem, model.problem_code = "failed", error.message, error.code
                    log.error("model cannot be used", model=model.names[0], cause=error.message)
                else:
                    self.residency.describe(model)
                self._changed()

    async def _arrived(self, entry: Entry) -> dict[str, Any]:
        """A file has come in whole: understand it, or throw it out again."""
        try:
            await self.store.facts.of(self.store.path(entry.sha256), entry.sha256)
        except ModelFileError:
            await self._in_thread(self.store.remove, entry)
            raise
        await self.refresh()
        model = self.catalogue.models[entry.sha256]
        facts = model.facts
        self.uplink.tell()
        return {
            "name": entry.name,
            "sha256": entry.sha256,
            "size": entry.size,
            "family": facts.family if facts else "",
            "quant": facts.quant if facts else "",
            "memory_needed": model.memory_needed,
            "context": model.context,
        }

    async def _begin(self) -> None:
        """What a start does while it already serves: measure, read files, look around, preload."""
        if self._settings.probe.bandwidth:
            await self.machine.measure()
        await self._read_facts()
        self._keep(self.interrogation.run())
        for name in self._settings.models.preload:
            model = self.catalogue.find(name)
            if model is None or model.engine != "llama":
                log.warning("model to preload is not stored", model=name)
                continue
            try:
                await self.residency.load(model)
            except ResidencyError as error:
                log.error("model not preloaded", model=name, cause=error.message)

    def _make_runtime(self, runtime: Runtime | None) -> None:
        problem = ""
        if runtime is None:
            from qdaemon.runtimes.llama.runtime import LlamaRuntime, available

            if available():
                runtime = LlamaRuntime(
                    settings=self._settings.llama, on_child_exit=self.residency.child_exited
                )
            else:
                problem = "llama-cpp-python is not installed on this worker"
        self.residency.runtime = runtime
        self.residency.engine_problem = problem
        self.catalogue.runtimes["llama"] = RuntimeState(
            name="llama",
            engine="llama",
            build=engine_version(),
            state="up" if runtime is not None else "missing",
            problem=problem,
            isolation="wiped",
        )

    # --- the machine

    def _hardware_changed(self, hardware: Hardware) -> None:
        self.residency.hardware = hardware
        for model in self.catalogue.stored():
            self.residency.describe(model)
        self._changed()

    async def _beat(self) -> None:
        """Read the load and report, at the rate of the settings."""
        while True:
            await self.machine.read_load()
            if self.machine.measurement_due(len(self.jobs.live)):
                self._keep(self.machine.measure())
            await self.machine.look_if_due()
            self.uplink.beat()
            await asyncio.sleep(self._settings.probe.report_s)

    async def _tidy(self) -> None:
        """Let go of files whose rest has not come for long."""
        while True:
            if gone := await self._in_thread(self.store.purge, time.time()):
                log.info("unfinished uploads removed", files=gone)
            await asyncio.sleep(TIDY_S)

    # --- gates

    def _act(self, ready: Ready) -> None:
        self.uplink.act(ready)

    def _stream_opened(self, pool: bytes, stream: Stream) -> None:
        if stream.kind == KIND_ROSTER:
            self.node.where.accept(pool, stream)
        elif stream.kind == KIND_JOB:
            stream.receiver = JobStream(stream, self.jobs)
        elif stream.kind == KIND_BLOB:
            upload = Upload(stream, self.store, self._arrived, lambda: self._uploads)
            self._uploads.add(upload)
            upload.task.add_done_callback(lambda _task: self._uploads.discard(upload))
            stream.receiver = upload
        elif stream.kind == KIND_BLOB_READ and pool == self.node.bundle.pool_key:
            # A pool that the worker is lent to has no business with its files.
            reading = Reading(stream, self.store)
            self._readings.add(reading)
            reading.task.add_done_callback(lambda _task: self._readings.discard(reading))
            stream.receiver = reading
        else:
            stream.reset(StreamCode.REFUSED, f"a worker takes no streams of kind {stream.kind[:32]}")

    def _asked(self, ask: Ask, reply: Callable[[Answer], None]) -> None:
        async def carry_out() -> None:
            answer = await self.orders.answer(ask)
            self.uplink.tell()
            reply(answer)

        self._keep(carry_out())

    def _changed(self) -> None:
        self.uplink.changed()

    def _problems(self) -> dict[str, str]:
        if self.jobs.draining:
            return {"qdaemon": "draining"}
        if not self.uplink.up():
            causes = [client.last_error for client in self.uplink.clients() if client.last_error]
            return {"gate": causes[0] if causes else "no gate is reachable yet"}
        return {}

    # --- tasks

    def _keep(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if isinstance(error, MeshError):
            log.error("a task ended early", cause=error.message)
        elif not self.fault.done():
            self.fault.set_result(error)

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await self.loop.run_in_executor(None, call, *arguments)


def check_config(path: Path, settings: QdaemonSettings) -> list[str]:
    """Read all that a start would read, connect nowhere, and describe it in lines. Raises `ConfigError`."""
    enrolment = node(settings.state_dir).load(now=time.time())
    catalogue = Catalogue()
    Interrogation(settings.discovery, settings.engines, catalogue, lambda: None).configure()
    store = ModelStore(settings.model_folder)
    entries: list[Entry] = store.entries() if settings.model_folder.exists() else []
    bundle = enrolment.bundle
    gates = ", ".join(f"{gate.name} at {gate.host}:{gate.port}" for gate in bundle.gates)
    return [
        f"{path}: good",
        f"node {bundle.name}, fingerprint {enrolment.identity.fingerprint}",
        f"gates: {gates}",
        f"models: {', '.join(sorted({entry.name for entry in entries})) or 'none yet'}",
    ]


def program_version() -> str:
    """This program's version."""
    try:
        return version("qgate-mesh")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "from source"


def engine_offloads() -> bool:
    """Whether the installed llama.cpp was built with a GPU backend; looked up, never imported here."""
    found = importlib.util.find_spec("llama_cpp")
    places = found.submodule_search_locations if found is not None else None
    backends = ("cuda", "hip", "vulkan", "sycl", "metal")
    return any(any(Path(place).glob(f"lib/libggml-{name}*")) for place in places or () for name in backends)


def engine_version() -> str:
    """The installed llama-cpp-python's version, empty where there is none."""
    try:
        return f"llama-cpp-python {version('llama-cpp-python')}"
    except PackageNotFoundError:
        return ""

"""What is in memory: loads wanted models one after another, making room by the plans of `models.swap`.

One load at a time, so that two never count the same free memory. A model that waits for a busy one longer
than the patience of the settings holds it: what runs there ends, nothing new begins, and then it leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from qdaemon.catalogue import Catalogue, Model
from qdaemon.models import estimate, fit, swap
from qdaemon.models.store import ModelFile, ModelStore
from qdaemon.runtimes.engine import Child, Runtime
from qdaemon.settings import QdaemonSettings
from tunnel_proto.errors import MeshError
from tunnel_proto.messages import Hardware, LoadProgress

log = structlog.get_logger()

RETRY_S: Final = 10.0
"""How long a failed load is not tried again; jobs that ask meanwhile are refused with its reason."""

UNLOAD_DRAIN_S: Final = 5.0

TOUCHED_S: Final = 2.0
"""A file whose time of change is so much later than its arrival was written to, and is hashed again."""

LOAD_RATE: Final = 0.5e9
LOAD_START_S: Final = 1.5
"""Bytes/s at which a first load is expected, after its process has started; later ones are expected to take
as long as the last."""

VRAM_SHARE: Final = 0.92
"""Part of the free GPU memory that is planned with: drivers and fragments take the rest."""


class ResidencyError(MeshError):
    """A model cannot come into memory; ``code`` is for machines."""

    def __init__(self, code: str, message: str, *, hint: str = "", retriable: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retriable = retriable


@dataclass(eq=False, slots=True)
class _Want:
    model: Model
    since: float
    done: asyncio.Future[Child] | None = None  # set for a process of its own


@dataclass(eq=False, slots=True)
class Residency:
    """The loaded models of one daemon. ``run`` must be kept running.

    ``memory_available`` returns bytes; ``changed`` is called after every change that gates should hear of;
    ``ready`` when a model has come in and its jobs may begin.
    """

    runtime: Runtime | None
    store: ModelStore
    catalogue: Catalogue
    settings: QdaemonSettings
    memory_available: Callable[[], int]
    changed: Callable[[], None]
    ready: Callable[[Model], None] = lambda _model: None
    announce: Callable[[LoadProgress], None] = lambda _progress: None
    accelerator: Callable[[], tuple[int, float]] = lambda: (0, 0.0)  # free bytes and bytes/s of GPUs in use
    hardware: Hardware | None = None
    engine_problem: str = ""
    accuracy: dict[str, float] = field(default_factory=dict)  # by SHA-256: how far the estimate was off
    _wants: dict[str, _Want] = field(default_factory=dict)
    _alone: dict[str, tuple[Model, Child]] = field(default_factory=dict)
    _leaving: set[object] = field(default_factory=set)
    _waiters: list[asyncio.Future[None]] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _serial: int = 0

    # --- what others ask

    def want(self, model: Model) -> None:
        """Bring a model in; its jobs hear of progress and failure. Does nothing where it is in already."""
        if model.child is None and model.key not in self._wants:
            self._wants[model.key] = _Want(model, asyncio.get_running_loop().time())
        self._wake.set()

    def unwant(self, model: Model) -> None:
        """Nobody waits for it any more: a load that has not begun does not begin."""
        if model.state != "loading":
            self._wants.pop(model.key, None)
        self._wake.set()

    def idle(self) -> None:
        """A job has ended: look again."""
        self._wake.set()

    async def load(self, model: Model) -> None:
        """Bring a model in and wait for it. Raises `ResidencyError`."""
        model.failed_at = 0.0
        self.want(model)
        while model.key in self._wants:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if model.child is None:
            raise ResidencyError(
                model.problem_code or "load_failed", model.problem or "it was unloaded meanwhile"
            )

    async def unload(self, model: Model, *, drain_s: float = UNLOAD_DRAIN_S) -> None:
        """Take a model out of memory once what runs there has ended.

        Raises `ResidencyError` "busy" where something still runs after ``drain_s``: it goes on then, and the
        model stays.
        """
        self._wants.pop(model.key, None)
        child = model.child
        if child is not None:
            model.held = True
            self._leaving.add(child)
            try:
                gone = await child.unload(drain_s)
            finally:
                self._leaving.discard(child)
                model.held = False
            if not gone:
                self._after()
                raise ResidencyError(
                    "busy",
                    f"{model.names[0]} still runs {model.running} requests after {drain_s:g} s",
                    hint="ask again later; a request is never ended for an unload",
                )
            model.child = None
            log.info("model unloaded", model=model.names[0], sha256=model.sha256[:12])
        if model.state in {"resident", "loading", "failed"}:
            model.state = "stored"
            model.problem = model.problem_code = ""
        model.memory_used = 0
        self._after()

    async def alone(self, model: Model) -> Child:
        """A process of its own for one request. Raises `ResidencyError`. Give it back with `leave`."""
        self._serial += 1
        key = f"{model.key}#{self._serial}"
        done: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._wants[key] = _Want(model, asyncio.get_running_loop().time(), done)
        self._wake.set()
        try:
            child = await done
        finally:
            self._wants.pop(key, None)
        return child

    async def leave(self, child: Child) -> None:
        """End a process that `alone` gave."""
        for key, (_, one) in list(self._alone.items()):
            if one is child:
                del self._alone[key]
        self._leaving.add(child)
        try:
            await child.unload(0.0, force=True)
        finally:
            self._leaving.discard(child)
        self._after()

    def child_exited(self, child: object) -> None:
        """A child is gone by itself: its jobs have been told, its model is stored again."""
        if child in self._leaving:
            return
        for model in self.catalogue.stored():
            if model.child is child:
                model.child = None
                model.state = "stored"
                model.memory_used = 0
                log.error("a model's process ended", model=model.names[0], sha256=model.sha256[:12])
                if len(model.queue):
                    self.want(model)
        self._after()

    # --- what is known beforehand

    def describe(self, model: Model) -> None:
        """Fill in what can be said of a stored model before it is loaded."""
        facts = model.facts
        if facts is None:
            return
        llama = self.settings.llama
        model.context = min(llama.context, facts.context_train or llama.context)
        model.slots = llama.slots
        model.isolation = model.isolation or "wiped"
        model.memory_needed = self._estimate(model, model.slots).total
        model.ttl_s = self._ttl(model)
        model.load_s = model.load_s or LOAD_START_S + facts.weights / LOAD_RATE
        if (machine := self.machine()) is not None:
            layers = self._gpu_layers(model, model.slots, machine)
            model.predicted = fit.predict(
                facts, machine, gpu_share=layers / facts.layers if facts.layers else 0.0
            )

    def machine(self, *, empty: bool = False) -> fit.Machine | None:
        """What bounds decoding here, None before the hardware is known; ``empty``: with no model loaded."""
        hardware = self.hardware
        if hardware is None:
            return None
        threads = self.settings.llama.threads
        one, every = hardware.memory_bandwidth_one, hardware.memory_bandwidth
        held = sum(model.memory_used for model in self.catalogue.stored()) if empty else 0
        vram, vram_bandwidth = self.accelerator()
        machine = fit.Machine(
            ram_bandwidth=one if threads == 1 else min(every, one * threads),
            threads=threads,
            memory=max(0, self.memory_available() + held - self.settings.models.memory_reserve),
            vram=int(vram * VRAM_SHARE),
            vram_bandwidth=vram_bandwidth,
        )
        pairs = [
            (model.measured, fit.predict(model.facts, machine))
            for model in self.catalogue.stored()
            if model.facts is not None
        ]
        return replace(machine, calibration=fit.calibration(pairs))

    def residents(self) -> list[swap.Resident]:
        """What is in memory, as the plans see it."""
        found = [
            swap.Resident(
                key=model.key,
                memory=model.memory_used or model.memory_needed,
                last_used=model.last_used,
                running=model.running,
                waiting=len(model.queue),
                pinned=model.stays,
                ttl_s=self._ttl(model),
                groups=model.groups,
            )
            for model in self.catalogue.stored()
            if model.child is not None
        ]
        return found + [
            swap.Resident(key=key, memory=child.memory_used or model.memory_needed, last_used=0.0, running=1)
            for key, (model, child) in self._alone.items()
        ]

    # --- the one who loads

    async def run(self) -> None:
        """Load and unload; end only by cancellation."""
        while True:
            self._wake.clear()
            await self._expire()
            for key, want in list(self._wants.items()):
                if key in self._wants:
                    await self._serve(key, want)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()

    async def close(self) -> None:
        """Unload everything, at once."""
        for want in self._wants.values():
            if want.done is not None and not want.done.done():
                want.done.set_exception(ResidencyError("draining", "the daemon stops"))
        self._wants.clear()
        children = [child for _, child in self._alone.values()]
        children += [model.child for model in self.catalogue.stored() if model.child is not None]
        self._alone.clear()
        for model in self.catalogue.stored():
            model.child = None
        self._leaving.update(children)
        await asyncio.gather(*(child.unload(0.0, force=True) for child in children), return_exceptions=True)
        if self.runtime is not None:
            await self.runtime.close()

    def _pause(self) -> float | None:
        now = asyncio.get_running_loop().time()
        times = [want.since + self.settings.models.patience_s for want in self._wants.values()]
        times = [at for at in times if at > now]
        if (expiry := swap.next_expiry(self.residents())) is not None:
            times.append(expiry)
        if self._wants:
            times.append(now + 1.0)  # memory that other programs give back tells nobody
        return max(0.01, min(times) - now) if times else None

    async def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        for key in swap.expired(self.residents(), now):
            if (model := self.catalogue.models.get(key)) is not None:
                with contextlib.suppress(ResidencyError):  # it was used at the last moment
                    await self.unload(model)

    async def _serve(self, key: str, want: _Want) -> None:
        model = want.model
        if want.done is None and model.child is not None:
            self._wants.pop(key, None)
            self._tell()
            return
        if want.done is not None and want.done.done():
            self._wants.pop(key, None)
            return
        try:
            if not await self._room(want):
                return
            child = await self._bring(want)
        except MeshError as error:
            self._wants.pop(key, None)
            self._failed(want, error)
            return
        if self._wants.pop(key, None) is None:  # unloaded, or given up, while it came
            await child.unload(0.0, force=True)
            if model.child is None and model.state == "loading":
                model.state = "stored"
        elif want.done is None:
            self._came(model, child)
        elif want.done.done():
            await child.unload(0.0, force=True)
        else:
            self._alone[key] = (model, child)
            want.done.set_result(child)
        self._tell()
        self.changed()

    async def _room(self, want: _Want) -> bool:
        """Make room; False where something busy must end first. Raises `ResidencyError`."""
        model = want.model
        if self.runtime is None:
            raise ResidencyError(
                "engine_missing",
                self.engine_problem or "this worker has no llama.cpp",
                hint="pip install 'qgate-mesh[llama]' there, and restart qdaemon",
            )
        if model.facts is None:
            raise ResidencyError(
                model.problem_code or "not_ready",
                model.problem or "this worker has not read the file yet",
                hint="" if model.problem else "ask again in a moment",
            )
        slots = 1 if want.done is not None else model.slots
        layers = self._gpu_layers(model, slots, self.machine())
        need = fit.host_memory(model.facts, self._estimate(model, slots), layers)
        residents = self.residents()
        plan = swap.plan(
            residents,
            need=need,
            available=self.memory_available() - self.settings.models.memory_reserve,
            places=self.settings.models.resident_max + self.settings.jobs.dedicated,
            groups=model.groups,
        )
        if plan.refused:
            free = max(0, self.memory_available() - self.settings.models.memory_reserve)
            raise ResidencyError(
                "out_of_memory",
                f"{model.names[0]} needs {need >> 20} MiB, {free >> 20} MiB may be taken: {plan.refused}",
                hint="meshctl model fit FAMILY shows what fits; or unpin a model, or shorten llama.context",
            )
        if plan.wait:
            if asyncio.get_running_loop().time() - want.since >= self.settings.models.patience_s:
                for key in plan.wait:
                    if (busy := self.catalogue.models.get(key)) is not None:
                        busy.held = True
            return False
        for key in plan.evict:
            if (idle := self.catalogue.models.get(key)) is not None:
                log.info("model evicted", model=idle.names[0], for_model=model.names[0])
                try:
                    await self.unload(idle)
                except ResidencyError:
                    return False
                if len(idle.queue):
                    self.want(idle)
        return True

    async def _bring(self, want: _Want) -> Child:
        """Load. Raises `MeshError`."""
        model, loop = want.model, asyncio.get_running_loop()
        assert self.runtime is not None
        assert model.facts is not None
        await loop.run_in_executor(None, self._check_file, model)
        file = ModelFile(
            model.names[0], self.store.path(model.sha256), model.sha256, model.entries[0].size, model.facts
        )
        shared = want.done is None
        if shared:
            model.state, model.progress, model.problem = "loading", 0.0, ""
            model.load_began = loop.time()
            self.changed()
            self.tell_progress(model)

        def progressed(share: float) -> None:
            if shared and share > model.progress:
                model.progress = min(1.0, share)
                self.tell_progress(model)
                self.changed()

        began = loop.time()
        child = await self.runtime.load(
            file,
            context=model.context,
            slots=model.slots if shared else 1,
            threads=self.settings.llama.threads,
            gpu_layers=self._gpu_layers(model, model.slots if shared else 1, self.machine()),
            isolation="shared" if shared else "dedicated",
            on_progress=progressed,
        )
        model.load_s = loop.time() - began
        model.build = child.build[:256]
        return child

    def _came(self, model: Model, child: Child) -> None:
        loop = asyncio.get_running_loop()
        model.child, model.state, model.progress = child, "resident", 1.0
        model.memory_used = child.memory_used
        model.isolation = child.isolation or "wiped"
        model.last_used = loop.time()
        model.held = False
        error = estimate.error(model.memory_needed, child.memory_used)
        self.accuracy[model.sha256] = error
        log.info(
            "model loaded",
            model=model.names[0],
            sha256=model.sha256[:12],
            seconds=round(model.load_s, 3),
            memory=child.memory_used,
            estimated=model.memory_needed,
            off=f"{error:+.0%}",
        )
        self.ready(model)

    def _check_file(self, model: Model) -> None:
        """Compare size and time with those at its arrival; hash it again where they raise doubt."""
        entry = model.entries[0]
        path = self.store.path(model.sha256)
        try:
            state = path.stat()
        except OSError:
            state = None
        if state is None or state.st_size != entry.size or state.st_mtime > entry.added_at + TOUCHED_S:
            self.store.verify(entry)

    def tell_progress(self, model: Model) -> None:
        """Let the jobs that wait for a model know how far it is."""
        eta = self.eta(model)
        for name in model.names:
            self.announce(LoadProgress(name, model.state, model.progress, eta))
        for job in list(model.queue):
            job.told_progress(model.state, model.progress, eta)

    def eta(self, model: Model) -> float | None:
        """Seconds until a model is in memory, as far as can be said."""
        if model.state != "loading":
            return model.load_s or None
        passed = asyncio.get_running_loop().time() - model.load_began
        if model.progress > 0.05:
            return round(passed / model.progress - passed, 3)
        return round(max(0.5 * passed, model.load_s - passed), 3)

    def _failed(self, want: _Want, error: MeshError) -> None:
        code = str(getattr(error, "code", "load_failed"))
        retriable = bool(getattr(error, "retriable", True))
        log.error("model not loaded", model=want.model.names[0], code=code, cause=error.message)
        if want.done is not None:
            if not want.done.done():
                want.done.set_exception(ResidencyError(code, error.message, hint=error.hint))
        else:
            model = want.model
            model.state, model.problem, model.problem_code = "failed", error.message, code
            model.failed_at = asyncio.get_running_loop().time()
            waiting = list(model.queue)
            while model.queue.pop() is not None:
                pass
            for job in waiting:
                job.told_failed(code, error.message, retriable=retriable)
        self._tell()
        self.changed()

    def _estimate(self, model: Model, slots: int) -> estimate.Estimate:
        assert model.facts is not None
        batch = self.settings.llama.prefill_chunk
        return estimate.estimate(model.facts, context=model.context, slots=slots, batch=batch)

    def _gpu_layers(self, model: Model, slots: int, machine: fit.Machine | None) -> int:
        """How many layers go to the GPU: what the settings say, or as many as fit what is free there."""
        fixed = self.settings.models.gpu_layers
        if machine is None or model.facts is None or machine.vram <= 0:
            return 0
        if fixed >= 0:
            return min(fixed, model.facts.layers)
        return fit.layers_on_gpu(model.facts, machine, context=model.context, slots=slots)

    def _ttl(self, model: Model) -> float:
        own = [entry.ttl_s for entry in model.entries if entry.ttl_s is not None]
        return own[0] if own else self.settings.models.ttl_s

    def _after(self) -> None:
        self._wake.set()
        self._tell()
        self.changed()

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def status(self) -> dict[str, Any]:
        """For the status page: what is in memory and who waits."""
        return {
            "resident": [
                {"model": model.names[0], "memory": model.memory_used, "running": model.running}
                for model in self.catalogue.stored()
                if model.child is not None
            ],
            "wanted": [want.model.names[0] for want in self._wants.values()],
            "dedicated": len(self._alone),
            "estimate_error": {key[:12]: round(value, 3) for key, value in self.accuracy.items()},
        }

"""Jobs from the gates: admitted or refused at once, queued fairly, run where their model is.

The daemon's word is final: a gate plans with what it was told a second ago, this queue knows now. A job
waits in its model's queue until a sequence of that model is free; whose turn it is among apps decides
`turns`. What a job carries is held in memory only, and no line of a log ever names more than its number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from qdaemon.catalogue import Catalogue, Model
from qdaemon.job import Channel, Counts, Job, RefusedError, cost_of
from qdaemon.residency import RETRY_S, Residency
from qdaemon.runtimes.engine import Child
from qdaemon.settings import JobSettings
from qdaemon.turns import Turns
from tunnel_proto.errors import MeshError
from tunnel_proto.messages import (
    JobAccepted,
    JobRefused,
    JobStart,
)

log = structlog.get_logger()

FULL_RETRY_S: Final = 1.0


@dataclass(eq=False, slots=True)
class Jobs:
    """All jobs of one daemon. ``changed`` is called when what gates are told has changed."""

    catalogue: Catalogue
    residency: Residency
    settings: JobSettings
    changed: Callable[[], None]
    counts: Counts = field(default_factory=Counts)
    draining: bool = False
    live: set[Job] = field(default_factory=set)
    _alone: Turns[Job] = field(default_factory=Turns)
    _alone_running: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> int:
        return sum(job.state == "running" for job in self.live)

    @property
    def queued(self) -> int:
        return sum(job.state != "running" for job in self.live)

    @property
    def slots(self) -> int:
        """Jobs that could run at once with what is in memory now."""
        return sum(model.slots for model in self.catalogue.models.values() if model.child or model.place)

    def admit(self, start: JobStart, app: str, share: int, channel: Channel) -> Job | None:
        """Take a job, or refuse it; either is told to ``channel``. None where it was refused."""
        try:
            model = self._check(start, app)
        except RefusedError as refusal:
            self.counts.refused[refusal.code] += 1
            channel.send(
                JobRefused(start.job, refusal.code, refusal.message, refusal.retry_after_s, hint=refusal.hint)
            )
            channel.end()
            return None
        job = Job(self, start, app, share, channel, model)
        self.live.add(job)
        alone = start.isolation == "dedicated" and model.engine == "llama"
        queue: Turns[Any] = self._alone if alone else model.queue
        full = model.running >= model.slots and not alone
        channel.send(JobAccepted(start.job, max(len(queue), int(full)), model.state))
        queue.push(app, job, cost=cost_of(start), share=share)
        job.wait(queue, self.settings.wait_s)
        if alone:
            self._pump_alone()
        else:
            self.pump(model)
            if job.state == "waiting" and model.engine == "llama" and model.child is None:
                self.residency.want(model)
                job.told_progress(model.state, model.progress, self.residency.eta(model))
        self.changed()
        return job

    def pump(self, model: Model) -> None:
        """Begin what may begin now."""
        while len(model.queue) and not model.held and model.running < model.slots:
            if model.place is None and (model.child is None or not model.child.alive):
                break
            job = model.queue.pop()
            assert isinstance(job, Job)
            model.running += 1
            job.begin(model.child)
        if len(model.queue) and model.engine == "llama" and model.child is None:
            self.residency.want(model)

    def _pump_alone(self) -> None:
        while len(self._alone) and self._alone_running < self.settings.dedicated:
            job = self._alone.pop()
            assert job is not None
            self._alone_running += 1
            task = asyncio.get_running_loop().create_task(self._run_alone(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_alone(self, job: Job) -> None:
        """Give one job a process of its own, from its load to its end."""
        child: Child | None = None
        job.told_progress("loading", 0.0, job.model.load_s or None)
        loading = asyncio.get_running_loop().create_task(self.residency.alone(job.model))
        try:
            over = asyncio.get_running_loop().create_task(job.over.wait())
            await asyncio.wait({loading, over}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if not loading.done():
                return
            child = loading.result()
            if job.state != "over":
                job.model.running += 1
                job.begin(child)
                await job.over.wait()
        except MeshError as error:
            job.told_failed(str(getattr(error, "code", "load_failed")), error.message, retriable=True)
        finally:
            if not loading.done():
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            if child is not None:
                await self.residency.leave(child)
            self._alone_running -= 1
            self._pump_alone()

    def forget(self, job: Job) -> None:
        """A job is over: let the next one begin."""
        self.live.discard(job)
        if not self.live:
            self._empty.set()
        model = job.model
        if job.began:
            model.running -= 1
            model.last_used = asyncio.get_running_loop().time()
        self.pump(model)
        if not len(model.queue):
            self.residency.unwant(model)
        self.residency.idle()
        self.changed()

    def hand_back(self) -> None:
        """Take no more jobs, and give those that wait back to their gates; what runs goes on."""
        self.draining = True
        for job in list(self.live):
            if job.state == "waiting":
                job.fail("draining", "this worker is being drained", retriable=True, blame="node")
        self.changed()

    def undrain(self) -> None:
        """Take jobs again."""
        self.draining = False
        self.changed()

    async def drain(self, timeout_s: float) -> None:
        """Take no more, hand back what waits, and let what runs finish for ``timeout_s``."""
        self.hand_back()
        self._empty.clear()
        if self.live:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            except TimeoutError:
                log.warning("jobs handed back unfinished", jobs=len(self.live))
        for job in list(self.live):
            job.fail("draining", "this worker is being drained", retriable=True, blame="node")

    async def close(self) -> None:
        """End everything."""
        for job in list(self.live):
            job.fail("draining", "this worker stops", retriable=True, blame="node")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- admission

    def _check(self, start: JobStart, app: str) -> Model:
        """The job's model; raises `RefusedError`."""
        if self.draining:
            raise RefusedError("draining", "this worker is being drained")
        model = self.catalogue.find(start.model)
        if model is None:
            raise RefusedError(
                "model_not_found",
                f"this worker has no model {start.model[:80]}",
                hint="meshctl model list",
            )
        kinds = model.described.kinds if model.described else model.facts.kinds if model.facts else ()
        if start.kind not in kinds:
            raise RefusedError(
                "unsupported",
                f"{model.names[0]} does not do {start.kind}: it does {', '.join(kinds) or 'nothing'}",
            )
        if start.isolation == "dedicated":
            if model.engine == "llama" and not self.settings.dedicated:
                raise RefusedError("isolation_unavailable", "this worker starts no dedicated processes")
            if model.engine != "llama" and model.isolation != "dedicated":
                raise RefusedError(
                    "isolation_unavailable",
                    f"{model.runtime} does not keep requests in processes of their own",
                )
        if model.state == "failed" and asyncio.get_running_loop().time() - model.failed_at < RETRY_S:
            raise RefusedError(model.problem_code or "load_failed", model.problem, retry_after_s=RETRY_S)
        waiting = sum(job.state != "running" for job in self.live)
        busy = model.running >= model.slots or not (model.child or model.place)
        if busy and waiting >= self.settings.queue:
            raise RefusedError("queue_full", f"{waiting} jobs wait here already", retry_after_s=FULL_RETRY_S)
        mine = model.queue.waiting(app) + self._alone.waiting(app)
        if busy and mine >= self.settings.queue_app:
            raise RefusedError(
                "queue_full", f"{mine} jobs of this app wait here already", retry_after_s=FULL_RETRY_S
            )
        return model

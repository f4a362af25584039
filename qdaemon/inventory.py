"""What gates are told of this worker: everything at first, then what has changed, and a sign of life."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from qdaemon.catalogue import Catalogue
from qdaemon.jobs import Jobs
from tunnel_proto.messages import Hardware, Load, ModelState, Report, RuntimeState


@dataclass(eq=False, slots=True)
class Told:
    """What one gate has been told, over one stream."""

    seq: int = 0
    models: dict[str, ModelState] = field(default_factory=dict)
    hardware: Hardware | None = None
    runtimes: tuple[RuntimeState, ...] | None = None
    numbers: tuple[object, ...] = ()
    load: Load | None = None


@dataclass(eq=False, slots=True)
class Inventory:
    """The worker as it is now; `load` and `hardware` are put in by whoever reads them."""

    worker: str
    version: str
    catalogue: Catalogue
    jobs: Jobs
    load: Load = field(default_factory=Load)
    hardware: Hardware = field(default_factory=Hardware)
    clock: Callable[[], float] = time.time

    def report(self, told: Told, *, leaving: bool = False) -> Report:
        """The next report for a gate; ``told`` is brought up to date.

        ``leaving``: the worker serves another pool by now, and takes no more jobs from this gate.
        """
        states = self.catalogue.states()
        full = told.seq == 0
        runtimes = tuple(self.catalogue.runtimes.values())
        changed = tuple(state for name, state in states.items() if told.models.get(name) != state)
        gone = tuple(name for name in told.models if name not in states)
        report = Report(
            worker=self.worker,
            seq=told.seq,
            full=full,
            load=self.load,
            hardware=self.hardware if told.hardware != self.hardware else None,
            models=changed,
            gone=gone,
            runtimes=runtimes if told.runtimes != runtimes else None,
            draining=self.jobs.draining or leaving,
            jobs_running=self.jobs.running,
            jobs_queued=self.jobs.queued,
            slots=self.jobs.slots,
            version=self.version,
            at=self.clock(),
        )
        told.seq += 1
        told.models, told.hardware, told.runtimes = states, self.hardware, runtimes
        told.numbers = self._numbers()
        return report

    def news(self, told: Told) -> bool:
        """Whether a gate should hear at once, and not at the next sign of life."""
        return (
            told.seq == 0
            or told.numbers != self._numbers()
            or told.hardware != self.hardware
            or told.runtimes != tuple(self.catalogue.runtimes.values())
            or told.models != self.catalogue.states()
        )

    def full(self) -> Report:
        """All of it, for the status page."""
        return replace(self.report(Told()), full=True)

    def _numbers(self) -> tuple[object, ...]:
        return (self.jobs.draining, self.jobs.running, self.jobs.queued, self.jobs.slots)

"""A gate before it is one: its health port answers already, and the log says what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from qgate.metrics import Figures, registry_of
from qgate.settings import GateSettings
from tunnel_proto.monitor import Monitor

if TYPE_CHECKING:
    from qgate.gate import Gate

SAY_EVERY_S = 5.0
"""How often the log repeats what a start waits for."""

log = structlog.get_logger(__name__)


class Starting:
    """What a start is at; it serves the health port until there is a gate to ask."""

    def __init__(
        self, settings: GateSettings, *, version: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._version = version
        self._clock = clock
        self._waits = "being opened"
        self._began = clock()
        self._said_at: float | None = None
        self._monitor: Monitor | None = None

    async def listen(self, stack: AsyncExitStack) -> None:
        """Open the health port, where there is to be one; ``stack`` closes it. ListenError, ConfigError."""
        metrics = self._settings.metrics
        if metrics.enabled:
            self._monitor = Monitor(registry_of(self._figures), self.problems)
            await self._monitor.start(metrics.host, metrics.port)
            stack.push_async_callback(self._monitor.close)

    def store_waits(self, reason: str) -> None:
        """The store did not answer for ``reason`` and is tried again."""
        self._waits = reason
        now = self._clock()
        if self._said_at is None or now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            log.warning(
                "waiting for the store",
                reason=reason,
                waited_s=round(now - self._began, 1),
                patience_s=self._settings.store.patience_s,
            )

    def hand_over(self, gate: Gate) -> int:
        """From now on the port tells of ``gate``; returns the port, 0 without one."""
        if self._monitor is None:
            return 0
        self._monitor.registry = registry_of(gate.figures)
        self._monitor.problems = gate.problems
        self._monitor.status = gate.status
        return self._monitor.port

    def problems(self) -> Mapping[str, str]:
        """What keeps it from being ready, by part."""
        return {"gate": "starting", "store": self._waits}

    def _figures(self) -> Figures:
        return Figures(version=self._version, name=self._settings.name)

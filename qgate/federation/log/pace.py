"""How fast a log may be fetched: a bucket of bytes that refills with time. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

BURST: Final = 1024 * 1024
"""Bytes that may come at once: live changes never wait, a backfill does."""


@dataclass(frozen=True, slots=True)
class Pace:
    """``rate`` in bytes/s (0: no bound), ``level`` bytes free at monotonic time ``at``; it may be in debt."""

    rate: float
    level: float = float(BURST)
    at: float = 0.0

    def at_rate(self, rate: float, now: float) -> Pace:
        """The same bucket under another bound; what came while there was none is no debt."""
        return Pace(rate, self._level(now) if self.rate else float(BURST), now)

    def spent(self, size: int, now: float) -> Pace:
        """After ``size`` bytes came at ``now``."""
        return replace(self, level=self._level(now) - size, at=now)

    def wait(self, now: float) -> float:
        """Seconds until the next question may be asked."""
        if not self.rate:
            return 0.0
        return max(0.0, -self._level(now) / self.rate)

    def _level(self, now: float) -> float:
        return min(float(BURST), self.level + (now - self.at) * self.rate)

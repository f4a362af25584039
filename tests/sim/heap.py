"""Simulated time: one heap of events, one source of randomness."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

Act = Callable[[], None]


class Heap:
    """Events in the order of their times. ``now`` is in seconds since the history began."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.steps = 0
        self._events: list[tuple[float, int, Act]] = []
        self._number = 0

    def at(self, when: float, act: Act) -> None:
        """Let ``act`` happen at ``when``, or now where that has passed."""
        self._number += 1
        heapq.heappush(self._events, (max(when, self.now), self._number, act))

    def after(self, delay: float, act: Act) -> None:
        """Let ``act`` happen in ``delay`` seconds."""
        self.at(self.now + delay, act)

    def every(self, period: float, act: Act) -> None:
        """Let ``act`` happen again and again, a tenth of the period sooner or later each time."""

        def again() -> None:
            act()
            self.after(period * self.random.uniform(0.9, 1.1), again)

        self.after(period * self.random.random(), again)

    def run(self, until: float) -> None:
        """Let everything happen that is due by ``until``."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            self.steps += 1
            act()
        self.now = until

"""Fair shares: who goes next when more is asked for than may run at once.

Start-time fair queueing (Goyal, Vin, Cheng 1996): each request carries a virtual start time, the later of the
clock's and the finish of its app's request before it; the lowest goes next, and the clock is what went last.
A request costs 1 / share, so an app of share 2 goes twice as often as one of share 1 while both wait, and one
that was idle owes nothing and has saved nothing. Each app's queue is bounded, so that one app cannot make the
others wait behind its thousands, and a request whose time is over leaves the queue by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class QueueFullError(Exception):
    """The app has as many requests waiting as it may."""


@dataclass(slots=True)
class _Line(Generic[T]):
    waiting: deque[tuple[T, float, float | None]] = field(default_factory=deque)  # item, start, leaves at
    finish: float = 0.0
    running: int = 0


class FairShares(Generic[T]):
    """At most `parallel` at once over all apps, and `queue` waiting for each."""

    def __init__(self, *, parallel: int, queue: int) -> None:
        self.parallel = parallel
        self.queue = queue
        self.running = 0
        self.waiting = 0
        """How many wait, over all apps."""
        self._clock = 0.0
        self._lines: dict[str, _Line[T]] = {}

    def enter(self, item: T, app: str, share: float, leaves_at: float | None = None) -> bool:
        """True: go now. False: it waits until `leave` returns it, or `expired` does. QueueFullError."""
        line = self._lines.get(app)
        if line is None:
            line = self._lines[app] = _Line()
        start = max(self._clock, line.finish)
        if self.running < self.parallel and not self.waiting:
            line.finish = start + 1.0 / max(share, 1e-3)
            self._go(line, start)
            return True
        if len(line.waiting) >= self.queue:
            raise QueueFullError
        line.finish = start + 1.0 / max(share, 1e-3)
        line.waiting.append((item, start, leaves_at))
        self.waiting += 1
        return False

    def leave(self, app: str) -> list[T]:
        """One of the app's is done; returns those that go now."""
        line = self._lines.get(app)
        if line is not None and line.running:
            line.running -= 1
            self.running -= 1
            self._forget(app, line)
        return self.admit()

    def admit(self) -> list[T]:
        """Those that go now, as after `parallel` has grown."""
        admitted: list[T] = []
        while self.waiting and self.running < self.parallel:
            waiting = [line for line in self._lines.values() if line.waiting]
            line = min(waiting, key=lambda one: one.waiting[0][1])
            item, start, _ = line.waiting.popleft()
            self.waiting -= 1
            self._go(line, start)
            admitted.append(item)
        return admitted

    def withdraw(self, item: T, app: str) -> bool:
        """Take back one that waits; False where it does not."""
        line = self._lines.get(app)
        for entry in line.waiting if line is not None else ():
            if entry[0] == item and line is not None:
                line.waiting.remove(entry)
                self.waiting -= 1
                self._forget(app, line)
                return True
        return False

    def expired(self, now: float) -> list[T]:
        """Those whose time is over; they no longer wait."""
        gone: list[T] = []
        for app, line in list(self._lines.items()):
            late = [entry for entry in line.waiting if entry[2] is not None and now >= entry[2]]
            for entry in late:
                line.waiting.remove(entry)
                self.waiting -= 1
                gone.append(entry[0])
            if late:
                self._forget(app, line)
        return gone

    def _go(self, line: _Line[T], start: float) -> None:
        self._clock = max(self._clock, start)
        line.running += 1
        self.running += 1

    def _forget(self, app: str, line: _Line[T]) -> None:
        if not line.running and not line.waiting and line.finish <= self._clock:
            del self._lines[app]
        elif not self.running and not self.waiting:
            self._lines.clear()  # nobody runs or waits: nothing is owed
            self._clock = 0.0

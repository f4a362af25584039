"""Whose job is next: deficit round robin between apps (Shreedhar and Varghese, SIGCOMM 1995). Pure.

An app's share decides how much work it gets while others wait too; an app alone gets all there is, and one
that sends a thousand jobs makes only its own jobs wait. Work is counted in tokens, as far as a job says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

QUANTUM: Final = 512.0
"""Tokens that one turn gives to an app with a share of 1: about one short answer."""

SHARE_MAX: Final = 1000


@dataclass(slots=True)
class _Line(Generic[T]):
    share: float
    jobs: deque[tuple[float, T]] = field(default_factory=deque)
    deficit: float = 0.0


class Turns(Generic[T]):
    """Jobs that wait, by app."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}  # in turn: the first is served
        self._fresh = True  # the first app's turn has not been credited yet
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        """Every waiting job, in no promised order."""
        for line in self._lines.values():
            for _, job in line.jobs:
                yield job

    def waiting(self, app: str) -> int:
        """How many jobs of an app wait."""
        line = self._lines.get(app)
        return len(line.jobs) if line else 0

    def push(self, app: str, job: T, *, cost: float, share: int = 1) -> None:
        """Put a job at the end of its app's line; ``cost`` in tokens."""
        line = self._lines.get(app)
        if line is None:
            line = self._lines[app] = _Line(1.0)
        line.share = float(min(SHARE_MAX, max(1, share)))
        line.jobs.append((max(1.0, cost), job))
        self._count += 1

    def pop(self) -> T | None:
        """The job whose turn it is."""
        while self._lines:
            app = next(iter(self._lines))
            line = self._lines[app]
            if self._fresh:
                line.deficit += QUANTUM * line.share
                self._fresh = False
            cost, job = line.jobs[0]
            if cost <= line.deficit or len(self._lines) == 1:
                line.deficit = max(0.0, line.deficit - cost)
                line.jobs.popleft()
                self._count -= 1
                if not line.jobs:
                    self._leave(app)
                return job
            self._lines[app] = self._lines.pop(app)
            self._fresh = True
        return None

    def remove(self, app: str, job: T) -> bool:
        """Take a job out of its line; False where it is not in it."""
        line = self._lines.get(app)
        if line is None:
            return False
        for position, (_, one) in enumerate(line.jobs):
            if one is job:
                del line.jobs[position]
                self._count -= 1
                if not line.jobs:
                    self._leave(app)
                return True
        return False

    def _leave(self, app: str) -> None:
        """An app without jobs keeps no credit: saved-up turns would let it flood the others later."""
        if next(iter(self._lines)) == app:
            self._fresh = True
        del self._lines[app]

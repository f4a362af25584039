"""What lies between sites: delay, loss, duplicates, and cuts that may be one-way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.heap import Heap


@dataclass(slots=True)
class Line:
    """One direction between two sites; times in seconds, the rest are probabilities."""

    least_s: float = 0.002
    spread_s: float = 0.03
    loss: float = 0.0
    twice: float = 0.0


class Network:
    """Every pair of sites is joined by two lines."""

    def __init__(self, heap: Heap) -> None:
        self.cut: set[tuple[str, str]] = set()
        self.lines: dict[tuple[str, str], Line] = {}
        self._heap = heap

    def reaches(self, source: str, to: str) -> bool:
        """Whether anything arrives."""
        return source == to or (source, to) not in self.cut

    def both(self, one: str, other: str) -> bool:
        """Whether a question gets an answer."""
        return self.reaches(one, other) and self.reaches(other, one)

    def line(self, source: str, to: str) -> Line:
        """The line in one direction, to be read or changed."""
        return self.lines.setdefault((source, to), Line())

    def send(self, source: str, to: str, deliver: Callable[[], None]) -> None:
        """Carry one message, or not, or twice; what is under way when a line is cut is lost."""
        line, chance = self.line(source, to), self._heap.random
        for _ in range(2 if chance.random() < line.twice else 1):
            if chance.random() < line.loss:
                continue
            self._heap.after(
                line.least_s + line.spread_s * chance.random(),
                lambda: deliver() if self.reaches(source, to) else None,
            )

    def heal(self) -> None:
        """Every line as it was made."""
        self.cut.clear()
        self.lines.clear()

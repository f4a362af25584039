"""Which job goes to which worker next. Pure: the pool tells what happens and does what it is told.

A worker does its jobs in order, so the first that it holds is the one it works on: only that one can have
crashed it or be too slow. It is given few at a time, measured in characters, so that a short text never waits
behind much; long texts leave at least one worker to the short ones, where there are two.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from qgate.capability.nlp.jobs import Job

HELD_MAX: Final = 16
"""Jobs that a worker has before it answers; enough that it never waits for the gate."""
HELD_SIZE: Final = 64 * 1024
"""Characters of them."""
LONG: Final = 128 * 1024
"""Characters from which a text is long."""
CRASHES_MAX: Final = 2


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way. ``deadline`` is when the caller stops waiting, on the pool's clock."""

    number: int
    job: Job
    caller: Any
    size: int
    crashes: int = 0
    alone: bool = False  # it was there at a crash: it goes out with no neighbour
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """What one worker holds: its tickets in order, and since when it works on the first."""

    number: int
    held: deque[Ticket] = field(default_factory=deque)
    size: int = 0
    since: float = 0.0

    @property
    def long(self) -> bool:
        """Whether it is busy with a long text."""
        return any(ticket.size >= LONG for ticket in self.held)


class Queue:
    """Tickets that wait, and the workers that are up."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._short: deque[Ticket] = deque()
        self._long: deque[Ticket] = deque()
        self.places: dict[int, Place] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return len(self) >= self._waiting_max

    def add(self, job: Job, caller: Any) -> Ticket:
        """Take a job at the end of its line."""
        ticket = Ticket(self._next, job, caller, max(1, job.size))
        self._next += 1
        (self._long if ticket.size >= LONG else self._short).append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a ticket; where a worker has it already, its answer is dropped."""
        ticket.cancelled = True
        line = self._long if ticket.size >= LONG else self._short
        if ticket in line:
            line.remove(ticket)

    def up(self, number: int) -> None:
        """A worker is ready."""
        self.places[number] = Place(number)

    def assign(self, now: float) -> list[tuple[int, list[Ticket]]]:
        """What to send, by worker, for as much as the workers may hold."""
        sent: dict[int, list[Ticket]] = {}
        while True:
            placed = self._assign_one(now)
            if placed is None:
                return list(sent.items())
            place, ticket = placed
            sent.setdefault(place.number, []).append(ticket)

    def answered(self, worker: int, number: int, now: float) -> Ticket | None:
        """A worker finished its first ticket; None where the number is not that one's."""
        place = self.places.get(worker)
        if place is None or not place.held or place.held[0].number != number:
            return None
        ticket = place.held.popleft()
        place.size -= ticket.size
        place.since = now
        return ticket

    def overdue(self, now: float, limit_s: float) -> list[int]:
        """Workers whose first ticket takes longer than the limit."""
        return [place.number for place in self.places.values() if place.held and now - place.since > limit_s]

    def next_due(self, limit_s: float) -> float | None:
        """When the next worker may be overdue."""
        return min((place.since + limit_s for place in self.places.values() if place.held), default=None)

    def down(self, worker: int, *, blame: bool) -> list[Ticket]:
        """A worker is gone. Its tickets wait again, at the front; returns those that are given up.

        ``blame``: the one it worked on is given up at once (it was too slow), else at its second crash.
        """
        place = self.places.pop(worker, None)
        if place is None or not place.held:
            return []
        given_up: list[Ticket] = []
        first = place.held[0]
        first.crashes += 1
        first.alone = True
        if blame or first.crashes >= CRASHES_MAX:
            given_up.append(place.held.popleft())
        for ticket in reversed(place.held):
            if not ticket.cancelled:
                (self._long if ticket.size >= LONG else self._short).appendleft(ticket)
        return [ticket for ticket in given_up if not ticket.cancelled]

    def drain(self) -> list[Ticket]:
        """Every ticket that waits or is held, taken out."""
        left = [*self._short, *self._long]
        for place in self.places.values():
            left += place.held
            place.held.clear()
        self._short.clear()
        self._long.clear()
        return [ticket for ticket in left if not ticket.cancelled]

    def _assign_one(self, now: float) -> tuple[Place, Ticket] | None:
        for line in (self._short, self._long):
            if not line:
                continue
            place = self._room_for(line[0])
            if place is not None:
                ticket = line.popleft()
                if not place.held:
                    place.since = now
                place.held.append(ticket)
                place.size += ticket.size
                return place, ticket
        return None

    def _room_for(self, ticket: Ticket) -> Place | None:
        best: Place | None = None
        for place in self.places.values():
            if place.held and (ticket.alone or place.held[0].alone):
                continue
            if place.held and (len(place.held) >= HELD_MAX or place.size + ticket.size > HELD_SIZE):
                continue
            if best is None or place.size < best.size:
                best = place
        if best is not None and ticket.size >= LONG and len(self.places) > 1:
            busy = sum(place.long for place in self.places.values())
            if busy >= len(self.places) - 1:
                return None
        return best

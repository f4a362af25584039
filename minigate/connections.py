"""What minigate knows of its app connections as a whole: who is there, who is late, and the counters.

Thousands of connections share one timer for each kind of deadline, and none has a task of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from minigate.relay import AppSide

LINGER_S = 5.0
"""How long an app may take to read its last message and close, before the connection is cut."""

SPARE_CONNECTIONS = 64
"""Connections beyond the cap that may still start up: to cancel, or to be told that there are too many."""


class Expiring(Protocol):
    """Something with a deadline."""

    def expired(self) -> None:
        """The deadline passed; it has been forgotten already."""


class Deadlines:
    """Deadlines that all lie ``period_s`` after `add`: the first one added is the first to expire."""

    __slots__ = ("_due", "_loop", "_timer", "period_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, period_s: float) -> None:
        self._loop = loop
        self._due: dict[Expiring, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.period_s = period_s

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, item: object) -> bool:
        return item in self._due

    def add(self, item: Expiring) -> None:
        """Start the clock for ``item``; one that is here keeps its deadline."""
        self._due.setdefault(item, self._loop.time() + self.period_s)
        if self._timer is None:
            self._timer = self._loop.call_later(self.period_s, self._expire)

    def remove(self, item: Expiring) -> None:
        """Forget ``item``; nothing happens when it is not here."""
        self._due.pop(item, None)

    def __iter__(self) -> Iterator[Expiring]:
        """Go through a copy, the first to expire first."""
        return iter(list(self._due))

    def close(self) -> None:
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        late: list[Expiring] = []
        for item, due in self._due.items():
            if due > now:
                self._timer = self._loop.call_later(due - now, self._expire)
                break
            late.append(item)
        for item in late:
            if self._due.pop(item, None) is not None:
                item.expired()


@dataclass(slots=True)
class Counts:
    """Counters since the start; the labels are those of the metrics."""

    accepted: Counter[str] = field(default_factory=Counter)  # by listener: "tcp", "unix"
    recognised: Counter[str] = field(default_factory=Counter)  # by protocol
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    errors: Counter[str] = field(default_factory=Counter)  # by SQLSTATE that an app was sent
    aborted: int = 0  # cut in the middle of a message, where no error could be said
    cancels: int = 0
    link_losses: int = 0  # of streams: one broken link counts once for each
    opened: int = 0  # streams


class Connections:
    """All app connections of one minigate."""

    __slots__ = ("cancelling", "counts", "lingering", "live", "max_connections", "starting", "waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        max_connections: int,
        startup_timeout_s: float,
        patience_s: float,
    ) -> None:
        self.max_connections = max_connections
        self.starting = Deadlines(loop, startup_timeout_s)  # have not said yet what they want
        self.waiting = Deadlines(loop, patience_s)  # want a session while no gate is reachable
        self.lingering = Deadlines(loop, LINGER_S)
        self.cancelling = Deadlines(loop, LINGER_S)
        self.live: set[AppSide] = set()
        self.counts = Counts()

    @property
    def full(self) -> bool:
        """No further session may begin."""
        return len(self.live) + len(self.waiting) >= self.max_connections

    @property
    def crowded(self) -> bool:
        """Not even a start-up may begin."""
        open_now = len(self.live) + len(self.waiting) + len(self.starting) + len(self.cancelling)
        return open_now >= self.max_connections + SPARE_CONNECTIONS

    def close(self) -> None:
        """Stop the timers."""
        for deadlines in (self.starting, self.waiting, self.lingering, self.cancelling):
            deadlines.close()

"""A time limit that moves: one timer for a whole call, however often what is waited for changes."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Final, Self

_NEVER: Final = float("inf")


class Deadline:
    """Cancels what is inside ``async with`` when its time is over, and raises `TimeoutError` in its place.

    There are two bounds: one for everything, and a nearer one that is set again for each part, here for the
    first. ``what`` tells which was passed. Where `asyncio.timeout` makes a timer for every bound, this looks
    at the bound when its only timer is due, so that one which moves with each piece that arrives costs
    nothing. ``least_s`` is the least that a later part is given: the timer looks as soon as that, so that it
    need not be made anew. Times are seconds.
    """

    __slots__ = (
        "_cancelling",
        "_least",
        "_over",
        "_part",
        "_part_what",
        "_task",
        "_timer",
        "_total",
        "_what",
        "expired",
    )

    def __init__(
        self, total_s: float, what: str, part_s: float, part_what: str, *, least_s: float = _NEVER
    ) -> None:
        self.expired = False
        self._total = total_s
        self._what = what
        self._part = part_s
        self._part_what = part_what
        self._least = least_s
        self._over = False
        self._task: asyncio.Task[Any]
        self._timer: asyncio.TimerHandle

    @property
    def what(self) -> str:
        """What did not happen in time."""
        return self._part_what if self._part < self._total else self._what

    def within(self, seconds: float, what: str) -> None:
        """The next part has so long from now on."""
        loop = asyncio.get_running_loop()
        self._part = loop.time() + seconds
        self._part_what = what
        if self._part < self._timer.when():
            self._timer.cancel()
            self._timer = loop.call_at(self._part, self._due)

    def unhurried(self) -> None:
        """Only the bound for everything counts: somebody else is being waited for."""
        self._part = _NEVER

    async def __aenter__(self) -> Self:
        """Begin: both bounds count from here."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        now = loop.time()
        self._total += now
        self._part += now
        self._timer = loop.call_at(min(self._part, self._total, now + self._least), self._due)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End. Raises `TimeoutError` where the time was over, unless the task was cancelled besides."""
        self._over = True
        self._timer.cancel()
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _due(self) -> None:
        loop = asyncio.get_running_loop()
        bound = min(self._part, self._total)
        if loop.time() < bound:
            self._timer = loop.call_at(bound, self._due)
        elif not self._over:
            self.expired = True
            self._task.cancel()

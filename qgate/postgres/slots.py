"""Counted places with a bounded, fair queue: connections of an app, sessions and server connections of a
database.
"""

from __future__ import annotations

import asyncio
from collections import deque

from tunnel_proto.pgwire import PostgresError


class Slots:
    """At most ``limit`` places at a time (None: no bound); whoever waits is served in order of arrival.

    ``what`` names the place in the error, ``queue`` bounds how many may wait.
    """

    def __init__(self, what: str, limit: int | None, *, queue: int) -> None:
        self._what = what
        self._limit = limit
        self._queue = queue
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.taken = 0

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiters)

    @property
    def unused(self) -> bool:
        """Nobody holds a place or waits for one."""
        return not self.taken and not self._waiters

    def resize(self, limit: int | None, *, queue: int) -> None:
        """Apply changed limits; those who hold a place keep it."""
        self._limit = limit
        self._queue = queue
        self._admit()

    @property
    def full(self) -> bool:
        """No place is free."""
        return self._limit is not None and self.taken >= self._limit

    @property
    def over(self) -> bool:
        """More places are taken than there are: someone was nudged in."""
        return self._limit is not None and self.taken > self._limit

    def nudge(self) -> None:
        """Let the first in the queue in beyond the limit: it must free another place at once."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.taken += 1
                waiter.set_result(None)
                return

    async def take(self, timeout: float) -> None:
        """Take a place, waiting at most ``timeout`` seconds; PostgresError 53300 when the wait or queue
        ends.
        """
        if not self.full and not self._waiters:
            self.taken += 1
            return
        if len(self._waiters) >= self._queue or timeout <= 0:
            raise PostgresError(
                f"too many connections for {self._what}",
                sqlstate="53300",
                detail=f"All {self._limit} are taken and the queue of {self._queue} is full.",
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            if self._got(waiter):
                return
            raise PostgresError(
                f"too many connections for {self._what}",
                sqlstate="53300",
                detail=f"All {self._limit} were taken for {timeout:g} s.",
            ) from None
        except BaseException:
            if self._got(waiter):
                self.give()
            raise

    def _got(self, waiter: asyncio.Future[None]) -> bool:
        """Whether the place was handed over at the very moment the wait ended."""
        if waiter.done() and not waiter.cancelled():
            return True
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        return False

    def give(self) -> None:
        """Give a place back."""
        self.taken -= 1
        assert self.taken >= 0
        self._admit()

    def _admit(self) -> None:
        while self._waiters and not self.full:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.taken += 1
                waiter.set_result(None)

"""Connections to upstream databases between sessions: leased to one session at a time, reused with care.

A connection is leased again only to the same app with identical start-up parameters, only after it was idle
outside a transaction and DISCARD ALL succeeded, and never after a cancel was sent for it: a late cancel
must not hit the next lease. Everything else is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from qgate.governance.directory import Route
from qgate.postgres.slots import Slots
from qgate.postgres.upstream import Upstream

CLOSE_TIMEOUT_S: Final = 2.0
"""How long a server may take to see that we leave, before the connection is cut."""


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """Who may share a connection with whom: equal keys only."""

    route: str
    app: str
    user: str
    parameters: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Lease:
    """A connection in use; give it back with `Pool.give_back`, exactly once."""

    key: LeaseKey
    upstream: Upstream
    generation: int
    reused: bool
    idle_s: float
    over: bool = False


@dataclass(slots=True)
class _Waiting:
    """A connection that waits for its next lease, and watches itself meanwhile."""

    pool: Pool
    key: LeaseKey
    upstream: Upstream
    expires: asyncio.TimerHandle | None = field(default=None)

    def upstream_data(self, data: bytes) -> None:
        """An idle server has nothing to say but asynchronous messages; after one we no longer know its
        state.
        """
        del data
        self.pool.forget(self)

    def upstream_lost(self, error: Exception | None) -> None:
        del error
        self.pool.forget(self)

    def upstream_full(self) -> None:
        """Nothing is being written."""

    def upstream_drained(self) -> None:
        """Nothing is being written."""


class _RoutePool:
    def __init__(self, route: Route) -> None:
        queue = route.limits.queue
        self.slots = Slots(f'database "{route.name}"', route.pool_size, queue=queue)
        self.sessions = Slots(f'database "{route.name}"', route.limits.max_connections, queue=queue)
        self.idle: dict[LeaseKey, list[_Waiting]] = {}
        self.generation = 0

    def resize(self, route: Route) -> None:
        self.slots.resize(route.pool_size, queue=route.limits.queue)
        self.sessions.resize(route.limits.max_connections, queue=route.limits.queue)

    def oldest(self) -> _Waiting | None:
        for waiting in self.idle.values():
            return waiting[0]
        return None


class Pool:
    """Every upstream connection of a gate. A connection counts against its route's ``pool_size`` until
    closed.
    """

    def __init__(self) -> None:
        self._routes: dict[str, _RoutePool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """By route name: connections leased, idle, and sessions waiting for one."""
        found = {}
        for name, routes in self._routes.items():
            idle = sum(map(len, routes.idle.values()))
            found[name] = (routes.slots.taken - idle, idle, routes.slots.waiting + routes.sessions.waiting)
        return found

    async def lease(
        self, route: Route, key: LeaseKey, connect: Callable[[], Awaitable[Upstream]], *, timeout: float
    ) -> Lease:
        """A connection for ``key``: an idle one, or what ``connect`` makes once there is a place for it.

        PostgresError 53300 when none is free within ``timeout`` seconds; what ``connect`` raises.
        """
        here = self._routes.get(route.name)
        if here is None:
            here = self._routes[route.name] = _RoutePool(route)
        else:
            here.resize(route)
        await here.sessions.take(timeout)
        try:
            generation = here.generation
            upstream = self._reuse(here, key)
            reused = upstream is not None
            if upstream is None:
                # Make room among the idle connections of others before waiting for a place.
                if here.slots.full and (oldest := here.oldest()) is not None:
                    self.forget(oldest)
                upstream, reused = await self._place(here, key, connect, timeout)
        except BaseException:
            here.sessions.give()
            raise
        return Lease(key, upstream, generation, reused, route.pool_idle_s)

    async def _place(
        self, here: _RoutePool, key: LeaseKey, connect: Callable[[], Awaitable[Upstream]], timeout: float
    ) -> tuple[Upstream, bool]:
        """Wait for a place; a connection that became idle meanwhile, else a new one."""
        await here.slots.take(timeout)
        while True:
            upstream = self._reuse(here, key)
            if upstream is not None:
                here.slots.give()
                return upstream, True
            if not here.slots.over:
                break
            # Admitted because a connection became idle, but not ours to use: take its place.
            oldest = here.oldest()
            if oldest is not None:
                self.forget(oldest)
                break
            here.slots.give()
            await here.slots.take(timeout)
        try:
            return await connect(), False
        except BaseException:
            here.slots.give()
            raise

    def _reuse(self, here: _RoutePool, key: LeaseKey) -> Upstream | None:
        while (waiting := here.idle.get(key)) is not None:
            found = waiting.pop()
            if not waiting:
                del here.idle[key]
            if found.expires is not None:
                found.expires.cancel()
            found.upstream.release()
            if found.upstream.usable:
                return found.upstream
            found.upstream.abort()
            here.slots.give()
        return None

    def give_back(self, lease: Lease, *, reusable: bool) -> None:
        """End a lease. A ``reusable`` connection is reset in the background and then waits for its next
        one.
        """
        assert not lease.over
        lease.over = True
        here = self._routes[lease.key.route]
        lease.upstream.release()
        here.sessions.give()
        if (
            reusable
            and lease.idle_s > 0
            and not self._closed
            and lease.generation == here.generation
            and lease.upstream.usable
        ):
            task = asyncio.get_running_loop().create_task(self._recycle(here, lease))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        self._close(lease.upstream)
        here.slots.give()

    async def _recycle(self, here: _RoutePool, lease: Lease) -> None:
        clean = False
        try:
            clean = await lease.upstream.reset()
        finally:
            if clean and lease.generation == here.generation and not self._closed:
                self._wait(here, lease)
            else:
                self._close(lease.upstream)
                here.slots.give()

    def _wait(self, here: _RoutePool, lease: Lease) -> None:
        waiting = _Waiting(self, lease.key, lease.upstream)
        lease.upstream.lease(waiting)
        loop = asyncio.get_running_loop()
        waiting.expires = loop.call_later(lease.idle_s, self.forget, waiting)
        here.idle.setdefault(lease.key, []).append(waiting)
        here.slots.nudge()

    def forget(self, waiting: _Waiting) -> None:
        """Close a waiting connection; nothing where it is leased already."""
        here = self._routes[waiting.key.route]
        found = here.idle.get(waiting.key, [])
        if waiting not in found:
            return
        found.remove(waiting)
        if not found:
            del here.idle[waiting.key]
        if waiting.expires is not None:
            waiting.expires.cancel()
        waiting.upstream.release()
        self._close(waiting.upstream)
        here.slots.give()

    def _close(self, upstream: Upstream) -> None:
        """Say goodbye, and see to it that the connection really goes."""
        upstream.close()
        task = asyncio.get_running_loop().create_task(_until_closed(upstream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def renew(self, route: str) -> None:
        """Credentials or the address of ``route`` changed: idle connections go now, leased ones after
        their lease.
        """
        here = self._routes.get(route)
        if here is not None:
            here.generation += 1
            self._forget_all(here, list(here.idle))

    def drop_app(self, app: str) -> None:
        """``app`` was revoked or changed: its idle connections go now."""
        for here in self._routes.values():
            self._forget_all(here, [key for key in here.idle if key.app == app])

    def _forget_all(self, here: _RoutePool, keys: Iterable[LeaseKey]) -> None:
        for key in keys:
            for waiting in list(here.idle.get(key, ())):
                self.forget(waiting)

    async def close(self) -> None:
        """Close what is idle and wait for resets under way; leased connections end with their sessions."""
        self._closed = True
        for here in self._routes.values():
            self._forget_all(here, list(here.idle))
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _until_closed(upstream: Upstream) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await upstream.wait_closed()
    except TimeoutError:
        upstream.abort()

"""The virtual database's place beside the real ones: takes sessions that have logged in, and ends them."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import structlog

from qgate.governance.audit import AuditEvent
from qgate.governance.directory import App, Directory
from qgate.postgres.timeouts import Timeouts
from qgate.postgres.virtual import Capabilities, VirtualSession
from qgate.postgres.virtual_facts import NAME_OF_DATABASE
from tunnel_proto import pgwire
from tunnel_proto.pgwire import PostgresError

if TYPE_CHECKING:
    from qgate.postgres.journal import AuditSink
    from tunnel_proto.link import Stream

MESSAGE_MAX: Final = 16 * 1024 * 1024
"""Bytes of one message, unless the gate's settings say otherwise."""
_PIDS: Final = 1 << 30
"""Process ids from here on are no real server's: Linux has 2**22 at most."""

TICK_S: Final = 0.5
"""How often time limits are checked, while a session has any."""

_log = structlog.get_logger("qgate.postgres")


class VirtualFront:
    """All sessions with the database `qg`."""

    def __init__(
        self,
        capabilities: Capabilities,
        *,
        directory: Directory,
        audit: AuditSink,
        message_max: int = MESSAGE_MAX,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.capabilities = capabilities
        self.message_max = message_max
        self._directory = directory
        self._audit = audit
        self._wall = wall
        self._sessions: dict[tuple[int, bytes], VirtualSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._timeouts: dict[VirtualSession, Timeouts] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._queries = 0  # of sessions that have ended
        self.opened = 0
        directory.subscribe(self._changed)

    @property
    def live(self) -> tuple[VirtualSession, ...]:
        """Sessions that have not ended."""
        return tuple(self._sessions.values())

    @property
    def queries(self) -> int:
        """Statements answered since the start."""
        return self._queries + sum(one.queries for one in self._sessions.values())

    def serves(self, app: App, database: str) -> bool:
        """Whether this app's database of that name is the virtual one."""
        return (
            database == NAME_OF_DATABASE and app.policy is not None and NAME_OF_DATABASE not in app.databases
        )

    def take(
        self, stream: Stream, app: App, startup: pgwire.Startup, sidecar: str, greeting: bytes, early: bytes
    ) -> None:
        """Go on with a stream whose app has proven who it is; ``greeting`` says so to it."""
        if refusal := self._refusal(app, startup):
            stream.receiver = VirtualSession(
                self, stream, app, startup=startup, sidecar=sidecar, pid=0, key=b"0000"
            )
            stream.write(greeting, boundary=True, sensitive=True)
            stream.receiver.end(refusal)
            return
        size = 32 if startup.negotiated >= pgwire.PROTOCOL_3_2 else 4
        pid, key = _PIDS + secrets.randbelow(_PIDS), os.urandom(size)
        session = VirtualSession(self, stream, app, startup=startup, sidecar=sidecar, pid=pid, key=key)
        self._sessions[pid, key] = session
        self._empty.clear()
        self.opened += 1
        stream.receiver = session
        self._record("session.open", session)
        self._limit(session)
        session.begin(greeting, early)

    def cancel(self, pid: int, key: bytes, sidecar: str) -> None:
        """A CancelRequest; only the sidecar that the session came through may send it."""
        session = self._sessions.get((pid, key))
        if session is not None and session.sidecar == sidecar:
            session.cancel()

    async def drain(self, timeout: float) -> None:
        """Let no session begin, end those that are idle, and after ``timeout`` seconds the rest."""
        self._draining = True
        stop = PostgresError("terminating connection due to administrator command", sqlstate="57P01")
        for session in self.live:
            if session.state == "idle":
                session.end(stop)
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            for session in self.live:
                session.end(stop)

    async def close(self) -> None:
        """End everything and wait for what must be awaited."""
        await self.drain(0)
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what a session asks

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def fault(self, session: VirtualSession, error: Exception) -> None:
        """Name the kind and never the words: they may hold what a client sent."""
        _log.error("a virtual session failed", app=session.app.name, kind=type(error).__name__)

    def ended(self, session: VirtualSession, outcome: str) -> None:
        """A session is over."""
        if self._sessions.pop((session.pid, session.key), None) is not None:
            self._timeouts.pop(session, None)
            self._queries += session.queries
            self._record("session.close", session, outcome)
        if not self._sessions:
            self._empty.set()

    # ---

    def _refusal(self, app: App, startup: pgwire.Startup) -> PostgresError | None:
        if self._draining:
            return PostgresError("the gate is shutting down", sqlstate="57P03")
        if startup.replication:
            return PostgresError("the virtual database does not replicate", sqlstate="0A000")
        if not self._audit.accepting:
            return PostgresError("the gate cannot record sessions now", sqlstate="57P03")
        most = app.limits.max_connections
        if most is not None and sum(one.app.name == app.name for one in self.live) >= most:
            return PostgresError(f'app "{app.name}" has {most} connections already', sqlstate="53300")
        return None

    def _changed(self, names: frozenset[str]) -> None:
        for session in self.live:
            name = session.app_name
            if f"app:{name}" not in names:
                continue
            now = self._directory.app(name)
            if now is None or not now.usable(self._wall()):
                self._revoke(session, f'app "{name}" was revoked')
            elif not self.serves(now, NAME_OF_DATABASE):
                self._revoke(session, f'app "{name}" may no longer use database "{NAME_OF_DATABASE}"')
            elif now.sidecars is not None and session.sidecar not in now.sidecars:
                self._revoke(session, f'app "{name}" may no longer come from this sidecar')
            else:
                session.app = now
                self._limit(session)

    def _revoke(self, session: VirtualSession, why: str) -> None:
        stop = "terminating connection due to administrator command"
        session.end(PostgresError(stop, sqlstate="57P01", detail=why))

    # --- time

    def _limit(self, session: VirtualSession) -> None:
        """Take over the time limits of the session's app, at the start and whenever they change."""
        timeouts = Timeouts(session.app.limits)
        if timeouts.any or session.app.expires_at is not None:
            self._timeouts[session] = timeouts
            self._tick_soon()
        else:
            self._timeouts.pop(session, None)

    def _tick_soon(self) -> None:
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now, wall = asyncio.get_running_loop().time(), self._wall()
        for session, timeouts in list(self._timeouts.items()):
            expires = session.app.expires_at
            if expires is not None and wall >= expires:
                self._revoke(session, f'the credential of app "{session.app_name}" has expired')
            elif isinstance(due := timeouts.check(session, now), PostgresError):
                session.end(due)
        if self._timeouts:
            self._tick_soon()

    def _record(self, kind: str, session: VirtualSession, outcome: str = "ok") -> None:
        took = asyncio.get_running_loop().time() - session.started
        self._audit.record(
            AuditEvent(
                kind=kind,
                app=session.app.name,
                sidecar=session.sidecar,
                database=NAME_OF_DATABASE,
                count=max(1, session.queries),
                duration_s=took,
                outcome=outcome,
                started_at=self._wall() - took,
            )
        )

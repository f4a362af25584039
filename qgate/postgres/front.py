"""The gate's PostgreSQL: accepts `pg` and `pg-cancel` streams, decides who may go where, keeps count.

Everything a session needs from outside (directory, audit, pool, limits, cancel keys) meets here; what happens
inside a session is `qgate.postgres.session`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from qgate.governance.directory import App, Directory, Route
from qgate.postgres.authentication import AppLogin, Offer
from qgate.postgres.back import ConnectCache, connect
from qgate.postgres.cancels import Cancels
from qgate.postgres.conversation import Conversation, Verdict
from qgate.postgres.fingerprint import Fingerprints
from qgate.postgres.journal import AuditSink, Journal
from qgate.postgres.login import UpstreamError
from qgate.postgres.pool import Lease, LeaseKey, Pool
from qgate.postgres.session import FrontSession
from qgate.postgres.slots import Slots
from qgate.postgres.statement import ALWAYS_ALLOWED
from qgate.postgres.strikes import Strikes
from qgate.postgres.tally import Entry, Tally
from qgate.postgres.upstream import Upstream
from qgate.vault import VaultError
from tunnel_proto import pgwire, scram
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.pgwire import PostgresError

if TYPE_CHECKING:
    from qgate.postgres.virtual_front import VirtualFront
    from qgate.settings import PostgresSettings
    from tunnel_proto.link import PeerSession, Stream


APPLICATION_NAME_MAX: Final = 63
"""Bytes PostgreSQL keeps of an application_name (NAMEDATALEN - 1)."""
TICK_S: Final = 0.5
"""How often time limits are checked and waiting audit entries looked at, while there are any."""

_log = structlog.get_logger("qgate.postgres")


@dataclass(slots=True)
class FrontStats:
    """Counters since the start of the process, for metrics."""

    connections: int = 0
    refused: int = 0
    queries_total: int = 0
    rows_total: int = 0
    denied_total: int = 0
    cancels_total: int = 0
    leases_new: int = 0
    leases_reused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class PostgresFront:
    """Accepts the streams of every sidecar.

    ``secret`` makes the salts shown to unknown users stable: the same for all gates of a pool, kept over
    restarts.
    """

    def __init__(
        self,
        *,
        directory: Directory,
        audit: AuditSink,
        settings: PostgresSettings,
        secret: bytes,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.clock = clock
        self.stats = FrontStats()
        self.pool = Pool()
        self._journal = Journal(audit, clock=clock, wall=wall)
        self._secret = secret
        self._wall = wall
        self._cache = ConnectCache()
        self._fingerprints = Fingerprints()
        self._sessions: dict[FrontSession, None] = {}
        self._app_slots: dict[str, Slots] = {}
        self._cancels = Cancels()
        self._strikes = Strikes()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dirty: list[Tally] = []
        self._flush_at = 0.0
        self._ticking: asyncio.TimerHandle | None = None
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.virtual: VirtualFront | None = None  # the database `qg`, where there is one
        directory.subscribe(self._changed)

    @property
    def live(self) -> tuple[FrontSession, ...]:
        """Sessions that have not ended, log-ins included."""
        return tuple(self._sessions)

    # --- streams

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """Take a `pg` stream."""
        metadata = stream.metadata
        try:
            startup = pgwire.parse_startup(_bytes(metadata, "startup"))
            if not isinstance(startup, pgwire.Startup):
                raise ValueError("not a StartupMessage")
            binding = metadata.get("cbind")
            offer = Offer(
                sasl_sent=bool(metadata.get("sasl_sent")),
                plus=bool(metadata.get("plus")),
                binding=binding if isinstance(binding, bytes) and len(binding) <= 64 else None,
            )
        except (ValueError, PostgresError) as error:
            stream.reset(StreamCode.PROTOCOL, f"malformed pg stream: {error}")
            return
        sidecar = self.directory.label(session.peer)
        login = AppLogin(
            startup,
            offer,
            self.directory.app_from(session.peer, startup.user),
            sidecar=sidecar,
            now=self._wall(),
            entropy=os.urandom(scram.NONCE_BYTES),
            secret=self._secret,
            iterations=self.settings.scram_iterations,
        )
        front_session = FrontSession(self, stream, startup, login, sidecar)
        front_session.app_name = self.directory.app_label(session.peer, startup.user)
        stream.receiver = front_session
        self._sessions[front_session] = None
        self._empty.clear()
        self.stats.connections += 1
        if self._draining:
            front_session.end(
                PostgresError("the gate is shutting down", sqlstate="57P03"), StreamCode.GATE_SHUTDOWN
            )
            return
        front_session.begin(self.settings.login_timeout_s)

    def cancel(self, session: PeerSession, stream: Stream) -> None:
        """Take a `pg-cancel` stream: no data goes either way, whatever the outcome."""
        stream.receiver = Ignore()
        self.stats.cancels_total += 1
        metadata = stream.metadata
        pid, key = metadata.get("pid"), metadata.get("key")
        if self.virtual is not None and isinstance(pid, int) and isinstance(key, bytes):
            self.virtual.cancel(pid, key, self.directory.label(session.peer))
        target = self._cancels.target(pid, key, self.directory.label(session.peer))
        still = None if target is None else target.still_running()
        if target is None or still is None:
            stream.reset(StreamCode.NO_ERROR)
        else:
            self.spawn(self._cancel(target, still, stream))

    async def _cancel(self, target: FrontSession, still: Callable[[], bool], stream: Stream) -> None:
        """The end of the stream tells the app, as PostgreSQL would, that the cancel was taken."""
        try:
            await self._cancels.send(target, still)
        finally:
            stream.reset(StreamCode.NO_ERROR)

    def cancel_overdue(self, session: FrontSession, still: Callable[[], bool]) -> None:
        """Cancel a statement that runs for too long, if ``still`` it does."""
        self.spawn(self._cancels.send(session, still))

    # --- what a session asks

    def admit(self, session: FrontSession, proven: App) -> App:
        """The app as it is now that it has proven itself; 28P01 when it changed while it did so.

        A session is told of later changes (`_recheck`); before this it is nobody's. Other limits are no
        obstacle.
        """
        now = self.directory.app(proven.name)
        if now is None or not now.usable(self._wall()):
            raise PostgresError(f'password authentication failed for user "{proven.name}"', sqlstate="28P01")
        if dataclasses.replace(now, limits=proven.limits) != proven:
            raise PostgresError(
                f'app "{proven.name}" was changed while it logged in', sqlstate="28P01", hint="Connect again."
            )
        self._strikes.succeeded(session.app_name, session.sidecar)
        return now

    def hold(self, session: FrontSession, error: PostgresError) -> float:
        """How long a refused log-in is to be held back, in seconds."""
        if error.sqlstate != "28P01":
            return 0.0
        return self._strikes.failed(session.app_name, session.sidecar, self.clock())

    def hand_over(self, session: FrontSession, app: App, greeting: bytes, early: bytes) -> bool:
        """Give a session that wants the virtual database to it; False where it wants a real one."""
        virtual = self.virtual
        if virtual is None or not virtual.serves(app, session.database):
            return False
        self.gone(session)
        stream = cast("Stream", session.stream)
        virtual.take(stream, app, session.startup, session.sidecar, greeting, early)
        return True

    async def open(self, session: FrontSession, app: App, startup: pgwire.Startup) -> tuple[Route, Lease]:
        """Find the route, wait for a place, lease a connection. PostgresError says why not."""
        route = self.directory.route(startup.database)
        if route is None or route.name not in app.databases:
            raise PostgresError(
                f'database "{startup.database}" does not exist',
                sqlstate="3D000",
                hint=f"This app may use {', '.join(sorted(app.databases))}." if app.databases else "",
            )
        if startup.replication and not (app.replication and route.allow_replication):
            raise PostgresError(
                "replication connections are not allowed here",
                sqlstate="42501",
                detail="Both the app and the database must allow them.",
            )
        if not self._journal.accepting:
            raise PostgresError(
                "the gate cannot record sessions now and lets no new one begin",
                sqlstate="57P03",
                hint="Its audit queue is full: ask the administrator to look at the gate's store.",
            )
        user = route.read_only_user if app.read_only else route.user
        if user is None:
            raise PostgresError(
                f'app "{app.name}" may only read, and database "{route.name}" has no read-only role',
                sqlstate="42501",
            )
        slots = self._app_slots.get(app.name)
        if slots is None:
            slots = self._app_slots[app.name] = Slots(f'app "{app.name}"', None, queue=0)
        slots.resize(app.limits.max_connections, queue=app.limits.queue)
        await slots.take(app.limits.queue_timeout_s)
        try:
            lease = await self._lease(route, app, user, startup, session.sidecar)
        except BaseException:
            self.leave(app.name)
            raise
        return self.directory.route(route.name) or route, lease

    async def _lease(self, route: Route, app: App, user: str, startup: pgwire.Startup, sidecar: str) -> Lease:
        parameters = upstream_parameters(startup, app.name, sidecar)
        key = LeaseKey(route.name, app.name, user, tuple(sorted(parameters.items())))

        async def dial() -> Upstream:
            try:
                passwords = self.directory.passwords(route, read_only=app.read_only)
                key_name = route.sslkey_secret
                client_key = None if key_name is None else self.directory.secret(key_name)
            except (VaultError, LookupError) as error:
                raise UpstreamError(
                    "the gate cannot open its credentials", sqlstate="08001", cause=_cause(error)
                ) from None
            upstream = await connect(
                route, user, passwords, parameters=parameters, cache=self._cache, client_key=client_key
            )
            try:
                if upstream.password_index and passwords:
                    self.directory.promote(route, passwords[upstream.password_index], read_only=app.read_only)
            except BaseException:
                upstream.abort()
                raise
            return upstream

        try:
            lease = await self.pool.lease(route, key, dial, timeout=route.limits.queue_timeout_s)
        except UpstreamError as error:
            _log.warning("upstream refused", database=route.name, sqlstate=error.sqlstate, cause=error.cause)
            raise PostgresError(
                f'database "{route.name}": {error.message}',
                sqlstate=error.sqlstate,
                hint=error.hint or f"The administrator sees the cause with: meshctl db check {route.name}",
            ) from error
        if lease.reused:
            self.stats.leases_reused += 1
        else:
            self.stats.leases_new += 1
        if startup.replication:
            lease.upstream.cancelled = True  # a walsender is never leased again
        return lease

    def opened(self, session: FrontSession) -> None:
        """A session has its lease: give it a conversation, a cancel key, an entry in the audit."""
        app, route, lease = session.app, session.route, session.lease
        assert app is not None
        assert route is not None
        assert lease is not None
        allowed = app.statement_classes
        tally = Tally(
            lambda entry: self._record(session, entry),
            lambda: self._gather(tally),
            by_statement=route.audit_detail == "statement",
        )
        session.tally = tally
        session.conversation = Conversation(
            fingerprints=self._fingerprints,
            finished=tally.finished,
            verdict=None if allowed is None else _verdict(app.name, allowed | ALWAYS_ALLOWED),
            marker="" if allowed is None else f"qgate_denied_{os.urandom(8).hex()}_",
            replication=bool(session.startup.replication),
        )
        session.stream.set_compression(route.compression)
        if lease.upstream.pid is not None:
            size = 32 if session.startup.negotiated >= pgwire.PROTOCOL_3_2 else 4
            session.cancel_key = os.urandom(size)
            self._cancels.register(lease.upstream.pid, session)
        self._journal.session(session, "session.open", detail={"reused": lease.reused})
        session.limit(self.clock())
        self._tick_soon()

    def fault(self, session: FrontSession) -> None:
        """Called inside the handling of an exception that nobody expected."""
        _log.exception("a session failed", app=session.app_name, database=session.database)

    def refused(self, session: FrontSession, error: PostgresError, reason: str) -> None:
        """A log-in came to nothing."""
        self.stats.refused += 1
        self._journal.session(
            session, "session.refused", outcome=error.sqlstate, detail={"reason": reason} if reason else {}
        )

    def ended(self, session: FrontSession, outcome: str) -> None:
        """A relayed session ends: what is counted goes to the audit. Only the first call counts."""
        conversation, tally = session.conversation, session.tally
        if tally is None or conversation is None:
            return
        tally.flush()
        session.tally = None
        self.stats.bytes_up += conversation.bytes_up
        self.stats.bytes_down += conversation.bytes_down
        self._journal.close(session, conversation, outcome)

    def gone(self, session: FrontSession) -> None:
        """Nothing is left of a session but perhaps its stream's end."""
        self._sessions.pop(session, None)
        lease = session.lease
        if lease is not None:
            if lease.upstream.pid is not None:
                self._cancels.forget(lease.upstream.pid, session)
            self.leave(session.app_name)
        if not self._sessions:
            self._empty.set()

    def leave(self, app: str) -> None:
        """Give back the place that `open` took for a session of ``app``."""
        slots = self._app_slots[app]
        slots.give()
        if slots.unused:
            del self._app_slots[app]

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a session failed", exc_info=error)

    def _record(self, session: FrontSession, entry: Entry) -> None:
        self.stats.queries_total += entry.count
        self.stats.rows_total += entry.rows
        self.stats.denied_total += entry.outcome == "42501"
        self._journal.statement(session, entry)

    # --- time

    def _gather(self, tally: Tally) -> None:
        if not self._dirty:
            self._flush_at = self.clock() + float(self.directory.setting("audit.merge_interval_s"))
        self._dirty.append(tally)
        self._tick_soon()

    def _tick_soon(self) -> None:
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now, wall = self.clock(), self._wall()
        if self._dirty and now >= self._flush_at:
            dirty, self._dirty = self._dirty, []
            for tally in dirty:
                tally.flush()
        timed = False
        for session in list(self._sessions):
            if session.timed:
                timed = True
                if session.next_check <= now:
                    session.check(now, wall)
        if timed or self._dirty:
            self._tick_soon()

    # --- change and end

    def _changed(self, names: frozenset[str]) -> None:
        for name in names:
            kind, _, what = name.partition(":")
            if kind == "app":
                self.pool.drop_app(what)
            elif kind in {"route", "password"}:
                self.pool.renew(what)
        for session in list(self._sessions):
            app = session.app
            if app is not None and (f"app:{app.name}" in names or f"route:{session.database}" in names):
                self._recheck(session, app)

    def _recheck(self, session: FrontSession, before: App) -> None:
        now = self.directory.app(before.name)
        if now is None or not now.usable(self._wall()):
            session.revoke(f'app "{before.name}" was revoked')
        elif session.database not in now.databases or self.directory.route(session.database) is None:
            session.revoke(f'app "{before.name}" may no longer use database "{session.database}"')
        elif now.sidecars is not None and session.sidecar not in now.sidecars:
            session.revoke(f'app "{before.name}" may no longer come from this sidecar')
        elif _rights(now) != _rights(before):
            session.revoke(f'what app "{before.name}" may do was changed')
        else:
            session.app = now
            route = self.directory.route(session.database)
            if session.route is not None and route is not None:
                session.route = route
                session.limit(self.clock())
            self._tick_soon()

    async def drain(self, timeout: float) -> None:
        """Let no session begin, wait for those that run; after ``timeout`` seconds end what is left with
        57P01.

        Sessions that idle outside a transaction are ended after half the time.
        """
        self._draining = True
        stop = PostgresError(
            "terminating connection due to administrator command", sqlstate="57P01", detail="The gate stops."
        )
        for share, everyone in ((timeout / 2, False), (timeout / 2, True)):
            try:
                async with asyncio.timeout(share):
                    await self._empty.wait()
            except TimeoutError:
                for session in list(self._sessions):
                    if everyone or session.state == "idle":
                        session.end(stop, StreamCode.GATE_SHUTDOWN)

    async def close(self) -> None:
        """End everything now and wait for what must be awaited."""
        await self.drain(0)
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        await self.pool.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def upstream_parameters(startup: pgwire.Startup, app: str, sidecar: str) -> dict[str, str]:
    """What goes into the upstream's start-up message besides user and database.

    ``application_name`` says who is behind the connection: ``app@sidecar``, then the client's own where it
    fits.
    """
    dropped = {"user", "database", "application_name", "replication"}
    parameters = {name: value for name, value in startup.parameters.items() if name not in dropped}
    if startup.replication:
        parameters["replication"] = "database" if startup.replication == "database" else "true"
    name = f"{app}@{sidecar}"
    own = startup.parameters.get("application_name", "")
    both = f"{name} {own}"
    if own and len(both.encode("utf-8", "surrogateescape")) <= APPLICATION_NAME_MAX:
        name = both
    parameters["application_name"] = name
    return parameters


def _rights(app: App) -> tuple[bool, bool, frozenset[str] | None]:
    return app.read_only, app.replication, app.statement_classes


def _verdict(app: str, allowed: frozenset[str]) -> Verdict:
    def judge(classes: frozenset[str]) -> str:
        excess = classes - allowed
        if not excess:
            return ""
        return f'app "{app}" may not run {" or ".join(sorted(excess))} statements'

    return judge


def _cause(error: VaultError | LookupError) -> str:
    return error.message if isinstance(error, VaultError) else f"missing: {error}"


def _bytes(metadata: Mapping[str, Any], name: str) -> bytes:
    value = metadata.get(name)
    if not isinstance(value, bytes):
        raise ValueError(f"{name} is missing")
    return value

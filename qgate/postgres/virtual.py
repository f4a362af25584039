"""A session with the virtual database `qg`: SQL in, capabilities out. No server stands behind it.

    state of a message loop       what comes             what happens
    idle                          anything               handled in order, by one task
    busy (a capability runs)      anything               kept; beyond `AHEAD_MAX` the app's credit is withheld
    busy                          CancelRequest          the capability is cancelled: 57014
    busy                          the app goes away      the same, and nobody is told
    failed (extended protocol)    anything but Sync      dropped, as PostgreSQL does

Transactions are accepted and mean nothing, but their status is kept: drivers rely on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from qgate.capability.work import Problem
from qgate.governance.directory import App
from qgate.postgres.timeouts import narrower
from qgate.postgres.virtual_facts import NAME_OF_DATABASE, SHOW_ALL, Facts
from qgate.postgres.virtual_grammar import parse
from qgate.postgres.virtual_portal import Portal, Prepared, argument, value_of
from qgate.postgres.virtual_statement import (
    COLUMNS,
    LISTS,
    Call,
    Catalogue,
    Command,
    Scalars,
    Show,
    Statement,
    filled,
    parameters_of,
)
from qgate.postgres.virtual_values import (
    TEXT,
    Table,
    cut,
    data_row,
    error,
    read_bind,
    row_description,
    string,
    unpack,
)
from tunnel_proto import pgwire
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import MeshError
from tunnel_proto.pgwire import MessageBuffer, PostgresError

if TYPE_CHECKING:
    from tunnel_proto.link import Stream, StreamError

AHEAD_MAX: Final = 256 * 1024
"""Bytes of messages kept while a capability runs, before the app's credit is withheld."""
PREPARED_MAX: Final = 1000
LINGER_S: Final = 10.0

T = TypeVar("T")

_ABORTED: Final = "current transaction is aborted, commands ignored until end of transaction block"


class Capabilities(Protocol):
    """Where the virtual database's statements lead."""

    async def ask(self, app: App, request: str, texts: list[str], *, sidecar: str) -> Sequence[Any]:
        """The values of `COLUMNS` for one request. Raises `Problem`. Cancelling it cancels the request."""

    async def show(self, app: App, what: str) -> Table:
        """A list that SHOW names, as far as the app may see it."""


class Owner(Protocol):
    """Who keeps the sessions."""

    capabilities: Capabilities
    message_max: int

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task that is kept until it ends."""

    def fault(self, session: VirtualSession, error: Exception) -> None:
        """Something failed that nobody expected."""

    def ended(self, session: VirtualSession, outcome: str) -> None:
        """The session is over; called once."""


class VirtualSession:
    """One app's session, and the receiver of its stream."""

    def __init__(
        self,
        owner: Owner,
        stream: Stream,
        app: App,
        *,
        startup: pgwire.Startup,
        sidecar: str,
        pid: int,
        key: bytes,
    ) -> None:
        self._owner = owner
        self._stream = stream
        self.app = app
        self.sidecar = sidecar
        self.pid = pid
        self.key = key
        self.queries = 0
        self.started = asyncio.get_running_loop().time()
        self.waiting_since: float | None = self.started
        """The loop's time since which nothing whole has come from the app; None while it is worked for."""
        self._startup = startup
        self._facts = Facts(user=startup.user, pid=pid, startup=startup.parameters, wall=time.time)
        self._buffer = MessageBuffer(owner.message_max)
        self._owed = 0
        self._task: asyncio.Task[None] | None = None
        self._running = False  # a capability does
        self._cancelled = False  # by a CancelRequest
        self._status = b"I"
        self._skipping = False
        self._tag = ""
        self._prepared: dict[str, Prepared] = {}
        self._portals: dict[str, Portal] = {}
        self._ended = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def app_name(self) -> str:
        """Whose session it is."""
        return self.app.name

    @property
    def database(self) -> str:
        """What it is connected to."""
        return NAME_OF_DATABASE

    @property
    def running_since(self) -> float | None:
        """None: what runs has a time limit of its own (`_carry_out`)."""
        return None

    @property
    def holds_transaction(self) -> bool:
        """Whether a transaction is open, as far as the app believes."""
        return self._status != b"I"

    @property
    def state(self) -> str:
        """``active``, ``idle``, ``idle in transaction`` or ``ending``."""
        if self._ended:
            return "ending"
        if self._task is not None:
            return "active"
        return "idle" if self._status == b"I" else "idle in transaction"

    def begin(self, greeting: bytes, early: bytes) -> None:
        """Say that the app is logged in; ``early`` is what it sent behind its proof."""
        welcome = [greeting]
        welcome += [pgwire.parameter_status(*item) for item in self._facts.reported().items()]
        welcome += [pgwire.backend_key_data(self.pid, self.key), pgwire.ready_for_query()]
        self._stream.write(b"".join(welcome), boundary=True, sensitive=True)
        if early:
            self.data_received(early, False)

    def cancel(self) -> None:
        """Cancel the capability that runs, if one does."""
        if self._running and self._task is not None:
            self._cancelled = True
            self._task.cancel()

    def end(self, fatal: PostgresError) -> None:
        """End the session with a FATAL error."""
        if self._ended:
            return
        shown = PostgresError(
            fatal.message, sqlstate=fatal.sqlstate, severity="FATAL", detail=fatal.detail, hint=fatal.hint
        )
        self._say(shown.response())
        self._finish(fatal.sqlstate)

    # --- the stream's side

    def data_received(self, data: bytes, boundary: bool) -> None:
        """From the app."""
        del boundary
        if self._ended:
            self._return(len(data))
            return
        self._buffer.feed(data)
        if self._task is not None and len(self._buffer) > AHEAD_MAX:
            self._owed += len(data)
        else:
            self._return(len(data))
        if self._task is None:
            self._task = self._owner.spawn(self._work())

    def eof_received(self) -> None:
        """The app sends nothing more."""
        self._finish("ok")

    def stream_closed(self, error: StreamError | None) -> None:
        """The stream is gone."""
        del error
        self._closed = True
        self._finish("08006")

    def pause_writing(self) -> None:
        """Answers are small: they are kept by the stream."""

    def resume_writing(self) -> None:
        """And go on by themselves."""

    def link_lost(self) -> None:
        """Nothing is lost yet."""

    def link_restored(self) -> None:
        """And nothing was."""

    # --- the message loop

    async def _work(self) -> None:
        try:
            while not self._ended and (found := self._buffer.next_message()) is not None:
                self.waiting_since = None
                await self._handle(*found)
        except asyncio.CancelledError:
            if not self._ended:
                raise
        except PostgresError as fatal:
            self.end(fatal)
        except Exception as defect:
            self._owner.fault(self, defect)
            self.end(PostgresError("internal error of the gate", sqlstate="XX000"))
        finally:
            self._task = None
            owed, self._owed = self._owed, 0
            self._return(owed)  # all that was whole is done; the rest of what is not must be let in
            if self.waiting_since is None:
                self.waiting_since = asyncio.get_running_loop().time()

    async def _handle(self, kind: bytes, payload: bytes) -> None:
        if kind == b"X":
            self._finish("ok")
            return
        if kind == b"S":
            self._skipping = False
            self._ready()
            return
        if self._skipping or kind in {b"d", b"c", b"f", b"H"}:
            return
        simple = kind == b"Q"
        try:
            if simple:
                await self._simple(string(payload))
            else:
                await self._extended(kind, payload)
        except PostgresError as failed:
            if failed.severity == "FATAL":
                raise
            self._fail(failed)
            self._skipping = not simple
        except Problem as problem:
            self._fail(_as_sql(problem))
            self._skipping = not simple
        if simple:
            self._ready()

    async def _extended(self, kind: bytes, payload: bytes) -> None:
        match kind:
            case b"P":
                self._parse(payload)
            case b"B":
                self._bind(payload)
            case b"D":
                self._describe(payload)
            case b"E":
                await self._execute(payload)
            case b"C":
                what, name = payload[:1], string(payload[1:])
                (self._prepared if what == b"S" else self._portals).pop(name, None)
                self._say(pgwire.message(b"3"))
            case b"F":
                raise error("function calls by message are not supported", "0A000")
            case _:
                raise pgwire.protocol_violation(f"invalid frontend message type {kind!r}")

    def _fail(self, failed: PostgresError) -> None:
        if self._status == b"T":
            self._status = b"E"
        self._say(failed.response())

    def _ready(self) -> None:
        if self._status == b"I":
            self._portals.clear()
        self._say(pgwire.ready_for_query(self._status))

    # --- the simple protocol

    async def _simple(self, sql: str) -> None:
        statements = parse(sql)
        if not statements:
            self._say(pgwire.message(b"I"))
        for statement in statements:
            self.queries += 1
            if parameters_of(statement):
                raise error("there is no parameter $1", "42P02")
            table = await self._run(statement)
            if table is None:
                self._complete(statement, 0)
                continue
            rows = [data_row(row, table.columns, ()) for row in table.rows]
            self._say(row_description(table.columns, ()) + b"".join(rows))
            self._complete(statement, len(rows))

    # --- the extended protocol

    def _parse(self, payload: bytes) -> None:
        name, at = cut(payload, 0)
        sql, at = cut(payload, at)
        (count,) = unpack("!H", payload, at)
        given = [int(oid) for oid in unpack(f"!{count}I", payload, at + 2)]
        if name and name in self._prepared:
            raise error(f'prepared statement "{name[:63]}" already exists', "42P05")
        if len(self._prepared) >= PREPARED_MAX:
            raise error(f"a session may prepare {PREPARED_MAX} statements", "53000", hint="DEALLOCATE ALL.")
        statements = parse(sql)
        if len(statements) > 1:
            raise error("cannot insert multiple commands into a prepared statement", "42601")
        statement = statements[0] if statements else None
        wanted = parameters_of(statement) if statement is not None else {}
        most = max([len(given), *wanted])
        oids = [(given[at] if at < len(given) else 0) or wanted.get(at + 1, 0) or TEXT for at in range(most)]
        self._prepared[name] = Prepared(statement, oids)
        self._say(pgwire.message(b"1"))

    def _bind(self, payload: bytes) -> None:
        bind = read_bind(payload)
        prepared = self._statement(bind.statement)
        if len(bind.values) != len(prepared.oids):
            counts = f"supplies {len(bind.values)} parameters, but {len(prepared.oids)} are needed"
            raise error(f"bind message {counts}", "08P01")
        if bind.portal and bind.portal in self._portals:
            raise error(f'cursor "{bind.portal[:63]}" already exists', "42P03")
        self._portals[bind.portal] = Portal(prepared, bind)
        self._say(pgwire.message(b"2"))

    def _describe(self, payload: bytes) -> None:
        name = string(payload[1:])
        formats: tuple[int, ...] = ()
        if payload[:1] == b"S":
            prepared = self._statement(name)
            oids = prepared.oids
            self._say(pgwire.message(b"t", struct.pack(f"!H{len(oids)}I", len(oids), *oids)))
            statement = prepared.statement
        else:
            portal = self._portal(name)
            statement, formats = portal.prepared.statement, portal.bind.formats
        columns = None if statement is None else self._columns(statement)
        self._say(pgwire.message(b"n") if columns is None else row_description(columns, formats))

    async def _execute(self, payload: bytes) -> None:
        name, at = cut(payload, 0)
        (most,) = unpack("!i", payload, at)
        portal = self._portal(name)
        statement = portal.prepared.statement
        if statement is None:
            self._say(pgwire.message(b"I"))
            return
        if portal.table is None:
            self.queries += 1
            portal.table = await self._run(statement, portal)
        table = portal.table
        if table is None:
            self._complete(statement, 0)
            return
        end = len(table.rows) if most <= 0 else min(len(table.rows), portal.sent + most)
        rows = [data_row(row, table.columns, portal.bind.formats) for row in table.rows[portal.sent : end]]
        portal.sent = end
        self._say(b"".join(rows))
        if end < len(table.rows):
            self._say(pgwire.message(b"s"))
        else:
            self._complete(statement, len(rows))

    def _statement(self, name: str) -> Prepared:
        found = self._prepared.get(name)
        if found is None:
            raise error(f'prepared statement "{name[:63]}" does not exist', "26000")
        return found

    def _portal(self, name: str) -> Portal:
        found = self._portals.get(name)
        if found is None:
            raise error(f'portal "{name[:63]}" does not exist', "34000")
        return found

    # --- statements

    def _columns(self, statement: Statement) -> tuple[tuple[str, int], ...] | None:
        match statement:
            case Call():
                return tuple((column.name, column.oid) for column in statement.columns)
            case Scalars():
                return tuple((name, self._facts.type_of(item)) for name, item in statement.items)
            case Catalogue(columns):
                return columns
            case Show(what) if what in LISTS:
                return LISTS[what]
            case Show("all"):
                return SHOW_ALL
            case Show(what):
                return ((what, TEXT),)
            case Command():
                return None

    async def _run(self, statement: Statement, portal: Portal | None = None) -> Table | None:
        if self._status == b"E" and not (isinstance(statement, Command) and _ends(statement)):
            raise error(_ABORTED, "25P02")
        match statement:
            case Call():
                texts = [
                    argument(one, portal, "the text" if at else "the request")
                    for at, one in enumerate((statement.request, *statement.texts))
                ]
                row = await self._carry_out(
                    self._owner.capabilities.ask(self.app, texts[0], texts[1:], sidecar=self.sidecar)
                )
                columns = tuple((column.name, column.oid) for column in statement.columns)
                if statement.limit == 0:
                    return Table(columns)
                fields = dict(zip(COLUMNS, row, strict=True))
                return Table(columns, [tuple(column.value(fields) for column in statement.columns)])
            case Show(what) if what in LISTS:
                return await self._carry_out(self._owner.capabilities.show(self.app, what))
            case Show("all"):
                return Table(SHOW_ALL, self._facts.everything())
            case Show(what):
                return Table(((what, TEXT),), [(self._facts.get(what),)])
            case Scalars():
                items = [
                    (name, filled(item, lambda one: value_of(one, portal))) for name, item in statement.items
                ]
                found = [(name, *self._facts.evaluate(item)) for name, item in items]
                return Table(tuple((name, oid) for name, oid, _ in found), [[value for *_, value in found]])
            case Catalogue(columns, row):
                return Table(columns, [] if row is None else [row])
            case Command():
                self._tag = self._command(statement)
        return None

    async def _carry_out(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``; a CancelRequest or the statement's time limit ends it with 57014."""
        task = asyncio.current_task()
        assert task is not None
        self._running, self._cancelled = True, False
        try:
            limit = narrower(self._facts.statement_timeout_s, self.app.limits.statement_timeout_s)
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError:
            raise error("canceling statement due to statement timeout", "57014") from None
        except asyncio.CancelledError:
            if self._cancelled and not self._ended and task.uncancel() == 0:
                raise error("canceling statement due to user request", "57014") from None
            raise
        finally:
            self._running = False

    def _command(self, command: Command) -> str:
        """Do what a statement without rows does; its completion tag."""
        tag = command.tag
        match command.effect:
            case "begin":
                self._status = b"T" if self._status == b"I" else self._status
            case "commit" | "rollback":
                tag = "ROLLBACK" if self._status == b"E" else tag
                self._status = b"I"
            case "rollback to" if self._status == b"E":
                self._status = b"T"
            case "set":
                report = self._facts.set(command.name, command.value)
                if report is not None:
                    self._say(pgwire.parameter_status(*report))
            case "reset":
                self._facts.reset(command.name)
            case "deallocate":
                if command.name in {"", "all"}:
                    self._prepared.clear()
                elif self._prepared.pop(command.name, None) is None:
                    self._statement(command.name)
            case "discard":
                self._prepared.clear()
                self._facts.reset("all")
        return tag

    def _complete(self, statement: Statement, rows: int) -> None:
        match statement:
            case Command():
                tag = self._tag
            case Show():
                tag = "SHOW"
            case _:
                tag = f"SELECT {rows}"
        self._say(pgwire.message(b"C", tag.encode() + b"\0"))

    # --- the end

    def _say(self, data: bytes) -> None:
        if data and not self._closed:
            with contextlib.suppress(MeshError):
                self._stream.write(data, boundary=True)

    def _return(self, count: int) -> None:
        if count and not self._closed:
            self._stream.consumed(count)

    def _finish(self, outcome: str) -> None:
        if self._closed and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ended:
            return
        self._ended = True
        if self._task is not None and self._running:
            self._task.cancel()
        self._owner.ended(self, outcome)
        if not self._closed:
            with contextlib.suppress(MeshError):
                self._stream.write_eof()
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._linger_over)

    def _linger_over(self) -> None:
        self._timer = None
        if not self._closed:
            self._closed = True
            self._stream.reset(StreamCode.NO_ERROR)


def _ends(command: Command) -> bool:
    return command.effect in {"commit", "rollback", "rollback to"}


def _as_sql(problem: Problem) -> PostgresError:
    wait = problem.retry_after_s
    detail = "" if wait is None else f"Try again in {wait:g} s."
    return error(problem.message, problem.sqlstate, hint=problem.hint, detail=detail)

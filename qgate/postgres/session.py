"""One app's session at the gate: its stream on one side, a leased upstream connection on the other.

The session moves bytes and keeps both sides honest: credit goes back to the app only for what the server's
socket has taken, and the server is read only while the app's stream takes more. Whatever ends the session,
the app is told in PostgreSQL's own terms where a message boundary allows it, and otherwise cut off, never
left in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from qgate.governance.directory import App, Route
from qgate.postgres.authentication import AppLogin
from qgate.postgres.conversation import Conversation
from qgate.postgres.pool import Lease
from qgate.postgres.tally import Tally
from qgate.postgres.timeouts import CHECK_AT_LEAST_S, Timeouts
from tunnel_proto import pgwire
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import MeshError
from tunnel_proto.pgwire import PostgresError

if TYPE_CHECKING:
    from qgate.postgres.front import PostgresFront
    from tunnel_proto.link import StreamError

LINGER_S: Final = 10.0
"""How long a stream that we ended may take to close, and a message under way to be completed."""


class AppStream(Protocol):
    """What a session needs of its stream (`tunnel_proto.link.Stream`).

    A protocol, because compiled code would take nothing but that very class.
    """

    @property
    def writable(self) -> bool:
        """Whether more may be written now."""

    def write(self, data: bytes, *, boundary: bool = False, sensitive: bool = False) -> None:
        """Send ``data``."""

    def write_eof(self) -> None:
        """Send nothing more."""

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        """End both directions now."""

    def consumed(self, n: int) -> None:
        """Give the credit of ``n`` bytes back."""

    def set_compression(self, mode: str) -> None:
        """Compress by the route's mode."""


class FrontSession:
    """A receiver of stream events and the lessee of an upstream connection (see the two Protocols)."""

    def __init__(
        self, front: PostgresFront, stream: AppStream, startup: pgwire.Startup, login: AppLogin, sidecar: str
    ) -> None:
        self._front = front
        self.stream = stream
        self.startup = startup
        self._login: AppLogin | None = login
        self._clock = front.clock
        self.sidecar = sidecar
        self.database = startup.database
        self.app_name = startup.user
        self.started = front.clock()
        self.app: App | None = None
        self.route: Route | None = None
        self.lease: Lease | None = None
        self.cancel_key = b""
        self.conversation: Conversation | None = None
        self.tally: Tally | None = None
        self._greeting = b""
        self._early: list[bytes] = []
        self._deferred: list[bytes] = []
        self._opening: asyncio.Task[None] | None = None
        self._relaying: Conversation | None = None
        self._write_up: Callable[[bytes], None] = _nowhere
        self._write_down = stream.write
        self._consumed = stream.consumed
        self._full = False
        self._owed = 0
        self._eof = False
        self._leaving = False
        self._ending: PostgresError | None = None
        self._ended = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._link_timer: asyncio.TimerHandle | None = None
        self._holding = 0
        self._timeouts = Timeouts()
        self.timed = False
        """Whether any time limit applies to it."""
        self.next_check = 0.0
        """When `check` has something to look at again (the relay's clock)."""

    # --- what status shows

    @property
    def state(self) -> str:
        """``login``, ``queued``, ``active``, ``idle``, ``idle in transaction`` or ``ending``."""
        if self._ended or self._ending is not None:
            return "ending"
        if self.conversation is None:
            return "login" if self.app is None else "queued"
        if not self.conversation.idle:
            return "active"
        return "idle" if self.conversation.status == 0x49 else "idle in transaction"

    @property
    def queries(self) -> int:
        """Statements answered."""
        return 0 if self.conversation is None else self.conversation.statements

    @property
    def rows(self) -> int:
        """Rows the server counted."""
        return 0 if self.conversation is None else self.conversation.rows

    @property
    def bytes_relayed(self) -> int:
        """Both directions together."""
        return 0 if self.conversation is None else self.conversation.bytes_up + self.conversation.bytes_down

    # --- log-in

    def begin(self, timeout: float) -> None:
        """Greet the app; it has ``timeout`` seconds to prove who it is."""
        assert self._login is not None
        greeting = self._login.greeting()
        if greeting:
            self.stream.write(greeting, boundary=True, sensitive=True)
        self._timer = asyncio.get_running_loop().call_later(timeout, self._login_timed_out)

    def _login_timed_out(self) -> None:
        self.end(
            PostgresError("canceling authentication due to timeout", sqlstate="08006"), StreamCode.REFUSED
        )

    def _before_relay(self, data: bytes) -> None:
        if self._ended or self.conversation is not None:
            self._consumed(len(data))
            return
        login = self._login
        if login is None:
            self._early.append(data)  # no credit returns for it, so it is bounded by the stream's window
            return
        try:
            out = login.receive(data)
            app = None if login.proven is None else self._front.admit(self, login.proven)
        except PostgresError as error:
            self._consumed(len(data))
            self._refuse(error, login.outcome)
            return
        except Exception:
            self._consumed(len(data))
            self._fault()
            return
        rest = b"" if app is None else login.rest()
        self._consumed(len(data) - len(rest))
        if app is None:
            if out:
                self.stream.write(out, boundary=True, sensitive=True)
            return
        self.app = app
        self._login = None
        self._greeting = out
        self._stop_timer()
        if self._front.hand_over(self, app, out, rest):
            return
        if rest:
            self._early.append(rest)  # its credit returns once the relay has taken it
        self._opening = self._front.spawn(self._open(app))

    def _refuse(self, error: PostgresError, reason: str) -> None:
        """End a log-in that failed, at once or after the hold that earlier failures earned it."""
        self._front.refused(self, error, reason)
        hold = self._front.hold(self, error)
        if not hold:
            self.end(error, StreamCode.REFUSED)
            return
        self._login = None
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(hold, self.end, error, StreamCode.REFUSED)

    async def _open(self, app: App) -> None:
        """Get a lease and begin to relay; `_finish` cancels this."""
        try:
            route, lease = await self._front.open(self, app, self.startup)
        except PostgresError as error:
            self._opening = None
            self._front.refused(self, error, "")
            self._stream_write(self._greeting, sensitive=True)
            self.end(error, StreamCode.REFUSED)
            return
        except Exception:
            self._opening = None
            self._fault()
            return
        self._opening = None
        if self._ended:
            self._front.pool.give_back(lease, reusable=not lease.upstream.cancelled)
            self._front.leave(app.name)
            return
        self.route, self.lease = route, lease
        try:
            self._relay()
        except Exception:
            self._fault()

    def _relay(self) -> None:
        """Show the app that it is logged in, and begin to relay."""
        lease, upstream = self.lease, self.lease.upstream if self.lease else None
        assert lease is not None
        assert upstream is not None
        self._front.opened(self)
        conversation = self.conversation
        assert conversation is not None
        conversation.last_reply = self._clock()
        welcome = [self._greeting]
        welcome += [pgwire.parameter_status(*item) for item in upstream.parameters.items()]
        if upstream.pid is not None:
            welcome.append(pgwire.backend_key_data(upstream.pid, self.cancel_key))
        welcome.append(pgwire.ready_for_query())
        self._greeting = b""
        self._stream_write(b"".join(welcome), sensitive=True)
        self._write_up = upstream.transport.write
        self._relaying = conversation
        upstream.lease(self)
        if not self.stream.writable:
            upstream.transport.pause_reading()
        early, self._early = self._early, []
        for data in early:
            self.data_received(data, False)
        if self._eof:
            self._leave()

    # --- the stream's side

    def data_received(self, data: bytes, boundary: bool) -> None:
        """From the app."""
        conversation = self._relaying
        if conversation is None:
            self._before_relay(data)
            return
        if conversation.crowded or self._deferred:
            self._deferred.append(data)  # its credit is withheld, so it is bounded by the stream's window
            return
        try:
            out = conversation.frontend(data, self._clock())
        except PostgresError as error:
            conversation.tainted = True
            self.end(error, StreamCode.PROTOCOL)
            return
        except Exception:
            self._fault()
            return
        if out:
            self._write_up(out)
        if self._full:
            self._owed += len(data)
        else:
            self._consumed(len(data))
        if conversation.terminated:
            self._leave()

    def eof_received(self) -> None:
        """The app will send nothing more. What it asked for is still answered."""
        self._eof = True
        if self.conversation is not None:
            if not self._deferred:
                self._leave()
        elif self._opening is None:
            self._half_close()

    def stream_closed(self, error: StreamError | None) -> None:
        """The stream is gone."""
        del error
        self._closed = True
        self._finish()

    def pause_writing(self) -> None:
        """The app (or the tunnel) takes no more: stop reading the server."""
        if self.lease is not None and not self.lease.over:
            self.lease.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read the server again."""
        if self.lease is not None and not self.lease.over:
            self.lease.upstream.transport.resume_reading()

    def link_lost(self) -> None:
        """The tunnel is down: a session that holds locks may not hold them for the whole resume window."""
        conversation = self.conversation
        if conversation is not None and conversation.in_transaction and self._link_timer is None:
            after = self._front.settings.resume_in_transaction_s
            self._link_timer = asyncio.get_running_loop().call_later(after, self._link_expired)

    def link_restored(self) -> None:
        """The tunnel is back."""
        if self._link_timer is not None:
            self._link_timer.cancel()
            self._link_timer = None

    def _link_expired(self) -> None:
        self._link_timer = None
        conversation = self.conversation
        if conversation is not None and conversation.in_transaction and not self._ended:
            self._cut(
                StreamCode.SESSION_LOST,
                "the tunnel stayed down for too long while a transaction was open; it was rolled back",
                "08006",
            )

    # --- the server's side

    def upstream_data(self, data: bytes) -> None:
        """From the server."""
        conversation = self._relaying
        if conversation is None:
            self._complete(data)
            return
        try:
            out = conversation.backend(data, self._clock())
        except PostgresError as error:
            conversation.tainted = True
            self.end(error, StreamCode.UPSTREAM_LOST)
            return
        except Exception:
            self._fault()
            return
        if out:
            self._write_down(out, boundary=conversation.boundary)
        if self._deferred and not (self._holding or conversation.crowded):
            self._catch_up()
        if self._leaving and conversation.idle:
            self._leave()

    def _catch_up(self) -> None:
        """Take what the client had sent while it was held back."""
        deferred, self._deferred = self._deferred, []
        for data in deferred:
            self.data_received(data, False)
        if self._eof and not self._deferred:
            self._leave()

    def upstream_lost(self, error: Exception | None) -> None:
        """The server's connection is gone."""
        del error
        if self._ended:
            return
        conversation = self.conversation
        if conversation is not None and conversation.fatal is not None and conversation.boundary:
            self._front.ended(self, conversation.fatal)
            self._half_close()
            return
        lost = PostgresError(
            f'the server of database "{self.database}" closed the connection', sqlstate="08006"
        )
        self.end(lost, StreamCode.UPSTREAM_LOST)

    def upstream_full(self) -> None:
        """The server reads too slowly: withhold the app's credit."""
        self._full = True

    def upstream_drained(self) -> None:
        """Give the withheld credit back."""
        self._full = False
        owed, self._owed = self._owed, 0
        if owed and not self._closed:
            self._consumed(owed)

    # --- limits

    def limit(self, now: float) -> None:
        """Take over the time limits of app and route, at the start and whenever they change."""
        assert self.app is not None
        assert self.route is not None
        self._timeouts = Timeouts(self.app.limits, self.route.limits)
        self.timed = self._timeouts.any or self.app.expires_at is not None
        self.next_check = now

    def check(self, now: float, wall: float) -> None:
        """Apply the time limits; ``now`` is the relay's clock, ``wall`` unix time. Sets `next_check`."""
        conversation, app = self._relaying, self.app
        if conversation is None or app is None:
            return
        if app.expires_at is not None and wall >= app.expires_at:
            self.revoke(f'the credential of app "{app.name}" has expired')
            return
        due = None if conversation.replication else self._timeouts.check(conversation, now)
        self.next_check = now + CHECK_AT_LEAST_S if conversation.replication else self._timeouts.next_check
        if app.expires_at is not None:
            self.next_check = min(self.next_check, now + app.expires_at - wall)
        if due == "cancel":
            self._cancel_overdue(conversation)
        elif due is not None:
            self.end(due, StreamCode.REFUSED)

    # --- cancels

    def still_running(self) -> Callable[[], bool] | None:
        """A question for later: does any of what runs now still run? None where nothing runs."""
        conversation = self._relaying
        if conversation is None or conversation.idle:
            return None
        asked = conversation.asked
        return lambda: self._relaying is conversation and conversation.turns < asked

    def _cancel_overdue(self, conversation: Conversation) -> None:
        statements = conversation.statements

        def still() -> bool:
            same = self._relaying is conversation and conversation.statements == statements
            conversation.timeout_cancel = same and not conversation.idle
            return conversation.timeout_cancel

        self._front.cancel_overdue(self, still)

    def hold(self) -> None:
        """A cancel is being sent: let nothing new reach the server before it was taken."""
        self._holding += 1
        self._deferred.append(b"")  # everything else waits behind it

    def unhold(self) -> None:
        """The cancel was taken."""
        self._holding -= 1
        conversation = self._relaying
        if conversation is not None and not (self._holding or conversation.crowded):
            self._catch_up()

    # --- the end

    def _fault(self) -> None:
        """A fault of our own: this session ends, the others go on."""
        error = PostgresError("internal error of the gate", sqlstate="XX000")
        self._front.fault(self)
        if self.conversation is not None:
            self.conversation.tainted = True
        else:
            self._front.refused(self, error, "fault")
        self.end(error, StreamCode.INTERNAL)

    def revoke(self, message: str) -> None:
        """The right to be here was withdrawn."""
        self.end(
            PostgresError(
                "terminating connection due to administrator command", sqlstate="57P01", detail=message
            ),
            StreamCode.REVOKED,
        )

    def end(self, error: PostgresError, code: StreamCode) -> None:
        """End the session with a FATAL error at the next message boundary; at worst reset with ``code``."""
        if self._ended or self._ending is not None:
            return
        fatal = PostgresError(
            error.message, sqlstate=error.sqlstate, severity="FATAL", detail=error.detail, hint=error.hint
        )
        conversation, lease = self.conversation, self.lease
        if conversation is not None and conversation.down_remaining:
            if lease is None or lease.upstream.lost:
                self._cut(code, error.message, error.sqlstate)
                return
            self._ending = fatal
            self._relaying = None
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LINGER_S, self._cut, code, error.message, error.sqlstate)
            return
        self._say(fatal)

    def _complete(self, data: bytes) -> None:
        """Deliver the rest of the message under way, then say why the session ends."""
        conversation = self.conversation
        if conversation is None or self._ending is None:
            return
        remaining = conversation.down_remaining
        part = data[:remaining]
        conversation.backend(part, self._clock())
        self.stream.write(part, boundary=conversation.boundary)
        if not conversation.down_remaining:
            self._stop_timer()
            self._say(self._ending)

    def _say(self, fatal: PostgresError) -> None:
        self._stream_write(fatal.response(), sensitive=self.conversation is None)
        if self.conversation is not None:
            self._front.ended(self, fatal.sqlstate)
        self._half_close()

    def _stream_write(self, data: bytes, *, sensitive: bool) -> None:
        if data and not self._closed:
            self.stream.write(data, boundary=True, sensitive=sensitive)

    def _leave(self) -> None:
        """The app is done (Terminate or end of stream): go once everything it asked for was answered."""
        conversation = self.conversation
        if conversation is None or self._ended:
            return
        self._leaving = True
        if conversation.idle or conversation.waits_for_client:
            self._front.ended(self, "ok")
            self._half_close()

    def _half_close(self) -> None:
        """Nothing more will be written: let go of everything but the stream's own end."""
        self._finish()
        if not self._closed:
            try:
                self.stream.write_eof()
            except MeshError:
                return
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._linger_over)

    def _linger_over(self) -> None:
        self._timer = None
        if not self._closed:
            self._closed = True
            self.stream.reset(StreamCode.NO_ERROR)

    def _cut(self, code: StreamCode, message: str, sqlstate: str) -> None:
        """No message boundary in reach: end the stream at once."""
        if self.conversation is not None:
            self._front.ended(self, sqlstate)
        self._finish()
        if not self._closed:
            self._closed = True
            self.stream.reset(code, message, sqlstate=sqlstate)

    def _finish(self) -> None:
        """Give everything back, once."""
        self._stop_timer()
        self.link_restored()
        if self._ended:
            return
        self._ended = True
        self._relaying = None
        self._early.clear()
        if self._opening is not None:
            self._opening.cancel()  # it gives back what it holds
            self._opening = None
        lease, conversation = self.lease, self.conversation
        if lease is not None:
            if self._closed or self._ending is not None:
                self._front.ended(self, "08006")
            reusable = conversation is not None and conversation.reusable
            self._front.pool.give_back(lease, reusable=reusable)
        self._front.gone(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nowhere(data: bytes) -> None:
    """Where bytes for the server go before there is one; they never get here."""
    raise AssertionError(f"{len(data)} bytes for a server that is not there")

"""The time limits of one session, applied to what the server does: sans-I/O.

At any moment the server either works on a statement or waits for the client; while it waits, a transaction
is open or not. Each of the three has its limit, and nothing that a client leaves half said (a Flush without
a Sync, a part of a message, COPY data that never comes) makes a fourth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol

from qgate.governance.directory import Limits
from tunnel_proto.pgwire import PostgresError

CHECK_AT_LEAST_S: Final = 60.0
CANCEL_GRACE_S: Final = 10.0
"""How long a statement may go on after it was cancelled for running too long."""


class Talk(Protocol):
    """What a session says of itself: a conversation with a server, or with the virtual database."""

    @property
    def running_since(self) -> float | None:
        """When the statement began that runs; None: none does."""

    @property
    def waiting_since(self) -> float | None:
        """When the wait for the client began; None: it is not waited for."""

    @property
    def holds_transaction(self) -> bool:
        """Whether a transaction is open."""


def narrower(*limits: float | None) -> float | None:
    """The smallest of the limits that are set, None where none is."""
    return min((limit for limit in limits if limit is not None), default=None)


class Timeouts:
    """What applies to a session of an app on a route: the narrower limit of both, each."""

    def __init__(self, *limits: Limits) -> None:
        def each(field: Callable[[Limits], float | None]) -> float | None:
            return narrower(*map(field, limits))

        self._idle = each(lambda one: one.idle_timeout_s)
        self._transaction = each(lambda one: one.idle_in_transaction_s)
        self._statement = each(lambda one: one.statement_timeout_s)
        self._shortest = narrower(self._idle, self._transaction, self._statement)
        self._cancelled_at: float | None = None
        self.next_check = 0.0
        """When `check` has something to look at again (the clock of ``now``)."""

    @property
    def any(self) -> bool:
        """Whether any limit is set."""
        return self._shortest is not None

    def check(self, talk: Talk, now: float) -> PostgresError | Literal["cancel"] | None:
        """What is due: the end of the session, a cancel of the statement that runs, or nothing."""
        self.next_check = now + (CHECK_AT_LEAST_S if self._shortest is None else self._shortest)
        running = talk.running_since
        if running is not None:
            return self._running(running, now)
        self._cancelled_at = None
        waiting = talk.waiting_since
        if waiting is None:
            return None
        what, sqlstate, limit = (
            ("idle-in-transaction", "25P03", self._transaction)
            if talk.holds_transaction
            else ("idle-session", "57P05", self._idle)
        )
        if limit is None:
            return None
        if now - waiting < limit:
            self.next_check = min(self.next_check, waiting + limit)
            return None
        return PostgresError(f"terminating connection due to {what} timeout", sqlstate=sqlstate)

    def _running(self, since: float, now: float) -> PostgresError | Literal["cancel"] | None:
        limit = self._statement
        if limit is None:
            return None
        self.next_check = min(self.next_check, max(since + limit, now + limit / 4))
        if now - since < limit:
            return None
        if self._cancelled_at is None or self._cancelled_at < since:
            self._cancelled_at = now
            return "cancel"
        if now - self._cancelled_at < CANCEL_GRACE_S:
            return None
        return PostgresError("terminating connection due to statement timeout", sqlstate="57014")

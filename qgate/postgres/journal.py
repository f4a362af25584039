"""What sessions tell the audit log: that they began, were refused or ended, and what statements they ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from qgate.governance.audit import AuditEvent
from qgate.postgres.tally import Entry

if TYPE_CHECKING:
    from qgate.postgres.conversation import Conversation
    from qgate.postgres.session import FrontSession


class AuditSink(Protocol):
    """Where audit events go (`qgate.governance.audit.AuditLog`)."""

    @property
    def accepting(self) -> bool:
        """Whether a new session may begin as far as the audit log is concerned."""

    def record(self, event: AuditEvent) -> None:
        """Take one event; never blocks."""


class Journal:
    """Turns sessions and tallied statements into audit events; ``clock`` is the relay's, ``wall`` unix
    time.
    """

    def __init__(self, sink: AuditSink, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._sink = sink
        self._clock = clock
        self._wall = wall

    @property
    def accepting(self) -> bool:
        """Whether a new session may begin."""
        return self._sink.accepting

    def session(
        self, session: FrontSession, kind: str, *, outcome: str = "ok", detail: dict[str, Any] | None = None
    ) -> None:
        """A session began (``session.open``) or was not let in (``session.refused``)."""
        took = self._clock() - session.started
        self._sink.record(
            AuditEvent(
                kind=kind,
                app=session.app_name,
                sidecar=session.sidecar,
                database=session.database,
                duration_s=took,
                outcome=outcome,
                started_at=self._wall() - took,
                detail=detail or {},
            )
        )

    def close(self, session: FrontSession, conversation: Conversation, outcome: str) -> None:
        """A relayed session ended; the event holds its totals."""
        took = self._clock() - session.started
        self._sink.record(
            AuditEvent(
                kind="session.close",
                app=session.app_name,
                sidecar=session.sidecar,
                database=session.database,
                count=conversation.statements,
                rows=conversation.rows,
                bytes_up=conversation.bytes_up,
                bytes_down=conversation.bytes_down,
                duration_s=took,
                outcome=outcome,
                started_at=self._wall() - took,
            )
        )

    def statement(self, session: FrontSession, entry: Entry) -> None:
        """Statements that ended; 42501 is a denial, whoever spoke it."""
        found = entry.fingerprint
        self._sink.record(
            AuditEvent(
                kind="denied" if entry.outcome == "42501" else "query",
                app=session.app_name,
                sidecar=session.sidecar,
                database=session.database,
                fingerprint=None if found is None else found.text,
                fingerprint_id=None if found is None else found.id,
                count=entry.count,
                rows=entry.rows,
                bytes_up=entry.bytes_up,
                bytes_down=entry.bytes_down,
                duration_s=entry.duration,
                max_duration_s=entry.max_duration,
                outcome=entry.outcome,
                started_at=self._wall() - (self._clock() - entry.started),
            )
        )

"""Statements of one session gathered into audit events.

Where a route audits by interval, equal statements (same fingerprint, same outcome "ok") of one session
become one event with a count until the next flush. An error, a denial, DDL and a change of role always have
an event of their own; so has every statement where the route audits by statement. Memory is bounded by
`MAX_KINDS` a session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qgate.postgres.fingerprint import Fingerprint

MAX_KINDS: Final = 64
"""Different statements of a session that wait for a flush; one more flushes them all."""


@dataclass(slots=True)
class Entry:
    """What one audit event will say; times are of the relay's monotonic clock, in seconds."""

    fingerprint: Fingerprint | None
    outcome: str
    count: int
    rows: int
    bytes_up: int
    bytes_down: int
    duration: float
    max_duration: float
    started: float


class Tally:
    """The statements of a session since the last flush.

    ``emit`` gets finished entries; ``dirty`` is called once when entries begin to wait, so that somebody
    flushes.
    """

    def __init__(
        self, emit: Callable[[Entry], None], dirty: Callable[[], None], *, by_statement: bool = False
    ) -> None:
        self._emit = emit
        self._dirty = dirty
        self._by_statement = by_statement
        self._entries: dict[Fingerprint | None, Entry] = {}
        self._last_key: Fingerprint | None = None
        self._last: Entry | None = None

    def finished(
        self,
        fingerprint: Fingerprint | None,
        rows: int,
        bytes_up: int,
        bytes_down: int,
        started: float,
        duration: float,
        outcome: str,
    ) -> None:
        """Count one finished statement (`qgate.postgres.conversation.Finished`)."""
        last = self._last
        if last is not None and fingerprint is self._last_key and outcome == "ok":
            last.count += 1
            last.rows += rows
            last.bytes_up += bytes_up
            last.bytes_down += bytes_down
            last.duration += duration
            last.max_duration = max(last.max_duration, duration)
            return
        self._other(fingerprint, rows, bytes_up, bytes_down, started, duration, outcome)

    def _other(
        self,
        fingerprint: Fingerprint | None,
        rows: int,
        bytes_up: int,
        bytes_down: int,
        started: float,
        duration: float,
        outcome: str,
    ) -> None:
        own = self._by_statement or outcome != "ok" or (fingerprint is not None and fingerprint.own_entry)
        found = None if own else self._entries.get(fingerprint)
        if found is not None:
            self._last_key, self._last = fingerprint, found
            self.finished(fingerprint, rows, bytes_up, bytes_down, started, duration, outcome)
            return
        entry = Entry(fingerprint, outcome, 1, rows, bytes_up, bytes_down, duration, duration, started)
        if own:
            self._emit(entry)
            return
        if len(self._entries) >= MAX_KINDS:
            self.flush()
        if not self._entries:
            self._dirty()
        self._entries[fingerprint] = entry
        self._last_key, self._last = fingerprint, entry

    def flush(self) -> None:
        """Emit everything that waits."""
        entries = self._entries
        self._entries = {}
        self._last = None
        for entry in entries.values():
            self._emit(entry)

"""Why work went elsewhere than it would have gone for its own sake: the journal of shifts, and the audit."""

from __future__ import annotations

from collections import deque
from typing import Final

from qgate.governance.audit import AuditEvent, AuditLog
from qgate.store import Store
from qgate.store.budgets import Shift, add_shifts

JOURNAL_MAX: Final = 10_000
"""Entries that wait for the store; beyond it the oldest are dropped, and the audit has them still."""


class Journal:
    """Takes entries at once; `flush` writes them."""

    def __init__(self, store: Store, *, gate: str, audit: AuditLog | None) -> None:
        self._store = store
        self._gate = gate
        self._audit = audit
        self._waiting: deque[Shift] = deque(maxlen=JOURNAL_MAX)

    def note(self, shift: Shift) -> None:
        """Note one shift."""
        self._waiting.append(shift)
        if self._audit is None:
            return
        detail = {"what": f"budget.{shift.what}", "name": shift.budget, "reason": shift.reason}
        if shift.request:
            detail |= {"request": shift.request, "model": shift.to_model}
        self._audit.record(AuditEvent("budget", app=shift.app, started_at=shift.at, detail=detail))

    async def flush(self) -> None:
        """Write what waits. StoreUnavailableError leaves it waiting."""
        if not self._waiting:
            return
        shifts = list(self._waiting)
        async with self._store.connection() as connection:
            await add_shifts(connection, self._gate, shifts)
        written = {shift.id for shift in shifts}
        while self._waiting and self._waiting[0].id in written:
            self._waiting.popleft()

"""Budgets: how much a scope may spend in a calendar period (UTC). Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from qgate.capability.finops.prices import plain

SCOPES: Final = ("app", "team", "pool", "provider")
PERIODS: Final = ("hour", "day", "week", "month")


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on what `scope` `subject` may spend in each `period`; `subject` is empty for the whole pool.

    At `soft` work goes to local models where they can do it; `hard` is never passed. Either may be None.
    """

    scope: str
    subject: str
    period: str
    soft: Decimal | None
    hard: Decimal | None
    currency: str = "USD"

    @property
    def id(self) -> str:
        """Its name: "app:web/month", "pool/day"."""
        return f"{target(self.scope, self.subject)}/{self.period}"

    def concerns(self, *, app: str, team: str | None, provider: str) -> bool:
        """Whether what this app spends at this provider counts here."""
        wanted = {"app": app, "team": team, "pool": "", "provider": provider}[self.scope]
        return wanted is not None and wanted == self.subject

    def as_json(self) -> dict[str, Any]:
        """For replies."""
        return {
            "id": self.id,
            "scope": self.scope,
            "subject": self.subject or None,
            "period": self.period,
            "soft": None if self.soft is None else plain(self.soft),
            "hard": None if self.hard is None else plain(self.hard),
            "currency": self.currency,
        }


def target(scope: str, subject: str) -> str:
    """A scope with its subject as commands write it: "app:web", "pool"."""
    return f"{scope}:{subject}" if subject else scope


def period_of(period: str, at: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """The calendar period (UTC) that holds `at`: its start, and its end, which belongs to the next."""
    start = at.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return start, start + dt.timedelta(hours=1)
    start = start.replace(hour=0)
    if period == "day":
        return start, start + dt.timedelta(days=1)
    if period == "week":
        start -= dt.timedelta(days=start.weekday())
        return start, start + dt.timedelta(days=7)
    if period != "month":
        raise ValueError(f"there is no period {period!r}")
    start = start.replace(day=1)
    return start, (start + dt.timedelta(days=32)).replace(day=1)


def concerned(budgets: Iterable[Budget], *, app: str, team: str | None, provider: str) -> tuple[Budget, ...]:
    """The budgets that a request of this app at this provider counts in, in one order for every gate."""
    found = [one for one in budgets if one.concerns(app=app, team=team, provider=provider)]
    return tuple(sorted(found, key=lambda one: one.id))

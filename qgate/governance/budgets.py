"""Budgets: how much may be spent, what was, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

from qgate.capability.finops.accounts import SILENT_S
from qgate.capability.finops.budgets import PERIODS, SCOPES, Budget, target
from qgate.capability.finops.forecast import BurnRate, Forecast, forecast
from qgate.capability.finops.prices import plain
from qgate.governance.office import Office, iso
from qgate.governance.problems import InvalidRequestError, UnknownNameError
from qgate.governance.versions import versioned
from qgate.store.budgets import (
    Standing,
    all_budgets,
    drop_budget,
    history,
    list_shifts,
    put_budget,
    slices_of,
    standings,
)

Rows: TypeAlias = list[dict[str, Any]]

HISTORY: Final = 12
SHIFTS: Final = 100


class Budgets:
    """The budgets of the pool."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def list(self) -> Rows:
        """Every budget with how its present period stands."""
        async with self._office.store.transaction(snapshot=True) as connection:
            found = await standings(connection, silent_s=SILENT_S)
            return [_row(one, found[one.id]) for one in await all_budgets(connection)]

    async def show(self, identifier: str) -> dict[str, Any]:
        """One budget with its gates, its past periods and what it shifted."""
        async with self._office.store.transaction(snapshot=True) as connection:
            budget = await self._find(connection, identifier)
            stands = (await standings(connection, silent_s=SILENT_S))[budget.id]
            gates = await slices_of(connection, budget.id, stands.started_at)
            past = await history(connection, budget.id, HISTORY)
            shifts = await list_shifts(connection, budget.id, SHIFTS)
        return {
            **_row(budget, stands),
            "gates": [
                {
                    "gate": one["gate"],
                    "granted": plain(one["granted"]),
                    "spent": plain(one["spent"]),
                    "seen_at": iso(one["seen_at"]),
                }
                for one in gates
            ],
            "history": [
                {
                    "started_at": iso(one["started_at"]),
                    "spent": plain(one["spent"]),
                    "committed": plain(one["committed"]),
                }
                for one in past
            ],
            "shifts": [shown_shift(one) for one in shifts],
        }

    async def set(
        self,
        scope: str,
        subject: str,
        period: str,
        *,
        soft: Decimal | None,
        hard: Decimal | None,
        currency: str | None,
        by: str,
    ) -> dict[str, Any]:
        """Set a budget; what its present period has spent already counts.

        InvalidRequestError for what is no budget, UnknownNameError for an app or a provider that is none.
        """
        budget = Budget(
            scope, subject, period, soft, hard, currency or self._office.directory.setting("finops.currency")
        )
        self._check(budget)
        before = next((row for row in await self.list() if row["id"] == budget.id), None)
        async with self._office.store.transaction() as connection:
            await put_budget(connection, budget, by=by, at=self._office.now())
        limits = {"soft": soft, "hard": hard}
        detail = {name: plain(value) for name, value in limits.items() if value is not None}
        detail["currency"] = budget.currency
        after = versioned("budget", budget.as_json())
        await self._office.changed("budget.set", budget.id, by, detail, before=before, after=after)
        return next((row for row in await self.list() if row["id"] == budget.id), after)

    async def remove(self, identifier: str, *, by: str) -> None:
        """Lift a budget; what it has spent is kept, in case it is set again."""
        before = next((row for row in await self.list() if row["id"] == identifier), None)
        async with self._office.store.transaction() as connection:
            if not await drop_budget(connection, identifier):
                raise unknown_budget(identifier)
        await self._office.changed("budget.remove", identifier, by, before=before)

    async def shifts(self, limit: int) -> Rows:
        """The newest entries of the journal, newest first."""
        async with self._office.store.connection() as connection:
            return [shown_shift(row) for row in await list_shifts(connection, None, limit)]

    async def _find(self, connection: Any, identifier: str) -> Budget:
        for budget in await all_budgets(connection):
            if budget.id == identifier:
                return budget
        raise unknown_budget(identifier)

    def _check(self, budget: Budget) -> None:
        directory = self._office.directory
        if budget.scope not in SCOPES or budget.period not in PERIODS:
            raise InvalidRequestError(
                f"{budget.id} is no budget",
                hint=f"scopes: {', '.join(SCOPES)}; periods: {', '.join(PERIODS)}",
            )
        if (budget.scope == "pool") != (budget.subject == ""):
            raise InvalidRequestError("only the pool's budget is of nobody in particular", hint="app:NAME")
        if budget.scope == "app" and directory.app(budget.subject) is None:
            raise UnknownNameError(f"there is no app {budget.subject}", hint="meshctl app list")
        if budget.scope == "provider" and budget.subject not in directory.providers():
            raise UnknownNameError(f"there is no provider {budget.subject}", hint="meshctl provider list")
        if budget.soft is None and budget.hard is None:
            raise InvalidRequestError("a budget has a soft limit, a hard one, or both", hint="--hard 50")
        if budget.soft is not None and budget.hard is not None and budget.soft > budget.hard:
            raise InvalidRequestError("the soft limit is above the hard one, so it would never be reached")


def unknown_budget(identifier: str) -> UnknownNameError:
    """The error for a name that is no budget."""
    return UnknownNameError(f"there is no budget {identifier}", hint="meshctl budget list")


def shown_shift(row: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the journal as the control API shows it."""
    return {**{name: row[name] or None for name in _SHIFT}, "at": iso(row["at"])}


_SHIFT: Final = ("gate", "budget", "what", "app", "request", "from_model", "to_model", "reason")


def _row(budget: Budget, stands: Standing) -> dict[str, Any]:
    spent = stands.spent + stands.lost
    elapsed = (stands.ends_at - stands.started_at).total_seconds() - stands.remaining_s
    burn = BurnRate(budget.period)
    burn.sample(spent, 0.0, elapsed_s=elapsed)
    coming = forecast(spent, budget.hard, burn.per_s, stands.remaining_s)
    return versioned(
        "budget",
        {
            **budget.as_json(),
            "spent": plain(stands.spent),
            "lost": plain(stands.lost),
            "committed": plain(stands.committed),
            "left": None if budget.hard is None else plain(max(Decimal(0), budget.hard - spent)),
            "used": _share(spent, budget),
            "started_at": iso(stands.started_at),
            "ends_at": iso(stands.ends_at),
            "forecast": _forecast(coming),
        },
    )


def _share(spent: Decimal, budget: Budget) -> float | None:
    limit = budget.hard if budget.hard is not None else budget.soft
    return None if not limit else round(float(spent / limit), 4)


def _forecast(coming: Forecast) -> dict[str, Any]:
    return {
        "per_hour": round(coming.per_s * 3600, 6),
        "projected": plain(coming.projected),
        "ends_in_s": None if coming.ends_in_s is None else round(coming.ends_in_s),
        "in_time": coming.in_time,
    }


def named(text: str) -> tuple[str, str]:
    """ "app:web" → ("app", "web"), "pool" → ("pool", ""). InvalidRequestError for neither."""
    scope, colon, subject = text.partition(":")
    if scope not in SCOPES or (scope == "pool") == bool(colon) or (colon and not subject):
        raise InvalidRequestError(
            f"{text!r} is nobody's budget", hint="app:NAME, team:NAME, provider:NAME or pool"
        )
    assert target(scope, subject) == text
    return scope, subject

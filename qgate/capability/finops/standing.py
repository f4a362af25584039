"""How a budget stands, as one gate knows it between two looks at the store. Pure; `now` is monotonic time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from qgate.capability.finops.budgets import Budget
from qgate.capability.finops.forecast import BurnRate, Forecast, Pressure, forecast, pressure
from qgate.capability.finops.prices import plain
from qgate.capability.finops.purse import ZERO, Purse, Slice

REFUSAL_HELD_S: Final = 0.5
"""How long the store's "no" is repeated from memory, so that refused requests do not crowd its lock."""


@dataclass(slots=True)
class Account:
    """One budget at this gate: its purse, what the pool has spent, its rate, and what that means.

    `committed` and `pool_spent` are as the store said at `seen_at`; `until` is the period's end.
    """

    budget: Budget
    run: str
    purse: Purse
    burn: BurnRate
    committed: Decimal = ZERO
    pool_spent: Decimal = ZERO
    seen_at: float | None = None
    until: float = 0.0
    period_s: float = 0.0
    ends_at: datetime | None = None
    mood: Pressure = field(default_factory=lambda: Pressure(0.0))
    shifting: bool = False
    refused_above: Decimal | None = None
    refused_at: float = 0.0

    @classmethod
    def of(cls, budget: Budget, run: str) -> Account:
        """An account of which nothing is known yet; `run` names it in the store and is never used again."""
        return cls(budget, run, Purse(budget.id), BurnRate(budget.period))

    def spent(self) -> Decimal:
        """What the pool has spent: as told by all gates, and what this one has not told yet."""
        untold = sum((one.spent - one.told for one in self.purse.slices[-1:]), ZERO)
        return self.pool_spent + untold + self.purse.debt

    def room(self, now: float) -> Decimal | None:
        """The most that could be set aside if every other gate gave back what it holds; None: not known."""
        if self.budget.hard is None or self.seen_at is None or now >= self.until:
            return None
        current = self.purse.current(now)
        reserved = ZERO if current is None else current.reserved
        return max(ZERO, self.budget.hard - self.spent() - reserved)

    def saw(
        self,
        *,
        committed: Decimal,
        spent: Decimal,
        started_at: datetime,
        ends_at: datetime,
        remaining_s: float,
        now: float,
    ) -> None:
        """Take in what the store says of the running period."""
        self.committed, self.pool_spent = committed, spent
        self.seen_at, self.until, self.ends_at = now, now + remaining_s, ends_at
        self.period_s = (ends_at - started_at) / timedelta(seconds=1)
        if self.purse.slices and self.purse.slices[-1].started_at != started_at:
            # Our last slice is of another period, so nothing of it is in what the store says.
            self.purse.slices.append(_nothing_yet(started_at, self.until))
        self.burn.sample(self.spent(), now, elapsed_s=self.period_s - remaining_s)

    def coming(self, now: float) -> Forecast:
        """Where the period goes at the present rate."""
        return forecast(self.spent(), self.budget.hard, self.burn.per_s, max(0.0, self.until - now))

    def judge(self, now: float, *, watch_from: float) -> bool:
        """Renew `mood`; whether it began or ended to ask for local models."""
        if self.seen_at is None:
            return False
        self.mood = pressure(
            spent=self.spent(),
            soft=self.budget.soft,
            hard=self.budget.hard,
            coming=self.coming(now),
            shifting=self.shifting,
            watch_from=watch_from,
        )
        changed = (self.mood.strength > 0) != self.shifting
        self.shifting = self.mood.strength > 0
        return changed

    def refuse(self, above: Decimal, now: float) -> None:
        """Remember that the store had no room for more than `above`."""
        self.refused_above, self.refused_at = above, now

    def refuses(self, amount: Decimal, now: float) -> bool:
        """Whether the store has just said no to as much."""
        return (
            self.refused_above is not None
            and now - self.refused_at < REFUSAL_HELD_S
            and amount > self.refused_above
        )

    def left_in_words(self, room: Decimal | None) -> str:
        """What is left of the limit, for the one who is refused."""
        hard = self.budget.hard
        left = "" if room is None else f"{money(max(ZERO, room))} of "
        limit = "" if hard is None else f"{money(hard)} {self.budget.currency} a {self.budget.period}"
        until = f" until {self.ends_at:%Y-%m-%d %H:%M}Z" if self.ends_at is not None else ""
        return f"the budget {self.budget.id} has {left}{limit} left{until}"


def money(amount: Decimal) -> str:
    """An amount for people: at most six digits behind the point."""
    return plain(amount.quantize(Decimal("0.000001")))


def _nothing_yet(started_at: datetime, until: float) -> Slice:
    return Slice(started_at, until)

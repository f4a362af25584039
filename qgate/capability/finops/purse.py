"""What a gate holds of one budget: the slice that it leased, what it set aside, what it spent. Pure.

    free = granted - reserved - spent

A reservation belongs to the period in which it was made, also where it is settled in the next. A slice is
spent from until its period ends, told by a monotonic clock that began before the database looked at its own:
the gate stops a little early, never late.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

ZERO: Final = Decimal(0)


@dataclass(slots=True)
class Slice:
    """A gate's part of one period; `until` is monotonic time. `told` is what the store knows to be spent."""

    started_at: datetime
    until: float
    granted: Decimal = ZERO
    reserved: Decimal = ZERO
    spent: Decimal = ZERO
    told: Decimal = ZERO
    used_at: float = 0.0
    told_at: float = 0.0

    @property
    def free(self) -> Decimal:
        """What may still be set aside; below zero where more was spent than had been set aside."""
        return self.granted - self.reserved - self.spent


@dataclass(slots=True)
class Share:
    """What one reservation took of one slice; `slice` None: spent on trust while the store was away."""

    purse: Purse
    slice: Slice | None
    amount: Decimal
    open: bool = True


class Purse:
    """One budget's money at this gate. Old slices stay until they are settled and told."""

    def __init__(self, budget: str) -> None:
        self.budget = budget
        self.slices: list[Slice] = []
        self.debt = ZERO

    def current(self, now: float) -> Slice | None:
        """The slice of the running period, if there is one."""
        if self.slices and now < self.slices[-1].until:
            return self.slices[-1]
        return None

    def free(self, now: float) -> Decimal:
        """What may be set aside at once."""
        current = self.current(now)
        return ZERO if current is None else max(ZERO, current.free)

    def take(self, amount: Decimal, now: float) -> Share | None:
        """Set `amount` aside; None where there is not enough."""
        current = self.current(now)
        if current is None or current.free < amount:
            return None
        current.reserved += amount
        current.used_at = now
        return Share(self, current, amount)

    def add(self, granted: Decimal, started_at: datetime, until: float, now: float) -> None:
        """Hold what was leased."""
        if not self.slices or self.slices[-1].started_at != started_at:
            self.slices.append(Slice(started_at, until, used_at=now, told_at=now))
        slice_ = self.slices[-1]
        slice_.granted += granted
        slice_.until = until

    def give_back(self, now: float, *, idle_s: float) -> Decimal:
        """Take what is free out of a slice that was not used for `idle_s` seconds, and say how much.

        It is no longer held from now on, whether or not the store hears of it.
        """
        current = self.current(now)
        if current is None or current.free <= 0 or now - current.used_at < idle_s:
            return ZERO
        free = current.free
        current.granted -= free
        return free

    def settled(self, share: Share, cost: Decimal) -> None:
        """Replace what was set aside by what it cost."""
        if not share.open:
            return
        share.open = False
        if share.slice is None:
            self.debt += cost
            return
        share.slice.reserved -= share.amount
        share.slice.spent += cost

    def forget(self, now: float) -> None:
        """Drop slices of periods that are over, settled and told."""
        self.slices = [
            one for one in self.slices if now < one.until or one.reserved > 0 or one.spent != one.told
        ]

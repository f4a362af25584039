"""When a budget ends at the present rate, and whether that is before its period does. Pure.

The rate is an exponentially weighted average whose half-life is a part of the period: an hour's budget looks
back over minutes, a month's over a day. Until there is a second sample it is what the period has spent so far
over the time that it has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final

HALF_LIFE_S: Final[Mapping[str, float]] = MappingProxyType(
    {"hour": 300.0, "day": 3_600.0, "week": 6 * 3_600.0, "month": 24 * 3_600.0}
)
RELIEF: Final = 0.9
"""A shift that the forecast began ends when the projection is back below this part of the limit."""
RATE_FROM_S: Final = 60.0  # a period younger than this says nothing about its rate


class BurnRate:
    """Money a second, from what a period has spent at moments of any distance (`now`: any clock)."""

    def __init__(self, period: str) -> None:
        self._half_life = HALF_LIFE_S[period]
        self._spent = 0.0
        self._at: float | None = None
        self.per_s = 0.0

    def sample(self, spent: Decimal, now: float, *, elapsed_s: float) -> None:
        """Look at the total that a period has spent when it has run for `elapsed_s` seconds."""
        total = float(spent)
        if self._at is None:
            self.per_s = total / max(elapsed_s, RATE_FROM_S)
        elif (passed := now - self._at) > 0:
            # After a change of period the total begins anew.
            burnt = total - self._spent if total >= self._spent else total
            weight = 1.0 - 0.5 ** (passed / self._half_life)
            self.per_s += weight * (burnt / passed - self.per_s)
        else:
            return
        self._spent, self._at = total, now


@dataclass(frozen=True, slots=True)
class Forecast:
    """Where a period goes: `per_s`, `projected` at its end, `ends_in_s` until the limit (None: never)."""

    per_s: float
    projected: Decimal
    ends_in_s: float | None
    remaining_s: float

    @property
    def in_time(self) -> bool:
        """Whether the money lasts until the period's end."""
        return self.ends_in_s is None or self.ends_in_s >= self.remaining_s


def forecast(spent: Decimal, limit: Decimal | None, per_s: float, remaining_s: float) -> Forecast:
    """Go on at this rate until the period ends."""
    ahead = Decimal(per_s * max(remaining_s, 0.0)).quantize(Decimal("0.000001"))
    ends: float | None = None
    if limit is not None:
        left = float(limit - spent)
        if left <= 0:
            ends = 0.0
        elif per_s > 0:
            ends = left / per_s
    return Forecast(per_s, spent + ahead, ends, remaining_s)


@dataclass(frozen=True, slots=True)
class Pressure:
    """Whether a budget asks for local models: `strength` 0 to 1 (0: it does not), and why in words."""

    strength: float
    reason: str = ""


def pressure(
    *,
    spent: Decimal,
    soft: Decimal | None,
    hard: Decimal | None,
    coming: Forecast,
    shifting: bool,
    watch_from: float,
) -> Pressure:
    """Judge a budget. `shifting`: it asks for local models already; `watch_from`: the part of the hard limit
    from which the forecast counts.
    """
    if soft is not None and spent >= soft:
        width = float(hard - soft) if hard is not None else float(soft)
        strength = 1.0 if width <= 0 else min(1.0, float(spent - soft) / width)
        return Pressure(max(strength, 0.01), "its soft limit is reached")
    if hard is None or hard <= 0 or float(spent) < watch_from * float(hard):
        return Pressure(0.0)
    limit = float(hard) * (RELIEF if shifting else 1.0)
    if float(coming.projected) <= limit:
        return Pressure(0.0)
    ends = coming.ends_in_s if coming.ends_in_s is not None else coming.remaining_s
    left = max(coming.remaining_s, 1.0)
    return Pressure(
        min(1.0, max(0.01, 1.0 - ends / left)),
        f"at the present rate it ends {_span(coming.remaining_s - ends)} before its period does"
        if ends < coming.remaining_s
        else "it was ending before its period and has not recovered yet",
    )


def _span(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} d"

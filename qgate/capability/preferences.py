"""The scheduler's settings, as one slice: read from the registry's `schedule.*` for each decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Weights:
    """What makes a candidate dear, all in seconds. The score is their sum; the lowest is taken.

    `time` multiplies predicted seconds, `quality` is paid for all that lacks to quality 1, `money` for one
    unit of currency, `abroad` for leaving the company, `pressure` for spending while a budget burns too fast.
    """

    time: float = 1.0
    quality: float = 30.0
    money: float = 200.0
    abroad: float = 0.0
    pressure: float = 120.0


PREFERENCES: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "speed": {"time": 4.0, "quality": 0.1, "money": 0.5, "abroad": 1.0},
        "quality": {"time": 0.25, "quality": 10.0, "money": 0.25, "abroad": 1.0},
        "cost": {"time": 0.5, "quality": 0.5, "money": 2000.0, "abroad": 1.0},
        "privacy": {"time": 1.0, "quality": 1.0, "money": 1.0, "abroad": 1.0},
    }
)
"""What `prefer` multiplies the weights by."""

PRIVACY_ABROAD_S: Final = 3600.0
"""What leaving the company costs with prefer=privacy: any local candidate goes first."""


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """Each field is the setting `schedule.<field>`; times in seconds."""

    quality_s: float = 30.0
    money_s: float = 200.0
    pressure_s: float = 120.0
    expected_tokens: int = 200
    max_tokens: int = 4096
    tolerance: float = 0.1
    load_wait_s: float = 10.0
    queue_wait_s: float = 3.0
    retry_wait_s: float = 2.0
    attempts: int = 4
    grace_s: float = 1.5
    silence_s: float = 6.0
    stall_s: float = 60.0
    in_flight: int = 512
    queue: int = 100
    queue_timeout_s: float = 30.0
    undeclared: str = "providers"

    @classmethod
    def read(cls, setting: Callable[[str], Any]) -> ScheduleSettings:
        """From a look-up by name, such as `Directory.setting`."""
        return cls(*map(setting, SETTINGS))

    def weights(self, prefer: str | None) -> Weights:
        """What counts how much, with what the request prefers."""
        factor = PREFERENCES.get(prefer or "", {})
        return Weights(
            time=factor.get("time", 1.0),
            quality=self.quality_s * factor.get("quality", 1.0),
            money=self.money_s * factor.get("money", 1.0),
            abroad=PRIVACY_ABROAD_S if prefer == "privacy" else 0.0,
            pressure=self.pressure_s,
        )


SETTINGS: Final = tuple(f"schedule.{one.name}" for one in fields(ScheduleSettings))
"""The settings' names, in the order of the fields."""

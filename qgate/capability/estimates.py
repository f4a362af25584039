"""What was measured of each deployment (a model on a node), and what its claims are worth beside it.

An average with exponential weights follows a change within a few requests; its peak form (Finagle's
peak-EWMA) takes a rise at once and forgets it slowly, so that a node that stalls is avoided before an average
would have noticed. A daemon's claims count until the gate has measured, and never beyond what hardware of
today can do; a daemon whose claims proved too high is believed less about its other models.
"""

from __future__ import annotations

import math
from typing import Final

ALPHA: Final = 0.3
"""Weight of the newest observation: the last five weigh five sixths."""

PEAK_DECAY_S: Final = 10.0
"""Time in which a peak falls to 1/e of its distance from the average."""

TRUSTED_AFTER: Final = 3
"""Observations after which a claim no longer counts at all."""

SPEED_CLAIM_MAX: Final = 2_000.0
"""Tokens/s of one sequence; the fastest accelerators serve small models below this."""

PREFILL_CLAIM_MAX: Final = 100_000.0
"""Prompt tokens/s."""

SPEED_MIN: Final = 0.01
"""Tokens/s that are counted with at least: a claim next to nothing would make seconds without end, and such
numbers spread."""

TRUST_MIN: Final = 0.05

DEFAULT_SPEED: Final = 20.0
"""Tokens/s where nothing is claimed or measured: a small model on an ordinary CPU."""

PREFILL_FACTOR: Final = 8.0
"""Prompt tokens are evaluated in batches: this much faster than the answer's, where nothing is known."""


def plausible(value: float, maximum: float) -> float:
    """A claimed speed within what is possible; 0 for nonsense."""
    if not math.isfinite(value) or value <= 0:
        return 0.0
    return min(value, maximum)


class Average:
    """An exponentially weighted mean."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def observe(self, value: float) -> None:
        """Take one observation; what is not a finite number is ignored."""
        if not math.isfinite(value) or value < 0:
            return
        self.value = value if not self.count else self.value + ALPHA * (value - self.value)
        self.count = min(self.count + 1, 1_000_000)


class Peak:
    """An average that jumps up to each higher observation and decays towards the lower ones with time."""

    __slots__ = ("_at", "count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0
        self._at = 0.0

    def observe(self, value: float, now: float) -> None:
        """Take one observation, made at monotonic time `now`."""
        if not math.isfinite(value) or value < 0:
            return
        if not self.count or value > self.value:
            self.value = value
        else:
            kept = math.exp(-max(0.0, now - self._at) / PEAK_DECAY_S)
            kept = min(kept, 1 - ALPHA)
            self.value = value + (self.value - value) * kept
        self._at = now
        self.count = min(self.count + 1, 1_000_000)


class Estimate:
    """What one deployment was seen to do. Speeds in tokens/s of one sequence, times in seconds."""

    __slots__ = ("first_token", "load", "prefill", "service", "speed")

    def __init__(self) -> None:
        self.first_token = Peak()
        self.speed = Average()
        self.prefill = Average()
        self.service = Average()  # of a whole request
        self.load = Average()

    def observe(
        self,
        now: float,
        *,
        first_token_s: float | None = None,
        decode: tuple[int, float] | None = None,
        prefill: tuple[int, float] | None = None,
        service_s: float | None = None,
    ) -> None:
        """Take what one request showed; `decode` and `prefill` are (tokens, seconds)."""
        if first_token_s is not None:
            self.first_token.observe(first_token_s, now)
        if decode is not None and decode[0] >= 4 and 0 < decode[1] < math.inf:
            self.speed.observe(decode[0] / decode[1])
        if prefill is not None and prefill[0] >= 8 and 0 < prefill[1] < math.inf:
            self.prefill.observe(prefill[0] / prefill[1])
        if service_s is not None:
            self.service.observe(service_s)

    def speed_of(self, claimed: float, trust: float = 1.0) -> float:
        """Tokens/s to count with: measured, else the claim as far as it is to be believed."""
        speed = _blend(self.speed, plausible(claimed, SPEED_CLAIM_MAX) * trust) or DEFAULT_SPEED * trust
        return max(SPEED_MIN, speed)

    def prefill_of(self, claimed: float, speed: float, trust: float = 1.0) -> float:
        """Prompt tokens/s to count with; `speed` is what was found for the answer's."""
        found = _blend(self.prefill, plausible(claimed, PREFILL_CLAIM_MAX) * trust) or speed * PREFILL_FACTOR
        return max(SPEED_MIN, found)


class Trust:
    """How much of a node's claims came true: the mean of measured over claimed, never above 1."""

    __slots__ = ("_ratio",)

    def __init__(self) -> None:
        self._ratio = Average()

    def observe(self, measured: float, claimed: float) -> None:
        """One deployment's measured speed beside what was claimed of it."""
        if claimed > 0 and measured > 0:
            self._ratio.observe(min(measured / claimed, 1.0))

    @property
    def value(self) -> float:
        """1 where nothing is known. Batching slows each sequence, so half of a claim is not yet a lie."""
        if not self._ratio.count:
            return 1.0
        return min(1.0, max(TRUST_MIN, 2 * self._ratio.value))


def _blend(measured: Average, claimed: float) -> float:
    if not measured.count:
        return claimed
    if measured.count >= TRUSTED_AFTER or not claimed:
        return measured.value
    share = measured.count / TRUSTED_AFTER
    return share * measured.value + (1 - share) * min(claimed, 4 * measured.value)

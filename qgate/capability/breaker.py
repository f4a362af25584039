"""A circuit breaker: what keeps failing is left alone for a while, then asked one question.

Without it each request pays for the same discovery: a provider that is down costs every caller its timeout.
Failures in a row count, not their share of many: one success is proof that the way is open again. After a
pause the breaker lets exactly one request through (the probe); what comes of it decides.

    state      | success | failure                         | Retry-After t    | the pause is over
    -----------+---------+---------------------------------+------------------+------------------
    closed     | closed  | closed, open at the limit       | open for t       | -
    open       | closed  | open (nothing new)              | open, at least t | half-open
    half-open  | closed  | open, pause doubled             | open for t       | -

A success in the state open is a request that began before. Each opening after the first doubles the pause, up
to a bound; the doubling is forgotten with the first success.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

RETRY_AFTER_MAX_S: Final = 3600.0
"""A Retry-After beyond this is taken for this: a provider cannot lock itself out for ever."""

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens and for how long."""

    failures: int = 3  # in a row
    pause_s: float = 5.0
    pause_max_s: float = 120.0


class Breaker:
    """The state of one way. `now` is monotonic time, in seconds."""

    __slots__ = ("_failed_at", "_failures", "_limits", "_openings", "_until", "probing", "reason", "state")

    def __init__(self, limits: BreakerLimits) -> None:
        self.state: State = "closed"
        self.reason = ""
        self.probing = False  # half-open, and the one probe is under way
        self._limits = limits
        self._failures = 0
        self._failed_at = -math.inf
        self._openings = 0
        self._until = 0.0

    @property
    def lets_pass(self) -> bool:
        """Whether a request may go this way now."""
        return self.state == "closed" or (self.state == "half-open" and not self.probing)

    @property
    def until(self) -> float:
        """When an open breaker lets its probe through."""
        return self._until

    @property
    def clean(self) -> bool:
        """Whether it has nothing to remember."""
        return self.state == "closed" and not self._failures and not self._openings

    def poll(self, now: float) -> bool:
        """Let time pass; True where the state changed."""
        if self.state == "open" and now >= self._until:
            self.state = "half-open"
            self.probing = False
            return True
        return False

    def began(self) -> None:
        """A request goes this way: in the state half-open it is the probe."""
        if self.state == "half-open":
            self.probing = True

    def abandoned(self) -> None:
        """A request ended and says nothing of the way (cancelled, or its own fault): the probe is free."""
        self.probing = False

    def succeeded(self) -> None:
        """A request got its answer."""
        self.state = "closed"
        self.reason = ""
        self.probing = False
        self._failures = self._openings = 0

    def failed(
        self, now: float, reason: str, *, retry_after_s: float | None = None, apart_s: float = 0.0
    ) -> None:
        """A request failed through no fault of its own.

        Those that fail less than ``apart_s`` seconds after one another failed of one and the same thing.
        """
        same = now - self._failed_at < apart_s
        self._failed_at = now
        if same and self.state != "half-open":
            return
        self._failures += 1
        self.reason = reason
        if retry_after_s is not None and retry_after_s > 0:
            wait = min(retry_after_s, RETRY_AFTER_MAX_S)
            self._until = max(self._until, now + wait) if self.state == "open" else now + wait
            self.state = "open"
            self.probing = False
        elif self.state == "half-open" or (
            self.state == "closed" and self._failures >= self._limits.failures
        ):
            pause = min(self._limits.pause_s * 2.0**self._openings, self._limits.pause_max_s)
            self._openings = min(self._openings + 1, 32)
            self.state = "open"
            self._until = now + pause
            self.probing = False

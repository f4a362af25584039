"""How many requests and tokens a minute an app may have: token buckets. Pure; `now` is any clock in seconds.

A bucket holds one minute's worth, so an app that was idle may spend a minute's worth at once and is then let
in at its rate. Tokens are taken as estimated when a request comes and corrected when it is known what it
used, so a bucket may be in debt; a request that is larger than a whole bucket waits until that is full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from qgate.governance.policy import CapabilityPolicy

MINUTE_S: Final = 60.0
RETRY_LEAST_S: Final = 1.0  # Retry-After is whole seconds


@dataclass(frozen=True, slots=True)
class RateRefusal:
    """Why a request has to wait: `what` is "requests" or "tokens", `limit` is a minute's worth."""

    what: str
    limit: int
    retry_after_s: float


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float

    def fill(self, limit: float, now: float) -> None:
        """Add what came in since; a clock that went backwards adds nothing."""
        self.level = min(limit, self.level + max(0.0, now - self.at) * limit / MINUTE_S)
        self.at = now

    def wait(self, wanted: float, limit: float) -> float:
        """Seconds until `wanted` may be taken; 0: now."""
        missing = min(wanted, limit) - self.level
        return 0.0 if missing <= 0 else missing * MINUTE_S / limit


class RateLimits:
    """The buckets of all apps. `gates` is among how many gates an app's limit is divided (at least 1)."""

    def __init__(self, gates: Callable[[], int] = lambda: 1) -> None:
        self._gates = gates
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def admit(self, app: str, policy: CapabilityPolicy, tokens: int, now: float) -> RateRefusal | None:
        """Take one request and so many estimated tokens, or nothing at all and say when to come again."""
        wanted = [
            (what, limit, amount, self._bucket(app, what, limit, now))
            for what, limit, amount in (
                ("requests", policy.requests_per_minute, 1),
                ("tokens", policy.tokens_per_minute, tokens),
            )
            if limit is not None
        ]
        parts = max(1, self._gates())
        waits = [(bucket.wait(amount, limit / parts), what, limit) for what, limit, amount, bucket in wanted]
        wait, what, limit = max(waits, default=(0.0, "", 0))
        if wait > 0:
            return RateRefusal(what, limit, max(RETRY_LEAST_S, math.ceil(wait)))
        for _, _, amount, bucket in wanted:
            bucket.level -= amount
        return None

    def correct(self, app: str, policy: CapabilityPolicy, estimated: int, used: int, now: float) -> None:
        """Say what a request that was let in really used."""
        if (limit := policy.tokens_per_minute) is not None:
            bucket = self._bucket(app, "tokens", limit, now)
            bucket.level = min(limit / max(1, self._gates()), bucket.level + estimated - used)

    def forget(self, apps: Iterable[str]) -> None:
        """Drop the buckets of apps that are gone; a changed one begins anew, full."""
        for app in apps:
            self._buckets.pop((app, "requests"), None)
            self._buckets.pop((app, "tokens"), None)

    def _bucket(self, app: str, what: str, limit: int, now: float) -> _Bucket:
        share = limit / max(1, self._gates())
        bucket = self._buckets.get((app, what))
        if bucket is None:
            bucket = self._buckets[(app, what)] = _Bucket(share, now)
        bucket.fill(share, now)
        return bucket

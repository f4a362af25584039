"""Failed log-ins in a row, and how long the next refusal is held back for them: sans-I/O."""

from __future__ import annotations

from typing import Final

FREE: Final = 2
"""Failures in a row that cost nothing: a person mistypes."""
FIRST_HOLD_S: Final = 0.25
"""What the first failure after those costs; each further one twice as much."""
LONGEST_HOLD_S: Final = 2.0
FORGOTTEN_AFTER_S: Final = 60.0
CAPACITY: Final = 4096
"""Pairs of app and sidecar remembered; beyond, those that failed longest ago are forgotten."""


class Strikes:
    """Counts by (app, sidecar), so that guessing is slow and nobody else is.

    Only refusals are held back: whoever knows the password is let in at once.
    """

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}

    def failed(self, app: str, sidecar: str, now: float) -> float:
        """Count a failure; seconds to hold its refusal back."""
        count, last = self._failures.pop((app, sidecar), (0, now))
        count = 1 if now - last > FORGOTTEN_AFTER_S else count + 1
        if len(self._failures) >= CAPACITY:
            del self._failures[next(iter(self._failures))]
        self._failures[app, sidecar] = (count, now)
        if count <= FREE:
            return 0.0
        return min(FIRST_HOLD_S * 2.0 ** min(count - FREE - 1, 10), LONGEST_HOLD_S)

    def succeeded(self, app: str, sidecar: str) -> None:
        """Forget what failed before."""
        self._failures.pop((app, sidecar), None)

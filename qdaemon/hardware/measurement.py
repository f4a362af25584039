"""When the memory's bandwidth is measured, and which measurement counts. Pure.

A busy machine shows less than it has. So a measurement made beside other work holds until the machine is
quiet and it can be made again, and never replaces a higher one; one that was made in quiet is believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qdaemon.hardware.bandwidth import Bandwidth

QUIET: Final = 0.15
"""Share of the processors in other use up to which a machine counts as quiet."""
AGAIN_S: Final = 60.0
"""Between two attempts."""
EVERY_S: Final = 6 * 3600.0
"""After so long a quiet measurement is made again: a virtual machine may have moved."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A bandwidth, when it was measured (unix time), and what share of the processors others used then."""

    bandwidth: Bandwidth
    at: float
    others: float

    @property
    def quiet(self) -> bool:
        return self.others <= QUIET


def better(before: Measurement | None, now: Measurement) -> Measurement:
    """Which of two measurements counts."""
    if before is None or now.quiet or now.bandwidth.all >= before.bandwidth.all:
        return now
    return before


def due(last: Measurement | None, *, tried: float, now: float, busy: float, jobs: int) -> bool:
    """Whether to measure now: nothing runs here, the machine is quiet, and there is something to mend.

    ``tried`` and ``now`` are unix times, ``busy`` is the share of the processors in use.
    """
    if jobs or busy > QUIET or now - tried < AGAIN_S:
        return False
    return last is None or not last.quiet or now - last.at >= EVERY_S


def others(busy_s: float, own_s: float, all_s: float) -> float:
    """Share that others used of ``all_s`` CPU seconds, of which ``busy_s`` were used and ``own_s`` by us."""
    return min(1.0, max(0.0, (busy_s - own_s) / all_s)) if all_s > 0 else 0.0

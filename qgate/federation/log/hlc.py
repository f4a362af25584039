"""Hybrid logical clock: unix milliseconds and a counter in one number. No I/O, time is an argument.

    timestamp = unix milliseconds << 16 | counter

It follows Kulkarni et al., "Logical Physical Clocks" (2014): a timestamp is greater than every one seen
before, and as close to the local clock as that allows. It breaks ties between pools and is good for nothing
else here: timers and leases use monotonic time. A timestamp from further ahead than `AHEAD_MAX_S` never moves
the clock: one pool with a wrong calendar would otherwise drag all others along.
"""

from __future__ import annotations

from typing import Final

AHEAD_MAX_S: Final = 60.0
"""How far ahead of our clock an entry may be before it is held."""

COUNTER_BITS: Final = 16
TIMESTAMP_MAX: Final = (1 << 63) - 1


def timestamp(now: float, counter: int = 0) -> int:
    """The timestamp of unix time ``now`` in seconds."""
    return (int(now * 1000) << COUNTER_BITS) + counter


def seconds(stamp: int) -> float:
    """The unix time in a timestamp."""
    return (stamp >> COUNTER_BITS) / 1000


def tick(last: int, now: float) -> int:
    """The timestamp of something that happens here at ``now``; ``last`` is the greatest one so far."""
    return max(last + 1, timestamp(now))


def ahead(stamp: int, now: float) -> float:
    """Seconds until ``stamp`` may be taken for real; 0.0 where it may be now."""
    return max(0.0, seconds(stamp) - now - AHEAD_MAX_S)


def merge(last: int, stamp: int, now: float) -> int:
    """Our clock after having seen a foreign ``stamp``: never moved by one that is too far ahead."""
    return last if ahead(stamp, now) > 0 else max(last, stamp)

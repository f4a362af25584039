"""Connections that a gate refused: counted by reason, told in few lines. Pure: the time is an argument.

Whoever scans the Internet finds a gate's port daily, and whoever means harm may knock a thousand times a
second. A line for each would bury the log; so the first refusal of a kind is told as it happens, and those
that follow within an interval are told together at its end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

TELL_EVERY_S: Final = 10.0
"""Length of the interval; each kind of refusal makes at most two lines in it."""

ADDRESSES_MAX: Final = 1000
"""Distinct hosts remembered for one line."""


@dataclass(slots=True)
class Muted:
    """What was refused for one reason since its last line."""

    count: int = 0
    hosts: set[str] = field(default_factory=set)
    last: str = ""


class Refusals:
    """One for each listening gate. ``counts`` are the strangers refused, by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._muted: dict[str, Muted] = {}

    def note(self, reason: str, host: str, *, counted: bool) -> bool:
        """Remember a refusal; True where it shall be told on its own, and `due` be asked an interval later.

        ``reason`` is one of a handful of words. ``counted`` is False where somebody else counts it.
        """
        if counted:
            self.counts[reason] += 1
        muted = self._muted.get(reason)
        if muted is None:
            self._muted[reason] = Muted()
            return True
        muted.count += 1
        muted.last = host
        if len(muted.hosts) < ADDRESSES_MAX:
            muted.hosts.add(host)
        return False

    def due(self, reason: str) -> Muted | None:
        """What gathered in the interval of ``reason``, which begins anew; None, and its end, for nothing."""
        muted = self._muted.pop(reason)
        if not muted.count:
            return None
        self._muted[reason] = Muted()
        return muted

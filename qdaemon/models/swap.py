"""Which models leave memory so that another can come in. Pure: states in, a plan out.

A model goes when its time to live has passed, or when its place is wanted; of those that may go, the one that
was used least recently goes first. Never one that is pinned or has requests in flight. Models of one group
may not be in memory together ("exclusive" groups, named "!..."), or come in and go as one (any other name).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

EXCLUSIVE: Final = "!"
"""A group whose name begins with this holds one model at a time."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory. Times are the loop's, in seconds."""

    key: str
    memory: int
    last_used: float
    running: int = 0
    waiting: int = 0
    pinned: bool = False
    ttl_s: float = 0.0  # 0: for ever
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for a wanted model.

    ``evict`` leave first; with them gone it may be loaded. ``wait`` are busy ones in whose way it is: nothing
    is evicted until they are idle. ``refused`` says why it can never be loaded as things are.
    """

    evict: tuple[str, ...] = ()
    wait: tuple[str, ...] = ()
    refused: str = ""


@dataclass(slots=True)
class _Choice:
    evict: list[Resident] = field(default_factory=list)
    wait: list[Resident] = field(default_factory=list)


def plan(
    residents: Iterable[Resident],
    *,
    need: int,
    available: int,
    places: int,
    groups: frozenset[str] = frozenset(),
) -> Plan:
    """Make room for ``need`` bytes where ``available`` are free, with at most ``places`` models at once."""
    held = list(residents)
    choice = _Choice()
    for rival in held:
        if any(name.startswith(EXCLUSIVE) for name in rival.groups & groups):
            if rival.pinned:
                return Plan(refused=f"{rival.key} is pinned and of the same exclusive group")
            (choice.wait if rival.running else choice.evict).append(rival)
    free = available + sum(one.memory for one in choice.evict)
    left = [one for one in held if one not in choice.evict and one not in choice.wait]
    for one in _order(left):
        if free >= need and len(held) - len(choice.evict) < places:
            break
        if one in choice.evict:  # it went with its group
            continue
        together = [one, *_companions(one, left, choice.evict)]
        choice.evict += together
        free += sum(each.memory for each in together)
    if free >= need and len(held) - len(choice.evict) < places:
        if choice.wait:
            return Plan(wait=_keys(choice.wait))
        return Plan(evict=_keys(choice.evict))
    movable = [one for one in held if not one.pinned]
    if available + sum(one.memory for one in movable) < need:
        return Plan(refused="it needs more memory than would be free with every unpinned model gone")
    if len(held) - len(movable) >= places:
        return Plan(refused="every place is taken by a pinned model")
    return Plan(wait=_keys([one for one in movable if one.running]))


def expired(residents: Iterable[Resident], now: float) -> tuple[str, ...]:
    """Those whose time to live has passed without use."""
    return tuple(
        one.key
        for one in residents
        if one.ttl_s > 0
        and not one.pinned
        and not one.running
        and not one.waiting
        and now - one.last_used >= one.ttl_s
    )


def next_expiry(residents: Iterable[Resident]) -> float | None:
    """When to look again, None where nothing will expire by itself."""
    times = [
        one.last_used + one.ttl_s
        for one in residents
        if one.ttl_s > 0 and not one.pinned and not one.running and not one.waiting
    ]
    return min(times, default=None)


def _order(residents: Sequence[Resident]) -> list[Resident]:
    """Those that may go, in the order in which they go: nobody waits for them, then least recently used."""
    idle = [one for one in residents if not one.pinned and not one.running]
    return sorted(idle, key=lambda one: (one.waiting > 0, one.last_used, one.key))


def _companions(one: Resident, left: Sequence[Resident], gone: Sequence[Resident]) -> list[Resident]:
    """Idle, unpinned models of its groups: a group of models that serve together goes together."""
    shared = {name for name in one.groups if not name.startswith(EXCLUSIVE)}
    return [
        other
        for other in left
        if other is not one
        and other not in gone
        and shared & other.groups
        and not other.pinned
        and not other.running
    ]


def _keys(residents: Iterable[Resident]) -> tuple[str, ...]:
    return tuple(one.key for one in residents)

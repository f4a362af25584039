"""Where a replica stands: heads, version vectors, and the points by which two ends find what they share.

Incarnations of one pool continue one numbering, so a log is one line of entries and a head is the last of
them. A version vector maps each origin to the head that one pool has of it. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from qgate.federation.log.entry import GENESIS, INCARNATION_BYTES

POINTS_MAX: Final = 64
"""Points of one question: 1, 2, 4 ... entries back reach across any 64-bit log."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a log as somebody has it; `EMPTY` before the first."""

    incarnation: bytes
    seq: int
    hash: bytes


EMPTY: Final = Head(bytes(INCARNATION_BYTES), 0, GENESIS)

VersionVector = Mapping[bytes, Head]


def points(head: Head, hash_at: Callable[[int], bytes | None]) -> tuple[tuple[int, bytes], ...]:
    """Entries (seq, hash) going back from ``head`` in steps that double, the newest first.

    ``hash_at`` gives the hash of an entry that we hold, None for one that was truncated.
    """
    found: list[tuple[int, bytes]] = []
    if head.seq:
        found.append((head.seq, head.hash))
    step = 1
    while head.seq - step > 0 and len(found) < POINTS_MAX:
        digest = hash_at(head.seq - step)
        if digest is not None:
            found.append((head.seq - step, digest))
        step *= 2
    return tuple(found)


def wanted(head: Head) -> tuple[int, ...]:
    """The numbers that `points` will ask ``hash_at`` for, so that a driver can fetch them in one go."""
    found: list[int] = []
    step = 1
    while head.seq - step > 0 and len(found) < POINTS_MAX:
        found.append(head.seq - step)
        step *= 2
    return tuple(found)


def common(
    theirs: tuple[tuple[int, bytes], ...], hash_at: Callable[[int], bytes | None]
) -> tuple[int, bytes]:
    """The newest of ``theirs`` that is ours too; (0, GENESIS) where only the beginning is shared."""
    for seq, digest in sorted(theirs, reverse=True):
        if hash_at(seq) == digest:
            return seq, digest
    return 0, GENESIS


def behind(mine: VersionVector, theirs: VersionVector) -> dict[bytes, Head]:
    """The origins of which ``theirs`` has another head than ``mine`` that is not plainly older."""
    return {
        origin: head
        for origin, head in theirs.items()
        if (have := mine.get(origin, EMPTY)) != head and head.seq >= have.seq
    }

"""Which files a gate fetches at a time, and how they share its bandwidth. Pure.

A few at a time, so that one slow pool does not hold up the others, and not all, so that the first is soon
whole. Both the places and the bandwidth are shared by *origin*, not by file: a pool that wants copies of a
hundred models gets no more of either than one that wants a copy of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qgate.store.blobs import PeerBlob

AT_ONCE: Final = 3
"""Files that come to one gate at a time; each keeps a window of chunks in memory for each source."""


def next_fetches(
    waiting: Iterable[PeerBlob], running: Iterable[PeerBlob], room: int, *, most: int = AT_ONCE
) -> tuple[list[PeerBlob], list[PeerBlob]]:
    """The files to begin with now, and those for which there is no room (``room`` in bytes).

    Of the origins that have fewest under way, the smallest file first. What does not fit is never waited for.
    """
    busy = Counter(one.origin for one in running)
    free = most - busy.total()
    queue = sorted(waiting, key=lambda one: (one.size, one.sha256))
    begin: list[PeerBlob] = []
    declined: list[PeerBlob] = []
    while queue and free > 0:
        one = min(queue, key=lambda one: busy[one.origin])  # the first of them is the smallest
        queue.remove(one)
        if one.size > room:
            declined.append(one)
            continue
        begin.append(one)
        room -= one.size
        busy[one.origin] += 1
        free -= 1
    return begin, declined


def share(rate: float, running: Mapping[bytes, bytes], sha256: bytes) -> float:
    """What a fetch may take of ``rate`` (0: no bound). ``running`` maps each file that comes to its origin:
    origins share alike, and the files of one share what it has.
    """
    origin = running.get(sha256)
    if not rate or origin is None:
        return rate
    by_origin = Counter(running.values())
    return rate / len(by_origin) / by_origin[origin]

"""How well what a pool published would survive its loss, as a RAID tells it. Pure.

state      | when
-----------+--------------------------------------------------------------------------
alone      | no copy is wanted and there is none
healthy    | at least the wanted number of pools have all of it
rebuilding | too few have all of it, but enough are reachable and catching up
degraded   | too few have all of it, and some that should are silent or hold less
lost       | copies are wanted and nobody has any
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

SILENT_S: Final = 120.0
"""A pool that has not asked for our log for so long counts as silent; it asks every half minute."""

State = Literal["alone", "healthy", "rebuilding", "degraded", "lost"]


@dataclass(frozen=True, slots=True)
class Copy:
    """What one pool has of our log: up to entry ``seq`` by its own word ``age_s`` seconds ago (``how``:
    "link" or "archive"), readable where its ``level`` reaches the streams in use.
    """

    pool: str
    seq: int
    age_s: float
    how: str
    readable: bool
    up: bool


@dataclass(frozen=True, slots=True)
class Redundancy:
    """The verdict: ``whole`` copies have everything and can be read, ``wanted`` are asked for."""

    state: State
    wanted: int
    whole: int
    partial: int


def redundancy(head: int, wanted: int, copies: Sequence[Copy]) -> Redundancy:
    """Judge the copies of a log that ends at entry ``head``. No more are wanted than there are pools."""
    wanted = min(wanted, len(copies))
    readable = [one for one in copies if one.readable]
    whole = sum(one.seq >= head for one in readable)
    partial = sum(0 < one.seq < head for one in readable)
    coming = sum(one.seq < head and one.up and one.age_s <= SILENT_S for one in readable)
    state: State
    if whole >= wanted:
        state = "healthy" if wanted or whole else "alone"
    elif whole + coming >= wanted:
        state = "rebuilding"
    elif whole or partial:
        state = "degraded"
    else:
        state = "lost" if head else "rebuilding"
    return Redundancy(state, wanted, whole, partial)

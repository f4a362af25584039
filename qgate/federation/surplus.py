"""Copies too many of a model: which may go, and when. Pure.

A pool that was away for long is replaced by another; when it comes back there is a copy more than is wanted.
Both sides have a word in it:

    the origin   as many pools as it wants are chosen, all of them have the file and are there, it has the
                 file itself: then the copies elsewhere are too many. After a while of that without a
                 break (`federation.surplus_s`) it says so in its log; a break takes the word back at once
    the holder   lets go only of what it took as a copy itself, by the word of every origin that named it,
                 and never of a file that a worker has in memory, that is pinned, or that was used lately

Only copies that were *chosen* count for the wanted number, so however many pools let go at once, and
whatever they heard of each other, it is never gone below. Times are monotonic seconds, except `last_used`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tunnel_proto.messages import ModelState

USED_S: Final = 86_400.0
"""A copy that was used within this time stays: somebody would only fetch it again."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A model as its origin sees it. ``has`` are pools that say to have it, ``there`` those linked now."""

    wanted: int
    placed: tuple[bytes, ...]
    has: frozenset[bytes]
    there: frozenset[bytes]
    own: bool


def too_many(copied: Copied) -> frozenset[bytes]:
    """Pools whose copies nobody would miss. None where no copies are wanted: that wish removes nothing."""
    chosen = frozenset(copied.placed)
    sound = chosen & copied.has & copied.there
    if not copied.own or not copied.wanted or sound != chosen or len(chosen) < copied.wanted:
        return frozenset()
    return copied.has - chosen


def ripen(
    since: Mapping[tuple[bytes, bytes], float],
    found: Mapping[bytes, frozenset[bytes]],
    now: float,
    *,
    calm_s: float,
) -> tuple[dict[tuple[bytes, bytes], float], dict[bytes, tuple[bytes, ...]]]:
    """Let time pass: since when each (file, pool) is too many, and by file those that have been for
    ``calm_s`` (0: none ever).
    """
    held = {
        (sha256, pool): since.get((sha256, pool), now) for sha256, pools in found.items() for pool in pools
    }
    ripe: dict[bytes, list[bytes]] = {}
    for (sha256, pool), at in sorted(held.items()):
        if calm_s and now - at >= calm_s:
            ripe.setdefault(sha256, []).append(pool)
    return held, {sha256: tuple(pools) for sha256, pools in ripe.items()}


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that this pool took as a copy: the worker it was handed to, and what it is called there."""

    sha256: bytes
    worker: str
    name: str


@dataclass(frozen=True, slots=True)
class Word:
    """What an origin says of a file: who shall have a copy, whose is too many. ``linked``: it is there."""

    placed: tuple[bytes, ...]
    surplus: tuple[bytes, ...]
    linked: bool


def why_it_stays(
    own: bytes,
    taken: Taken,
    words: Sequence[Word],
    places: Iterable[tuple[str, ModelState]],
    *,
    wall: float,
) -> str:
    """Why this pool (``own``) keeps a copy; empty where it may go. ``words`` are those of every origin that
    speaks of the file, ``places`` its workers' files of that hash, ``wall`` unix time.
    """
    if not words:
        return "no origin speaks of it"
    if any(own in word.placed for word in words):
        return "it is wanted here"
    if not all(own in word.surplus for word in words):
        return "its origin does not call it one too many"
    if not all(word.linked for word in words):
        return "its origin is away"
    here = [model for worker, model in places if worker == taken.worker]
    if not here:
        return "its worker is away"
    for model in here:
        if model.pinned:
            return f"{model.name} is pinned"
        if model.state != "stored" or model.running or model.queued:
            return f"{model.name} is in use"
        if wall - model.last_used < USED_S:
            return f"{model.name} was used lately"
    if all(model.name != taken.name for model in here):
        return "it is called otherwise now: it is somebody's"
    return ""

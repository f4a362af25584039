"""Incarnations: how a pool goes on after its store was restored, without contradicting what it said before.

The first entry of an incarnation is of the stream "incarnation". It follows upon the *cut*, the last entry
that the pool still has (or got back from its peers), and names it:

    payload = {"parent": incarnation, "cut": seq, "hash": hash at the cut, "reason": text}

The very first incarnation has no parent and is cut at 0. Numbers go on at cut + 1, so a log stays one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qgate.federation.log.entry import Entry
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.streams import INCARNATION
from qgate.federation.log.vector import EMPTY, Head

REASON_MAX: Final = 256


def incarnation_payload(cut: Head, reason: str) -> dict[str, Any]:
    """The payload of an incarnation's first entry, cut at ``cut`` (`EMPTY` for the first one of all)."""
    return {"parent": cut.incarnation, "cut": cut.seq, "hash": cut.hash, "reason": reason[:REASON_MAX]}


def supersedes(theirs: Entry, ours: Entry) -> bool:
    """Whether our own log goes on with ``theirs`` rather than with ``ours``, which has the same number.

    Both are our pool's, from two of its lives. A life that opened an incarnation there goes before one that
    knew nothing of a loss; of two that did, the later one, so that all gates and peers choose alike. Within
    one incarnation ours is a branch that no peer has seen: it gives way.
    """
    if theirs.stream != INCARNATION:
        return ours.incarnation == theirs.incarnation
    if ours.stream != INCARNATION:
        return True
    return (theirs.hlc, theirs.incarnation) > (ours.hlc, ours.incarnation)


def named_cut(entry: Entry, payload: Mapping[str, Any]) -> Head:
    """The cut that an incarnation's first entry names. LogProblem where payload and chain disagree."""
    cut = Head(*(payload.get(name) for name in ("parent", "cut", "hash")))  # type: ignore[arg-type]
    sound = (
        isinstance(cut.incarnation, bytes)
        and len(cut.incarnation) == len(EMPTY.incarnation)
        and cut.seq == entry.seq - 1
        and cut.hash == entry.previous
        and cut.incarnation != entry.incarnation
    )
    if not sound:
        raise LogProblem("incarnation", f"the incarnation opened at entry {entry.seq} names another cut")
    return cut

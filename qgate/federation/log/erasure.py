"""Erasing what a log carries without breaking its chain. Pure.

An erasure is an entry of the stream "erasure" whose payload lists places of the same log. Whoever accepts it
deletes payload and salt there; the entries, and with them the chain, stay. A place without a payload that no
erasure names is a *hole*: verification tells of it.

    payload = {"places": [seq, ...], "reason": text}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from qgate.federation.log.problems import LogProblem

PLACES_MAX: Final = 10_000
REASON_MAX: Final = 256


def erasure_payload(places: Iterable[int], reason: str) -> dict[str, Any]:
    """The payload of an erasure entry. LogProblem where there are too many places or none."""
    listed = sorted(set(places))
    if not 0 < len(listed) <= PLACES_MAX:
        raise LogProblem("erasure", f"an erasure names 1 to {PLACES_MAX} entries, not {len(listed)}")
    return {"places": listed, "reason": reason[:REASON_MAX]}


def erased_places(payload: Mapping[str, Any], *, before: int) -> tuple[int, ...]:
    """The places that an erasure at number ``before`` names. LogProblem where it is malformed."""
    places = payload.get("places")
    if not isinstance(places, list) or not 0 < len(places) <= PLACES_MAX:
        raise LogProblem("erasure", "an erasure is malformed: a list of places was expected")
    for place in places:
        if type(place) is not int or not 0 < place < before:
            raise LogProblem("erasure", "an erasure is malformed: it names an entry that is not before it")
    return tuple(places)


def holes(missing: Iterable[int], erased: Iterable[int]) -> tuple[int, ...]:
    """Places whose payload is gone although no erasure names them."""
    return tuple(sorted(set(missing) - set(erased)))

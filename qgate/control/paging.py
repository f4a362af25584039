"""Lists of the control API: a page of rows, filtered, searched and sorted alike everywhere. Pure.

    ?limit=50            rows of one page; without it all of them, as scripts want it, up to `ROWS_MAX`
    &after=CURSOR        the page after the one whose "next" this was
    &q=TEXT              rows that have each word of TEXT in one of the searched fields, in any case;
                         "!TEXT": those that do not
    &sort=name,-size     fields to sort by, the first decides; "-": from large to small
    &FIELD=VALUE         rows whose field is one of the values (several: any of them; "!VALUE": not it)

    {"items": [...], "next": CURSOR or null, "total": how many rows there are after filters}

A cursor holds the last row's place in the order (its sort values and its name), not a number: rows that come
and go meanwhile neither repeat nor hide others. It is no secret and no promise: one of another order, or a
spoiled one, is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Query, Request
from pydantic import BaseModel

from qgate.control.problems import ProblemError

ROWS_MAX: Final = 10_000
"""Rows of one answer, also without ``limit``."""

TEXT_MAX: Final = 200
SORTS_MAX: Final = 4
VALUES_MAX: Final = 50
CURSOR_MAX: Final = 2000

_NUMBER_MAX: Final = 1e300
_OWN: Final = frozenset({"limit", "after", "q", "sort"})

Row = Mapping[str, Any]


class Page(BaseModel):
    """One page of a list. ``next`` goes into ``after`` for the next one; null at the end."""

    items: list[dict[str, Any]]
    next: str | None = None
    total: int


@dataclass(frozen=True, slots=True)
class Fields:
    """What one list can be asked: ``key`` names a row (and settles ties), ``search`` are looked through by
    ``q``, ``filters`` may be asked for by name ("labels.*": everything in that map). Every field may be
    sorted by; a dot goes into a map.
    """

    key: str
    search: tuple[str, ...]
    filters: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    """Query parameters of the route itself."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks of a list."""

    limit: int | None = None
    after: str | None = None
    q: str = ""
    sort: tuple[tuple[str, bool], ...] = ()  # field, descending
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def asked(
    request: Request,
    limit: Annotated[int | None, Query(ge=1, le=ROWS_MAX, description="Rows of one page.")] = None,
    after: Annotated[
        str | None, Query(max_length=CURSOR_MAX, description="The `next` of the page before.")
    ] = None,
    q: Annotated[
        str, Query(max_length=TEXT_MAX, description="Text that rows have; `!text`: that they have not.")
    ] = "",
    sort: Annotated[
        str, Query(max_length=TEXT_MAX, description="Fields with commas; `-field`: large values first.")
    ] = "",
) -> Asked:
    """The dependency of every list route; what else the query holds are filters, checked by `page`."""
    fields = [one.strip() for one in sort.split(",") if one.strip()]
    if len(fields) > SORTS_MAX:
        raise _invalid("sort", f"at most {SORTS_MAX} fields")
    values: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        if name not in _OWN:
            values.setdefault(name, []).append(value)
    return Asked(
        limit,
        after,
        q.strip(),
        tuple((one.removeprefix("-"), one.startswith("-")) for one in fields),
        {name: tuple(given) for name, given in values.items()},
    )


Listing = Annotated[Asked, Depends(asked)]
"""For a list route: ``async def list_apps(listing: Listing)``."""


def page(rows: Iterable[Row], listing: Asked, fields: Fields) -> dict[str, Any]:
    """The page that was asked for, as `Page`. `ProblemError` for a field or cursor that cannot be.

    Rows without ``sort`` keep the order in which they come.
    """
    for name, values in listing.values.items():
        if name in fields.own:
            continue
        if not _filters(name, fields):
            raise _unknown("filter", name, fields.filters)
        if len(values) > VALUES_MAX:
            raise _invalid(name, f"at most {VALUES_MAX} values")
    wanted = {name: values for name, values in listing.values.items() if _filters(name, fields)}
    found = [row for row in rows if _fits(row, wanted) and _has(row, listing.q, fields.search)]
    if listing.sort:
        known = {name for row in found[:ROWS_MAX] for name in row}
        for name, _ in listing.sort:
            if known and name.partition(".")[0] not in known:
                raise _unknown("field to sort by", name, sorted(known))
        found.sort(key=lambda row: str(row.get(fields.key, "")))
        for name, descending in reversed(listing.sort):
            found.sort(key=lambda row, name=name: _order(_value(row, name)), reverse=descending)  # type: ignore[misc]
    start = 0 if listing.after is None else _start(found, listing, fields)
    limit = listing.limit if listing.limit is not None else ROWS_MAX
    items = found[start : start + limit]
    more = start + limit < len(found)
    return {
        "items": items,
        "next": _cursor(items[-1], listing, fields) if more else None,
        "total": len(found),
    }


def _filters(name: str, fields: Fields) -> bool:
    head, dot, key = name.partition(".")
    return name in fields.filters or (bool(dot and key) and f"{head}.*" in fields.filters)


def _fits(row: Row, wanted: Mapping[str, tuple[str, ...]]) -> bool:
    for name, values in wanted.items():
        value = _value(row, name)
        texts = {_text(one) for one in value} if isinstance(value, list | tuple) else {_text(value)}
        refused = {one[1:] for one in values if one.startswith("!")}
        taken = {one for one in values if not one.startswith("!")}
        if texts & refused or (taken and not texts & taken):
            return False
    return True


def _has(row: Row, q: str, search: Sequence[str]) -> bool:
    if not q or q == "!":
        return True
    inverse, words = q.startswith("!"), q.removeprefix("!").casefold().split()
    texts = [_text(_value(row, name)).casefold() for name in search]
    found = all(any(word in text for text in texts) for word in words)
    return found != inverse


def _value(row: Any, path: str) -> Any:
    while path:
        if not isinstance(row, Mapping):
            return None
        if path in row:  # a key of its own may hold dots, such as a label's
            return row[path]
        head, _, path = path.partition(".")
        row = row.get(head)
    return row


def _text(value: Any) -> str:
    """A value as it is written in a query."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _order(value: Any) -> tuple[int, float, str]:
    """Values of any kind in one order: nothing, then numbers, then text."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, bool | int | float) and abs(value) < _NUMBER_MAX:
        return (1, float(value), "")
    return (2, 0.0, _text(value).casefold())


def _place(row: Row, listing: Asked, fields: Fields) -> list[Any]:
    return [*(_value(row, name) for name, _ in listing.sort), row.get(fields.key)]


def _spelled(listing: Asked) -> str:
    return ",".join(("-" if descending else "") + name for name, descending in listing.sort)


def _cursor(row: Row, listing: Asked, fields: Fields) -> str:
    said = json.dumps([_spelled(listing), *_place(row, listing, fields)], default=str)
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def read_cursor(text: str) -> list[Any]:
    """What a cursor holds. `ProblemError` for a spoiled one."""
    try:
        said = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        said = None
    if not isinstance(said, list) or not said:
        raise _invalid("after", "it is not the `next` of a page")
    return said


def _start(found: Sequence[Row], listing: Asked, fields: Fields) -> int:
    """Where the page after the cursor begins: behind its row, or where that row would be."""
    assert listing.after is not None
    order, *place = read_cursor(listing.after)
    if order != _spelled(listing) or len(place) != len(listing.sort) + 1:
        raise _invalid("after", "it is of a list in another order; begin again without it")
    key = place[-1]
    for index, row in enumerate(found):
        if row.get(fields.key) == key:
            return index + 1
    if not listing.sort:
        # Its row is gone and the list has no order of values: names are the best there is.
        return sum(_order(row.get(fields.key)) <= _order(key) for row in found)
    return sum(not _behind(row, place, listing, fields) for row in found)


def _behind(row: Row, place: Sequence[Any], listing: Asked, fields: Fields) -> bool:
    """Whether a row comes after a place."""
    for (name, descending), value in zip(listing.sort, place, strict=False):
        mine, theirs = _order(_value(row, name)), _order(value)
        if mine != theirs:
            return (mine < theirs) if descending else (mine > theirs)
    return _order(row.get(fields.key)) > _order(place[-1])


def _invalid(name: str, why: str) -> ProblemError:
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", f"{name[:64]}: {why}")


def _unknown(what: str, name: str, known: Iterable[str]) -> ProblemError:
    names = ", ".join(known) or "none"
    return ProblemError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid",
        f"there is no {what} {name[:64]!r}",
        hint=f"known: {names}",
    )

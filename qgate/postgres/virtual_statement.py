"""What a statement of the virtual database can be, once it is read. Pure data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from qgate.postgres.virtual_values import INT4, INT8, JSONB, TEXT

COLUMNS: Final[Mapping[str, int]] = {
    "result": JSONB,
    "text": TEXT,
    "model": TEXT,
    "node": TEXT,
    "tokens_in": INT4,
    "tokens_out": INT4,
    "receipt": TEXT,
}
"""The row of `qg(...)`, whatever the task: name and type of each column."""

LISTS: Final[Mapping[str, tuple[tuple[str, int], ...]]] = {
    "models": (("name", TEXT), ("owner", TEXT), ("kinds", TEXT), ("context", INT4), ("state", TEXT)),
    "workers": (("name", TEXT), ("state", TEXT), ("models", INT4), ("running", INT4), ("queued", INT4)),
    "budgets": (
        ("scope", TEXT),
        ("name", TEXT),
        ("period", TEXT),
        ("cap", TEXT),
        ("spent", TEXT),
        ("currency", TEXT),
        ("kind", TEXT),
    ),
    "stats": (("name", TEXT), ("value", INT8)),
    "routes": (("name", TEXT), ("kind", TEXT), ("target", TEXT)),
}
"""What SHOW lists: names and types of the columns."""
HINT: Final = (
    "This database answers SELECT ... FROM qg('task=summarize', $1) and "
    "SHOW models, workers, budgets, stats or routes."
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """``$number``; ``oid`` is the type that a cast gives it, 0 without one."""

    number: int
    oid: int = 0


@dataclass(frozen=True, slots=True)
class Constant:
    """A value as text, None for NULL."""

    value: str | None
    oid: int = TEXT


Argument = Parameter | Constant


@dataclass(frozen=True, slots=True)
class Function:
    """A function without a table, or one of the words that are called without parentheses.

    ``oid`` is the type that a cast gives its value, 0 without one.
    """

    name: str
    arguments: tuple[Argument, ...] = ()
    oid: int = 0


Scalar = Parameter | Constant | Function


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the answer: ``source`` of `COLUMNS`, and the way into its JSON, if any."""

    name: str
    source: str
    oid: int
    path: tuple[str | int, ...] = ()
    as_text: bool = False

    def value(self, fields: Mapping[str, Any]) -> Any:
        """This column of a row whose `COLUMNS` are ``fields``; None where the path leads nowhere."""
        value = fields[self.source]
        if not self.path:
            return value
        found = json.loads(value) if isinstance(value, str) else None
        for key in self.path:
            if isinstance(found, dict) and isinstance(key, str):
                found = found.get(key)
            elif isinstance(found, list) and isinstance(key, int) and -len(found) <= key < len(found):
                found = found[key]
            else:
                return None
        if found is None or (self.as_text and isinstance(found, str)):
            return found
        return json.dumps(found, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Call:
    """SELECT ... FROM qg(...). ``limit`` None: no LIMIT."""

    request: Argument
    texts: tuple[Argument, ...]
    columns: tuple[Column, ...]
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Show:
    """SHOW of a list, or of a run-time parameter."""

    what: str


@dataclass(frozen=True, slots=True)
class Scalars:
    """SELECT without a table: (column name, value)."""

    items: tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A question to the system catalogue: names and types of the columns, and the one row, if there is any.

    ``parameters`` are in it: number to type, 0 without a cast. Their values do not matter.
    """

    columns: tuple[tuple[str, int], ...]
    row: tuple[int | None, ...] | None = None
    parameters: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A statement without rows; ``tag`` completes it.

    ``effect`` is begin, commit, rollback, rollback to, set, reset, deallocate, discard or nothing.
    """

    tag: str
    effect: str = ""
    name: str = ""
    value: str = ""


Statement = Call | Show | Scalars | Catalogue | Command


def parameters_of(statement: Statement) -> dict[int, int]:
    """The parameters of a statement: number to type, 0 where a cast gives none."""
    match statement:
        case Catalogue():
            return dict(statement.parameters)
        case Call():
            arguments: list[Scalar] = [statement.request, *statement.texts]
        case Scalars():
            arguments = []
            for _, item in statement.items:
                arguments += item.arguments if isinstance(item, Function) else (item,)
        case _:
            return {}
    found: dict[int, int] = {}
    for one in arguments:
        if isinstance(one, Parameter):
            found[one.number] = found.get(one.number) or one.oid
    return found


def filled(item: Scalar, value_of: Callable[[Argument], Constant]) -> Constant | Function:
    """A column without a table, its parameters replaced by their values."""
    if isinstance(item, Function):
        return replace(item, arguments=tuple(map(value_of, item.arguments)))
    found = value_of(item)
    return replace(found, oid=item.oid) if item.oid else found

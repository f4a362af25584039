"""Prepared statements and portals of the virtual database, and the values that Bind gave. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from qgate.postgres.virtual_statement import Argument, Constant, Parameter, Statement
from qgate.postgres.virtual_values import Bind, Table, error, plain_of, text_of


@dataclass(slots=True)
class Prepared:
    """A statement with the types of its parameters."""

    statement: Statement | None  # None: an empty text
    oids: list[int]


@dataclass(slots=True)
class Portal:
    """A statement with values; `table` is its answer, of which `sent` rows are out."""

    prepared: Prepared
    bind: Bind
    table: Table | None = field(default=None, repr=False)
    sent: int = 0


def argument(one: Argument, portal: Portal | None, what: str) -> str:
    """An argument of qg() as text; ``what`` names it in errors. 22004 for NULL, 42804 for what is no text."""
    if isinstance(one, Constant):
        if one.value is None:
            raise error(f"{what} must not be NULL", "22004")
        return one.value
    value, oid, binary = _bound(one, portal)
    return text_of(value, oid, binary, f"{what} (${one.number})")


def value_of(one: Argument, portal: Portal | None) -> Constant:
    """A constant, whether it stood in the statement or came with Bind."""
    if isinstance(one, Constant):
        return one
    value, oid, binary = _bound(one, portal)
    return Constant(None if value is None else plain_of(value, oid, binary, f"${one.number}"), oid)


def _bound(one: Parameter, portal: Portal | None) -> tuple[bytes | None, int, bool]:
    """A parameter's value, its type, and whether it is binary."""
    if portal is None:
        raise error(f"there is no parameter ${one.number}", "42P02")
    at = one.number - 1
    return portal.bind.values[at], portal.prepared.oids[at], portal.bind.binary[at]

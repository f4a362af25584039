"""Shapes of values that arrive from another machine: each is a check that returns the value or says no.

A check takes what msgpack decoded and returns what the program uses (lists become tuples, maps become frozen
dataclasses); it raises `ShapeError` for another type, a size beyond its bound, or a number out of its range.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Final

Check = Callable[[Any], Any]

OPTIONAL: Final = "?"
"""A field or message type that ends in this may be skipped by whoever does not know it."""

INT_MAX: Final = (1 << 63) - 1

JSON_DEPTH: Final = 32
"""Levels of a JSON value; a JSON schema written by a person stays below 20."""

JSON_NODES: Final = 100_000
"""Values in one JSON value, containers included: checked in about 20 ms."""


class ShapeError(ValueError):
    """A value is not of its field's shape; the text says what is wrong with it, never the value."""


def text(most: int, pattern: str = "") -> Check:
    """A string of at most ``most`` characters that matches ``pattern`` as a whole, where one is given."""
    compiled = re.compile(pattern) if pattern else None

    def check(value: Any) -> str:
        if type(value) is not str:
            raise ShapeError("must be text")
        if len(value) > most:
            raise ShapeError(f"must have at most {most} characters")
        if compiled is not None and compiled.fullmatch(value) is None:
            raise ShapeError("has characters or a form that are not allowed")
        return value

    return check


def raw(most: int) -> Check:
    """A byte string of at most ``most`` bytes."""

    def check(value: Any) -> bytes:
        if type(value) is not bytes:
            raise ShapeError("must be bytes")
        if len(value) > most:
            raise ShapeError(f"must have at most {most} bytes")
        return value

    return check


def whole(least: int = 0, most: int = INT_MAX) -> Check:
    """An integer in [least, most]."""

    def check(value: Any) -> int:
        if type(value) is not int:
            raise ShapeError("must be a whole number")
        if not least <= value <= most:
            raise ShapeError(f"must lie between {least} and {most}")
        return value

    return check


def real(least: float = 0.0, most: float = 1e18) -> Check:
    """A finite number in [least, most], returned as float."""

    def check(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise ShapeError("must be a number")
        if not (least <= value <= most and math.isfinite(value)):
            raise ShapeError(f"must lie between {least:g} and {most:g}")
        return float(value)

    return check


def flag(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ShapeError("must be true or false")
    return value


def one_of(*allowed: str) -> Check:
    """One of these words."""
    words = frozenset(allowed)

    def check(value: Any) -> str:
        if type(value) is not str or value not in words:
            raise ShapeError(f"must be one of {', '.join(sorted(words))}")
        return value

    return check


def maybe(inner: Check) -> Check:
    """None, or what ``inner`` takes."""

    def check(value: Any) -> Any:
        return None if value is None else inner(value)

    return check


def either(first: Check, second: Check) -> Check:
    """What ``first`` takes, else what ``second`` takes."""

    def check(value: Any) -> Any:
        try:
            return first(value)
        except ShapeError:
            return second(value)

    return check


def listed(inner: Check, most: int) -> Check:
    """An array of at most ``most`` values, returned as a tuple."""

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list and type(value) is not tuple:
            raise ShapeError("must be a list")
        if len(value) > most:
            raise ShapeError(f"must have at most {most} items")
        return tuple([inner(one) for one in value])

    return check


def token_ids(most: int) -> Check:
    """At most ``most`` token ids (32-bit, not negative) as a tuple; quick, since streams are made of them."""

    def check(value: Any) -> tuple[int, ...]:
        if type(value) is not list and type(value) is not tuple:
            raise ShapeError("must be a list")
        if len(value) > most:
            raise ShapeError(f"must have at most {most} items")
        for one in value:
            if type(one) is not int or not 0 <= one <= 0x7FFFFFFF:
                raise ShapeError("must hold token ids")
        return tuple(value)

    return check


def pair(first: Check, second: Check) -> Check:
    """A list of two values, returned as a tuple."""

    def check(value: Any) -> tuple[Any, Any]:
        if type(value) not in {list, tuple} or len(value) != 2:
            raise ShapeError("must be a pair")
        return first(value[0]), second(value[1])

    return check


def json_value(*, depth: int = JSON_DEPTH, nodes: int = JSON_NODES) -> Check:
    """What JSON can say: null, booleans, 64-bit integers, finite numbers, text, lists, maps."""

    def check(value: Any) -> Any:
        budget = nodes
        open_values: list[tuple[Any, int]] = [(value, 1)]
        while open_values:
            one, level = open_values.pop()
            budget -= 1
            if budget < 0:
                raise ShapeError(f"must hold at most {nodes} values")
            if one is None or type(one) in {str, bool}:
                continue
            if type(one) is int:
                if not -INT_MAX - 1 <= one <= INT_MAX:
                    raise ShapeError("holds a whole number beyond 64 bits")
            elif type(one) is float:
                if not math.isfinite(one):
                    raise ShapeError("holds a number that is not finite")
            elif isinstance(one, Mapping | list | tuple):
                if level > depth:
                    raise ShapeError(f"must be at most {depth} levels deep")
                open_values += [(inner, level + 1) for inner in _inside(one)]
            else:
                raise ShapeError("must be what JSON can say")
        return value

    return check


def _inside(container: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    if isinstance(container, Mapping):
        for key in container:
            if type(key) is not str:
                raise ShapeError("holds a map whose keys are not text")
        yield from container.values()
    else:
        yield from container


# --- records ------------------------------------------------------------------------------------------------


def has(check: Check, default: Any = MISSING) -> Any:
    """Make a dataclass field with this check; with ``default`` the sender may leave it out."""
    metadata = {"check": check}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a dataclass travels: a map of its fields, those that hold their default left out."""

    cls: type
    fields: tuple[tuple[str, Check, Any], ...]  # name, check, default or MISSING

    def read(self, document: Any, ignore: str = "") -> Any:
        """Make the dataclass from a decoded map; ``ignore`` is a key that is no field.

        Raises `ShapeError`.
        """
        if type(document) is not dict:
            raise ShapeError("must be a map")
        values: dict[str, Any] = {}
        taken = 1 if ignore in document else 0
        for name, check, default in self.fields:
            if name in document:
                taken += 1
                try:
                    values[name] = check(document[name])
                except ShapeError as error:
                    raise ShapeError(f"{name} {error}") from None
            elif default is MISSING:
                raise ShapeError(f"{name} is missing")
        if taken != len(document):
            known = {name for name, _, _ in self.fields} | {ignore}
            for name in document:
                if name not in known and not name.endswith(OPTIONAL):
                    raise ShapeError(f"{name[:40]!r} is no field of it")
        return self.cls(**values)

    def write(self, record: Any) -> dict[str, Any]:
        """The map to send. Raises `ShapeError` for a value that the other side would refuse."""
        document: dict[str, Any] = {}
        for name, check, default in self.fields:
            value = getattr(record, name)
            if default is not MISSING and type(value) is type(default) and value == default:
                continue
            try:
                document[name] = plain(check(value))
            except ShapeError as error:
                raise ShapeError(f"{name} {error}") from None
        return document


@functools.cache
def plan_of(cls: type) -> Plan:
    """The plan of a dataclass whose fields `has` made."""
    fields = dataclasses.fields(cls)
    return Plan(cls, tuple((one.name, one.metadata["check"], one.default) for one in fields))


def record(cls: type) -> Check:
    """A nested map with the fields of a dataclass; an instance of it passes when it is to be sent."""

    def check(value: Any) -> Any:
        return value if isinstance(value, cls) else plan_of(cls).read(value)

    return check


def plain(value: Any) -> Any:
    """What msgpack can pack: dataclasses as maps of their fields that differ from the default."""
    if type(value) is tuple:
        nested = bool(value) and dataclasses.is_dataclass(value[0])
        return [plain(one) for one in value] if nested else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plan_of(value.__class__).write(value)
    return value

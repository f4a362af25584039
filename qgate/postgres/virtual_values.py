"""Values of the virtual database on the wire: parameters to text, rows to DataRow, in both formats. Pure.

Source: PostgreSQL 18 documentation, "Message Formats"; catalog/pg_type.dat for the object ids.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tunnel_proto import pgwire
from tunnel_proto.pgwire import PostgresError

BOOL: Final = 16
BYTEA: Final = 17
NAME: Final = 19
INT8: Final = 20
INT2: Final = 21
INT4: Final = 23
TEXT: Final = 25
OID: Final = 26
JSON: Final = 114
FLOAT8: Final = 701
UNKNOWN: Final = 705
BPCHAR: Final = 1042
VARCHAR: Final = 1043
DATE: Final = 1082
TIMESTAMPTZ: Final = 1184
TEXTS: Final = 1009  # text[]
JSONB: Final = 3802

TEXTUAL: Final = frozenset({0, TEXT, UNKNOWN, VARCHAR, BPCHAR, NAME, JSON, JSONB, BYTEA})
"""Types whose values can be the text of a request; 0 is a parameter without a type."""

_SIZES: Final = {BOOL: 1, INT2: 2, INT4: 4, INT8: 8, OID: 4, FLOAT8: 8, DATE: 4, TIMESTAMPTZ: 8}
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL's."""
_BINARY: Final = {
    INT2: struct.Struct("!h"),
    INT4: struct.Struct("!i"),
    INT8: struct.Struct("!q"),
    OID: struct.Struct("!I"),
    FLOAT8: struct.Struct("!d"),
}
_FIELD: Final = struct.Struct("!IhIhih")  # table, column, type, size, modifier, format


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the names and types (object ids) of their columns."""

    columns: tuple[tuple[str, int], ...]
    rows: Sequence[Sequence[Any]] = field(default=(), repr=False)


def error(message: str, sqlstate: str, *, hint: str = "", detail: str = "") -> PostgresError:
    """An error that leaves the session alive."""
    return PostgresError(message, sqlstate=sqlstate, severity="ERROR", hint=hint, detail=detail)


def text_of(value: bytes | None, oid: int, binary: bool, what: str) -> str:
    """A parameter as text; ``what`` names it in errors. 22004 for NULL, 42804 for a type that is no text."""
    if value is None:
        raise error(f"{what} must not be NULL", "22004")
    if oid not in TEXTUAL:
        raise error(f"{what} must be text", "42804", hint="Cast it to text, as in $1::text.")
    if binary and oid == JSONB:
        if value[:1] != b"\x01":
            raise error("unsupported jsonb version", "22P03")
        value = value[1:]
    if not binary and oid == BYTEA:
        value = _bytea(value)
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise error(f'{what}: invalid byte sequence for encoding "UTF8"', "22021") from None
    if "\0" in text:
        raise error(f"{what}: a zero byte is no text", "22021")
    return text


def plain_of(value: bytes, oid: int, binary: bool, what: str) -> str:
    """A parameter of any type that is known here as the text of a constant. Errors as `text_of`."""
    if oid not in _SIZES or oid in {DATE, TIMESTAMPTZ}:
        return text_of(value, oid, binary, what)
    if not binary:
        return text_of(value, TEXT, binary, what)
    if len(value) != _SIZES[oid]:
        raise error(f"incorrect binary data format in {what}", "22P03")
    return str(_BINARY[oid].unpack(value)[0]) if oid in _BINARY else "t" if value != b"\0" else "f"


def _bytea(value: bytes) -> bytes:
    """bytea's text form: hexadecimal after ``\\x``, or escaped as in old versions."""
    if value.startswith(b"\\x"):
        try:
            return bytes.fromhex(value[2:].decode("ascii"))
        except ValueError:
            raise error("invalid input syntax for type bytea", "22P02") from None
    if b"\\" in value:
        raise error(
            "the escape format of bytea is not read here", "0A000", hint="Send it as \\x... or binary."
        )
    return value


def row_description(columns: Sequence[tuple[str, int]], formats: Sequence[int]) -> bytes:
    """A RowDescription; ``formats`` as in Bind (none, one for all, or one each)."""
    body = [struct.pack("!H", len(columns))]
    for (name, oid), wanted in zip(columns, each(formats, len(columns)), strict=True):
        size = _SIZES.get(oid, -1)
        body.append(name.encode() + b"\0" + _FIELD.pack(0, 0, oid, size, -1, wanted))
    return pgwire.message(b"T", b"".join(body))


def data_row(row: Sequence[Any], columns: Sequence[tuple[str, int]], formats: Sequence[int]) -> bytes:
    """A DataRow."""
    body = [struct.pack("!H", len(columns))]
    for value, (_, oid), wanted in zip(row, columns, each(formats, len(columns)), strict=True):
        if value is None:
            body.append(b"\xff\xff\xff\xff")
            continue
        data = encoded(value, oid, binary=wanted == 1)
        body.append(struct.pack("!i", len(data)) + data)
    return pgwire.message(b"D", b"".join(body))


def each(formats: Sequence[int], count: int) -> Sequence[int]:
    """One format for each of ``count`` values. 08P01 where Bind gave another number of them."""
    if not formats:
        return [0] * count
    if len(formats) == 1:
        return list(formats) * count
    if len(formats) != count:
        raise error(f"bind message has {len(formats)} formats for {count} values", "08P01")
    return formats


def encoded(value: Any, oid: int, *, binary: bool) -> bytes:
    """A value in its type's text or binary form."""
    if oid == BOOL:
        return (b"\x01" if value else b"\0") if binary else (b"t" if value else b"f")
    if binary and oid in _BINARY:
        return _BINARY[oid].pack(float(value) if oid == FLOAT8 else int(value))
    if isinstance(value, datetime):
        return _moment(value, oid, binary=binary)
    if isinstance(value, tuple):
        return _array(value, binary=binary)
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    return b"\x01" + data if binary and oid == JSONB else data


def _moment(value: datetime, oid: int, *, binary: bool) -> bytes:
    """A timestamptz, or a date."""
    since = value - _EPOCH
    if oid == DATE:
        return struct.pack("!i", since.days) if binary else value.strftime("%Y-%m-%d").encode()
    if binary:
        return struct.pack("!q", since // timedelta(microseconds=1))
    return value.strftime("%Y-%m-%d %H:%M:%S.%f+00").encode()


def _array(values: tuple[str, ...], *, binary: bool) -> bytes:
    """A text[] of plain words."""
    if not binary:
        return ("{" + ",".join(values) + "}").encode()
    head = struct.pack("!iiI", 1, 0, TEXT) + struct.pack("!ii", len(values), 1)
    return head + b"".join(struct.pack("!i", len(one)) + one.encode() for one in values)


# --- reading messages


@dataclass(frozen=True, slots=True)
class Bind:
    """A Bind message: values as they came (None: NULL), which are binary, and the formats of the results."""

    portal: str
    statement: str
    values: tuple[bytes | None, ...] = field(repr=False)
    binary: tuple[bool, ...]
    formats: tuple[int, ...]


def read_bind(payload: bytes) -> Bind:
    """Read a Bind message. 08P01 where it is malformed."""
    portal, at = cut(payload, 0)
    statement, at = cut(payload, at)
    (count,) = unpack("!H", payload, at)
    codes = unpack(f"!{count}h", payload, at + 2)
    at += 2 + 2 * count
    (count,) = unpack("!H", payload, at)
    at += 2
    values: list[bytes | None] = []
    for _ in range(count):
        (size,) = unpack("!i", payload, at)
        at += 4
        if size < 0:
            values.append(None)
            continue
        if at + size > len(payload):
            raise pgwire.protocol_violation("insufficient data left in message")
        values.append(payload[at : at + size])
        at += size
    (results,) = unpack("!H", payload, at)
    formats = unpack(f"!{results}h", payload, at + 2)
    return Bind(portal, statement, tuple(values), tuple(code == 1 for code in each(codes, count)), formats)


def string(payload: bytes) -> str:
    """The zero-terminated text that a message begins with."""
    return cut(payload, 0)[0]


def cut(payload: bytes, at: int) -> tuple[str, int]:
    """The zero-terminated text at ``at``, and where the next field begins."""
    end = payload.find(b"\0", at)
    if end < 0:
        raise pgwire.protocol_violation("invalid string in message")
    try:
        return payload[at:end].decode("utf-8"), end + 1
    except UnicodeDecodeError:
        raise error('invalid byte sequence for encoding "UTF8"', "22021") from None


def unpack(layout: str, payload: bytes, at: int) -> tuple[int, ...]:
    """Integers of a message; 08P01 where it is too short."""
    try:
        return struct.unpack_from(layout, payload, at)
    except struct.error:
        raise pgwire.protocol_violation("insufficient data left in message") from None

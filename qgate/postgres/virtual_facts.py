"""What the virtual database says of itself: run-time parameters and functions that drivers ask for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from qgate.postgres.virtual_statement import HINT, Constant, Function, Parameter, Scalar
from qgate.postgres.virtual_values import (
    BOOL,
    DATE,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    NAME,
    OID,
    TEXT,
    TEXTS,
    TIMESTAMPTZ,
    error,
)

Value = str | bool | int | float | datetime | tuple[str, ...] | None

NAME_OF_DATABASE: Final = "qg"
SERVER_VERSION: Final = "18.0"
VERSION: Final = f"PostgreSQL {SERVER_VERSION} (qgate-mesh virtual database)"

_DEFAULTS: Final[Mapping[str, str]] = {
    "application_name": "",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "client_min_messages": "notice",
    "datestyle": "ISO, MDY",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "extra_float_digits": "1",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "in_hot_standby": "off",
    "integer_datetimes": "on",
    "intervalstyle": "postgres",
    "is_superuser": "off",
    "jit": "off",
    "lc_collate": "C",
    "lc_ctype": "C",
    "lc_messages": "C",
    "lock_timeout": "0",
    "max_identifier_length": "63",
    "row_security": "on",
    "search_path": "public",
    "server_encoding": "UTF8",
    "server_version": SERVER_VERSION,
    "server_version_num": "180000",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "timezone": "UTC",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
    "transaction_timeout": "0",
    "work_mem": "4MB",
}
_REPORTED: Final[Mapping[str, str]] = {
    "application_name": "application_name",
    "client_encoding": "client_encoding",
    "datestyle": "DateStyle",
    "default_transaction_read_only": "default_transaction_read_only",
    "in_hot_standby": "in_hot_standby",
    "integer_datetimes": "integer_datetimes",
    "intervalstyle": "IntervalStyle",
    "is_superuser": "is_superuser",
    "search_path": "search_path",
    "server_encoding": "server_encoding",
    "server_version": "server_version",
    "session_authorization": "session_authorization",
    "standard_conforming_strings": "standard_conforming_strings",
    "timezone": "TimeZone",
}
"""Parameters whose changes a server reports, with the spelling that it uses."""

_FIXED: Final = frozenset({"server_version", "server_version_num", "server_encoding", "integer_datetimes"})
_ENCODINGS: Final = frozenset({"utf8", "unicode", "sqlascii", "default"})
_MILLISECONDS: Final = {"": 1, "us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000}
_TRUE: Final = frozenset({"t", "true", "on", "1", "yes"})
SHOW_ALL: Final = (("name", TEXT), ("setting", TEXT), ("description", TEXT))
"""The columns of SHOW ALL."""
_TYPES: Final = {"set_config": TEXT, "current_setting": TEXT, "current_schemas": TEXTS}
"""Types of functions whose arguments need not be known yet."""
VALUE_MAX: Final = 1024
OWN_MAX: Final = 100
"""Parameters with a dot in their name that one session may make up."""


class Facts:
    """One session's parameters, and who it is. ``wall`` is unix time."""

    def __init__(self, *, user: str, pid: int, startup: Mapping[str, str], wall: Callable[[], float]) -> None:
        self._wall = wall
        self._user = user
        self._pid = pid
        self._initial = {**_DEFAULTS, "session_authorization": user}
        self._values = dict(self._initial)
        for name, value in startup.items():
            if name.lower() in _DEFAULTS and name.lower() not in _FIXED:
                self.set(name, value)
        self._initial = dict(self._values)

    def reported(self) -> dict[str, str]:
        """What a server tells at the start."""
        return {shown: self._values[name] for name, shown in _REPORTED.items()}

    def get(self, name: str) -> str:
        """A parameter's value. 42704 for one that there is not."""
        value = self._values.get(name.lower())
        if value is None:
            raise error(f'unrecognized configuration parameter "{name[:63]}"', "42704", hint=HINT)
        return value

    def everything(self) -> list[tuple[str, str, str]]:
        """The rows of SHOW ALL."""
        return [(name, value, "") for name, value in sorted(self._values.items())]

    def set(self, name: str, value: str) -> tuple[str, str] | None:
        """Set a parameter; gives what is to be reported to the client, if anything."""
        name = name.lower()
        if name in _FIXED:
            raise error(f'parameter "{name}" cannot be changed', "55P02")
        if name not in self._values and ("." not in name or len(self._values) > len(_DEFAULTS) + OWN_MAX):
            raise error(f'unrecognized configuration parameter "{name[:63]}"', "42704")
        if len(value) > VALUE_MAX:
            raise error(f'the value of parameter "{name[:63]}" is too long', "22023")
        value = value.strip().strip("'\"")
        if value.lower() == "default":
            value = self._initial.get(name, "")
        if name == "client_encoding":
            if value.lower().replace("-", "").replace("_", "") not in _ENCODINGS:
                raise error(f'the encoding "{value[:63]}" is not supported, only UTF8', "0A000")
            value = "UTF8"
        if name == "statement_timeout":
            _milliseconds(value)
        self._values[name] = value
        shown = _REPORTED.get(name)
        return None if shown is None else (shown, value)

    def reset(self, name: str) -> None:
        """RESET of one parameter or, with ``all``, of every one."""
        if name in {"", "all"}:
            self._values = dict(self._initial)
        elif name.lower() in self._initial:
            self._values[name.lower()] = self._initial[name.lower()]

    @property
    def statement_timeout_s(self) -> float | None:
        """How long a statement may take; None: no limit."""
        milliseconds = _milliseconds(self._values["statement_timeout"])
        return milliseconds / 1000 if milliseconds else None

    def type_of(self, item: Scalar) -> int:
        """The type of a column without a table."""
        if item.oid or isinstance(item, Parameter):
            return item.oid or TEXT
        if isinstance(item, Function) and item.name in _TYPES:
            return _TYPES[item.name]
        return self.evaluate(item)[0]

    def evaluate(self, item: Constant | Function) -> tuple[int, Value]:
        """Type and value of a column without a table. 42883 for a function that there is not."""
        if isinstance(item, Constant):
            return item.oid, _cast(item.value, item.oid)
        oid, value = self._called(item)
        return (item.oid, _cast(value, item.oid)) if item.oid else (oid, value)

    def _called(self, item: Function) -> tuple[int, Value]:
        arguments = [one.value for one in item.arguments if isinstance(one, Constant)]
        match item.name, arguments:
            case "version", []:
                return TEXT, VERSION
            case "current_database" | "current_catalog", []:
                return NAME, NAME_OF_DATABASE
            case "current_schema", []:
                return NAME, "public"
            case "current_schemas", [str(implicit)]:
                return TEXTS, ("pg_catalog", "public") if implicit.startswith("t") else ("public",)
            case (
                "now"
                | "current_timestamp"
                | "transaction_timestamp"
                | "statement_timestamp"
                | "clock_timestamp",
                [],
            ):
                return TIMESTAMPTZ, datetime.fromtimestamp(self._wall(), UTC)
            case "current_date", []:
                return DATE, datetime.fromtimestamp(self._wall(), UTC)
            case "inet_server_addr" | "inet_client_addr" | "inet_server_port" | "inet_client_port", []:
                return TEXT, None
            case "to_regclass" | "to_regtype" | "to_regproc" | "to_regnamespace", [str()]:
                return TEXT, None  # there is none of that name
            case "pg_get_userbyid", [str()]:
                return NAME, self._user
            case "current_user" | "session_user" | "user" | "current_role", []:
                return NAME, self._user
            case "pg_backend_pid", []:
                return INT4, self._pid
            case "pg_is_in_recovery", []:
                return BOOL, False
            case "current_setting", [str(name), *rest]:
                try:
                    return TEXT, self.get(name)
                except Exception:
                    if rest:
                        return TEXT, None
                    raise
            case "set_config", [str(name), str(value), _]:
                self.set(name, value)
                return TEXT, self.get(name)
            case "pg_advisory_unlock_all", []:
                return TEXT, ""
            case "txid_current", []:
                return INT8, 1
        raise error(f"function {item.name[:63]} does not exist here", "42883", hint=HINT)


def _cast(value: Value, oid: int) -> Value:
    """A value as its column's type. 22P02 where it is none."""
    if value is None or isinstance(value, datetime | tuple):
        return value
    try:
        if oid in {INT2, INT4, INT8, OID}:
            return int(value)
        if oid == FLOAT8:
            return float(value)
    except ValueError:
        raise error(f'invalid input syntax for a number: "{str(value)[:63]}"', "22P02") from None
    if oid == BOOL:
        return value if isinstance(value, bool) else str(value).lower() in _TRUE
    return str(value)


def _milliseconds(value: str) -> float:
    number = value.rstrip("abcdefghijklmnopqrstuvwxyz ")
    factor = _MILLISECONDS.get(value[len(number) :].strip())
    if factor is None or not number.strip().isdecimal():
        raise error(f'invalid value for parameter "statement_timeout": "{value[:63]}"', "22023")
    return int(number) * factor

"""Reading a PostgreSQL connection string, in both of libpq's forms, without ever repeating what it holds.

`postgresql://user:password@host1:5432,host2/dbname?sslmode=require` and `host=a,b port=5432 dbname=x user=y`
(PostgreSQL documentation, "Connection Strings"). The password may be anywhere libpq allows it; errors name
keys, never values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from qgate.governance.problems import InvalidRequestError

DEFAULT_PORT: Final = 5432
HOSTS_MAX: Final = 16

_CHOICES: Final[Mapping[str, frozenset[str]]] = {
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "target_session_attrs": frozenset(
        {"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}
    ),
    "channel_binding": frozenset({"disable", "prefer", "require"}),
}
_PLAIN: Final = frozenset({"host", "port", "dbname", "user", "password", "connect_timeout", "sslrootcert"})
# Meaningful to a client of its own, without meaning for a route: the app and the gate decide these.
_IGNORED: Final = frozenset(
    {"application_name", "fallback_application_name", "client_encoding", "gssencmode"}
)
_KNOWN: Final = frozenset(_CHOICES) | _PLAIN | _IGNORED

_URL = re.compile(r"postgres(?:ql)?://(?P<authority>[^/?#]*)(?:/(?P<dbname>[^?#]*))?(?:\?(?P<query>[^#]*))?")
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>\d*))?")
_PAIR = re.compile(
    r"\s*(?P<key>\w+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<bare>(?:[^\s'\\]|\\.)*))(?:\s+|$)"
)
_HINT: Final = "postgresql://USER@HOST:5432/DBNAME, with special characters percent-encoded"


@dataclass(frozen=True, slots=True)
class DataSource:
    """A parsed connection string. Its repr hides the password."""

    hosts: tuple[tuple[str, int], ...]
    dbname: str
    user: str
    password: str | None = field(repr=False)
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    target_session_attrs: str = "any"
    channel_binding: str = "prefer"
    connect_timeout_s: float = 10.0


def parse(dsn: str) -> DataSource:
    """Read a connection string; InvalidRequestError says what is wrong with it."""
    text = dsn.strip()
    if "\x00" in text:
        raise InvalidRequestError("the DSN holds a NUL character")
    values = _from_url(text) if "://" in text else _from_pairs(text)
    for name in values:
        _check_key(name)
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            raise InvalidRequestError(f"the DSN's {name} must be one of {', '.join(sorted(choices))}")
    if not values.get("user"):
        raise InvalidRequestError("the DSN names no user", hint=_HINT)
    if not values.get("host"):
        raise InvalidRequestError("the DSN names no host", hint=_HINT)
    root = values.get("sslrootcert")
    if root not in {None, "system"}:
        raise InvalidRequestError(
            "the DSN's sslrootcert is a path, which would be read on another machine than yours",
            hint="give the certificate itself: meshctl db add NAME --sslrootcert FILE",
        )
    return DataSource(
        hosts=_hosts(values["host"], values.get("port", "")),
        dbname=values.get("dbname") or values["user"],
        user=values["user"],
        password=values.get("password"),
        # libpq does the same: the system's authorities make sense with full verification only.
        sslmode=values.get("sslmode", "verify-full" if root == "system" else "prefer"),
        sslrootcert=root,
        target_session_attrs=values.get("target_session_attrs", "any"),
        channel_binding=values.get("channel_binding", "prefer"),
        connect_timeout_s=_timeout(values.get("connect_timeout")),
    )


def _from_url(text: str) -> dict[str, str]:
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidRequestError("the DSN is not a postgresql:// URL", hint=_HINT)
    values: dict[str, str] = {}
    userinfo, at, hostspec = match["authority"].rpartition("@")
    if at:
        user, colon, password = userinfo.partition(":")
        values["user"] = _decoded(user, "user")
        if colon:
            values["password"] = _decoded(password, "password")
    if hostspec:
        hosts, ports = [], []
        for item in hostspec.split(","):
            found = _HOST.fullmatch(item)
            if found is None:
                raise InvalidRequestError("the DSN's host and port cannot be read", hint=_HINT)
            hosts.append(_decoded(found["six"] or found["name"] or "", "host"))
            ports.append(found["port"] or "")
        values["host"], values["port"] = ",".join(hosts), ",".join(ports)
    if match["dbname"]:
        values["dbname"] = _decoded(match["dbname"], "dbname")
    for pair in (match["query"] or "").split("&"):
        if pair:
            name, equals, value = pair.partition("=")
            if not equals:
                raise InvalidRequestError("the DSN's parameters must be name=value, joined by &", hint=_HINT)
            name = _decoded(name, "parameter")
            values["sslmode" if name == "ssl" else name] = (
                "require" if name == "ssl" and value == "true" else _decoded(value, name)
            )
    return values


def _from_pairs(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            raise InvalidRequestError(
                "the DSN is neither a postgresql:// URL nor key=value pairs",
                hint="host=HOST dbname=DBNAME user=USER, values with spaces in single quotes",
            )
        raw = match["quoted"] if match["quoted"] is not None else match["bare"]
        values[match["key"]] = re.sub(r"\\(.)", r"\1", raw)
        position = match.end()
    if not values:
        raise InvalidRequestError("the DSN is empty", hint=_HINT)
    return values


def _check_key(name: str) -> None:
    if name in _KNOWN:
        return
    if name in {"sslcert", "sslkey"}:
        raise InvalidRequestError(
            f"the DSN's {name} is a path, which would be read on another machine than yours",
            hint="give the files themselves: meshctl db add NAME --sslcert FILE --sslkey FILE",
        )
    near = difflib.get_close_matches(name, _KNOWN, n=1)
    # A mistyped DSN may have its password where a key should be, so only what looks like a key is repeated.
    shown = f" {name!r}" if near else ""
    raise InvalidRequestError(
        f"the DSN has a parameter{shown} that is not supported here",
        hint=f"did you mean {near[0]}?" if near else "",
    )


def _hosts(host: str, port: str) -> tuple[tuple[str, int], ...]:
    hosts = host.split(",")
    ports = port.split(",") if port else [""]
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise InvalidRequestError(f"the DSN names {len(hosts)} hosts and {len(ports)} ports")
    if len(hosts) > HOSTS_MAX:
        raise InvalidRequestError(f"the DSN names more than {HOSTS_MAX} hosts")
    found = []
    for name, number in zip(hosts, ports, strict=True):
        if not name or not name.isprintable() or " " in name:
            raise InvalidRequestError("one of the DSN's hosts is empty or malformed", hint=_HINT)
        if number and not number.isdecimal():
            raise InvalidRequestError("the DSN's port is not a number", hint=_HINT)
        value = int(number) if number else DEFAULT_PORT
        if not 0 < value < 65_536:
            raise InvalidRequestError("the DSN's port must lie between 1 and 65535")
        found.append((name, value))
    return tuple(found)


def _timeout(text: str | None) -> float:
    if text is None:
        return 10.0
    if not text.isdecimal() or not 1 <= int(text) <= 600:
        raise InvalidRequestError("the DSN's connect_timeout must be 1 to 600 seconds")
    return float(text)


def _decoded(text: str, what: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise InvalidRequestError(
            f"the DSN's {what} holds a % that is not percent-encoded", hint="write it as %25"
        )
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequestError(f"the DSN's {what} is not UTF-8 once decoded") from None
